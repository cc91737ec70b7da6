// SPDX-License-Identifier: Apache-2.0
// f32 and bf16 numbers in kernels: one template serves both.
#ifndef TS_KERNELS_CUDA_NUMBER_CUH
#define TS_KERNELS_CUDA_NUMBER_CUH

#include "core/kernels/cuda/cuda.h"

struct ts_bf16 {
    uint16_t bits;
};

static __device__ __forceinline__ float ts_to_f32(float x) {
    return x;
}
static __device__ __forceinline__ float ts_to_f32(ts_bf16 x) {
#ifdef TS_SHIM
    return ts_bf16_to_f32(x.bits);
#else
    return __uint_as_float((unsigned)x.bits << 16);
#endif
}

template <typename T> static __device__ __forceinline__ T ts_from_f32(float x);
template <> __device__ __forceinline__ float ts_from_f32<float>(float x) {
    return x;
}
// To nearest even, as on the CPU.
template <> __device__ __forceinline__ ts_bf16 ts_from_f32<ts_bf16>(float x) {
#ifdef TS_SHIM
    return {ts_f32_to_bf16(x)};
#else
    ts_bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
#endif
}

#endif
