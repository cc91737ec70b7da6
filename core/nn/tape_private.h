// SPDX-License-Identifier: Apache-2.0
// The tape's inside, shared by tape.c (variables, calls), scope.c (blocks that are released and computed again) and
// gradient.c (the pool of gradient buffers).
#ifndef TS_NN_TAPE_PRIVATE_H
#define TS_NN_TAPE_PRIVATE_H

#include "core/nn/layer.h"

typedef struct tape_call {
    ts_backward_fn backward;
    void *context;
    ts_var *output;
} tape_call;

typedef struct tape_block {
    void *data;
    size_t bytes;
} tape_block;

// Which run of a block with elementwise recompute is under way.
typedef enum {
    PASS_PLAIN,  // none
    PASS_FIRST,  // forward: nothing is recorded, what is asked to be kept is
    PASS_AGAIN   // backward: what was kept is handed out again, in the same order
} tape_pass;

struct ts_tape {
    const ts_kernels *kernels;
    ts_tape_mode mode;
    ts_dtype operand_dtype;
    int status;
    ts_arena *objects;    // variables and what calls keep beside values; always real
    ts_arena *values;     // what kernels write forward
    ts_arena *kept;       // what of it outlives its block under elementwise recompute; blocks go backward in reverse
    ts_arena *gradients;  // what they write backward; released only by reset, reused through the pool
    tape_call *calls;     // [call_count]
    int64_t call_count, call_capacity;
    tape_block *pool;  // [pool_count] gradients' memory that may be used again
    int64_t pool_count, pool_capacity;
    tape_block *keep;  // [keep_count] what of `kept` was asked for, in order
    int64_t keep_count, keep_capacity;
    uint64_t list_growths;  // of the three lists
    int64_t keep_next;      // in PASS_AGAIN: what the next request gets
    tape_pass pass;
    bool replaying;  // inside backward: a recomputed block is neither counted nor probed
    double flops;
    uint64_t forward_bytes, activation_bytes;
    int64_t calls_made;
    ts_tape_probe_fn probe;
    void *probe_user;
    ts_tape_meter_fn meter;
    void *meter_user;
    double clock;  // when the kernel call under way began, for the meter
};

ts_var *ts_tape_var(ts_tape *tape, ts_tensor value, bool needs_grad);
// Notes the bytes that wait for the backward pass, before some are released.
void ts_tape_note_activations(ts_tape *tape);
// Takes the calls from the last down to number `first` backward.
int ts_tape_run_backward(ts_tape *tape, int64_t first);

// The list of the tape with room for `wanted` items of `bytes`, perhaps elsewhere; NULL, and as it was, when memory is
// exhausted.
void *ts_tape_grow(ts_tape *tape, void *items, int64_t *capacity, int64_t wanted, size_t bytes);

// Gives the gradient of a call's output back once the call has gone backward.
void ts_grad_drop(ts_tape *tape, ts_var *x);
// Makes sure that x.grad is memory.
int ts_grad_allocate(ts_tape *tape, ts_var *x);

#endif
