// SPDX-License-Identifier: Apache-2.0
// Vectors as wide as the instruction set that the including file is compiled for, through the compilers' vector
// extension: arithmetic is written once, with operators, and compiled for every level.
//
// Include only from vector_*.c and gemm_amx.c. Loads and stores take a `count`: the constant TS_WIDTH becomes one
// instruction, anything less (the end of a row) a copy.
#ifndef TS_KERNELS_CPU_VECTOR_H
#define TS_KERNELS_CPU_VECTOR_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "core/tensor/tensor.h"

#if defined(__AVX512F__)
#define TS_WIDTH 16
#elif defined(__AVX2__)
#define TS_WIDTH 8
#else
#define TS_WIDTH 4
#endif

#define TS_INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(TS_WIDTH * 4)));
typedef uint32_t vec_u32 __attribute__((vector_size(TS_WIDTH * 4)));
typedef uint16_t vec_u16 __attribute__((vector_size(TS_WIDTH * 2)));
typedef float vec_half __attribute__((vector_size(TS_WIDTH * 2)));  // half as many floats
typedef double vec_f64 __attribute__((vector_size(TS_WIDTH * 4)));  // half as many doubles

TS_INLINE vec vec_set(float x) {
    return (vec){0} + x;
}

// Elements i .. i+count of an F32 or BF16 array; the rest of the vector is 0.
TS_INLINE vec vec_load(const void *from, ts_dtype dtype, int64_t i, int64_t count) {
    if (dtype == TS_BF16) {
        vec_u16 h = {0};
        memcpy(&h, (const uint16_t *)from + i, (size_t)count * 2);
        return (vec)(__builtin_convertvector(h, vec_u32) << 16);
    }
    vec v = {0};
    memcpy(&v, (const float *)from + i, (size_t)count * 4);
    return v;
}

TS_INLINE vec vec_load_f32(const float *from, int64_t i, int64_t count) {
    return vec_load(from, TS_F32, i, count);
}

// As ts_f32_to_bf16; the processor's own conversion, where there is one, turns subnormal numbers into 0.
TS_INLINE vec_u16 vec_to_bf16(vec v) {
#if defined(__AVX512BF16__)
    return (vec_u16)_mm512_cvtneps_pbh((__m512)v);
#else
    const vec_u32 bits = (vec_u32)v;
    const vec_u32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const vec_u32 nan = (vec_u32)((bits & 0x7fffffffu) > 0x7f800000u);
    return __builtin_convertvector(((rounded & ~nan) | ((bits | 0x400000u) & nan)) >> 16, vec_u16);
#endif
}

TS_INLINE void vec_store(void *to, ts_dtype dtype, int64_t i, int64_t count, vec v) {
    if (dtype == TS_BF16) {
        const vec_u16 h = vec_to_bf16(v);
        memcpy((uint16_t *)to + i, &h, (size_t)count * 2);
    } else {
        memcpy((float *)to + i, &v, (size_t)count * 4);
    }
}

TS_INLINE void vec_store_f32(float *to, int64_t i, int64_t count, vec v) {
    vec_store(to, TS_F32, i, count, v);
}

// The first `count` elements of v, 0 beyond: for sums over a row's end.
TS_INLINE vec vec_keep(vec v, int64_t count) {
    if (count == TS_WIDTH) {
        return v;
    }
    vec kept = {0};
    memcpy(&kept, &v, (size_t)count * 4);
    return kept;
}

TS_INLINE float vec_sum(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float sum = 0;
    for (int i = 0; i < TS_WIDTH; i++) {
        sum += v[i];
    }
    return sum;
#endif
}

// The larger and the smaller; b when either is NaN.
TS_INLINE vec vec_max(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return (vec)_mm_max_ps((__m128)a, (__m128)b);
#endif
}

TS_INLINE vec vec_min(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return (vec)_mm_min_ps((__m128)a, (__m128)b);
#endif
}

TS_INLINE float vec_max_of(vec v) {
    float max = v[0];
    for (int i = 1; i < TS_WIDTH; i++) {
        max = v[i] > max ? v[i] : max;
    }
    return max;
}

TS_INLINE vec vec_sqrt(vec v) {
#if defined(__AVX512F__)
    return (vec)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
    return (vec)_mm256_sqrt_ps((__m256)v);
#else
    return (vec)_mm_sqrt_ps((__m128)v);
#endif
}

