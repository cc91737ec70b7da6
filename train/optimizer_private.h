// SPDX-License-Identifier: Apache-2.0
// The optimizer's inside, shared by optimizer.c (state) and optimizer_step.c (updates).
#ifndef TS_TRAIN_OPTIMIZER_PRIVATE_H
#define TS_TRAIN_OPTIMIZER_PRIVATE_H

#include "train/muon.h"
#include "train/optimizer.h"

// Gradients in bf16 are widened to f32 in pieces: as many elements at a time stay in a processor's cache; a GPU needs
// more of them to be busy.
enum { TS_WIDE_HOST = 1 << 16, TS_WIDE_DEVICE = 1 << 24 };

// Neighbouring parameters of an own part that are updated alike. Padding between tensors holds zeros, which AdamW
// leaves alone, so a run spans it. A matrix with orthogonalised momentum is a run of its own, and may be empty where
// this rank's slice is.
typedef struct ts_optimizer_run {
    int span;
    int64_t first, count;  // in flat order
    float weight_decay, lr_scale;
    const ts_param *matrix;  // NULL: AdamW
    // [count] each
    float *weight;                       // the master, which kernels read themselves where there is no operand
    uint16_t *operand;                   // of it, or NULL
    float *moment1, *moment2, *average;  // moment2 NULL of a matrix, average NULL when none is kept
} ts_optimizer_run;

typedef struct ts_update {
    int64_t step;
    double lr, grad_scale, average_decay;
} ts_update;

// *out: elements [first, first + count) of a run's gradient as f32, themselves, or widened into `to` [count].
int ts_run_gradient(const ts_optimizer *o, const ts_optimizer_run *run, int64_t first, int64_t count, float *to,
                    const float **out);

// ---- orthogonalised momentum (optimizer_muon.c)
// The matrices of the own parts and scratch for them. Matrices cut over the tensor axis go in rounds of as many as it
// has ranks: the slices of each travel to one rank, which makes the direction of the whole, and back. A rank sends
// 4 bytes of each element that it holds of the others' matrices, and 4 of each that they hold of its own.
typedef struct ts_muon_group {
    const ts_kernels *kernels;  // NULL until there are buffers
    ts_muon *muon;
    ts_comm *tensor;
    ts_optimizer_run **run;  // [runs], the uncut first
    int64_t runs, uncut;
    int64_t elements, smaller, slices;  // largest matrix, largest smaller side, most slices of a round
    float *slice;                       // [slices] of a round, one after another
    float *received, *whole;            // [elements] a matrix in slices, and put together
    int64_t *sent, *taken;              // [ranks of the tensor axis] elements to and from each
} ts_muon_group;

// Finds the matrices among the runs of `o`; makes no buffers yet.
int ts_muon_group_open(ts_muon_group **out, const ts_optimizer *o);
int ts_muon_group_allocate(ts_muon_group *group, const ts_optimizer *o);
int64_t ts_muon_group_bytes(const ts_muon_group *group, ts_dtype operand);
void ts_muon_group_close(ts_muon_group **group);
// Updates all matrices: moments, weights, operands and average. Collective over the tensor axis.
int ts_muon_group_update(const ts_optimizer *o, const ts_update *update);

#endif
