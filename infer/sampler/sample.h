// SPDX-License-Identifier: Apache-2.0
// The sampler: noise and prompts to latents, by the same transformer that trains.
#ifndef TS_INFER_SAMPLE_H
#define TS_INFER_SAMPLE_H

#include <stdint.h>

#include "core/model/model.h"
#include "infer/sampler/solver.h"

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
    int64_t window;        // latent frames that the transformer sees at once (infer/sampler/windows.h); 0: all
    int64_t overlap;       // of neighbouring windows, with `window`
    bool quiet;            // no progress line
} ts_sample_params;

// Refuses what a mesh cannot do: a cfg axis of more than two ranks, or one without guidance, whose second branch there
// is not. Not collective.
int ts_sample_check(const ts_degrees *degree, double guidance);
// Refuses a reproducible mesh (ts_mesh.reproducible) on processors and other devices whose products have other bits
// when the mesh gives a rank other sizes.
int ts_sample_check_reproducible(const ts_kernels *kernels, ts_dtype operands);

// Refuses latents [n, numbers] with one that is not finite, those of videos first_index and on: numbers that ran away
// must not be decoded into a black video. TS_EINPUT.
int ts_sample_check_finite(const ts_sample_params *params, const float *latents, int64_t n, int64_t numbers,
                           int64_t first_index);

// prompts [n] -> latents [n, T, H, W, C] f32, host memory, all on every rank of the model's mesh. `kernels` are those
// that the model was loaded for. The data axis shares out the videos, the cfg axis the two branches of guidance, the
// model group the tokens and layers; every rank of a cfg x model group takes the solver's steps itself, on the same
// bits. On a reproducible mesh they are those of one rank; on others latents may differ in the last digits, where
// tensor or ring ranks add up. Noise is keyed by (seed, TS_RNG_SAMPLE, first_index + i). Collective over the mesh; a
// rank that fails inside a step ends the job. TS_EUSAGE, TS_ERESOURCE, and TS_EINPUT of latents that are not finite.
int ts_sample(const ts_model *model, const ts_kernels *kernels, const ts_sample_params *params,
              const char *const *prompts, int64_t n, int64_t first_index, float *latents);

#endif
