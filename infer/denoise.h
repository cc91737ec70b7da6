// SPDX-License-Identifier: Apache-2.0
// The denoising loop: starting noise and text contexts to latents, with classifier-free guidance.
#ifndef TS_INFER_DENOISE_H
#define TS_INFER_DENOISE_H

#include <stdint.h>

#include "core/model/dit.h"
#include "infer/schedule.h"

// Called after each step with the latents as they stand; a status other than 0 ends the loop with it.
typedef int (*ts_denoise_fn)(void *user, int64_t step, const float *x);

typedef struct ts_denoise_params {
    const ts_schedule *schedule;
    ts_solver_kind solver;
    double guidance;  // v = v_without + guidance (v_with - v_without); 1: only `with` is computed (Ho & Salimans 2022)
    int64_t n;        // videos
    int64_t frames, height, width;  // latent
    const float *with;              // [n, text rows, text width] contexts of the prompts
    const float *without;           // the same of the negative prompts; unused when guidance is 1
    ts_denoise_fn on_step;          // or NULL
    void *user;
} ts_denoise_params;

// x [n, T, H, W, C] f32: noise in, latents out. `tape` is in run mode and is reset. Both guidance branches go through
// the transformer as one batch of 2n. Not collective.
int ts_denoise(const ts_dit *dit, ts_tape *tape, const ts_denoise_params *params, float *x);

#endif
