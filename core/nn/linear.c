// SPDX-License-Identifier: Apache-2.0
#include "core/nn/linear.h"

#include <math.h>
#include <stdio.h>

#include "core/nn/collective.h"

// ---- declaration

enum { NAME_BYTES = 256 };

// PREFIX NAME.WHAT; matrices decay.
static int declare(ts_param **out, ts_params *params, const char *prefix, const char *name, const char *what,
                   const ts_linear_shape *shape) {
    char full[NAME_BYTES];
    const int n = snprintf(full, sizeof full, "%s.%s", name, what);
    TS_ASSERT(n > 0 && n < NAME_BYTES);
    const bool matrix = strcmp(what, "weight") == 0;
    const int cut = shape->cut == TS_LINEAR_CUT_OUT ? 0 : shape->cut == TS_LINEAR_CUT_IN && matrix ? 1 : -1;
    const ts_declaration as = {.whole = matrix ? TS_SHAPE(shape->features, shape->in) : TS_SHAPE(shape->features),
                               .decay = matrix,
                               .is_operand = matrix,
                               .cut = cut,
                               .unit = shape->unit};
    return ts_params_declare_as(out, params, prefix, full, &as);
}

static bool adjacent(ts_param *const *param, int count) {
    for (int i = 1; i < count; i++) {
        if (param[i]->offset != param[i - 1]->offset + param[i - 1]->count) {
            return false;
        }
    }
    return true;
}

// Whether this rank adds the bias: of a layer cut by input features one does.
static bool adds_bias(const ts_params *params, const ts_linear_shape *shape) {
    return shape->bias &&
           (shape->cut != TS_LINEAR_CUT_IN || ts_comm_rank(ts_mesh_axis(params->mesh, TS_AXIS_TENSOR)) == 0);
}

int ts_linear_open_as(ts_linear *out, ts_params *params, const char *prefix, const char *const *names, int count,
                      const ts_linear_shape *shape) {
    TS_ASSERT(count >= 1 && count <= TS_LINEAR_MAX_PIECES);
    *out = (ts_linear){.layers = count};
    for (int i = 0; i < count; i++) {
        TS_TRY(declare(&out->weight[i], params, prefix, names[i], "weight", shape));
    }
    for (int i = 0; shape->bias && i < count; i++) {
        TS_TRY(declare(&out->bias[i], params, prefix, names[i], "bias", shape));
    }
    const int64_t features = out->weight[0]->shape.dim[0];
    out->in = out->weight[0]->shape.dim[1];
    out->out = count * features;
    const bool one = adjacent(out->weight, count) && (!shape->bias || adjacent(out->bias, count));
    out->pieces = one ? 1 : count;
    for (int i = 0; i < out->pieces; i++) {
        out->piece[i] = (ts_linear_piece){.weight = out->weight[i],
                                          .bias = adds_bias(params, shape) ? out->bias[i] : NULL,
                                          .first = i * features,
                                          .out = one ? out->out : features};
    }
    return 0;
}

int ts_linear_open_joined(ts_linear *out, ts_params *params, const char *prefix, const char *const *names, int count,
                          int64_t in, int64_t features, bool bias) {
    const ts_linear_shape shape = {.in = in, .features = features, .bias = bias};
    return ts_linear_open_as(out, params, prefix, names, count, &shape);
}

int ts_linear_open(ts_linear *out, ts_params *params, const char *prefix, const char *name, int64_t in,
                   int64_t features, bool bias) {
    return ts_linear_open_joined(out, params, prefix, &name, 1, in, features, bias);
}

int ts_linear_init(ts_linear *linear, uint64_t seed, double gain) {
    for (int i = 0; i < linear->layers; i++) {
        const ts_shape *whole = &linear->weight[i]->whole;
        const double sides = (double)(ts_shape_count(*whole) / whole->dim[0] + whole->dim[0]);
        TS_TRY(ts_param_init_normal(linear->weight[i], seed, (float)(gain * sqrt(2.0 / sides))));
        if (linear->bias[i]) {
            TS_TRY(ts_param_init_constant(linear->bias[i], 0.0f));
        }
    }
    return 0;
}

