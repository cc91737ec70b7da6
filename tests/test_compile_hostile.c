// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=120
// Three hundred timelines of mistakes, malice and broken files: a canvas, or one line of text and a code that says who
// can mend it; never a crash, and no memory to speak of.
#include <sys/stat.h>

#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/base/rng.h"
#include "core/store/safetensors.h"
#include "tests/compile_scene.h"

enum { CASES = 300, MAX_ENTRIES = 4 };

#if defined(__SANITIZE_ADDRESS__)
static const int64_t MOST_MEMORY = INT64_C(4) << 30;  // freed blocks are kept for a while
#else
static const int64_t MOST_MEMORY = 400 << 20;
#endif

// ---- draws

static uint64_t case_number;
static uint32_t lane;

static int64_t below(int64_t n) {
    return (int64_t)ts_rng_below(21, TS_RNG_TEST, case_number, 2 * lane++, (uint64_t)n);
}

#define PICK(list) (list)[below((int64_t)(sizeof(list) / sizeof *(list)))]

// One of the sound values, or now and then one of the others.
#define MOSTLY(sound, other) (below(50) ? PICK(sound) : PICK(other))
#define OFTEN(sound, other)  (below(4) ? PICK(sound) : PICK(other))

static char long_text[5000];

static const char *const SPANS[] = {"all", "0..17", "0s..1s", "1s..", "..9f", "0.3s..0.31s", "5..9", "0:00..0:01"};
static const char *const BAD_SPANS[] = {"",     "..",      "9..5",  "-1..3", "1e9..2e9", "0..99999999999",
                                        "a..b", "16f..17", ":..::", "5",     long_text,  "end..start"};
static const char *const TIMES[] = {NULL, NULL, "0", "1s", "0:00.5", "12f", "end", "3"};
static const char *const BAD_TIMES[] = {"", "-1", "1e300", "nan", "inf", "1:2:3:4", "99:59:59", long_text};
static const char *const FILES[] = {"film.mp4", "film.mp4", "card.png"};
static const char *const BAD_FILES[] = {"cut.mp4",  "noise.mp4", "empty.mp4",         "folder",          "none.mp4",
                                        "pipe.mp4", "cut.png",   "huge.png",          "one.png",         "still.mp4",
                                        "card.png", "film.mp4",  "saved.safetensors", "huge.safetensors"};
static const char *const RAMPS[] = {NULL, NULL, "linear", "sigmoid", "ramp.txt"};
static const char *const BAD_RAMPS[] = {"", "noise.mp4", "pipe.mp4", "folder", "none.txt", "empty.mp4", "huge.txt"};
static const char *const BOXES[] = {"0,0,16,16", "8,8,100,100", "-8,8,16,4", "15,15,1,1"};
static const char *const BAD_BOXES[] = {"",
                                        "1,2,3",
                                        "64,0,8,8",
                                        "0,0,0,0",
                                        "0,0,1000000,1000000",
                                        "a,b,c,d",
                                        "1,1,1,99999999999999999999",
                                        "-1000000,-1000000,1,1"};
static const char *const STEPS[] = {"0", "40%", "3", "99.9%"};
static const char *const BAD_STEPS[] = {"", "100%", "-1", "2.5", "1e9", "%", "nan%", long_text};
static const char *const TEXTS[] = {"a red circle moves left", "a", "blue"};
static const char *const BAD_TEXTS[] = {"", "\xff\xfe", long_text, "two\nlines"};
static const double STRENGTHS[] = {0, 0.3, 0.6, 1}, SPEEDS[] = {1, 1, 1, -1, 0.5, 2, -3, 1.0 / 64, 64};
static const double WEIGHTS[] = {1, 1, 0, 0.5, 1e6}, ANY[] = {NAN, -1, 2, INFINITY, -INFINITY, 1e300, 0.01, 1e-320};
static const double RATES[] = {0, 8, 8, 9, 7.5}, GUIDANCES[] = {NAN, NAN, 1, 0, 7.5, 100};
static const int64_t FRAMES[] = {0, 17, 33, 33}, BAD_FRAMES[] = {16, 2, 1, 5, -4, 262141, 262145, 1 << 30};
static const int64_t WINDOWS[] = {0, 17, 5, 9}, SHARED[] = {-1, -1, 0, 4, 8},
                     BAD_WINDOWS[] = {1, -3, 4, 999999, 1000001};
