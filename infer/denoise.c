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
    int64_t branches;         // 2 with guidance, else 1
    int64_t numbers;          // n T H W C
    int64_t context_numbers;  // n rows width
    float *input;             // [branches n, T, H, W, C]
    float *context;           // [branches n, rows, width]
    float *timestep;          // [branches n]
    float *velocity;          // [n, T, H, W, C]
} denoiser;

static void denoiser_close(denoiser *d) {
    free(d->input);
    free(d->context);
    free(d->timestep);
    free(d->velocity);
}

static int denoiser_open(denoiser *d, const ts_dit *dit, ts_tape *tape, const ts_denoise_params *p) {
    const ts_dit_config *c = ts_dit_get_config(dit);
    *d = (denoiser){.dit = dit, .tape = tape, .params = p, .branches = p->guidance != 1.0 ? 2 : 1};
    d->numbers = p->n * p->frames * p->height * p->width * c->out_channels;
    d->context_numbers = p->n * c->text_rows * c->text_dim;
    d->input = ts_aligned_alloc((size_t)(d->branches * d->numbers) * sizeof(float));
    d->context = ts_aligned_alloc((size_t)(d->branches * d->context_numbers) * sizeof(float));
    d->timestep = ts_aligned_alloc((size_t)(d->branches * p->n) * sizeof(float));
    d->velocity = ts_aligned_alloc((size_t)d->numbers * sizeof(float));
    if (!d->input || !d->context || !d->timestep || !d->velocity) {
        return TS_ERESOURCE;
    }
    memcpy(d->context, p->with, (size_t)d->context_numbers * sizeof(float));
    if (d->branches == 2) {
        memcpy(d->context + d->context_numbers, p->without, (size_t)d->context_numbers * sizeof(float));
    }
    return TS_OK;
}

// The guided velocity at x into d->velocity.
static int guided_velocity(denoiser *d, float timestep, const float *x) {
    const ts_denoise_params *p = d->params;
    const ts_dit_config *c = ts_dit_get_config(d->dit);
    const int64_t rows = d->branches * p->n;
    for (int64_t b = 0; b < d->branches; b++) {
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
    const float *with = v->value.data, *without = with + d->numbers;
    const float g = (float)p->guidance;
    for (int64_t j = 0; j < d->numbers; j++) {
        d->velocity[j] = d->branches == 1 ? with[j] : without[j] + g * (with[j] - without[j]);
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