void ts_linear_mark_hidden(ts_linear *linear) {
    for (int i = 0; i < linear->layers; i++) {
        linear->weight[i]->hidden = true;
    }
}

void ts_linear_mark_precise(ts_linear *linear) {
    linear->precise = true;
    for (int i = 0; i < linear->layers; i++) {
        linear->weight[i]->is_operand = false;
    }
}

// ---- the layer

typedef struct linear_call {
    const ts_linear *linear;
    ts_var *x, *y;
    void *before_gelu;  // [rows, out] in y's dtype, or NULL
    ts_rows rows;       // of a layer whose parts are summed: which rows of the sum y has
} linear_call;

// A finished gradient of the output, [rows of x, out].
typedef struct output_gradient {
    void *data;
    ts_dtype dtype;
} output_gradient;

static ts_dtype operand_dtype(const ts_tape *tape, const ts_linear *linear) {
    return linear->precise ? TS_F32 : ts_tape_operand_dtype(tape);
}

static const void *weight_of(const ts_linear *linear, const ts_linear_piece *piece) {
    return linear->precise ? piece->weight->value : piece->weight->operand;
}

static void *columns_at(void *matrix, int64_t column, ts_dtype dtype) {
    return matrix ? (char *)matrix + (size_t)column * ts_dtype_bytes(dtype) : NULL;
}

static bool trains(const ts_tape *tape, const ts_linear *linear) {
    return ts_tape_trains(tape, linear->weight[0]);
}

// dW += dY^T X for all pieces.
static int weight_gradients(ts_tape *tape, const linear_call *c, output_gradient d_y) {
    const ts_linear *linear = c->linear;
    for (int i = 0; i < linear->pieces; i++) {
        const ts_linear_piece *piece = &linear->piece[i];
        const ts_gemm gemm = {.m = piece->out,
                              .n = linear->in,
                              .k = ts_var_rows(c->x),
                              .a = columns_at(d_y.data, piece->first, d_y.dtype),
                              .lda = linear->out,
                              .transpose_a = true,
                              .b = c->x->value.data,
                              .ldb = linear->in,
                              .c = piece->weight->grad,
                              .ldc = linear->in,
                              .dtype_ab = d_y.dtype,
                              .dtype_c = TS_F32,
                              .accumulate = true};
        TS_TRY(TS_KERNEL(tape, gemm, &gemm));
    }
    return 0;
}

// db += sum of dY's rows, for all pieces.
static int bias_gradients(ts_tape *tape, const linear_call *c, output_gradient d_y) {
    const ts_linear *linear = c->linear;
    for (int i = 0; i < linear->pieces; i++) {
        const ts_linear_piece *piece = &linear->piece[i];
        if (piece->bias) {
            TS_TRY(TS_KERNEL(tape, bias_gradient, columns_at(d_y.data, piece->first, d_y.dtype), d_y.dtype,
                             ts_var_rows(c->x), piece->out, linear->out, piece->bias->grad));
        }
    }
    return 0;
}

// dX = dY W, the pieces summed.
static int input_gradient(ts_tape *tape, const linear_call *c, output_gradient d_y) {
    const ts_linear *linear = c->linear;
    const ts_columns x = ts_whole(c->x);
    ts_grad_slot d_x;
    TS_TRY(ts_grad_begin(tape, x, c->x->grad_dtype, true, &d_x));
    for (int i = 0; i < linear->pieces; i++) {
        const ts_linear_piece *piece = &linear->piece[i];
        const ts_gemm gemm = {.m = ts_var_rows(c->x),
                              .n = linear->in,
                              .k = piece->out,
                              .a = columns_at(d_y.data, piece->first, d_y.dtype),
                              .lda = linear->out,
                              .b = weight_of(linear, piece),
                              .ldb = linear->in,
                              .c = d_x.data,
                              .ldc = linear->in,
                              .dtype_ab = d_y.dtype,
                              .dtype_c = d_x.dtype,
                              .accumulate = d_x.accumulate || i > 0};
        TS_TRY(TS_KERNEL(tape, gemm, &gemm));
    }
    return ts_grad_end(tape, x, &d_x);
}

