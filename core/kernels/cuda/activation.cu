// SPDX-License-Identifier: Apache-2.0
// Activations over flat ranges. Formulas: core/kernels/kernels.h; of one number: activation.cuh.
#include "core/kernels/cuda/activation.cuh"
#include "core/kernels/cuda/flat.cuh"

// Numbers of a thread where results are bf16 or f32, and where all is f32.
template <typename T> static constexpr int COUNT = ts_flat_count<T>::N;
enum { F32S = ts_flat_count<float>::N };

// ---- GELU by tanh

template <bool ALIGNED, typename T>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) gelu_forward(const T *x, T *y, int64_t n) {
    const int64_t i = ts_flat_first<COUNT<T>>();
    float v[COUNT<T>];
    ts_flat_load<ALIGNED>(v, x, i, n);
#pragma unroll
    for (int k = 0; k < COUNT<T>; k++) {
        v[k] = ts_gelu<T>(v[k]);
    }
    ts_flat_store<ALIGNED>(y, v, i, n);
}

template <bool ALIGNED, typename T>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) gelu_backward(const T *x, const T *d_y, T *d_x, int64_t n) {
    const int64_t i = ts_flat_first<COUNT<T>>();
    float v[COUNT<T>], d[COUNT<T>];
    ts_flat_load<ALIGNED>(v, x, i, n);
    ts_flat_load<ALIGNED>(d, d_y, i, n);
#pragma unroll
    for (int k = 0; k < COUNT<T>; k++) {
        d[k] *= ts_gelu_slope<T>(v[k]);
    }
    ts_flat_store<ALIGNED>(d_x, d, i, n);
}

template <bool ALIGNED, typename T>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) gated_gelu_forward(const T *a, const T *b, T *y, int64_t n) {
    const int64_t i = ts_flat_first<COUNT<T>>();
    float va[COUNT<T>], vb[COUNT<T>];
    ts_flat_load<ALIGNED>(va, a, i, n);
    ts_flat_load<ALIGNED>(vb, b, i, n);
#pragma unroll
    for (int k = 0; k < COUNT<T>; k++) {
        va[k] = ts_gelu<T>(va[k]) * vb[k];
    }
    ts_flat_store<ALIGNED>(y, va, i, n);
}

template <bool ALIGNED, typename T>
static __global__ void __launch_bounds__(TS_FLAT_THREADS)
    gated_gelu_backward(const T *a, const T *b, const T *d_y, T *d_a, T *d_b, int64_t n) {
    const int64_t i = ts_flat_first<COUNT<T>>();
    float va[COUNT<T>], vb[COUNT<T>], d[COUNT<T>];
    ts_flat_load<ALIGNED>(va, a, i, n);
    ts_flat_load<ALIGNED>(vb, b, i, n);
    ts_flat_load<ALIGNED>(d, d_y, i, n);
#pragma unroll
    for (int k = 0; k < COUNT<T>; k++) {
        const float gelu = ts_gelu<T>(va[k]);
        va[k] = d[k] * vb[k] * ts_gelu_slope<T>(va[k]);
        vb[k] = d[k] * gelu;
    }
    ts_flat_store<ALIGNED>(d_a, va, i, n);
    ts_flat_store<ALIGNED>(d_b, vb, i, n);
}

int ts_cuda_gelu_forward(const void *x, void *y, ts_dtype dtype, int64_t n) {
    return ts_by_dtype("gelu", dtype, [&](auto number) {
        typedef decltype(number) T;
        TS_FLAT("gelu", (gelu_forward<ALIGNED, T>), ts_are_aligned(x, y), n, COUNT<T>, (const T *)x, (T *)y, n);
        return (int)TS_OK;
    });
}

static int backward(const void *x, const void *d_y, void *d_x, ts_dtype dtype, int64_t n) {
    return ts_by_dtype("gelu", dtype, [&](auto number) {
        typedef decltype(number) T;
        TS_FLAT("gelu", (gelu_backward<ALIGNED, T>), ts_are_aligned(x, d_y, d_x), n, COUNT<T>, (const T *)x,
                (const T *)d_y, (T *)d_x, n);
        return (int)TS_OK;
    });
}

static int gated_forward(const void *a, const void *b, void *y, ts_dtype dtype, int64_t n) {
    return ts_by_dtype("gated_gelu", dtype, [&](auto number) {
        typedef decltype(number) T;
        TS_FLAT("gated_gelu", (gated_gelu_forward<ALIGNED, T>), ts_are_aligned(a, b, y), n, COUNT<T>, (const T *)a,
                (const T *)b, (T *)y, n);
        return (int)TS_OK;
    });
}

