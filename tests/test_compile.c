// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3 timeout=60
// Timelines into canvases: what is held is the codec's to the last bit, retimed too; prompts, events, and what is told.
#include "core/base/log.h"
#include "core/store/safetensors.h"
#include "tests/compile_scene.h"

// ---- without a track

static void test_empty(void) {
    ts_timeline t = scene_timeline(33);
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, NULL, 0));
    const ts_canvas *canvas = &c.canvas;
    CHECK(canvas->frames == 9 && canvas->height == 8 && canvas->width == 8 && canvas->channels == 16);
    CHECK(canvas->rows == 4 && canvas->columns == 4 && !canvas->source && !canvas->strength);
    CHECK(canvas->prompts == 1 && strcmp(canvas->prompt[0], "") == 0 && canvas->weight[8] == 1);
    CHECK(canvas->guidance[8] == 3);
    CHECK(canvas->window == 5 && canvas->overlap == 2 && canvas->context == 3);  // as the model was trained
    ts_compiled_close(&c);
    ts_compiled_close(&c);
    t.loop = true;
    t.frames = 32;
    t.window = 9;
    t.overlap = 4;
    t.context = 5;
    CHECK_OK(scene_compile(&c, &t, NULL, 0));
    CHECK(c.canvas.frames == 8 && c.canvas.loop);
    CHECK(c.canvas.window == 3 && c.canvas.overlap == 1 && c.canvas.context == 2);
    ts_compiled_close(&c);
}

static void test_size(void) {
    ts_compiled c;
    ts_timeline t = scene_timeline(17);
    t.size = (ts_size2){1 << 20, 1 << 20};
    CHECK_FAILS(scene_compile(&c, &t, NULL, 0), TS_EUSAGE, "make the video smaller");
    t.size = (ts_size2){8192, 8192};
    CHECK_FAILS(scene_compile(&c, &t, NULL, 0), TS_EUSAGE, "5x1024x1024 latent positions");
    // A loop of one window is seen with its head: a frame more than positions go.
    t.size = (ts_size2){16, 16};
    t.loop = true;
    t.frames = 4 * 1024;
    t.window = 1 + 4 * 1024;
    CHECK_FAILS(scene_compile(&c, &t, NULL, 0), TS_EUSAGE, "1025x2x2 latent positions");
    t.frames = 4 * 1023;
    CHECK_OK(scene_compile(&c, &t, NULL, 0));
    ts_compiled_close(&c);
    t.loop = false;
    t.window = 17;
    t.size = (ts_size2){2048, 2048};
    t.frames = 1 + 4 * 65535;
    CHECK_FAILS(scene_compile(&c, &t, NULL, 0), TS_ERESOURCE, "GB are free");
    CHECK(!c.canvas.prompt);
}

// ---- footage

static void test_held(void) {
    ts_timeline t = scene_timeline(17);
    ts_timeline_track e = scene_entry("all", TS_SOURCE_VIDEO, in_scene("red.mp4"));
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(scene_stands(&c.canvas, 0, 5, "red.mp4", 0, 1));
    CHECK(scene_strength(&c.canvas, 0, 5, 0));
    ts_compiled_close(&c);
    e.from = "3f";
    e.strength = 0.4;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(scene_stands(&c.canvas, 0, 5, "red.mp4", 3, 1));
    CHECK(scene_strength(&c.canvas, 0, 5, 0.4));
    ts_compiled_close(&c);
}