// 1 / x to within 1 ulp, for 1 <= x: a division costs four times as much on AVX-512.
TS_INLINE vec vec_reciprocal(vec x) {
#if defined(__AVX512F__)
    const vec r = (vec)_mm512_rcp14_ps((__m512)x);
    return r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

// e^x to within 2 ulp on [-60, 60], saturating outside; NaN gives NaN. Results nearer to 0 would only lead to subnormal
// products, on which vector units are a hundred times slower.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor-like minimax polynomial; 2^n through the exponent bits.
TS_INLINE vec vec_exp(vec x) {
    const float shift = 0x1.8p23f;  // adding it rounds to an integer held in the low mantissa bits
    const vec y = vec_min(vec_set(60.0f), vec_max(vec_set(-60.0f), x));
    const vec shifted = y * 1.44269504088896341f + shift;
    const vec n = shifted - shift;
    const vec r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
    vec p = vec_set(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return (vec)((vec_u32)p + ((vec_u32)shifted << 23));
}

TS_INLINE vec vec_sigmoid(vec x) {
    return vec_reciprocal(vec_exp(-x) + 1.0f);
}

// x, but not below `limit`: where sigmoid is 0 to f32's precision, x sigmoid(x) must be so for any x. NaN stays NaN.
TS_INLINE vec vec_not_below(float limit, vec x) {
    return vec_max(vec_set(limit), x);
}

enum { GELU_LIMIT = 10 };  // beyond, gelu is 0 or x, and its slope 0 or 1, to f32's precision

// gelu(x) = x/2 (1 + tanh(u)) = x sigmoid(2u),  2u = 2 sqrt(2/pi) (x + 0.044715 x^3)
TS_INLINE vec vec_gelu(vec x) {
    const vec s = vec_sigmoid(x * (1.5957691216057308f + 0.07135481282605303f * (x * x)));
    return vec_not_below(-GELU_LIMIT, x) * s;
}

// gelu'(x) = s + x s (1 - s) (2u)'
TS_INLINE vec vec_gelu_derivative(vec x) {
    const vec y = vec_min(vec_set(GELU_LIMIT), vec_not_below(-GELU_LIMIT, x));
    const vec squared = y * y;
    const vec s = vec_sigmoid(y * (1.5957691216057308f + 0.07135481282605303f * squared));
    return s + y * (s * (1.0f - s)) * (1.5957691216057308f + 0.21406443847815909f * squared);
}

// sigmoid(x) within 2e-4 of itself, for results that are rounded to bf16: 1 / (1 + 2^z), z = -x / ln 2, with 2^z by a
// cubic polynomial in the fraction of z.
TS_INLINE vec vec_sigmoid_for_bf16(vec z) {
#if defined(__AVX512DQ__)
    const __m512 y = _mm512_max_ps(_mm512_set1_ps(-90), _mm512_min_ps(_mm512_set1_ps(90), (__m512)z));
    const vec f = (vec)_mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF);
    const vec power = ((0.07896726f * f + 0.22469316f) * f + 0.69632477f) * f + 0.99990029f;
    return (vec)_mm512_rcp14_ps(_mm512_add_ps(_mm512_scalef_ps((__m512)power, y), _mm512_set1_ps(1)));
#else
    return vec_sigmoid(z * -0.69314718f);
#endif
}

// GELU of an operand dtype: BF16 takes the cheaper sigmoid.
TS_INLINE vec vec_gelu_of(ts_dtype dtype, vec x) {
    if (dtype != TS_BF16) {
        return vec_gelu(x);
    }
    return vec_not_below(-GELU_LIMIT, x) * vec_sigmoid_for_bf16(x * (-2.3022082f - 0.10294324f * (x * x)));
}

TS_INLINE vec vec_gelu_derivative_of(ts_dtype dtype, vec x) {
    if (dtype != TS_BF16) {
        return vec_gelu_derivative(x);
    }
    const vec y = vec_min(vec_set(GELU_LIMIT), vec_not_below(-GELU_LIMIT, x)), squared = y * y;
    const vec s = vec_sigmoid_for_bf16(y * (-2.3022082f - 0.10294324f * squared));
    return s + y * (s * (1.0f - s)) * (1.5957691216057308f + 0.21406443847815909f * squared);
}

// ---- loops

// Below this many elements a parallel region costs more than it brings.
enum { TS_PARALLEL_MIN = 16384, TS_BLOCK = 4096 };

#define TS_PRAGMA(text) _Pragma(#text)

// CALL sees `i` and `count`: full vectors of [from, to), then the rest.
#define TS_FOR_VECTORS(from, to, CALL)                                                                                 \
    do {                                                                                                               \
        int64_t i = (from);                                                                                            \
        for (; i + TS_WIDTH <= (to); i += TS_WIDTH) {                                                                  \
            const int64_t count = TS_WIDTH;                                                                            \
            CALL;                                                                                                      \
        }                                                                                                              \
        if (i < (to)) {                                                                                                \
            const int64_t count = (to)-i;                                                                              \
            CALL;                                                                                                      \
        }                                                                                                              \
    } while (0)

// The same over [0, n), shared out over threads in blocks.
#define TS_FOR_ELEMENTS(n, CALL)                                                                                       \
    do {                                                                                                               \
        TS_PRAGMA(omp parallel for schedule(static) if ((n) > TS_PARALLEL_MIN))                                        \
        for (int64_t block_ = 0; block_ < (n); block_ += TS_BLOCK) {                                                   \
            const int64_t end_ = block_ + TS_BLOCK < (n) ? block_ + TS_BLOCK : (n);                                    \
            TS_FOR_VECTORS(block_, end_, CALL);                                                                        \
        }                                                                                                              \
    } while (0)

// Compiles CALL for both operand dtypes: it sees the constant `type`.
#define TS_BY_DTYPE(dtype, CALL)                                                                                       \
    do {                                                                                                               \
        if ((dtype) == TS_BF16) {                                                                                      \
            const ts_dtype type = TS_BF16;                                                                             \
            CALL;                                                                                                      \
        } else {                                                                                                       \
            const ts_dtype type = TS_F32;                                                                              \
            CALL;                                                                                                      \
        }                                                                                                              \
    } while (0)

#endif
