// SPDX-License-Identifier: Apache-2.0
// PTX instructions of sm_90a as functions: matrix products of warpgroups (wgmma), the copy engine (TMA), barriers in
// shared memory that count bytes (mbarrier). Names and operands follow the "PTX ISA".
//
// tests/shim/include/ptx_sm90_shim.h imitates each of them for kernels that are compiled as host code.
#ifndef TS_KERNELS_CUDA_PTX_SM90_H
#define TS_KERNELS_CUDA_PTX_SM90_H

#include "core/kernels/cuda/ptx.h"

#ifdef TS_SHIM
#include "ptx_sm90_shim.h"
#else

#include <cuda.h>

// ---- registers of a warpgroup (4 warps, of which the first has a number divisible by 4)

// All warps of a warpgroup call these. What one gives up, another may take: multiples of 8, of 24 to 256.
template <int REGISTERS> static __device__ __forceinline__ void ts_take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> static __device__ __forceinline__ void ts_give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// ---- named barriers of a block: numbers 1 to 15 (0 is __syncthreads), of `threads` arrivals, whole warps

static __device__ __forceinline__ void ts_barrier_sync(int barrier, int threads) {
    asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
static __device__ __forceinline__ void ts_barrier_arrive(int barrier, int threads) {
    asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- mbarriers
// A phase ends when `arrivals` threads have come and all bytes that they told of are there; then the next begins. A
// wait names the parity of the phase that it waits for, the first is 0; of a new barrier, parity 1 counts as ended.

static __device__ __forceinline__ void ts_mbarrier_init(uint64_t *barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(ts_shared_address(barrier)), "r"(arrivals) : "memory");
}
// Lets the copy engine see new barriers: in the thread that made them, before the block's barrier.
static __device__ __forceinline__ void ts_mbarrier_publish() {
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
}
static __device__ __forceinline__ void ts_mbarrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ts_shared_address(barrier)) : "memory");
}
// Arrives, and adds `bytes` to those that the phase waits for.
static __device__ __forceinline__ void ts_mbarrier_arrive_expect(uint64_t *barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ts_shared_address(barrier)), "r"(bytes)
                 : "memory");
}
static __device__ __forceinline__ void ts_mbarrier_wait(uint64_t *barrier, int parity) {
    asm volatile("{\n\t"
                 ".reg .pred ended;\n\t"
                 "ask:\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n\t"
                 "@ended bra done;\n\t"
                 "bra ask;\n\t"
                 "done:\n\t"
                 "}" ::"r"(ts_shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

// ---- the copy engine
// One thread asks for a copy; its bytes are counted at `barrier`, whose phase ends once they are there.

// The box of a tensor map at (x, y, z, u, v), innermost first; zeros where it is outside the tensor. `to` 1024-aligned.
static __device__ __forceinline__ void ts_copy_box(void *to, const CUtensorMap *map, uint64_t *barrier, int x, int y,
                                                   int z, int u, int v) {
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(ts_shared_address(to)),
                 "l"(map), "r"(ts_shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)
                 : "memory");
}
// `bytes` that follow one another; all three are multiples of 16.
static __device__ __forceinline__ void ts_copy_bytes(void *to, const void *from, int bytes, uint64_t *barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     ts_shared_address(to)),
                 "l"(from), "r"(bytes), "r"(ts_shared_address(barrier))
                 : "memory");
}

// ---- matrix products of a warpgroup
// d [64, N] (+)= a [64, 16] b [16, N], bf16 operands, f32 sums. Thread 32 w + l of the warpgroup holds of d, with g = l
// / 4 and t = l % 4: d[4 n + e] is row 16 w + g + 8 (e / 2), column 8 n + 2 t + e % 2. An `a` in registers is as for
// ts_mma_m16n8k16_bf16, in rows 16 w to 16 w + 15.
//
// They run in order, but beside the threads: between the ts_wgmma_fence before them and the wait for the group that
// they were committed to, neither d nor a may be touched, nor their tiles be written. ts_wgmma_pin(d) ties what the
// compiler knows of d to that place in the program: before the fence and behind the wait.

static __device__ __forceinline__ void ts_wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void ts_wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits for all groups but the last GROUPS.
template <int GROUPS> static __device__ __forceinline__ void ts_wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
}
template <int COUNT> static __device__ __forceinline__ void ts_wgmma_pin(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        asm volatile("" : "+f"(d[i])::"memory");
    }
}

template <int COUNT> static __device__ __forceinline__ void ts_wgmma_pin(uint32_t (&x)[COUNT][4]) {
#pragma unroll
    for (int i = 0; i < 4 * COUNT; i++) {
        asm volatile("" : "+r"(x[i / 4][i % 4])::"memory");
    }
}

