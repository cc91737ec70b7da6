// SPDX-License-Identifier: Apache-2.0
// AdamW over the flat arrays of a parameter set, with the moving average of the weights in the same pass; for the
// matrices inside the blocks, when asked for, orthogonalised momentum (train/muon.h) instead.
//
// Everything works on a range [first, first + count) of the flat arrays: a rank that owns a range (the sharded
// optimizer) calls the same functions with its range. A range must not cut a matrix that has orthogonalised momentum.
#ifndef TS_TRAIN_OPTIMIZER_H
#define TS_TRAIN_OPTIMIZER_H

#include <stdint.h>

#include "core/comm/comm.h"
#include "core/kernels/kernels.h"
#include "core/nn/param.h"

typedef struct ts_optimizer_params {
    double beta1, beta2, eps, weight_decay;
    bool muon;             // orthogonalised momentum for parameters marked hidden
    double muon_lr_scale;  // their learning rate as a multiple of the others'
    double muon_momentum;
    ts_comm *data;  // ranks with equal gradients that share out the matrices; NULL: each computes all
} ts_optimizer_params;

// Training state that this rank answers for: elements [first, first + count) of its part of a parameter. Every element
// of every parameter is in the part of exactly one rank of the world. moment2 is NULL where the update has none. All
// point to f32 [count].
typedef struct ts_state_part {
    const ts_param *param;
    int64_t first, count;
    float *weight, *average, *moment1, *moment2;
} ts_state_part;

typedef struct ts_optimizer {
    ts_optimizer_params params;
    ts_params *weights;  // borrowed
    const ts_kernels *kernels;
    float *moment1, *moment2;  // [weights->total]; under orthogonalised momentum moment2 stays 0
    float *average;            // [weights->total] moving average of the weights
    struct ts_optimizer_run *run;
    int64_t run_count;
    struct ts_muon *muon;  // NULL without orthogonalised momentum
    float *direction;      // [direction_total] of this step, matrix after matrix
    int64_t direction_total;
    ts_state_part *part;
    int64_t parts;
} ts_optimizer;

// Moments start at 0, the average at the weights. Reads decay and lr_scale of every parameter.
int ts_optimizer_open(ts_optimizer **out, ts_params *weights, const ts_kernels *kernels,
                      const ts_optimizer_params *params);
void ts_optimizer_close(ts_optimizer **optimizer);

// Sum of squares of the gradients of a range, in fixed chunks: the same bits for any thread count.
int ts_optimizer_grad_squares(const ts_optimizer *optimizer, int64_t first, int64_t count, double *sum);
// The factor that brings a gradient of this norm down to `clip`; 1 below it or when clip is 0.
double ts_clip_scale(double norm, double clip);

// One update (step from 1) of a range: moments, weights, operand copies and the average. Collective over params.data
// when orthogonalised momentum is on.
int ts_optimizer_step(ts_optimizer *optimizer, int64_t first, int64_t count, int64_t step, double lr, double grad_scale,
                      double average_decay);

// Borrowed from the optimizer; the numbers may be read, and written before ts_optimizer_loaded.
const ts_state_part *ts_optimizer_parts(const ts_optimizer *optimizer, int64_t *count);
// After the parts were written on all ranks: brings what kernels read up to date everywhere. Collective.
int ts_optimizer_loaded(ts_optimizer *optimizer);

// Exchanges the weights with their average and refreshes the operands: before and after evaluating the average.
void ts_optimizer_swap_average(ts_optimizer *optimizer);

#endif
