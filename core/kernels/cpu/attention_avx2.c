// SPDX-License-Identifier: Apache-2.0
// Attention with AVX2 and FMA: vectors of 8 floats.
#include <immintrin.h>

static inline float max_lanes(__m256 v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

#define LANES       8
#define ROWS        6
#define VEC_MAX     _mm256_max_ps
#define ENGINE_NAME ts_attention_avx2
#include "core/kernels/cpu/attention_vector.h"
