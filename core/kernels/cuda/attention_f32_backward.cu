// SPDX-License-Identifier: Apache-2.0
// Attention backward on CUDA cores, in f32, with P = 2^(S - lse) formed anew (Dao et al. 2022, "FlashAttention"):
//
//   dP = dO V^T;  dS = P (dP - delta);  dV = P^T dO;  dK = scale dS^T Q;  dQ = scale dS K;  d_bias = sums of dS
//
// Two passes of one kernel, so that each result is the sum of one block, in order: blocks of keys go through the
// queries for d_k and d_v, blocks of queries through the keys for d_q. In a block "own" rows stay and "other" rows
// pass: a score is S or its transpose, always [own, other].
#include "core/kernels/cuda/attention_f32.cuh"

namespace {

enum { OF_QUERIES, OF_KEYS };

template <int D, int EDGE> struct backward_shared {
    float own_0[EDGE * row_stride<D>], own_1[EDGE * row_stride<D>];      // q and d_out, or k and v
    float other_0[EDGE * row_stride<D>], other_1[EDGE * row_stride<D>];  // k and v, or q and d_out
    float scores[EDGE * score_stride<EDGE>];
    float lse[EDGE], delta[EDGE];  // of the queries, lse times log2 e
};

// Queries that there are not have an infinite lse: their probabilities are 0.
template <int EDGE>
static __device__ __forceinline__ void load_statistics(const ts_attention &p, ts_attention_place at, float *lse,
                                                       float *delta, const float *all_delta, int first) {
    for (int i = (int)threadIdx.x; i < EDGE; i += THREADS) {
        const bool there = first + i < p.queries;
        lse[i] = there ? ts_attention_statistics(p, p.lse, at)[first + i] * TS_LOG2_E : INFINITY;
        delta[i] = there ? ts_attention_statistics(p, all_delta, at)[first + i] : 0.0f;
    }
}

// s becomes P, dp becomes dS.
template <int EDGE, int OF>
static __device__ __forceinline__ void
form_scores(const ts_attention &p, float (&s)[EDGE / SIDE][EDGE / SIDE], float (&dp)[EDGE / SIDE][EDGE / SIDE],
            const float *strip, const float *lse, const float *delta, int first_own, int first_other, int keys) {
    const float scale = p.scale * TS_LOG2_E;
    for (int i = 0; i < EDGE / SIDE; i++) {
        for (int j = 0; j < EDGE / SIDE; j++) {
            const int own = thread_y() + SIDE * i, other = thread_x() + SIDE * j;
            const int query = OF == OF_KEYS ? other : own;
            const int key = OF == OF_KEYS ? first_own + own : first_other + other;
            float bias = 0;
            if (strip) {
                const int64_t row = (OF == OF_KEYS ? first_other : first_own) + query;
                bias = key < keys && row < p.queries ? strip[key - row + p.queries - 1] * TS_LOG2_E : 0.0f;
            }
            s[i][j] = key < keys ? exp2f(s[i][j] * scale + bias - lse[query]) : 0.0f;
            dp[i][j] = s[i][j] * (dp[i][j] - delta[query]);
        }
    }
}

// Adds the diagonals of a tile of dS to this block's sums: element key - (query - first) + EDGE - 1. Tiles come in the
// order of the keys, so the last EDGE diagonals of each are met for the first time.
template <int EDGE>
static __device__ __forceinline__ void sum_diagonals(float *sums, const float *scores, int first_key) {
    for (int t = (int)threadIdx.x; t < 2 * EDGE - 1; t += THREADS) {
        float sum = first_key > 0 && t < EDGE - 1 ? sums[first_key + t] : 0.0f;
        for (int i = 0; i < EDGE; i++) {
            const int j = i + t - (EDGE - 1);
            if (j >= 0 && j < EDGE) {
                sum += scores[i * score_stride<EDGE> + j];
            }
        }
        sums[first_key + t] = sum;
    }
}

// Rows of a result times `factor`.
template <typename T, int D, int EDGE>
static __device__ void store_gradient(const ts_attention &p, ts_attention_place at, void *to, int64_t row_stride,
                                      int64_t batch_stride, int64_t count, const float (&sum)[EDGE / SIDE][D / SIDE],
                                      float factor) {
    float factors[EDGE / SIDE];
    for (int i = 0; i < EDGE / SIDE; i++) {
        factors[i] = factor;
    }
    store_rows<T, D, EDGE>(to, p.f32_results, at.batch * batch_stride + at.head * p.head_dim, row_stride,
                           at.tile * EDGE, (int)count, (int)p.head_dim, sum, factors);
}

// diagonals: NULL, or [batch, heads, tiles, span] sums of dS along the diagonals of each tile of queries
template <typename T, int D, int EDGE, int OF>
static __global__ void __launch_bounds__(THREADS, 1)
    attention_backward_general(ts_attention p, int tiles, const float *delta, float *diagonals, int span) {
    using tiles_of_block = backward_shared<D, EDGE>;
    TS_SHARED_BYTES(tiles_of_block, shared);
    const ts_attention_place at = ts_attention_place_of(p, tiles);
    const int keys = ts_attention_keys(p, at.batch), queries = (int)p.queries, head_dim = (int)p.head_dim;
    const int first = at.tile * EDGE, own_count = OF == OF_KEYS ? keys : queries;
    const int other_count = OF == OF_QUERIES ? keys : first < keys ? queries : 0;  // keys masked out have no gradient
    const T *q = ts_attention_head(p, (const T *)p.q, p.q_batch, at);
    const T *k = ts_attention_head(p, (const T *)p.k, p.k_batch, at);
    const T *v = ts_attention_head(p, (const T *)p.v, p.v_batch, at);
    const T *d_out = ts_attention_head(p, (const T *)p.d_out, p.out_batch, at);
    const float *strip = p.bias_strip ? p.bias_strip + at.head * (p.queries + p.keys - 1) : nullptr;
    float sum_0[EDGE / SIDE][D / SIDE] = {}, sum_1[EDGE / SIDE][D / SIDE] = {};

    load_rows<D, EDGE>(shared->own_0, OF == OF_KEYS ? k : q, OF == OF_KEYS ? p.k_row : p.q_row, first, own_count,
                       head_dim);
    load_rows<D, EDGE>(shared->own_1, OF == OF_KEYS ? v : d_out, OF == OF_KEYS ? p.v_row : p.out_row, first, own_count,
                       head_dim);
    if (OF == OF_QUERIES) {
        load_statistics<EDGE>(p, at, shared->lse, shared->delta, delta, first);
    }
    for (int other = 0; other < other_count; other += EDGE) {
        float s[EDGE / SIDE][EDGE / SIDE], dp[EDGE / SIDE][EDGE / SIDE];
        load_rows<D, EDGE>(shared->other_0, OF == OF_KEYS ? q : k, OF == OF_KEYS ? p.q_row : p.k_row, other,
                           other_count, head_dim);
        load_rows<D, EDGE>(shared->other_1, OF == OF_KEYS ? d_out : v, OF == OF_KEYS ? p.out_row : p.v_row, other,
                           other_count, head_dim);
        if (OF == OF_KEYS) {
            load_statistics<EDGE>(p, at, shared->lse, shared->delta, delta, other);
        }
        __syncthreads();
        multiply_rows<D, EDGE>(s, shared->own_0, shared->other_0);
        multiply_rows<D, EDGE>(dp, shared->own_1, shared->other_1);
        form_scores<EDGE, OF>(p, s, dp, strip, shared->lse, shared->delta, first, other, keys);
        if (OF == OF_KEYS) {
            store_scores<EDGE>(shared->scores, s);
            __syncwarp();
            accumulate<D, EDGE>(sum_1, shared->scores, shared->other_1);
            __syncwarp();
        }
        store_scores<EDGE>(shared->scores, dp);
        __syncwarp();
        accumulate<D, EDGE>(sum_0, shared->scores, shared->other_0);
        __syncthreads();
        if (OF == OF_QUERIES && diagonals) {
            sum_diagonals<EDGE>(diagonals + (int64_t)blockIdx.x * span, shared->scores, other);
            __syncthreads();
        }
    }
    if (OF == OF_QUERIES) {
        store_gradient<T, D, EDGE>(p, at, p.d_q, p.q_row, p.q_batch, p.queries, sum_0, p.scale);
    } else {
        store_gradient<T, D, EDGE>(p, at, p.d_k, p.k_row, p.k_batch, p.keys, sum_0, p.scale);
        store_gradient<T, D, EDGE>(p, at, p.d_v, p.v_row, p.v_batch, p.keys, sum_1, 1.0f);
    }
}

// d_bias_strip += the diagonals of all tiles and batch items, in order: a thread for each element of the strip.
static __global__ void __launch_bounds__(THREADS)
    attention_sum_diagonals(ts_attention p, int tiles, const float *diagonals, int span, int edge) {
    const int64_t width = p.queries + p.keys - 1, e = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (e >= p.heads * width) {
        return;
    }
    const int64_t head = e / width, place = e % width;
    float sum = 0;
    for (int64_t b = 0; b < p.batch; b++) {
        const int visited = (ts_attention_keys(p, b) + edge - 1) / edge * edge;  // keys in tiles that were gone through
        for (int tile = 0; tile < tiles; tile++) {
            const int64_t at = place - (p.queries - 1) + (int64_t)tile * edge + edge - 1;
            if (at >= 0 && at < visited + edge - 1) {
                sum += diagonals[((b * p.heads + head) * tiles + tile) * span + at];
            }
        }
    }
    p.d_bias_strip[e] += sum;
}

// `lanes` of a warp, a power of two, for each query, N numbers at a time each.
template <typename T, int N>
static __global__ void __launch_bounds__(THREADS) attention_delta(ts_attention p, int tiles, int lanes, float *delta) {
    const ts_attention_place at = ts_attention_place_of(p, tiles);
    const int64_t query = (int64_t)at.tile * (THREADS / lanes) + (int)threadIdx.x / lanes;
    const T *out = ts_attention_head(p, (const T *)p.out, p.out_batch, at) + query * p.out_row;
    const T *d_out = ts_attention_head(p, (const T *)p.d_out, p.out_batch, at) + query * p.out_row;
    float sum = 0;
    for (int64_t d = (int)threadIdx.x % lanes * N; d < p.head_dim && query < p.queries; d += lanes * N) {
        float x[N], d_x[N];
        if constexpr (N > 1) {
            ts_load(x, out + d);
            ts_load(d_x, d_out + d);
        } else {
            x[0] = ts_to_f32(out[d]);
            d_x[0] = ts_to_f32(d_out[d]);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            sum += x[i] * d_x[i];
        }
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    }
    if ((int)threadIdx.x % lanes == 0 && query < p.queries) {
        ts_attention_statistics(p, delta, at)[query] = sum;
    }
}

template <typename T, int D, int EDGE, int OF>
static int launch_pass(const ts_attention *p, const float *delta, float *diagonals, int span) {
    const int tiles = ts_attention_tiles(OF == OF_KEYS ? p->keys : p->queries, EDGE);
    const unsigned blocks = ts_attention_blocks(p, tiles);
    if (blocks == 0) {
        return 0;
    }
    const size_t bytes = sizeof(backward_shared<D, EDGE>);
    TS_TRY(ts_attention_allow_shared(attention_backward_general<T, D, EDGE, OF>, bytes));
    return TS_LAUNCH((attention_backward_general<T, D, EDGE, OF>), blocks, THREADS, bytes, *p, tiles, delta, diagonals,
                     span);
}

template <typename T, int D, int EDGE> static int launch(const ts_attention *p) {
    const int tiles = ts_attention_tiles(p->queries, EDGE);
    const int span = (ts_attention_tiles(p->keys, EDGE) + 1) * EDGE;
    const bool bias = p->d_bias_strip && p->keys > 0;
    const int64_t rows = p->batch * p->heads * p->queries;
    const int64_t sums = bias ? (int64_t)ts_attention_blocks(p, tiles) * span : 0;
    float *delta = (float *)ts_cuda_scratch(TS_CUDA_SCRATCH_ATTENTION, (size_t)(rows + sums + 1) * sizeof(float));
    if (!delta) {
        return TS_ERESOURCE;
    }
    float *diagonals = bias ? delta + rows : nullptr;
    if (p->keys > 0) {
        TS_TRY(ts_cuda_attention_delta(p, delta));
    }
    TS_TRY((launch_pass<T, D, EDGE, OF_KEYS>(p, delta, nullptr, 0)));
    TS_TRY((launch_pass<T, D, EDGE, OF_QUERIES>(p, delta, diagonals, span)));
    const int64_t elements = p->heads * (p->queries + p->keys - 1);
    if (sums == 0) {
        return 0;
    }
    return TS_LAUNCH(attention_sum_diagonals, (unsigned)((elements + THREADS - 1) / THREADS), THREADS, 0, *p, tiles,
                     diagonals, span, EDGE);
}

template <typename T> static int backward(const ts_attention *p) {
    return p->head_dim <= 32    ? launch<T, 32, 64>(p)
           : p->head_dim <= 64  ? launch<T, 64, 64>(p)
           : p->head_dim <= 128 ? launch<T, 128, 32>(p)
                                : launch<T, 256, 32>(p);
}

template <typename T, int N> static int launch_delta(const ts_attention *p, float *delta) {
    int lanes = 32;
    while (lanes > 1 && lanes / 2 * N >= p->head_dim) {
        lanes /= 2;
    }
    const int tiles = ts_attention_tiles(p->queries, THREADS / lanes);
    const unsigned blocks = ts_attention_blocks(p, tiles);
    return blocks == 0 ? 0 : TS_LAUNCH((attention_delta<T, N>), blocks, THREADS, 0, *p, tiles, lanes, delta);
}

}  // namespace

extern "C" int ts_cuda_attention_delta(const ts_attention *p, float *delta) {
    return p->dtype == TS_F32                 ? launch_delta<float, 1>(p, delta)
           : ts_attention_is_aligned(p, true) ? launch_delta<ts_bf16, 8>(p, delta)
                                              : launch_delta<ts_bf16, 1>(p, delta);
}

extern "C" int ts_cuda_attention_backward_general(const ts_attention *p) {
    return p->dtype == TS_BF16 ? backward<ts_bf16>(p) : backward<float>(p);
}
