// SPDX-License-Identifier: Apache-2.0
// The sharded optimizer: AdamW with a moving average of the weights in the same pass; for the matrices inside the
// blocks, when asked for, orthogonalised momentum (train/muon.h) instead. A rank updates its parts of the weights
// (train/zero.h) and holds state for them alone. With D ranks to share, bytes of a parameter on one of them:
//
//   weights      bf16 precision: operands 2 + 4/D of f32 masters, the few others 4 and their own masters; f32: 4
//   gradients    4, or 2 when they are kept in bf16, with f32 room for group 0 and the largest block beside them
//   moments      8/D; 4/D of matrices with orthogonalised momentum
//   average      4/D, or none
//
// In bf16 with gradients in bf16 that is 4 + 12/D, and 4/D for the average.
#ifndef TS_TRAIN_OPTIMIZER_H
#define TS_TRAIN_OPTIMIZER_H

#include <stdint.h>

#include "core/comm/comm.h"
#include "core/kernels/kernels.h"
#include "core/nn/param.h"
#include "train/zero.h"

typedef struct ts_optimizer_params {
    double beta1, beta2, eps, weight_decay;
    bool average;          // keep a moving average of the weights
    bool muon;             // orthogonalised momentum for parameters marked hidden
    double muon_lr_scale;  // their learning rate as a multiple of the others'
    double muon_momentum;
    ts_rounding
        rounding;   // of the operands that an AdamW update writes; what is loaded or swapped is rounded to nearest
    uint64_t seed;  // of stochastic rounding
} ts_optimizer_params;

// Training state that this rank answers for: elements [first, first + count) of its part of a parameter. Every element
// of every parameter is in the part of exactly one rank of the world. average is NULL when none is kept, moment2 where
// the update has none. All point to f32 [count] on the device of the kernels.
typedef struct ts_state_part {
    const ts_param *param;
    int64_t first, count;
    float *weight, *average, *moment1, *moment2;
} ts_state_part;

typedef struct ts_optimizer {
    ts_optimizer_params params;
    ts_params *weights;  // borrowed
    const ts_kernels *kernels;
    ts_zero *zero;
    float *master;             // f32 of the own parts of bf16 operands, run after run
    float *moment1, *moment2;  // of the own parts, run after run
    float *average;            // the same, or NULL
    float *wide;               // [wide_count] gradients that are kept in bf16, as f32
    int64_t wide_count;
    struct ts_optimizer_run *run;
    int64_t runs;
    struct ts_muon_group *muon;  // NULL without orthogonalised momentum
    ts_state_part *part;
    int64_t parts;
} ts_optimizer;

// State and scratch are memory of the kernels' device, as the weights. Takes the weights as they are: moments start at
// 0, the average at the weights. Then settles them (ts_params_settle). Reads decay, hidden and lr_scale of every
// parameter. Not collective.
int ts_optimizer_open(ts_optimizer **out, ts_params *weights, const ts_kernels *kernels,
                      const ts_optimizer_params *params);
void ts_optimizer_close(ts_optimizer **optimizer);

// Bytes on this rank, as ts_optimizer_open and ts_params_allocate_grad would take them.
typedef struct ts_state_bytes {
    int64_t weights;    // values and operands, settled
    int64_t gradients;  // without what is shared by the blocks
    int64_t masters, moments, average;
    int64_t buffers;  // gradients shared by the blocks, scratch of the update
} ts_state_bytes;
// Of placed parameters (ts_params_place), which need no memory of their own, on the host or another device. Not
// collective.
int ts_optimizer_count(ts_params *placed, ts_dtype operand_dtype, ts_dtype grad_dtype,
                       const ts_optimizer_params *params, bool on_host, ts_state_bytes *out);

// ---- a step: ts_zero_begin, backward passes with ts_zero_group_done, then these. All are collective over the world.
// Finishes the sums of gradients. *squares, on the device, `=`: the sum of squares of this rank's parts, in f64 and in
// fixed chunks, the same bits for any thread count; over the world every element is in it once.
int ts_optimizer_reduce(ts_optimizer *optimizer, double *squares);
// The factor that brings a gradient of this norm down to `clip`; 1 below it or when clip is 0.
double ts_clip_scale(double norm, double clip);
// Update number `step`, from 1, of moments, weights and average, and the weights from their owners to all. A device may
// still be at it when this returns.
int ts_optimizer_step(ts_optimizer *optimizer, int64_t step, double lr, double grad_scale, double average_decay);

// ---- state
// Borrowed from the optimizer; the numbers may be read, and written before ts_optimizer_loaded.
const ts_state_part *ts_optimizer_parts(const ts_optimizer *optimizer, int64_t *count);
// After the parts were written on all ranks: brings what kernels read up to date everywhere. Collective.
int ts_optimizer_loaded(ts_optimizer *optimizer);
// Exchanges the weights with their average everywhere: before and after evaluating the average. Nothing happens when
// none is kept. Collective.
int ts_optimizer_swap_average(ts_optimizer *optimizer);

#endif
