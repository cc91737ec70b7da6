// SPDX-License-Identifier: Apache-2.0
#include "infer/sampler/denoise.h"

#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/rng.h"
#include "core/base/status.h"
#include "infer/sampler/denoise_private.h"

// ---- levels

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

// ---- new noise

// Where windows are joined, what has begun to move gets new noise before each step, at the level where it stands:
//   x = (1 - level) x0 + level eps,  x0 foretold in the last step
// Neighbouring windows at first read different things into the noise they do not share, and the old noise would hold on
// to them; with new noise they come to agree (as by the restarts of Lugmayr et al. 2022, "RePaint").
static int renew_noise(ts_denoiser *d, int64_t step) {
    const float *x0 = ts_solver_x0(d->solver);
    if (!x0 || !d->device_class) {
        return TS_OK;
    }
    double c[DENOISE_CLASSES][TS_MAX_TERMS] = {0};
    for (int64_t k = 0; k < d->classes; k++) {
        if (d->class_joined[k] && d->level[k] < d->floor[k]) {
            c[k][0] = 1.0 - (double)d->level[k];
            c[k][1] = (double)d->level[k];
            ts_solver_forget(d->solver, k);
        } else {
            c[k][2] = 1.0;
        }
    }
    TS_TRY(d->kernels->device->upload(d->device_c, c, (size_t)d->classes * sizeof c[0]));
    for (int64_t i = 0; i < d->n; i++) {
        const int64_t at = denoise_place(d, i, 0), n = d->joined[i] ? ts_canvas_numbers(&d->canvas[i]) : 0;
        const uint64_t index = d->canvas[i].index + ((uint64_t)step << 32);
        const ts_combine sum = {.n = n,
                                .terms = 3,
                                .x = {x0 + at, d->fused + at, d->x + at},
                                .out = d->x + at,
                                .width = d->canvas->channels,
                                .row_class = d->device_class + at / d->canvas->channels,
                                .class_c = d->device_c};
        TS_TRY(n ? d->kernels->noise(d->fused + at, n, d->p.seed, TS_RNG_RENEW, index, 0) : TS_OK);
        TS_TRY(n ? d->kernels->combine(&sum) : TS_OK);
    }
    return TS_OK;
}

// ---- the velocity of a step

// Adds a window's velocity to that of its canvas.
static int fuse(const ts_denoiser *d, denoise_view v, const float *velocity) {
    const int64_t numbers = denoise_frame_numbers(d);
    for (int64_t i = v.window->head, run; i < v.window->frames; i += run) {
        run = denoise_run(d, v, i);
        float *to = d->fused + denoise_place(d, v.canvas, ts_window_frame(&d->canvas[v.canvas], v.window, i));
        TS_TRY(d->kernels->axpy(v.window->weight[i], velocity + i * numbers, to, run * numbers));
    }
    return TS_OK;
}

// Windows of equal length through the transformer; their velocities [n, frames, H, W, C] until the next pass.
static int run_batch(ts_denoiser *d, const denoise_view *v, int64_t n, bool one_level, const float **velocity) {
    const ts_canvas *c = &d->canvas[v->canvas];
    const int64_t frames = v->window->frames;
    ts_velocity_batch b = {.n = n, .frames = frames, .height = c->height, .width = c->width};
    b.levels = one_level ? 1 : frames * c->rows * c->columns;
    b.contexts = denoise_contexts(d, v, n);
    b.unguided = !denoise_is_guided(d, v, n);
    TS_TRY(ts_velocity_begin(d->velocity, &b));
    TS_TRY(denoise_fill(d, v, &b));
    return ts_velocity_take(d->velocity, &b, velocity);
}

static int64_t batch_length(const ts_denoiser *d, const denoise_view *v, int64_t left) {
    int64_t n = 1;
    while (n < left && n < d->p.batch && v[n].window->frames == v->window->frames) {
        n++;
    }
    return n;
}

// Numbers of the velocities of some views, one after the other.
static int64_t numbers_of(const ts_denoiser *d, const denoise_view *v, int64_t count) {
    int64_t frames = 0;
    for (int64_t i = 0; i < count; i++) {
        frames += v[i].window->frames;
    }
    return frames * denoise_frame_numbers(d);
}

static int fuse_all(const ts_denoiser *d, const denoise_view *v, int64_t count, const float *velocity) {
    for (int64_t i = 0; i < count; i++) {
        TS_TRY(fuse(d, v[i], velocity));
        velocity += numbers_of(d, v + i, 1);
    }
    return TS_OK;
}

static int make_room(ts_denoiser *d, int64_t numbers) {
    if (numbers <= d->gathered_room) {
        return TS_OK;
    }
    d->kernels->device->release(d->gathered);
    d->gathered = d->kernels->device->allocate((size_t)numbers * sizeof *d->gathered);
    d->gathered_room = d->gathered ? numbers : 0;
    return d->gathered ? TS_OK : TS_ERESOURCE;
}

