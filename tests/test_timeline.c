// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// Timelines as they are written: times, spans and their latent frames, reading and writing, what a model fills in, and
// every refusal with its place.
#include "infer/timeline/timeline.h"

#include <unistd.h>

#include "core/base/file.h"
#include "core/base/rng.h"
#include "tests/ts_test.h"

static const ts_timeline_model model = {.width = 64,
                                        .height = 64,
                                        .frames = 17,
                                        .fps = 8,
                                        .guidance = 3,
                                        .time_factor = 4,
                                        .space_factor = 8,
                                        .patch_h = 2,
                                        .patch_w = 2,
                                        .max_frames = 1000};
static ts_arena *arena;
static char path[64];

// ---- times

static double time_of(const char *text) {
    double frames = -1;
    CHECK_OK(ts_time_parse(&frames, text, 8, 33, "here"));
    return frames;
}

static void test_times(void) {
    CHECK(time_of("start") == 0 && time_of("end") == 33 && time_of("0") == 0 && time_of("0s") == 0);
    CHECK(time_of("1.5s") == 12 && time_of("12f") == 12 && time_of("12") == 12 && time_of("0:01.5") == 12);
    CHECK(time_of("0:02") == 16 && time_of("1:00") == 480 && time_of("90:00") == 43200);
    CHECK(time_of("1:02:03") == 3723 * 8 && time_of("1:00:00.25") == 28802);
    CHECK(time_of("0.1s") == 0.8 && time_of("2.5f") == 2.5);
    double frames;
    CHECK_OK(ts_time_parse(&frames, "0.3s", 30, 100, "here"));
    CHECK(frames == 9);  // 0.3 * 30 is a little less than 9
    static const char *const wrong[] = {
        "",    " ",    "s",       "f",      "1.s",   ".5s",   "1,5s", "-1s",  "+1s",        "1e3",    "0x10",
        "1 s", "1s ",  "1ss",     "1m",     "1.5.2", "nan",   "inf",  "0:60", "1:60:0",     "1:2:60", ":2",
        "1:",  "1:2:", "1:2:3:4", "1.5:02", "1:02s", "1:0x2", "End",  "40%",  "1234567890", "1..2",   "\xff"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK_FAILS(ts_time_parse(&frames, wrong[i], 8, 33, "here"), TS_EUSAGE, "is no time; write 1.5s, 0:01.5, 12f");
        CHECK(strncmp(ts_error_text(), "here: \"", 7) == 0);
    }
}

static bool is_span(const char *text, double first, double end) {
    ts_frame_span span = {-1, -1};
    CHECK_OK(ts_span_parse(&span, text, 8, 33, "here"));
    return span.first == first && span.end == end;
}

static void test_spans(void) {
    CHECK(is_span("all", 0, 33) && is_span("..", 0, 33) && is_span("0s..2s", 0, 16) && is_span("8f..end", 8, 33));
    CHECK(is_span("8..", 8, 33) && is_span("..8", 0, 8) && is_span("start..0:01", 0, 8) &&
          is_span("0.5s..1.5s", 4, 12));
    CHECK(is_span("2.5..3.5", 2.5, 3.5) && is_span("0..33", 0, 33));
    ts_frame_span span;
    CHECK_FAILS(ts_span_parse(&span, "0..34", 8, 33, "here"), TS_EUSAGE,
                "here: \"0..34\" ends at frame 34, and the video has 33 (4.125 s); end it earlier or raise frames");
    CHECK_FAILS(ts_span_parse(&span, "2s..1s", 8, 33, "here"), TS_EUSAGE, "begins at frame 16 and ends before frame 8");
    CHECK_FAILS(ts_span_parse(&span, "8..1s", 8, 33, "here"), TS_EUSAGE, "is empty");
    CHECK_FAILS(ts_span_parse(&span, "end..", 8, 33, "here"), TS_EUSAGE, "is empty");
    CHECK_FAILS(ts_span_parse(&span, "1s", 8, 33, "here"), TS_EUSAGE, "\"1s\" is no span; write A..B");
    CHECK_FAILS(ts_span_parse(&span, "", 8, 33, "here"), TS_EUSAGE, "is no span");
    CHECK_FAILS(ts_span_parse(&span, "1s-2s", 8, 33, "here"), TS_EUSAGE, "is no span");
    CHECK_FAILS(ts_span_parse(&span, "1s..2x", 8, 33, "here"), TS_EUSAGE, "\"2x\" is no time");
    CHECK_FAILS(ts_span_parse(&span, "1s....2s", 8, 33, "here"), TS_EUSAGE, "\"..2s\" is no time");
    char huge[300];
    memset(huge, '1', sizeof huge);
    memcpy(huge + 100, "..", 2);
    huge[sizeof huge - 1] = '\0';
    CHECK_FAILS(ts_span_parse(&span, huge, 8, 33, "here"), TS_EUSAGE, "is no span");
}