// Two stretches in another order, and a gap between them.
static void test_recut(void) {
    ts_timeline t = scene_timeline(41);
    ts_timeline_track e[2] = {scene_entry("0..17", TS_SOURCE_VIDEO, in_scene("red.mp4")),
                              scene_entry("25..41", TS_SOURCE_VIDEO, in_scene("red.mp4"))};
    e[0].from = "2s";
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, e, 2));
    CHECK(scene_stands(&c.canvas, 0, 5, "red.mp4", 16, 1));
    CHECK(scene_stands(&c.canvas, 7, 4, "red.mp4", 0, 1));
    CHECK(scene_strength(&c.canvas, 0, 5, 0) && scene_strength(&c.canvas, 7, 4, 0));
    CHECK(scene_strength(&c.canvas, 5, 2, 1));
    for (int64_t i = 5 * LATENT; i < 7 * LATENT; i++) {
        CHECK(c.canvas.source[i] == 0);
    }
    ts_compiled_close(&c);
}

static void test_speed(void) {
    ts_timeline t = scene_timeline(17);
    ts_timeline_track e = scene_entry("all", TS_SOURCE_VIDEO, in_scene("red.mp4"));
    ts_compiled c;
    e.speed = 2;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(scene_stands(&c.canvas, 0, 5, "red.mp4", 0, 2));
    ts_compiled_close(&c);
    e.speed = -1;
    e.from = "20f";  // what lies before frame 20, backwards
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(scene_stands(&c.canvas, 0, 5, "red.mp4", 19, -1));
    ts_compiled_close(&c);
    e.from = "end";
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(scene_stands(&c.canvas, 0, 5, "red.mp4", 32, -1));
    ts_compiled_close(&c);
    // Half speed: pixel frames are means of neighbours; the second one of these two.
    e.speed = 0.5;
    e.from = NULL;
    t.frames = 5;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    uint8_t *rgb = malloc(5 * PIXELS);
    int64_t filled;
    float latent[2 * LATENT];
    CHECK_OK(read_frames(in_scene("red.mp4"), 0, 1.0 / 16, 5, SIDE, SIDE, rgb, &filled));
    CHECK_OK(ts_codec_encode(scene_model->codec, rgb, 5, SIDE, SIDE, latent));
    CHECK(memcmp(latent, c.canvas.source, sizeof latent) == 0);
    free(rgb);
    ts_compiled_close(&c);
}

static void test_loop(void) {
    ts_timeline t = scene_timeline(16);
    t.loop = true;
    ts_timeline_track e = scene_entry("4..16", TS_SOURCE_VIDEO, in_scene("red.mp4"));
    e.from = "1f";
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(c.canvas.frames == 4 && scene_stands(&c.canvas, 1, 3, "red.mp4", 1, 1));
    CHECK(scene_strength(&c.canvas, 0, 1, 1) && scene_strength(&c.canvas, 1, 3, 0));
    ts_compiled_close(&c);
}

// A group of which half is there is filled up; what is not there is free, or an error where it should be held.
static void test_short(void) {
    ts_timeline t = scene_timeline(17);
    ts_timeline_track e = scene_entry("all", TS_SOURCE_VIDEO, in_scene("red.mp4"));
    ts_compiled c;
    e.from = "17f";  // 16 frames are left: one is missing
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(scene_stands(&c.canvas, 0, 4, "red.mp4", 17, 1) && scene_strength(&c.canvas, 4, 1, 0));
    ts_compiled_close(&c);
    e.from = "19f";
    CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT,
                "red.mp4 has nothing for frame 13 (1.62s) of the result, which is held (strength 0); shorten the span");
    CHECK(strstr(ts_error_text(), "edit.yaml:7: track[0]: ") == ts_error_text());
    e.strength = 0.5;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(scene_strength(&c.canvas, 0, 4, 0.5) && scene_strength(&c.canvas, 4, 1, 1));
    ts_compiled_close(&c);
    e.from = "1:00";
    CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT, "has nothing for this span; begin elsewhere (from 1:00)");
    // Backwards, past the beginning.
    e.from = "8f";
    e.speed = -1;
    e.strength = 0.3;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(scene_strength(&c.canvas, 0, 3, 0.3) && scene_strength(&c.canvas, 3, 2, 1));
    CHECK(scene_stands(&c.canvas, 0, 2, "red.mp4", 7, -1));
    ts_compiled_close(&c);
    e.strength = 0;
    CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT, "held (strength 0)");
}