static int linear_backward(ts_tape *tape, void *call) {
    linear_call *c = call;
    const ts_linear *linear = c->linear;
    if (c->before_gelu) {
        TS_TRY(ts_grad_convert(tape, c->y, c->y->value.dtype));
        TS_TRY(TS_KERNEL(tape, gelu_backward, c->before_gelu, c->y->grad, c->y->grad, c->y->value.dtype,
                         ts_shape_count(c->y->value.shape)));
    }
    if (trains(tape, linear)) {  // before rounding to the operand dtype
        TS_TRY(bias_gradients(tape, c, (output_gradient){c->y->grad, c->y->grad_dtype}));
    }
    TS_TRY(ts_grad_convert(tape, c->y, operand_dtype(tape, linear)));
    const output_gradient d_y = {c->y->grad, c->y->grad_dtype};
    if (trains(tape, linear)) {
        TS_TRY(weight_gradients(tape, c, d_y));
    }
    return c->x->needs_grad ? input_gradient(tape, c, d_y) : 0;
}

// One piece of y = x W^T + b, its rows `row` elements apart; `before_gelu` as in ts_gemm.
static int product(ts_tape *tape, const ts_linear *linear, const ts_linear_piece *piece, const ts_var *x, void *y,
                   int64_t row, ts_dtype dtype_y, bool gelu, void *before_gelu) {
    const ts_gemm gemm = {.m = ts_var_rows(x),
                          .n = piece->out,
                          .k = linear->in,
                          .a = x->value.data,
                          .lda = linear->in,
                          .b = weight_of(linear, piece),
                          .ldb = linear->in,
                          .transpose_b = true,
                          .c = y,
                          .ldc = row,
                          .dtype_ab = x->value.dtype,
                          .dtype_c = dtype_y,
                          .bias = piece->bias ? piece->bias->value : NULL,
                          .gelu = gelu,
                          .before_gelu = before_gelu};
    return TS_KERNEL(tape, gemm, &gemm);
}

// y = x W^T + b. Several pieces are made one by one and put into their columns: products that leave gaps between the
// rows of C take another path in oneDNN, whose bits depend on the number of rows (ts_kernels_cpu_products_fixed).
static int products(ts_tape *tape, const ts_linear *linear, const ts_var *x, void *y, ts_dtype dtype_y, bool gelu,
                    void *before_gelu) {
    if (linear->pieces == 1) {
        return product(tape, linear, &linear->piece[0], x, y, linear->out, dtype_y, gelu, before_gelu);
    }
    TS_ASSERT(!gelu);
    const int64_t element = (int64_t)ts_dtype_bytes(dtype_y), rows = ts_var_rows(x);
    for (int i = 0; i < linear->pieces; i++) {
        const ts_linear_piece *piece = &linear->piece[i];
        const size_t bytes = (size_t)(rows * piece->out * element);
        void *columns = ts_pool_take(tape, bytes);
        if (!columns) {
            return TS_ERESOURCE;
        }
        TS_TRY(product(tape, linear, piece, x, columns, piece->out, dtype_y, false, NULL));
        TS_TRY(TS_KERNEL(tape, copy_rows, columns, piece->out * element, columns_at(y, piece->first, dtype_y),
                         linear->out * element, rows, piece->out * element));
        ts_pool_give(tape, columns, bytes);
    }
    return 0;
}