// ---- latent frames

static bool snaps(double first, double end, bool loop, int64_t latent_first, int64_t latent_end, bool moves) {
    bool moved = !moves;
    const ts_latent_span span = ts_span_snap((ts_frame_span){first, end}, 4, 5, loop, &moved);
    return span.first == latent_first && span.end == latent_end && moved == moves;
}

static void test_snapping(void) {
    // A video of 17 frames: latent frames begin at pixel frames 0, 1, 5, 9, 13.
    CHECK(snaps(0, 17, false, 0, 5, false) && snaps(0, 1, false, 0, 1, false) && snaps(5, 13, false, 2, 4, false));
    CHECK(snaps(0, 8, false, 0, 3, true) && snaps(8, 17, false, 3, 5, true));     // 1 s at 8 frames a second
    CHECK(snaps(0, 7, false, 0, 2, true) && snaps(7, 17, false, 2, 5, true));     // a middle belongs to what follows
    CHECK(snaps(0, 0.4, false, 0, 1, true) && snaps(0.6, 1, false, 0, 1, true));  // less than half a frame is one
    CHECK(snaps(1, 2, false, 1, 2, true) && snaps(4, 5, false, 1, 2, true) && snaps(16, 17, false, 4, 5, true));
    CHECK(snaps(4.5, 5.5, false, 2, 3, true) && snaps(2.9, 3.1, false, 1, 2, true));
    // A loop of 20: they begin at 0, 4, 8, 12, 16.
    CHECK(snaps(0, 20, true, 0, 5, false) && snaps(4, 12, true, 1, 3, false) && snaps(0, 1, true, 0, 1, true));
    CHECK(snaps(0, 9, true, 0, 2, true) && snaps(0, 11, true, 0, 3, true) && snaps(19, 20, true, 4, 5, true));
    for (uint32_t trial = 0; trial < 500; trial++) {  // neighbours share out the frames; none is empty
        const bool loop = trial % 2;
        const int64_t factor = 1 + (int64_t)ts_rng_below(3, TS_RNG_TEST, trial, 0, 6), latent = 1 + trial % 9;
        const double frames = (double)(loop ? latent * factor : 1 + (latent - 1) * factor);
        const double cut = frames * (double)ts_rng_below(3, TS_RNG_TEST, trial, 1, 999) / 999 + 1e-4;
        if (cut >= frames) {
            continue;
        }
        bool moved;
        const ts_latent_span a = ts_span_snap((ts_frame_span){0, cut}, factor, latent, loop, &moved);
        const ts_latent_span b = ts_span_snap((ts_frame_span){cut, frames}, factor, latent, loop, &moved);
        CHECK(a.first == 0 && b.end == latent && a.end > 0 && b.first < latent);
        CHECK(a.end == b.first || (a.end == 1 && b.first == 0) || (a.end == latent && b.first == latent - 1));
    }
}