static void test_image(void) {
    uint8_t *rgb = malloc(4 * PIXELS);
    for (int64_t i = 0; i < PIXELS; i++) {
        rgb[i] = (uint8_t)(i * 7 % 251);
    }
    for (int64_t i = 1; i < 4; i++) {
        memcpy(rgb + i * PIXELS, rgb, PIXELS);
    }
    CHECK_OK(ts_image_write_png(in_scene("card.png"), rgb, SIDE, SIDE));
    float first[LATENT], group[LATENT];
    CHECK_OK(ts_codec_encode(scene_model->codec, rgb, 1, SIDE, SIDE, first));
    CHECK_OK(ts_codec_encode_groups(scene_model->codec, rgb, 1, SIDE, SIDE, group));
    ts_timeline t = scene_timeline(17);
    ts_timeline_track e[2] = {scene_entry("0..1", TS_SOURCE_IMAGE, in_scene("card.png")),
                              scene_entry("1s..2s", TS_SOURCE_IMAGE, in_scene("card.png"))};
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, e, 2));
    CHECK(memcmp(c.canvas.source, first, sizeof first) == 0);
    for (int64_t i = 3; i < 5; i++) {
        CHECK(memcmp(c.canvas.source + i * LATENT, group, sizeof group) == 0);
    }
    CHECK(scene_strength(&c.canvas, 0, 1, 0) && scene_strength(&c.canvas, 1, 1, 1));
    ts_compiled_close(&c);
    e[0].file = in_scene("red.mp4");
    CHECK_FAILS(scene_compile(&c, &t, e, 2), TS_EINPUT, "red.mp4: is a video; say source: video");
    free(rgb);
}

// ---- saved latents

static void save_latents(const char *name, int64_t frames, bool loop, float *latents) {
    for (int64_t i = 0; i < frames * LATENT; i++) {
        latents[i] = (float)(i % 1009) / 500 - 1;
    }
    const ts_safetensors_item item = {"latents", TS_F32, TS_SHAPE(frames, 8, 8, 16), latents};
    const char *const metadata[] = {"loop", loop ? "true" : "false", NULL};
    CHECK_OK(ts_safetensors_write(in_scene(name), &item, 1, metadata));
}

static bool is_saved(const ts_canvas *c, int64_t t, int64_t n, const float *latents, int64_t first) {
    return memcmp(c->source + t * LATENT, latents + first * LATENT, (size_t)(n * LATENT) * sizeof(float)) == 0;
}

static void test_saved(void) {
    static float latents[6 * LATENT], head[LATENT];
    save_latents("saved.safetensors", 6, false, latents);
    save_latents("circle.safetensors", 6, true, latents);
    ts_timeline t = scene_timeline(17);
    ts_timeline_track e = scene_entry("all", TS_SOURCE_LATENT, in_scene("saved.safetensors"));
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(is_saved(&c.canvas, 0, 5, latents, 0) && scene_strength(&c.canvas, 0, 5, 0));
    ts_compiled_close(&c);
    // From the middle on: the first frame is the last pixel frame of a group.
    e.from = "4f";
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK_OK(ts_codec_first_of(scene_model->codec, latents + LATENT, 1, 8, 8, head));
    CHECK(is_saved(&c.canvas, 0, 1, head, 0) && is_saved(&c.canvas, 1, 4, latents, 2));
    ts_compiled_close(&c);
    // Behind the beginning: a first frame has no place there.
    e.span = "9..17";
    e.from = NULL;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(is_saved(&c.canvas, 3, 2, latents, 1) && scene_strength(&c.canvas, 0, 3, 1));
    ts_compiled_close(&c);
    e.from = "9f";
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(is_saved(&c.canvas, 3, 2, latents, 3));
    ts_compiled_close(&c);
    e.from = "17f";
    CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT, "has nothing for frame 13");
    // Of a circle all are groups.
    e.file = in_scene("circle.safetensors");
    e.from = "4f";
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(is_saved(&c.canvas, 3, 2, latents, 1));
    ts_compiled_close(&c);
    t.loop = true;
    t.frames = 24;
    e.span = "all";
    e.from = NULL;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(is_saved(&c.canvas, 0, 6, latents, 0));
    ts_compiled_close(&c);
}

