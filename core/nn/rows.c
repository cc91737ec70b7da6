// SPDX-License-Identifier: Apache-2.0
#include "core/nn/rows.h"

#include "core/nn/collective.h"

// ---- rows of one communicator

// Elements of each rank's part; NULL after a failure.
static int64_t *counts_of(ts_tape *tape, ts_rows rows, int64_t width) {
    const int ranks = ts_comm_size(rows.comm);
    int64_t *counts = ts_tape_object(tape, (size_t)ranks * sizeof *counts);
    for (int rank = 0; counts && rank < ranks; rank++) {
        counts[rank] = ts_split(rows.total, ranks, rank).count * width;
    }
    return counts;
}

int ts_rows_gather(ts_tape *tape, ts_rows rows, const void *own, void *all, int64_t width, ts_dtype dtype) {
    const int64_t *counts = counts_of(tape, rows, width);
    return counts ? ts_tape_all_gather(tape, rows.comm, own, all, counts, dtype) : ts_tape_status(tape);
}

int ts_rows_sum(ts_tape *tape, ts_rows rows, const void *all, void *own, int64_t width, ts_dtype dtype) {
    const int64_t *counts = counts_of(tape, rows, width);
    return counts ? ts_tape_reduce_scatter(tape, rows.comm, all, own, counts, dtype) : ts_tape_status(tape);
}

// Columns of the cut dimension that a rank has.
static ts_part columns_of(ts_rows rows, const ts_param *cut, int rank) {
    const ts_part part = ts_split(cut->whole.dim[cut->cut] / cut->unit, ts_comm_size(rows.comm), rank);
    return (ts_part){part.first * cut->unit, part.count * cut->unit};
}

static int exchange_columns(ts_tape *tape, ts_rows rows, const ts_param *cut, const void *x, void *received,
                            ts_dtype dtype) {
    const int ranks = ts_comm_size(rows.comm), own = ts_comm_rank(rows.comm);
    int64_t *const to = counts_of(tape, rows, columns_of(rows, cut, own).count);
    int64_t *const from = ts_tape_object(tape, (size_t)ranks * sizeof *from);
    for (int rank = 0; from && rank < ranks; rank++) {
        from[rank] = ts_rows_own(rows).count * columns_of(rows, cut, rank).count;
    }
    return to && from ? ts_tape_all_to_all(tape, rows.comm, x, to, received, from, dtype) : ts_tape_status(tape);
}

int ts_rows_exchange(ts_tape *tape, ts_rows rows, const ts_param *cut, const void *x, int64_t x_row, void *out,
                     ts_dtype dtype) {
    const int64_t e = (int64_t)ts_dtype_bytes(dtype), width = cut->whole.dim[cut->cut];
    const int64_t own = ts_rows_own(rows).count, columns = columns_of(rows, cut, ts_comm_rank(rows.comm)).count;
    const size_t sent = (size_t)(rows.total * columns * e), got = (size_t)(own * width * e);
    void *packed = ts_pool_take(tape, sent), *parts = ts_pool_take(tape, got);
    if (!packed || !parts) {
        return TS_ERESOURCE;
    }
    TS_TRY(TS_KERNEL(tape, copy_rows, x, x_row * e, packed, columns * e, rows.total, columns * e));
    TS_TRY(exchange_columns(tape, rows, cut, packed, parts, dtype));
    const char *part = parts;
    for (int rank = 0; rank < ts_comm_size(rows.comm); rank++) {
        const ts_part c = columns_of(rows, cut, rank);
        TS_TRY(TS_KERNEL(tape, copy_rows, part, c.count * e, (char *)out + c.first * e, width * e, own, c.count * e));
        part += own * c.count * e;
    }
    ts_pool_give(tape, parts, got);
    ts_pool_give(tape, packed, sent);
    return 0;
}

typedef struct gather_call {
    ts_rows rows;
    ts_var *x, *all;
} gather_call;

static int gather_backward(ts_tape *tape, void *call) {
    const gather_call *c = call;
    const ts_columns x = ts_whole(c->x);
    const ts_dtype dtype = c->x->value.dtype;
    ts_grad_slot d_x;
    TS_TRY(ts_grad_convert(tape, c->all, dtype));
    TS_TRY(ts_grad_begin(tape, x, dtype, false, &d_x));
    TS_TRY(ts_rows_sum(tape, c->rows, c->all->grad, d_x.data, ts_var_width(c->x), dtype));
    return ts_grad_end(tape, x, &d_x);
}

