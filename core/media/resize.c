// SPDX-License-Identifier: Apache-2.0
#include "core/media/resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"

// How the pixels of one axis are made: pixel i of the result is the mean of source pixels around `centre`, weighted by
// a triangle of half width `reach`.
typedef struct axis {
    int64_t length;  // of the source
    double first;    // centre of the result's pixel 0, in source pixels
    double step, reach;
} axis;

typedef struct taps {
    int64_t first, count;
    double sum;
} taps;

static axis axis_of(int64_t length, int64_t to_length, double scale) {
    const double step = 1 / scale;  // source pixels for one of the result
    return (axis){.length = length,
                  .first = (double)length / 2 - (double)to_length * step / 2 + step / 2 - 0.5,
                  .step = step,
                  .reach = step > 1 ? step : 1};
}

static double centre(const axis *a, int64_t i) {
    return a->first + (double)i * a->step;
}

static double weight(const axis *a, double middle, int64_t tap) {
    const double away = fabs((double)tap - middle) / a->reach;
    return away < 1 ? 1 - away : 0;
}

// The source pixels of pixel i that lie in the picture, and the sum of their weights. Their number is never 0: a centre
// lies half a pixel beyond the outermost pixel at most.
static taps taps_of(const axis *a, int64_t i) {
    const double middle = centre(a, i);
    int64_t first = (int64_t)ceil(middle - a->reach), last = (int64_t)floor(middle + a->reach);
    first = first < 0 ? 0 : first;
    last = last >= a->length ? a->length - 1 : last;
    taps t = {.first = first, .count = last - first + 1};
    for (int64_t k = first; k <= last; k++) {
        t.sum += weight(a, middle, k);
    }
    return t;
}

// One row of the result in full source width: row [width * channels].
static void blend_rows(const axis *rows, int64_t y, const uint8_t *from, int64_t numbers, float *row) {
    const taps t = taps_of(rows, y);
    memset(row, 0, (size_t)numbers * sizeof *row);
    for (int64_t k = t.first; k < t.first + t.count; k++) {
        const float w = (float)(weight(rows, centre(rows, y), k) / t.sum);
        const uint8_t *source = from + k * numbers;
        for (int64_t j = 0; j < numbers; j++) {
            row[j] += w * (float)source[j];
        }
    }
}

static void blend_columns(const axis *columns, int64_t to_width, int channels, const float *row, uint8_t *to) {
    for (int64_t x = 0; x < to_width; x++) {
        const taps t = taps_of(columns, x);
        double sum[4] = {0};
        for (int64_t k = t.first; k < t.first + t.count; k++) {
            const double w = weight(columns, centre(columns, x), k) / t.sum;
            for (int c = 0; c < channels; c++) {
                sum[c] += w * (double)row[k * channels + c];
            }
        }
        for (int c = 0; c < channels; c++) {
            to[x * channels + c] = (uint8_t)lround(sum[c]);
        }
    }
}

int ts_resize_cover(const uint8_t *from, int64_t height, int64_t width, int channels, uint8_t *to, int64_t to_height,
                    int64_t to_width) {
    if (height == to_height && width == to_width) {
        memcpy(to, from, (size_t)(height * width * channels));
        return TS_OK;
    }
    const double scale = fmax((double)to_width / (double)width, (double)to_height / (double)height);
    const axis rows = axis_of(height, to_height, scale), columns = axis_of(width, to_width, scale);
    float *row = ts_malloc((size_t)(width * channels) * sizeof *row);
    if (!row) {
        return TS_ERESOURCE;
    }
    for (int64_t y = 0; y < to_height; y++) {
        blend_rows(&rows, y, from, width * channels, row);
        blend_columns(&columns, to_width, channels, row, to + y * to_width * channels);
    }
    free(row);
    return TS_OK;
}
