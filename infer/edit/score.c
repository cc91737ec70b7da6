// SPDX-License-Identifier: Apache-2.0
#include "infer/edit/score.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "infer/sampler/windows.h"

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

// ---- borders of windows

// Marks the canvas frames after which a window of the step begins, behind its head, or ends, where the canvas goes on.
static int mark_borders(const ts_canvas *c, int64_t step, bool *after) {
    ts_windows windows = {0};
    TS_TRY(ts_windows_make(&windows, c, step));
    for (int64_t k = 0; k < windows.count; k++) {
        const ts_window *w = &windows.item[k];
        const int64_t last = ts_window_frame(c, w, w->frames - 1);
        after[w->start] = after[w->start] || w->head;
        after[last] = after[last] || c->loop || last < c->frames - 1;
    }
    ts_windows_close(&windows);
    return TS_OK;
}

int ts_score_find_borders(const ts_canvas *c, int64_t group, int64_t **border, int64_t *count) {
    const int64_t period = c->window < c->frames ? c->window : c->frames;  // windows stand again where they stood
    bool *after = ts_calloc((size_t)c->frames, sizeof *after);
    int64_t *found = ts_malloc((size_t)c->frames * sizeof *found), n = 0;
    int status = after && found ? TS_OK : TS_ERESOURCE;
    for (int64_t step = 0; step < period && !status; step++) {
        status = mark_borders(c, step, after);
    }
    for (int64_t t = 0; t < c->frames && !status; t++) {
        if (after[t]) {
            found[n++] = c->loop ? (t + 1) * group - 1 : t * group;  // frame 0 of a canvas is one pixel frame
        }
    }
    free(after);
    if (status) {
        free(found);
        return status;
    }
    *border = found;
    *count = n;
    return TS_OK;
}