static void test_steps_and_boxes(void) {
    int64_t step, side[4];
    CHECK_OK(ts_step_parse(&step, "40%", 30, "here"));
    CHECK(step == 12);
    CHECK_OK(ts_step_parse(&step, "99.9%", 10, "here"));
    CHECK(step == 9);
    CHECK_OK(ts_step_parse(&step, "0", 1, "here"));
    CHECK(step == 0);
    CHECK_FAILS(ts_step_parse(&step, "30", 30, "here"), TS_EUSAGE, "here: step 30 does not come: there are 30");
    CHECK_FAILS(ts_step_parse(&step, "100%", 30, "here"), TS_EUSAGE, "give less than 100%");
    CHECK_FAILS(ts_step_parse(&step, "1.5", 30, "here"), TS_EUSAGE, "is no step");
    CHECK_FAILS(ts_step_parse(&step, "-1", 30, "here"), TS_EUSAGE, "is no step");
    CHECK_FAILS(ts_step_parse(&step, "4 0%", 30, "here"), TS_EUSAGE, "is no step");
    CHECK_FAILS(ts_step_parse(&step, "", 30, "here"), TS_EUSAGE, "is no step");
    CHECK_OK(ts_box_parse(side, "-8, 4,16,32", "here"));
    CHECK(side[0] == -8 && side[1] == 4 && side[2] == 16 && side[3] == 32);
    static const char *const wrong[] = {"",          "1,2,3",     "1,2,3,4,5",
                                        "1,2,0,4",   "1,2,3,-4",  "1,2,3,4 ",
                                        "a,2,3,4",   "1,2,3,4x",  "1,2,3,99999999999999999999",
                                        "1.5,2,3,4", "--1,2,3,4", "1,,3,4"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK_FAILS(ts_box_parse(side, wrong[i], "here"), TS_EUSAGE, "is no box; write x,y,width,height");
    }
}

// ---- files

static void write_text(const char *text) {
    unlink(path);
    FILE *file = fopen(path, "wb");
    fputs(text, file);
    fclose(file);
}

static int read_text(ts_timeline *t, const char *text) {
    write_text(text);
    return ts_timeline_read(t, path, arena);
}

static const char complete[] =
    "size: 96x64\nframes: 33\nfps: 12\nloop: false\nmix: 0.7\nwindow: 17\noverlap: 4\ncontext: 0\n"
    "track:\n"
    "  - span: 0s..1s\n"
    "    source: video\n"
    "    file: a b.mp4\n"
    "    from: 0:01.5\n"
    "    speed: -0.5\n"
    "    strength: 0.25\n"
    "    weight: 2\n"
    "    weight_end: 0\n"
    "    ramp: sigmoid\n"
    "    mask: hand.png\n"
    "    invert: true\n"
    "    feather: 4\n"
    "    boxes:\n"
    "      - {box: '8,8,32,32', span: 2f..8f}\n"
    "      - box: 0,0,16,16\n"
    "  - {span: 32..33, source: image, file: end.png}\n"
    "prompts:\n"
    "  - text: a red circle moves left\n"
    "  - span: 1s..end\n"
    "    text: 'a blue circle: it moves'\n"
    "    weight: 0.5\n"
    "    guidance: 0\n"
    "events:\n"
    "  - {at: 40%, text: a green circle, from: 1s}\n";

