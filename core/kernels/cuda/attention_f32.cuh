// SPDX-License-Identifier: Apache-2.0
// The parts of the general attention kernels: tiles of rows in shared memory, in f32 whatever the operands are, and
// their products.
//
// A block has 16 x 16 threads. Thread (y, x) owns rows y + 16 i of a product, and of them columns x + 16 j (scores), or
// `vector` columns from vector * x on in every 16 * vector (results). So a row belongs to half a warp: its statistics
// are found by shuffles, and what a half-warp writes to its rows it reads back without a barrier of the block.
#ifndef TS_KERNELS_CUDA_ATTENTION_F32_CUH
#define TS_KERNELS_CUDA_ATTENTION_F32_CUH

#include "core/kernels/cuda/attention.cuh"

namespace {

enum { SIDE = 16, THREADS = SIDE * SIDE };

// A tile of EDGE rows with room for D columns, of which a row takes STRIDE floats. The padding lets 8 threads read 16
// bytes each of 8 rows, and two half-warps write to two rows, without meeting in a bank.
template <int D> constexpr int row_stride = D + 4;
template <int EDGE> constexpr int score_stride = EDGE + 16;

static __device__ __forceinline__ int thread_x() {
    return (int)threadIdx.x % SIDE;
}
static __device__ __forceinline__ int thread_y() {
    return (int)threadIdx.x / SIDE;
}

// Rows [first, first + EDGE) of a head; zeros behind row `count` and column `head_dim`.
template <int D, int EDGE, typename T>
static __device__ void load_rows(float *to, const T *from, int64_t stride, int first, int count, int head_dim) {
#pragma unroll 4
    for (int e = (int)threadIdx.x; e < EDGE * D; e += THREADS) {
        const int row = e / D, column = e % D;
        const bool there = first + row < count && column < head_dim;
        to[row * row_stride<D> + column] = there ? ts_to_f32(from[(first + row) * stride + column]) : 0.0f;
    }
}

// Floats that are read at once.
template <int N> struct alignas(N * sizeof(float)) vector_of { float at[N]; };

// s[i][j] = a[y + 16 i] . b[x + 16 j]
template <int D, int EDGE>
static __device__ __forceinline__ void multiply_rows(float (&s)[EDGE / SIDE][EDGE / SIDE], const float *a,
                                                     const float *b) {
    constexpr int OWN = EDGE / SIDE;
    for (int i = 0; i < OWN; i++) {
        for (int j = 0; j < OWN; j++) {
            s[i][j] = 0;
        }
    }
#pragma unroll 1
    for (int d = 0; d < D; d += 4) {
        vector_of<4> left[OWN], right[OWN];
        for (int i = 0; i < OWN; i++) {
            left[i] = *(const vector_of<4> *)&a[(thread_y() + SIDE * i) * row_stride<D> + d];
            right[i] = *(const vector_of<4> *)&b[(thread_x() + SIDE * i) * row_stride<D> + d];
        }
        for (int i = 0; i < OWN; i++) {
            for (int j = 0; j < OWN; j++) {
                for (int u = 0; u < 4; u++) {
                    s[i][j] += left[i].at[u] * right[j].at[u];
                }
            }
        }
    }
}

// Columns of the results that a thread owns: D / 16 of each row, in vectors.
template <int D> constexpr int result_vector = D >= 64 ? 4 : D / SIDE;
template <int D> static __device__ __forceinline__ int result_column(int c) {
    constexpr int VECTOR = result_vector<D>;
    return c / VECTOR * (VECTOR * SIDE) + VECTOR * thread_x() + c % VECTOR;
}

// sum[i] += scores[y + 16 i] b, with scores [EDGE, EDGE] and b [EDGE, D]
template <int D, int EDGE>
static __device__ __forceinline__ void accumulate(float (&sum)[EDGE / SIDE][D / SIDE], const float *scores,
                                                  const float *b) {
    constexpr int VECTOR = result_vector<D>;
#pragma unroll 1
    for (int k = 0; k < EDGE; k += 4) {
        vector_of<4> weight[EDGE / SIDE];
        for (int i = 0; i < EDGE / SIDE; i++) {
            weight[i] = *(const vector_of<4> *)&scores[(thread_y() + SIDE * i) * score_stride<EDGE> + k];
        }
        for (int e = 0; e < 4 * D / SIDE; e += VECTOR) {
            const int step = e / (D / SIDE), c = e % (D / SIDE);
            const auto value = *(const vector_of<VECTOR> *)&b[(k + step) * row_stride<D> + result_column<D>(c)];
            for (int i = 0; i < EDGE / SIDE; i++) {
                for (int u = 0; u < VECTOR; u++) {
                    sum[i][c + u] += weight[i].at[step] * value.at[u];
                }
            }
        }
    }
}

// Scores to shared memory, to be read by the half-warp of their row after warp_sync.
template <int EDGE>
static __device__ __forceinline__ void store_scores(float *to, const float (&s)[EDGE / SIDE][EDGE / SIDE]) {
    for (int i = 0; i < EDGE / SIDE; i++) {
        for (int j = 0; j < EDGE / SIDE; j++) {
            to[(thread_y() + SIDE * i) * score_stride<EDGE> + thread_x() + SIDE * j] = s[i][j];
        }
    }
}

// Rows [first, first + EDGE) of a result of type T, or f32, times factor[i].
template <typename T, int D, int EDGE>
static __device__ void store_rows(void *to, bool f32, int64_t at, int64_t stride, int first, int count, int head_dim,
                                  const float (&sum)[EDGE / SIDE][D / SIDE], const float (&factor)[EDGE / SIDE]) {
    for (int i = 0; i < EDGE / SIDE; i++) {
        const int row = first + thread_y() + SIDE * i;
        for (int c = 0; c < D / SIDE; c++) {
            const int column = result_column<D>(c);
            if (row < count && column < head_dim) {
                const int64_t element = at + row * stride + column;
                const float value = sum[i][c] * factor[i];
                if (f32) {
                    ((float *)to)[element] = value;
                } else {
                    ((T *)to)[element] = ts_from_f32<T>(value);
                }
            }
        }
    }
}

}  // namespace

#endif
