// SPDX-License-Identifier: Apache-2.0
#include "core/nn/attention.h"

#include <math.h>
#include <stdlib.h>

typedef struct attention_call {
    ts_attention args;
    ts_columns q, k, v;
    ts_var *bias_strip, *out;
} attention_call;

static int attention_backward(ts_tape *tape, void *call) {
    attention_call *c = call;
    ts_attention *args = &c->args;
    TS_TRY(ts_grad_convert(tape, c->out, args->dtype));
    args->d_out = c->out->grad;
    if (c->bias_strip && c->bias_strip->needs_grad) {
        TS_TRY(ts_grad_add_to(tape, c->bias_strip));
        args->d_bias_strip = c->bias_strip->grad;
    }
    const ts_columns x[] = {c->q, c->k, c->v};
    ts_grad_slot slot[3];
    for (int i = 0; i < 3; i++) {
        TS_TRY(ts_grad_begin(tape, x[i], args->dtype, false, &slot[i]));
    }
    args->d_q = slot[0].data;
    args->d_k = slot[1].data;
    args->d_v = slot[2].data;
    TS_TRY(TS_KERNEL(tape, attention_backward, args));
    for (int i = 0; i < 3; i++) {
        TS_TRY(ts_grad_end(tape, x[i], &slot[i]));
    }
    return 0;
}

ts_var *ts_nn_attention(ts_tape *tape, ts_attention_heads heads, ts_columns q, ts_columns k, ts_columns v,
                        ts_var *bias_strip, const int32_t *key_count) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    const int64_t width = heads.heads * heads.head_dim;
    const int64_t batch = heads.batch > 0 ? heads.batch : 1;
    const int64_t queries = ts_var_rows(q.var) / batch, keys = ts_var_rows(k.var) / batch;
    TS_ASSERT(q.width == width && k.width == width && v.width == width && ts_var_rows(v.var) == keys * heads.batch);
    TS_ASSERT(q.var->value.dtype == dtype && k.var->value.dtype == dtype && v.var->value.dtype == dtype);
    const bool bias_grad = bias_strip && bias_strip->needs_grad;
    const bool needs_grad = q.var->needs_grad || k.var->needs_grad || v.var->needs_grad || bias_grad;
    // Elementwise recompute keeps the output where an element of it is dearer than one of a projection: 4 keys
    // operations against 2 width.
    const bool dear = 2 * keys > width;
    const ts_shape shape = ts_var_shape_with_width(q.var, width);
    bool ready = false;
    ts_var *out =
        dear ? ts_tape_new_kept(tape, dtype, shape, needs_grad, &ready) : ts_tape_new(tape, dtype, shape, needs_grad);
    if (!out) {
        return NULL;
    }
    ts_attention args = {.batch = heads.batch,
                         .heads = heads.heads,
                         .head_dim = heads.head_dim,
                         .queries = queries,
                         .keys = keys,
                         .dtype = dtype,
                         .scale = (float)heads.scale,
                         .q = ts_columns_data(q),
                         .k = ts_columns_data(k),
                         .v = ts_columns_data(v),
                         .out = out->value.data,
                         .q_row = ts_var_width(q.var),
                         .k_row = ts_var_width(k.var),
                         .v_row = ts_var_width(v.var),
                         .out_row = width,
                         .q_batch = queries * ts_var_width(q.var),
                         .k_batch = keys * ts_var_width(k.var),
                         .v_batch = keys * ts_var_width(v.var),
                         .out_batch = queries * width,
                         .bias_strip = bias_strip ? bias_strip->value.data : NULL,
                         .key_count = key_count};
    if (out->needs_grad) {
        const size_t bytes = (size_t)(heads.batch * heads.heads * queries) * sizeof(float);
        args.lse = dear ? ts_tape_alloc_kept(tape, bytes, &ready) : ts_tape_alloc(tape, bytes);
    }
    if (!ready && !ts_tape_status(tape)) {
        ts_tape_try(tape, TS_KERNEL(tape, attention_forward, &args));
    }
    ts_tape_add_flops(tape, 4.0 * (double)heads.batch * (double)queries * (double)keys * (double)width);
    attention_call *c = ts_tape_note(tape, out, attention_backward, sizeof *c);
    if (c) {
        *c = (attention_call){args, q, k, v, bias_strip, out};
        ts_columns_consume(q);
        ts_columns_consume(k);
        ts_columns_consume(v);
    }
    return ts_tape_status(tape) ? NULL : out;
}

