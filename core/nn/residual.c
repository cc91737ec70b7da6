// SPDX-License-Identifier: Apache-2.0
#include "core/nn/residual.h"

// ---- gated residual

typedef struct residual_call {
    ts_gated_residual args;
    ts_var *x, *y, *out;
    ts_columns gate;
} residual_call;

static int branch_gradient(ts_tape *tape, residual_call *c) {
    ts_gated_residual *args = &c->args;
    if (c->gate.var && c->gate.var->needs_grad) {
        TS_TRY(ts_grad_add_to(tape, c->gate.var));
        args->d_gate = c->gate.var->grad ? (float *)c->gate.var->grad + c->gate.first : NULL;
    }
    const ts_columns y = ts_whole(c->y);
    ts_grad_slot d_y;
    TS_TRY(ts_grad_begin(tape, y, args->dtype_y, false, &d_y));
    args->d_out = c->out->grad;
    args->d_y = d_y.data;
    TS_TRY(TS_KERNEL(tape, gated_residual_backward, args));
    return ts_grad_end(tape, y, &d_y);
}

static int residual_backward(ts_tape *tape, void *call) {
    residual_call *c = call;
    if (c->y->needs_grad || (c->gate.var && c->gate.var->needs_grad)) {
        TS_TRY(branch_gradient(tape, c));
    }
    return ts_grad_pass(tape, c->out, c->x);
}

// `last` asks for memory that is kept: x when the sum is a block's output, which waits for the next block anyway.
static ts_var *gated_residual(ts_tape *tape, ts_var *x, ts_var *y, ts_columns gate, ts_row_map map, bool last) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    TS_ASSERT(x->value.dtype == TS_F32 && ts_var_width(x) == ts_var_width(y) && ts_var_rows(x) == ts_var_rows(y));
    const bool needs_grad = x->needs_grad || y->needs_grad || (gate.var && gate.var->needs_grad);
    const bool kept = last && needs_grad, in_place = !kept && !ts_tape_keeps(tape) && !x->borrowed;
    bool ready = false;
    ts_var *out = in_place ? ts_tape_alias(tape, x, x->value.shape, needs_grad)
                  : kept   ? ts_tape_new_kept(tape, TS_F32, x->value.shape, needs_grad, &ready)
                           : ts_tape_new(tape, TS_F32, x->value.shape, needs_grad);
    if (!out) {
        return NULL;
    }
    const ts_gated_residual args = {.rows = ts_var_rows(x),
                                    .width = ts_var_width(x),
                                    .x = x->value.data,
                                    .y = y->value.data,
                                    .dtype_y = y->value.dtype,
                                    .out = out->value.data,
                                    .gate = gate.var ? ts_columns_data(gate) : NULL,
                                    .table_stride = gate.var ? ts_var_width(gate.var) : 0,
                                    .table_rows = map.table_rows,
                                    .row_index = map.index};
    if (!ready) {
        ts_tape_try(tape, TS_KERNEL(tape, gated_residual_forward, &args));
    }
    residual_call *c = ts_tape_note(tape, out, residual_backward, sizeof *c);
    if (c) {
        *c = (residual_call){args, x, y, out, gate};
        ts_var_consume(x);
        ts_var_consume(y);
    }
    return ts_tape_status(tape) ? NULL : out;
}

ts_var *ts_nn_gated_residual(ts_tape *tape, ts_var *x, ts_var *y, ts_columns gate, ts_row_map map) {
    return gated_residual(tape, x, y, gate, map, false);
}

ts_var *ts_nn_block_sum(ts_tape *tape, ts_var *x, ts_var *y, ts_columns gate, ts_row_map map) {
    return gated_residual(tape, x, y, gate, map, true);
}

// ---- broadcast sum

typedef struct add_rows_call {
    ts_var *x, *b, *out;
    int64_t first;  // row of b that belongs to row 0 of x
} add_rows_call;

// Rows of x before b begins anew.
static int64_t rows_until_wrap(const add_rows_call *c) {
    const int64_t rows = ts_var_rows(c->x), left = c->first ? ts_var_rows(c->b) - c->first : 0;
    return left < rows ? left : rows;
}

static float *rows_from(float *data, int64_t row, int64_t width) {
    return data ? data + row * width : NULL;
}

static int add_rows_backward(ts_tape *tape, void *call) {
    add_rows_call *c = call;
    if (c->b->needs_grad) {
        const int64_t width = ts_var_width(c->b), head = rows_until_wrap(c);
        TS_TRY(ts_grad_add_to(tape, c->b));
        if (head) {
            TS_TRY(TS_KERNEL(tape, sum_rows, c->out->grad, rows_from(c->b->grad, c->first, width), head, head, width));
        }
        TS_TRY(TS_KERNEL(tape, sum_rows, rows_from(c->out->grad, head, width), c->b->grad, ts_var_rows(c->out) - head,
                         ts_var_rows(c->b), width));
    }
    return ts_grad_pass(tape, c->out, c->x);
}

static int add_rows_forward(ts_tape *tape, const add_rows_call *c) {
    const int64_t width = ts_var_width(c->b), head = rows_until_wrap(c);
    const float *x = c->x->value.data, *b = c->b->value.data;
    float *out = c->out->value.data;
    if (head) {
        TS_TRY(TS_KERNEL(tape, add_rows, x, b + c->first * width, out, head, head, width));
    }
    return TS_KERNEL(tape, add_rows, x + head * width, b, out + head * width, ts_var_rows(c->x) - head,
                     ts_var_rows(c->b), width);
}

ts_var *ts_nn_add_rows_from(ts_tape *tape, ts_var *x, ts_var *b, int64_t first) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    TS_ASSERT(x->value.dtype == TS_F32 && b->value.dtype == TS_F32 && ts_var_width(x) == ts_var_width(b));
    ts_var *out = ts_tape_new(tape, TS_F32, x->value.shape, x->needs_grad || b->needs_grad);
    if (!out) {
        return NULL;
    }
    const add_rows_call made = {x, b, out, first};
    ts_tape_try(tape, add_rows_forward(tape, &made));
    add_rows_call *c = ts_tape_note(tape, out, add_rows_backward, sizeof *c);
    if (c) {
        *c = made;
        ts_var_consume(x);
        ts_var_consume(b);
    }
    return ts_tape_status(tape) ? NULL : out;
}

ts_var *ts_nn_add_rows(ts_tape *tape, ts_var *x, ts_var *b) {
    return ts_nn_add_rows_from(tape, x, b, 0);
}
