// SPDX-License-Identifier: Apache-2.0
// A transformer that no mesh divides evenly: 3 heads of 28, a feed-forward of 50, 75 tokens, 17 rows of text; and a
// step of it on any mesh and device (tests/device_test.h).
#ifndef TS_SHARD_MODEL_H
#define TS_SHARD_MODEL_H

#include "core/base/rng.h"
#include "core/model/dit.h"
#include "core/nn/layer.h"
#include "core/nn/loss.h"
#include "tests/device_test.h"

enum { SHARD_CHANNELS = 4, SHARD_TEXT_ROWS = 17, SHARD_TEXT_DIM = 24, SHARD_MAX_NUMBERS = 4096, SHARD_MAX_LEVELS = 16 };

static int64_t shard_layers = 2;

static inline ts_dit_config shard_config(void) {
    return (ts_dit_config){.patch = {1, 2, 2},
                           .heads = 3,
                           .head_dim = 28,
                           .in_channels = SHARD_CHANNELS,
                           .out_channels = SHARD_CHANNELS,
                           .text_dim = SHARD_TEXT_DIM,
                           .freq_dim = 32,
                           .ffn_dim = 50,
                           .layers = shard_layers,
                           .rope_max_positions = 16,
                           .text_rows = SHARD_TEXT_ROWS,
                           .eps = 1e-6,
                           .cross_attention_norm = true,
                           .absolute_positions = true};
}

// Latent sizes: 75 tokens a sample, and 3, fewer than there are ranks.
typedef struct shard_size {
    int64_t batch, frames, height, width;
} shard_size;

static const shard_size SHARD_75 = {2, 3, 10, 10}, SHARD_3 = {1, 1, 2, 6};

static inline ts_shape shard_video(shard_size s) {
    return TS_SHAPE(s.batch, s.frames, s.height, s.width, SHARD_CHANNELS);
}

typedef struct shard_model {
    const ts_mesh *mesh;
    shard_size size;  // of this rank's samples
    ts_params *params;
    ts_dit *dit;
    ts_tape *tape;
    float *latent, *target, *own_target;  // device memory, as the next
    float *context;                       // [2, SHARD_TEXT_ROWS, SHARD_TEXT_DIM]
    double *loss_sum;
    float timestep[SHARD_MAX_LEVELS];
    ts_var *latent_var, *context_var, *velocity;
    double loss;  // this rank's part
} shard_model;

enum { SHARD_NUMBERS_BYTES = SHARD_MAX_NUMBERS * sizeof(float), SHARD_TEXT = 2 * SHARD_TEXT_ROWS * SHARD_TEXT_DIM };

static inline float *shard_numbers(int64_t n, uint64_t stream) {
    float *host = test_new_copy(&ts_device_host, (size_t)n * sizeof *host);
    ts_rng_normal_fill(host, n, 1, TS_RNG_TEST, stream, 0);
    return test_device(host, (size_t)n * sizeof *host);
}

// Nothing may hide behind a special value such as a zero bias.
static inline void shard_values(ts_params *params) {
    for (int64_t i = 0; i < params->count; i++) {
        ts_param *const p = params->item[i];
        float *const fresh = malloc(2 * (size_t)p->count * sizeof *fresh + 1), *const value = fresh + p->count;
        CHECK_OK(ts_param_read(p, 0, p->count, fresh));
        CHECK_OK(ts_param_init_normal(p, 6, 0.1f));
        CHECK_OK(ts_param_read(p, 0, p->count, value));
        for (int64_t j = 0; j < p->count; j++) {
            value[j] += fresh[j];
        }
        CHECK_OK(ts_param_write(p, 0, p->count, value));
        free(fresh);
    }
    CHECK_OK(ts_params_refresh_operands(params));
}

// `allocate` false: parameters are only declared, as planning does.
static inline void shard_open(shard_model *m, const ts_mesh *mesh, shard_size size, ts_dtype dtype, ts_tape_mode mode,
                              bool allocate) {
    memset(m, 0, sizeof *m);
    m->mesh = mesh;
    m->size = size;
    const ts_dit_config config = shard_config();
    CHECK_OK(ts_params_open(&m->params));
    m->params->mesh = mesh;
    m->params->kernels = test_kernels;
    CHECK_OK(ts_dit_open(&m->dit, &config, m->params, ""));
    if (allocate) {
        CHECK_OK(ts_params_allocate(m->params, dtype, true));
        CHECK_OK(ts_dit_init(m->dit, 5));
        shard_values(m->params);
    }
    CHECK_OK(ts_tape_open(&m->tape, test_kernels, mode, dtype));
    m->latent = shard_numbers(SHARD_MAX_NUMBERS, 1);
    m->target = shard_numbers(SHARD_MAX_NUMBERS, 2);
    m->own_target = test_new_copy(test_kernels->device, SHARD_NUMBERS_BYTES);
    m->context = shard_numbers(SHARD_TEXT, 3);
    m->loss_sum = test_new_copy(test_kernels->device, sizeof *m->loss_sum);
    for (int i = 0; i < SHARD_MAX_LEVELS; i++) {
        m->timestep[i] = (float)(937 - 150 * (i % 6));
    }
}

static inline void shard_close(shard_model *m) {
    ts_tape_close(&m->tape);
    ts_dit_close(&m->dit);
    ts_params_close(&m->params);
}

// Forward of m->input; a noise level for each latent frame.
static inline ts_dit_input shard_input(shard_model *m, ts_recompute recompute) {
    ts_tape_reset(m->tape);
    const ts_shape context = TS_SHAPE(m->size.batch, SHARD_TEXT_ROWS, SHARD_TEXT_DIM);
    m->latent_var = ts_tape_input(m->tape, (ts_tensor){TS_F32, shard_video(m->size), m->latent}, true);
    m->context_var = ts_tape_input(m->tape, (ts_tensor){TS_F32, context, m->context}, true);
    return (ts_dit_input){.latent = m->latent_var,
                          .context = m->context_var,
                          .timestep = m->timestep,
                          .timesteps_per_sample = m->size.frames,
                          .recompute = recompute};
}

// Mean squared error of own tokens, and its gradients; the parameters' are set, not added to.
static inline int shard_step(shard_model *m, const ts_dit_input *input) {
    const ts_shape video = shard_video(m->size);
    if (m->params->grad) {
        TS_TRY(ts_params_zero_grad(m->params));
    }
    m->velocity = ts_dit_forward_tokens(m->tape, m->dit, input);
    TS_TRY(ts_dit_take_tokens(m->tape, m->dit, video, m->target, m->own_target));
    const ts_velocity_loss mean = {.target = m->own_target,
                                   .rows = ts_dit_tokens(m->dit, video).rows.count,
                                   .scale = 1.0 / (double)ts_shape_count(video),
                                   .loss = m->loss_sum};
    TS_TRY(ts_nn_velocity_loss(m->tape, m->velocity, &mean));
    TS_TRY(ts_tape_backward(m->tape, m->velocity, NULL));
    return ts_tape_computes(m->tape) ? test_kernels->device->download(&m->loss, m->loss_sum, sizeof m->loss) : 0;
}

#endif