static const ts_size2 SIZES[] = {{0, 0}, {64, 64}, {64, 64}, {64, 64}, {48, 80}};
static const ts_size2 BAD_SIZES[] = {{63, 64}, {0, 64},    {1 << 20, 1 << 20}, {16384, 16384},
                                     {16, 16}, {-64, -64}, {16, 16384}};

static const char *file_or(const char *name) {
    return !name || strcmp(name, "linear") == 0 || strcmp(name, "sigmoid") == 0 || !*name ? name : in_scene(name);
}

// ---- timelines

static ts_timeline_track draw_track(ts_timeline_box *box) {
    ts_timeline_track e = scene_entry(MOSTLY(SPANS, BAD_SPANS), (int)below(4), NULL);
    if (e.source != TS_SOURCE_NONE || !below(32)) {
        const bool latent = e.source == TS_SOURCE_LATENT;
        e.file = in_scene(latent && below(4)                        ? "saved.safetensors"
                          : e.source == TS_SOURCE_IMAGE && below(4) ? "card.png"
                                                                    : OFTEN(FILES, BAD_FILES));
    }
    const bool moves = e.source == TS_SOURCE_VIDEO || e.source == TS_SOURCE_LATENT;
    e.from = moves || !below(32) ? MOSTLY(TIMES, BAD_TIMES) : NULL;
    e.speed = e.source == TS_SOURCE_VIDEO ? MOSTLY(SPEEDS, ANY) : 1;
    e.strength = e.source == TS_SOURCE_NONE ? 1 : MOSTLY(STRENGTHS, ANY);
    if (e.source != TS_SOURCE_NONE && below(2)) {
        e.weight = MOSTLY(WEIGHTS, ANY);
        e.weight_end = MOSTLY(WEIGHTS, ANY) + 0.1;
        e.ramp = file_or(OFTEN(RAMPS, BAD_RAMPS));
    }
    e.mask = below(3) ? NULL : in_scene(OFTEN(FILES, BAD_FILES));
    e.boxes.count = below(3);
    e.boxes.item = box;
    for (int64_t i = 0; i < e.boxes.count; i++) {
        box[i] = (ts_timeline_box){0, MOSTLY(BOXES, BAD_BOXES), below(4) ? NULL : MOSTLY(SPANS, BAD_SPANS)};
    }
    e.invert = (e.mask || e.boxes.count) && below(2);
    e.feather = (e.mask || e.boxes.count) && below(2) ? MOSTLY(STRENGTHS, ANY) * 10 : 0;
    return e;
}

static ts_timeline draw_timeline(void) {
    ts_timeline t = scene_timeline(MOSTLY(FRAMES, BAD_FRAMES));
    t.loop = !below(4);
    t.frames -= t.loop && t.frames > 0 && below(16);
    t.size = MOSTLY(SIZES, BAD_SIZES);
    t.fps = MOSTLY(RATES, ANY);
    t.mix = MOSTLY(STRENGTHS, ANY);
    t.window = MOSTLY(WINDOWS, BAD_WINDOWS);
    t.overlap = MOSTLY(SHARED, BAD_WINDOWS);
    t.context = MOSTLY(SHARED, BAD_WINDOWS);
    return t;
}

static int run_case(void) {
    ts_timeline t = draw_timeline();
    ts_timeline_track track[MAX_ENTRIES];
    ts_timeline_box box[MAX_ENTRIES][2];
    ts_timeline_prompt prompt[MAX_ENTRIES];
    ts_timeline_event event[MAX_ENTRIES];
    t.track.count = below(MAX_ENTRIES);
    t.prompts.count = below(MAX_ENTRIES);
    t.events.count = below(2);
    t.track.item = track;
    t.prompts.item = prompt;
    t.events.item = event;
    for (int64_t i = 0; i < t.track.count; i++) {
        track[i] = draw_track(box[i]);
    }
    for (int64_t i = 0; i < t.prompts.count; i++) {
        prompt[i] = scene_prompt(MOSTLY(SPANS, BAD_SPANS), MOSTLY(TEXTS, BAD_TEXTS), MOSTLY(WEIGHTS, ANY),
                                 MOSTLY(GUIDANCES, ANY));
    }
    for (int64_t i = 0; i < t.events.count; i++) {
        event[i] = (ts_timeline_event){0, MOSTLY(STEPS, BAD_STEPS), PICK(TEXTS), MOSTLY(TIMES, BAD_TIMES)};
    }
    const ts_timeline_model model = ts_timeline_model_of(scene_model);
    TS_TRY(ts_timeline_resolve(&t, &model));
    ts_compiled c;
    TS_TRY(ts_timeline_compile(&c, &t, scene_model, 1 + below(20), 1));
    for (int64_t i = 0; c.canvas.source && i < ts_canvas_numbers(&c.canvas); i++) {
        CHECK(isfinite(c.canvas.source[i]));
    }
    const int status = ts_canvas_check(&c.canvas);
    CHECK_OK(status);
    ts_compiled_close(&c);
    return TS_OK;
}