static void test_reading(void) {
    ts_timeline t;
    CHECK_OK(read_text(&t, complete));
    CHECK(strcmp(t.path, path) == 0 && t.size.width == 96 && t.frames == 33 && t.fps == 12 && !t.loop && t.mix == 0.7);
    CHECK(t.window == 17 && t.overlap == 4 && t.context == 0);
    CHECK(t.track.count == 2 && t.prompts.count == 2 && t.events.count == 1);
    const ts_timeline_track *a = &t.track.item[0], *b = &t.track.item[1];
    CHECK(a->line == 10 && strcmp(a->span, "0s..1s") == 0 && a->source == TS_SOURCE_VIDEO && a->speed == -0.5);
    CHECK(strcmp(a->file, "a b.mp4") == 0 && strcmp(a->from, "0:01.5") == 0 && a->strength == 0.25 && a->weight == 2);
    CHECK(a->weight_end == 0 && strcmp(a->ramp, "sigmoid") == 0 && strcmp(a->mask, "hand.png") == 0 && a->invert);
    CHECK(a->feather == 4 && a->boxes.count == 2 && strcmp(a->boxes.item[0].span, "2f..8f") == 0);
    CHECK(a->boxes.item[1].line == 24 && !a->boxes.item[1].span && strcmp(a->boxes.item[1].box, "0,0,16,16") == 0);
    CHECK(b->line == 25 && b->source == TS_SOURCE_IMAGE && b->speed == 1 && b->strength == 0 && isnan(b->weight_end));
    CHECK(strcmp(t.prompts.item[0].span, "all") == 0 && isnan(t.prompts.item[0].guidance));
    CHECK(t.prompts.item[1].guidance == 0 && t.prompts.item[1].weight == 0.5 && t.events.item[0].line == 33);
    CHECK_OK(ts_timeline_resolve(&t, &model));
    CHECK_FAILS(ts_timeline_read(&t, "/nonexistent/t.yaml", arena), TS_EINPUT, "t.yaml");
    CHECK_FAILS(read_text(&t, "prompts:\n  - text: a\n    wieght: 1\n"), TS_EUSAGE,
                ":3: prompts[0]: unknown key \"wieght\"; did you mean \"weight\"?");
    CHECK_FAILS(read_text(&t, "track:\n  - source: video\n"), TS_EUSAGE, ":2: track[0]: \"span\" is missing");
    CHECK_FAILS(read_text(&t, "prompts:\n  - span: all\n"), TS_EUSAGE, ":2: prompts[0]: \"text\" is missing");
    CHECK_FAILS(read_text(&t, "track:\n  - span: all\n    strength: 1.5\n"), TS_EUSAGE,
                ":3: track[0]: \"strength\" is 1.5; it must be 0 to 1");
}

static const char *text_of(const ts_timeline *t) {
    char *text = NULL;
    size_t bytes;
    FILE *file = open_memstream(&text, &bytes);
    CHECK_OK(ts_timeline_write(t, file));
    fclose(file);
    const char *copy = ts_arena_strdup(arena, text);
    free(text);
    return copy;
}

// What is written reads back to equal values: the tables' own JSON of both is the same.
static void check_round_trip(const ts_timeline *t) {
    ts_timeline back;
    CHECK_OK(read_text(&back, text_of(t)));
    const char *first = ts_options_to_json(ts_timeline_options, t, arena);
    const char *second = ts_options_to_json(ts_timeline_options, &back, arena);
    CHECK(first && second && strcmp(first, second) == 0);
}

static void test_writing(void) {
    ts_timeline t;
    CHECK_OK(read_text(&t, complete));
    check_round_trip(&t);
    CHECK_OK(ts_timeline_resolve(&t, &model));
    check_round_trip(&t);
    CHECK_OK(read_text(&t, ""));
    CHECK(strcmp(text_of(&t), "") == 0);
    // As a verb fills it.
    t = ts_timeline_default();
    ts_timeline_track track = ts_timeline_track_default();
    ts_timeline_prompt prompt = ts_timeline_prompt_default();
    track.span = "0f..17f";
    track.source = TS_SOURCE_VIDEO;
    track.file = "cup.mp4";
    track.strength = 0.6;
    prompt.text = "a cup";
    t.frames = 17;
    t.track.count = t.prompts.count = 1;
    t.track.item = &track;
    t.prompts.item = &prompt;
    CHECK(strcmp(text_of(&t), "frames: 17\ntrack:\n  - span: \"0f..17f\"\n    source: video\n    file: cup.mp4\n"
                              "    strength: 0.6\nprompts:\n  - text: \"a cup\"\n") == 0);
    check_round_trip(&t);
}

// The defaults in C are those of the tables.
static void test_defaults(void) {
    ts_timeline t, ours = ts_timeline_default();
    CHECK_OK(read_text(&t, "track: [{span: all}]\nprompts: [{text: x}]\n"));
    ts_timeline_track track = ts_timeline_track_default();
    ts_timeline_prompt prompt = ts_timeline_prompt_default();
    track.span = "all";
    prompt.text = "x";
    ours.track.count = ours.prompts.count = 1;
    ours.track.item = &track;
    ours.prompts.item = &prompt;
    const char *first = ts_options_to_json(ts_timeline_options, &t, arena);
    const char *second = ts_options_to_json(ts_timeline_options, &ours, arena);
    CHECK(first && second && strcmp(first, second) == 0);
}

// ---- resolved against a model

