// SPDX-License-Identifier: Apache-2.0
// What layers are written with. A model needs nothing of this file.
//
// A layer is a function that makes its output variable, calls its kernel and, when recording, notes a backward
// function with what that needs:
//
//   ts_var *y = ts_tape_new(tape, dtype, shape, x->needs_grad);
//   ts_tape_try(tape, TS_KERNEL(tape, silu_forward, ...));
//   struct call *c = ts_tape_note(tape, y, backward, sizeof *c);       NULL when nothing is recorded
//   if (c) { *c = (struct call){...}; ts_var_consume(x); }
//   return ts_tape_status(tape) ? NULL : y;
//
// Values and gradients are memory of the kernel table's device: layers never look through such a pointer. In the count
// modes the pointers are made up, and TS_KERNEL calls no kernel.
#ifndef TS_NN_LAYER_H
#define TS_NN_LAYER_H

#include "core/base/status.h"
#include "core/kernels/cost.h"
#include "core/nn/tape.h"

// Calls an entry of the kernel table; an entry that the backend leaves empty is an error. A meter, if there is one,
// hears of the call, by its cost (core/kernels/cost.h); in the count modes it is all that does.
#define TS_KERNEL(tape, entry, ...)                                                                                    \
    (!ts_tape_computes(tape) ? ts_tape_meter(tape, ts_cost_##entry(__VA_ARGS__))                                       \
     : !ts_tape_kernels(tape)->entry                                                                                   \
         ? TS_FAIL(TS_EUSAGE, "%s is not supported on %s", #entry, ts_tape_kernels(tape)->name)                        \
     : !ts_tape_starts_clock(tape)                                                                                     \
         ? ts_tape_kernels(tape)->entry(__VA_ARGS__)                                                                   \
         : ts_tape_stop_clock(tape, ts_cost_##entry(__VA_ARGS__), ts_tape_kernels(tape)->entry(__VA_ARGS__)))

int ts_tape_meter(ts_tape *tape, ts_cost cost);                   // 0
bool ts_tape_starts_clock(ts_tape *tape);                         // false without a meter
int ts_tape_stop_clock(ts_tape *tape, ts_cost cost, int status);  // tells the meter; returns `status`
bool ts_tape_computes(const ts_tape *tape);                       // false in the count modes
bool ts_tape_keeps(const ts_tape *tape);                          // record, or counting a recorded step
int ts_tape_try(ts_tape *tape, int status);                       // remembers the first failure; returns `status`
int ts_tape_zero(ts_tape *tape, void *data, size_t bytes);        // of the device's memory; nothing in the count modes
int ts_tape_copy(ts_tape *tape, void *to, const void *from, size_t bytes);  // within it
void ts_tape_add_flops(ts_tape *tape, double n);  // of a forward pass; ignored while recomputing

// Uninitialised memory that lasts as long as the tape's values (released at the end of a scope that is not recorded).
void *ts_tape_alloc(ts_tape *tape, size_t bytes);
ts_var *ts_tape_new(ts_tape *tape, ts_dtype dtype, ts_shape shape, bool needs_grad);
// Outputs that are dear to compute and cheap to keep (GEMM, attention, what comes from other ranks): with elementwise
// recompute their memory outlives the block, and *ready tells, when the block runs again, that it still holds the
// values: the kernel or message must be left out then. Every run of a block must ask for the same ones in the same
// order.
void *ts_tape_alloc_kept(ts_tape *tape, size_t bytes, bool *ready);
ts_var *ts_tape_new_kept(ts_tape *tape, ts_dtype dtype, ts_shape shape, bool needs_grad, bool *ready);
// A variable that shares x's memory under another shape.
ts_var *ts_tape_alias(ts_tape *tape, const ts_var *x, ts_shape shape, bool needs_grad);

typedef int (*ts_backward_fn)(ts_tape *tape, void *call);
void *ts_tape_note(ts_tape *tape, ts_var *output, ts_backward_fn backward, size_t call_bytes);

// Whether gradients of the parameter are wanted.
bool ts_tape_trains(const ts_tape *tape, const ts_param *param);
// Notes one more call that will add to x's gradient.
void ts_var_consume(ts_var *x);

static inline int64_t ts_var_width(const ts_var *x) {
    return x->value.shape.dim[x->value.shape.ndim - 1];
}
// Also of a variable without columns.
static inline int64_t ts_var_rows(const ts_var *x) {
    ts_shape rows = x->value.shape;
    rows.dim[rows.ndim - 1] = 1;
    return ts_shape_count(rows);
}
// The shape of x with another width.
ts_shape ts_var_shape_with_width(const ts_var *x, int64_t width);

// Columns [first, first + width) of a variable taken as a matrix. A variable may be consumed in columns instead of as a
// whole when every column has exactly one consumer.
typedef struct ts_columns {
    ts_var *var;
    int64_t first, width;
} ts_columns;
ts_columns ts_whole(ts_var *var);
const void *ts_columns_data(ts_columns x);
// Notes a call that takes x: columns have one consumer each anyway, a whole variable may have more.
static inline void ts_columns_consume(ts_columns x) {
    if (x.width == ts_var_width(x.var)) {
        ts_var_consume(x.var);
    }
}

// ---- gradients, in backward functions

// Buffers come from a pool of exact sizes, so that a step uses few of them and they stay in cache.
void *ts_pool_take(ts_tape *tape, size_t bytes);
void ts_pool_give(ts_tape *tape, void *data, size_t bytes);

// Where a kernel writes its contribution to a gradient, in `dtype`; that of a variable that needs none is thrown away.
// Between begin and end:
//   data        the columns' first element; the row stride is that of the variable
//   accumulate  true: the kernel must add. Happens only with can_accumulate and F32.
typedef struct ts_grad_slot {
    void *data;
    bool accumulate;
    bool separate;  // in a buffer of its own, which end adds and gives back
    void *buffer;
    ts_dtype dtype;
} ts_grad_slot;
int ts_grad_begin(ts_tape *tape, ts_columns x, ts_dtype dtype, bool can_accumulate, ts_grad_slot *slot);
int ts_grad_end(ts_tape *tape, ts_columns x, ts_grad_slot *slot);

// Makes sure that x's gradient (F32) holds numbers to add to: zero when nothing was written yet.
int ts_grad_add_to(ts_tape *tape, ts_var *x);
// x.grad += y.grad where both have the same count. Takes over y's memory when x has no gradient yet.
int ts_grad_pass(ts_tape *tape, ts_var *y, ts_var *x);
// Makes the finished gradient of a call's output readable as `dtype`.
int ts_grad_convert(ts_tape *tape, ts_var *y, ts_dtype dtype);

#endif
