// SPDX-License-Identifier: Apache-2.0
#include "core/nn/attention.h"

#include <math.h>
#include <stdlib.h>

typedef struct attention_call {
    ts_attention args;               // of one context: k and v point at the first
    ts_attention_contexts contexts;  // several kernel calls, if there is more than one
    ts_columns q, k, v;
    ts_var *bias_strip, *out;
} attention_call;

static void *at(const void *data, int64_t elements, ts_dtype dtype) {
    return data ? (char *)(uintptr_t)data + elements * (int64_t)ts_dtype_bytes(dtype) : NULL;
}

// The call's arguments for context `c`: its queries, and its keys.
static ts_attention context_args(const attention_call *call, int64_t c) {
    ts_attention p = call->args;
    if (call->contexts.count > 1) {
        const int64_t first = call->contexts.first[c], keys = c * p.keys;
        p.queries = call->contexts.first[c + 1] - first;
        p.q = at(p.q, first * p.q_row, p.dtype);
        p.d_q = at(p.d_q, first * p.q_row, p.dtype);
        p.out = at(p.out, first * p.out_row, p.dtype);
        p.d_out = at(p.d_out, first * p.out_row, p.dtype);
        p.k = at(p.k, keys * p.k_row, p.dtype);
        p.d_k = at(p.d_k, keys * p.k_row, p.dtype);
        p.v = at(p.v, keys * p.v_row, p.dtype);
        p.d_v = at(p.d_v, keys * p.v_row, p.dtype);
        p.lse = at(p.lse, first * p.batch * p.heads, TS_F32);  // that of each context is packed
    }
    return p;
}

static int forward_all(ts_tape *tape, const attention_call *call) {
    for (int64_t c = 0; c < call->contexts.count; c++) {
        const ts_attention args = context_args(call, c);
        if (args.queries > 0 || call->contexts.count == 1) {
            TS_TRY(TS_KERNEL(tape, attention_forward, &args));
        }
    }
    return 0;
}

// A context that no query sees gets gradients of zero from its call.
static int backward_all(ts_tape *tape, const attention_call *call) {
    for (int64_t c = 0; c < call->contexts.count; c++) {
        const ts_attention args = context_args(call, c);
        TS_TRY(TS_KERNEL(tape, attention_backward, &args));
    }
    return 0;
}

static int attention_backward(ts_tape *tape, void *context) {
    attention_call *call = context;
    ts_attention *args = &call->args;
    TS_TRY(ts_grad_convert(tape, call->out, args->dtype));
    args->d_out = call->out->grad;
    if (call->bias_strip && call->bias_strip->needs_grad) {
        TS_TRY(ts_grad_add_to(tape, call->bias_strip));
        args->d_bias_strip = call->bias_strip->grad;
    }
    const ts_columns x[] = {call->q, call->k, call->v};
    ts_grad_slot slot[3];
    for (int i = 0; i < 3; i++) {
        TS_TRY(ts_grad_begin(tape, x[i], args->dtype, false, &slot[i]));
    }
    args->d_q = slot[0].data;
    args->d_k = slot[1].data;
    args->d_v = slot[2].data;
    TS_TRY(backward_all(tape, call));
    for (int i = 0; i < 3; i++) {
        TS_TRY(ts_grad_end(tape, x[i], &slot[i]));
    }
    return 0;
}

// Contexts with equally many queries each are as many batch items of one context.
static bool are_even(ts_attention_contexts contexts) {
    for (int64_t c = 1; c < contexts.count; c++) {
        if (contexts.first[c + 1] - contexts.first[c] != contexts.first[1]) {
            return false;
        }
    }
    return true;
}

