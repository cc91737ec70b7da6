// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// Entries in the same tokens: weights and ramps, masks and boxes, and how free what is mixed becomes.
#include "tests/compile_scene.h"

// ---- mixing

// From red to green, share [17] by pixel frame: the first latent frame is red's, the last one green's, to the last bit,
// and between them what is mixed half and half is freest.
static void check_blend(const char *ramp, const double *share) {
    ts_timeline t = scene_timeline(17);
    ts_timeline_track e[2] = {scene_entry("all", TS_SOURCE_VIDEO, in_scene("red.mp4")),
                              scene_entry("all", TS_SOURCE_VIDEO, in_scene("green.mp4"))};
    e[0].weight_end = e[1].weight = 0;
    e[0].weight = e[1].weight_end = 1;
    e[0].ramp = e[1].ramp = ramp;
    e[1].strength = 0.25;
    ts_compiled a, b, c;
    CHECK_OK(scene_compile(&c, &t, e, 2));
    CHECK(scene_stands(&c.canvas, 0, 1, "red.mp4", 0, 1) && scene_strength(&c.canvas, 0, 1, 0));
    CHECK(scene_strength(&c.canvas, 4, 1, 0.25));
    e[0].weight_end = e[1].weight = 1;
    CHECK_OK(scene_compile(&a, &t, &e[0], 1));
    CHECK_OK(scene_compile(&b, &t, &e[1], 1));
    CHECK(memcmp(c.canvas.source + 4 * LATENT, b.canvas.source + 4 * LATENT, LATENT * sizeof(float)) == 0);
    for (int64_t f = 1; f < 4; f++) {
        float *wanted = a.canvas.source + f * LATENT, among[4];
        double w = 0;
        for (int k = 0; k < 4; k++) {
            among[k] = (float)share[4 * f - 3 + k];
            w += (double)among[k] / 4;
        }
        const double least = 0.8 * 2 * (1 - fmax(w, 1 - w));
        CHECK(scene_strength(&c.canvas, f, 1, fmax(0.25 * w, least)));
        ts_codec_cross(scene_model->codec, among, b.canvas.source + f * LATENT, 8 * 8, wanted);
        for (int64_t i = 0; i < LATENT; i++) {
            CHECK_NEAR(c.canvas.source[f * LATENT + i], wanted[i], 1e-5);
        }
    }
    ts_compiled_close(&a);
    ts_compiled_close(&b);
    ts_compiled_close(&c);
}

static double sigmoid(double x) {
    return 1 / (1 + exp(-6 * (x - 0.5)));
}

static void test_blend(void) {
    // Frame 0 is the first latent frame's last one, 13 the last latent frame's first.
    double share[17], at[17];
    for (int p = 0; p < 17; p++) {
        at[p] = fmin(p / 13.0, 1);
    }
    check_blend("linear", at);
    check_blend(NULL, at);
    for (int p = 0; p < 17; p++) {
        share[p] = (sigmoid(at[p]) - sigmoid(0)) / (sigmoid(1) - sigmoid(0));
    }
    check_blend("sigmoid", share);
    CHECK_OK(ts_file_write_atomic(in_scene("ramp.txt"), "0\n0.2\r\n\n1.0", 11));
    for (int p = 0; p < 17; p++) {
        share[p] = at[p] < 0.5 ? 0.4 * at[p] : 0.2 + 1.6 * (at[p] - 0.5);
    }
    check_blend(in_scene("ramp.txt"), share);
}

// A single source has its own bits, whatever its weights.
static void test_ramp_alone(void) {
    ts_timeline t = scene_timeline(17);
    ts_timeline_track e = scene_entry("all", TS_SOURCE_VIDEO, in_scene("red.mp4"));
    e.weight_end = 0.5;
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(scene_stands(&c.canvas, 0, 5, "red.mp4", 0, 1) && scene_strength(&c.canvas, 0, 5, 0));
    ts_compiled_close(&c);
}

