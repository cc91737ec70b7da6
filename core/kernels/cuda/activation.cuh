// SPDX-License-Identifier: Apache-2.0
// The activations of one number. The same formulas, limits and treatment of NaN as the CPU's
// (core/kernels/cpu/vector.h), whose forms are made for vectors.
#ifndef TS_KERNELS_CUDA_ACTIVATION_CUH
#define TS_KERNELS_CUDA_ACTIVATION_CUH

#include "core/kernels/cuda/number.cuh"

// Brings x to at least, and at most, a limit; NaN, unlike with fmaxf, stays NaN.
static __device__ __forceinline__ float ts_not_below(float limit, float x) {
    return x < limit ? limit : x;
}
static __device__ __forceinline__ float ts_not_above(float limit, float x) {
    return x > limit ? limit : x;
}

// 1 / (1 + e^-x): for results that are rounded to bf16 by the special function unit alone.
template <typename T> static __device__ __forceinline__ float ts_sigmoid(float x) {
    return 1.0f / __fadd_rn(1.0f, expf(-x));
}
template <> __device__ __forceinline__ float ts_sigmoid<ts_bf16>(float x) {
    return __fdividef(1.0f, __fadd_rn(1.0f, __expf(-x)));
}

#define TS_GELU_LIMIT 10.0f   // beyond, gelu is 0 or x, and its slope 0 or 1, to f32's precision
#define TS_SILU_LIMIT 100.0f  // the same of silu

// gelu(x) = x/2 (1 + tanh(u)) = x sigmoid(2u),  2u = 2 sqrt(2/pi) (x + 0.044715 x^3)
// What is fused is said, so that every kernel that takes GELU of a number gets the same bits.
template <typename T> static __device__ __forceinline__ float ts_gelu(float x) {
    const float s = ts_sigmoid<T>(x * fmaf(0.07135481282605303f, x * x, 1.5957691216057308f));
    return ts_not_below(-TS_GELU_LIMIT, x) * s;
}

// gelu'(x) = s + x s (1 - s) (2u)'
template <typename T> static __device__ __forceinline__ float ts_gelu_slope(float x) {
    const float y = ts_not_above(TS_GELU_LIMIT, ts_not_below(-TS_GELU_LIMIT, x)), squared = y * y;
    const float s = ts_sigmoid<T>(y * (1.5957691216057308f + 0.07135481282605303f * squared));
    return s + y * (s * (1.0f - s)) * (1.5957691216057308f + 0.21406443847815909f * squared);
}

static __device__ __forceinline__ float ts_silu(float x) {
    return ts_not_below(-TS_SILU_LIMIT, x) * ts_sigmoid<float>(x);
}

// silu'(x) = s (1 + x (1 - s))
static __device__ __forceinline__ float ts_silu_slope(float x) {
    const float y = ts_not_above(TS_SILU_LIMIT, ts_not_below(-TS_SILU_LIMIT, x)), s = ts_sigmoid<float>(y);
    return s * (1.0f + y * (1.0f - s));
}

#endif
