// SPDX-License-Identifier: Apache-2.0
// What a window shows the transformer: latents, a head made of what comes before it, levels, contexts, guidance.
#include <string.h>

#include "core/base/rng.h"
#include "core/base/status.h"
#include "infer/sampler/denoise_private.h"

// ---- latents

int denoise_clean(const ts_denoiser *d, int64_t i, int64_t t, int64_t frames, float *out) {
    const float *x0 = ts_solver_x0(d->solver), *source = d->canvas[i].source;
    const size_t bytes = (size_t)(frames * denoise_frame_numbers(d)) * sizeof *out;
    if (x0) {
        return d->kernels->device->download(out, x0 + denoise_place(d, i, t), bytes);
    }
    if (source) {
        memcpy(out, source + t * denoise_frame_numbers(d), bytes);
    } else {
        memset(out, 0, bytes);
    }
    return TS_OK;
}

// The last pixel frame of canvas frame t as a first one, at the levels of that frame.
static int make_head(const ts_denoiser *d, int64_t i, int64_t t, float *out) {
    const ts_canvas *c = &d->canvas[i];
    const int64_t numbers = denoise_frame_numbers(d);
    const int32_t *class_of = d->class_of + denoise_place(d, i, t) / c->channels;
    TS_TRY(denoise_clean(d, i, t, 1, d->clean));
    TS_TRY(ts_codec_first_of(d->model->codec, d->clean, 1, c->height, c->width, d->head));
    ts_rng_normal_fill(d->eps, numbers, d->p.seed, TS_RNG_HEAD, c->index, t * numbers);
    for (int64_t k = 0; k < numbers; k++) {
        const float level = d->level[class_of[k / c->channels]];
        d->head[k] = (1.0f - level) * d->head[k] + level * d->eps[k];
    }
    return d->kernels->device->upload(out, d->head, (size_t)numbers * sizeof *out);
}

int64_t denoise_run(const ts_denoiser *d, denoise_view v, int64_t i) {
    const ts_canvas *c = &d->canvas[v.canvas];
    int64_t end = i + 1;
    while (end < v.window->frames && v.window->weight[end] == v.window->weight[i] &&
           ts_window_frame(c, v.window, end) == ts_window_frame(c, v.window, i) + end - i) {
        end++;
    }
    return end - i;
}

static int take_latents(const ts_denoiser *d, denoise_view v, float *out) {
    const int64_t numbers = denoise_frame_numbers(d);
    if (v.window->head) {
        TS_TRY(make_head(d, v.canvas, v.window->start, out));
    }
    for (int64_t i = v.window->head, run; i < v.window->frames; i += run) {
        run = denoise_run(d, v, i);
        const float *from = d->x + denoise_place(d, v.canvas, ts_window_frame(&d->canvas[v.canvas], v.window, i));
        TS_TRY(d->kernels->device->copy(out + i * numbers, from, (size_t)(run * numbers) * sizeof *out));
    }
    return TS_OK;
}

// ---- levels and contexts

// A level for each token, or the one that all have.
static void take_levels(const ts_denoiser *d, denoise_view v, int64_t levels, float *out) {
    const ts_canvas *c = &d->canvas[v.canvas];
    const int64_t patch_h = c->height / c->rows, patch_w = c->width / c->columns;
    for (int64_t token = 0; token < levels; token++) {
        const int64_t t = ts_window_frame(c, v.window, token / (c->rows * c->columns));
        const int64_t h = token / c->columns % c->rows * patch_h, w = token % c->columns * patch_w;
        out[token] = d->timestep[d->class_of[((d->first[v.canvas] + t) * c->height + h) * c->width + w]];
    }
}

// Weights of prompts in frame t of a window.
static const float *weights_of(const ts_denoiser *d, denoise_view v, int64_t t) {
    const ts_canvas *c = &d->canvas[v.canvas];
    return c->weight + ts_window_frame(c, v.window, t) * c->prompts;
}