// ---- files

static void write_part(const char *from, const char *to, size_t part) {
    char *bytes;
    size_t size;
    CHECK_OK(ts_file_read(in_scene(from), 1 << 24, &bytes, &size));
    CHECK_OK(ts_file_write_atomic(in_scene(to), bytes, size / part));
    free(bytes);
}

static void write_files(void) {
    scene_film("film.mp4", 33, 10, 1);
    scene_film("still.mp4", 1, 10, 1);
    write_part("film.mp4", "cut.mp4", 2);
    uint8_t *rgb = scene_pixels("film.mp4", 0, 1, 1);
    CHECK_OK(ts_image_write_png(in_scene("card.png"), rgb, SIDE, SIDE));
    CHECK_OK(ts_image_write_png(in_scene("one.png"), rgb, 1, 1));
    write_part("card.png", "cut.png", 2);
    char *png;
    size_t size;
    CHECK_OK(ts_file_read(in_scene("card.png"), 1 << 24, &png, &size));
    memcpy(png + 16, "\0\0\xff\xff\0\0\xff\xff", 8);  // width and height
    CHECK_OK(ts_file_write_atomic(in_scene("huge.png"), png, size));
    free(png);
    float *numbers = calloc(9 * LATENT, sizeof *numbers);
    ts_safetensors_item item = {"latents", TS_F32, TS_SHAPE(9, 8, 8, 16), numbers};
    CHECK_OK(ts_safetensors_write(in_scene("saved.safetensors"), &item, 1, NULL));
    const char header[] = "h\0\0\0\0\0\0\0{\"latents\":{\"dtype\":\"F32\",\"shape\":[900000000000,8,8,16],"
                          "\"data_offsets\":[0,3686400000000000]}}                 ";
    CHECK_OK(ts_file_write_atomic(in_scene("huge.safetensors"), header, 8 + 'h'));
    CHECK_OK(ts_file_write_atomic(in_scene("empty.mp4"), "", 0));
    CHECK_OK(ts_file_write_atomic(in_scene("ramp.txt"), "0\n1\n", 4));
    char *noise = malloc(2 << 20);
    memset(noise, '1', 2 << 20);
    CHECK_OK(ts_file_write_atomic(in_scene("huge.txt"), noise, 2 << 20));
    for (uint32_t i = 0; i < 5000; i++) {
        noise[i] = (char)ts_philox_draw(3, TS_RNG_TEST, i, 0).word[0];
    }
    CHECK_OK(ts_file_write_atomic(in_scene("noise.mp4"), noise, 5000));
    CHECK_OK(ts_folder_make(in_scene("folder")));
    CHECK(mkfifo(in_scene("pipe.mp4"), 0600) == 0);
    free(noise);
    free(numbers);
    free(rgb);
}

int main(void) {
    memset(long_text, 'x', sizeof long_text - 1);
    scene_open();
    write_files();
    ts_log_set_level(TS_LOG_WARN);
    int made = 0;
    for (case_number = 0; case_number < CASES; case_number++) {
        lane = 0;
        const int status = run_case();
        CHECK(status == TS_OK || status == TS_EUSAGE || status == TS_EINPUT || status == TS_ERESOURCE);
        CHECK(status == TS_OK || (*ts_error_text() && !strchr(ts_error_text(), '\n')));
        made += !status;
    }
    CHECK(made > 50 && made < 200);
    CHECK(ts_memory_peak() < MOST_MEMORY);
    scene_close();
    return ts_test_end();
}
