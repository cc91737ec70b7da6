// SPDX-License-Identifier: Apache-2.0
// PTX instructions that CUDA C++ has no name for, as functions: the only place with inline assembly of tensor cores and
// of asynchronous copies. Names and operands follow the "PTX ISA"; its figures tell which lane holds what.
//
// tests/shim/include/ptx_shim.h imitates each of them for kernels that are compiled as host code.
#ifndef TS_KERNELS_CUDA_PTX_H
#define TS_KERNELS_CUDA_PTX_H

#ifdef TS_SHIM
#include "ptx_shim.h"
#else

#include <stdint.h>

static __device__ __forceinline__ uint32_t ts_shared_address(const void *place) {
    return (uint32_t)__cvta_generic_to_shared(place);
}

// ---- arithmetic

// 2^x to 2 ulp; results below 2^-126 are 0.
static __device__ __forceinline__ float ts_exp2(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// Two bf16 numbers, rounded to nearest even: `low` in the low half.
static __device__ __forceinline__ uint32_t ts_pack_bf16(float low, float high) {
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

// The same number, of which the compiler knows nothing: in a loop it keeps addresses that follow from it from being
// computed, and kept in registers, ahead of the loop.
static __device__ __forceinline__ int ts_opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// ---- matrices in registers

// Four 8 x 8 matrices of 16-bit elements: lane 8 i + r gives the address of row r of matrix i, 16 bytes aligned to 16.
// Of each matrix a lane gets elements 2 (lane % 4) and the next of row lane / 4; transposed, of column lane / 4.
static __device__ __forceinline__ void ts_ldmatrix_x4(uint32_t (&m)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(ts_shared_address(row)));
}
static __device__ __forceinline__ void ts_ldmatrix_x4_trans(uint32_t (&m)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(ts_shared_address(row)));
}

// c [16, 8] += a [16, 16] b [16, 8], bf16 operands, f32 sums. With g = lane / 4 and t = lane % 4 a lane holds
//   c: row g columns 2 t, 2 t + 1, then row g + 8;   b: rows 2 t, 2 t + 1 of column g, then rows 8 further
//   a: row g columns 2 t, 2 t + 1; row g + 8; both again 8 columns further
static __device__ __forceinline__ void ts_mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                            uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- copies that a thread does not wait for

// 16 bytes, or 4, from global to shared memory, both aligned to their size; zeros when not `there`, and then `from` is
// not read. What a thread has copied since the last commit is a group; wait<n> waits for all of its groups but the last
// n. Other threads see the bytes after a barrier that follows the wait.
static __device__ __forceinline__ void ts_cp_async_16(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ts_shared_address(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}
static __device__ __forceinline__ void ts_cp_async_4(void *to, const void *from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(ts_shared_address(to)), "l"(from),
                 "r"(there ? 4 : 0)
                 : "memory");
}
static __device__ __forceinline__ void ts_cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int GROUPS> static __device__ __forceinline__ void ts_cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

#endif
#endif