// Whether frame t begins a run of frames with the same prompts, in any of windows [n].
static bool begins_context(const ts_denoiser *d, const denoise_view *v, int64_t n, int64_t t) {
    bool same = t > 0;
    for (int64_t i = 0; i < n && same; i++) {
        const size_t bytes = (size_t)d->canvas[v[i].canvas].prompts * sizeof(float);
        same = memcmp(weights_of(d, v[i], t), weights_of(d, v[i], t - 1), bytes) == 0;
    }
    return !same;
}

int64_t denoise_contexts(const ts_denoiser *d, const denoise_view *v, int64_t n) {
    int64_t contexts = 0;
    for (int64_t t = 0; t < v->window->frames; t++) {
        contexts += begins_context(d, v, n, t);
    }
    return contexts;
}

// The context of frame t of a window, in each branch computed here.
static int take_context(const ts_denoiser *d, denoise_view v, int64_t t, float *const *out) {
    const ts_canvas *c = &d->canvas[v.canvas];
    const char *without = denoise_negative(d);
    const float one = 1.0f;
    if (out[TS_BRANCH_WITH]) {
        TS_TRY(ts_contexts_mix(d->contexts, c->prompt, weights_of(d, v, t), c->prompts, out[TS_BRANCH_WITH]));
    }
    return out[TS_BRANCH_WITHOUT] ? ts_contexts_mix(d->contexts, &without, &one, 1, out[TS_BRANCH_WITHOUT]) : TS_OK;
}

static int take_contexts(const ts_denoiser *d, const denoise_view *v, const ts_velocity_batch *b) {
    const int64_t numbers = ts_contexts_numbers(d->contexts);
    int64_t context = -1;
    for (int64_t t = 0; t < b->frames; t++) {
        const bool begins = begins_context(d, v, b->n, t);
        context += begins;
        b->frame_context[t] = (int32_t)context;
        for (int64_t i = 0; i < b->n && begins; i++) {
            float *out[TS_BRANCHES];
            for (int k = 0; k < TS_BRANCHES; k++) {
                out[k] = b->context[k] ? b->context[k] + (i * b->contexts + context) * numbers : NULL;
            }
            TS_TRY(take_context(d, v[i], t, out));
        }
    }
    return TS_OK;
}

// ---- guidance

static bool shows_other_than(const ts_denoiser *d, denoise_view v, int64_t t, const char *prompt) {
    const ts_canvas *c = &d->canvas[v.canvas];
    const float *weight = weights_of(d, v, t);
    for (int64_t i = 0; i < c->prompts; i++) {
        if (weight[i] != 0.0f && strcmp(c->prompt[i], prompt) != 0) {
            return true;
        }
    }
    return false;
}

// Frames attend to one another: a single one with another prompt sets the branches apart everywhere. The velocity of a
// head is not used.
static bool is_guided(const ts_denoiser *d, denoise_view v) {
    const ts_canvas *c = &d->canvas[v.canvas];
    bool counts = false, differs = false;
    for (int64_t t = 0; t < v.window->frames; t++) {
        counts = counts || (t >= v.window->head && ts_canvas_guidance(c, ts_window_frame(c, v.window, t)) != 1.0);
        differs = differs || shows_other_than(d, v, t, denoise_negative(d));
    }
    return counts && differs;
}

bool denoise_is_guided(const ts_denoiser *d, const denoise_view *v, int64_t n) {
    bool guided = false;
    for (int64_t i = 0; i < n; i++) {
        guided = guided || is_guided(d, v[i]);
    }
    return guided;
}

// ---- all of it

int denoise_fill(const ts_denoiser *d, const denoise_view *v, const ts_velocity_batch *b) {
    TS_TRY(take_contexts(d, v, b));
    for (int64_t i = 0; i < b->n; i++) {
        const ts_canvas *c = &d->canvas[v[i].canvas];
        TS_TRY(take_latents(d, v[i], b->latent + i * b->frames * denoise_frame_numbers(d)));
        take_levels(d, v[i], b->levels, b->timestep + i * b->levels);
        for (int64_t t = 0; t < b->frames; t++) {
            b->guidance[i * b->frames + t] = (float)ts_canvas_guidance(c, ts_window_frame(c, v[i].window, t));
        }
    }
    return TS_OK;
}
