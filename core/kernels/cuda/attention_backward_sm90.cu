// SPDX-License-Identifier: Apache-2.0
// Attention backward for sm_90a: the formulas of attention_f32_backward.cu, on Hopper's asynchronous tensor cores.
//
// Two passes: blocks that own keys find d_k and d_v, blocks that own queries d_q; the others pass by in tiles. That S
// and dP are formed twice costs two products more than the five that must be. It buys sums in a fixed order without
// blocks that wait for each other's part of d_q, or f32 sums in memory; and scores that never leave registers, since a
// warpgroup's P and dS, rows by rows that it owns, are operands of its next product as they are.
//
// The products of a tile are begun in the order S, dP, then the sums of P and of dS: the tensor cores have work while
// exponentials are taken, from this warpgroup or the other. Where there are registers for it (d_q's pass), the sum
// still runs when the next tile's products are begun.
#include "core/kernels/cuda/attention_sm90.cuh"

namespace {

enum { OF_QUERIES, OF_KEYS };

// Rows of a tile of the others, and buffers for them: what registers and shared memory allow.
template <int OF> constexpr int other_rows = OF == OF_KEYS ? 64 : 96;
template <int OF> constexpr int stages = OF == OF_KEYS ? 4 : 3;

template <int D, int OF> struct backward_shared {
    tile<OWN_ROWS, D> own_0, own_1;  // k and v, or q and d_out
    struct {
        tile<other_rows<OF>, D> tile_0, tile_1;                        // q and d_out, or k and v
        alignas(16) float lse[other_rows<OF>], delta[other_rows<OF>];  // of queries that pass
    } other[stages<OF>];
    ring_barriers<stages<OF>> of_others;
    uint64_t of_own;
};

struct backward_maps {
    CUtensorMap own_0, own_1, other_0, other_1;
};

// ---- statistics

// Of a query, as the passes use them: lse in base 2, and delta = sum of d_out * out. [batch, heads, padded]; a query
// that is not there has no probabilities.
struct query_statistics {
    float *lse, *delta;
    int padded;
};

static __device__ __forceinline__ query_statistics statistics_of_head(const ts_attention &p, query_statistics all,
                                                                      ts_attention_place at) {
    const int64_t first = (at.batch * p.heads + at.head) * all.padded;
    return {all.lse + first, all.delta + first, all.padded};
}

// A row is read by D / 8 lanes.
template <int D>
static __global__ void __launch_bounds__(OWN_ROWS)
    attention_statistics_sm90(ts_attention p, query_statistics all, int tiles) {
    const ts_attention_place at = ts_attention_place_of(p, tiles);
    const query_statistics out = statistics_of_head(p, all, at);
    const uint16_t *const o = ts_attention_head(p, (const uint16_t *)p.out, p.out_batch, at);
    const uint16_t *const d_o = ts_attention_head(p, (const uint16_t *)p.d_out, p.out_batch, at);
    const int lanes = D / 8, lane = (int)threadIdx.x % lanes, rows = OWN_ROWS / lanes;
    for (int row = (int)threadIdx.x / lanes; row < OWN_ROWS; row += rows) {
        const int query = at.tile * OWN_ROWS + row;
        float delta = 0;
        if (query < p.queries) {
            float a[8], b[8];
            ts_load(a, (const ts_bf16 *)o + query * p.out_row + 8 * lane);
            ts_load(b, (const ts_bf16 *)d_o + query * p.out_row + 8 * lane);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                delta += a[i] * b[i];
            }
        }
#pragma unroll
        for (int by = lanes / 2; by; by /= 2) {
            delta += __shfl_xor_sync(0xffffffffu, delta, by);
        }
        if (lane == 0) {
            out.delta[query] = delta;
            out.lse[query] = query < p.queries ? ts_attention_statistics(p, p.lse, at)[query] * TS_LOG2_E : INFINITY;
        }
    }
}

// ---- copies

