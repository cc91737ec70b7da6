// SPDX-License-Identifier: Apache-2.0
// ZeRO-1 (Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models", stage 1):
// every rank holds all weights (of its tensor slice) and adds up all gradients of its samples and tokens, but updates
// only a part of them and holds optimizer state for no more.
//
// Each span of the parameters (core/nn/param.h) is dealt out over the ranks that hold the same numbers: a cut one over
// the replica group, a whole one over the world. Parts are consecutive, in units of 32 elements; where matrices must
// stay whole (train/muon.h), parts end between them and are as even as that allows. A step then sends, of a span of n
// elements over D ranks of which this one's part has n_r:
//
//   reduce-scatter of gradients    g (n - n_r)      g: bytes a gradient is kept in, 4 or 2
//   all-gather of weights          w n_r (D - 1)    w: 2 for operands in bf16, else 4
//
// which with even parts is (D-1)/D (g + w) n in all: an all-reduce's traffic for g = w. Gradients travel while the
// backward pass goes on: those of a block start when it is done, at most a few blocks at a time, so that what they hold
// in scratch stays bounded. Sums are taken in the order of the ranks.
#ifndef TS_TRAIN_ZERO_H
#define TS_TRAIN_ZERO_H

#include "core/nn/param.h"

// One span as it is dealt out.
typedef struct ts_shard {
    const ts_span *span;
    ts_comm *comm;           // that it is dealt out over
    int64_t *counts;         // [size of comm] elements of each rank's part
    int64_t first, count;    // this rank's part, in flat order
    int64_t item, item_end;  // parameters that lie in the part, whole or with an end of theirs
    ts_request *request;     // under way, or NULL
} ts_shard;

typedef struct ts_zero {
    ts_params *params;  // borrowed
    ts_shard *shard;    // [params->spans]
    int64_t own;        // elements of all of this rank's parts
    int pending;        // groups whose gradients have not started to travel: 0 .. pending - 1
} ts_zero;

// Deals out placed parameters, over the axes of params->mesh. `whole_matrices`: parts do not cut a parameter marked
// hidden. Makes no call to other ranks: an imagined mesh (ts_mesh_imagine) can be counted.
int ts_zero_open(ts_zero **out, ts_params *params, bool whole_matrices);
void ts_zero_close(ts_zero **zero);
// Most bytes that sums of gradients, kept in `dtype`, hold while they are under way. Not collective.
int64_t ts_zero_exchange_bytes(const ts_zero *zero, ts_dtype dtype);

// ---- a step, collective over the world
// After an error sums may be under way between ranks that do not know of it: the caller ends the job.
// Gradients of a new step begin at 0.
int ts_zero_begin(ts_zero *zero);
// The gradients of a group are done: with the last micro-batch they start to travel. Groups come from the last to 0;
// one that is left out then is sent by ts_zero_reduce.
int ts_zero_group_done(ts_zero *zero, int group, bool last);
// Sends what is left and waits, as the device of the gradients does (core/comm/comm.h): the own parts then hold sums
// over all ranks, the rest nothing of use.
int ts_zero_reduce(ts_zero *zero);

// The own part of a span's weights is ready: it starts to travel. Spans come in the same order on all ranks.
int ts_zero_gather_start(ts_zero *zero, int span);
// Waits until all weights are what their owners made them.
int ts_zero_gather_wait(ts_zero *zero);

#endif
