// SPDX-License-Identifier: Apache-2.0
// What a call of each entry of the kernel table costs, read off its arguments: what planning sums when nothing is
// computed. Pointers are not looked through but to the argument itself.
//
//   flops   of the matrix engine: GEMM and attention, multiply-add = 2; 0 for what is bound by memory
//   bytes   that must be read and written at least, each operand once
#ifndef TS_KERNELS_COST_H
#define TS_KERNELS_COST_H

#include "core/kernels/kernels.h"

typedef struct ts_cost {
    const char *entry;  // its name in the table
    ts_dtype dtype;     // of the operands
    int64_t dim[4];     // GEMM: m, n, k; attention: batch, heads, queries, keys; else rows, columns
    double flops, bytes;
    double seconds;  // that the call took; 0 when it was only counted
} ts_cost;

static inline double ts_cost_bytes_of(ts_dtype dtype) {
    return (double)ts_dtype_bytes(dtype);
}

// A call that streams through rows x columns: `each` bytes for every element.
static inline ts_cost ts_cost_stream(const char *entry, ts_dtype dtype, int64_t rows, int64_t columns, double each) {
    return (ts_cost){entry, dtype, {rows, columns}, 0, (double)rows * (double)columns * each, 0};
}

// ---- matrix engine

static inline ts_cost ts_cost_gemm(const ts_gemm *p) {
    const double m = (double)p->m, n = (double)p->n, k = (double)p->k, e = ts_cost_bytes_of(p->dtype_ab);
    const double written = ts_cost_bytes_of(p->dtype_c) * (1 + p->accumulate + (p->before_gelu != NULL));
    return (ts_cost){"gemm", p->dtype_ab, {p->m, p->n, p->k}, 2 * m * n * k, e * (m * k + k * n) + written * m * n, 0};
}

static inline ts_cost ts_cost_attention(const char *entry, const ts_attention *p, double products, double tensors) {
    const double rows = (double)p->batch * (double)p->heads * (double)p->head_dim;
    return (ts_cost){entry,
                     p->dtype,
                     {p->batch, p->heads, p->queries, p->keys},
                     2 * products * rows * (double)p->queries * (double)p->keys,
                     tensors * rows * (double)(p->queries + p->keys) * ts_cost_bytes_of(p->dtype),
                     0};
}
static inline ts_cost ts_cost_attention_forward(const ts_attention *p) {
    return ts_cost_attention("attention_forward", p, 2, 2);  // S, O
}
static inline ts_cost ts_cost_attention_backward(const ts_attention *p) {
    return ts_cost_attention("attention_backward", p, 5, 4);  // S, dP, dQ, dK, dV
}

// ---- bound by memory

