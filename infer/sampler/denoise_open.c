// SPDX-License-Identifier: Apache-2.0
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/rng.h"
#include "core/base/status.h"
#include "infer/sampler/denoise_private.h"

// ---- opening

static int check(const ts_denoiser *d) {
    const ts_dit_config *c = ts_dit_get_config(d->model->dit);
    if (d->p.batch < 1 || d->n < 1) {
        return TS_FAIL(TS_EUSAGE, "%lld canvases, %lld at a time; give 1 or more", (long long)d->n,
                       (long long)d->p.batch);
    }
    for (int64_t i = 0; i < d->n; i++) {
        const ts_canvas *v = &d->canvas[i];
        TS_TRY(ts_canvas_check(v));
        const bool same = v->height == d->canvas->height && v->width == d->canvas->width;
        const bool fits = v->channels == c->in_channels && c->in_channels == c->out_channels && c->patch[0] == 1 &&
                          v->rows * c->patch[1] == v->height && v->columns * c->patch[2] == v->width;
        if (!same || !fits) {
            return TS_FAIL(TS_EUSAGE,
                           "canvas %lld of %lldx%lldx%lld latents in %lldx%lld tokens does not fit the model, or those "
                           "beside it",
                           (long long)i, (long long)v->height, (long long)v->width, (long long)v->channels,
                           (long long)v->rows, (long long)v->columns);
        }
    }
    return TS_OK;
}

// Whether several windows make up each canvas.
static int find_joined(ts_denoiser *d) {
    for (int64_t i = 0; i < d->n; i++) {
        ts_windows windows;
        TS_TRY(ts_windows_make(&windows, &d->canvas[i], 0));
        d->joined[i] = windows.joined;
        ts_windows_close(&windows);
    }
    return TS_OK;
}

// Classes in the order of their first place; each has a noise floor.
static void classify(ts_denoiser *d) {
    int32_t known[DENOISE_CLASSES];
    memset(known, -1, sizeof known);
    int32_t *class_of = d->class_of;
    for (int64_t i = 0; i < d->n; i++) {
        const ts_canvas *c = &d->canvas[i];
        const int64_t patch_h = c->height / c->rows, patch_w = c->width / c->columns;
        for (int64_t at = 0; at < c->frames * c->height * c->width; at++) {
            const int64_t t = at / (c->height * c->width), h = at / c->width % c->height, w = at % c->width;
            const int strength = ts_canvas_strength(c, t, h / patch_h, w / patch_w);
            int32_t *class = &known[2 * strength + d->joined[i]];
            if (*class < 0) {
                *class = (int32_t)d->classes++;
                d->floor[*class] = ts_schedule_floor(d->p.grid, (double)strength / TS_STRENGTH_STEPS, d->p.shift);
                d->class_joined[*class] = d->joined[i];
            }
            *class_of++ = *class;
        }
    }
}

static int allocate(ts_denoiser *d) {
    const ts_device *device = d->kernels->device;
    d->first = ts_malloc((size_t)(d->n + 1) * sizeof *d->first);
    d->joined = ts_calloc((size_t)d->n, sizeof *d->joined);
    if (!d->first || !d->joined) {
        return TS_ERESOURCE;
    }
    d->first[0] = 0;
    for (int64_t i = 0; i < d->n; i++) {
        d->first[i + 1] = d->first[i] + d->canvas[i].frames;
    }
    const int64_t positions = d->canvas->height * d->canvas->width;
    const size_t frame = (size_t)denoise_frame_numbers(d) * sizeof(float),
                 all = (size_t)denoise_all_numbers(d) * sizeof(float);
    d->class_of = ts_malloc((size_t)(d->first[d->n] * positions) * sizeof *d->class_of);
    d->clean = ts_malloc(frame);
    d->head = ts_malloc(frame);
    d->eps = ts_malloc(frame);
    d->x = device->allocate(all);
    d->fused = device->allocate(all);
    return d->class_of && d->clean && d->head && d->eps && d->x && d->fused ? TS_OK : TS_ERESOURCE;
}

// What is needed to renew noise, where windows are joined.
static int upload_classes(ts_denoiser *d) {
    const ts_device *device = d->kernels->device;
    const size_t bytes = (size_t)(denoise_all_numbers(d) / d->canvas->channels) * sizeof *d->class_of;
    bool joined = false;
    for (int64_t i = 0; i < d->n; i++) {
        joined = joined || d->joined[i];
    }
    if (!joined) {
        return TS_OK;
    }
    d->device_class = device->allocate(bytes);
    d->device_c = device->allocate((size_t)(d->classes * TS_MAX_TERMS) * sizeof *d->device_c);
    return d->device_class && d->device_c ? device->upload(d->device_class, d->class_of, bytes) : TS_ERESOURCE;
}

// Free tokens start as noise, held ones as their source, those between as (1 - f) source + f eps: in the host's memory,
// where few canvases have a source.
static int start_from_source(const ts_denoiser *d, int64_t i) {
    const ts_canvas *c = &d->canvas[i];
    const ts_device *device = d->kernels->device;
    const int64_t width = c->channels, positions = ts_canvas_numbers(c) / width;
    const int32_t *class_of = d->class_of + denoise_place(d, i, 0) / width;
    float *x = ts_malloc((size_t)(positions * width) * sizeof *x);
    if (!x) {
        return TS_ERESOURCE;
    }
    int status = device->download(x, d->x + denoise_place(d, i, 0), (size_t)(positions * width) * sizeof *x);
    for (int64_t at = 0; at < positions; at++) {
        const float floor = d->floor[class_of[at]];
        for (int64_t k = at * width; k < (at + 1) * width && floor < 1.0f; k++) {
            x[k] = floor > 0.0f ? (1.0f - floor) * c->source[k] + floor * x[k] : c->source[k];
        }
    }
    status =
        status ? status : device->upload(d->x + denoise_place(d, i, 0), x, (size_t)(positions * width) * sizeof *x);
    free(x);
    return status;
}