ts_var *ts_nn_gather_rows(ts_tape *tape, ts_var *x, ts_rows rows) {
    if (ts_tape_status(tape) || ts_comm_size(rows.comm) == 1) {
        return ts_tape_status(tape) ? NULL : x;
    }
    const int64_t width = ts_var_width(x);
    TS_ASSERT(ts_var_rows(x) == ts_rows_own(rows).count);
    ts_var *all = ts_tape_new(tape, x->value.dtype, TS_SHAPE(rows.total, width), x->needs_grad);
    if (!all) {
        return NULL;
    }
    ts_tape_try(tape, ts_rows_gather(tape, rows, x->value.data, all->value.data, width, x->value.dtype));
    gather_call *c = ts_tape_note(tape, all, gather_backward, sizeof *c);
    if (c) {
        *c = (gather_call){rows, x, all};
        ts_var_consume(x);
    }
    return ts_tape_status(tape) ? NULL : all;
}

// ---- tokens

ts_tokens ts_tokens_of(const ts_mesh *mesh, int64_t batch, int64_t tokens) {
    const ts_comm *sequence = ts_mesh_axis(mesh, TS_AXIS_SEQUENCE), *tensor = ts_mesh_axis(mesh, TS_AXIS_TENSOR);
    ts_tokens t = {.batch = batch, .tokens = tokens};
    t.part = ts_split(tokens, ts_comm_size(sequence), ts_comm_rank(sequence));
    t.rows = ts_split(batch * t.part.count, ts_comm_size(tensor), ts_comm_rank(tensor));
    return t;
}

void ts_tokens_spread(const ts_tokens *t, const float *values, int64_t per_sample, float *out) {
    TS_ASSERT(t->tokens % per_sample == 0);
    for (int64_t r = 0; r < t->rows.count; r++) {
        out[r] = values[ts_tokens_place(t, r) / (t->tokens / per_sample)];
    }
}

// Own rows from number `first` on that lie together in the whole [B, L]: their number, and where they begin there.
static int64_t own_run(const ts_tokens *t, int64_t first, int64_t *place) {
    const int64_t left = t->part.count - (t->rows.first + first) % t->part.count;  // of this sample
    *place = ts_tokens_place(t, first);
    return left < t->rows.count - first ? left : t->rows.count - first;
}

int ts_rows_take(ts_tape *tape, const ts_tokens *t, const void *x, void *out, size_t row_bytes) {
    const int64_t bytes = (int64_t)row_bytes;
    for (int64_t r = 0, run, place; r < t->rows.count; r += run) {
        run = own_run(t, r, &place);
        TS_TRY(TS_KERNEL(tape, copy_rows, (const char *)x + place * bytes, bytes, (char *)out + r * bytes, bytes, run,
                         bytes));
    }
    return 0;
}

// The other way: own rows into x, zero elsewhere.
static int spread_rows(ts_tape *tape, const ts_tokens *t, const void *own, void *x, size_t row_bytes) {
    const int64_t bytes = (int64_t)row_bytes;
    TS_TRY(ts_tape_zero(tape, x, (size_t)(t->batch * t->tokens) * row_bytes));
    for (int64_t r = 0, run, place; r < t->rows.count; r += run) {
        run = own_run(t, r, &place);
        TS_TRY(TS_KERNEL(tape, copy_rows, (const char *)own + r * bytes, bytes, (char *)x + place * bytes, bytes, run,
                         bytes));
    }
    return 0;
}

static size_t row_bytes(const ts_var *x) {
    return (size_t)ts_var_width(x) * ts_dtype_bytes(x->value.dtype);
}

typedef struct tokens_call {
    ts_tokens tokens;
    ts_var *x, *y;
} tokens_call;

static int take_backward(ts_tape *tape, void *call) {
    const tokens_call *c = call;
    const ts_columns x = ts_whole(c->x);
    ts_grad_slot d_x;
    TS_TRY(ts_grad_convert(tape, c->y, c->x->value.dtype));
    TS_TRY(ts_grad_begin(tape, x, c->x->value.dtype, false, &d_x));
    TS_TRY(spread_rows(tape, &c->tokens, c->y->grad, d_x.data, row_bytes(c->x)));
    return ts_grad_end(tape, x, &d_x);
}

