// SPDX-License-Identifier: Apache-2.0
#include "infer/sample.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/base/status.h"

// One group of videos sampled together: the guided and the unguided branch are two halves of one batch.
typedef struct sampler {
    const ts_model *model;
    const ts_kernels *kernels;
    const ts_sample_params *params;
    ts_schedule schedule;
    ts_tape *tape;
    int64_t branches;       // 2 with guidance, else 1
    int64_t video_numbers;  // T * H * W * C
    int64_t context_numbers;
    ts_shape context_shape;  // of one prompt: [rows, width]
    float *context;          // [branches * batch, rows, width]
    float *input;            // [branches * batch, T, H, W, C]
    float *velocity;         // [batch, T, H, W, C] guided
    float *timestep;         // [branches * batch]
} sampler;

static void sampler_close(sampler *s) {
    ts_tape_close(&s->tape);
    free(s->context);
    free(s->input);
    free(s->velocity);
    free(s->timestep);
}

static int sampler_open(sampler *s, const ts_model *model, const ts_kernels *kernels, const ts_sample_params *params) {
    const ts_dit_config *dit = ts_dit_get_config(model->dit);
    *s = (sampler){.model = model, .kernels = kernels, .params = params};
    s->branches = params->guidance > 1.0 ? 2 : 1;
    s->video_numbers = params->frames * params->height * params->width * dit->out_channels;
    s->context_numbers = dit->text_rows * dit->text_dim;
    TS_TRY(ts_schedule_make(&s->schedule, params->grid, params->steps, params->shift));
    const size_t rows = (size_t)(s->branches * params->batch);
    s->context = ts_aligned_alloc(rows * (size_t)s->context_numbers * sizeof(float));
    s->input = ts_aligned_alloc(rows * (size_t)s->video_numbers * sizeof(float));
    s->velocity = ts_aligned_alloc((size_t)(params->batch * s->video_numbers) * sizeof(float));
    s->timestep = ts_aligned_alloc(rows * sizeof(float));
    if (!s->context || !s->input || !s->velocity || !s->timestep) {
        return TS_ERESOURCE;
    }
    return ts_tape_open(&s->tape, kernels, TS_TAPE_RUN, model->params->operand_dtype);
}

// Runs the text encoder on prompts [n] into `context` [n, rows, width].
static int encode_prompts(sampler *s, const char *const *prompts, int64_t n, float *context) {
    ts_tape_reset(s->tape);
    const ts_var *encoded = ts_model_encode_text(s->tape, s->model, prompts, n);
    TS_TRY(ts_tape_status(s->tape));
    TS_ASSERT(ts_shape_count(encoded->value.shape) == n * s->context_numbers);
    memcpy(context, encoded->value.data, (size_t)(n * s->context_numbers) * sizeof *context);
    return TS_OK;
}

// The guided branch first, then the unguided: n copies of the negative prompt, encoded once.
static int encode_branches(sampler *s, const char *const *prompts, int64_t n) {
    TS_TRY(encode_prompts(s, prompts, n, s->context));
    if (s->branches == 1) {
        return TS_OK;
    }
    float *unguided = s->context + n * s->context_numbers;
    const char *negative = s->params->negative ? s->params->negative : "";
    TS_TRY(encode_prompts(s, &negative, 1, unguided));
    for (int64_t i = 1; i < n; i++) {
        memcpy(unguided + i * s->context_numbers, unguided, (size_t)s->context_numbers * sizeof *unguided);
    }
    return TS_OK;
}

// velocity of n videos x at step i, guided: v = v_negative + g (v_prompt - v_negative)   (Ho & Salimans 2022)
static int guided_velocity(sampler *s, int64_t step, const float *x, int64_t n) {
    const ts_sample_params *p = s->params;
    const int64_t rows = s->branches * n, numbers = n * s->video_numbers;
    const ts_dit_config *dit = ts_dit_get_config(s->model->dit);
    for (int64_t b = 0; b < s->branches; b++) {
        memcpy(s->input + b * numbers, x, (size_t)numbers * sizeof *x);
    }
    for (int64_t r = 0; r < rows; r++) {
        s->timestep[r] = s->schedule.timestep[step];
    }
    ts_tape_reset(s->tape);
    const ts_tensor latent = {TS_F32, TS_SHAPE(rows, p->frames, p->height, p->width, dit->in_channels), s->input};
    const ts_tensor context = {TS_F32, TS_SHAPE(rows, dit->text_rows, dit->text_dim), s->context};
    const ts_dit_input input = {
        .latent = ts_tape_input(s->tape, latent, false),
        .context = ts_tape_input(s->tape, context, false),
        .timestep = s->timestep,
        .timesteps_per_sample = 1,
    };
    const ts_var *v = ts_dit_forward(s->tape, s->model->dit, &input);
    TS_TRY(ts_tape_status(s->tape));
    const float *with = v->value.data, *without = with + numbers;
    if (s->branches == 1) {
        memcpy(s->velocity, with, (size_t)numbers * sizeof *with);
        return TS_OK;
    }
    const float g = (float)p->guidance;
    for (int64_t j = 0; j < numbers; j++) {
        s->velocity[j] = without[j] + g * (with[j] - without[j]);
    }
    return TS_OK;
}

