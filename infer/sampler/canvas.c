// SPDX-License-Identifier: Apache-2.0
#include "infer/sampler/canvas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/memory.h"
#include "core/base/status.h"

enum { LATE_GUIDANCE = 4 };  // at most so many times what was asked for

// ---- opening

static int allocate(ts_canvas *c) {
    c->prompt = ts_malloc(sizeof *c->prompt);
    c->weight = ts_malloc((size_t)c->frames * sizeof *c->weight);
    c->guidance = ts_malloc((size_t)c->frames * sizeof *c->guidance);
    c->late = ts_malloc((size_t)c->frames * sizeof *c->late);
    return c->prompt && c->weight && c->guidance && c->late ? TS_OK : TS_ERESOURCE;
}

int ts_canvas_open(ts_canvas *out, int64_t frames, int64_t height, int64_t width, int64_t channels, int64_t patch_h,
                   int64_t patch_w, const char *prompt, double guidance) {
    if (frames < 1 || height < 1 || width < 1 || channels < 1 || height % patch_h || width % patch_w) {
        return TS_FAIL(TS_EUSAGE, "a canvas of %lldx%lldx%lld latents; give positive multiples of 1x%lldx%lld",
                       (long long)frames, (long long)height, (long long)width, (long long)patch_h, (long long)patch_w);
    }
    ts_canvas c = {.frames = frames,
                   .height = height,
                   .width = width,
                   .channels = channels,
                   .rows = height / patch_h,
                   .columns = width / patch_w,
                   .prompts = 1,
                   .window = frames,
                   .overlap = 1,
                   .context = 1};
    if (allocate(&c)) {
        ts_canvas_close(&c);
        return TS_ERESOURCE;
    }
    c.prompt[0] = prompt;
    for (int64_t t = 0; t < frames; t++) {
        c.weight[t] = 1.0f;
        c.guidance[t] = (float)guidance;
        c.late[t] = 1.0f;
    }
    *out = c;
    return TS_OK;
}

int ts_canvas_add_source(ts_canvas *c) {
    const int64_t tokens = c->frames * c->rows * c->columns;
    if (!c->source) {
        c->source = ts_calloc((size_t)ts_canvas_numbers(c), sizeof *c->source);
    }
    if (c->source && !c->strength) {
        c->strength = ts_malloc((size_t)tokens * sizeof *c->strength);
        for (int64_t i = 0; c->strength && i < tokens; i++) {
            c->strength[i] = 1.0f;
        }
    }
    return c->source && c->strength ? TS_OK : TS_ERESOURCE;
}

void ts_canvas_close(ts_canvas *c) {
    for (int64_t i = c->prompts - c->copies; i < c->prompts; i++) {
        free((char *)(uintptr_t)c->prompt[i]);
    }
    free(c->prompt);
    free(c->weight);
    free(c->guidance);
    free(c->late);
    free(c->source);
    free(c->strength);
    *c = (ts_canvas){0};
}

// ---- checks

static int check_frame(const ts_canvas *c, int64_t t) {
    double sum = 0.0;
    for (int64_t i = 0; i < c->prompts; i++) {
        sum += (double)c->weight[t * c->prompts + i];
    }
    if (!(fabs(sum - 1.0) <= 1e-3)) {
        return TS_FAIL(TS_EUSAGE, "latent frame %lld: the weights of its prompts sum to %g; they must to 1",
                       (long long)t, sum);
    }
    if (!isfinite(c->guidance[t])) {
        return TS_FAIL(TS_EUSAGE, "latent frame %lld: a guidance that is not finite", (long long)t);
    }
    for (int64_t i = 0; c->strength && i < c->rows * c->columns; i++) {
        const float strength = c->strength[t * c->rows * c->columns + i];
        if (!(strength >= 0.0f && strength <= 1.0f)) {
            return TS_FAIL(TS_EUSAGE, "latent frame %lld: a strength of %g; give 0 to 1", (long long)t,
                           (double)strength);
        }
    }
    return TS_OK;
}

int ts_canvas_check(const ts_canvas *c) {
    if (c->strength && !c->source) {
        return TS_FAIL(TS_EUSAGE, "a canvas with strengths and no source; add the source");
    }
    const bool many = c->loop ? c->window <= c->frames : c->window < c->frames;
    if (c->window < 1 || c->context < 1 || (many && (c->overlap < 1 || c->overlap >= c->window))) {
        return TS_FAIL(TS_EUSAGE,
                       "windows of %lld latent frames that share %lld, with %lld of context; neighbours share one "
                       "frame at least, and not all",
                       (long long)c->window, (long long)c->overlap, (long long)c->context);
    }
    for (int64_t t = 0; t < c->frames; t++) {
        TS_TRY(check_frame(c, t));
    }
    return TS_OK;
}

