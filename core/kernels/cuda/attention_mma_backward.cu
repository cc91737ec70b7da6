// SPDX-License-Identifier: Apache-2.0
// Attention backward on tensor cores by mma.sync (sm_80 and newer): the formulas of attention_f32_backward.cu, with
// bf16 operands, f32 sums, P and dS in bf16.
//
// Two passes, as there: blocks of keys find d_k and d_v, blocks of queries d_q. That S and dP are formed twice costs
// two products more than the five that must be; it buys sums in a fixed order with no f32 copy of d_q that blocks would
// take turns to add to, and scores that never leave the registers of their warp. A warp owns 16 rows; "own" tiles stay
// in shared memory, "other" tiles pass through two buffers, one being filled while the other is read.
#include "core/kernels/cuda/attention_mma.cuh"

namespace {

enum { OF_QUERIES, OF_KEYS };
enum { OTHERS = 64, N = OTHERS / 8 };

// Rows of a block, 16 a warp. Heads of 64 and less leave room for several blocks on a multiprocessor.
template <int D> constexpr int own_rows = D == 128 ? 128 : 64;
template <int D> constexpr int block_threads = own_rows<D> / 16 * 32;

// A head's tensors as the pass of this kernel sees them.
struct operands {
    const uint16_t *own_0, *own_1, *other_0, *other_1;
    int64_t own_row_0, own_row_1, other_row_0, other_row_1;
    const float *lse, *delta;
};

template <int D> struct backward_shared {
    uint16_t own_0[own_rows<D> * D], own_1[own_rows<D> * D];  // k and v, or q and d_out
    struct {
        uint16_t tile_0[OTHERS * D], tile_1[OTHERS * D];  // q and d_out, or k and v
        float lse[OTHERS], delta[OTHERS];                 // of queries that pass
    } other[2];
    operands from;  // here and not in registers, which the sums need
};

template <int OF>
static __device__ __forceinline__ operands operands_of(const ts_attention &p, const float *delta,
                                                       ts_attention_place at) {
    const uint16_t *q = ts_attention_head(p, (const uint16_t *)p.q, p.q_batch, at);
    const uint16_t *k = ts_attention_head(p, (const uint16_t *)p.k, p.k_batch, at);
    const uint16_t *v = ts_attention_head(p, (const uint16_t *)p.v, p.v_batch, at);
    const uint16_t *d_out = ts_attention_head(p, (const uint16_t *)p.d_out, p.out_batch, at);
    const float *lse = ts_attention_statistics(p, (const float *)p.lse, at);
    delta = ts_attention_statistics(p, delta, at);
    return OF == OF_KEYS ? operands{k, v, q, d_out, p.k_row, p.v_row, p.q_row, p.out_row, lse, delta}
                         : operands{q, d_out, k, v, p.q_row, p.out_row, p.k_row, p.v_row, lse, delta};
}

// Starts copying the others from row `first` on into a buffer. Queries that there are not are zeros, their statistics
// too: P is 1 then, but d_out, dP and dS are 0.
template <int D, int OF>
static __device__ __forceinline__ void load_others(backward_shared<D> *shared, int buffer, const operands &from,
                                                   int first, int count, int head_dim) {
    auto *to = &shared->other[buffer];
    load_tile<OTHERS, D, block_threads<D>>(to->tile_0, from.other_0, from.other_row_0, first, count, head_dim);
    load_tile<OTHERS, D, block_threads<D>>(to->tile_1, from.other_1, from.other_row_1, first, count, head_dim);
    if (OF == OF_KEYS && threadIdx.x < 2 * OTHERS) {
        const int i = (int)threadIdx.x % OTHERS;
        const bool there = first + i < count, is_lse = threadIdx.x < OTHERS;
        const float *statistic = is_lse ? from.lse : from.delta;
        ts_cp_async_4(is_lse ? &to->lse[i] : &to->delta[i], there ? statistic + first + i : statistic, there);
    }
    ts_cp_async_commit();
}

// s becomes P. `lse` is that of the queries, times -log2 e: by row r of the lane, or by column.
template <int OF>
static __device__ __forceinline__ void form_probabilities(float (&s)[N][4], const float (&row_lse)[2], const float *lse,
                                                          float scale) {
    const int column = 2 * (lane_of_warp() % 4);
#pragma unroll
    for (int n = 0; n < N; n++) {
        float2 of_column = make_float2(0, 0);
        if (OF == OF_KEYS) {
            of_column = *(const float2 *)&lse[8 * n + column];
        }
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float own = OF == OF_QUERIES ? row_lse[e / 2] : (e % 2 ? of_column.y : of_column.x) * -TS_LOG2_E;
            s[n][e] = ts_exp2(s[n][e] * scale + own);
        }
    }
}

// dp becomes dS = P (dP - delta).
template <int OF>
static __device__ __forceinline__ void form_gradients(float (&dp)[N][4], const float (&s)[N][4],
                                                      const float (&row_delta)[2], const float *delta) {
    const int column = 2 * (lane_of_warp() % 4);
#pragma unroll
    for (int n = 0; n < N; n++) {
        float2 of_column = make_float2(0, 0);
        if (OF == OF_KEYS) {
            of_column = *(const float2 *)&delta[8 * n + column];
        }
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float own = OF == OF_QUERIES ? row_delta[e / 2] : e % 2 ? of_column.y : of_column.x;
            dp[n][e] = s[n][e] * (dp[n][e] - own);
        }
    }
}

// No probability where there is no key.
static __device__ __forceinline__ void mask_columns(float (&s)[N][4], int count) {
    const int column = 2 * (lane_of_warp() % 4);
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[n][e] = 8 * n + column + e % 2 < count ? s[n][e] : 0.0f;
        }
    }
}

