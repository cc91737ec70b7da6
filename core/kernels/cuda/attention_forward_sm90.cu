// SPDX-License-Identifier: Apache-2.0
// Attention forward for sm_90a: FlashAttention with Hopper's asynchronous tensor cores and copy engine, after the two
// schedules of Shah et al. 2024, "FlashAttention-3":
//   within a warpgroup, the scores of the next keys are computed while the softmax of these runs on other units;
//   between the two warpgroups, named barriers let one begin its products while the other has its softmax.
//
// Keys are taken from the last tile to the first, so that the tile that may be in part beyond the last key is the one
// before the loop, and the loop has no mask.
#include "core/kernels/cuda/attention_sm90.cuh"

namespace {

enum { KEYS = 176, SCORES = KEYS / 2, STAGES = 2 };  // keys of a tile, scores of a thread

template <int D> struct forward_shared {
    tile<OWN_ROWS, D> q;
    tile<KEYS, D> k[STAGES], v[STAGES];
    ring_barriers<STAGES> of_k, of_v;
    uint64_t of_q;
};

struct forward_maps {
    CUtensorMap q, k, v;
};

// ---- copies

template <int D>
static __device__ __forceinline__ void copy_tiles(forward_shared<D> *shared, const forward_maps &maps,
                                                  ts_attention_place at, int key_tiles) {
    const int head = (int)at.head, batch = (int)at.batch;
    ts_mbarrier_arrive_expect(&shared->of_q, (int)sizeof shared->q);
    ts_copy_box(&shared->q, &maps.q, &shared->of_q, 0, at.tile * OWN_ROWS, 0, head, batch);
    ring_place<STAGES> place;
    for (int key_tile = key_tiles - 1; key_tile >= 0; key_tile--, place.advance()) {
        uint64_t *const full_k = shared->of_k.begin_copies(place, (int)sizeof shared->k[0]);
        ts_copy_box(&shared->k[place.stage], &maps.k, full_k, 0, key_tile * KEYS, 0, head, batch);
        uint64_t *const full_v = shared->of_v.begin_copies(place, (int)sizeof shared->v[0]);
        ts_copy_box(&shared->v[place.stage], &maps.v, full_v, 0, key_tile * KEYS, 0, head, batch);
    }
}

// ---- softmax

// Of the two rows of a lane, so far: the largest score, and the lane's part of the sum of exponentials.
struct softmax_rows {
    float largest[2], sum[2];
};

// Keys from `count` on are not there.
static __device__ __forceinline__ void mask_columns(float (&s)[SCORES], int count) {
    const int column = 2 * (lane_of_warp() % 4);
#pragma unroll
    for (int i = 0; i < SCORES; i++) {
        s[i] = i / 4 * 8 + column + i % 2 < count ? s[i] : -INFINITY;
    }
}

// s becomes the exponentials of scale * (s - largest), base 2. What was summed before is to be multiplied by `factor`.
static __device__ __forceinline__ void exponentiate(softmax_rows &rows, float (&s)[SCORES], float (&factor)[2],
                                                    float scale) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float largest = rows.largest[r], sum = 0;
#pragma unroll
        for (int n = 0; n < SCORES / 4; n++) {
            largest = fmaxf(largest, fmaxf(s[4 * n + 2 * r], s[4 * n + 2 * r + 1]));
        }
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        factor[r] = ts_exp2((rows.largest[r] - largest) * scale);
        const float offset = largest * scale;
#pragma unroll
        for (int n = 0; n < SCORES / 4; n++) {
            s[4 * n + 2 * r] = ts_exp2(s[4 * n + 2 * r] * scale - offset);
            s[4 * n + 2 * r + 1] = ts_exp2(s[4 * n + 2 * r + 1] * scale - offset);
            sum += s[4 * n + 2 * r] + s[4 * n + 2 * r + 1];
        }
        rows.largest[r] = largest;
        rows.sum[r] = rows.sum[r] * factor[r] + sum;
    }
}

template <int COUNT>
static __device__ __forceinline__ void multiply_sums(float (&sum)[COUNT], const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        sum[i] *= factor[i / 2 % 2];
    }
}

// ---- products

// The warpgroups take turns to begin products: 0 first. `group` waits for its turn; pass_turn gives it to the other.
static __device__ __forceinline__ void wait_turn(int group) {
    ts_barrier_sync(1 + group, GROUPS * WARPGROUP);
}
static __device__ __forceinline__ void pass_turn(int group) {
    ts_barrier_arrive(2 - group, GROUPS * WARPGROUP);
}

