// SPDX-License-Identifier: Apache-2.0
// Noise levels and solvers for flow matching: x_sigma = (1 - sigma) x0 + sigma eps, velocity v = eps - x0.
#ifndef TS_INFER_SCHEDULE_H
#define TS_INFER_SCHEDULE_H

#include <stdint.h>

typedef enum {
    TS_GRID_UNIPC,           // linspace(1, 0.001), shifted, truncated integer timesteps (diffusers >= 0.37)
    TS_GRID_UNIPC_OFFICIAL,  // linspace(0.999, 0), shifted, truncated integer timesteps (Wan's repository)
    TS_GRID_EULER            // linspace(1, 0), shifted, real timesteps
} ts_grid;

typedef enum { TS_SOLVER_EULER, TS_SOLVER_UNIPC } ts_solver_kind;

enum { TS_MAX_STEPS = 1000 };

typedef struct ts_schedule {
    int64_t steps;
    float sigma[TS_MAX_STEPS + 1];  // falling, last 0
    float timestep[TS_MAX_STEPS];   // model time input, 1000 sigma (truncated for the UniPC grids)
} ts_schedule;

// shift: sigma' = s sigma / (1 + (s - 1) sigma). TS_EUSAGE when steps is not in 1..TS_MAX_STEPS or shift <= 0.
int ts_schedule_make(ts_schedule *out, ts_grid grid, int64_t steps, double shift);

// A solver advances n numbers x from sigma_i to sigma_{i+1}, given the velocity at x. Every number has its own sigma
// only through `schedule`: latent frames held clean are put back by the caller.
typedef struct ts_solver ts_solver;
int ts_solver_open(ts_solver **out, ts_solver_kind kind, const ts_schedule *schedule, int64_t n);
void ts_solver_close(ts_solver **solver);
// Step i = 0 .. steps-1 in order. x [n] in place.
int ts_solver_step(ts_solver *solver, int64_t step, const float *velocity, float *x);

#endif
