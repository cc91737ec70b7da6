// SPDX-License-Identifier: Apache-2.0
#include "infer/denoise.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"

typedef struct denoiser {
    const ts_dit *dit;
    ts_tape *tape;
    const ts_denoise_params *params;
    ts_part own;              // branches computed here
    int64_t numbers;          // n T H W C
    int64_t context_numbers;  // n rows width
    float *input;             // [own branches, n, T, H, W, C]
    float *context;           // [own branches, n, rows, width]
    float *timestep;          // [own branches, n]
    float *branches;          // [2, n, T, H, W, C] velocities of all ranks of the cfg axis, or NULL
    float *velocity;          // [n, T, H, W, C]
} denoiser;

ts_part ts_denoise_branches(double guidance, int size, int rank) {
    return ts_split(guidance != 1.0 ? 2 : 1, size, rank);
}

static void denoiser_close(denoiser *d) {
    free(d->input);
    free(d->context);
    free(d->timestep);
    free(d->branches);
    free(d->velocity);
}

static float *new_numbers(int64_t count) {
    return ts_aligned_alloc((size_t)count * sizeof(float));
}

static int denoiser_open(denoiser *d, const ts_dit *dit, ts_tape *tape, const ts_denoise_params *p) {
    const ts_dit_config *c = ts_dit_get_config(dit);
    const int ranks = ts_comm_size(p->cfg);
    *d = (denoiser){.dit = dit, .tape = tape, .params = p};
    d->own = ts_denoise_branches(p->guidance, ranks, ts_comm_rank(p->cfg));
    if (ranks > 2 || d->own.count < 1) {
        return TS_FAIL(TS_EUSAGE, "%d ranks cannot share the branches of guidance %g", ranks, p->guidance);
    }
    d->numbers = p->n * p->frames * p->height * p->width * c->out_channels;
    d->context_numbers = p->n * c->text_rows * c->text_dim;
    d->input = new_numbers(d->own.count * d->numbers);
    d->context = new_numbers(d->own.count * d->context_numbers);
    d->timestep = new_numbers(d->own.count * p->n);
    d->branches = ranks > 1 ? new_numbers(ranks * d->numbers) : NULL;
    d->velocity = new_numbers(d->numbers);
    if (!d->input || !d->context || !d->timestep || !d->velocity || (ranks > 1 && !d->branches)) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < d->own.count; i++) {
        memcpy(d->context + i * d->context_numbers, d->own.first + i == 0 ? p->with : p->without,
               (size_t)d->context_numbers * sizeof(float));
    }
    return TS_OK;
}

// The transformer's velocities of the own branches, [own branches, n, T, H, W, C].
static int own_velocities(denoiser *d, float timestep, const float *x, const float **out) {
    const ts_denoise_params *p = d->params;
    const ts_dit_config *c = ts_dit_get_config(d->dit);
    const int64_t rows = d->own.count * p->n;
    for (int64_t b = 0; b < d->own.count; b++) {
        memcpy(d->input + b * d->numbers, x, (size_t)d->numbers * sizeof *x);
    }
    for (int64_t r = 0; r < rows; r++) {
        d->timestep[r] = timestep;
    }
    ts_tape_reset(d->tape);
    const ts_tensor latent = {TS_F32, TS_SHAPE(rows, p->frames, p->height, p->width, c->in_channels), d->input};
    const ts_tensor context = {TS_F32, TS_SHAPE(rows, c->text_rows, c->text_dim), d->context};
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

// The guided velocity at x into d->velocity.
static int guided_velocity(denoiser *d, float timestep, const float *x) {
    const float *with;
    TS_TRY(own_velocities(d, timestep, x, &with));
    if (d->branches) {
        const int64_t counts[2] = {d->numbers, d->numbers};
        TS_TRY(ts_all_gather_v(d->params->cfg, with, d->branches, counts, TS_F32));
        with = d->branches;
    }
    if (d->params->guidance == 1.0) {
        memcpy(d->velocity, with, (size_t)d->numbers * sizeof *with);
        return TS_OK;
    }
    const float *without = with + d->numbers;
    const float g = (float)d->params->guidance;
    for (int64_t j = 0; j < d->numbers; j++) {
        d->velocity[j] = without[j] + g * (with[j] - without[j]);
    }
    return TS_OK;
}

int ts_denoise(const ts_dit *dit, ts_tape *tape, const ts_denoise_params *params, float *x) {
    denoiser d;
    ts_solver *solver = NULL;
    int status;
    TS_TRY_GOTO(status, denoiser_open(&d, dit, tape, params), done);
    TS_TRY_GOTO(status, ts_solver_open(&solver, params->solver, params->schedule, d.numbers), done);
    for (int64_t step = 0; step < params->schedule->steps; step++) {
        TS_TRY_GOTO(status, guided_velocity(&d, params->schedule->timestep[step], x), done);
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
