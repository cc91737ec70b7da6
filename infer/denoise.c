// SPDX-License-Identifier: Apache-2.0
#include "infer/denoise.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/rng.h"
#include "core/base/status.h"
#include "infer/contexts.h"
#include "infer/velocity.h"
#include "infer/windows.h"

struct ts_denoiser {
    const ts_model *model;
    const ts_kernels *kernels;
    ts_denoise_params p;
    ts_canvas *canvas;  // [n]
    int64_t n;
    bool guided;        // somewhere
    int64_t *first;     // [n + 1] place of each canvas's first latent frame among those of all
    int32_t *class_of;  // [all frames, H, W] of equal strength
    int64_t classes;
    float floor[TS_STRENGTH_STEPS + 1];     // [classes]
    float level[TS_STRENGTH_STEPS + 1];     // [classes] before the step under way
    float timestep[TS_STRENGTH_STEPS + 1];  // [classes] as the transformer is told them
    ts_schedule schedule;
    ts_solver *solver;
    ts_tape *tape;
    ts_contexts *contexts;
    ts_velocity *velocity;
    float *x, *fused;           // [all frames, H, W, C] device: latents, and the velocities of all windows as one
    float *clean, *head, *eps;  // [H, W, C] host: of the head that is being made
};

// A window of a canvas.
typedef struct view {
    int64_t canvas;
    const ts_window *window;
} view;

static int64_t frame_numbers(const ts_denoiser *d) {
    return ts_canvas_frame_numbers(&d->canvas[0]);
}

static int64_t all_numbers(const ts_denoiser *d) {
    return d->first[d->n] * frame_numbers(d);
}

// Numbers before frame t of canvas i.
static int64_t place(const ts_denoiser *d, int64_t i, int64_t t) {
    return (d->first[i] + t) * frame_numbers(d);
}

// The ranks that work on the same canvases.
static ts_comm *group(const ts_denoiser *d) {
    return ts_mesh_axis(d->model->params->mesh, d->p.share_windows ? TS_AXIS_WORLD : TS_AXIS_VIDEO);
}

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

// Classes of equal strength, in the order of their first place; each has a noise floor.
static void classify(ts_denoiser *d) {
    int32_t class_of_strength[TS_STRENGTH_STEPS + 1];
    memset(class_of_strength, -1, sizeof class_of_strength);
    int32_t *class_of = d->class_of;
    for (int64_t i = 0; i < d->n; i++) {
        const ts_canvas *c = &d->canvas[i];
        const int64_t patch_h = c->height / c->rows, patch_w = c->width / c->columns;
        for (int64_t at = 0; at < c->frames * c->height * c->width; at++) {
            const int64_t t = at / (c->height * c->width), h = at / c->width % c->height, w = at % c->width;
            const int strength = ts_canvas_strength(c, t, h / patch_h, w / patch_w);
            if (class_of_strength[strength] < 0) {
                class_of_strength[strength] = (int32_t)d->classes;
                d->floor[d->classes++] = ts_schedule_floor(d->p.grid, (double)strength / TS_STRENGTH_STEPS, d->p.shift);
            }
            *class_of++ = class_of_strength[strength];
        }
    }
}

static int allocate(ts_denoiser *d) {
    const ts_device *device = d->kernels->device;
    d->first = ts_malloc((size_t)(d->n + 1) * sizeof *d->first);
    if (!d->first) {
        return TS_ERESOURCE;
    }
    d->first[0] = 0;
    for (int64_t i = 0; i < d->n; i++) {
        d->first[i + 1] = d->first[i] + d->canvas[i].frames;
    }
    const int64_t positions = d->canvas->height * d->canvas->width;
    const size_t frame = (size_t)frame_numbers(d) * sizeof(float), all = (size_t)all_numbers(d) * sizeof(float);
    d->class_of = ts_malloc((size_t)(d->first[d->n] * positions) * sizeof *d->class_of);
    d->clean = ts_malloc(frame);
    d->head = ts_malloc(frame);
    d->eps = ts_malloc(frame);
    d->x = device->allocate(all);
    d->fused = device->allocate(all);
    return d->class_of && d->clean && d->head && d->eps && d->x && d->fused ? TS_OK : TS_ERESOURCE;
}