static void test_ramp_files(void) {
    ts_timeline t = scene_timeline(5);
    ts_timeline_track e = scene_entry("all", TS_SOURCE_VIDEO, in_scene("red.mp4"));
    e.ramp = in_scene("ramp.txt");
    e.weight_end = 0.5;
    ts_compiled c;
    const char *const bad[][2] = {{"", "no number"},       {"0\n1.5\n", "ramp.txt:2: '1.5' is no number 0..1"},
                                  {"0\nnan", ":2: 'nan'"}, {"0 1\n", ":1: '0 1'"},
                                  {"hello", "'hello'"},    {"-0.1", "'-0.1'"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_OK(ts_file_write_atomic(e.ramp, bad[i][0], strlen(bad[i][0])));
        CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT, bad[i][1]);
    }
    CHECK_OK(ts_file_write_atomic(e.ramp, "0\n1\0\n2\n", 7));
    CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT, "ramp.txt: holds zero bytes");
    e.ramp = in_scene("no-ramp.txt");
    CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT, "no-ramp.txt");
}

// ---- masks

// White where x >= 32.
static void write_mask(void) {
    uint8_t *rgb = calloc(PIXELS, 1);
    for (int64_t i = 0; i < PIXELS; i++) {
        rgb[i] = i / 3 % SIDE >= 32 ? 255 : 0;
    }
    CHECK_OK(ts_image_write_png(in_scene("mask.png"), rgb, SIDE, SIDE));
    free(rgb);
}

static double token_strength(const ts_canvas *c, int64_t t, int64_t row, int64_t column) {
    return (double)c->strength[(t * 4 + row) * 4 + column];
}

static void test_mask(void) {
    ts_timeline t = scene_timeline(17);
    ts_timeline_track e = scene_entry("all", TS_SOURCE_VIDEO, in_scene("red.mp4"));
    e.strength = 0.6;
    e.mask = in_scene("mask.png");
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(scene_stands(&c.canvas, 0, 5, "red.mp4", 0, 1));  // held and remixed tokens have one source
    for (int64_t i = 0; i < 5 * TOKENS; i++) {
        CHECK_NEAR(c.canvas.strength[i], i % 4 >= 2 ? 0.6 : 0, 1e-6);
    }
    ts_compiled_close(&c);
    e.invert = true;
    e.feather = 4;  // a quarter of the token beyond the edge
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK_NEAR(token_strength(&c.canvas, 2, 1, 1), 0.6, 1e-6);
    CHECK_NEAR(token_strength(&c.canvas, 2, 1, 2), 0.6 * 0.75, 1e-6);
    CHECK_NEAR(token_strength(&c.canvas, 2, 1, 3), 0, 1e-6);
    ts_compiled_close(&c);
    e.mask = in_scene("no-mask.png");
    CHECK_FAILS(scene_compile(&c, &t, &e, 1), TS_EINPUT, "no-mask.png");
}

static void test_boxes(void) {
    ts_timeline t = scene_timeline(17);
    ts_timeline_track e = scene_entry("all", TS_SOURCE_VIDEO, in_scene("red.mp4"));
    ts_timeline_box box[2] = {{0, "0,0,16,16", NULL}, {0, "40, 40,100,8", "1s..11f"}};
    e.strength = 1;
    e.boxes.item = box;
    e.boxes.count = 2;
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    for (int64_t i = 0; i < 5 * TOKENS; i++) {
        const int64_t f = i / TOKENS, row = i / 4 % 4, column = i % 4;
        const bool second = row == 2 && column >= 2 && f >= 2 && f <= 3;  // pixel frames 8, 9 and 10
        CHECK(c.canvas.strength[i] == ((row == 0 && column == 0) || second ? 1 : 0));
    }
    ts_compiled_close(&c);
}