static void test_saved_misfits(void) {
    float latents[2 * LATENT] = {0};
    ts_timeline t = scene_timeline(5);
    ts_timeline_track e = scene_entry("all", TS_SOURCE_LATENT, in_scene("bad.safetensors"));
    ts_compiled c;
    CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT, "bad.safetensors");
    CHECK_OK(ts_safetensors_write(in_scene("bad.safetensors"),
                                  &(ts_safetensors_item){"other", TS_F32, TS_SHAPE(2, 8, 8, 16), latents}, 1, NULL));
    CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT, "no tensor 'latents'");
    CHECK_OK(ts_safetensors_write(in_scene("bad.safetensors"),
                                  &(ts_safetensors_item){"latents", TS_F32, TS_SHAPE(2, 4, 16, 16), latents}, 1, NULL));
    CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT, "latents of 16x4 with 16 channels, wanted 8x8 with 16");
    const ts_safetensors_item item = {"latents", TS_F32, TS_SHAPE(2, 8, 8, 16), latents};
    const char *const metadata[] = {"codec", "0123456789abcdef", NULL};
    CHECK_OK(ts_safetensors_write(in_scene("bad.safetensors"), &item, 1, metadata));
    CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT, "latents of codec 0123456789abcdef, and the model's is ");
    latents[LATENT + 3] = NAN;
    CHECK_OK(ts_safetensors_write(in_scene("bad.safetensors"),
                                  &(ts_safetensors_item){"latents", TS_F32, TS_SHAPE(2, 8, 8, 16), latents}, 1, NULL));
    CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT, "latent frame 1 holds numbers that are not finite");
}

// ---- prompts and events

static void test_prompts(void) {
    ts_timeline t = scene_timeline(33);
    ts_timeline_prompt p[3] = {scene_prompt("0..5", "a", 1, NAN), scene_prompt("1..13", "b", 3, 5),
                               scene_prompt("29..33", "c", 0.5, 1)};
    t.prompts.item = p;
    t.prompts.count = 3;
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, NULL, 0));
    static const float wanted[9][4] = {{1, 0, 0, 3}, {0.25f, 0.75f, 0, 4.5f},
                                       {0, 1, 0, 5}, {0, 1, 0, 5},
                                       {0, 1, 0, 5}, {0, 1, 0, 5},
                                       {0, 0, 1, 1}, {0, 0, 1, 1},
                                       {0, 0, 1, 1}};
    CHECK(c.canvas.prompts == 3 && c.canvas.prompt[1] == p[1].text);
    for (int64_t f = 0; f < 9; f++) {
        for (int64_t i = 0; i < 3; i++) {
            CHECK_NEAR(c.canvas.weight[f * 3 + i], wanted[f][i], 1e-6);
        }
        CHECK_NEAR(c.canvas.guidance[f], wanted[f][3], 1e-6);
    }
    ts_compiled_close(&c);
    // Round the circle the last frames are near the first prompt.
    t.loop = true;
    t.frames = 32;
    t.prompts.count = 2;
    p[1].span = "5..13";
    CHECK_OK(scene_compile(&c, &t, NULL, 0));
    CHECK(c.canvas.weight[7 * 2] == 1 && c.canvas.weight[4 * 2 + 1] == 1);
    ts_compiled_close(&c);
    p[0].weight = p[1].weight = 1e-320;
    CHECK_FAILS(scene_compile(&c, &t, NULL, 0), TS_EUSAGE, "no prompt has a weight above 0");
    p[1].span = "40..50";
    p[1].line = 12;
    CHECK_FAILS(scene_compile(&c, &t, NULL, 0), TS_EUSAGE, "edit.yaml:12: prompts[1]: ");
}

