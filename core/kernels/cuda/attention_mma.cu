// SPDX-License-Identifier: Apache-2.0
// Attention forward on tensor cores by mma.sync (sm_80 and newer), after Dao 2023, "FlashAttention-2": bf16 operands,
// f32 sums, probabilities in bf16.
//
// A block of 4 warps serves 128 queries, 32 a warp: each fragment of keys and values that a warp reads from shared
// memory is used twice, which the tensor cores need to stay ahead of it. Keys are copied while the values are
// multiplied, values while the keys are: one buffer for each, so that two blocks fit a multiprocessor.
#include "core/kernels/cuda/attention_mma.cuh"

namespace {

enum { WARPS = 4, THREADS = 32 * WARPS, M = 2, QUERIES = WARPS * 16 * M, KEYS = 64, N = KEYS / 8 };

template <int D> struct forward_shared {
    uint16_t q[QUERIES * D], k[KEYS * D], v[KEYS * D];
    const uint16_t *head_k, *head_v;  // where they come from; here and not in registers, which the sums need
};

// Statistics of a lane's rows: `reference`, a score, and the sum of 2^(log2 e scale (score - reference)) over the
// columns of this lane.
struct softmax_rows {
    float reference[M][2], sum[M][2];
};

// Columns from `count` on become -inf.
static __device__ __forceinline__ void mask_columns(float (&s)[M][N][4], int count) {
    const int column = 2 * (lane_of_warp() % 4);
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[m][n][e] = 8 * n + column + e % 2 < count ? s[m][n][e] : -INFINITY;
            }
        }
    }
}

// The largest of a row, which four lanes share.
static __device__ __forceinline__ float row_top(const float (&s)[N][4], int r) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < N; n++) {
        top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    return fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
}

// Raises the references of rows with a score that is more than 2^GROWTH times as probable, and brings what was summed
// before to them. Small rises, by far the most, cost nothing: f32 and bf16 have room for them.
template <int D>
static __device__ __forceinline__ void raise_references(softmax_rows &rows, const float (&s)[M][N][4],
                                                        float (&sum)[M][D / 8][4], float scale) {
    constexpr float GROWTH = 8;
    float top[M][2];
    bool raise = false;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[m][r] = row_top(s[m], r);
            raise |= (top[m][r] - rows.reference[m][r]) * scale > GROWTH;
        }
    }
    if (!__any_sync(0xffffffffu, raise)) {
        return;
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            // A row's result must not depend on the rows that share its warp.
            const bool this_row = (top[m][r] - rows.reference[m][r]) * scale > GROWTH;
            const float factor = this_row ? ts_exp2((rows.reference[m][r] - top[m][r]) * scale) : 1.0f;
            rows.reference[m][r] = this_row ? top[m][r] : rows.reference[m][r];
            rows.sum[m][r] *= factor;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                sum[m][n][2 * r] *= factor;
                sum[m][n][2 * r + 1] *= factor;
            }
        }
    }
}

// Scores become probabilities relative to the references.
static __device__ __forceinline__ void exponentiate(softmax_rows &rows, float (&s)[M][N][4], float scale) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float offset = rows.reference[m][r] * scale;
            float sum = 0;
#pragma unroll
            for (int n = 0; n < N; n++) {
                s[m][n][2 * r] = ts_exp2(s[m][n][2 * r] * scale - offset);
                s[m][n][2 * r + 1] = ts_exp2(s[m][n][2 * r + 1] * scale - offset);
                sum += s[m][n][2 * r] + s[m][n][2 * r + 1];
            }
            rows.sum[m][r] += sum;
        }
    }
}

