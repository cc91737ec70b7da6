// SPDX-License-Identifier: Apache-2.0
// The tape's inside, shared by tape.c (variables, calls, scopes) and gradient.c (the pool of gradient buffers).
#ifndef TS_NN_TAPE_PRIVATE_H
#define TS_NN_TAPE_PRIVATE_H

#include "core/nn/layer.h"

typedef struct tape_call {
    ts_backward_fn backward;
    void *context;
    ts_var *output;
} tape_call;

typedef struct free_block {
    void *data;
    size_t bytes;
} free_block;

struct ts_tape {
    const ts_kernels *kernels;
    ts_tape_mode mode;
    ts_dtype operand_dtype;
    int status;
    ts_arena *objects;    // variables and what calls keep beside values; always real
    ts_arena *values;     // what kernels write forward
    ts_arena *gradients;  // what they write backward; released only by reset, reused through the pool
    tape_call *calls;     // [call_count]
    int64_t call_count, call_capacity;
    free_block *pool;  // [pool_count]
    int64_t pool_count, pool_capacity;
    bool replaying;  // inside backward: a recomputed block is neither counted nor probed
    double flops;
    uint64_t activation_bytes;
    int64_t calls_made;
    ts_tape_probe_fn probe;
    void *probe_user;
};

// Gives the gradient of a call's output back once the call has gone backward.
void ts_grad_drop(ts_tape *tape, ts_var *x);
// Makes sure that x.grad is memory.
int ts_grad_allocate(ts_tape *tape, ts_var *x);

#endif
