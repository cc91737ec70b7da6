// SPDX-License-Identifier: Apache-2.0
#include "infer/edit/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"

static double mean_difference(const uint8_t *a, const uint8_t *b, int64_t bytes) {
    int64_t sum = 0;
    for (int64_t i = 0; i < bytes; i++) {
        sum += abs(a[i] - b[i]);
    }
    return (double)sum / (double)bytes;
}

void ts_score_steps(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width, double *step) {
    const int64_t bytes = height * width * 3;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < frames - 1; i++) {
        step[i] = mean_difference(rgb + i * bytes, rgb + (i + 1) * bytes, bytes);
    }
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double ts_score_median(const double *x, int64_t count) {
    double *sorted = count > 0 ? ts_malloc((size_t)count * sizeof *sorted) : NULL;
    if (!sorted) {
        return NAN;
    }
    memcpy(sorted, x, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, by_size);
    const double median = 0.5 * (sorted[(count - 1) / 2] + sorted[count / 2]);
    free(sorted);
    return median;
}

double ts_score_group_step(const double *step, int64_t steps, int64_t first, int64_t group) {
    double *between = ts_malloc((size_t)(steps / group + 1) * sizeof *between);
    int64_t count = 0;
    for (int64_t i = first; between && i < steps; i += group) {
        between[count++] = step[i];
    }
    const double median = ts_score_median(between, count);
    free(between);
    return median;
}

double ts_score_seam(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width) {
    const int64_t bytes = height * width * 3;
    double *step = frames > 1 ? ts_malloc((size_t)(frames - 1) * sizeof *step) : NULL;
    if (!step) {
        return NAN;
    }
    ts_score_steps(rgb, frames, height, width, step);
    const double median = ts_score_median(step, frames - 1);
    free(step);
    return mean_difference(rgb + (frames - 1) * bytes, rgb, bytes) / median;
}

double ts_score_psnr(const uint8_t *a, const uint8_t *b, int64_t first, int64_t end, int64_t height, int64_t width) {
    const int64_t frame = height * width * 3, bytes = (end - first) * frame;
    int64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (int64_t i = first * frame; i < end * frame; i++) {
        const int64_t difference = a[i] - b[i];
        sum += difference * difference;
    }
    return bytes > 0 ? 10.0 * log10(255.0 * 255.0 * (double)bytes / (double)sum) : NAN;
}

ts_score_border ts_score_borders(const double *step, int64_t steps, const int64_t *border, int64_t count) {
    ts_score_border out = {.mean = 0.0, .largest = 0.0};
    const double median = ts_score_median(step, steps);
    for (int64_t i = 0; i < count; i++) {
        if (border[i] >= 0 && border[i] < steps) {
            const double ratio = step[border[i]] / median;
            out.count++;
            out.mean += ratio;
            out.largest = fmax(out.largest, ratio);
        }
    }
    out.mean = out.count ? out.mean / (double)out.count : NAN;
    out.largest = out.count ? out.largest : NAN;
    return out;
}