// Views [own.first, own.first + own.count): their velocities go to `kept`, or at once onto the canvas.
static int run_views(ts_denoiser *d, const denoise_view *v, ts_part own, bool one_level, float *kept) {
    for (int64_t i = own.first, end = own.first + own.count, n; i < end; i += n) {
        const float *velocity;
        n = batch_length(d, v + i, end - i);
        TS_TRY(run_batch(d, v + i, n, one_level, &velocity));
        if (kept) {
            const int64_t numbers = numbers_of(d, v + i, n);
            TS_TRY(d->kernels->device->copy(kept, velocity, (size_t)numbers * sizeof *kept));
            kept += numbers;
        } else {
            TS_TRY(fuse_all(d, v + i, n, velocity));
        }
    }
    return TS_OK;
}

// The ranks of the data axis take some of views [count] each and give their velocities to all of them, who put them
// onto the canvas in the order of the views: sums have the same bits on any number of ranks.
static int share_views(ts_denoiser *d, const denoise_view *v, int64_t count, bool one_level, ts_comm *data) {
    const int size = ts_comm_size(data);
    const ts_part own = ts_split(count, size, ts_comm_rank(data));
    int64_t *counts = ts_malloc((size_t)size * sizeof *counts);
    int status = counts ? make_room(d, numbers_of(d, v, count)) : TS_ERESOURCE;
    for (int rank = 0; rank < size && counts; rank++) {
        const ts_part part = ts_split(count, size, rank);
        counts[rank] = numbers_of(d, v + part.first, part.count);
    }
    if (!status) {
        float *kept = d->gathered + numbers_of(d, v, own.first);
        status = run_views(d, v, own, one_level, kept);
        status = status ? status : ts_all_gather_v(data, kept, d->gathered, counts, TS_F32);
    }
    free(counts);
    return status ? status : fuse_all(d, v, count, d->gathered);
}

// All views, a batch of each rank at a time: memory does not grow with the length of a video.
static int run_all(ts_denoiser *d, const denoise_view *v, int64_t count, bool one_level) {
    ts_comm *data = d->p.share_windows ? ts_mesh_axis(d->model->params->mesh, TS_AXIS_DATA) : NULL;
    const int size = ts_comm_size(data);
    if (size == 1) {
        return run_views(d, v, (ts_part){0, count}, one_level, NULL);
    }
    const int64_t round = d->p.batch * size;
    for (int64_t i = 0; i < count; i += round) {
        TS_TRY(share_views(d, v + i, count - i < round ? count - i : round, one_level, data));
    }
    return TS_OK;
}

static int velocity_at(ts_denoiser *d, int64_t step, bool one_level) {
    ts_windows *windows = ts_calloc((size_t)d->n, sizeof *windows);
    denoise_view *v = NULL;
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
            v[filled++] = (denoise_view){i, &windows[i].item[k]};
        }
    }
    status = status ? status : d->kernels->device->zero(d->fused, (size_t)denoise_all_numbers(d) * sizeof *d->fused);
    status = status ? status : run_all(d, v, count, one_level);
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
    const bool one_level = set_levels(d, step);
    d->next = step + 1;
    int status = renew_noise(d, step);
    status = status ? status : velocity_at(d, step, one_level);
    status = status ? status : ts_solver_step(d->solver, step, d->fused, d->x);
    if (status && ts_comm_size(denoise_ranks(d)) > 1) {
        ts_comm_abort(ts_mesh_axis(d->model->params->mesh, TS_AXIS_WORLD), status);  // others wait inside the step
    }
    return status;
}

int ts_denoiser_set_prompt(ts_denoiser *d, int64_t i, int64_t first, const char *prompt) {
    ts_velocity_forget(d->velocity);
    TS_TRY(ts_agree(denoise_ranks(d),
                    denoise_computes(d, TS_BRANCH_WITH) ? ts_contexts_add(d->contexts, &prompt, 1) : TS_OK));
    const bool late = d->next > ts_denoiser_first_step(d);
    const double level = late ? (double)d->schedule.sigma[d->next] : 1.0;
    return ts_agree(denoise_ranks(d), ts_canvas_steer(&d->canvas[i], first, prompt, level));
}

// ---- what stands there

int ts_denoiser_latents(const ts_denoiser *d, int64_t i, float *out) {
    const size_t bytes = (size_t)ts_canvas_numbers(&d->canvas[i]) * sizeof *out;
    return d->kernels->device->download(out, d->x + denoise_place(d, i, 0), bytes);
}

int ts_denoiser_foretold(const ts_denoiser *d, int64_t i, float *out) {
    return denoise_clean(d, i, 0, d->canvas[i].frames, out);
}

int ts_denoiser_save(const ts_denoiser *d, int64_t i, float *const *array, int *count) {
    const size_t bytes = (size_t)ts_canvas_numbers(&d->canvas[i]) * sizeof **array;
    float *memory[TS_SOLVER_ARRAYS];
    TS_TRY(ts_denoiser_latents(d, i, array[0]));
    TS_TRY(ts_solver_memory(d->solver, memory, count));
    for (int k = 0; k < *count; k++) {
        TS_TRY(d->kernels->device->download(array[1 + k], memory[k] + denoise_place(d, i, 0), bytes));
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
    d->next = step;
    TS_TRY(d->kernels->device->upload(d->x + denoise_place(d, i, 0), array[0], bytes));
    for (int k = 0; k < arrays; k++) {
        TS_TRY(d->kernels->device->upload(memory[k] + denoise_place(d, i, 0), array[1 + k], bytes));
    }
    return TS_OK;
}
