// SPDX-License-Identifier: Apache-2.0
// Sums over ranks, in the order of the ranks.
#include "core/kernels/cuda/number.cuh"

enum { THREADS = 256, EACH = 4 };  // numbers of a thread, a block apart: so many loads are under way at once

// ---- numbers, and what is done with them

template <typename T> static __device__ __forceinline__ T widen(T x) {
    return x;
}
static __device__ __forceinline__ float widen(ts_bf16 x) {
    return ts_to_f32(x);
}

template <typename T, typename W> static __device__ __forceinline__ T narrow(W x) {
    return x;
}
template <> __device__ __forceinline__ ts_bf16 narrow<ts_bf16, float>(float x) {
    return ts_from_f32<ts_bf16>(x);
}

template <ts_reduce_op OP, typename W> static __device__ __forceinline__ W combine(W a, W b) {
    return OP == TS_SUM ? a + b : OP == TS_MAX ? (b > a ? b : a) : (b < a ? b : a);
}

// ---- the kernel

template <typename T, typename W, ts_reduce_op OP> static __global__ void reduce_parts(ts_cuda_parts p) {
    const int64_t first = (int64_t)blockIdx.x * (THREADS * EACH) + threadIdx.x;
    W sum[EACH] = {};
    for (int r = 0; r < p.size; r++) {
        const T *const part = r == p.rank ? (const T *)p.own : (const T *)p.parts + r * p.stride;
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int64_t i = first + k * THREADS;
            if (i < p.count) {
                const W x = widen(part[i]);
                sum[k] = r == 0 ? x : combine<OP>(sum[k], x);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        const int64_t i = first + k * THREADS;
        if (i < p.count) {
            ((T *)p.out)[i] = narrow<T, W>(sum[k]);
        }
    }
}

template <typename T, typename W> static int launch(const ts_cuda_parts *p, ts_reduce_op op) {
    const int64_t per_block = THREADS * EACH;
    const unsigned blocks = (unsigned)((p->count + per_block - 1) / per_block);
    cudaStream_t const stream = ts_cuda_communication_stream();
    switch (op) {
    case TS_SUM:
        return TS_LAUNCH_ON(stream, (reduce_parts<T, W, TS_SUM>), blocks, THREADS, 0, *p);
    case TS_MAX:
        return TS_LAUNCH_ON(stream, (reduce_parts<T, W, TS_MAX>), blocks, THREADS, 0, *p);
    default:
        return TS_LAUNCH_ON(stream, (reduce_parts<T, W, TS_MIN>), blocks, THREADS, 0, *p);
    }
}

extern "C" int ts_cuda_reduce_parts(const ts_cuda_parts *p, ts_dtype dtype, ts_reduce_op op) {
    if (p->count == 0) {
        return TS_OK;
    }
    switch (dtype) {
    case TS_F32:
        return launch<float, float>(p, op);
    case TS_F64:
        return launch<double, double>(p, op);
    case TS_I64:
        return launch<int64_t, int64_t>(p, op);
    case TS_I32:
        return launch<int32_t, int32_t>(p, op);
    default:
        TS_ASSERT(dtype == TS_BF16 && op == TS_SUM);
        return launch<ts_bf16, float>(p, op);
    }
}
