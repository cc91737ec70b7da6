// SPDX-License-Identifier: Apache-2.0
// Bias, rounding and GELU after a product, where cuBLASLt does not fuse them.
#include "core/kernels/cuda/activation.cuh"
#include "core/kernels/cuda/flat.cuh"
#include "core/kernels/cuda/gemm.h"

enum { N = 8 };  // neighbours of one row that a thread has

template <bool ALIGNED, typename From, typename To>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) gemm_finish(ts_gemm_finish p, int64_t packs) {
    const int64_t pack = ts_flat_first<1>(), row = pack / packs, column = pack % packs * N;
    if (row >= p.rows) {
        return;
    }
    float sum[N] = {}, bias[N] = {};
    if (p.from) {
        ts_flat_load<ALIGNED>(sum, (const From *)p.from + row * p.from_stride, column, p.columns);
    }
    if (p.bias) {
        ts_flat_load<ALIGNED>(bias, p.bias, column, p.columns);
    }
    float c[N];
#pragma unroll
    for (int k = 0; k < N; k++) {
        sum[k] = ts_to_f32(ts_from_f32<To>(p.bias ? sum[k] + bias[k] : sum[k]));
        c[k] = p.gelu ? ts_gelu<To>(sum[k]) : sum[k];
    }
    if (p.before_gelu && p.before_gelu != p.from) {
        ts_flat_store<ALIGNED>((To *)p.before_gelu + row * p.c_stride, sum, column, p.columns);
    }
    ts_flat_store<ALIGNED>((To *)p.c + row * p.c_stride, c, column, p.columns);
}

// Where before_gelu is also what is read, the bias has been added: it stays as it is.
int ts_cuda_gemm_finish(const ts_gemm_finish *p) {
    const int64_t packs = (p->columns + N - 1) / N;
    const bool strides = p->from_stride % 8 == 0 && p->c_stride % 8 == 0;
    const bool aligned = strides && ts_are_aligned(p->from, (const void *)p->bias, p->before_gelu, p->c);
    return ts_by_dtype("gemm", p->dtype_c, [&](auto result) {
        typedef decltype(result) To;
        if (p->dtype_from == TS_F32) {
            TS_FLAT("gemm", (gemm_finish<ALIGNED, float, To>), aligned, p->rows * packs, 1, *p, packs);
        } else {
            TS_FLAT("gemm", (gemm_finish<ALIGNED, To, To>), aligned, p->rows * packs, 1, *p, packs);
        }
        return (int)TS_OK;
    });
}
