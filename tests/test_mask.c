// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=30
// Boxes, brightness, soft edges and the shares of tokens.
#include <stdbool.h>

#include "core/base/rng.h"
#include "infer/timeline/mask.h"
#include "tests/ts_test.h"

enum { H = 12, W = 16, FRAMES = 9 };

static float mask[FRAMES * H * W];

static float at(int64_t t, int64_t y, int64_t x) {
    return mask[(t * H + y) * W + x];
}

static void test_box(void) {
    memset(mask, 0, sizeof mask);
    float *frame = mask + 3 * H * W;
    ts_mask_add_box(frame, H, W, (int64_t[]){3, 1, 5, 2});
    ts_mask_add_box(frame, H, W, (int64_t[]){-4, 10, 6, 100});  // hangs over two edges
    ts_mask_add_box(frame, H, W, (int64_t[]){40, 40, 2, 2});    // not in the picture
    for (int64_t t = 0; t < FRAMES; t++) {
        for (int64_t y = 0; y < H; y++) {
            for (int64_t x = 0; x < W; x++) {
                const bool first = x >= 3 && x < 8 && y >= 1 && y < 3, second = x < 2 && y >= 10;
                CHECK(at(t, y, x) == (t == 3 && (first || second) ? 1 : 0));
            }
        }
    }
}

static void test_grey(void) {
    uint8_t grey[H * W];
    memset(mask, 0, sizeof mask);
    for (int i = 0; i < H * W; i++) {
        grey[i] = (uint8_t)i;
    }
    ts_mask_add_box(mask, H, W, (int64_t[]){0, 0, 2, 1});
    ts_mask_add_grey(mask, H, W, grey);
    CHECK(mask[0] == 1 && mask[1] == 1 && mask[2] == 2.0f / 255 && mask[H * W - 1] == (H * W - 1) / 255.0f);
    ts_mask_invert(mask, 1, H, W);
    CHECK(mask[0] == 0 && mask[2] == 1 - 2.0f / 255);
    CHECK(mask[H * W] == 0);
}

// Against the largest over all pixels of value - distance / feather, with the chamfer's own distance.
static double feathered(const float *from, int64_t y, int64_t x, double feather) {
    double most = 0;
    for (int64_t v = 0; v < H; v++) {
        for (int64_t u = 0; u < W; u++) {
            const double dy = fabs((double)(y - v)), dx = fabs((double)(x - u));
            const double distance = fmax(dx, dy) + (sqrt(2) - 1) * fmin(dx, dy);
            most = fmax(most, from[v * W + u] - distance / feather);
        }
    }
    return most;
}

static void test_feather(void) {
    float from[2 * H * W];
    for (int i = 0; i < 2 * H * W; i++) {  // a few pixels, also half grey ones
        from[i] =
            ts_rng_uniform(4, TS_RNG_TEST, 0, (uint32_t)i) < 0.03f ? ts_rng_uniform(4, TS_RNG_TEST, 1, (uint32_t)i) : 0;
    }
    const double feathers[] = {0.5, 1, 4, 7.5, 100};
    for (size_t n = 0; n < sizeof feathers / sizeof *feathers; n++) {
        memcpy(mask, from, sizeof from);
        ts_mask_feather(mask, 2, H, W, feathers[n]);
        for (int64_t t = 0; t < 2; t++) {
            for (int64_t i = 0; i < H * W; i++) {
                CHECK_NEAR(mask[t * H * W + i], feathered(from + t * H * W, i / W, i % W, feathers[n]), 1e-6);
            }
        }
    }
    memcpy(mask, from, sizeof from);
    ts_mask_feather(mask, 2, H, W, 0);
    CHECK(memcmp(mask, from, sizeof from) == 0);
    // A straight edge falls evenly.
    memset(mask, 0, sizeof mask);
    ts_mask_add_box(mask, H, W, (int64_t[]){0, 0, 4, H});
    ts_mask_feather(mask, 1, H, W, 4);
    for (int64_t x = 0; x < W; x++) {
        CHECK_NEAR(at(0, 5, x), x < 4 ? 1 : fmax(0, 1 - (double)(x - 3) / 4), 1e-6);
    }
}

// Each token against the largest of its pixels.
static void check_tokens(int64_t frames) {
    enum { ROWS = H / 4, COLUMNS = W / 8, TOKENS = ROWS * COLUMNS };
    float share[TOKENS + 1], wanted[TOKENS] = {0};
    for (int64_t i = 0; i < frames * H * W; i++) {
        const int64_t token = i / W % H / 4 * COLUMNS + i % W / 8;
        wanted[token] = fmaxf(wanted[token], mask[i]);
    }
    for (int64_t i = 0; i <= TOKENS; i++) {
        share[i] = -1;
    }
    ts_mask_tokens(mask, frames, H, W, 4, 8, share);
    CHECK(memcmp(share, wanted, sizeof wanted) == 0 && share[TOKENS] == -1);
}

static void test_tokens(void) {
    for (int i = 0; i < FRAMES * H * W; i++) {
        mask[i] = ts_rng_uniform(4, TS_RNG_TEST, 2, (uint32_t)i);
        mask[i] = mask[i] < 0.98f ? 0 : mask[i];
    }
    check_tokens(1);
    check_tokens(4);
    check_tokens(FRAMES);
}

int main(void) {
    test_box();
    test_grey();
    test_feather();
    test_tokens();
    return ts_test_end();
}
