// SPDX-License-Identifier: Apache-2.0
// The PTX instructions of core/kernels/cuda/ptx.h as host code, after the fragment layouts and the memory model of the
// "PTX ISA". Instructions of a warp are meetings of its lanes: each hands in its operands, one computes for all.
#ifndef TS_SHIM_PTX_SHIM_H
#define TS_SHIM_PTX_SHIM_H

#include <cmath>
#include <cstring>

#include "tests/shim/shim.h"

// ---- arithmetic

static inline float ts_exp2(float x) {
    const float out = exp2f(x);
    return out < 0x1p-126f ? 0.0f : out;
}

static inline uint32_t ts_pack_bf16(float low, float high) {
    return (uint32_t)ts_f32_to_bf16(high) << 16 | ts_f32_to_bf16(low);
}

static inline int ts_opaque(int x) {
    return x;
}

// ---- matrices in registers (ptx.cpp)

void ts_shim_ldmatrix_x4(uint32_t (&m)[4], const void *row, bool transposed, int line);
void ts_shim_mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line);

static inline void ts_ldmatrix_x4(uint32_t (&m)[4], const void *row, int line = __builtin_LINE()) {
    ts_shim_ldmatrix_x4(m, row, false, line);
}
static inline void ts_ldmatrix_x4_trans(uint32_t (&m)[4], const void *row, int line = __builtin_LINE()) {
    ts_shim_ldmatrix_x4(m, row, true, line);
}
static inline void ts_mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                        int line = __builtin_LINE()) {
    ts_shim_mma_m16n8k16_bf16(c, a, b0, b1, line);
}

// ---- copies that a thread does not wait for (ptx.cpp)
// The bytes are NaN from the copy's start to the wait for it, when they are read and written: who reads too early finds
// NaN, and so does who still reads what the copy goes over.

void ts_shim_cp_async(void *to, const void *from, size_t bytes, bool there);
void ts_cp_async_commit();
void ts_shim_cp_async_wait(size_t groups);

static inline void ts_cp_async_16(void *to, const void *from, bool there) {
    ts_shim_cp_async(to, from, 16, there);
}
static inline void ts_cp_async_4(void *to, const void *from, bool there) {
    ts_shim_cp_async(to, from, 4, there);
}
template <int GROUPS> static inline void ts_cp_async_wait() {
    ts_shim_cp_async_wait(GROUPS);
}

#endif
