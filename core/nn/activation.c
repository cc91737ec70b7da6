// SPDX-License-Identifier: Apache-2.0
#include "core/nn/activation.h"

#include "core/nn/layer.h"

static int64_t count_of(const ts_var *x) {
    return ts_shape_count(x->value.shape);
}

// ---- layers of one input

typedef struct unary_call {
    ts_var *x, *y;
} unary_call;

// Notes the call, unless y is NULL after a failure; returns y, or NULL after one.
static ts_var *unary_end(ts_tape *tape, ts_var *x, ts_var *y, ts_backward_fn backward) {
    unary_call *c = y ? ts_tape_note(tape, y, backward, sizeof *c) : NULL;
    if (c) {
        *c = (unary_call){x, y};
        ts_var_consume(x);
    }
    return ts_tape_status(tape) ? NULL : y;
}

// The output of an f32 layer; NULL after a failure.
static ts_var *unary_output(ts_tape *tape, ts_var *x) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    TS_ASSERT(x->value.dtype == TS_F32);
    return ts_tape_new(tape, TS_F32, x->value.shape, x->needs_grad);
}

static int silu_backward(ts_tape *tape, void *call) {
    const unary_call *c = call;
    const ts_columns x = ts_whole(c->x);
    ts_grad_slot d_x;
    TS_TRY(ts_grad_begin(tape, x, TS_F32, false, &d_x));
    TS_TRY(TS_KERNEL(tape, silu_backward, c->x->value.data, c->y->grad, d_x.data, count_of(c->x)));
    return ts_grad_end(tape, x, &d_x);
}

ts_var *ts_nn_silu(ts_tape *tape, ts_var *x) {
    ts_var *y = unary_output(tape, x);
    if (y) {
        ts_tape_try(tape, TS_KERNEL(tape, silu_forward, x->value.data, y->value.data, count_of(x)));
    }
    return unary_end(tape, x, y, silu_backward);
}

static int gelu_erf_backward(ts_tape *tape, void *call) {
    const unary_call *c = call;
    const ts_columns x = ts_whole(c->x);
    ts_grad_slot d_x;
    TS_TRY(ts_grad_begin(tape, x, TS_F32, false, &d_x));
    TS_TRY(TS_KERNEL(tape, gelu_erf_backward, c->x->value.data, c->y->grad, d_x.data, count_of(c->x)));
    return ts_grad_end(tape, x, &d_x);
}

ts_var *ts_nn_gelu_erf(ts_tape *tape, ts_var *x) {
    ts_var *y = unary_output(tape, x);
    if (y) {
        ts_tape_try(tape, TS_KERNEL(tape, gelu_erf_forward, x->value.data, y->value.data, count_of(x)));
    }
    return unary_end(tape, x, y, gelu_erf_backward);
}

static int cast_backward(ts_tape *tape, void *call) {
    const unary_call *c = call;
    return ts_grad_pass(tape, c->y, c->x);
}

ts_var *ts_nn_cast(ts_tape *tape, ts_var *x, ts_dtype dtype) {
    if (ts_tape_status(tape) || x->value.dtype == dtype) {
        return ts_tape_status(tape) ? NULL : x;
    }
    ts_var *y = ts_tape_new(tape, dtype, x->value.shape, x->needs_grad);
    if (y) {
        y->grad_dtype = TS_F32;  // rounding the value is no reason to round the gradient
        ts_tape_try(tape, TS_KERNEL(tape, cast, x->value.data, x->value.dtype, y->value.data, dtype, count_of(x)));
    }
    return unary_end(tape, x, y, cast_backward);
}

// ---- T5's gated GELU

typedef struct gated_call {
    ts_var *a, *b, *y;
} gated_call;

static int gated_gelu_backward(ts_tape *tape, void *call) {
    const gated_call *c = call;
    const ts_dtype dtype = c->y->value.dtype;
    TS_TRY(ts_grad_convert(tape, c->y, dtype));
    const ts_columns a = ts_whole(c->a), b = ts_whole(c->b);
    ts_grad_slot d_a, d_b;
    TS_TRY(ts_grad_begin(tape, a, dtype, false, &d_a));
    TS_TRY(ts_grad_begin(tape, b, dtype, false, &d_b));
    TS_TRY(TS_KERNEL(tape, gated_gelu_backward, c->a->value.data, c->b->value.data, c->y->grad, d_a.data, d_b.data,
                     dtype, count_of(c->y)));
    TS_TRY(ts_grad_end(tape, a, &d_a));
    return ts_grad_end(tape, b, &d_b);
}

ts_var *ts_nn_gated_gelu(ts_tape *tape, ts_var *a, ts_var *b) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    TS_ASSERT(a->value.dtype == b->value.dtype && ts_shape_equal(a->value.shape, b->value.shape));
    ts_var *y = ts_tape_new(tape, a->value.dtype, a->value.shape, a->needs_grad || b->needs_grad);
    if (!y) {
        return NULL;
    }
    ts_tape_try(tape, TS_KERNEL(tape, gated_gelu_forward, a->value.data, b->value.data, y->value.data, y->value.dtype,
                                count_of(y)));
    gated_call *c = ts_tape_note(tape, y, gated_gelu_backward, sizeof *c);
    if (c) {
        *c = (gated_call){a, b, y};
        ts_var_consume(a);
        ts_var_consume(b);
    }
    return ts_tape_status(tape) ? NULL : y;
}

// ---- rows beyond a count

typedef struct keep_rows_call {
    ts_var *x, *y;
    const int32_t *counts;
    int64_t batch;
} keep_rows_call;

static int clear_rows(ts_tape *tape, float *data, const int32_t *counts, int64_t batch, int64_t rows, int64_t width) {
    for (int64_t b = 0; b < batch && ts_tape_computes(tape); b++) {
        TS_TRY(ts_tape_zero(tape, data + (b * rows + counts[b]) * width,
                            (size_t)((rows - counts[b]) * width) * sizeof *data));
    }
    return 0;
}

static int keep_rows_backward(ts_tape *tape, void *call) {
    const keep_rows_call *c = call;
    TS_TRY(clear_rows(tape, c->y->grad, c->counts, c->batch, ts_var_rows(c->y) / c->batch, ts_var_width(c->y)));
    return ts_grad_pass(tape, c->y, c->x);
}

ts_var *ts_nn_keep_rows(ts_tape *tape, ts_var *x, const int32_t *counts, int64_t batch) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    TS_ASSERT(x->value.dtype == TS_F32 && !x->borrowed);
    ts_var *y = ts_tape_alias(tape, x, x->value.shape, x->needs_grad);
    if (!y) {
        return NULL;
    }
    ts_tape_try(tape, clear_rows(tape, y->value.data, counts, batch, ts_var_rows(y) / batch, ts_var_width(y)));
    keep_rows_call *c = ts_tape_note(tape, y, keep_rows_backward, sizeof *c);
    if (c) {
        *c = (keep_rows_call){x, y, counts, batch};
        ts_var_consume(x);
    }
    return ts_tape_status(tape) ? NULL : y;
}
