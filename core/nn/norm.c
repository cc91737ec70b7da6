// SPDX-License-Identifier: Apache-2.0
#include "core/nn/norm.h"

#include "core/nn/collective.h"

// ---- layer norm

typedef struct layer_norm_call {
    ts_layer_norm args;
    ts_var *x, *y;
    ts_columns scale, shift;
} layer_norm_call;

static float *table_gradient(ts_columns c) {
    return c.var->grad ? (float *)c.var->grad + c.first : NULL;
}

static int layer_norm_backward(ts_tape *tape, void *call) {
    layer_norm_call *c = call;
    ts_layer_norm *args = &c->args;
    TS_TRY(ts_grad_convert(tape, c->y, args->dtype_y));
    args->d_y = c->y->grad;
    if (c->scale.var && c->scale.var->needs_grad) {
        TS_TRY(ts_grad_add_to(tape, c->scale.var));
        TS_TRY(ts_grad_add_to(tape, c->shift.var));
        args->d_scale = table_gradient(c->scale);
        args->d_shift = table_gradient(c->shift);
    }
    const ts_columns x = ts_whole(c->x);
    ts_grad_slot d_x;
    TS_TRY(ts_grad_begin(tape, x, TS_F32, true, &d_x));
    args->d_x = d_x.data;
    args->accumulate_d_x = d_x.accumulate;
    TS_TRY(TS_KERNEL(tape, layer_norm_backward, args));
    return ts_grad_end(tape, x, &d_x);
}

ts_var *ts_nn_layer_norm(ts_tape *tape, ts_var *x, double eps, double scale_offset, ts_columns scale, ts_columns shift,
                         ts_row_map map, ts_dtype dtype_y) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    const int64_t rows = ts_var_rows(x), width = ts_var_width(x);
    TS_ASSERT(x->value.dtype == TS_F32);
    TS_ASSERT(!scale.var == !shift.var && (!scale.var || ts_var_width(scale.var) == ts_var_width(shift.var)));
    const bool table_grad = scale.var && scale.var->needs_grad;
    ts_var *y = ts_tape_new(tape, dtype_y, x->value.shape, x->needs_grad || table_grad);
    if (!y) {
        return NULL;
    }
    ts_layer_norm args = {.rows = rows,
                          .width = width,
                          .eps = (float)eps,
                          .scale_offset = (float)scale_offset,
                          .x = x->value.data,
                          .y = y->value.data,
                          .dtype_y = dtype_y,
                          .scale = scale.var ? ts_columns_data(scale) : NULL,
                          .shift = shift.var ? ts_columns_data(shift) : NULL,
                          .table_stride = scale.var ? ts_var_width(scale.var) : 0,
                          .table_rows = map.table_rows,
                          .row_index = map.index};
    if (y->needs_grad) {
        args.mean = ts_tape_alloc(tape, (size_t)rows * sizeof(float));
        args.rstd = ts_tape_alloc(tape, (size_t)rows * sizeof(float));
    }
    if (!ts_tape_status(tape)) {
        ts_tape_try(tape, TS_KERNEL(tape, layer_norm_forward, &args));
    }
    layer_norm_call *c = ts_tape_note(tape, y, layer_norm_backward, sizeof *c);
    if (c) {
        *c = (layer_norm_call){args, x, y, scale, shift};
        ts_var_consume(x);
    }
    return ts_tape_status(tape) ? NULL : y;
}

ts_var *ts_nn_layer_norm_affine(ts_tape *tape, ts_var *x, double eps, const ts_param *weight, const ts_param *bias,
                                ts_dtype dtype_y) {
    const ts_columns scale = ts_whole(ts_tape_param(tape, weight)), shift = ts_whole(ts_tape_param(tape, bias));
    return ts_nn_layer_norm(tape, x, eps, 0.0, scale, shift, (ts_row_map){NULL, 1}, dtype_y);
}

// ---- RMS norm

typedef struct rms_norm_call {
    ts_rms_norm args;
    ts_comm *comm;  // the ranks that rows are cut over
    ts_columns x;
    ts_var *y;
} rms_norm_call;

static int total_products(ts_tape *tape, rms_norm_call *c) {
    ts_rms_norm *args = &c->args;
    args->sums = ts_pool_take(tape, (size_t)args->rows * sizeof *args->sums);
    if (!args->sums) {
        return TS_ERESOURCE;
    }
    TS_TRY(TS_KERNEL(tape, rms_norm_products, args));
    return ts_tape_all_reduce(tape, c->comm, args->sums, args->rows, TS_F32);
}