template <int D, int OF>
static __device__ __forceinline__ void copy_tiles(backward_shared<D, OF> *shared, const backward_maps &maps,
                                                  ts_attention_place at, query_statistics of_head, int others) {
    const int head = (int)at.head, batch = (int)at.batch, own = at.tile * OWN_ROWS;
    ts_mbarrier_arrive_expect(&shared->of_own, 2 * (int)sizeof shared->own_0);
    ts_copy_box(&shared->own_0, &maps.own_0, &shared->of_own, 0, own, 0, head, batch);
    ts_copy_box(&shared->own_1, &maps.own_1, &shared->of_own, 0, own, 0, head, batch);
    ring_place<stages<OF>> place;
    for (int other = 0; other < others; other += other_rows<OF>, place.advance()) {
        auto *const to = &shared->other[place.stage];
        const int statistics = OF == OF_KEYS ? (int)sizeof to->lse : 0;
        uint64_t *const full = shared->of_others.begin_copies(place, 2 * (int)sizeof to->tile_0 + 2 * statistics);
        ts_copy_box(&to->tile_0, &maps.other_0, full, 0, other, 0, head, batch);
        ts_copy_box(&to->tile_1, &maps.other_1, full, 0, other, 0, head, batch);
        if (OF == OF_KEYS) {
            ts_copy_bytes(to->lse, of_head.lse + other, statistics, full);
            ts_copy_bytes(to->delta, of_head.delta + other, statistics, full);
        }
    }
}

// ---- scores

// s becomes P. The queries are the rows, of which a lane has two, or the columns.
template <int OF, int COUNT>
static __device__ __forceinline__ void form_probabilities(float (&s)[COUNT], const float (&row_lse)[2],
                                                          const float *lse, float scale) {
    const int column = 2 * (lane_of_warp() % 4);
#pragma unroll
    for (int n = 0; n < COUNT / 4; n++) {
        const float2 of_column = OF == OF_KEYS ? *(const float2 *)&lse[8 * n + column] : make_float2(0, 0);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float own = OF == OF_QUERIES ? row_lse[e / 2] : e % 2 ? of_column.y : of_column.x;
            s[4 * n + e] = ts_exp2(s[4 * n + e] * scale - own);
        }
    }
}

// dp becomes dS = P (dP - delta).
template <int OF, int COUNT>
static __device__ __forceinline__ void form_gradients(float (&dp)[COUNT], const float (&s)[COUNT],
                                                      const float (&row_delta)[2], const float *delta) {
    const int column = 2 * (lane_of_warp() % 4);
#pragma unroll
    for (int n = 0; n < COUNT / 4; n++) {
        const float2 of_column = OF == OF_KEYS ? *(const float2 *)&delta[8 * n + column] : make_float2(0, 0);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float own = OF == OF_QUERIES ? row_delta[e / 2] : e % 2 ? of_column.y : of_column.x;
            dp[4 * n + e] = s[4 * n + e] * (dp[4 * n + e] - own);
        }
    }
}

// No probability where there is no key.
template <int COUNT> static __device__ __forceinline__ void mask_columns(float (&s)[COUNT], int count) {
    const int column = 2 * (lane_of_warp() % 4);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        s[i] = i / 4 * 8 + column + i % 2 < count ? s[i] : 0.0f;
    }
}

// ---- products