static int start(const ts_denoiser *d) {
    for (int64_t i = 0; i < d->n; i++) {
        const ts_canvas *c = &d->canvas[i];
        TS_TRY(d->kernels->noise(d->x + denoise_place(d, i, 0), ts_canvas_numbers(c), d->p.seed, TS_RNG_SAMPLE,
                                 c->index, 0));
        TS_TRY(c->strength ? start_from_source(d, i) : TS_OK);
    }
    return TS_OK;
}

static bool is_guided(const ts_denoiser *d) {
    for (int64_t i = 0; i < d->n; i++) {
        for (int64_t t = 0; t < d->canvas[i].frames; t++) {
            if (d->canvas[i].guidance[t] != 1.0f) {
                return true;
            }
        }
    }
    return false;
}

// All but the prompts; not collective.
static int open_parts(ts_denoiser *d) {
    TS_TRY(check(d));
    TS_TRY(allocate(d));
    TS_TRY(find_joined(d));
    classify(d);
    TS_TRY(upload_classes(d));
    const ts_solver_rows rows = {.rows = denoise_all_numbers(d) / d->canvas->channels,
                                 .width = d->canvas->channels,
                                 .classes = d->classes,
                                 .floor = d->floor,
                                 .class_of = d->class_of};
    TS_TRY(ts_schedule_make(&d->schedule, d->p.grid, d->p.steps, d->p.shift));
    TS_TRY(ts_solver_open(&d->solver, d->p.solver, &d->schedule, d->kernels, &rows));
    TS_TRY(ts_tape_open(&d->tape, d->kernels, TS_TAPE_RUN, d->model->params->operand_dtype));
    TS_TRY(ts_contexts_open(&d->contexts, d->model, d->tape, d->p.batch));
    d->guided = is_guided(d);
    const ts_mesh *mesh = d->model->params->mesh;
    const ts_velocity_params velocity = {
        .dit = d->model->dit,
        .tape = d->tape,
        .cfg = ts_mesh_axis(mesh, TS_AXIS_CFG),
        .guided = d->guided,
        .record = ts_comm_size(ts_mesh_axis(mesh, TS_AXIS_VIDEO)) == 1,
    };
    TS_TRY(ts_velocity_open(&d->velocity, &velocity));
    return start(d);
}

bool denoise_computes(const ts_denoiser *d, int branch) {
    const ts_comm *cfg = ts_mesh_axis(d->model->params->mesh, TS_AXIS_CFG);
    const ts_part own = ts_velocity_branches(d->guided, ts_comm_size(cfg), ts_comm_rank(cfg));
    return branch >= own.first && branch < own.first + own.count;
}

// The prompts of all canvases in one list, so that they are encoded together.
static int encode_prompts(ts_denoiser *d) {
    int64_t count = 0, filled = 0;
    for (int64_t i = 0; i < d->n; i++) {
        count += d->canvas[i].prompts;
    }
    const char **prompt = ts_malloc((size_t)count * sizeof *prompt);
    if (!prompt) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < d->n; i++) {
        memcpy(prompt + filled, d->canvas[i].prompt, (size_t)d->canvas[i].prompts * sizeof *prompt);
        filled += d->canvas[i].prompts;
    }
    const int status = ts_contexts_add(d->contexts, prompt, count);
    free(prompt);
    return status;
}

static int encode(ts_denoiser *d) {
    const char *without = denoise_negative(d);
    TS_TRY(denoise_computes(d, TS_BRANCH_WITHOUT) ? ts_contexts_add(d->contexts, &without, 1) : TS_OK);
    return denoise_computes(d, TS_BRANCH_WITH) ? encode_prompts(d) : TS_OK;
}

int ts_denoiser_open(ts_denoiser **out, const ts_model *model, const ts_kernels *kernels,
                     const ts_denoise_params *params, ts_canvas *canvas, int64_t n) {
    ts_comm *ranks = ts_mesh_axis(model->params->mesh, params->share_windows ? TS_AXIS_WORLD : TS_AXIS_VIDEO);
    ts_denoiser *d = ts_calloc(1, sizeof *d);
    if (d) {
        *d = (ts_denoiser){.model = model, .kernels = kernels, .p = *params, .canvas = canvas, .n = n};
    }
    int status = ts_agree(ranks, d ? open_parts(d) : TS_ERESOURCE);
    status = status ? status : ts_agree(ranks, encode(d));
    if (status) {
        ts_denoiser_close(&d);
    }
    *out = d;
    return status;
}

void ts_denoiser_close(ts_denoiser **denoiser) {
    ts_denoiser *d = *denoiser;
    if (!d) {
        return;
    }
    ts_velocity_close(&d->velocity);
    ts_contexts_close(&d->contexts);
    ts_tape_close(&d->tape);
    ts_solver_close(&d->solver);
    d->kernels->device->release(d->gathered);
    d->kernels->device->release(d->device_c);
    d->kernels->device->release(d->device_class);
    d->kernels->device->release(d->fused);
    d->kernels->device->release(d->x);
    free(d->eps);
    free(d->head);
    free(d->clean);
    free(d->class_of);
    free(d->joined);
    free(d->first);
    free(d);
    *denoiser = NULL;
}
