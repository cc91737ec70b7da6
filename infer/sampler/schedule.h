// SPDX-License-Identifier: Apache-2.0
// Noise levels of flow matching: x_sigma = (1 - sigma) x0 + sigma eps, velocity v = eps - x0.
#ifndef TS_INFER_SCHEDULE_H
#define TS_INFER_SCHEDULE_H

#include <stdint.h>

typedef enum {
    TS_GRID_UNIPC,        // linspace(1, 0.001), shifted, truncated integer timesteps (diffusers >= 0.37)
    TS_GRID_WAN,          // linspace(0.999, 0), shifted, truncated integer timesteps (Wan's repository)
    TS_GRID_EULER,        // linspace(1, 0), shifted, real timesteps (HunyuanVideo's pipeline)
    TS_GRID_EULER_TWICE,  // FlowMatchEuler's default: between the ends of an already shifted table, shifted again
    TS_GRID_LTX           // linspace(1, 1/N), exponential shift e^shift, stretched to end at 0.1 (LTX-Video)
} ts_grid;

// Names for option tables, in the order of the enum.
extern const char *const ts_grid_names[];

enum { TS_MAX_STEPS = 1000 };

typedef struct ts_schedule {
    int64_t steps;
    float sigma[TS_MAX_STEPS + 1];  // falling, last 0
    float timestep[TS_MAX_STEPS];   // model time input: 1000 sigma, truncated for the UniPC and Wan grids
} ts_schedule;

// shift: sigma' = s sigma / (1 + (s - 1) sigma); for TS_GRID_LTX it is the exponent mu.
// TS_EUSAGE when steps is not in 1..TS_MAX_STEPS, shift is not positive and finite, or is so large or small that levels
// do not fall from step to step.
int ts_schedule_make(ts_schedule *out, ts_grid grid, int64_t steps, double shift);

// The noise level where what has this strength begins, 0 held to 1 free: a free token's path from noise to video, less
// its first 1 - strength. With it no grid's first level is above that of strength 1.
float ts_schedule_floor(ts_grid grid, double strength, double shift);

#endif