// The prompt whose span a latent frame is in, or -1.
static int64_t prompt_of(const ts_timeline *t, int64_t latent_frames, int64_t at) {
    for (int64_t i = 0; i < t->prompts.count; i++) {
        ts_frame_span span;
        bool moved;
        CHECK_OK(ts_span_parse(&span, t->prompts.item[i].span, t->fps, t->frames, ""));
        const ts_latent_span place = ts_span_snap(span, 4, latent_frames, t->loop, &moved);
        if (at >= place.first && at < place.end) {
            return i;
        }
    }
    return -1;
}

// That of the nearest frame with one, the earlier of two, looking farther and farther away.
static int64_t nearest_prompt(const ts_timeline *t, int64_t latent_frames, int64_t frame) {
    int64_t nearest = -1;
    for (int64_t away = 0; away < latent_frames && nearest < 0; away++) {
        for (int side = -1; side <= 1 && nearest < 0; side += 2) {
            const int64_t at = frame + side * away;
            nearest = prompt_of(t, latent_frames, t->loop ? (at + latent_frames) % latent_frames : at);
        }
    }
    return nearest;
}

static void test_nearest(void) {
    static const char *const spans[] = {"0..4", "20..28", "40..44", "100..104", "120..128"};
    for (int subset = 1; subset < 1 << 5; subset++) {
        ts_timeline t = scene_timeline(128);
        ts_timeline_prompt p[5];
        t.loop = subset % 3 > 0;
        t.frames += !t.loop;
        t.prompts.item = p;
        for (int i = 0; i < 5; i++) {
            if (subset & 1 << i) {
                p[t.prompts.count++] = scene_prompt(spans[i], spans[i], 1, NAN);
            }
        }
        ts_compiled c;
        CHECK_OK(scene_compile(&c, &t, NULL, 0));
        for (int64_t f = 0; f < c.canvas.frames; f++) {
            const int64_t nearest = nearest_prompt(&t, c.canvas.frames, f);
            CHECK(nearest >= 0 && c.canvas.weight[f * t.prompts.count + nearest] == 1);
        }
        ts_compiled_close(&c);
    }
}

// As long as can be, with a prompt at the beginning alone: not a search through all frames for each.
static void test_long(void) {
    ts_timeline t = scene_timeline(1 + 4 * 65535);
    t.size = (ts_size2){16, 16};
    ts_timeline_prompt p = scene_prompt("0..1", "a", 1, NAN);
    t.prompts.item = &p;
    t.prompts.count = 1;
    ts_compiled c;
    for (int i = 0; i < 50; i++) {
        CHECK_OK(scene_compile(&c, &t, NULL, 0));
        CHECK(c.canvas.frames == 65536 && c.canvas.weight[65535] == 1);
        ts_compiled_close(&c);
    }
}

static void test_events(void) {
    ts_timeline t = scene_timeline(33);
    ts_timeline_event e[4] = {
        {0, "40%", "late", "1s"}, {0, "3", "early", NULL}, {0, "8", "equal", "31f"}, {0, "0%", "first", "0"}};
    t.events.item = e;
    t.events.count = 4;
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, NULL, 0));
    static const struct {
        int64_t step, first;
        const char *prompt;
    } wanted[4] = {{0, 0, "first"}, {3, 0, "early"}, {8, 3, "late"}, {8, 8, "equal"}};
    CHECK(c.changes == 4);
    for (int i = 0; i < 4; i++) {
        CHECK(c.change[i].step == wanted[i].step && c.change[i].first == wanted[i].first);
        CHECK(strcmp(c.change[i].prompt, wanted[i].prompt) == 0);
    }
    ts_compiled_close(&c);
    e[0].line = 30;
    e[0].at = "20";
    CHECK_FAILS(scene_compile(&c, &t, NULL, 0), TS_EUSAGE, "edit.yaml:30: events[0]: at: step 20 does not come");
}

