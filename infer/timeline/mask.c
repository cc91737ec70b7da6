// SPDX-License-Identifier: Apache-2.0
#include "infer/timeline/mask.h"

#include <stdbool.h>
#include <string.h>

static int64_t clamp(int64_t value, int64_t most) {
    return value < 0 ? 0 : value > most ? most : value;
}

// ---- what is added

void ts_mask_add_box(float *mask, int64_t height, int64_t width, const int64_t box[4]) {
    const int64_t left = clamp(box[0], width), right = clamp(box[0] + box[2], width);
    const int64_t top = clamp(box[1], height), bottom = clamp(box[1] + box[3], height);
    for (int64_t y = top; y < bottom; y++) {
        for (int64_t x = left; x < right; x++) {
            mask[y * width + x] = 1;
        }
    }
}

void ts_mask_add_grey(float *mask, int64_t height, int64_t width, const uint8_t *grey) {
    for (int64_t i = 0; i < height * width; i++) {
        const float value = (float)grey[i] / 255;
        mask[i] = mask[i] > value ? mask[i] : value;
    }
}

void ts_mask_invert(float *mask, int64_t frames, int64_t height, int64_t width) {
    for (int64_t i = 0; i < frames * height * width; i++) {
        mask[i] = 1 - mask[i];
    }
}

// ---- soft edges

// The larger of a value and what its neighbour `step` numbers away leaves of its own after falling by `fall`.
static void raise(float *value, const float *neighbour, float fall) {
    const float reached = *neighbour - fall;
    *value = *value > reached ? *value : reached;
}

// One half of a chamfer distance transform (Borgefors 1986, "Distance transformations in digital images"), of values
// instead of distances: `to` -1 goes from the top left corner, raising each pixel by its neighbours above and to the
// left, 1 comes back from the bottom right one.
static void sweep(float *frame, int64_t height, int64_t width, int64_t to, float straight, float diagonal) {
    for (int64_t i = 0; i < height; i++) {
        const int64_t y = to < 0 ? i : height - 1 - i;
        for (int64_t j = 0; j < width; j++) {
            const int64_t x = to < 0 ? j : width - 1 - j;
            float *pixel = frame + y * width + x;
            const bool row = y + to >= 0 && y + to < height;
            const bool ahead = x + to >= 0 && x + to < width, behind = x - to >= 0 && x - to < width;
            if (ahead) {
                raise(pixel, pixel + to, straight);
            }
            if (row) {
                raise(pixel, pixel + to * width, straight);
            }
            if (row && ahead) {
                raise(pixel, pixel + to * width + to, diagonal);
            }
            if (row && behind) {
                raise(pixel, pixel + to * width - to, diagonal);
            }
        }
    }
}

void ts_mask_feather(float *mask, int64_t frames, int64_t height, int64_t width, double feather) {
    if (!(feather > 0)) {
        return;
    }
    const float straight = (float)(1 / feather), diagonal = (float)(1.4142135623730951 / feather);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < frames; t++) {
        sweep(mask + t * height * width, height, width, -1, straight, diagonal);
        sweep(mask + t * height * width, height, width, 1, straight, diagonal);
    }
}

// ---- tokens

void ts_mask_tokens(const float *mask, int64_t frames, int64_t height, int64_t width, int64_t token_height,
                    int64_t token_width, float *share) {
    const int64_t columns = width / token_width;
    memset(share, 0, (size_t)(height / token_height * columns) * sizeof *share);
    for (int64_t t = 0; t < frames; t++) {
        for (int64_t y = 0; y < height; y++) {
            const float *row = mask + (t * height + y) * width;
            for (int64_t x = 0; x < width; x++) {
                raise(share + y / token_height * columns + x / token_width, row + x, 0);
            }
        }
    }
}