// A masked video moves with its film's frames; when it ends its last one stays.
static void test_mask_video(void) {
    uint8_t *rgb = calloc(9 * PIXELS, 1);
    memset(rgb + 5 * PIXELS, 255, 4 * PIXELS);
    const ts_video_writer_params params = {
        .width = SIDE, .height = SIDE, .fps_numerator = 8, .fps_denominator = 1, .crf = 1};
    CHECK_OK(ts_video_write(in_scene("mask.mp4"), rgb, 9, &params));
    free(rgb);
    ts_timeline t = scene_timeline(25);
    ts_timeline_track e = scene_entry("5..25", TS_SOURCE_VIDEO, in_scene("red.mp4"));
    e.strength = 1;
    e.mask = in_scene("mask.mp4");
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, &e, 1));
    CHECK(scene_strength(&c.canvas, 0, 2, 1) && scene_strength(&c.canvas, 2, 1, 0));
    CHECK(scene_strength(&c.canvas, 3, 4, 1));  // from the mask's frame 5, which is the result's frame 10
    ts_compiled_close(&c);
}

// An object into other footage: black gives way, and where both masks reach into a token both stand.
static void test_mask_mixture(void) {
    ts_timeline t = scene_timeline(5);
    ts_timeline_track e[2] = {scene_entry("all", TS_SOURCE_VIDEO, in_scene("red.mp4")),
                              scene_entry("all", TS_SOURCE_VIDEO, in_scene("green.mp4"))};
    e[0].mask = e[1].mask = in_scene("mask.png");
    e[0].invert = true;
    e[0].strength = 0.1;
    e[1].strength = 0.3;
    e[1].feather = 4;
    ts_compiled red, green, c;
    CHECK_OK(scene_compile(&c, &t, e, 2));
    CHECK_OK(scene_compile(&red, &t, e, 1));
    CHECK_OK(scene_compile(&green, &t, e + 1, 1));
    for (int64_t i = 0; i < 2 * LATENT; i++) {
        const int64_t column = i / 16 % 8 / 2;
        const double r = (double)red.canvas.source[i], g = (double)green.canvas.source[i], w = 0.75 / 1.75;
        CHECK_NEAR(c.canvas.source[i], column == 0 ? r : column == 1 ? (1 - w) * r + w * g : g, 1e-5);
        CHECK(column == 1 || c.canvas.source[i] == (column ? green : red).canvas.source[i]);
    }
    const double w = 0.75 / 1.75;
    CHECK_NEAR(token_strength(&c.canvas, 1, 0, 0), 0.1, 1e-6);
    CHECK_NEAR(token_strength(&c.canvas, 1, 0, 1), 0.8 * 2 * w, 1e-6);
    CHECK_NEAR(token_strength(&c.canvas, 1, 0, 2), 0.3, 1e-6);
    ts_compiled_close(&red);
    ts_compiled_close(&green);
    ts_compiled_close(&c);
}

// Without a source an entry frees what others hold.
static void test_loosen(void) {
    ts_timeline t = scene_timeline(17);
    ts_timeline_track e[2] = {scene_entry("all", TS_SOURCE_VIDEO, in_scene("red.mp4")),
                              scene_entry("5..13", TS_SOURCE_NONE, NULL)};
    e[1].strength = 1;
    e[1].mask = in_scene("mask.png");
    ts_compiled c;
    CHECK_OK(scene_compile(&c, &t, e, 2));
    CHECK(scene_stands(&c.canvas, 0, 5, "red.mp4", 0, 1));
    for (int64_t i = 0; i < 5 * TOKENS; i++) {
        CHECK(c.canvas.strength[i] == (i % 4 >= 2 && i / TOKENS >= 2 && i / TOKENS < 4 ? 1 : 0));
    }
    ts_compiled_close(&c);
}

int main(void) {
    scene_open();
    scene_film("red.mp4", 33, 12, 0);
    scene_film("green.mp4", 33, 40, 1);
    write_mask();
    test_blend();
    test_ramp_alone();
    test_ramp_files();
    test_mask();
    test_boxes();
    test_mask_video();
    test_mask_mixture();
    test_loosen();
    scene_close();
    return ts_test_end();
}