ts_var *ts_nn_take_tokens(ts_tape *tape, ts_var *x, const ts_mesh *mesh, const ts_tokens *t) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    TS_ASSERT(ts_var_rows(x) == t->batch * t->tokens);
    const ts_shape shape = TS_SHAPE(t->rows.count, ts_var_width(x));
    if (ts_comm_size(ts_mesh_axis(mesh, TS_AXIS_MODEL)) == 1) {
        return x;
    }
    ts_var *own = ts_tape_new(tape, x->value.dtype, shape, x->needs_grad);
    if (own) {
        ts_tape_try(tape, ts_rows_take(tape, t, x->value.data, own->value.data, row_bytes(x)));
    }
    tokens_call *c = own ? ts_tape_note(tape, own, take_backward, sizeof *c) : NULL;
    if (c) {
        *c = (tokens_call){*t, x, own};
        ts_var_consume(x);
    }
    return ts_tape_status(tape) ? NULL : own;
}

// ---- tokens of all ranks

// Elements of each model rank's own rows; sequence ranks in order, of each its tensor ranks.
static int64_t *counts_of_model(ts_tape *tape, const ts_mesh *mesh, const ts_tokens *t, int64_t width) {
    const int sequence = ts_comm_size(ts_mesh_axis(mesh, TS_AXIS_SEQUENCE));
    const int tensor = ts_comm_size(ts_mesh_axis(mesh, TS_AXIS_TENSOR));
    int64_t *counts = ts_tape_object(tape, (size_t)(sequence * tensor) * sizeof *counts);
    for (int rank = 0; counts && rank < sequence * tensor; rank++) {
        const int64_t rows = t->batch * ts_split(t->tokens, sequence, rank / tensor).count;
        counts[rank] = ts_split(rows, tensor, rank % tensor).count * width;
    }
    return counts;
}

// From [B, L_s] of each sequence rank, one after another, to [B, L].
static int order_samples(ts_tape *tape, const ts_mesh *mesh, const ts_tokens *t, const char *parts, char *whole,
                         size_t row_bytes) {
    const int sequence = ts_comm_size(ts_mesh_axis(mesh, TS_AXIS_SEQUENCE));
    const int64_t bytes = (int64_t)row_bytes;
    for (int rank = 0; rank < sequence; rank++) {
        const ts_part part = ts_split(t->tokens, sequence, rank);
        const int64_t sample = part.count * bytes;
        TS_TRY(
            TS_KERNEL(tape, copy_rows, parts, sample, whole + part.first * bytes, t->tokens * bytes, t->batch, sample));
        parts += t->batch * sample;
    }
    return 0;
}

static int collect(ts_tape *tape, const ts_mesh *mesh, const ts_tokens *t, const ts_var *x, ts_var *whole) {
    const int64_t *counts = counts_of_model(tape, mesh, t, ts_var_width(x));
    const size_t bytes = ts_tensor_bytes(&whole->value);
    void *parts = t->batch == 1 ? whole->value.data : ts_pool_take(tape, bytes);
    if (!counts || !parts) {
        return TS_ERESOURCE;
    }
    TS_TRY(ts_tape_all_gather(tape, ts_mesh_axis(mesh, TS_AXIS_MODEL), x->value.data, parts, counts, x->value.dtype));
    if (t->batch == 1) {
        return 0;
    }
    TS_TRY(order_samples(tape, mesh, t, parts, whole->value.data, row_bytes(x)));
    ts_pool_give(tape, parts, bytes);
    return 0;
}

static int collect_backward(ts_tape *tape, void *call) {
    const tokens_call *c = call;
    const ts_columns x = ts_whole(c->x);
    ts_grad_slot d_x;
    TS_TRY(ts_grad_convert(tape, c->y, c->x->value.dtype));
    TS_TRY(ts_grad_begin(tape, x, c->x->value.dtype, false, &d_x));
    TS_TRY(ts_rows_take(tape, &c->tokens, c->y->grad, d_x.data, row_bytes(c->x)));
    return ts_grad_end(tape, x, &d_x);
}

ts_var *ts_nn_collect_tokens(ts_tape *tape, ts_var *x, const ts_mesh *mesh, const ts_tokens *t) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    TS_ASSERT(ts_var_rows(x) == t->rows.count);
    if (ts_comm_size(ts_mesh_axis(mesh, TS_AXIS_MODEL)) == 1) {
        return x;
    }
    ts_var *whole = ts_tape_new(tape, x->value.dtype, TS_SHAPE(t->batch, t->tokens, ts_var_width(x)), x->needs_grad);
    if (!whole || ts_tape_try(tape, collect(tape, mesh, t, x, whole))) {
        return NULL;
    }
    tokens_call *c = ts_tape_note(tape, whole, collect_backward, sizeof *c);
    if (c) {
        *c = (tokens_call){*t, x, whole};
        ts_var_consume(x);
    }
    return ts_tape_status(tape) ? NULL : whole;
}
