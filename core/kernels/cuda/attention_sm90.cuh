// SPDX-License-Identifier: Apache-2.0
// What attention's forward and backward kernels for sm_90a share: tiles in shared memory, their products, and the ring
// of buffers that the copy engine fills and warpgroups empty.
//
// A block is three warpgroups. One thread of the first asks for copies; the other two each own 64 rows (of queries, or
// of keys), whose scores and sums stay in their registers. Products take operands from shared memory as the copy engine
// left them, or from registers, so no thread ever writes shared memory that a product reads.
#ifndef TS_KERNELS_CUDA_ATTENTION_SM90_CUH
#define TS_KERNELS_CUDA_ATTENTION_SM90_CUH

#include "core/kernels/cuda/attention.cuh"
#include "core/kernels/cuda/ptx_sm90.h"
#include "core/kernels/cuda/tensor_map.h"

namespace {

enum {
    WARPGROUP = 128,
    GROUPS = 2,  // that compute
    ROWS = 64,   // of each
    OWN_ROWS = GROUPS * ROWS,
    THREADS = (GROUPS + 1) * WARPGROUP,
    WARPS = GROUPS * 4,  // that empty a buffer
    LINE = 128,          // bytes of a row of a tile's piece: 64 columns
    // Registers of a thread, of 65,536 in all: a launch gives everybody 168.
    COPYING_REGISTERS = 24,
    COMPUTING_REGISTERS = 240,
};

// N rows of a head as the copy engine lays them out: pieces of 64 columns, swizzled.
template <int N, int D> struct alignas(1024) tile { uint16_t piece[D / 64][N][64]; };

static __device__ __forceinline__ int warpgroup_of_thread() {
    return __shfl_sync(0xffffffffu, (int)threadIdx.x / WARPGROUP, 0);  // so that the compiler knows it to be uniform
}
static __device__ __forceinline__ int lane_of_warp() {
    return (int)threadIdx.x % 32;
}

// ---- products

// Begins s [64, N] = rows [first, first + 64) of `own` times the rows of `other`, both over D.
template <int M, int N, int D>
static __device__ __forceinline__ void multiply_rows(float (&s)[N / 2], const tile<M, D> &own, int first,
                                                     const tile<N, D> &other) {
    const uint64_t a = ts_wgmma_matrix(own.piece[0][first], 16, 8 * LINE);
    const uint64_t b = ts_wgmma_matrix(other.piece[0][0], 16, 8 * LINE);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        ts_wgmma_rows(s, ts_wgmma_matrix_at(a, k / 4 * M * LINE + k % 4 * 32),
                      ts_wgmma_matrix_at(b, k / 4 * N * LINE + k % 4 * 32), k > 0);
    }
}

// Begins sum [64, D] += x [64, N] times the rows of `other`; x in registers.
template <int N, int D>
static __device__ __forceinline__ void accumulate(float (&sum)[D / 2], const uint32_t (&x)[N / 16][4],
                                                  const tile<N, D> &other) {
    const uint64_t b = ts_wgmma_matrix(other.piece[0][0], N * LINE, 8 * LINE);
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        ts_wgmma_columns(sum, x[k], ts_wgmma_matrix_at(b, k * 16 * LINE), true);
    }
}

// What a product left in f32 becomes an operand of the next: a lane has the same elements of both.
template <int N>
static __device__ __forceinline__ void round_scores(uint32_t (&x)[N / 16][4], const float (&s)[N / 2]) {
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        x[i / 4][i % 4] = ts_pack_bf16(s[2 * i], s[2 * i + 1]);
    }
}

// ---- buffers

// Where a ring of STAGES buffers is, and in which of the two parities of its barriers' phases.
template <int STAGES> struct ring_place {
    int stage = 0, parity = 0;
    __device__ __forceinline__ void advance() {
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        parity ^= stage == 0;
    }
};

// Barriers of a ring's buffers: full when the copies asked for are there, empty when all warps have said so.
template <int STAGES> struct ring_barriers {
    uint64_t full[STAGES], empty[STAGES];

    __device__ __forceinline__ void init() {
        for (int i = 0; i < STAGES; i++) {
            ts_mbarrier_init(&full[i], 1);
            ts_mbarrier_init(&empty[i], WARPS);
        }
    }
    // In the thread that asks for copies: waits until the buffer is empty; `bytes` will come.
    __device__ __forceinline__ uint64_t *begin_copies(ring_place<STAGES> at, int bytes) {
        ts_mbarrier_wait(&empty[at.stage], at.parity ^ 1);
        ts_mbarrier_arrive_expect(&full[at.stage], bytes);
        return &full[at.stage];
    }
    __device__ __forceinline__ void wait_full(ring_place<STAGES> at) { ts_mbarrier_wait(&full[at.stage], at.parity); }
    // In all threads that compute, behind the wait for the products that read it.
    __device__ __forceinline__ void give_back(ring_place<STAGES> at) {
        if (lane_of_warp() == 0) {
            ts_mbarrier_arrive(&empty[at.stage]);
        }
    }
};

// ---- results

// Row r (0 or 1) of a lane's in a sum [64, D], times `factor`, to element `at` of a tensor in bf16 or f32.
template <int COUNT>
static __device__ __forceinline__ void store_row(void *to, bool f32, int64_t at, const float (&sum)[COUNT], int r,
                                                 float factor) {
    at += 2 * (lane_of_warp() % 4);
#pragma unroll
    for (int n = 0; n < COUNT / 4; n++) {
        const float low = sum[4 * n + 2 * r] * factor, high = sum[4 * n + 2 * r + 1] * factor;
        if (f32) {
            *(float2 *)((float *)to + at + 8 * n) = make_float2(low, high);
        } else {
            *(uint32_t *)((uint16_t *)to + at + 8 * n) = ts_pack_bf16(low, high);
        }
    }
}

// ---- host

static inline int map_queries(CUtensorMap *map, const ts_attention *p, const void *data, int64_t row_stride,
                              int64_t batch_stride, int box_rows) {
    const ts_head_rows rows = {data, p->batch, p->queries, p->heads, p->head_dim, row_stride, batch_stride};
    return ts_cuda_map_head_rows(map, &rows, box_rows);
}
static inline int map_keys(CUtensorMap *map, const ts_attention *p, const void *data, int64_t row_stride,
                           int64_t batch_stride, int box_rows) {
    const ts_head_rows rows = {data, p->batch, p->keys, p->heads, p->head_dim, row_stride, batch_stride};
    return ts_cuda_map_head_rows(map, &rows, box_rows);
}

}  // namespace

#endif