// A matrix in shared memory for wgmma: rows of 128 bytes, in groups of 8 rows whose 16-byte pieces are swizzled as the
// copy engine's 128-byte mode does. `place` is multiples of 1024, plus the offset of the 16 columns within the row.
// Where the rows are those of the product (or its columns, of b), `stride` is from 8 rows to the next; where they are k
// ("transposed"), `stride` is from 8 k to the next and `leading` from 64 columns to the next.
static __device__ __forceinline__ uint64_t ts_wgmma_matrix(const void *place, int leading, int stride) {
    const uint64_t swizzle_128 = 1ull << 62;
    return swizzle_128 | (uint64_t)(stride >> 4) << 32 | (uint64_t)(leading >> 4) << 16 |
           (ts_shared_address(place) & 0x3ffff) >> 4;
}
// The same, `bytes` further.
static __device__ __forceinline__ uint64_t ts_wgmma_matrix_at(uint64_t matrix, int bytes) {
    return matrix + (uint64_t)(bytes >> 4);
}

// Names of registers in a row, and the operands that they are.
#define TS_REGISTERS_32                                                                                                \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"                                             \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TS_REGISTERS_48                                                                                                \
    TS_REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define TS_REGISTERS_64                                                                                                \
    TS_REGISTERS_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TS_REGISTERS_88                                                                                                \
    TS_REGISTERS_64                                                                                                    \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"                                 \
    ", %80, %81, %82, %83, %84, %85, %86, %87"
#define TS_SUMS_8(d, i)                                                                                                \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),        \
        "+f"(d[i + 7])
#define TS_SUMS_32(d, i) TS_SUMS_8(d, i), TS_SUMS_8(d, i + 8), TS_SUMS_8(d, i + 16), TS_SUMS_8(d, i + 24)
#define TS_SUMS_48(d)    TS_SUMS_32(d, 0), TS_SUMS_8(d, 32), TS_SUMS_8(d, 40)
#define TS_SUMS_64(d)    TS_SUMS_48(d), TS_SUMS_8(d, 48), TS_SUMS_8(d, 56)
#define TS_SUMS_88(d)    TS_SUMS_64(d), TS_SUMS_8(d, 64), TS_SUMS_8(d, 72), TS_SUMS_8(d, 80)

// a and b in shared memory, both by rows of the product's size (k innermost): d = a b^T. `p` is behind them.
#define TS_WGMMA_ROWS(n, registers, sums, a, b, p)                                                                     \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, " p ", 0;\n\t"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" registers "}, " a ", " b                  \
                 ", p, 1, 1, 0, 0;\n\t}"                                                                               \
                 : sums                                                                                                \
                 : "l"(matrix_a), "l"(matrix_b), "r"((int)accumulate))
// a in registers, b by rows of k: d = a b
#define TS_WGMMA_COLUMNS(n, registers, sums, a, b, p)                                                                  \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, " p ", 0;\n\t"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" registers "}, {" a "}, " b                \
                 ", p, 1, 1, 1;\n\t}"                                                                                  \
                 : sums                                                                                                \
                 : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(matrix_b), "r"((int)accumulate))

// d [64, N] (+)= a [64, 16] (b [N, 16])^T, N = 2 COUNT
template <int COUNT>
static __device__ __forceinline__ void ts_wgmma_rows(float (&d)[COUNT], uint64_t matrix_a, uint64_t matrix_b,
                                                     bool accumulate) {
    static_assert(COUNT == 32 || COUNT == 48 || COUNT == 64 || COUNT == 88, "64, 96, 128 or 176 columns");
    if constexpr (COUNT == 32) {
        TS_WGMMA_ROWS("64", TS_REGISTERS_32, TS_SUMS_32(d, 0), "%32", "%33", "%34");
    } else if constexpr (COUNT == 48) {
        TS_WGMMA_ROWS("96", TS_REGISTERS_48, TS_SUMS_48(d), "%48", "%49", "%50");
    } else if constexpr (COUNT == 64) {
        TS_WGMMA_ROWS("128", TS_REGISTERS_64, TS_SUMS_64(d), "%64", "%65", "%66");
    } else {
        TS_WGMMA_ROWS("176", TS_REGISTERS_88, TS_SUMS_88(d), "%88", "%89", "%90");
    }
}

// d [64, N] (+)= x [64, 16] b [16, N]: x in registers, b transposed; N = 2 COUNT
template <int COUNT>
static __device__ __forceinline__ void ts_wgmma_columns(float (&d)[COUNT], const uint32_t (&x)[4], uint64_t matrix_b,
                                                        bool accumulate) {
    static_assert(COUNT == 32 || COUNT == 64, "64 or 128 columns");
    if constexpr (COUNT == 32) {
        TS_WGMMA_COLUMNS("64", TS_REGISTERS_32, TS_SUMS_32(d, 0), "%32, %33, %34, %35", "%36", "%37");
    } else {
        TS_WGMMA_COLUMNS("128", TS_REGISTERS_64, TS_SUMS_64(d), "%64, %65, %66, %67", "%68", "%69");
    }
}

#undef TS_WGMMA_ROWS
#undef TS_WGMMA_COLUMNS

#endif
#endif
