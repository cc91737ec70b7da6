// SPDX-License-Identifier: Apache-2.0
// Attention in plain C: the compiler's vectors of 4 floats.
#define LANES       4
#define ROWS        6
#define ENGINE_NAME ts_attention_generic
#include "core/kernels/cpu/attention_vector.h"
