// SPDX-License-Identifier: Apache-2.0
// Scores of pixels whose answers are known.
// TEST: timeout=30
#include <stdlib.h>

#include "infer/edit/score.h"
#include "tests/ts_test.h"

enum { FRAMES = 12, HEIGHT = 6, WIDTH = 10, BYTES = HEIGHT * WIDTH * 3 };
static uint8_t rgb[FRAMES * BYTES], other[FRAMES * BYTES];

// Frame i is of one grey, level[i].
static void paint(const uint8_t *level) {
    for (int i = 0; i < FRAMES; i++) {
        memset(rgb + i * BYTES, level[i], BYTES);
    }
}

// A column of light goes round: every step the same, also from the last frame to the first.
static void paint_circle(void) {
    memset(rgb, 10, sizeof rgb);
    for (int i = 0; i < FRAMES; i++) {
        for (int y = 0; y < HEIGHT; y++) {
            memset(rgb + i * BYTES + (y * WIDTH + i % WIDTH) * 3, 200, 3);
        }
    }
}

static void check_steps(void) {
    double step[FRAMES];
    paint((const uint8_t[]){0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 32});
    ts_score_steps(rgb, FRAMES, HEIGHT, WIDTH, step);
    for (int i = 0; i < FRAMES - 1; i++) {
        CHECK(step[i] == (i == FRAMES - 2 ? 12.0 : 2.0));
    }
    CHECK_NEAR(ts_score_seam(rgb, FRAMES, HEIGHT, WIDTH), 32.0 / 2.0, 1e-12);
    paint_circle();
    ts_score_steps(rgb, 10, HEIGHT, WIDTH, step);
    CHECK_NEAR(step[3], 2.0 * 190.0 / WIDTH, 1e-12);  // one column goes dark, one is lit
    CHECK_NEAR(ts_score_seam(rgb, 10, HEIGHT, WIDTH), 1.0, 1e-12);
    CHECK(isnan(ts_score_seam(rgb, 1, HEIGHT, WIDTH)));
}

static void check_medians(void) {
    CHECK(ts_score_median((const double[]){5, 1, 3}, 3) == 3);
    CHECK(ts_score_median((const double[]){5, 1, 3, 4}, 4) == 3.5);
    CHECK(isnan(ts_score_median(NULL, 0)));
    const double step[] = {9, 1, 1, 1, 7, 1, 1, 1, 8};
    CHECK(ts_score_group_step(step, 9, 0, 4) == 8);
    CHECK(ts_score_group_step(step, 9, 1, 4) == 1);
    CHECK(isnan(ts_score_group_step(step, 0, 0, 4)));
}

static void check_psnr(void) {
    paint_circle();
    memcpy(other, rgb, sizeof rgb);
    CHECK(isinf(ts_score_psnr(rgb, other, 0, FRAMES, HEIGHT, WIDTH)));
    other[4 * BYTES] ^= 16;
    CHECK(isinf(ts_score_psnr(rgb, other, 0, 4, HEIGHT, WIDTH)));
    CHECK(isinf(ts_score_psnr(rgb, other, 5, FRAMES, HEIGHT, WIDTH)));
    // One number off by 16 among those of two frames.
    CHECK_NEAR(ts_score_psnr(rgb, other, 3, 5, HEIGHT, WIDTH), 10 * log10(255.0 * 255.0 * 2 * BYTES / 256.0), 1e-9);
    CHECK(isnan(ts_score_psnr(rgb, other, 5, 5, HEIGHT, WIDTH)));
}

static void check_borders(void) {
    const double step[] = {1, 1, 4, 1, 1, 2, 1, 1};
    const int64_t border[] = {-1, 2, 5, 8};  // the first and the last are no step
    const ts_score_border b = ts_score_borders(step, 8, border, 4);
    CHECK(b.count == 2 && b.mean == 3 && b.largest == 4);
    CHECK(isnan(ts_score_borders(step, 8, border, 1).mean));
}

// The frames after which windows of 5 latent frames, two of them shared, had borders.
static void check_found(int64_t latent_frames, bool loop, const int64_t *wanted, int64_t wanted_count) {
    ts_canvas c;
    int64_t *border = NULL, count = 0;
    CHECK_OK(ts_canvas_open(&c, latent_frames, 1, 1, 1, 1, 1, "", 1.0));
    c.window = 5;
    c.overlap = 2;
    c.loop = loop;
    CHECK_OK(ts_score_find_borders(&c, 4, &border, &count));
    CHECK(count == wanted_count);
    for (int64_t i = 0; i < count && i < wanted_count; i++) {
        CHECK(border[i] == wanted[i]);
    }
    free(border);
    ts_canvas_close(&c);
}

static void check_find_borders(void) {
    check_found(5, false, NULL, 0);                       // one window
    check_found(8, false, (const int64_t[]){12, 16}, 2);  // two: one begins behind frame 12, the other ends with 16
    // Of seven windows those between the ends move: every place between groups but the one after the first frame.
    check_found(20, false, (const int64_t[]){4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72}, 18);
    check_found(3, true, (const int64_t[]){3, 7, 11}, 3);
    check_found(7, true, (const int64_t[]){3, 7, 11, 15, 19, 23, 27}, 7);
}

int main(void) {
    check_steps();
    check_medians();
    check_psnr();
    check_borders();
    check_find_borders();
    return ts_test_end();
}
