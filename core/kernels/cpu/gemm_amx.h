// SPDX-License-Identifier: Apache-2.0
// Private: bf16 matrix products on AMX tiles (gemm_amx.c). All of ts_gemm, for dtype_ab BF16.
#ifndef TS_KERNELS_CPU_GEMM_AMX_H
#define TS_KERNELS_CPU_GEMM_AMX_H

#include "core/kernels/kernels.h"

int ts_amx_gemm(const ts_gemm *p);

#endif
