// SPDX-License-Identifier: Apache-2.0
// The sampler: noise and prompts to latents, by the same transformer that trains.
#ifndef TS_INFER_SAMPLE_H
#define TS_INFER_SAMPLE_H

#include <stdint.h>

#include "core/comm/comm.h"
#include "core/model/model.h"
#include "infer/schedule.h"

typedef struct ts_sample_params {
    int64_t frames, height, width;  // latent: T, H, W
    int64_t steps;
    double guidance;  // 1: no guidance, half the work
    double shift;
    ts_grid grid;
    ts_solver_kind solver;
    uint64_t seed;
    const char *negative;  // NULL: the empty prompt
    int64_t batch;         // videos sampled together; bounds the memory
    bool quiet;            // no progress line
} ts_sample_params;

// The first of n videos that `rank` of `size` makes; it makes those up to the next rank's first. Rank 0, which shows
// the progress, has no fewer than the others.
int64_t ts_sample_first(int64_t n, int rank, int size);

// prompts [n] -> latents [n, T, H, W, C] f32, all on every rank of `comm`: the videos are shared out over its ranks and
// gathered. Noise is keyed by (seed, TS_RNG_SAMPLE, first_index + i), so that a video does not depend on n or on the
// rank count. Collective over comm.
int ts_sample(const ts_model *model, const ts_kernels *kernels, const ts_sample_params *params,
              const char *const *prompts, int64_t n, int64_t first_index, ts_comm *comm, float *latents);

#endif
