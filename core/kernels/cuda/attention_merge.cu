// SPDX-License-Identifier: Apache-2.0
// Attention over some keys merged with attention over others: a warp for each row (batch, query, head).
#include "core/kernels/cuda/cuda.h"

namespace {

enum { THREADS = 256, WARPS = THREADS / 32 };

static __global__ void __launch_bounds__(THREADS) attention_merge(ts_attention_merge p, int64_t rows) {
    const int64_t row = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / 32;
    if (row >= rows) {
        return;
    }
    const int64_t head = row % p.heads, query = row / p.heads % p.queries, batch = row / p.heads / p.queries;
    const int64_t at = (batch * p.heads + head) * p.queries + query;
    const float own_lse = p.lse[at], other_lse = p.part_lse[at];
    const float top = own_lse > other_lse ? own_lse : other_lse;
    float merged = top, own = 0, other = 0;  // without keys on either side both weights are 0
    if (top != -INFINITY) {
        merged = top + logf(expf(own_lse - top) + expf(other_lse - top));
        own = expf(own_lse - merged);
        other = expf(other_lse - merged);
    }
    __syncwarp();  // all have read what lane 0 writes
    if (threadIdx.x % 32 == 0) {
        p.lse[at] = merged;
    }
    for (int64_t d = row * p.head_dim + threadIdx.x % 32; d < (row + 1) * p.head_dim; d += 32) {
        p.out[d] = own * p.out[d] + other * p.part[d];
    }
}

}  // namespace

extern "C" int ts_cuda_attention_merge(const ts_attention_merge *p) {
    const int64_t rows = p->batch * p->queries * p->heads;
    if (rows == 0) {
        return 0;
    }
    return TS_LAUNCH(attention_merge, (unsigned)((rows + WARPS - 1) / WARPS), THREADS, 0, *p, rows);
}
