// SPDX-License-Identifier: Apache-2.0
#include "infer/denoise.h"

#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/status.h"

typedef struct denoiser {
    const ts_dit *dit;
    ts_tape *tape;
    const ts_kernels *kernels;
    const ts_denoise_params *params;
    ts_part own;              // branches computed here
    int64_t numbers;          // n T H W C
    int64_t context_numbers;  // n rows width
    float *timestep;          // [own branches, n]
    ts_arena *memory;         // of the device, for what follows
    float *x;                 // [n, T, H, W, C] the caller's
    float *input;             // [own branches, n, T, H, W, C]; of one branch x itself
    const float *context;     // [own branches, n, rows, width]
    float *branches;          // [2, n, T, H, W, C] velocities of all ranks of the cfg axis, or NULL
    float *guided;            // [n, T, H, W, C] both branches' velocities as one, or NULL
    const float *velocity;    // [n, T, H, W, C] of the step under way
    ts_recording *recording;  // of a step up to its velocity, or NULL
} denoiser;

ts_part ts_denoise_branches(double guidance, int size, int rank) {
    return ts_split(guidance != 1.0 ? 2 : 1, size, rank);
}

static void denoiser_close(denoiser *d) {
    if (d->recording) {
        d->kernels->device->recording_close(&d->recording);
    }
    ts_arena_close(&d->memory);
    free(d->timestep);
}

static float *new_numbers(denoiser *d, int64_t count) {
    return ts_arena_alloc(d->memory, (size_t)count * sizeof(float));
}

static int copy(const denoiser *d, float *to, const float *from, int64_t count) {
    return d->kernels->device->copy(to, from, (size_t)count * sizeof *to);
}

// Both branches are one batch of the transformer, so that their inputs lie side by side; a lone one is read in place.
static int join_branches(denoiser *d) {
    const ts_denoise_params *p = d->params;
    if (d->own.count == 1) {
        d->input = d->x;
        d->context = d->own.first == 0 ? p->with : p->without;
        return TS_OK;
    }
    float *context = new_numbers(d, 2 * d->context_numbers);
    d->input = new_numbers(d, 2 * d->numbers);
    d->context = context;
    if (!context || !d->input) {
        return TS_ERESOURCE;
    }
    TS_TRY(copy(d, context, p->with, d->context_numbers));
    return copy(d, context + d->context_numbers, p->without, d->context_numbers);
}

static int denoiser_open(denoiser *d, const ts_dit *dit, ts_tape *tape, const ts_denoise_params *p, float *x) {
    const ts_dit_config *c = ts_dit_get_config(dit);
    const int ranks = ts_comm_size(p->cfg);
    *d = (denoiser){.dit = dit, .tape = tape, .kernels = ts_tape_kernels(tape), .params = p, .x = x};
    d->own = ts_denoise_branches(p->guidance, ranks, ts_comm_rank(p->cfg));
    if (ranks > 2 || d->own.count < 1) {
        return TS_FAIL(TS_EUSAGE, "%d ranks cannot share the branches of guidance %g", ranks, p->guidance);
    }
    d->numbers = p->n * p->frames * p->height * p->width * c->out_channels;
    d->context_numbers = p->n * c->text_rows * c->text_dim;
    TS_TRY(ts_arena_open_on(&d->memory, d->kernels->device, "sampler", 1, false));
    d->timestep = ts_malloc((size_t)(d->own.count * p->n) * sizeof *d->timestep);
    d->branches = ranks > 1 ? new_numbers(d, ranks * d->numbers) : NULL;
    d->guided = p->guidance != 1.0 ? new_numbers(d, d->numbers) : NULL;
    if (!d->timestep || (ranks > 1 && !d->branches) || (p->guidance != 1.0 && !d->guided)) {
        return TS_ERESOURCE;
    }
    return join_branches(d);
}