// sum_0 becomes the sum of dS times the others' tile_0, sum_1 (of keys alone) that of P times their tile_1.
template <int D, int OF>
static __device__ __forceinline__ void attend(backward_shared<D, OF> *shared, int group, int others, float scale,
                                              const float (&row_lse)[2], const float (&row_delta)[2],
                                              float (&sum_0)[D / 2], float (&sum_1)[D / 2]) {
    constexpr int N = other_rows<OF>;
    float s[N / 2], dp[N / 2];
    uint32_t p[N / 16][4], ds[N / 16][4];
    ring_place<stages<OF>> place, before;
    ts_mbarrier_wait(&shared->of_own, 0);
    ts_wgmma_pin(sum_0);
    if (OF == OF_KEYS) {
        ts_wgmma_pin(sum_1);
    }
    for (int other = 0; other < others; other += N, before = place, place.advance()) {
        const auto *const from = &shared->other[place.stage];
        shared->of_others.wait_full(place);
        ts_wgmma_fence();
        multiply_rows<OWN_ROWS, N, D>(s, shared->own_0, group * ROWS, from->tile_0);
        ts_wgmma_commit();
        multiply_rows<OWN_ROWS, N, D>(dp, shared->own_1, group * ROWS, from->tile_1);
        ts_wgmma_commit();
        ts_wgmma_wait<1>();  // also for the sums of the tile before
        ts_wgmma_pin(s);
        if (other > 0) {
            shared->of_others.give_back(before);
        }
        form_probabilities<OF>(s, row_lse, from->lse, scale);
        if (OF == OF_QUERIES && others - other < N) {
            mask_columns(s, others - other);
        }
        if (OF == OF_KEYS) {
            round_scores<N>(p, s);
            ts_wgmma_pin(p);
            ts_wgmma_fence();
            accumulate<N, D>(sum_1, p, from->tile_1);
            ts_wgmma_commit();
            ts_wgmma_wait<1>();
        } else {
            ts_wgmma_wait<0>();
        }
        ts_wgmma_pin(dp);
        form_gradients<OF>(dp, s, row_delta, from->delta);
        round_scores<N>(ds, dp);
        ts_wgmma_pin(ds);
        ts_wgmma_fence();
        accumulate<N, D>(sum_0, ds, from->tile_0);
        ts_wgmma_commit();
        if (OF == OF_KEYS) {
            ts_wgmma_wait<0>();  // the next scores need the registers of p and ds
        }
    }
    ts_wgmma_wait<0>();
    ts_wgmma_pin(sum_0);
    if (OF == OF_KEYS) {
        ts_wgmma_pin(sum_1);
    }
}

// ---- the kernel

template <int D>
static __device__ __forceinline__ void store_gradient(const ts_attention &p, ts_attention_place at, int group, void *to,
                                                      int64_t row_stride, int64_t batch_stride, int64_t rows,
                                                      const float (&sum)[D / 2], float factor) {
    const int warp = (int)threadIdx.x / 32 % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int64_t row = at.tile * OWN_ROWS + group * ROWS + warp * 16 + r * 8 + lane_of_warp() / 4;
        if (row < rows) {
            store_row(to, p.f32_results, at.batch * batch_stride + row * row_stride + at.head * D, sum, r, factor);
        }
    }
}

template <int D, int OF>
static __device__ __forceinline__ void find_gradients(backward_shared<D, OF> *shared, const ts_attention &p,
                                                      ts_attention_place at, query_statistics of_head, int group) {
    float sum_0[D / 2] = {}, sum_1[D / 2] = {}, row_lse[2] = {}, row_delta[2] = {};
    if (OF == OF_QUERIES) {
        const int row = at.tile * OWN_ROWS + group * ROWS + (int)threadIdx.x / 32 % 4 * 16 + lane_of_warp() / 4;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            row_lse[r] = of_head.lse[row + 8 * r];
            row_delta[r] = of_head.delta[row + 8 * r];
        }
    }
    attend<D, OF>(shared, group, OF == OF_KEYS ? (int)p.queries : (int)p.keys, p.scale * TS_LOG2_E, row_lse, row_delta,
                  sum_0, sum_1);
    if (OF == OF_QUERIES) {
        store_gradient<D>(p, at, group, p.d_q, p.q_row, p.q_batch, p.queries, sum_0, p.scale);
    } else {
        store_gradient<D>(p, at, group, p.d_k, p.k_row, p.k_batch, p.keys, sum_0, p.scale);
        store_gradient<D>(p, at, group, p.d_v, p.v_row, p.v_batch, p.keys, sum_1, 1.0f);
    }
}

