// SPDX-License-Identifier: Apache-2.0
#include "core/nn/linear.h"

#include <math.h>
#include <stdio.h>

#include "core/nn/layer.h"

// ---- declaration

enum { NAME_BYTES = 256 };

// PREFIX NAME.WHAT; matrices decay.
static int declare(ts_param **out, ts_params *params, const char *prefix, const char *name, const char *what,
                   ts_shape shape) {
    char full[NAME_BYTES];
    const int n = snprintf(full, sizeof full, "%s.%s", name, what);
    TS_ASSERT(n > 0 && n < NAME_BYTES);
    const bool matrix = shape.ndim > 1;
    const ts_declaration as = {.whole = shape, .decay = matrix, .is_operand = matrix, .cut = -1};
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

int ts_linear_open_joined(ts_linear *out, ts_params *params, const char *prefix, const char *const *names, int count,
                          int64_t in, int64_t features, bool bias) {
    TS_ASSERT(count >= 1 && count <= TS_LINEAR_MAX_PIECES);
    *out = (ts_linear){.in = in, .out = count * features, .layers = count};
    for (int i = 0; i < count; i++) {
        TS_TRY(declare(&out->weight[i], params, prefix, names[i], "weight", TS_SHAPE(features, in)));
    }
    for (int i = 0; bias && i < count; i++) {
        TS_TRY(declare(&out->bias[i], params, prefix, names[i], "bias", TS_SHAPE(features)));
    }
    const bool one = adjacent(out->weight, count) && (!bias || adjacent(out->bias, count));
    out->pieces = one ? 1 : count;
    for (int i = 0; i < out->pieces; i++) {
        out->piece[i] = (ts_linear_piece){
            .weight = out->weight[i], .bias = out->bias[i], .first = i * features, .out = one ? out->out : features};
    }
    return 0;
}

int ts_linear_open(ts_linear *out, ts_params *params, const char *prefix, const char *name, int64_t in,
                   int64_t features, bool bias) {
    return ts_linear_open_joined(out, params, prefix, &name, 1, in, features, bias);
}

void ts_linear_init(ts_linear *linear, uint64_t seed, double gain) {
    for (int i = 0; i < linear->layers; i++) {
        const double sides = (double)(linear->in + linear->out / linear->layers);
        ts_param_init_normal(linear->weight[i], seed, (float)(gain * sqrt(2.0 / sides)));
        if (linear->bias[i]) {
            ts_param_init_constant(linear->bias[i], 0.0f);
        }
    }
}

void ts_linear_mark_hidden(ts_linear *linear) {
    for (int i = 0; i < linear->layers; i++) {
        linear->weight[i]->hidden = true;
    }
}

// ---- the layer

typedef struct linear_call {
    const ts_linear *linear;
    ts_var *x, *y;
    void *before_gelu;  // [rows, out] in y's dtype, or NULL
} linear_call;

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

// dW += dY^T X and db += sum of dY's rows, for one piece.
static int parameter_gradients(ts_tape *tape, const linear_call *c, const ts_linear_piece *piece, void *d_y,
                               ts_dtype dtype) {
    const ts_linear *linear = c->linear;
    const int64_t rows = ts_var_rows(c->y);
    const ts_gemm gemm = {.m = piece->out,
                          .n = linear->in,
                          .k = rows,
                          .a = columns_at(d_y, piece->first, dtype),
                          .lda = linear->out,
                          .transpose_a = true,
                          .b = c->x->value.data,
                          .ldb = linear->in,
                          .c = piece->weight->grad,
                          .ldc = linear->in,
                          .dtype_ab = dtype,
                          .dtype_c = TS_F32,
                          .accumulate = true};
    return TS_KERNEL(tape, gemm, &gemm);
}

static int bias_gradients(ts_tape *tape, const linear_call *c) {
    const ts_linear *linear = c->linear;
    for (int i = 0; i < linear->pieces; i++) {
        const ts_linear_piece *piece = &linear->piece[i];
        if (piece->bias) {
            TS_TRY(TS_KERNEL(tape, bias_gradient, columns_at(c->y->grad, piece->first, c->y->grad_dtype),
                             c->y->grad_dtype, ts_var_rows(c->y), piece->out, linear->out, piece->bias->grad));
        }
    }
    return 0;
}

// dX = dY W, the pieces summed.
static int input_gradient(ts_tape *tape, const linear_call *c, ts_dtype dtype) {
    const ts_linear *linear = c->linear;
    const ts_columns x = ts_whole(c->x);
    ts_grad_slot d_x;
    TS_TRY(ts_grad_begin(tape, x, c->x->grad_dtype, true, &d_x));
    for (int i = 0; i < linear->pieces; i++) {
        const ts_linear_piece *piece = &linear->piece[i];
        const ts_gemm gemm = {.m = ts_var_rows(c->y),
                              .n = linear->in,
                              .k = piece->out,
                              .a = columns_at(c->y->grad, piece->first, dtype),
                              .lda = linear->out,
                              .b = weight_of(linear, piece),
                              .ldb = linear->in,
                              .c = d_x.data,
                              .ldc = linear->in,
                              .dtype_ab = dtype,
                              .dtype_c = d_x.dtype,
                              .accumulate = d_x.accumulate || i > 0};
        TS_TRY(TS_KERNEL(tape, gemm, &gemm));
    }
    return ts_grad_end(tape, x, &d_x);
}

static int linear_backward(ts_tape *tape, void *call) {
    linear_call *c = call;
    const ts_linear *linear = c->linear;
    const ts_dtype dtype = operand_dtype(tape, linear);
    if (c->before_gelu) {
        TS_TRY(ts_grad_convert(tape, c->y, c->y->value.dtype));
        TS_TRY(TS_KERNEL(tape, gelu_backward, c->before_gelu, c->y->grad, c->y->grad, c->y->value.dtype,
                         ts_shape_count(c->y->value.shape)));
    }
    if (trains(tape, linear)) {
        TS_TRY(bias_gradients(tape, c));  // before rounding to the operand dtype
    }
    TS_TRY(ts_grad_convert(tape, c->y, dtype));
    for (int i = 0; i < linear->pieces && trains(tape, linear); i++) {
        TS_TRY(parameter_gradients(tape, c, &linear->piece[i], c->y->grad, dtype));
    }
    return c->x->needs_grad ? input_gradient(tape, c, dtype) : 0;
}

static ts_var *linear_forward(ts_tape *tape, const ts_linear *linear, ts_var *x, ts_dtype dtype_y, bool gelu) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    const ts_dtype dtype = operand_dtype(tape, linear);
    TS_ASSERT(x->value.dtype == dtype && ts_var_width(x) == linear->in);
    const ts_shape shape = ts_var_shape_with_width(x, linear->out);
    const bool needs_grad = x->needs_grad || trains(tape, linear);
    bool ready = false;
    // Of a layer with GELU what comes before it is kept, and GELU, which is cheap, made again.
    ts_var *y = gelu || linear->again ? ts_tape_new(tape, dtype_y, shape, needs_grad)
                                      : ts_tape_new_kept(tape, dtype_y, shape, needs_grad, &ready);
    if (!y) {
        return NULL;
    }
    const int64_t rows = ts_var_rows(x);
    void *before_gelu = gelu && y->needs_grad ? ts_tape_alloc_kept(tape, ts_tensor_bytes(&y->value), &ready) : NULL;
    if (gelu && ready) {
        ts_tape_try(tape, TS_KERNEL(tape, gelu_forward, before_gelu, y->value.data, dtype_y, rows * linear->out));
    }
    for (int i = 0; i < linear->pieces && !ready && !ts_tape_status(tape); i++) {
        const ts_linear_piece *piece = &linear->piece[i];
        const ts_gemm gemm = {.m = rows,
                              .n = piece->out,
                              .k = linear->in,
                              .a = x->value.data,
                              .lda = linear->in,
                              .b = weight_of(linear, piece),
                              .ldb = linear->in,
                              .transpose_b = true,
                              .c = columns_at(y->value.data, piece->first, dtype_y),
                              .ldc = linear->out,
                              .dtype_ab = dtype,
                              .dtype_c = dtype_y,
                              .bias = piece->bias ? piece->bias->value : NULL,
                              .gelu = gelu,
                              .before_gelu = columns_at(before_gelu, piece->first, dtype_y)};
        ts_tape_try(tape, TS_KERNEL(tape, gemm, &gemm));
    }
    ts_tape_add_flops(tape, 2.0 * (double)rows * (double)linear->in * (double)linear->out);
    linear_call *c = ts_tape_note(tape, y, linear_backward, sizeof *c);
    if (c) {
        *c = (linear_call){linear, x, y, before_gelu};
        for (int i = 0; i < linear->pieces; i++) {
            ts_var_consume(x);  // several pieces add up, in f32
        }
    }
    return ts_tape_status(tape) ? NULL : y;
}

ts_var *ts_nn_linear(ts_tape *tape, const ts_linear *linear, ts_var *x, ts_dtype dtype_y) {
    return linear_forward(tape, linear, x, dtype_y, false);
}

ts_var *ts_nn_linear_gelu(ts_tape *tape, const ts_linear *linear, ts_var *x) {
    return linear_forward(tape, linear, x, operand_dtype(tape, linear), true);
}