static ts_timeline resolved(const char *text) {
    ts_timeline t;
    CHECK_OK(read_text(&t, text));
    CHECK_OK(ts_timeline_resolve(&t, &model));
    const char *once = ts_options_to_json(ts_timeline_options, &t, arena);
    CHECK_OK(ts_timeline_resolve(&t, &model));  // a second time changes nothing
    const char *twice = ts_options_to_json(ts_timeline_options, &t, arena);
    CHECK(once && twice && strcmp(once, twice) == 0);
    return t;
}

static void test_filling(void) {
    ts_timeline t = resolved("");
    CHECK(t.size.width == 64 && t.size.height == 64 && t.frames == 17 && t.fps == 8 && t.window == 17);
    CHECK(t.overlap == 8 && t.context == 12);
    t = resolved("window: 9\noverlap: 4\ncontext: 1\nframes: 101\n");
    CHECK(t.window == 9 && t.overlap == 4 && t.context == 1);
    CHECK(resolved("loop: true\n").frames == 16);
    CHECK(resolved("loop: true\nfps: 4\nprompts: [{text: a, span: 0s..5s}]\n").frames == 20);
    CHECK(resolved("prompts: [{text: a, span: 0s..4s}]\n").frames == 33);
    CHECK(resolved("prompts: [{text: a, span: 0s..1s}, {text: b, span: 1s..25f}]\n").frames == 25);
    CHECK(resolved("prompts: [{text: a}]\ntrack: [{span: 0..1, source: image, file: a.png}]\n").frames == 17);
    CHECK(resolved("prompts: [{text: a}]\ntrack: [{span: 0..6s, source: video, file: a.mp4}]\n").frames == 49);
    CHECK(resolved("track: [{span: 0..1, source: image, file: a.png}]\n").frames == 1);
    t = resolved("track: [{span: all, source: video, file: a.mp4, weight: 3}]\n");
    CHECK(t.track.item[0].weight_end == 3 && strcmp(t.track.item[0].ramp, "linear") == 0);
    CHECK(resolved("track: [{span: all, strength: 1, mask: a.png}]\n").track.count == 1);
}