// Notes the call, which makes y from x in `backward`'s forward.
static ts_var *note(ts_tape *tape, const linear_call *made, ts_backward_fn backward) {
    const ts_linear *linear = made->linear;
    ts_tape_add_flops(tape, 2.0 * (double)ts_var_rows(made->x) * (double)linear->in * (double)linear->out);
    linear_call *c = ts_tape_note(tape, made->y, backward, sizeof *c);
    if (c) {
        *c = *made;
        for (int i = 0; i < linear->pieces; i++) {
            ts_var_consume(made->x);  // several pieces add up, in f32
        }
    }
    return ts_tape_status(tape) ? NULL : made->y;
}

static ts_var *linear_forward(ts_tape *tape, const ts_linear *linear, ts_var *x, ts_dtype dtype_y, bool gelu) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    TS_ASSERT(x->value.dtype == operand_dtype(tape, linear) && ts_var_width(x) == linear->in);
    const ts_shape shape = ts_var_shape_with_width(x, linear->out);
    const bool needs_grad = x->needs_grad || trains(tape, linear);
    bool ready = false;
    // Of a layer with GELU what comes before it is kept, and GELU, which is cheap, made again.
    ts_var *y = gelu || linear->again ? ts_tape_new(tape, dtype_y, shape, needs_grad)
                                      : ts_tape_new_kept(tape, dtype_y, shape, needs_grad, &ready);
    if (!y) {
        return NULL;
    }
    void *before_gelu = gelu && y->needs_grad ? ts_tape_alloc_kept(tape, ts_tensor_bytes(&y->value), &ready) : NULL;
    if (gelu && ready) {
        ts_tape_try(tape, TS_KERNEL(tape, gelu_forward, before_gelu, y->value.data, dtype_y, ts_shape_count(shape)));
    } else if (!ready && !ts_tape_status(tape)) {
        ts_tape_try(tape, products(tape, linear, x, y->value.data, dtype_y, gelu, before_gelu));
    }
    return note(tape, &(linear_call){.linear = linear, .x = x, .y = y, .before_gelu = before_gelu}, linear_backward);
}

ts_var *ts_nn_linear(ts_tape *tape, const ts_linear *linear, ts_var *x, ts_dtype dtype_y) {
    return linear_forward(tape, linear, x, dtype_y, false);
}

ts_var *ts_nn_linear_gelu(ts_tape *tape, const ts_linear *linear, ts_var *x) {
    return linear_forward(tape, linear, x, operand_dtype(tape, linear), true);
}

// ---- sums over the tensor axis

static size_t sum_bytes(const linear_call *c) {
    return (size_t)(c->rows.total * c->linear->out) * ts_dtype_bytes(c->y->value.dtype);
}

static int scatter_backward(ts_tape *tape, void *call) {
    const linear_call *c = call;
    const ts_linear *linear = c->linear;
    const ts_dtype dtype = c->y->value.dtype;
    const output_gradient d_y = {ts_pool_take(tape, sum_bytes(c)), dtype};
    if (!d_y.data) {
        return TS_ERESOURCE;
    }
    TS_TRY(ts_grad_convert(tape, c->y, dtype));
    TS_TRY(ts_rows_gather(tape, c->rows, c->y->grad, d_y.data, linear->out, dtype));
    if (trains(tape, linear)) {
        TS_TRY(bias_gradients(tape, c, d_y));
        TS_TRY(weight_gradients(tape, c, d_y));
    }
    if (c->x->needs_grad) {
        TS_TRY(input_gradient(tape, c, d_y));
    }
    ts_pool_give(tape, d_y.data, sum_bytes(c));
    return 0;
}

static int scatter_forward(ts_tape *tape, const linear_call *c) {
    const ts_dtype dtype = c->y->value.dtype;
    void *part = ts_pool_take(tape, sum_bytes(c));
    if (!part) {
        return TS_ERESOURCE;
    }
    TS_TRY(products(tape, c->linear, c->x, part, dtype, false, NULL));
    TS_TRY(ts_rows_sum(tape, c->rows, part, c->y->value.data, c->linear->out, dtype));
    ts_pool_give(tape, part, sum_bytes(c));
    return 0;
}