// Rows of a gradient that exist; zeros from row `count` on, where keys are masked out.
template <int D>
static __device__ __forceinline__ void store_gradient(const ts_attention &p, ts_attention_place at, void *to,
                                                      int64_t row_stride, int64_t batch_stride, int64_t rows, int count,
                                                      const float (&sum)[1][D / 8][4], float factor) {
    const int first = at.tile * own_rows<D> + (int)threadIdx.x / 32 * 16 + lane_of_warp() / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = first + 8 * r;
        if (row < rows) {
            store_row(to, p.f32_results, at.batch * batch_stride + row * row_stride + at.head * p.head_dim,
                      (int)p.head_dim, sum[0], r, row < count ? factor : 0.0f);
        }
    }
}

template <int D, int OF>
static __global__ void __launch_bounds__(block_threads<D>, D == 128 ? 1 : 2)
    attention_backward_mma(ts_attention p, int tiles, const float *delta) {
    TS_SHARED_BYTES(backward_shared<D>, shared);
    const ts_attention_place at = ts_attention_place_of(p, tiles);
    const operands from = operands_of<OF>(p, delta, at);
    const int keys = ts_attention_keys(p, at.batch), queries = (int)p.queries, head_dim = (int)p.head_dim;
    const int first = at.tile * own_rows<D>, own_count = OF == OF_KEYS ? keys : queries;
    const int other_count = OF == OF_QUERIES ? keys : first < keys ? queries : 0;  // keys masked out have no gradient
    const int row = (int)threadIdx.x / 32 * 16;
    const float scale = p.scale * TS_LOG2_E;
    float sum_0[1][D / 8][4] = {}, sum_1[1][D / 8][4] = {}, row_lse[2] = {}, row_delta[2] = {};

    if (threadIdx.x == 0) {
        shared->from = from;
    }
    load_tile<own_rows<D>, D, block_threads<D>>(shared->own_0, from.own_0, from.own_row_0, first, own_count, head_dim);
    load_tile<own_rows<D>, D, block_threads<D>>(shared->own_1, from.own_1, from.own_row_1, first, own_count, head_dim);
    load_others<D, OF>(shared, 0, from, 0, other_count, head_dim);
    for (int r = 0; r < 2 && OF == OF_QUERIES; r++) {
        const int query = first + row + 8 * r + lane_of_warp() / 4;
        row_lse[r] = query < queries ? from.lse[query] * -TS_LOG2_E : 0.0f;
        row_delta[r] = query < queries ? from.delta[query] : 0.0f;
    }
    for (int other = 0, buffer = 0; other < other_count; other += OTHERS, buffer ^= 1) {
        float s[1][N][4], dp[1][N][4];
        uint32_t rounded[1][N / 2][4];
        const auto *to = &shared->other[buffer];
        ts_cp_async_wait<0>();
        __syncthreads();  // these others are there, and nobody reads those before any more
        if (other_count - other > OTHERS) {
            load_others<D, OF>(shared, buffer ^ 1, shared->from, other + OTHERS, other_count, head_dim);
        }
        multiply_rows<D, 1, N>(s, shared->own_0, row, to->tile_0);
        form_probabilities<OF>(s[0], row_lse, to->lse, scale);
        if (OF == OF_QUERIES && other_count - other < OTHERS) {
            mask_columns(s[0], other_count - other);
        }
        multiply_rows<D, 1, N>(dp, shared->own_1, row, to->tile_1);
        form_gradients<OF>(dp[0], s[0], row_delta, to->delta);
        if (OF == OF_KEYS) {
            round_scores<1, N>(rounded, s);
            accumulate<D, 1, N / 2>(sum_1, rounded, to->tile_1);
        }
        round_scores<1, N>(rounded, dp);
        accumulate<D, 1, N / 2>(sum_0, rounded, to->tile_0);
    }
    ts_cp_async_wait<0>();
    const ts_attention_place again = ts_attention_place_of(p, ts_opaque(tiles));  // not kept over the loop
    if (OF == OF_QUERIES) {
        store_gradient<D>(p, again, p.d_q, p.q_row, p.q_batch, p.queries, queries, sum_0, p.scale);
    } else {
        store_gradient<D>(p, again, p.d_k, p.k_row, p.k_batch, p.keys, keys, sum_0, p.scale);
        store_gradient<D>(p, again, p.d_v, p.v_row, p.v_batch, p.keys, keys, sum_1, 1.0f);
    }
}

template <int D, int OF> static int launch_pass(const ts_attention *p, const float *delta) {
    const int tiles = ts_attention_tiles(OF == OF_KEYS ? p->keys : p->queries, own_rows<D>);
    const size_t bytes = sizeof(backward_shared<D>);
    TS_TRY(ts_attention_allow_shared(attention_backward_mma<D, OF>, bytes));
    return TS_LAUNCH((attention_backward_mma<D, OF>), ts_attention_blocks(p, tiles), block_threads<D>, bytes, *p, tiles,
                     delta);
}

template <int D> static int launch(const ts_attention *p, const float *delta) {
    TS_TRY((launch_pass<D, OF_KEYS>(p, delta)));
    return launch_pass<D, OF_QUERIES>(p, delta);
}

}  // namespace

extern "C" int ts_cuda_attention_backward_mma(const ts_attention *p) {
    const size_t rows = (size_t)(p->batch * p->heads * p->queries);
    float *delta = (float *)ts_cuda_scratch(TS_CUDA_SCRATCH_ATTENTION, rows * sizeof(float));
    if (!delta) {
        return TS_ERESOURCE;
    }
    TS_TRY(ts_cuda_attention_delta(p, delta));
    return p->head_dim <= 32 ? launch<32>(p, delta) : p->head_dim <= 64 ? launch<64>(p, delta) : launch<128>(p, delta);
}