// Free tokens start as noise, held ones as their source, those between as (1 - f) source + f eps: in the host's memory,
// where few canvases have a source.
static int start_from_source(const ts_denoiser *d, int64_t i) {
    const ts_canvas *c = &d->canvas[i];
    const ts_device *device = d->kernels->device;
    const int64_t width = c->channels, positions = ts_canvas_numbers(c) / width;
    const int32_t *class_of = d->class_of + place(d, i, 0) / width;
    float *x = ts_malloc((size_t)(positions * width) * sizeof *x);
    if (!x) {
        return TS_ERESOURCE;
    }
    int status = device->download(x, d->x + place(d, i, 0), (size_t)(positions * width) * sizeof *x);
    for (int64_t at = 0; at < positions; at++) {
        const float floor = d->floor[class_of[at]];
        for (int64_t k = at * width; k < (at + 1) * width && floor < 1.0f; k++) {
            x[k] = floor > 0.0f ? (1.0f - floor) * c->source[k] + floor * x[k] : c->source[k];
        }
    }
    status = status ? status : device->upload(d->x + place(d, i, 0), x, (size_t)(positions * width) * sizeof *x);
    free(x);
    return status;
}

static int start(const ts_denoiser *d) {
    for (int64_t i = 0; i < d->n; i++) {
        const ts_canvas *c = &d->canvas[i];
        TS_TRY(d->kernels->noise(d->x + place(d, i, 0), ts_canvas_numbers(c), d->p.seed, TS_RNG_SAMPLE, c->index, 0));
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
    classify(d);
    const ts_solver_rows rows = {.rows = all_numbers(d) / d->canvas->channels,
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

static const char *negative(const ts_denoiser *d) {
    return d->p.negative ? d->p.negative : "";
}

static bool computes(const ts_denoiser *d, int branch) {
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
    const char *without = negative(d);
    TS_TRY(computes(d, TS_BRANCH_WITHOUT) ? ts_contexts_add(d->contexts, &without, 1) : TS_OK);
    return computes(d, TS_BRANCH_WITH) ? encode_prompts(d) : TS_OK;
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
    d->kernels->device->release(d->fused);
    d->kernels->device->release(d->x);
    free(d->eps);
    free(d->head);
    free(d->clean);
    free(d->class_of);
    free(d->first);
    free(d);
    *denoiser = NULL;
}

// ---- what a window shows

// Latent frame t of canvas i without noise, as far as is known: foretold in the last step, or its source.
static int clean_frame(const ts_denoiser *d, int64_t i, int64_t t, int64_t frames, float *out) {
    const float *x0 = ts_solver_x0(d->solver), *source = d->canvas[i].source;
    const size_t bytes = (size_t)(frames * frame_numbers(d)) * sizeof *out;
    if (x0) {
        return d->kernels->device->download(out, x0 + place(d, i, t), bytes);
    }
    if (source) {
        memcpy(out, source + t * frame_numbers(d), bytes);
    } else {
        memset(out, 0, bytes);
    }
    return TS_OK;
}

// The last pixel frame of canvas frame t as a first one, at the levels of that frame.
static int make_head(const ts_denoiser *d, int64_t i, int64_t t, float *out) {
    const ts_canvas *c = &d->canvas[i];
    const int64_t numbers = frame_numbers(d);
    const int32_t *class_of = d->class_of + place(d, i, t) / c->channels;
    TS_TRY(clean_frame(d, i, t, 1, d->clean));
    TS_TRY(ts_codec_first_of(d->model->codec, d->clean, 1, c->height, c->width, d->head));
    ts_rng_normal_fill(d->eps, numbers, d->p.seed, TS_RNG_HEAD, c->index, t * numbers);
    for (int64_t k = 0; k < numbers; k++) {
        const float level = d->level[class_of[k / c->channels]];
        d->head[k] = (1.0f - level) * d->head[k] + level * d->eps[k];
    }
    return d->kernels->device->upload(out, d->head, (size_t)numbers * sizeof *out);
}

// How many frames of a window from i on follow one another on the canvas, too, with the same weight.
static int64_t run_length(const ts_denoiser *d, view v, int64_t i) {
    const ts_canvas *c = &d->canvas[v.canvas];
    int64_t end = i + 1;
    while (end < v.window->frames && v.window->weight[end] == v.window->weight[i] &&
           ts_window_frame(c, v.window, end) == ts_window_frame(c, v.window, i) + end - i) {
        end++;
    }
    return end - i;
}

static int take_latents(const ts_denoiser *d, view v, float *out) {
    const int64_t numbers = frame_numbers(d);
    if (v.window->head) {
        TS_TRY(make_head(d, v.canvas, v.window->start, out));
    }
    for (int64_t i = v.window->head, run; i < v.window->frames; i += run) {
        run = run_length(d, v, i);
        const float *from = d->x + place(d, v.canvas, ts_window_frame(&d->canvas[v.canvas], v.window, i));
        TS_TRY(d->kernels->device->copy(out + i * numbers, from, (size_t)(run * numbers) * sizeof *out));
    }
    return TS_OK;
}

// A level for each token, or the one that all have.
static void take_levels(const ts_denoiser *d, view v, int64_t levels, float *out) {
    const ts_canvas *c = &d->canvas[v.canvas];
    const int64_t patch_h = c->height / c->rows, patch_w = c->width / c->columns;
    for (int64_t token = 0; token < levels; token++) {
        const int64_t t = ts_window_frame(c, v.window, token / (c->rows * c->columns));
        const int64_t h = token / c->columns % c->rows * patch_h, w = token % c->columns * patch_w;
        out[token] = d->timestep[d->class_of[((d->first[v.canvas] + t) * c->height + h) * c->width + w]];
    }
}

// Contexts of the frames of a window, or the one that all have.
static int take_contexts(const ts_denoiser *d, view v, int64_t contexts, float *const *out) {
    const ts_canvas *c = &d->canvas[v.canvas];
    const char *without = negative(d);
    const int64_t numbers = ts_contexts_numbers(d->contexts);
    for (int64_t i = 0; i < contexts; i++) {
        const float *weight = c->weight + ts_window_frame(c, v.window, i) * c->prompts, one = 1.0f;
        if (out[TS_BRANCH_WITH]) {
            TS_TRY(ts_contexts_mix(d->contexts, c->prompt, weight, c->prompts, out[TS_BRANCH_WITH] + i * numbers));
        }
        if (out[TS_BRANCH_WITHOUT]) {
            TS_TRY(ts_contexts_mix(d->contexts, &without, &one, 1, out[TS_BRANCH_WITHOUT] + i * numbers));
        }
    }
    return TS_OK;
}

static bool has_one_context(const ts_denoiser *d, view v) {
    const ts_canvas *c = &d->canvas[v.canvas];
    const float *weight = c->weight + ts_window_frame(c, v.window, 0) * c->prompts;
    for (int64_t i = 1; i < v.window->frames; i++) {
        if (memcmp(c->weight + ts_window_frame(c, v.window, i) * c->prompts, weight,
                   (size_t)c->prompts * sizeof *weight) != 0) {
            return false;
        }
    }
    return true;
}

// ---- the velocity of a step

// Levels of the step; returns whether all tokens have the same.
static bool set_levels(ts_denoiser *d, int64_t step) {
    bool same = true;
    for (int64_t k = 0; k < d->classes; k++) {
        d->level[k] = ts_solver_level(d->solver, step, k);
        const bool waits = d->level[k] < d->schedule.sigma[step];
        d->timestep[k] = waits ? 1000.0f * d->level[k] : d->schedule.timestep[step];
        same = same && d->level[k] == d->level[0];
    }
    return same;
}

static int fill_batch(const ts_denoiser *d, const view *v, const ts_velocity_batch *b) {
    const int64_t context = b->contexts * ts_contexts_numbers(d->contexts);
    for (int64_t i = 0; i < b->n; i++) {
        float *contexts[TS_BRANCHES];
        for (int k = 0; k < TS_BRANCHES; k++) {
            contexts[k] = b->context[k] ? b->context[k] + i * context : NULL;
        }
        TS_TRY(take_latents(d, v[i], b->latent + i * b->frames * frame_numbers(d)));
        TS_TRY(take_contexts(d, v[i], b->contexts, contexts));
        take_levels(d, v[i], b->levels, b->timestep + i * b->levels);
        for (int64_t t = 0; t < b->frames; t++) {
            const ts_canvas *c = &d->canvas[v[i].canvas];
            b->guidance[i * b->frames + t] = c->guidance[ts_window_frame(c, v[i].window, t)];
        }
    }
    return TS_OK;
}

// Adds a window's velocity to that of its canvas.
static int fuse(const ts_denoiser *d, view v, const float *velocity) {
    const int64_t numbers = frame_numbers(d);
    for (int64_t i = v.window->head, run; i < v.window->frames; i += run) {
        run = run_length(d, v, i);
        float *to = d->fused + place(d, v.canvas, ts_window_frame(&d->canvas[v.canvas], v.window, i));
        TS_TRY(d->kernels->axpy(v.window->weight[i], velocity + i * numbers, to, run * numbers));
    }
    return TS_OK;
}

// Windows of equal length through the transformer.
static int run_batch(ts_denoiser *d, const view *v, int64_t n, bool one_level) {
    const ts_canvas *c = &d->canvas[v->canvas];
    const int64_t frames = v->window->frames;
    ts_velocity_batch b = {.n = n, .frames = frames, .height = c->height, .width = c->width, .contexts = 1};
    const float *velocity;
    b.levels = one_level ? 1 : frames * c->rows * c->columns;
    for (int64_t i = 0; i < n; i++) {
        b.contexts = has_one_context(d, v[i]) ? b.contexts : frames;
    }
    TS_TRY(ts_velocity_begin(d->velocity, &b));
    TS_TRY(fill_batch(d, v, &b));
    TS_TRY(ts_velocity_take(d->velocity, &b, &velocity));
    for (int64_t i = 0; i < n; i++) {
        TS_TRY(fuse(d, v[i], velocity + i * frames * frame_numbers(d)));
    }
    return TS_OK;
}

static int64_t batch_length(const ts_denoiser *d, const view *v, int64_t left) {
    int64_t n = 1;
    while (n < left && n < d->p.batch && v[n].window->frames == v->window->frames) {
        n++;
    }
    return n;
}

// Those of the views that are this rank's.
static int run_views(ts_denoiser *d, const view *v, int64_t count, bool one_level) {
    ts_comm *data = d->p.share_windows ? ts_mesh_axis(d->model->params->mesh, TS_AXIS_DATA) : NULL;
    const ts_part own = ts_split(count, ts_comm_size(data), ts_comm_rank(data));
    TS_TRY(d->kernels->device->zero(d->fused, (size_t)all_numbers(d) * sizeof *d->fused));
    for (int64_t i = 0, n; i < own.count; i += n) {
        n = batch_length(d, v + own.first + i, own.count - i);
        TS_TRY(run_batch(d, v + own.first + i, n, one_level));
    }
    return ts_comm_size(data) > 1 ? ts_all_reduce(data, d->fused, all_numbers(d), TS_F32, TS_SUM) : TS_OK;
}

static int velocity_at(ts_denoiser *d, int64_t step) {
    ts_windows *windows = ts_calloc((size_t)d->n, sizeof *windows);
    view *v = NULL;
    int status = windows ? TS_OK : TS_ERESOURCE;
    int64_t count = 0;
    for (int64_t i = 0; i < d->n && !status; i++) {
        status = ts_windows_make(&windows[i], &d->canvas[i], step);
        count += windows[i].count;
    }
    if (!status) {
        v = ts_malloc((size_t)(count + 1) * sizeof *v);
        status = v ? TS_OK : TS_ERESOURCE;
    }
    for (int64_t i = 0, filled = 0; i < d->n && !status; i++) {
        for (int64_t k = 0; k < windows[i].count; k++) {
            v[filled++] = (view){i, &windows[i].item[k]};
        }
    }
    status = status ? status : run_views(d, v, count, set_levels(d, step));
    for (int64_t i = 0; windows && i < d->n; i++) {
        ts_windows_close(&windows[i]);
    }
    free(v);
    free(windows);
    return status;
}

// ---- steps

int64_t ts_denoiser_first_step(const ts_denoiser *d) {
    return ts_solver_first_step(d->solver);
}

int64_t ts_denoiser_steps(const ts_denoiser *d) {
    return d->schedule.steps;
}

int ts_denoiser_step(ts_denoiser *d, int64_t step) {
    int status = velocity_at(d, step);
    status = status ? status : ts_solver_step(d->solver, step, d->fused, d->x);
    if (status && ts_comm_size(group(d)) > 1) {
        ts_comm_abort(ts_mesh_axis(d->model->params->mesh, TS_AXIS_WORLD), status);  // others wait inside the step
    }
    return status;
}

int ts_denoiser_set_prompt(ts_denoiser *d, int64_t i, int64_t first, const char *prompt) {
    ts_velocity_forget(d->velocity);
    TS_TRY(ts_agree(group(d), computes(d, TS_BRANCH_WITH) ? ts_contexts_add(d->contexts, &prompt, 1) : TS_OK));
    return ts_agree(group(d), ts_canvas_set_prompt(&d->canvas[i], first, prompt));
}

// ---- what stands there

int ts_denoiser_latents(const ts_denoiser *d, int64_t i, float *out) {
    const size_t bytes = (size_t)ts_canvas_numbers(&d->canvas[i]) * sizeof *out;
    return d->kernels->device->download(out, d->x + place(d, i, 0), bytes);
}

int ts_denoiser_foretold(const ts_denoiser *d, int64_t i, float *out) {
    return clean_frame(d, i, 0, d->canvas[i].frames, out);
}

int ts_denoiser_save(const ts_denoiser *d, int64_t i, float *const *array, int *count) {
    const size_t bytes = (size_t)ts_canvas_numbers(&d->canvas[i]) * sizeof **array;
    float *memory[TS_SOLVER_ARRAYS];
    TS_TRY(ts_denoiser_latents(d, i, array[0]));
    TS_TRY(ts_solver_memory(d->solver, memory, count));
    for (int k = 0; k < *count; k++) {
        TS_TRY(d->kernels->device->download(array[1 + k], memory[k] + place(d, i, 0), bytes));
    }
    ++*count;
    return TS_OK;
}

int ts_denoiser_restore(ts_denoiser *d, int64_t i, int64_t step, const float *const *array, int count) {
    const size_t bytes = (size_t)ts_canvas_numbers(&d->canvas[i]) * sizeof **array;
    float *memory[TS_SOLVER_ARRAYS];
    int arrays = 0;
    TS_TRY(ts_solver_memory(d->solver, memory, &arrays));
    if (count != 1 + arrays) {
        return TS_FAIL(TS_EUSAGE, "%d arrays of a solver that has %d; they are another solver's", count, 1 + arrays);
    }
    TS_TRY(ts_solver_resume(d->solver, step));
    TS_TRY(d->kernels->device->upload(d->x + place(d, i, 0), array[0], bytes));
    for (int k = 0; k < arrays; k++) {
        TS_TRY(d->kernels->device->upload(memory[k] + place(d, i, 0), array[1 + k], bytes));
    }
    return TS_OK;
}
