// SPDX-License-Identifier: Apache-2.0
// Attention for any x86-64 processor: vectors of 4 floats.
#include <emmintrin.h>

static inline float max_lanes(__m128 v) {
    v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
}

#define LANES       4
#define ROWS        6
#define VEC_MAX     _mm_max_ps
#define ENGINE_NAME ts_attention_generic
#include "core/kernels/cpu/attention_vector.h"
