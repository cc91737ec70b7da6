// SPDX-License-Identifier: Apache-2.0
// Noise levels and solvers for flow matching: x_sigma = (1 - sigma) x0 + sigma eps, velocity v = eps - x0.
#ifndef TS_INFER_SCHEDULE_H
#define TS_INFER_SCHEDULE_H

#include <stdint.h>

#include "core/kernels/kernels.h"

typedef enum {
    TS_GRID_UNIPC,        // linspace(1, 0.001), shifted, truncated integer timesteps (diffusers >= 0.37)
    TS_GRID_WAN,          // linspace(0.999, 0), shifted, truncated integer timesteps (Wan's repository)
    TS_GRID_EULER,        // linspace(1, 0), shifted, real timesteps (HunyuanVideo's pipeline)
    TS_GRID_EULER_TWICE,  // FlowMatchEuler's default: between the ends of an already shifted table, shifted again
    TS_GRID_LTX           // linspace(1, 1/N), exponential shift e^shift, stretched to end at 0.1 (LTX-Video)
} ts_grid;

typedef enum { TS_SOLVER_EULER, TS_SOLVER_UNIPC } ts_solver_kind;

// Names for option tables, in the order of the enums.
extern const char *const ts_grid_names[];
extern const char *const ts_solver_names[];

enum { TS_MAX_STEPS = 1000 };

typedef struct ts_schedule {
    int64_t steps;
    float sigma[TS_MAX_STEPS + 1];  // falling, last 0
    float timestep[TS_MAX_STEPS];   // model time input: 1000 sigma, truncated for the UniPC and Wan grids
} ts_schedule;

// shift: sigma' = s sigma / (1 + (s - 1) sigma); for TS_GRID_LTX it is the exponent mu.
// TS_EUSAGE when steps is not in 1..TS_MAX_STEPS or shift is not positive and finite.
int ts_schedule_make(ts_schedule *out, ts_grid grid, int64_t steps, double shift);

// A solver takes n numbers x from sigma_i to sigma_{i+1}, given the velocity at x.
//   euler: x += (sigma_{i+1} - sigma_i) v
//   unipc: order 2, variant bh2, predicting x0, lower order at the end (Zhao et al. 2023, "UniPC: a unified
//          predictor-corrector framework for fast sampling of diffusion models")
typedef struct ts_solver ts_solver;

// `schedule` and `kernels` are borrowed.
int ts_solver_open(ts_solver **out, ts_solver_kind kind, const ts_schedule *schedule, const ts_kernels *kernels,
                   int64_t n);
void ts_solver_close(ts_solver **solver);
// Steps 0 .. steps-1 in order. velocity [n], x [n] in place: f32, memory of the kernels' device. Each number is a sum
// of a few terms, taken in f64 and rounded once. Not collective.
int ts_solver_step(ts_solver *solver, int64_t step, const float *velocity, float *x);

#endif