template <int D>
static __device__ __forceinline__ void store_results(const ts_attention &p, ts_attention_place at,
                                                     const softmax_rows &rows, const float (&sum)[M][D / 8][4]) {
    const int lane = lane_of_warp(), warp = (int)threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float total = rows.sum[m][r];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const int64_t query = at.tile * QUERIES + (warp * M + m) * 16 + r * 8 + lane / 4;
            if (query < p.queries) {
                if (p.lse && lane % 4 == 0) {
                    ts_attention_statistics(p, p.lse, at)[query] = rows.reference[m][r] * p.scale + logf(total);
                }
                store_row(p.out, p.f32_results, at.batch * p.out_batch + query * p.out_row + at.head * p.head_dim,
                          (int)p.head_dim, sum[m], r, total == 0 ? 0.0f : 1.0f / total);  // 0 without keys
            }
        }
    }
}

template <int D> static __global__ void __launch_bounds__(THREADS, 2) attention_forward_mma(ts_attention p, int tiles) {
    TS_SHARED_BYTES(forward_shared<D>, shared);
    const ts_attention_place at = ts_attention_place_of(p, tiles);
    const int keys = ts_attention_keys(p, at.batch), head_dim = (int)p.head_dim;
    const uint16_t *q = ts_attention_head(p, (const uint16_t *)p.q, p.q_batch, at);
    const uint16_t *k = ts_attention_head(p, (const uint16_t *)p.k, p.k_batch, at);
    const float scale = p.scale * TS_LOG2_E;
    softmax_rows rows;
    float sum[M][D / 8][4] = {};
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
        rows.reference[i / 2][i % 2] = -INFINITY;
        rows.sum[i / 2][i % 2] = 0;
    }
    if (threadIdx.x == 0) {
        shared->head_k = k;
        shared->head_v = ts_attention_head(p, (const uint16_t *)p.v, p.v_batch, at);
    }
    load_tile<QUERIES, D, THREADS>(shared->q, q, p.q_row, at.tile * QUERIES, (int)p.queries, head_dim);
    load_tile<KEYS, D, THREADS>(shared->k, k, p.k_row, 0, keys, head_dim);
    ts_cp_async_commit();
    for (int key = 0; key < keys; key += KEYS) {
        float s[M][N][4];
        uint32_t probabilities[M][N / 2][4];
        ts_cp_async_wait<0>();
        __syncthreads();  // the keys are there, and nobody reads the values before these any more
        load_tile<KEYS, D, THREADS>(shared->v, shared->head_v, p.v_row, key, keys, head_dim);
        ts_cp_async_commit();
        multiply_rows<D, M, N>(s, shared->q, (int)threadIdx.x / 32 * 16 * M, shared->k);
        if (keys - key < KEYS) {
            mask_columns(s, keys - key);
        }
        raise_references<D>(rows, s, sum, scale);
        exponentiate(rows, s, scale);
        round_scores<M, N>(probabilities, s);
        ts_cp_async_wait<0>();
        __syncthreads();  // the values are there, and nobody reads these keys any more
        if (keys - key > KEYS) {
            load_tile<KEYS, D, THREADS>(shared->k, shared->head_k, p.k_row, key + KEYS, keys, head_dim);
            ts_cp_async_commit();
        }
        accumulate<D, M, N / 2>(sum, probabilities, shared->v);
    }
    ts_cp_async_wait<0>();
    // Worked out anew: kept over the loop it would take registers that the sums need.
    store_results<D>(p, ts_attention_place_of(p, ts_opaque(tiles)), rows, sum);
}

template <int D> static int launch(const ts_attention *p) {
    const int tiles = ts_attention_tiles(p->queries, QUERIES);
    const size_t bytes = sizeof(forward_shared<D>);
    TS_TRY(ts_attention_allow_shared(attention_forward_mma<D>, bytes));
    return TS_LAUNCH(attention_forward_mma<D>, ts_attention_blocks(p, tiles), THREADS, bytes, *p, tiles);
}

}  // namespace

extern "C" int ts_cuda_attention_forward_mma(const ts_attention *p) {
    return p->head_dim <= 32 ? launch<32>(p) : p->head_dim <= 64 ? launch<64>(p) : launch<128>(p);
}