static int rms_norm_backward(ts_tape *tape, void *call) {
    rms_norm_call *c = call;
    ts_rms_norm *args = &c->args;
    const bool cut = ts_comm_size(c->comm) > 1;
    TS_TRY(ts_grad_convert(tape, c->y, args->dtype_y));
    args->d_y = c->y->grad;
    if (cut) {
        TS_TRY(total_products(tape, c));
    }
    ts_grad_slot d_x;
    TS_TRY(ts_grad_begin(tape, c->x, args->dtype_x, true, &d_x));
    args->d_x = d_x.data;
    args->accumulate_d_x = d_x.accumulate;
    TS_TRY(TS_KERNEL(tape, rms_norm_backward, args));
    if (cut) {
        ts_pool_give(tape, args->sums, (size_t)args->rows * sizeof *args->sums);
    }
    return ts_grad_end(tape, c->x, &d_x);
}

// The sums of own rows, all columns of which are brought here, gathered: in the order in which one rank adds.
static int reproducible_squares(ts_tape *tape, ts_rows rows, const ts_param *weight, const ts_rms_norm *args) {
    const int64_t own = ts_rows_own(rows).count, width = args->whole_width;
    const size_t bytes = (size_t)(own * width) * ts_dtype_bytes(args->dtype_x);
    ts_rms_norm whole = {.rows = own, .width = width, .x_row = width, .dtype_x = args->dtype_x};
    void *x = ts_pool_take(tape, bytes);
    whole.sums = ts_pool_take(tape, (size_t)own * sizeof *whole.sums);
    if (!x || !whole.sums) {
        return TS_ERESOURCE;
    }
    whole.x = x;
    TS_TRY(ts_rows_exchange(tape, rows, weight, args->x, args->x_row, x, args->dtype_x));
    TS_TRY(TS_KERNEL(tape, rms_norm_squares, &whole));
    TS_TRY(ts_rows_gather(tape, rows, whole.sums, args->sums, 1, TS_F32));
    ts_pool_give(tape, whole.sums, (size_t)own * sizeof *whole.sums);
    ts_pool_give(tape, x, bytes);
    return 0;
}

// The sums of whole rows; kept where the norm itself is made again, to save the message.
static int total_squares(ts_tape *tape, ts_rows rows, const ts_param *weight, ts_rms_norm *args) {
    bool ready;
    args->sums = ts_tape_alloc_kept(tape, (size_t)args->rows * sizeof *args->sums, &ready);
    if (!args->sums || ready) {
        return ts_tape_status(tape);
    }
    if (rows.reproducible) {
        return reproducible_squares(tape, rows, weight, args);
    }
    TS_TRY(TS_KERNEL(tape, rms_norm_squares, args));
    return ts_tape_all_reduce(tape, rows.comm, args->sums, args->rows, TS_F32);
}

ts_var *ts_nn_rms_norm(ts_tape *tape, ts_columns x, double eps, const ts_param *weight, ts_rope rope,
                       ts_dtype dtype_y) {
    return ts_nn_rms_norm_cut(tape, (ts_rows){0}, x, eps, weight, rope, dtype_y);
}

ts_var *ts_nn_rms_norm_cut(ts_tape *tape, ts_rows rows, ts_columns x, double eps, const ts_param *weight, ts_rope rope,
                           ts_dtype dtype_y) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    TS_ASSERT(weight->count == x.width);
    const bool trains = ts_tape_trains(tape, weight);
    ts_var *y = ts_tape_new(tape, dtype_y, ts_var_shape_with_width(x.var, x.width), x.var->needs_grad || trains);
    if (!y) {
        return NULL;
    }
    ts_rms_norm args = {.rows = ts_var_rows(x.var),
                        .width = x.width,
                        .x_row = ts_var_width(x.var),
                        .y_row = x.width,
                        .eps = (float)eps,
                        .x = ts_columns_data(x),
                        .y = y->value.data,
                        .dtype_x = x.var->value.dtype,
                        .dtype_y = dtype_y,
                        .weight = weight->value,
                        .cosine = rope.cosine,
                        .sine = rope.sine,
                        .positions = rope.positions,
                        .head_dim = rope.head_dim,
                        .whole_width = ts_shape_count(weight->whole),
                        .d_weight = weight->grad};
    if (y->needs_grad) {
        args.rstd = ts_tape_alloc(tape, (size_t)args.rows * sizeof(float));
    }
    if (!ts_tape_status(tape) && ts_comm_size(rows.comm) > 1) {
        ts_tape_try(tape, total_squares(tape, rows, weight, &args));
    }
    if (!ts_tape_status(tape)) {
        ts_tape_try(tape, TS_KERNEL(tape, rms_norm_forward, &args));
    }
    rms_norm_call *c = ts_tape_note(tape, y, rms_norm_backward, sizeof *c);
    if (c) {
        *c = (rms_norm_call){args, rows.comm, x, y};
        if (x.width == ts_var_width(x.var)) {
            ts_var_consume(x.var);
        }
    }
    return ts_tape_status(tape) ? NULL : y;
}