template <int D>
static __device__ __forceinline__ void attend(forward_shared<D> *shared, int group, int keys, int key_tiles,
                                              float scale, softmax_rows &rows, float (&sum)[D / 2]) {
    float s[SCORES], factor[2];
    uint32_t probabilities[KEYS / 16][4];
    ring_place<STAGES> place;
    if (group == 1 && key_tiles > 1) {
        pass_turn(group);
    }
    ts_mbarrier_wait(&shared->of_q, 0);
    shared->of_k.wait_full(place);
    ts_wgmma_fence();
    multiply_rows<OWN_ROWS, KEYS, D>(s, shared->q, group * ROWS, shared->k[place.stage]);
    ts_wgmma_commit();
    ts_wgmma_wait<0>();
    ts_wgmma_pin(s);
    shared->of_k.give_back(place);
    mask_columns(s, keys - (key_tiles - 1) * KEYS);
    exponentiate(rows, s, factor, scale);
    round_scores<KEYS>(probabilities, s);
    for (int tiles_left = key_tiles - 1; tiles_left > 0; tiles_left--) {
        const ring_place<STAGES> before = place;
        place.advance();
        shared->of_k.wait_full(place);
        wait_turn(group);
        ts_wgmma_pin(sum);
        ts_wgmma_pin(probabilities);
        ts_wgmma_fence();
        multiply_rows<OWN_ROWS, KEYS, D>(s, shared->q, group * ROWS, shared->k[place.stage]);
        ts_wgmma_commit();
        shared->of_v.wait_full(before);
        ts_wgmma_fence();
        accumulate<KEYS, D>(sum, probabilities, shared->v[before.stage]);
        ts_wgmma_commit();
        if (group == 0 || tiles_left > 1) {  // there is no turn of group 0 behind the last of group 1
            pass_turn(group);
        }
        ts_wgmma_wait<1>();
        ts_wgmma_pin(s);
        shared->of_k.give_back(place);
        exponentiate(rows, s, factor, scale);
        // These values are there: this wait parts the exponentials from the next, which the compiler would move ahead
        // of them, and then the tensor cores would have nothing to do meanwhile (tests/test_sass.sh).
        ts_wgmma_pin(s);
        shared->of_v.wait_full(before);
        ts_wgmma_wait<0>();
        ts_wgmma_pin(sum);
        shared->of_v.give_back(before);
        multiply_sums(sum, factor);
        round_scores<KEYS>(probabilities, s);
    }
    shared->of_v.wait_full(place);
    ts_wgmma_pin(sum);
    ts_wgmma_pin(probabilities);
    ts_wgmma_fence();
    accumulate<KEYS, D>(sum, probabilities, shared->v[place.stage]);
    ts_wgmma_commit();
    ts_wgmma_wait<0>();
    ts_wgmma_pin(sum);
}

// ---- results

template <int D>
static __device__ __forceinline__ void store_results(const ts_attention &p, ts_attention_place at, int group,
                                                     const softmax_rows &rows, const float (&sum)[D / 2]) {
    const int warp = (int)threadIdx.x / 32 % 4, lane = lane_of_warp();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float total = rows.sum[r];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        const int64_t query = at.tile * OWN_ROWS + group * ROWS + warp * 16 + r * 8 + lane / 4;
        if (query < p.queries) {
            if (p.lse && lane % 4 == 0) {
                ts_attention_statistics(p, p.lse, at)[query] = rows.largest[r] * p.scale + logf(total);
            }
            store_row(p.out, p.f32_results, at.batch * p.out_batch + query * p.out_row + at.head * D, sum, r,
                      1.0f / total);
        }
    }
}

template <int D>
static __global__ void __launch_bounds__(THREADS, 1)
    attention_forward_sm90(const __grid_constant__ forward_maps maps, ts_attention p, int tiles) {
    TS_SHARED_BYTES(forward_shared<D>, shared);
    const int keys = (int)p.keys, key_tiles = (keys + KEYS - 1) / KEYS, warpgroup = warpgroup_of_thread();
    if (threadIdx.x == 0) {
        shared->of_k.init();
        shared->of_v.init();
        ts_mbarrier_init(&shared->of_q, 1);
        ts_mbarrier_publish();
    }
    __syncthreads();
    if (warpgroup == 0) {
        ts_give_registers<COPYING_REGISTERS>();
        if (threadIdx.x == 0) {
            copy_tiles(shared, maps, ts_attention_place_of(p, tiles), key_tiles);
        }
    } else {
        ts_take_registers<COMPUTING_REGISTERS>();
        softmax_rows rows = {{-INFINITY, -INFINITY}, {0, 0}};
        float sum[D / 2] = {};
        attend<D>(shared, warpgroup - 1, keys, key_tiles, p.scale * TS_LOG2_E, rows, sum);
        store_results<D>(p, ts_attention_place_of(p, tiles), warpgroup - 1, rows, sum);
    }
}

template <int D> static int launch(const ts_attention *p) {
    const int tiles = ts_attention_tiles(p->queries, OWN_ROWS);
    const size_t bytes = sizeof(forward_shared<D>);
    forward_maps maps;
    TS_TRY(map_queries(&maps.q, p, p->q, p->q_row, p->q_batch, OWN_ROWS));
    TS_TRY(map_keys(&maps.k, p, p->k, p->k_row, p->k_batch, KEYS));
    TS_TRY(map_keys(&maps.v, p, p->v, p->v_row, p->v_batch, KEYS));
    TS_TRY(ts_attention_allow_shared(attention_forward_sm90<D>, bytes));
    return TS_LAUNCH(attention_forward_sm90<D>, ts_attention_blocks(p, tiles), THREADS, bytes, maps, *p, tiles);
}

}  // namespace

extern "C" int ts_cuda_attention_forward_sm90(const ts_attention *p) {
    return p->head_dim == 64 ? launch<64>(p) : launch<128>(p);
}