// ---- what it says

int64_t ts_canvas_frame_numbers(const ts_canvas *c) {
    return c->height * c->width * c->channels;
}

int ts_canvas_check_memory(const ts_canvas *sides, int64_t holders, const char *name) {
    // The source, the latents, their velocity, what a solver remembers, and the latents once more when they are done.
    enum { ARRAYS = 8 };
    const double numbers = (double)sides->frames * (double)(sides->height * sides->width * sides->channels);
    const double bytes = numbers * sizeof(float) * ARRAYS * (double)holders;
    const int64_t available = ts_memory_available();
    return available < 0 || bytes <= (double)available
               ? TS_OK
               : TS_FAIL(TS_ERESOURCE,
                         "%s: %lld latent frames of %lldx%lld on %lld ranks of this machine need %.1f GB, and %.1f GB "
                         "are free; make the video shorter or smaller",
                         name, (long long)sides->frames, (long long)sides->width, (long long)sides->height,
                         (long long)holders, bytes / 1e9, (double)available / 1e9);
}

int64_t ts_canvas_numbers(const ts_canvas *c) {
    return c->frames * ts_canvas_frame_numbers(c);
}

int ts_canvas_strength(const ts_canvas *c, int64_t frame, int64_t row, int64_t column) {
    if (!c->strength) {
        return TS_STRENGTH_STEPS;
    }
    return (int)lrintf(c->strength[(frame * c->rows + row) * c->columns + column] * (float)TS_STRENGTH_STEPS);
}

bool ts_canvas_frame_is_held(const ts_canvas *c, int64_t frame) {
    for (int64_t i = 0; i < c->rows * c->columns; i++) {
        if (ts_canvas_strength(c, frame, i / c->columns, i % c->columns) > 0) {
            return false;
        }
    }
    return true;
}

// ---- steering

// The prompts and one more at the end; each frame's weights as they were, and 0 of it.
static int add_prompt(ts_canvas *c, const char *prompt) {
    const int64_t count = c->prompts + 1;
    char *copy = strdup(prompt);
    const char **list = copy ? ts_malloc((size_t)count * sizeof *list) : NULL;
    float *weight = list ? ts_calloc((size_t)(c->frames * count), sizeof *weight) : NULL;
    if (!weight) {
        free(list);
        free(copy);
        return TS_FAIL(TS_ERESOURCE, "out of memory for a prompt");
    }
    memcpy(list, c->prompt, (size_t)c->prompts * sizeof *list);
    list[c->prompts] = copy;
    for (int64_t t = 0; t < c->frames; t++) {
        memcpy(weight + t * count, c->weight + t * c->prompts, (size_t)c->prompts * sizeof *weight);
    }
    free(c->prompt);
    free(c->weight);
    c->prompt = list;
    c->weight = weight;
    c->prompts = count;
    c->copies++;
    return TS_OK;
}

int ts_canvas_set_prompt(ts_canvas *c, int64_t first, const char *prompt) {
    if (first < 0 || first >= c->frames) {
        return TS_FAIL(TS_EUSAGE, "latent frame %lld of %lld; give one that is there", (long long)first,
                       (long long)c->frames);
    }
    TS_TRY(add_prompt(c, prompt));
    for (int64_t t = first; t < c->frames; t++) {
        float *weight = c->weight + t * c->prompts;
        memset(weight, 0, (size_t)c->prompts * sizeof *weight);
        weight[c->prompts - 1] = 1.0f;
    }
    return TS_OK;
}

int ts_canvas_steer(ts_canvas *c, int64_t first, const char *prompt, double level) {
    TS_TRY(ts_canvas_set_prompt(c, first, prompt));
    for (int64_t t = first; t < c->frames; t++) {
        c->late[t] = (float)level;
    }
    return TS_OK;
}

double ts_canvas_guidance(const ts_canvas *c, int64_t frame) {
    const double guidance = (double)c->guidance[frame], late = (double)c->late[frame];
    return late < 1.0 ? 1.0 + (guidance - 1.0) * fmin(pow(late, -4.0), LATE_GUIDANCE) : guidance;
}
