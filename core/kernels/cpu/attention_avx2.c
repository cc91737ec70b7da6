// SPDX-License-Identifier: Apache-2.0
// Attention with AVX2 and FMA: vectors of 8 floats.
#define LANES       8
#define ROWS        6
#define ENGINE_NAME ts_attention_avx2
#include "core/kernels/cpu/attention_vector.h"
