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

// The nearest frame with a prompt, the earlier of two, round the circle in a loop; -1 when there is none.
static int64_t nearest_frame(const ts_canvas *canvas, const bool *given, int64_t t) {
    const int64_t frames = canvas->frames;
    for (int64_t away = 0; away < frames; away++) {
        for (int side = -1; side <= 1; side += 2) {
            const int64_t at = t + side * away;
            const int64_t frame = canvas->loop ? (at + frames) % frames : at;
            if (frame >= 0 && frame < frames && given[frame]) {
                return frame;
            }
        }
    }
    return -1;
}

// Frames without a prompt take those of the nearest frame that has one.
static int fill_gaps(ts_canvas *canvas, const ts_timeline *timeline) {
    bool *given = ts_malloc((size_t)canvas->frames * sizeof *given);
    if (!given) {
        return TS_ERESOURCE;
    }
    int64_t gaps = 0;
    for (int64_t t = 0; t < canvas->frames; t++) {
        given[t] = weight_of(canvas, t) > 0;
        gaps += !given[t];
    }
    for (int64_t t = 0; t < canvas->frames && gaps < canvas->frames; t++) {
        const int64_t from = nearest_frame(canvas, given, t);
        memmove(canvas->weight + t * canvas->prompts, canvas->weight + from * canvas->prompts,
                (size_t)canvas->prompts * sizeof *canvas->weight);
    }
    free(given);
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
