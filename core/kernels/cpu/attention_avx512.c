// SPDX-License-Identifier: Apache-2.0
// Attention with AVX-512: vectors of 16 floats.
#include <immintrin.h>

static inline float max_lanes(__m512 v) {
    return _mm512_reduce_max_ps(v);
}

#define LANES       16
#define ROWS        12
#define VEC_MAX     _mm512_max_ps
#define ENGINE_NAME ts_attention_avx512
#include "core/kernels/cpu/attention_vector.h"
