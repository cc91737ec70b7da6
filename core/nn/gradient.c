// SPDX-License-Identifier: Apache-2.0
// Gradients of variables, and the pool their memory comes from.
#include <stdlib.h>

#include "core/nn/tape_private.h"

void *ts_pool_take(ts_tape *tape, size_t bytes) {
    for (int64_t i = tape->pool_count - 1; i >= 0; i--) {
        if (tape->pool[i].bytes == bytes) {
            void *data = tape->pool[i].data;
            tape->pool[i] = tape->pool[--tape->pool_count];
            return data;
        }
    }
    void *data = ts_arena_alloc(tape->gradients, bytes);
    if (!data) {
        ts_tape_try(tape, TS_ERESOURCE);
    }
    return data;
}

void ts_pool_give(ts_tape *tape, void *data, size_t bytes) {
    tape_block *pool = ts_tape_grow(tape, tape->pool, &tape->pool_capacity, tape->pool_count + 1, sizeof *pool);
    if (!pool) {
        return;  // the block waits in its arena for the reset
    }
    tape->pool = pool;
    tape->pool[tape->pool_count++] = (tape_block){data, bytes};
}

static int64_t count_of(const ts_var *x) {
    return ts_shape_count(x->value.shape);
}

static size_t grad_bytes(const ts_var *x) {
    return (size_t)count_of(x) * ts_dtype_bytes(x->grad_dtype);
}

int ts_grad_allocate(ts_tape *tape, ts_var *x) {
    if (x->grad || x->grad_written) {
        return 0;  // written without memory: a parameter that is only counted
    }
    x->grad = ts_pool_take(tape, grad_bytes(x));
    return x->grad ? 0 : TS_ERESOURCE;
}

void ts_grad_drop(ts_tape *tape, ts_var *x) {
    if (x->grad) {
        ts_pool_give(tape, x->grad, grad_bytes(x));
        x->grad = NULL;
    }
    x->grad_written = false;
}

int ts_grad_begin(ts_tape *tape, ts_columns x, ts_dtype dtype, bool can_accumulate, ts_grad_slot *slot) {
    ts_var *var = x.var;
    const bool whole = x.width == ts_var_width(var);
    *slot = (ts_grad_slot){.dtype = dtype};
    slot->accumulate = whole && var->grad_written && can_accumulate && dtype == TS_F32;
    slot->separate = !var->needs_grad || dtype != var->grad_dtype || (whole && var->grad_written && !slot->accumulate);
    if (slot->separate) {
        TS_ASSERT(whole || !var->needs_grad);  // columns have one consumer each, of the variable's own dtype
        slot->buffer = ts_pool_take(tape, (size_t)count_of(var) * ts_dtype_bytes(dtype));
        slot->data = slot->buffer ? (char *)slot->buffer + (size_t)x.first * ts_dtype_bytes(dtype) : NULL;
        return slot->buffer ? 0 : TS_ERESOURCE;
    }
    TS_TRY(ts_grad_allocate(tape, var));
    slot->data = (char *)var->grad + (size_t)x.first * ts_dtype_bytes(dtype);
    // From now on, not from the end: a call that takes one variable twice must not give its memory out twice.
    var->grad_written = true;
    return 0;
}

// x.grad += data, or = data when there is none yet; data is f32 or bf16, x.grad is f32.
static int add_gradient(ts_tape *tape, ts_var *x, const void *data, ts_dtype dtype) {
    const int64_t n = count_of(x);
    TS_ASSERT(x->grad_dtype == TS_F32);
    if (!x->grad_written) {
        TS_TRY(ts_grad_allocate(tape, x));
        return TS_KERNEL(tape, cast, data, dtype, x->grad, TS_F32, n);
    }
    if (dtype == TS_F32) {
        return TS_KERNEL(tape, axpy, 1.0f, data, x->grad, n);
    }
    float *wide = ts_pool_take(tape, (size_t)n * sizeof *wide);
    if (!wide) {
        return TS_ERESOURCE;
    }
    TS_TRY(TS_KERNEL(tape, cast, data, dtype, wide, TS_F32, n));
    TS_TRY(TS_KERNEL(tape, axpy, 1.0f, wide, x->grad, n));
    ts_pool_give(tape, wide, (size_t)n * sizeof *wide);
    return 0;
}

int ts_grad_end(ts_tape *tape, ts_columns x, ts_grad_slot *slot) {
    if (slot->separate) {
        if (x.var->needs_grad) {
            TS_TRY(add_gradient(tape, x.var, slot->data, slot->dtype));
        }
        ts_pool_give(tape, slot->buffer, (size_t)count_of(x.var) * ts_dtype_bytes(slot->dtype));
    }
    x.var->grad_written = x.var->needs_grad;
    return 0;
}

int ts_grad_add_to(ts_tape *tape, ts_var *x) {
    TS_ASSERT(x->grad_dtype == TS_F32);
    if (x->grad_written) {
        return 0;
    }
    TS_TRY(ts_grad_allocate(tape, x));
    TS_TRY(ts_tape_zero(tape, x->grad, grad_bytes(x)));
    x->grad_written = true;
    return 0;
}

int ts_grad_pass(ts_tape *tape, ts_var *y, ts_var *x) {
    TS_ASSERT(count_of(x) == count_of(y));
    if (!x->needs_grad) {
        return 0;
    }
    if (!x->grad_written && !x->grad && x->grad_dtype == y->grad_dtype) {
        x->grad = y->grad;
        y->grad = NULL;
        x->grad_written = true;
        return 0;
    }
    if (x->grad_dtype == TS_F32) {
        TS_TRY(add_gradient(tape, x, y->grad, y->grad_dtype));
    } else {
        // A bf16 variable has one consumer, so this is its whole gradient.
        TS_ASSERT(!x->grad_written);
        TS_TRY(ts_grad_allocate(tape, x));
        TS_TRY(TS_KERNEL(tape, cast, y->grad, y->grad_dtype, x->grad, x->grad_dtype, count_of(x)));
    }
    x->grad_written = true;
    return 0;
}

int ts_grad_convert(ts_tape *tape, ts_var *y, ts_dtype dtype) {
    if (y->grad_dtype == dtype) {
        return 0;
    }
    void *data = ts_pool_take(tape, (size_t)count_of(y) * ts_dtype_bytes(dtype));
    if (!data) {
        return TS_ERESOURCE;
    }
    TS_TRY(TS_KERNEL(tape, cast, y->grad, y->grad_dtype, data, dtype, count_of(y)));
    ts_pool_give(tape, y->grad, grad_bytes(y));
    y->grad = data;
    y->grad_dtype = dtype;
    return 0;
}