static inline ts_cost ts_cost_bias_gradient(const void *d_y, ts_dtype dtype, int64_t m, int64_t n, int64_t row_stride,
                                            const float *d_bias) {
    (void)d_y, (void)row_stride, (void)d_bias;
    return ts_cost_stream("bias_gradient", dtype, m, n, ts_cost_bytes_of(dtype));
}
static inline ts_cost ts_cost_attention_merge(const ts_attention_merge *p) {
    return ts_cost_stream("attention_merge", TS_F32, p->batch * p->queries, p->heads * p->head_dim, 12);
}
static inline ts_cost ts_cost_layer_norm_forward(const ts_layer_norm *p) {
    return ts_cost_stream("layer_norm_forward", p->dtype_y, p->rows, p->width, 4 + ts_cost_bytes_of(p->dtype_y));
}
static inline ts_cost ts_cost_layer_norm_backward(const ts_layer_norm *p) {
    const double d_x = p->accumulate_d_x ? 8 : 4;
    return ts_cost_stream("layer_norm_backward", p->dtype_y, p->rows, p->width, 4 + d_x + ts_cost_bytes_of(p->dtype_y));
}
static inline ts_cost ts_cost_rms_norm_forward(const ts_rms_norm *p) {
    return ts_cost_stream("rms_norm_forward", p->dtype_y, p->rows, p->width,
                          ts_cost_bytes_of(p->dtype_x) + ts_cost_bytes_of(p->dtype_y));
}
static inline ts_cost ts_cost_rms_norm_backward(const ts_rms_norm *p) {
    return ts_cost_stream("rms_norm_backward", p->dtype_y, p->rows, p->width,
                          2 * ts_cost_bytes_of(p->dtype_x) + ts_cost_bytes_of(p->dtype_y));
}
static inline ts_cost ts_cost_rms_norm_squares(const ts_rms_norm *p) {
    return ts_cost_stream("rms_norm_squares", p->dtype_x, p->rows, p->width, ts_cost_bytes_of(p->dtype_x));
}
static inline ts_cost ts_cost_rms_norm_products(const ts_rms_norm *p) {
    return ts_cost_stream("rms_norm_products", p->dtype_x, p->rows, p->width,
                          ts_cost_bytes_of(p->dtype_x) + ts_cost_bytes_of(p->dtype_y));
}
static inline ts_cost ts_cost_gated_residual_forward(const ts_gated_residual *p) {
    return ts_cost_stream("gated_residual_forward", p->dtype_y, p->rows, p->width, 8 + ts_cost_bytes_of(p->dtype_y));
}
static inline ts_cost ts_cost_gated_residual_backward(const ts_gated_residual *p) {
    return ts_cost_stream("gated_residual_backward", p->dtype_y, p->rows, p->width,
                          4 + 2 * ts_cost_bytes_of(p->dtype_y));
}
static inline ts_cost ts_cost_patches(const char *entry, const ts_patchify *p) {
    return ts_cost_stream(entry, p->dtype_tokens, p->batch * p->frames, p->height * p->width * p->channels,
                          4 + ts_cost_bytes_of(p->dtype_tokens));
}
static inline ts_cost ts_cost_patchify(const ts_patchify *p) {
    return ts_cost_patches("patchify", p);
}
static inline ts_cost ts_cost_unpatchify(const ts_patchify *p) {
    return ts_cost_patches("unpatchify", p);
}
static inline ts_cost ts_cost_gelu_forward(const void *x, const void *y, ts_dtype dtype, int64_t n) {
    (void)x, (void)y;
    return ts_cost_stream("gelu_forward", dtype, 1, n, 2 * ts_cost_bytes_of(dtype));
}
static inline ts_cost ts_cost_gelu_backward(const void *x, const void *d_y, const void *d_x, ts_dtype dtype,
                                            int64_t n) {
    (void)x, (void)d_y, (void)d_x;
    return ts_cost_stream("gelu_backward", dtype, 1, n, 3 * ts_cost_bytes_of(dtype));
}
static inline ts_cost ts_cost_gelu_erf_forward(const float *x, const float *y, int64_t n) {
    (void)x, (void)y;
    return ts_cost_stream("gelu_erf_forward", TS_F32, 1, n, 8);
}
static inline ts_cost ts_cost_gelu_erf_backward(const float *x, const float *d_y, const float *d_x, int64_t n) {
    (void)x, (void)d_y, (void)d_x;
    return ts_cost_stream("gelu_erf_backward", TS_F32, 1, n, 12);
}
static inline ts_cost ts_cost_gated_gelu_forward(const void *a, const void *b, const void *y, ts_dtype dtype,
                                                 int64_t n) {
    (void)a, (void)b, (void)y;
    return ts_cost_stream("gated_gelu_forward", dtype, 1, n, 3 * ts_cost_bytes_of(dtype));
}
static inline ts_cost ts_cost_gated_gelu_backward(const void *a, const void *b, const void *d_y, const void *d_a,
                                                  const void *d_b, ts_dtype dtype, int64_t n) {
    (void)a, (void)b, (void)d_y, (void)d_a, (void)d_b;
    return ts_cost_stream("gated_gelu_backward", dtype, 1, n, 5 * ts_cost_bytes_of(dtype));
}
static inline ts_cost ts_cost_silu_forward(const float *x, const float *y, int64_t n) {
    (void)x, (void)y;
    return ts_cost_stream("silu_forward", TS_F32, 1, n, 8);
}
static inline ts_cost ts_cost_silu_backward(const float *x, const float *d_y, const float *d_x, int64_t n) {
    (void)x, (void)d_y, (void)d_x;
    return ts_cost_stream("silu_backward", TS_F32, 1, n, 12);
}
static inline ts_cost ts_cost_embedding_forward(const float *table, const int32_t *id, const float *y, int64_t n,
                                                int64_t width) {
    (void)table, (void)id, (void)y;
    return ts_cost_stream("embedding_forward", TS_F32, n, width, 8);
}
static inline ts_cost ts_cost_embedding_backward(const float *d_y, const int32_t *id, const float *d_table, int64_t n,
                                                 int64_t width) {
    (void)d_y, (void)id, (void)d_table;
    return ts_cost_stream("embedding_backward", TS_F32, n, width, 12);
}
static inline ts_cost ts_cost_sinusoid(const float *t, const float *y, int64_t rows, int64_t half) {
    (void)t, (void)y;
    return ts_cost_stream("sinusoid", TS_F32, rows, 2 * half, 4);
}
static inline ts_cost ts_cost_add_rows(const float *a, const float *b, const float *out, int64_t rows, int64_t b_rows,
                                       int64_t width) {
    (void)a, (void)b, (void)out, (void)b_rows;
    return ts_cost_stream("add_rows", TS_F32, rows, width, 12);
}
static inline ts_cost ts_cost_sum_rows(const float *d_out, const float *d_b, int64_t rows, int64_t b_rows,
                                       int64_t width) {
    (void)d_out, (void)d_b, (void)b_rows;
    return ts_cost_stream("sum_rows", TS_F32, rows, width, 4);
}
static inline ts_cost ts_cost_copy_rows(const void *from, int64_t from_stride, const void *to, int64_t to_stride,
                                        int64_t rows, int64_t row_bytes) {
    (void)from, (void)from_stride, (void)to, (void)to_stride;
    return ts_cost_stream("copy_rows", TS_U8, rows, row_bytes, 2);
}
static inline ts_cost ts_cost_axpy(float alpha, const float *x, const float *y, int64_t n) {
    (void)alpha, (void)x, (void)y;
    return ts_cost_stream("axpy", TS_F32, 1, n, 12);
}
static inline ts_cost ts_cost_cast(const void *from, ts_dtype from_dtype, const void *to, ts_dtype to_dtype,
                                   int64_t n) {
    (void)from, (void)to;
    return ts_cost_stream("cast", to_dtype, 1, n, ts_cost_bytes_of(from_dtype) + ts_cost_bytes_of(to_dtype));
}
static inline ts_cost ts_cost_mix(const ts_mix *p) {
    return ts_cost_stream("mix", TS_F32, p->rows, p->width, 16);
}
static inline ts_cost ts_cost_combine(const ts_combine *p) {
    return ts_cost_stream("combine", TS_F32, 1, p->n, 4 * (1 + p->terms));
}
static inline ts_cost ts_cost_mse(const ts_mse *p) {
    return ts_cost_stream("mse", TS_F32, p->rows, p->width, 12);
}

#endif
