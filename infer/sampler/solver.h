// SPDX-License-Identifier: Apache-2.0
// Solvers of the flow equation, with a noise level for each row of latents.
//
// A row with floor f has level min(sigma_i, f) at step i: it waits at its floor until the schedule comes down to it,
// then goes along, its first step being of first order. f = 0: held, never touched; f >= sigma_0: the schedule itself.
//
//   euler: x += (level_{i+1} - level_i) v
//   unipc: order 2, variant bh2, predicting x0, lower order at the end (Zhao et al. 2023, "UniPC: a unified
//          predictor-corrector framework for fast sampling of diffusion models")
#ifndef TS_INFER_SOLVER_H
#define TS_INFER_SOLVER_H

#include "core/kernels/kernels.h"
#include "infer/sampler/schedule.h"

typedef enum { TS_SOLVER_EULER, TS_SOLVER_UNIPC } ts_solver_kind;
extern const char *const ts_solver_names[];  // for option tables

typedef struct ts_solver_rows {
    int64_t rows, width;      // rows * width numbers
    int64_t classes;          // of floors
    const float *floor;       // [classes]
    const int32_t *class_of;  // [rows] host memory; NULL: all rows are of class 0
} ts_solver_rows;

typedef struct ts_solver ts_solver;

// `schedule` and `kernels` are borrowed, `rows` is copied. One class of floor >= sigma_0 costs what a solver without
// floors costs. TS_ERESOURCE; TS_EUSAGE when a row has no class, there is none, or a floor is negative or not finite.
int ts_solver_open(ts_solver **out, ts_solver_kind kind, const ts_schedule *schedule, const ts_kernels *kernels,
                   const ts_solver_rows *rows);
void ts_solver_close(ts_solver **solver);

// Level of a class before step `step`; at `steps` it is 0.
float ts_solver_level(const ts_solver *solver, int64_t step, int64_t class_index);
// The first step in which any row moves; `steps` when all are held.
int64_t ts_solver_first_step(const ts_solver *solver);

// Steps first_step .. steps-1 in order. velocity, x [rows, width] in place: f32, memory of the kernels' device; rows
// that do not move keep their bits, whatever their velocity is. Each number is a sum of a few terms, taken in f64 and
// rounded once. Not collective.
int ts_solver_step(ts_solver *solver, int64_t step, const float *velocity, float *x);
// The numbers of a class were changed since the last step, by the caller: its next step is of first order, and corrects
// nothing, as its first one was.
void ts_solver_forget(ts_solver *solver, int64_t class_index);
// The clean latents foretold in the last step, x - level v where v was taken: [rows, width] device memory of the
// solver, until the next step. Of held rows x itself. NULL before the first step.
const float *ts_solver_x0(const ts_solver *solver);

// What a solver remembers between steps, for saved states: array [TS_SOLVER_ARRAYS] gets *count arrays of rows * width
// numbers, device memory of the solver, valid until the next step. What no step has filled yet is 0.
// Those of a fresh solver of the same kind, schedule and rows may be written before ts_solver_resume(step).
enum { TS_SOLVER_ARRAYS = 4 };
int ts_solver_memory(ts_solver *solver, float **array, int *count);
// The next step will be `step`, first_step .. steps; else TS_EUSAGE.
int ts_solver_resume(ts_solver *solver, int64_t step);

#endif
