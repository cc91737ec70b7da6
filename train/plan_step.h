// SPDX-License-Identifier: Apache-2.0
// One training step of a rank as planning sees it: which kernels it calls and how often, what it sends along each axis,
// what memory it needs. Counted on an imagined mesh: nothing is computed, no rank is needed.
//
// The blocks of a transformer are alike: of a deep one, models of two and of three blocks are counted, and each further
// block adds their difference.
#ifndef TS_TRAIN_PLAN_STEP_H
#define TS_TRAIN_PLAN_STEP_H

#include "core/comm/mesh.h"
#include "core/model/dit.h"
#include "core/model/text.h"
#include "train/config.h"

// What is trained.
typedef struct ts_plan_run {
    const ts_train_config *config;
    ts_dit_config dit;
    ts_text_config text;
    ts_shape latent;  // [T, H, W, C] of a sample, the largest there is
    bool on_device;   // on GPUs
} ts_plan_run;

// Kernel calls that are alike: entry, dtype, dimensions and work.
typedef struct ts_plan_call {
    ts_cost cost;
    double times;  // in the step
} ts_plan_call;

typedef struct ts_plan_message {
    double calls, bytes;  // that the rank sends
} ts_plan_message;

typedef struct ts_plan_step {
    ts_degrees degree;
    ts_recompute recompute;
    int64_t samples;                     // of the rank's share of the batch
    int64_t micro_batch, micro_batches;  // of them, computed at once; how often
    ts_plan_call *call;                  // [calls], owned
    int64_t calls, capacity;
    ts_plan_message message[TS_AXIS_COUNT][TS_COLLECTIVE_COUNT];
    double flops;       // of all calls
    double parameters;  // that the rank holds, or a slice of each
    double memory;      // bytes (train/memory.h), but for the program itself
} ts_plan_step;

// Counts a step of rank 0 of the mesh, which has no less of anything than any other rank; *out is freed by
// ts_plan_step_free. Errors are those of the model, and TS_ERESOURCE. Like all here: not collective.
int ts_plan_step_count(ts_plan_step *out, const ts_plan_run *run, const ts_degrees *degree, ts_recompute recompute);
void ts_plan_step_free(ts_plan_step *step);
// Whether two calls are counted as one.
bool ts_plan_same_call(const ts_cost *a, const ts_cost *b);

// ---- rehearsing
// The same model with memory, and a recorded forward and backward pass that computes what rank 0 of an imagined mesh
// would, and sends nothing: how kernels are measured in the places where they stand.
typedef struct ts_plan_rehearsal ts_plan_rehearsal;
// With no more than `layers` blocks.
int ts_plan_rehearsal_open(ts_plan_rehearsal **out, const ts_plan_run *run, const ts_degrees *degree,
                           ts_recompute recompute, int64_t layers, const ts_kernels *kernels);
void ts_plan_rehearsal_close(ts_plan_rehearsal **rehearsal);
// A micro-batch; `meter` hears of every call, with its seconds.
int ts_plan_rehearse(ts_plan_rehearsal *rehearsal, ts_tape_meter_fn meter, void *user);
const ts_params *ts_plan_rehearsal_params(const ts_plan_rehearsal *rehearsal);

int64_t ts_plan_tokens(const ts_plan_run *run);  // of a sample

#endif