// ---- notes

static void test_notes(void) {
    ts_timeline t = scene_timeline(17);
    t.fps = 10;
    t.size.height = 32;
    ts_timeline_track e = scene_entry("0.9s..1.7s", TS_SOURCE_VIDEO, in_scene("red.mp4"));
    e.strength = 0.5;
    e.from = "31f";
    ts_timeline_prompt p = scene_prompt("0..5", "a", 1, NAN);
    t.prompts.item = &p;
    t.prompts.count = 1;
    ts_compiled c;
    CHECK_OK(ts_log_set_file(in_scene("log.txt")));
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK_OK(ts_log_set_file(NULL));
    ts_compiled_close(&c);
    char *text;
    size_t bytes;
    CHECK_OK(ts_file_read(in_scene("log.txt"), 1 << 16, &text, &bytes));
    CHECK(strstr(text, "edit.yaml: prompts: 3 of 5 latent frames have no prompt and take the nearest\n"));
    CHECK(strstr(text, "edit.yaml:7: track[0] (red.mp4): 8 frames a second are taken at 10; cropped from 64x64 to the "
                       "shape of 64x32; 1 frame short: the nearest one stays; too short: 1 of 2 latent frames are "
                       "free\n"));
    free(text);
}

// ---- the examples

// Whether some frames of a file's canvas are held and others not.
static bool holds_some(const char *path, ts_arena *arena) {
    ts_timeline t;
    ts_compiled c = {0};
    const ts_timeline_model model = ts_timeline_model_of(scene_model);
    CHECK_OK(ts_timeline_read(&t, path, arena));
    CHECK_OK(ts_timeline_resolve(&t, &model));
    CHECK_OK(ts_timeline_compile(&c, &t, scene_model, 25, 1));
    CHECK_OK(ts_canvas_check(&c.canvas));
    int64_t held = 0;
    for (int64_t f = 0; f < c.canvas.frames; f++) {
        held += ts_canvas_frame_is_held(&c.canvas, f);
    }
    const bool some = held > 0 && held < c.canvas.frames;
    ts_compiled_close(&c);
    return some;
}

// Every file of configs/timelines compiles, beside the films that its first lines make.
static void test_examples(void) {
    static const char *const held = "extend.yaml infill.yaml loop.yaml image-to-video.yaml";
    char *here = realpath(".", NULL), *configs = realpath("configs", NULL), **name;
    int64_t count, compiled = 0, with_held = 0;
    CHECK_OK(ts_folder_make(in_scene("out")));
    scene_film("out/red.mp4", 17, 12, 0);
    scene_film("out/blue.mp4", 17, 40, 2);
    CHECK(symlink(configs, in_scene("configs")) == 0 && chdir(scene_folder) == 0);
    CHECK_OK(ts_folder_list("configs/timelines", &name, &count));
    ts_arena *arena;
    CHECK_OK(ts_arena_open(&arena, "timelines", 1 << 16, false));
    for (int64_t i = 0; i < count; i++) {
        const char *end = strrchr(name[i], '.');
        if (end && strcmp(end, ".yaml") == 0) {
            char path[TS_PATH_BYTES];
            CHECK_OK(ts_path_join(path, sizeof path, "configs/timelines", name[i]));
            with_held += holds_some(path, arena) && strstr(held, name[i]);
            compiled++;
        }
    }
    CHECK(compiled >= 8 && with_held == 4);
    ts_arena_close(&arena);
    ts_folder_list_free(name, count);
    CHECK(chdir(here) == 0);
    free(configs);
    free(here);
}

// ---- on several ranks