// Noise to latents for n <= batch videos, x [n, T, H, W, C].
static int sample_group(sampler *s, const char *const *prompts, int64_t n, int64_t first_index, float *x,
                        ts_progress *progress) {
    const ts_sample_params *p = s->params;
    for (int64_t i = 0; i < n; i++) {
        TS_TRY(s->kernels->noise(x + i * s->video_numbers, s->video_numbers, p->seed, TS_RNG_SAMPLE,
                                 (uint64_t)(first_index + i), 0));
    }
    TS_TRY(encode_branches(s, prompts, n));
    ts_solver *solver = NULL;
    int status = ts_solver_open(&solver, p->solver, &s->schedule, n * s->video_numbers);
    for (int64_t step = 0; !status && step < p->steps; step++) {
        status = guided_velocity(s, step, x, n);
        if (!status) {
            status = ts_solver_step(solver, step, s->velocity, x);
        }
        if (!status && progress) {
            ts_progress_update(progress, progress->done + n, NULL);
        }
    }
    ts_solver_close(&solver);
    return status;
}

// Samples videos [first, first + count) of the call on this rank.
static int sample_range(const ts_model *model, const ts_kernels *kernels, const ts_sample_params *params,
                        const char *const *prompts, int64_t first, int64_t count, int64_t first_index, float *latents) {
    sampler s;
    ts_progress progress;
    int status = sampler_open(&s, model, kernels, params);
    if (!params->quiet) {
        ts_progress_begin(&progress, "sampling", "video steps", count * params->steps);
    }
    for (int64_t i = 0; !status && i < count; i += params->batch) {
        const int64_t n = count - i < params->batch ? count - i : params->batch;
        status = sample_group(&s, prompts + first + i, n, first_index + first + i,
                              latents + (first + i) * s.video_numbers, params->quiet ? NULL : &progress);
    }
    if (!params->quiet && !status) {
        ts_progress_end(&progress, NULL);
    }
    sampler_close(&s);
    return status;
}

int ts_sample(const ts_model *model, const ts_kernels *kernels, const ts_sample_params *params,
              const char *const *prompts, int64_t n, int64_t first_index, ts_comm *comm, float *latents) {
    const int rank = ts_comm_rank(comm), size = ts_comm_size(comm);
    const int64_t numbers =
        params->frames * params->height * params->width * ts_dit_get_config(model->dit)->out_channels;
    int64_t *counts = ts_calloc((size_t)size, sizeof *counts);
    const int64_t first = n * rank / size, end = n * (rank + 1) / size;
    int status = counts ? TS_OK : TS_ERESOURCE;
    if (!status && (params->batch < 1)) {
        status = TS_FAIL(TS_EUSAGE, "a sampling batch of %lld; give 1 or more", (long long)params->batch);
    }
    if (!status) {
        status = sample_range(model, kernels, params, prompts, first, end - first, first_index, latents);
    }
    status = ts_agree(comm, status);
    if (!status && size > 1) {
        for (int r = 0; r < size; r++) {
            counts[r] = (n * (r + 1) / size - n * r / size) * numbers;
        }
        float *mine = ts_malloc((size_t)((end - first) * numbers) * sizeof *mine + 1);
        if (mine) {
            memcpy(mine, latents + first * numbers, (size_t)((end - first) * numbers) * sizeof *mine);
        }
        status = ts_agree(comm, mine ? TS_OK : TS_ERESOURCE);
        if (!status) {
            status = ts_all_gather_v(comm, mine, latents, counts, TS_F32);
        }
        free(mine);
    }
    free(counts);
    return status;
}
