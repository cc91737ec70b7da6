// SPDX-License-Identifier: Apache-2.0
// Attention with AVX-512: vectors of 16 floats.
#define LANES       16
#define ROWS        8
#define ENGINE_NAME ts_attention_avx512
#include "core/kernels/cpu/attention_vector.h"
