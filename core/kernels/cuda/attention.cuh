// SPDX-License-Identifier: Apache-2.0
// What the attention kernels share on the device. Kernels take a ts_attention by value.
#ifndef TS_KERNELS_CUDA_ATTENTION_CUH
#define TS_KERNELS_CUDA_ATTENTION_CUH

#include "core/kernels/cuda/attention.h"
#include "core/kernels/cuda/number.cuh"

// Probabilities are powers of two: the factor log2 e is part of the scale.
#define TS_LOG2_E 1.4426950408889634f
#define TS_LN_2   0.6931471805599453f

// Keys that batch item `batch` attends to. A count outside 0..keys, which the host cannot see, is brought there.
static __device__ __forceinline__ int ts_attention_keys(const ts_attention &p, int64_t batch) {
    const int keys = (int)p.keys;
    const int count = p.key_count ? p.key_count[batch] : keys;
    return count < 0 ? 0 : count < keys ? count : keys;
}

// What a block works on: a tile of rows of one head of one batch item. Blocks are numbered tile by tile, then head by
// head: those that run at the same time read the same keys and values.
struct ts_attention_place {
    int tile;
    int64_t head, batch;
};
static __device__ __forceinline__ ts_attention_place ts_attention_place_of(const ts_attention &p, int tiles) {
    const unsigned pair = blockIdx.x / (unsigned)tiles, heads = (unsigned)p.heads;
    return {(int)(blockIdx.x % (unsigned)tiles), pair % heads, pair / heads};
}

// Row 0 of a head in a tensor.
template <typename T>
static __device__ __forceinline__ T *ts_attention_head(const ts_attention &p, T *tensor, int64_t batch_stride,
                                                       ts_attention_place at) {
    return tensor + at.batch * batch_stride + at.head * p.head_dim;
}

// Statistics of query 0 of a head.
template <typename T>
static __device__ __forceinline__ T *ts_attention_statistics(const ts_attention &p, T *of_all, ts_attention_place at) {
    return of_all + (at.batch * p.heads + at.head) * p.queries;
}

static inline int ts_attention_tiles(int64_t rows, int edge) {
    return (int)((rows + edge - 1) / edge);
}

// Blocks of a launch with `tiles` for each head; 0 where there is nothing to do.
static inline unsigned ts_attention_blocks(const ts_attention *p, int tiles) {
    return (unsigned)(p->batch * p->heads * tiles);
}

// Lets a kernel use more dynamic shared memory than the 48 KiB that need no leave.
template <typename Kernel> static inline int ts_attention_allow_shared(Kernel *kernel, size_t bytes) {
    const ts_cuda_properties *device = ts_cuda_get_properties();
    if (bytes > device->shared_bytes) {
        return TS_FAIL(TS_EUSAGE,
                       "attention: %zu bytes of shared memory are needed, %s has %zu a block; use smaller heads", bytes,
                       device->name, device->shared_bytes);
    }
    return ts_cuda_check(
        cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
        "cudaFuncSetAttribute");
}

#endif