// ---- relative bias

int64_t ts_relative_bucket(int64_t key_minus_query, int64_t buckets, int64_t max_distance) {
    const int64_t half = buckets / 2, exact = half / 2;
    const int64_t base = key_minus_query > 0 ? half : 0;
    const int64_t distance = key_minus_query < 0 ? -key_minus_query : key_minus_query;
    if (distance < exact) {
        return base + distance;
    }
    // The reference takes the logarithm in f32 and truncates.
    const float ratio = logf((float)distance / (float)exact) / logf((float)max_distance / (float)exact);
    const int64_t bucket = exact + (int64_t)(ratio * (float)(half - exact));
    return base + (bucket < half - 1 ? bucket : half - 1);
}

typedef struct relative_bias_call {
    const ts_param *table;
    ts_var *strip;
    float *one_hot;  // [buckets, 2 length - 1]
} relative_bias_call;

// d_table [buckets, heads] += one_hot [buckets, P] d_strip^T [P, heads]
static int relative_bias_backward(ts_tape *tape, void *call) {
    const relative_bias_call *c = call;
    const int64_t buckets = c->table->shape.dim[0], heads = c->table->shape.dim[1], P = ts_var_width(c->strip);
    const ts_gemm gemm = {.m = buckets,
                          .n = heads,
                          .k = P,
                          .a = c->one_hot,
                          .lda = P,
                          .b = c->strip->grad,
                          .ldb = P,
                          .transpose_b = true,
                          .c = c->table->grad,
                          .ldc = heads,
                          .dtype_ab = TS_F32,
                          .dtype_c = TS_F32,
                          .accumulate = true};
    return TS_KERNEL(tape, gemm, &gemm);
}

static void fill_one_hot(float *one_hot, int64_t buckets, int64_t length, int64_t max_distance) {
    const int64_t P = 2 * length - 1;
    memset(one_hot, 0, (size_t)(buckets * P) * sizeof *one_hot);
    for (int64_t p = 0; p < P; p++) {
        one_hot[ts_relative_bucket(p - (length - 1), buckets, max_distance) * P + p] = 1.0f;
    }
}

// [buckets, 2 length - 1] in the tape's memory: column p is 1 at the bucket of p. NULL after a failure.
static float *make_one_hot(ts_tape *tape, int64_t buckets, int64_t length, int64_t max_distance) {
    const ts_device *device = ts_tape_device(tape);
    const size_t bytes = (size_t)(buckets * (2 * length - 1)) * sizeof(float);
    float *one_hot = ts_tape_alloc(tape, bytes);
    if (!one_hot || !ts_tape_computes(tape)) {
        return one_hot;
    }
    float *host = device->is_host ? one_hot : ts_malloc(bytes);
    if (host) {
        fill_one_hot(host, buckets, length, max_distance);
    }
    ts_tape_try(tape, !host ? TS_ERESOURCE : device->is_host ? 0 : device->upload(one_hot, host, bytes));
    if (host != one_hot) {
        free(host);
    }
    return ts_tape_status(tape) ? NULL : one_hot;
}

// The gather is written as a product with a one-hot matrix: tiny, and forward and backward need no kernel of their own.
ts_var *ts_nn_relative_bias(ts_tape *tape, const ts_param *table, int64_t length, int64_t max_distance) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    const int64_t buckets = table->shape.dim[0], heads = table->shape.dim[1], P = 2 * length - 1;
    ts_var *strip = ts_tape_new(tape, TS_F32, TS_SHAPE(heads, P), ts_tape_trains(tape, table));
    float *one_hot = make_one_hot(tape, buckets, length, max_distance);
    if (!strip || !one_hot) {
        return NULL;
    }
    // strip [heads, P] = table^T [heads, buckets] one_hot [buckets, P]
    const ts_gemm gemm = {.m = heads,
                          .n = P,
                          .k = buckets,
                          .a = table->value,
                          .lda = heads,
                          .transpose_a = true,
                          .b = one_hot,
                          .ldb = P,
                          .c = strip->value.data,
                          .ldc = P,
                          .dtype_ab = TS_F32,
                          .dtype_c = TS_F32};
    ts_tape_try(tape, TS_KERNEL(tape, gemm, &gemm));
    relative_bias_call *c = ts_tape_note(tape, strip, relative_bias_backward, sizeof *c);
    if (c) {
        *c = (relative_bias_call){table, strip, one_hot};
    }
    return ts_tape_status(tape) ? NULL : strip;
}
