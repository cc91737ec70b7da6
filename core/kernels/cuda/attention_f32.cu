// SPDX-License-Identifier: Apache-2.0
// Attention forward on CUDA cores, in f32: for f32 operands, and for what the tensor-core kernels do not take.
//
// A block serves a tile of queries. It goes through the keys tile by tile, with the softmax computed online (Milakov &
// Gimelshein 2018; Dao et al. 2022, "FlashAttention"): a tile of scores never leaves the block.
#include "core/kernels/cuda/attention_f32.cuh"

namespace {

template <int D, int EDGE> struct forward_shared {
    float q[EDGE * row_stride<D>];
    float kv[EDGE * row_stride<D>];  // keys, then their values
    float scores[EDGE * score_stride<EDGE>];
};

// Statistics of the rows of a thread: the largest score so far and, of the columns of this thread alone, the sum of
// 2^(score - largest).
template <int EDGE> struct softmax_rows { float top[EDGE / SIDE], sum[EDGE / SIDE]; };

// s = log2 e (scale s + bias), -inf where there is no key
template <int EDGE>
static __device__ __forceinline__ void scale_scores(const ts_attention &p, float (&s)[EDGE / SIDE][EDGE / SIDE],
                                                    const float *strip, int first_query, int first_key, int keys) {
    const float scale = p.scale * TS_LOG2_E;
    for (int i = 0; i < EDGE / SIDE; i++) {
        const int query = first_query + thread_y() + SIDE * i;
        for (int j = 0; j < EDGE / SIDE; j++) {
            const int key = first_key + thread_x() + SIDE * j;
            const bool there = key < keys && query < p.queries;
            const float bias = strip && there ? strip[key - query + p.queries - 1] * TS_LOG2_E : 0.0f;
            s[i][j] = key < keys ? s[i][j] * scale + bias : -INFINITY;
        }
    }
}

// Scores become probabilities relative to the largest so far; what was summed before is brought to the same measure.
template <int D, int EDGE>
static __device__ __forceinline__ void softmax_step(softmax_rows<EDGE> &rows, float (&s)[EDGE / SIDE][EDGE / SIDE],
                                                    float (&sum)[EDGE / SIDE][D / SIDE]) {
    for (int i = 0; i < EDGE / SIDE; i++) {
        float top = rows.top[i];
        for (int j = 0; j < EDGE / SIDE; j++) {
            top = fmaxf(top, s[i][j]);
        }
        for (int distance = SIDE / 2; distance > 0; distance /= 2) {
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, distance));
        }
        const float reference = top == -INFINITY ? 0.0f : top;  // only NaN so far: they must stay NaN
        const float before = exp2f(rows.top[i] - reference);
        rows.top[i] = top;
        rows.sum[i] *= before;
        for (int j = 0; j < EDGE / SIDE; j++) {
            s[i][j] = exp2f(s[i][j] - reference);
            rows.sum[i] += s[i][j];
        }
        for (int c = 0; c < D / SIDE; c++) {
            sum[i][c] *= before;
        }
    }
}

// Turns sums into the factors of the results, and stores the statistics.
template <int EDGE>
static __device__ __forceinline__ void finish_rows(const ts_attention &p, ts_attention_place at,
                                                   const softmax_rows<EDGE> &rows, float (&factor)[EDGE / SIDE]) {
    for (int i = 0; i < EDGE / SIDE; i++) {
        float sum = rows.sum[i];
        for (int distance = SIDE / 2; distance > 0; distance /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        }
        const int query = at.tile * EDGE + thread_y() + SIDE * i;
        if (p.lse && thread_x() == 0 && query < p.queries) {
            ts_attention_statistics(p, p.lse, at)[query] = (rows.top[i] + log2f(sum)) * TS_LN_2;
        }
        factor[i] = sum == 0 ? 0.0f : 1.0f / sum;  // 0 without keys
    }
}

template <typename T, int D, int EDGE>
static __global__ void __launch_bounds__(THREADS, 1) attention_forward_general(ts_attention p, int tiles) {
    using tiles_of_block = forward_shared<D, EDGE>;
    TS_SHARED_BYTES(tiles_of_block, shared);
    const ts_attention_place at = ts_attention_place_of(p, tiles);
    const int keys = ts_attention_keys(p, at.batch), head_dim = (int)p.head_dim, first = at.tile * EDGE;
    const T *q = ts_attention_head(p, (const T *)p.q, p.q_batch, at);
    const T *k = ts_attention_head(p, (const T *)p.k, p.k_batch, at);
    const T *v = ts_attention_head(p, (const T *)p.v, p.v_batch, at);
    const float *strip = p.bias_strip ? p.bias_strip + at.head * (p.queries + p.keys - 1) : nullptr;
    softmax_rows<EDGE> rows;
    float sum[EDGE / SIDE][D / SIDE] = {}, factor[EDGE / SIDE];
    for (int i = 0; i < EDGE / SIDE; i++) {
        rows.top[i] = -INFINITY;
        rows.sum[i] = 0;
    }
    load_rows<D, EDGE>(shared->q, q, p.q_row, first, (int)p.queries, head_dim);
    for (int key = 0; key < keys; key += EDGE) {
        float s[EDGE / SIDE][EDGE / SIDE];
        load_rows<D, EDGE>(shared->kv, k, p.k_row, key, keys, head_dim);
        __syncthreads();
        multiply_rows<D, EDGE>(s, shared->q, shared->kv);
        __syncthreads();
        load_rows<D, EDGE>(shared->kv, v, p.v_row, key, keys, head_dim);
        scale_scores<EDGE>(p, s, strip, first, key, keys);
        softmax_step<D, EDGE>(rows, s, sum);
        store_scores<EDGE>(shared->scores, s);
        __syncthreads();
        accumulate<D, EDGE>(sum, shared->scores, shared->kv);
        __syncthreads();
    }
    finish_rows<EDGE>(p, at, rows, factor);
    store_rows<T, D, EDGE>(p.out, p.f32_results, at.batch * p.out_batch + at.head * p.head_dim, p.out_row, first,
                           (int)p.queries, head_dim, sum, factor);
}

template <typename T, int D, int EDGE> static int launch(const ts_attention *p) {
    const int tiles = ts_attention_tiles(p->queries, EDGE);
    const unsigned blocks = ts_attention_blocks(p, tiles);
    if (blocks == 0) {
        return 0;
    }
    const size_t bytes = sizeof(forward_shared<D, EDGE>);
    TS_TRY(ts_attention_allow_shared(attention_forward_general<T, D, EDGE>, bytes));
    return TS_LAUNCH((attention_forward_general<T, D, EDGE>), blocks, THREADS, bytes, *p, tiles);
}

template <typename T> static int forward(const ts_attention *p) {
    return p->head_dim <= 32    ? launch<T, 32, 64>(p)
           : p->head_dim <= 64  ? launch<T, 64, 64>(p)
           : p->head_dim <= 128 ? launch<T, 128, 64>(p)
                                : launch<T, 256, 32>(p);
}

}  // namespace

extern "C" int ts_cuda_attention_forward_general(const ts_attention *p) {
    return p->dtype == TS_BF16 ? forward<ts_bf16>(p) : forward<float>(p);
}
