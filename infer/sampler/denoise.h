// SPDX-License-Identifier: Apache-2.0
// The sampler's one loop: canvases from noise to latents, step by step, whatever is held, remixed, looped or long.
//
// Before step i a token's noise level is l = min(sigma_i, f), f the floor of its strength (ts_schedule_floor):
// x = (1 - l) x0 + l eps. Tokens that wait at their floor stand at (1 - f) source + f eps, eps their starting noise.
// The transformer sees every canvas through its windows (infer/sampler/windows.h) and is told each token's level.
//
// On a canvas of one window eps stays what it was at the start. Where windows are joined (longer canvases, loops), what
// has begun to move gets a new eps before each step, x = (1 - l) x0 + l eps with the x0 foretold in the last one, so
// that windows come to agree; a head has one eps for good. Nothing that a solver remembers holds across such a change:
// each step is of first order there, and UniPC takes the steps that Euler does.
//
// All ranks of the mesh call alike: the cfg axis shares out the two branches of guidance, the model group tokens and
// layers, and the data axis, when it is given, the windows: each rank sends the velocities of its own to all, who add
// them up in one order: the same bits on any number of ranks, where products do not depend on how many windows go
// through the transformer together (ts_kernels_cpu_products_fixed). Canvases are alike on all ranks that share them.
#ifndef TS_INFER_DENOISE_H
#define TS_INFER_DENOISE_H

#include "core/model/model.h"
#include "infer/sampler/canvas.h"
#include "infer/sampler/solver.h"

typedef struct ts_denoise_params {
    ts_grid grid;
    int64_t steps;
    double shift;
    ts_solver_kind solver;
    uint64_t seed;
    const char *negative;  // NULL: the empty prompt
    int64_t batch;         // windows of equal length that go through the transformer together; bounds the memory
    bool share_windows;    // over the data axis; else every rank of it has canvases of its own
} ts_denoise_params;

typedef struct ts_denoiser ts_denoiser;

// Canvases [n] are borrowed and may be changed between steps by ts_denoiser_set_prompt only; all have the same H, W, C.
// `kernels` are those that the model was loaded for. Makes the starting noise, encodes the prompts. Collective over the
// mesh of the model, but the data axis where windows are not shared; the same status on all its ranks.
int ts_denoiser_open(ts_denoiser **out, const ts_model *model, const ts_kernels *kernels,
                     const ts_denoise_params *params, ts_canvas *canvas, int64_t n);
void ts_denoiser_close(ts_denoiser **denoiser);

int64_t ts_denoiser_first_step(const ts_denoiser *denoiser);  // steps before it would move nothing
int64_t ts_denoiser_steps(const ts_denoiser *denoiser);
// Takes step `step`, the next one. Collective, as open; a rank that fails where others wait for it ends the job. The
// device's work may not be done when it returns.
int ts_denoiser_step(ts_denoiser *denoiser, int64_t step);

// From latent frame `first` on, canvas `i` is to show `prompt`, the louder the later (ts_canvas_guidance). Collective,
// as open: all ranks between the same steps.
int ts_denoiser_set_prompt(ts_denoiser *denoiser, int64_t i, int64_t first, const char *prompt);

// Latents of canvas i as they stand, or the clean ones foretold in the last step, before the first step those of the
// source, or zeros: [T, H, W, C] f32, host memory.
int ts_denoiser_latents(const ts_denoiser *denoiser, int64_t i, float *out);
int ts_denoiser_foretold(const ts_denoiser *denoiser, int64_t i, float *out);

// What is needed to go on elsewhere: the latents and what the solver remembers, as arrays [T, H, W, C] of canvas i,
// f32, host memory; the same on every mesh. `array` has room for TS_DENOISER_ARRAYS of them; *count is how many there
// are.
enum { TS_DENOISER_ARRAYS = 1 + TS_SOLVER_ARRAYS };
int ts_denoiser_save(const ts_denoiser *denoiser, int64_t i, float *const *array, int *count);
// Goes on at step `step` from such arrays, those of every canvas in turn. TS_EUSAGE for another number of arrays than
// the solver has, and for a step that is none of its.
int ts_denoiser_restore(ts_denoiser *denoiser, int64_t i, int64_t step, const float *const *array, int count);

#endif