static bool same_numbers(const float *a, const float *b, int64_t n) {
    return memcmp(a, b, (size_t)n * sizeof *a) == 0;
}

// Every rank compiles; what rank 0 sent must be what each has made.
static void test_share(ts_comm *world, bool track) {
    ts_timeline t = scene_timeline(17);
    t.loop = !track;
    t.frames = track ? 17 : 16;
    ts_timeline_track e = scene_entry("5..17", TS_SOURCE_VIDEO, in_scene("red.mp4"));
    ts_timeline_prompt p[2] = {scene_prompt("0..9", "first", 1, NAN), scene_prompt("5..16", "second", 2, 7)};
    ts_timeline_event v[2] = {{0, "50%", "later", NULL}, {0, "2", "sooner", "8"}};
    t.prompts.item = p;
    t.prompts.count = 2;
    t.events.item = v;
    t.events.count = track ? 2 : 0;
    ts_compiled own, c;
    CHECK_OK(scene_compile(&own, &t, &e, track));
    own.canvas.index = 5;
    const int root = ts_comm_size(world) - 1;
    memset(&c, 0xa5, sizeof c);
    c = ts_comm_rank(world) == root ? own : c;
    CHECK_OK(ts_compiled_share(&c, world, root));
    const ts_canvas *a = &own.canvas, *b = &c.canvas;
    CHECK(a->frames == b->frames && a->loop == b->loop && a->rows == b->rows && a->columns == b->columns);
    CHECK(a->window == b->window && a->overlap == b->overlap && a->context == b->context && b->index == 5);
    CHECK(a->prompts == b->prompts && c.changes == own.changes && !a->source == !b->source);
    CHECK(same_numbers(a->weight, b->weight, a->frames * a->prompts) &&
          same_numbers(a->guidance, b->guidance, a->frames));
    CHECK(!track || same_numbers(a->source, b->source, ts_canvas_numbers(a)));
    CHECK(!track || same_numbers(a->strength, b->strength, a->frames * TOKENS));
    for (int i = 0; i < 2; i++) {
        CHECK(strcmp(a->prompt[i], b->prompt[i]) == 0);
        CHECK(!track || strcmp(own.change[i].prompt, c.change[i].prompt) == 0);
        CHECK(!track || own.change[i].step == c.change[i].step);
    }
    if (ts_comm_rank(world) != root) {
        ts_compiled_close(&c);
    }
    ts_compiled_close(&own);
}

// What the others cannot open is closed on every rank, the root's too.
static void test_share_fails(ts_comm *world) {
    ts_timeline t = scene_timeline(17);
    const bool is_root = ts_comm_rank(world) == 0;
    ts_compiled c;
    memset(&c, 0xa5, sizeof c);
    if (is_root) {
        CHECK_OK(scene_compile(&c, &t, NULL, 0));
        c.canvas.channels = 0;
    }
    CHECK_FAILS(ts_compiled_share(&c, world, 0), TS_EUSAGE, "a canvas of 5x8x8 latents");
    CHECK(!c.canvas.prompt && !c.change && !c.text);
}

int main(int argc, char **argv) {
    ts_comm *world;
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    scene_open();
    scene_film("red.mp4", 33, 12, 0);
    if (ts_comm_size(world) == 1) {
        test_empty();
        test_size();
        test_held();
        test_recut();
        test_speed();
        test_loop();
        test_short();
        test_image();
        test_saved();
        test_saved_misfits();
        test_prompts();
        ts_log_set_level(TS_LOG_WARN);  // what they are told again and again
        test_nearest();
        test_long();
        ts_log_set_level(TS_LOG_INFO);
        test_events();
        test_notes();
        test_examples();
    }
    test_share(world, true);
    test_share(world, false);
    if (ts_comm_size(world) > 1) {
        test_share_fails(world);
    }
    scene_close();
    ts_world_close(&world, TS_OK);
    return ts_test_end();
}
