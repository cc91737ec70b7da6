// SPDX-License-Identifier: Apache-2.0
// What the attention kernels share on the device. Kernels take a ts_attention by value.
#ifndef TS_KERNELS_CUDA_ATTENTION_CUH
#define TS_KERNELS_CUDA_ATTENTION_CUH

#include "core/kernels/cuda/attention.h"
#include "core/kernels/cuda/number.cuh"

#define TS_LOG2_E 1.4426950408889634f
#define TS_LN_2   0.6931471805599453f

// Keys that batch item `b` attends to. A count outside 0..keys, which the host cannot see, is brought there.
static __device__ __forceinline__ int ts_attention_keys(const ts_attention &p, int64_t b) {
    const int keys = (int)p.keys;
    const int count = p.key_count ? p.key_count[b] : keys;
    return count < 0 ? 0 : count < keys ? count : keys;
}

// What a block works on: a tile of rows of one head of one batch item. Blocks are numbered tile by tile, then head by
// head: those that run at a time read the same keys and values.
struct ts_attention_place {
    int tile;
    int64_t head, batch;
};
static __device__ __forceinline__ ts_attention_place ts_attention_place_of(const ts_attention &p, int tiles) {
    const int pair = (int)(blockIdx.x / (unsigned)tiles);
    return {(int)(blockIdx.x % (unsigned)tiles), pair % p.heads, pair / p.heads};
}

#endif