// ---- reproducible sums

// W [out, in] from the columns that each rank has.
static int gather_weight(ts_tape *tape, ts_rows rows, const ts_param *weight, ts_dtype dtype, void *out) {
    const int ranks = ts_comm_size(rows.comm);
    const int64_t e = (int64_t)ts_dtype_bytes(dtype), features = weight->whole.dim[0], in = weight->whole.dim[1];
    const size_t bytes = (size_t)(features * in * e);
    int64_t *const counts = ts_tape_object(tape, (size_t)ranks * sizeof *counts);
    void *parts = ts_pool_take(tape, bytes);
    if (!counts || !parts) {
        return TS_ERESOURCE;
    }
    for (int rank = 0; rank < ranks; rank++) {
        counts[rank] = features * ts_split(in / weight->unit, ranks, rank).count * weight->unit;
    }
    TS_TRY(ts_tape_all_gather(tape, rows.comm, weight->operand, parts, counts, dtype));
    const char *part = parts;
    char *to = out;
    for (int rank = 0; rank < ranks; rank++) {
        const int64_t row = counts[rank] / features * e;
        TS_TRY(TS_KERNEL(tape, copy_rows, part, row, to, in * e, features, row));
        part += features * row;
        to += row;
    }
    ts_pool_give(tape, parts, bytes);
    return 0;
}

// Own rows are multiplied by the whole matrix, as one rank does, instead of being summed from the ranks' products.
static int reproducible_forward(ts_tape *tape, const linear_call *c) {
    const ts_param *weight = c->linear->weight[0], *bias = c->linear->bias[0];
    const ts_dtype dtype = c->y->value.dtype;
    const int64_t own = ts_rows_own(c->rows).count, in = weight->whole.dim[1], out = c->linear->out;
    const size_t e = ts_dtype_bytes(dtype), x_bytes = (size_t)(own * in) * e, w_bytes = (size_t)(out * in) * e;
    void *x = ts_pool_take(tape, x_bytes), *w = ts_pool_take(tape, w_bytes);
    if (!x || !w) {
        return TS_ERESOURCE;
    }
    TS_TRY(ts_rows_exchange(tape, c->rows, weight, c->x->value.data, c->linear->in, x, dtype));
    TS_TRY(gather_weight(tape, c->rows, weight, dtype, w));
    const ts_gemm gemm = {.m = own,
                          .n = out,
                          .k = in,
                          .a = x,
                          .lda = in,
                          .b = w,
                          .ldb = in,
                          .transpose_b = true,
                          .c = c->y->value.data,
                          .ldc = out,
                          .dtype_ab = dtype,
                          .dtype_c = dtype,
                          .bias = bias ? bias->value : NULL};
    TS_TRY(TS_KERNEL(tape, gemm, &gemm));
    ts_pool_give(tape, w, w_bytes);
    ts_pool_give(tape, x, x_bytes);
    return 0;
}

ts_var *ts_nn_linear_scatter(ts_tape *tape, const ts_linear *linear, ts_var *x, ts_rows rows) {
    if (ts_tape_status(tape) || ts_comm_size(rows.comm) == 1) {
        return linear_forward(tape, linear, x, operand_dtype(tape, linear), false);
    }
    const ts_dtype dtype = operand_dtype(tape, linear);
    TS_ASSERT(x->value.dtype == dtype && ts_var_width(x) == linear->in && ts_var_rows(x) == rows.total);
    bool ready;
    ts_var *y = ts_tape_new_kept(tape, dtype, TS_SHAPE(ts_rows_own(rows).count, linear->out),
                                 x->needs_grad || trains(tape, linear), &ready);
    if (!y) {
        return NULL;
    }
    const linear_call made = {.linear = linear, .x = x, .y = y, .rows = rows};
    if (!ready) {
        ts_tape_try(tape, rows.reproducible ? reproducible_forward(tape, &made) : scatter_forward(tape, &made));
    }
    return note(tape, &made, scatter_backward);
}
