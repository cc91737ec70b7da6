// SPDX-License-Identifier: Apache-2.0
// The vector kernels for the level of this file's name.
#define TS_FILL ts_cpu_fill_avx512bf16
#include "core/kernels/cpu/vector_table.h"
