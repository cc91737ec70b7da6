// SPDX-License-Identifier: Apache-2.0
// The parts of the portable tensor-core attention: tiles of bf16 rows in shared memory and their products by mma.sync.
//
// A warp owns 16 M rows of a product, so that the rows of a softmax never leave it, and the result of one product is,
// rounded to bf16, the left operand of the next where it lies: the layouts of c and a agree (ptx.h). Of such rows a
// lane holds row lane / 4 and the one 8 further, of columns 2 (lane % 4) and the next in every 8.
#ifndef TS_KERNELS_CUDA_ATTENTION_MMA_CUH
#define TS_KERNELS_CUDA_ATTENTION_MMA_CUH

#include "core/kernels/cuda/attention.cuh"
#include "core/kernels/cuda/ptx.h"

namespace {

static __device__ __forceinline__ int lane_of_warp() {
    return (int)threadIdx.x % 32;
}

// Element offset of 8 columns of a row in a tile of D columns. The places of a row's 16-byte chunks are exchanged, so
// that a chunk's number in 8 consecutive rows, which ldmatrix reads at a time, leads to all 32 banks.
template <int D> static __device__ __forceinline__ int chunk_at(int row, int chunk) {
    static_assert(D == 32 || D == 64 || D == 128, "a tile is 32, 64 or 128 columns wide");
    return row * D + (D == 32 ? chunk ^ (row >> 1 & 3) : chunk ^ (row & 7)) * 8;
}

// Starts copying rows [first, first + ROWS) of a head; zeros behind row `count` and column `head_dim`.
template <int ROWS, int D, int THREADS>
static __device__ __forceinline__ void load_tile(uint16_t *to, const uint16_t *from, int64_t stride, int first,
                                                 int count, int head_dim) {
    constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;  // a thread copies the same chunk of every STEP-th row
    static_assert(ROWS % STEP == 0 && STEP % 8 == 0, "each thread copies as much, to places alike");
    const int thread = ts_opaque((int)threadIdx.x), row = thread / CHUNKS, chunk = thread % CHUNKS;
    const uint16_t *next = from + (first + row) * stride + chunk * 8;
    uint16_t *place = to + chunk_at<D>(row, chunk);
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++) {
        const bool there = first + row + i * STEP < count && chunk * 8 < head_dim;
        ts_cp_async_16(place + i * STEP * D, there ? next : from, there);
        next += STEP * stride;
    }
}

// Where a lane finds its row of the 16 x 16 elements at row 0, column 0 of a tile, for ldmatrix: fragment_at leads from
// there to other rows and columns, multiples of 16. By columns: rows 0-7, rows 8-15, and both again 8 columns on, the
// order of a left operand, and transposed of a right one. By rows: rows 0-7, the same 8 columns on, then rows 8-15:
// that of a right operand whose columns are rows of the tile. The two registers of a right operand must be neighbours.
template <int D> static __device__ __forceinline__ int first_by_columns() {
    return ts_opaque(chunk_at<D>(lane_of_warp() % 16, lane_of_warp() / 16));
}
template <int D> static __device__ __forceinline__ int first_by_rows() {
    return ts_opaque(chunk_at<D>(lane_of_warp() % 8 + lane_of_warp() / 16 * 8, lane_of_warp() / 8 % 2));
}
template <int D> static __device__ __forceinline__ int fragment_at(int first, int row, int column) {
    return row * D + (first ^ column);
}

// s [16 M, 8 N] = a b^T: rows from `row` on of tile a, all rows of tile b.
template <int D, int M, int N>
static __device__ __forceinline__ void multiply_rows(float (&s)[M][N][4], const uint16_t *a, int row,
                                                     const uint16_t *b) {
    const int left_place = first_by_columns<D>(), right_place = first_by_rows<D>();
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0;
        }
    }
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            ts_ldmatrix_x4(left[m], a + fragment_at<D>(left_place, row + 16 * m, 16 * k));
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t right[4];
            ts_ldmatrix_x4(right, b + fragment_at<D>(right_place, 8 * n, 16 * k));
#pragma unroll
            for (int m = 0; m < M; m++) {
                ts_mma_m16n8k16_bf16(s[m][n], left[m], right[0], right[1]);
                ts_mma_m16n8k16_bf16(s[m][n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

// Scores as the left operand of a product, rounded.
template <int M, int N>
static __device__ __forceinline__ void round_scores(uint32_t (&to)[M][N / 2][4], const float (&s)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int k = 0; k < N / 2; k++) {
            to[m][k][0] = ts_pack_bf16(s[m][2 * k][0], s[m][2 * k][1]);
            to[m][k][1] = ts_pack_bf16(s[m][2 * k][2], s[m][2 * k][3]);
            to[m][k][2] = ts_pack_bf16(s[m][2 * k + 1][0], s[m][2 * k + 1][1]);
            to[m][k][3] = ts_pack_bf16(s[m][2 * k + 1][2], s[m][2 * k + 1][3]);
        }
    }
}

// sum [16 M, D] += scores [16 M, 16 K] b, b a tile of 16 K rows.
template <int D, int M, int K>
static __device__ __forceinline__ void accumulate(float (&sum)[M][D / 8][4], const uint32_t (&scores)[M][K][4],
                                                  const uint16_t *b) {
    const int place = first_by_columns<D>();
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t right[4];
            ts_ldmatrix_x4_trans(right, b + fragment_at<D>(place, 16 * k, 8 * n));
#pragma unroll
            for (int m = 0; m < M; m++) {
                ts_mma_m16n8k16_bf16(sum[m][n], scores[m][k], right[0], right[1]);
                ts_mma_m16n8k16_bf16(sum[m][n + 1], scores[m][k], right[2], right[3]);
            }
        }
    }
}

// Stores a row of a result, the lane's row r of sum, times `factor`; zeros when that is 0, be the sums what they are.
// `at` is the offset of the row.
template <int N>
static __device__ __forceinline__ void store_row(void *to, bool f32, int64_t at, int head_dim, const float (&sum)[N][4],
                                                 int r, float factor) {
    const int column = 2 * (lane_of_warp() % 4);
#pragma unroll
    for (int n = 0; n < N; n++) {
        if (8 * n < head_dim) {
            const float low = factor == 0 ? 0.0f : sum[n][2 * r] * factor;
            const float high = factor == 0 ? 0.0f : sum[n][2 * r + 1] * factor;
            if (f32) {
                *(float2 *)((float *)to + at + 8 * n + column) = make_float2(low, high);
            } else {
                *(uint32_t *)((uint16_t *)to + at + 8 * n + column) = ts_pack_bf16(low, high);
            }
        }
    }
}

}  // namespace

#endif
