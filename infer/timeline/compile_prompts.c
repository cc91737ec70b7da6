// SPDX-License-Identifier: Apache-2.0
// Prompts into weights of latent frames, and their guidance. A frame that no prompt was given for shows the nearest
// one.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "infer/timeline/compile_private.h"

int ts_compile_room(ts_canvas *canvas, int64_t count) {
    const char **prompt = ts_malloc((size_t)count * sizeof *prompt);
    float *weight = ts_calloc((size_t)(canvas->frames * count), sizeof *weight);
    if (!prompt || !weight) {
        free(prompt);
        free(weight);
        return TS_ERESOURCE;
    }
    free(canvas->prompt);
    free(canvas->weight);
    canvas->prompt = prompt;
    canvas->weight = weight;
    canvas->prompts = count;
    return TS_OK;
}

// Weights of frames 0 .. frames-1 as they were asked for; not yet of sum 1.
static int place_prompts(ts_canvas *canvas, const ts_timeline *timeline, int64_t time_factor) {
    for (int64_t i = 0; i < timeline->prompts.count; i++) {
        const ts_timeline_prompt *prompt = &timeline->prompts.item[i];
        const ts_place place = ts_compile_place(timeline, prompt->line, "prompts", i);
        ts_note note = {0};
        ts_latent_span span;
        const int status = ts_compile_span(&span, timeline, canvas, time_factor, prompt->span, &note);
        if (status) {
            return ts_fail_context(status, "%s", place.text);
        }
        ts_note_tell(&note, &place, NULL);
        canvas->prompt[i] = prompt->text;
        for (int64_t t = span.first; t < span.end; t++) {
            canvas->weight[t * canvas->prompts + i] = (float)prompt->weight;
        }
    }
    return TS_OK;
}

static double weight_of(const ts_canvas *canvas, int64_t t) {
    double sum = 0;
    for (int64_t i = 0; i < canvas->prompts; i++) {
        sum += (double)canvas->weight[t * canvas->prompts + i];
    }
    return sum;
}

// How many frames each is behind the last one with a prompt, in the direction of `to` (1 or -1), round the circle in a
// loop; more than `frames` where there is none.
static void measure_gaps(const ts_canvas *canvas, int64_t to, int64_t *away) {
    const int64_t frames = canvas->frames;
    int64_t behind = frames;
    for (int64_t i = 0; i < (canvas->loop ? 2 : 1) * frames; i++) {
        const int64_t t = to > 0 ? i % frames : frames - 1 - i % frames;
        behind = weight_of(canvas, t) > 0 ? 0 : behind + 1;
        away[t] = behind;
    }
}

// Every frame takes the prompts of the nearest one that has some, the earlier of two. `before` and `after` [frames] are
// how far these are; there is one at least.
static void take_nearest(ts_canvas *canvas, const int64_t *before, const int64_t *after) {
    const int64_t frames = canvas->frames;
    for (int64_t t = 0; t < frames; t++) {
        const int64_t from = (before[t] <= after[t] ? t - before[t] + frames : t + after[t]) % frames;
        memmove(canvas->weight + t * canvas->prompts, canvas->weight + from * canvas->prompts,
                (size_t)canvas->prompts * sizeof *canvas->weight);
    }
}

// Frames without a prompt take those of the nearest frame that has one.
static int fill_gaps(ts_canvas *canvas, const ts_timeline *timeline) {
    int64_t *before = ts_malloc(2 * (size_t)canvas->frames * sizeof *before), gaps = 0;
    if (!before) {
        return TS_ERESOURCE;
    }
    int64_t *after = before + canvas->frames;
    measure_gaps(canvas, 1, before);
    measure_gaps(canvas, -1, after);
    for (int64_t t = 0; t < canvas->frames; t++) {
        gaps += before[t] > 0;
    }
    if (gaps < canvas->frames) {
        take_nearest(canvas, before, after);
    }
    free(before);
    if (gaps == canvas->frames) {
        return TS_FAIL(TS_EUSAGE, "%s: no prompt has a weight above 0; give one", timeline->path);
    }
    if (gaps) {
        ts_note note = {0};
        ts_note_add(&note, "%lld of %lld latent frames have no prompt and take the nearest", (long long)gaps,
                    (long long)canvas->frames);
        const ts_place place = ts_compile_place(timeline, 0, "prompts", -1);
        ts_note_tell(&note, &place, NULL);
    }
    return TS_OK;
}

// Weights of sum 1, and the mean of the guidances.
static void normalise(ts_canvas *canvas, const ts_timeline *timeline, double guidance) {
    for (int64_t t = 0; t < canvas->frames; t++) {
        float *weight = canvas->weight + t * canvas->prompts;
        const double sum = weight_of(canvas, t);
        double mean = 0;
        for (int64_t i = 0; i < canvas->prompts; i++) {
            const double asked = timeline->prompts.item[i].guidance;
            mean += (double)weight[i] * (isnan(asked) ? guidance : asked) / sum;
            weight[i] = (float)((double)weight[i] / sum);
        }
        canvas->guidance[t] = (float)mean;
    }
}

int ts_compile_prompts(ts_canvas *canvas, const ts_timeline *timeline, int64_t time_factor, double guidance) {
    if (!timeline->prompts.count) {
        return TS_OK;  // the canvas shows the empty prompt
    }
    TS_TRY(ts_compile_room(canvas, timeline->prompts.count));
    TS_TRY(place_prompts(canvas, timeline, time_factor));
    TS_TRY(fill_gaps(canvas, timeline));
    normalise(canvas, timeline, guidance);
    return TS_OK;
}
