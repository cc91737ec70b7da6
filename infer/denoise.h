// SPDX-License-Identifier: Apache-2.0
// The denoising loop: starting noise and text contexts to latents, with classifier-free guidance.
#ifndef TS_INFER_DENOISE_H
#define TS_INFER_DENOISE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/split.h"
#include "core/comm/comm.h"
#include "core/model/dit.h"
#include "infer/solver.h"

// Called after each step with the latents as they stand, device memory; a status other than 0 ends the loop with it.
typedef int (*ts_denoise_fn)(void *user, int64_t step, const float *x);

typedef struct ts_denoise_params {
    const ts_schedule *schedule;
    ts_solver_kind solver;
    double guidance;  // v = v_without + guidance (v_with - v_without); 1: only `with` is computed (Ho & Salimans 2022)
    int64_t n;        // videos
    int64_t frames, height, width;  // latent
    const float *with;              // [n, text rows, text width] contexts of the prompts, device memory
    const float *without;           // the same of the negative prompts; unused when guidance is 1
    // Whether the device may record a step and run the record from then on, where it can (core/base/device.h): the same
    // numbers with fewer calls. Only where a step sends nothing.
    bool record;
    ts_denoise_fn on_step;  // or NULL
    void *user;
    ts_comm *cfg;  // its ranks share out the branches: of two, the first computes `with`, the second `without`, and
                   // neither reads the other's contexts. NULL or one rank: both are computed here
} ts_denoise_params;

// Which branches, 0 `with` and 1 `without`, rank `rank` of a cfg axis of `size` ranks computes.
ts_part ts_denoise_branches(double guidance, int size, int rank);

// x [n, T, H, W, C] f32: noise in, latents out, alike on all ranks that share the videos; memory of the tape's device,
// whose work may not be done when the call returns. `tape` is in run mode and is reset. The branches of a rank go
// through the transformer as one batch. Collective over the cfg axis, which sends n T H W C numbers a rank and step,
// and over the mesh of the transformer's parameters.
int ts_denoise(const ts_dit *dit, ts_tape *tape, const ts_denoise_params *params, float *x);

#endif