// Each text is refused by ts_timeline_resolve with that message.
static void test_refusals(void) {
    static const char *const wrong[][2] = {
        {"size: 60x64\n", ":1: size is 60x64; this model wants a width in steps of 16 and a height in steps of 16"},
        {"frames: 20\n", ":1: frames is 20; a video has 1 + 4k: make it 17 or 21"},
        {"frames: 3\n", "make it 1 or 5"},
        {"frames: 17\nloop: true\n", ":1: frames is 17; a loop has 4k: make it 16 or 20"},
        {"frames: 3\nloop: true\n", "make it 4 or 8"},
        {"frames: 8001\n", ":1: frames is 8001; at most 3997 can be made"},
        {"prompts: [{text: a, span: '0s..999999999:59:59'}]\nfps: 240\n", "frames is 863999999999761; at most 3997"},
        {"fps: 0.001\n", ":1: fps is 0.001; it must be 0.01 to 240"},
        {"window: 18\n", ":1: window is 18; a window has 1 + 4k frames: make it 17 or 21"},
        {"window: 5\n", ":1: window is 5; the windows of a video of 17 frames must overlap: make it 9 at least"},
        {"frames: 33\noverlap: 16\n", ":2: overlap is 16; windows of 17 frames can share 12 at most"},
        {"loop: true\nframes: 20\noverlap: 13\n", "can share 12 at most"},
        {"track:\n  - span: 1s..9s\n    source: image\n    file: a.png\nframes: 33\n",
         ":2: track[0]: span: \"1s..9s\" ends at frame 72, and the video has 33"},
        {"track: [{span: 1s..0s}]\n", ":1: track[0]: span: \"1s..0s\" is empty"},
        {"track: [{span: 1s}]\n", ":1: track[0]: span: \"1s\" is no span"},
        {"track: [{span: all, source: video}]\n", ":1: track[0]: source video without a file; add \"file: ...\""},
        {"track: [{span: all, source: latent, file: ''}]\n", "source latent without a file"},
        {"track: [{span: all, file: a.mp4, strength: 1}]\n",
         "a file and source none; write source: video, image or latent"},
        {"track: [{span: all, source: image, file: a.png, from: 1s}]\n", "from means nothing with source image"},
        {"track: [{span: all, strength: 1, from: 1s}]\n", "from means nothing with source none"},
        {"track: [{span: all, source: video, file: a.mp4, from: later}]\n", "track[0]: from: \"later\" is no time"},
        {"track: [{span: all, source: image, file: a.png, speed: 2}]\n",
         "only a video has a speed, and the source is image"},
        {"track: [{span: all, source: latent, file: a, speed: 0.5}]\n", "only a video has a speed"},
        {"track: [{span: all, source: video, file: a.mp4, speed: 0}]\n", "speed is 0; it must be 1/64 to 64"},
        {"track: [{span: all}]\n", "source none holds nothing; raise strength"},
        {"track: [{span: all, strength: 1, weight: 2}]\n", "weight, weight_end and ramp mean nothing without a source"},
        {"track: [{span: all, strength: 1, ramp: linear}]\n", "mean nothing without a source"},
        {"track: [{span: all, source: video, file: a.mp4, weight: 0}]\n", "weight is 0 throughout"},
        {"track: [{span: all, source: video, file: a.mp4, ramp: linear}]\n", "a ramp leads to weight_end; add"},
        {"track: [{span: all, source: video, file: a.mp4, weight_end: 0, ramp: ''}]\n", "ramp is empty"},
        {"track: [{span: all, source: video, file: a.mp4, invert: true}]\n",
         "invert is for a mask; add \"mask: ...\" or boxes"},
        {"track: [{span: all, source: video, file: a.mp4, feather: 4}]\n", "feather is for a mask"},
        {"track: [{span: all, source: video, file: a.mp4, mask: ''}]\n", "mask is empty"},
        {"track:\n  - span: all\n    strength: 1\n    boxes:\n      - box: 8,8\n",
         ":5: track[0]: boxes[0]: \"8,8\" is no box; write x,y,width,height"},
        {"track: [{span: all, strength: 1, boxes: [{box: '64,0,8,8'}]}]\n",
         "box 64,0,8,8 lies outside of the 64x64 pixels"},
        {"track: [{span: all, strength: 1, boxes: [{box: '0,-8,8,8'}]}]\n", "lies outside of the 64x64"},
        {"track: [{span: 0..8, strength: 1, boxes: [{box: '0,0,8,8', span: 8..9}]}]\nframes: 17\n",
         "\"8..9\" lies outside of the entry's span, frames 0 to 8; times are the result's"},
        {"track: [{span: all, strength: 1, boxes: [{box: '0,0,8,8', span: x}]}]\n", "boxes[0]: \"x\" is no span"},
        {"prompts:\n  - text: a\n  - text: b\n    span: 0..99\nframes: 17\n",
         ":3: prompts[1]: span: \"0..99\" ends at frame 99"},
        {"prompts: [{text: a, weight: 0}, {text: b, weight: 0}]\n", ": all prompts have weight 0; raise one"},
        {"events: [{at: soon, text: a}]\n", ":1: events[0]: at: \"soon\" is no step"},
        {"events: [{at: 100%, text: a}]\n", "events[0]: at: 100% of the steps are over"},
        {"events: [{at: 40%, text: a, from: 9s}]\n", "events[0]: from: \"9s\" is frame 72, and the video has 17"},
        {"events: [{at: 40%, text: a, from: x}]\n", "events[0]: from: \"x\" is no time"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        ts_timeline t;
        CHECK_OK(read_text(&t, wrong[i][0]));
        CHECK_FAILS(ts_timeline_resolve(&t, &model), TS_EUSAGE, wrong[i][1]);
        CHECK(strncmp(ts_error_text(), path, strlen(path)) == 0);
    }
    ts_timeline t;
    CHECK_OK(read_text(&t, "prompts:\n  - text: ' '\n"));
    CHECK_FAILS(ts_timeline_resolve(&t, &model), TS_EINPUT, ":2: prompts[0]: the prompt is empty");
    CHECK_OK(read_text(&t, "events:\n  - {at: 4, text: ' '}\n"));
    CHECK_FAILS(ts_timeline_resolve(&t, &model), TS_EINPUT, ":2: events[0]: the prompt is empty");
}

// What a verb may get wrong, which no table has checked.
static void test_filled_refusals(void) {
    ts_timeline t = ts_timeline_default();
    ts_timeline_track track = ts_timeline_track_default();
    ts_timeline_prompt prompt = ts_timeline_prompt_default();
    t.path = "remix";
    t.mix = 2;
    CHECK_FAILS(ts_timeline_resolve(&t, &model), TS_EUSAGE, "remix: mix is 2; it must be 0 to 1");
    t.mix = 0.8;
    t.track.item = &track;
    t.track.count = 1;
    track.span = "all";
    track.source = TS_SOURCE_VIDEO;
    track.file = "a.mp4";
    track.strength = NAN;
    CHECK_FAILS(ts_timeline_resolve(&t, &model), TS_EUSAGE, "remix: track[0]: strength is nan; it must be 0 to 1");
    track.strength = 0;
    track.weight = -1;
    track.weight_end = NAN;
    CHECK_FAILS(ts_timeline_resolve(&t, &model), TS_EUSAGE, "remix: track[0]: weight is -1; it must be 0 to 1e+06");
    t.track.count = 0;
    t.prompts.item = &prompt;
    t.prompts.count = 1;
    CHECK_FAILS(ts_timeline_resolve(&t, &model), TS_EINPUT, "remix: prompts[0]: the prompt is empty");
    prompt.text = "a";
    prompt.guidance = -3;
    CHECK_FAILS(ts_timeline_resolve(&t, &model), TS_EUSAGE, "remix: prompts[0]: guidance is -3; it must be 0 to 100");
}

// Many prompts for many frames: refused before anything is allocated for them.
static void test_many_prompts(void) {
    enum { COUNT = 70000 };
    ts_timeline_prompt *prompts = calloc(COUNT, sizeof *prompts);
    for (int64_t i = 0; i < COUNT; i++) {
        prompts[i] = ts_timeline_prompt_default();
        prompts[i].text = "a";
    }
    ts_timeline t = ts_timeline_default();
    t.prompts.item = prompts;
    t.prompts.count = COUNT;
    t.frames = 1 + 4 * 999;
    CHECK_FAILS(ts_timeline_resolve(&t, &model), TS_EUSAGE,
                "70000 prompts and 0 events for 1000 latent frames; at most 67108");
    t.prompts.count = 64000;
    CHECK_OK(ts_timeline_resolve(&t, &model));
    // So do events, each of which brings a prompt; and they are sorted and encoded one by one.
    static ts_timeline_event events[4097];
    for (int64_t i = 0; i < 4097; i++) {
        events[i] = (ts_timeline_event){.at = "3", .text = "a"};
    }
    t.events.item = events;
    t.events.count = 4096;
    CHECK_FAILS(ts_timeline_resolve(&t, &model), TS_EUSAGE, "64000 prompts and 4096 events");
    t.prompts.count = 1;
    CHECK_OK(ts_timeline_resolve(&t, &model));
    t.events.count = 4097;
    CHECK_FAILS(ts_timeline_resolve(&t, &model), TS_EUSAGE, "timeline: events is a list of 4097; at most 4096");
    free(prompts);
}

// Damaged timelines: read and resolved, or refused with the file's name and a code that says whose mistake it is.
static void test_mutants(void) {
    static const char interesting[] = "[]{}&*!%|>'\":-?#,.\n\t \\~@`0919sfxe\xff\xc3";
    enum { LENGTH = sizeof complete - 1 };
    int64_t good = 0;
    for (uint32_t trial = 0; trial < 600; trial++) {
        char text[LENGTH + 1];
        memcpy(text, complete, sizeof text);
        for (uint32_t change = 0; change <= trial % 3; change++) {
            const uint64_t where = ts_rng_below(7, TS_RNG_TEST, trial, 2 * change, LENGTH);
            text[where] = interesting[ts_rng_below(7, TS_RNG_TEST, trial, 2 * change + 1, sizeof interesting - 1)];
        }
        text[trial % 6 ? LENGTH : ts_rng_below(7, TS_RNG_TEST, trial, 99, LENGTH)] = '\0';
        ts_arena_reset(arena);
        ts_timeline t;
        int status = read_text(&t, text);
        status = status ? status : ts_timeline_resolve(&t, &model);
        CHECK(status == TS_OK || status == TS_EUSAGE || status == TS_EINPUT);
        CHECK(status == TS_OK || strncmp(ts_error_text(), path, strlen(path)) == 0);
        good += status == TS_OK;
        if (status == TS_OK) {
            check_round_trip(&t);
        }
    }
    CHECK(good > 50 && good < 550);  // the test sees both
}

// ---- the examples

// Every file of configs/timelines is read, fits the shipped model and names only files that are there or that its own
// comment makes.
static void test_examples(void) {
    static const char folder[] = "configs/timelines";
    char **names, file[TS_PATH_BYTES];
    int64_t count, timelines = 0;
    CHECK_OK(ts_folder_list(folder, &names, &count));
    for (int64_t i = 0; i < count; i++) {
        if (!strstr(names[i], ".yaml")) {
            continue;
        }
        timelines++;
        ts_timeline t;
        char *text;
        size_t bytes;
        CHECK_OK(ts_path_join(file, sizeof file, folder, names[i]));
        CHECK_OK(ts_file_read(file, 1 << 20, &text, &bytes));
        CHECK(strstr(text, file));  // the command that runs it
        CHECK_OK(ts_timeline_read(&t, file, arena));
        CHECK_OK(ts_timeline_resolve(&t, &model));
        check_round_trip(&t);
        for (int64_t e = 0; e < t.track.count; e++) {
            char made[TS_PATH_BYTES + 8];
            snprintf(made, sizeof made, "--out %s\n", t.track.item[e].file);
            CHECK(ts_path_exists(t.track.item[e].file) || strstr(text, made));
            CHECK(!t.track.item[e].mask || ts_path_exists(t.track.item[e].mask));
        }
        free(text);
    }
    CHECK(timelines == 9);
    ts_folder_list_free(names, count);
}

// The README's example is a timeline that is in order, and has every key that the tables know but those of videos
// alone.
static void test_readme(void) {
    static const char *const of_videos[] = {"from", "speed"};
    char *text;
    size_t bytes;
    CHECK_OK(ts_file_read("README.md", 1 << 20, &text, &bytes));
    char *start = strstr(text, "```yaml\n"), *end = start ? strstr(start + 4, "```") : NULL;
    CHECK(start && end);
    if (start && end) {
        *end = '\0';
        ts_timeline t;
        CHECK_OK(read_text(&t, start + strlen("```yaml\n")));
        CHECK_OK(ts_timeline_resolve(&t, &model));
        char *keys = NULL;
        size_t keys_bytes;
        FILE *file = open_memstream(&keys, &keys_bytes);
        ts_options_print_keys(ts_timeline_options, file);
        fclose(file);
        for (char *line = strtok(keys, "\n"); line; line = strtok(NULL, "\n")) {
            char key[32] = "";
            const bool named = sscanf(line, " %31[a-z_]", key) == 1 && line[strspn(line, " ") + strlen(key)] == ':';
            const bool of_video = strcmp(key, of_videos[0]) == 0 || strcmp(key, of_videos[1]) == 0;
            CHECK(!named || strspn(line, " ") > 12 || of_video || strstr(start, ts_arena_printf(arena, "%s:", key)));
        }
        free(keys);
    }
    free(text);
}

int main(void) {
    strcpy(path, "/tmp/tessera-timeline-XXXXXX");
    const int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    CHECK_OK(ts_arena_open(&arena, "timeline", 1 << 16, false));
    test_times();
    test_spans();
    test_snapping();
    test_steps_and_boxes();
    test_reading();
    test_writing();
    test_defaults();
    test_filling();
    test_refusals();
    test_filled_refusals();
    test_many_prompts();
    test_mutants();
    test_examples();
    test_readme();
    ts_arena_close(&arena);
    unlink(path);
    return ts_test_end();
}