// The transformer's velocities of the own branches, [own branches, n, T, H, W, C].
static int own_velocities(denoiser *d, const float **out) {
    const ts_denoise_params *p = d->params;
    const ts_dit_config *c = ts_dit_get_config(d->dit);
    const int64_t rows = d->own.count * p->n;
    for (int64_t b = 0; d->input != d->x && b < d->own.count; b++) {
        TS_TRY(copy(d, d->input + b * d->numbers, d->x, d->numbers));
    }
    const ts_tensor latent = {TS_F32, TS_SHAPE(rows, p->frames, p->height, p->width, c->in_channels), d->input};
    const ts_tensor context = {TS_F32, TS_SHAPE(rows, c->text_rows, c->text_dim), (float *)(uintptr_t)d->context};
    const ts_dit_input input = {
        .latent = ts_tape_input(d->tape, latent, false),
        .context = ts_tape_input(d->tape, context, false),
        .timestep = d->timestep,
        .timesteps_per_sample = 1,
    };
    const ts_var *v = ts_dit_forward(d->tape, d->dit, &input);
    TS_TRY(ts_tape_status(d->tape));
    *out = v->value.data;
    return TS_OK;
}

// The guided velocity at x.
static int guided_velocity(denoiser *d) {
    const double guidance = d->params->guidance;
    const float *with;
    TS_TRY(own_velocities(d, &with));
    if (d->branches) {
        const int64_t counts[] = {d->numbers, d->numbers};
        TS_TRY(ts_all_gather_v(d->params->cfg, with, d->branches, counts, TS_F32));
        with = d->branches;
    }
    d->velocity = d->guided ? d->guided : with;
    if (!d->guided) {
        return TS_OK;
    }
    const ts_combine sum = {
        .n = d->numbers, .terms = 2, .c = {guidance, 1.0 - guidance}, .x = {with, with + d->numbers}, .out = d->guided};
    return d->kernels->combine(&sum);
}

// ---- a step as a recording

// The first step has every kernel choose its way and makes the tape's memory one piece; the second is recorded.
static bool records(const denoiser *d, int64_t step) {
    return d->params->record && d->kernels->device->record_begin && step == 1 && d->params->schedule->steps > 2 &&
           !ts_tape_is_watched(d->tape);
}

static int record_velocity(denoiser *d) {
    const ts_device *device = d->kernels->device;
    TS_TRY(device->record_begin());
    const int status = guided_velocity(d);
    const int ended = device->record_end(&d->recording);
    TS_TRY(status);
    TS_TRY(ended);
    return device->recording_run(d->recording);
}

static int velocity_at(denoiser *d, int64_t step) {
    const ts_device *device = d->kernels->device;
    const float timestep = d->params->schedule->timestep[step];
    if (d->recording) {  // all samples have this level: a run of one
        TS_TRY(device->recording_restage(d->recording, TS_DIT_UPLOAD_LEVELS, &timestep, sizeof timestep));
        return device->recording_run(d->recording);
    }
    for (int64_t r = 0; r < d->own.count * d->params->n; r++) {
        d->timestep[r] = timestep;
    }
    ts_tape_reset(d->tape);
    return records(d, step) ? record_velocity(d) : guided_velocity(d);
}

int ts_denoise(const ts_dit *dit, ts_tape *tape, const ts_denoise_params *params, float *x) {
    denoiser d;
    ts_solver *solver = NULL;
    int status;
    TS_TRY_GOTO(status, denoiser_open(&d, dit, tape, params, x), done);
    const float all = 1.0f;
    const ts_solver_rows rows = {.rows = 1, .width = d.numbers, .classes = 1, .floor = &all};
    TS_TRY_GOTO(status, ts_solver_open(&solver, params->solver, params->schedule, d.kernels, &rows), done);
    for (int64_t step = 0; step < params->schedule->steps; step++) {
        TS_TRY_GOTO(status, velocity_at(&d, step), done);
        TS_TRY_GOTO(status, ts_solver_step(solver, step, d.velocity, x), done);
        if (params->on_step) {
            TS_TRY_GOTO(status, params->on_step(params->user, step, x), done);
        }
    }
done:
    ts_solver_close(&solver);
    denoiser_close(&d);
    return status;
}
