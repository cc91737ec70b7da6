// SPDX-License-Identifier: Apache-2.0
// Private: matrix products through oneDNN (v2 C API). onednn.c is the only file that knows the library.
#ifndef TS_KERNELS_CPU_ONEDNN_H
#define TS_KERNELS_CPU_ONEDNN_H

#include "core/kernels/kernels.h"

// op(A) op(B) with accumulate and bias; gelu and before_gelu are ignored. Needs dtype_ab F32 with dtype_c F32, or
// dtype_ab BF16 and a library that multiplies it.
int ts_onednn_matmul(const ts_gemm *p);
// Needs AVX-512. The library is held to the level that was in use at its first call.
bool ts_onednn_multiplies_bf16(void);

#endif