template <int D, int OF>
static __global__ void __launch_bounds__(THREADS, 1)
    attention_backward_sm90(const __grid_constant__ backward_maps maps, ts_attention p, query_statistics all,
                            int tiles) {
    using shared_memory = backward_shared<D, OF>;
    TS_SHARED_BYTES(shared_memory, shared);
    const int warpgroup = warpgroup_of_thread();
    const ts_attention_place at = ts_attention_place_of(p, tiles);
    const query_statistics of_head = statistics_of_head(p, all, at);
    if (threadIdx.x == 0) {
        shared->of_others.init();
        ts_mbarrier_init(&shared->of_own, 1);
        ts_mbarrier_publish();
    }
    __syncthreads();
    if (warpgroup == 0) {
        ts_give_registers<COPYING_REGISTERS>();
        if (threadIdx.x == 0) {
            copy_tiles<D, OF>(shared, maps, at, of_head, OF == OF_KEYS ? (int)p.queries : (int)p.keys);
        }
    } else {
        ts_take_registers<COMPUTING_REGISTERS>();
        find_gradients<D, OF>(shared, p, at, of_head, warpgroup - 1);
    }
}

// ---- host

static int map_others(backward_maps *maps, const ts_attention *p, int of) {
    const int q_rows = of == OF_KEYS ? other_rows<OF_KEYS> : OWN_ROWS;
    const int k_rows = of == OF_KEYS ? OWN_ROWS : other_rows<OF_QUERIES>;
    CUtensorMap *const q = of == OF_KEYS ? &maps->other_0 : &maps->own_0, *const k = of == OF_KEYS ? &maps->own_0
                                                                                                   : &maps->other_0;
    CUtensorMap *const d_out = of == OF_KEYS ? &maps->other_1 : &maps->own_1, *const v = of == OF_KEYS ? &maps->own_1
                                                                                                       : &maps->other_1;
    TS_TRY(map_queries(q, p, p->q, p->q_row, p->q_batch, q_rows));
    TS_TRY(map_queries(d_out, p, p->d_out, p->out_row, p->out_batch, q_rows));
    TS_TRY(map_keys(k, p, p->k, p->k_row, p->k_batch, k_rows));
    return map_keys(v, p, p->v, p->v_row, p->v_batch, k_rows);
}

template <int D, int OF> static int launch_pass(const ts_attention *p, query_statistics all) {
    const int tiles = ts_attention_tiles(OF == OF_KEYS ? p->keys : p->queries, OWN_ROWS);
    const size_t bytes = sizeof(backward_shared<D, OF>);
    backward_maps maps;
    TS_TRY(map_others(&maps, p, OF));
    TS_TRY(ts_attention_allow_shared(attention_backward_sm90<D, OF>, bytes));
    return TS_LAUNCH((attention_backward_sm90<D, OF>), ts_attention_blocks(p, tiles), THREADS, bytes, maps, *p, all,
                     tiles);
}

template <int D> static int launch(const ts_attention *p, query_statistics all) {
    const int tiles = all.padded / OWN_ROWS;
    TS_TRY(TS_LAUNCH(attention_statistics_sm90<D>, ts_attention_blocks(p, tiles), OWN_ROWS, 0, *p, all, tiles));
    TS_TRY((launch_pass<D, OF_KEYS>(p, all)));
    return launch_pass<D, OF_QUERIES>(p, all);
}

}  // namespace

extern "C" int ts_cuda_attention_backward_sm90(const ts_attention *p) {
    const int padded = ts_attention_tiles(p->queries, OWN_ROWS) * OWN_ROWS;
    const size_t rows = (size_t)(p->batch * p->heads) * (size_t)padded;
    float *const memory = (float *)ts_cuda_scratch(TS_CUDA_SCRATCH_ATTENTION, 2 * rows * sizeof(float));
    if (!memory) {
        return TS_ERESOURCE;
    }
    const query_statistics all = {memory, memory + rows, padded};
    return p->head_dim == 64 ? launch<64>(p, all) : launch<128>(p, all);
}
