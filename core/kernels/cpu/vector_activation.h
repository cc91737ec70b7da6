// SPDX-License-Identifier: Apache-2.0
// Activations and other element-wise kernels; a template included by vector_*.c. Formulas: core/kernels/kernels.h.

TS_INLINE int check_operand(ts_dtype dtype, const char *entry) {
    return dtype == TS_F32 || dtype == TS_BF16
               ? 0
               : TS_FAIL(TS_EINTERNAL, "%s: dtype %s, wanted F32 or BF16", entry, ts_dtype_name(dtype));
}

static int gelu_forward(const void *x, void *y, ts_dtype dtype, int64_t n) {
    TS_TRY(check_operand(dtype, "gelu"));
    TS_BY_DTYPE(dtype,
                TS_FOR_ELEMENTS(n, vec_store(y, type, i, count, vec_gelu_of(type, vec_load(x, type, i, count)))));
    return 0;
}

static int gelu_backward(const void *x, const void *d_y, void *d_x, ts_dtype dtype, int64_t n) {
    TS_TRY(check_operand(dtype, "gelu"));
    TS_BY_DTYPE(dtype, TS_FOR_ELEMENTS(n, vec_store(d_x, type, i, count,
                                                    vec_load(d_y, type, i, count) *
                                                        vec_gelu_derivative_of(type, vec_load(x, type, i, count)))));
    return 0;
}

static int gated_gelu_forward(const void *a, const void *b, void *y, ts_dtype dtype, int64_t n) {
    TS_TRY(check_operand(dtype, "gated_gelu"));
    TS_BY_DTYPE(dtype, TS_FOR_ELEMENTS(
                           n, vec_store(y, type, i, count,
                                        vec_gelu_of(type, vec_load(a, type, i, count)) * vec_load(b, type, i, count))));
    return 0;
}

TS_INLINE void gated_gelu_gradient(const void *a, const void *b, const void *d_y, void *d_a, void *d_b, ts_dtype type,
                                   int64_t i, int64_t count) {
    const vec va = vec_load(a, type, i, count), vb = vec_load(b, type, i, count), d = vec_load(d_y, type, i, count);
    vec_store(d_a, type, i, count, d * vb * vec_gelu_derivative_of(type, va));
    vec_store(d_b, type, i, count, d * vec_gelu_of(type, va));
}

static int gated_gelu_backward(const void *a, const void *b, const void *d_y, void *d_a, void *d_b, ts_dtype dtype,
                               int64_t n) {
    TS_TRY(check_operand(dtype, "gated_gelu"));
    TS_BY_DTYPE(dtype, TS_FOR_ELEMENTS(n, gated_gelu_gradient(a, b, d_y, d_a, d_b, type, i, count)));
    return 0;
}

enum { SILU_LIMIT = 100 };  // beyond, silu is 0 or x to f32's precision

TS_INLINE vec silu(vec x) {
    return vec_not_below(-SILU_LIMIT, x) * vec_sigmoid(x);
}

// silu'(x) = s (1 + x (1 - s))
TS_INLINE vec silu_derivative(vec x) {
    const vec y = vec_min(vec_set(SILU_LIMIT), vec_not_below(-SILU_LIMIT, x)), s = vec_sigmoid(y);
    return s * (1.0f + y * (1.0f - s));
}

static int silu_forward(const float *x, float *y, int64_t n) {
    TS_FOR_ELEMENTS(n, vec_store_f32(y, i, count, silu(vec_load_f32(x, i, count))));
    return 0;
}

static int silu_backward(const float *x, const float *d_y, float *d_x, int64_t n) {
    TS_FOR_ELEMENTS(
        n, vec_store_f32(d_x, i, count, vec_load_f32(d_y, i, count) * silu_derivative(vec_load_f32(x, i, count))));
    return 0;
}

TS_INLINE void exp_sum(const float *x, float *y, float max, vec *sum, int64_t i, int64_t count) {
    const vec e = vec_keep(vec_exp(vec_load_f32(x, i, count) - max), count);
    vec_store_f32(y, i, count, e);
    *sum += e;
}

static void softmax_row(const float *x, float *y, int64_t width) {
    vec maxima = vec_set(x[0]);
    int64_t done = 0;
    for (; done + TS_WIDTH <= width; done += TS_WIDTH) {
        maxima = vec_max(vec_load_f32(x, done, TS_WIDTH), maxima);
    }
    float max = vec_max_of(maxima);
    for (; done < width; done++) {
        max = x[done] > max ? x[done] : max;
    }
    vec sum = {0};
    TS_FOR_VECTORS(0, width, exp_sum(x, y, max, &sum, i, count));
    const float inverse = 1.0f / vec_sum(sum);
    TS_FOR_VECTORS(0, width, vec_store_f32(y, i, count, vec_load_f32(y, i, count) * inverse));
}

static int softmax(const float *x, float *y, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > TS_PARALLEL_MIN)
    for (int64_t row = 0; row < rows; row++) {
        softmax_row(x + row * width, y + row * width, width);
    }
    return 0;
}

static int axpy(float alpha, const float *x, float *y, int64_t n) {
    TS_FOR_ELEMENTS(n, vec_store_f32(y, i, count, vec_load_f32(y, i, count) + alpha * vec_load_f32(x, i, count)));
    return 0;
}

static int scale(float alpha, float *x, int64_t n) {
    TS_FOR_ELEMENTS(n, vec_store_f32(x, i, count, vec_load_f32(x, i, count) * alpha));
    return 0;
}

static int cast(const void *from, ts_dtype from_dtype, void *to, ts_dtype to_dtype, int64_t n) {
    const bool from_operand = from_dtype == TS_F32 || from_dtype == TS_BF16;
    if (!from_operand || (to_dtype != TS_F32 && to_dtype != TS_BF16)) {
        return ts_convert(to, to_dtype, from, from_dtype, n);
    }
    if (from_dtype == to_dtype) {
        memmove(to, from, (size_t)n * ts_dtype_bytes(to_dtype));
        return 0;
    }
    TS_BY_DTYPE(from_dtype, TS_FOR_ELEMENTS(n, vec_store(to, type == TS_F32 ? TS_BF16 : TS_F32, i, count,
                                                         vec_load(from, type, i, count))));
    return 0;
}

static int add_rows(const float *a, const float *b, float *out, int64_t rows, int64_t b_rows, int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > TS_PARALLEL_MIN)
    for (int64_t row = 0; row < rows; row++) {
        const float *ar = a + row * width, *br = b + row % b_rows * width;
        float *o = out + row * width;
        TS_FOR_VECTORS(0, width, vec_store_f32(o, i, count, vec_load_f32(ar, i, count) + vec_load_f32(br, i, count)));
    }
    return 0;
}