// The call of q, k and v, but for what its result needs. A batch item is `queries` rows of q and `keys` of k and v.
static attention_call call_of(ts_attention_heads heads, ts_columns q, ts_columns k, ts_columns v,
                              ts_attention_contexts contexts) {
    const int64_t batch = heads.batch > 0 ? heads.batch : 1, parts = are_even(contexts) ? contexts.count : 1;
    const int64_t queries = ts_var_rows(q.var) / batch / parts, keys = ts_var_rows(k.var) / batch / contexts.count;
    const int64_t keys_of_item = parts > 1 ? keys : keys * contexts.count;
    const ts_attention args = {.batch = heads.batch * parts,
                               .heads = heads.heads,
                               .head_dim = heads.head_dim,
                               .queries = queries,
                               .keys = keys,
                               .dtype = q.var->value.dtype,
                               .scale = (float)heads.scale,
                               .q = ts_columns_data(q),
                               .k = ts_columns_data(k),
                               .v = ts_columns_data(v),
                               .q_row = ts_var_width(q.var),
                               .k_row = ts_var_width(k.var),
                               .v_row = ts_var_width(v.var),
                               .out_row = q.width,
                               .q_batch = queries * ts_var_width(q.var),
                               .k_batch = keys_of_item * ts_var_width(k.var),
                               .v_batch = keys_of_item * ts_var_width(v.var),
                               .out_batch = queries * q.width};
    return (attention_call){args, parts == contexts.count ? (ts_attention_contexts){1, NULL} : contexts, q, k, v, NULL,
                            NULL};
}

// Runs a call and notes it.
static ts_var *attend(ts_tape *tape, attention_call call, bool needs_grad) {
    ts_attention *args = &call.args;
    // Elementwise recompute keeps the output where an element of it is dearer than one of a projection: 4 keys
    // operations against 2 width.
    const bool dear = 2 * args->keys > call.q.width;
    const ts_shape shape = ts_var_shape_with_width(call.q.var, call.q.width);
    bool ready = false;
    ts_var *out = dear ? ts_tape_new_kept(tape, args->dtype, shape, needs_grad, &ready)
                       : ts_tape_new(tape, args->dtype, shape, needs_grad);
    if (!out) {
        return NULL;
    }
    call.out = out;
    args->out = out->value.data;
    const double scores = (double)args->batch * (double)args->heads * (double)args->queries;
    if (out->needs_grad) {
        const size_t bytes = (size_t)(args->batch * args->heads * args->queries) * sizeof(float);
        args->lse = dear ? ts_tape_alloc_kept(tape, bytes, &ready) : ts_tape_alloc(tape, bytes);
    }
    if (!ready && !ts_tape_status(tape)) {
        ts_tape_try(tape, forward_all(tape, &call));
    }
    ts_tape_add_flops(tape, 4.0 * scores * (double)args->keys * (double)args->head_dim);
    attention_call *c = ts_tape_note(tape, out, attention_backward, sizeof *c);
    if (c) {
        *c = call;
        ts_columns_consume(call.q);
        ts_columns_consume(call.k);
        ts_columns_consume(call.v);
    }
    return ts_tape_status(tape) ? NULL : out;
}

// Asserts that the operands fit each other.
static void check_operands(const ts_tape *tape, ts_attention_heads heads, ts_columns q, ts_columns k, ts_columns v) {
    const int64_t width = heads.heads * heads.head_dim, batch = heads.batch > 0 ? heads.batch : 1;
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    TS_ASSERT(q.width == width && k.width == width && v.width == width);
    TS_ASSERT(ts_var_rows(v.var) == ts_var_rows(k.var) / batch * heads.batch);
    TS_ASSERT(q.var->value.dtype == dtype && k.var->value.dtype == dtype && v.var->value.dtype == dtype);
}

ts_var *ts_nn_attention(ts_tape *tape, ts_attention_heads heads, ts_columns q, ts_columns k, ts_columns v,
                        ts_var *bias_strip, const int32_t *key_count) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    check_operands(tape, heads, q, k, v);
    attention_call call = call_of(heads, q, k, v, (ts_attention_contexts){1, NULL});
    call.bias_strip = bias_strip;
    call.args.bias_strip = bias_strip ? bias_strip->value.data : NULL;
    call.args.key_count = key_count;
    const bool bias_grad = bias_strip && bias_strip->needs_grad;
    return attend(tape, call, q.var->needs_grad || k.var->needs_grad || v.var->needs_grad || bias_grad);
}

ts_var *ts_nn_attention_contexts(ts_tape *tape, ts_attention_heads heads, ts_columns q, ts_columns k, ts_columns v,
                                 ts_attention_contexts contexts) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    check_operands(tape, heads, q, k, v);
    TS_ASSERT(contexts.count >= 1 && ts_var_rows(k.var) % (contexts.count * (heads.batch > 0 ? heads.batch : 1)) == 0);
    return attend(tape, call_of(heads, q, k, v, contexts), q.var->needs_grad || k.var->needs_grad || v.var->needs_grad);
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