static int gated_backward(const void *a, const void *b, const void *d_y, void *d_a, void *d_b, ts_dtype dtype,
                          int64_t n) {
    return ts_by_dtype("gated_gelu", dtype, [&](auto number) {
        typedef decltype(number) T;
        TS_FLAT("gated_gelu", (gated_gelu_backward<ALIGNED, T>), ts_are_aligned(a, b, d_y, d_a, d_b), n, COUNT<T>,
                (const T *)a, (const T *)b, (const T *)d_y, (T *)d_a, (T *)d_b, n);
        return (int)TS_OK;
    });
}

// ---- exact GELU: in f64, as on the CPU

static __device__ __forceinline__ double normal_distribution(double x) {
    return 0.5 * (1.0 + erf(x * 0.70710678118654752440));
}

static __global__ void __launch_bounds__(TS_FLAT_THREADS) gelu_erf_forward(const float *x, float *y, int64_t n) {
    const int64_t i = ts_flat_first<1>();
    if (i < n) {
        y[i] = (float)(x[i] * normal_distribution(x[i]));
    }
}

static __global__ void __launch_bounds__(TS_FLAT_THREADS)
    gelu_erf_backward(const float *x, const float *d_y, float *d_x, int64_t n) {
    const int64_t i = ts_flat_first<1>();
    if (i < n) {
        const double u = x[i], density = 0.39894228040143267794 * exp(-0.5 * u * u);
        d_x[i] = (float)(d_y[i] * (normal_distribution(u) + u * density));
    }
}

static int erf_forward(const float *x, float *y, int64_t n) {
    unsigned blocks = 0;
    TS_TRY(ts_flat_blocks("gelu_erf", n, 1, &blocks));
    return blocks ? TS_LAUNCH(gelu_erf_forward, blocks, TS_FLAT_THREADS, 0, x, y, n) : TS_OK;
}

static int erf_backward(const float *x, const float *d_y, float *d_x, int64_t n) {
    unsigned blocks = 0;
    TS_TRY(ts_flat_blocks("gelu_erf", n, 1, &blocks));
    return blocks ? TS_LAUNCH(gelu_erf_backward, blocks, TS_FLAT_THREADS, 0, x, d_y, d_x, n) : TS_OK;
}

// ---- SiLU

template <bool ALIGNED>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) silu_forward(const float *x, float *y, int64_t n) {
    const int64_t i = ts_flat_first<F32S>();
    float v[F32S];
    ts_flat_load<ALIGNED>(v, x, i, n);
#pragma unroll
    for (int k = 0; k < F32S; k++) {
        v[k] = ts_silu(v[k]);
    }
    ts_flat_store<ALIGNED>(y, v, i, n);
}

template <bool ALIGNED>
static __global__ void __launch_bounds__(TS_FLAT_THREADS)
    silu_backward(const float *x, const float *d_y, float *d_x, int64_t n) {
    const int64_t i = ts_flat_first<F32S>();
    float v[F32S], d[F32S];
    ts_flat_load<ALIGNED>(v, x, i, n);
    ts_flat_load<ALIGNED>(d, d_y, i, n);
#pragma unroll
    for (int k = 0; k < F32S; k++) {
        d[k] *= ts_silu_slope(v[k]);
    }
    ts_flat_store<ALIGNED>(d_x, d, i, n);
}

static int silu(const float *x, float *y, int64_t n) {
    TS_FLAT("silu", (silu_forward<ALIGNED>), ts_are_aligned(x, y), n, F32S, x, y, n);
    return TS_OK;
}

static int silu_gradient(const float *x, const float *d_y, float *d_x, int64_t n) {
    TS_FLAT("silu", (silu_backward<ALIGNED>), ts_are_aligned(x, d_y, d_x), n, F32S, x, d_y, d_x, n);
    return TS_OK;
}

void ts_cuda_fill_activation(ts_kernels *kernels) {
    kernels->gelu_forward = ts_cuda_gelu_forward;
    kernels->gelu_backward = backward;
    kernels->gelu_erf_forward = erf_forward;
    kernels->gelu_erf_backward = erf_backward;
    kernels->gated_gelu_forward = gated_forward;
    kernels->gated_gelu_backward = gated_backward;
    kernels->silu_forward = silu;
    kernels->silu_backward = silu_gradient;
}
