// SPDX-License-Identifier: Apache-2.0
// f32 and bf16 numbers in kernels: one template serves both. Single numbers, several of them loaded and stored at a
// time, and sums over the threads of a warp or block.
#ifndef TS_KERNELS_CUDA_NUMBER_CUH
#define TS_KERNELS_CUDA_NUMBER_CUH

#include "core/kernels/cuda/cuda.h"

struct ts_bf16 {
    uint16_t bits;
};

// ---- one number

static __device__ __forceinline__ float ts_to_f32(float x) {
    return x;
}
static __device__ __forceinline__ float ts_to_f32(ts_bf16 x) {
    return __uint_as_float((unsigned)x.bits << 16);
}

template <typename T> static __device__ __forceinline__ T ts_from_f32(float x);
template <> __device__ __forceinline__ float ts_from_f32<float>(float x) {
    return x;
}
// To nearest even, as on the CPU.
template <> __device__ __forceinline__ ts_bf16 ts_from_f32<ts_bf16>(float x) {
#ifdef TS_SHIM
    return {ts_f32_to_bf16(x)};
#else
    ts_bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
#endif
}

// Two as one word, `low` at the lower address.
static __device__ __forceinline__ uint32_t ts_bf16_pair(float low, float high) {
#ifdef TS_SHIM
    return (uint32_t)ts_f32_to_bf16(high) << 16 | ts_f32_to_bf16(low);
#else
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}

// Calls launch(number) with a number of the type that `dtype` names: float or ts_bf16.
template <typename Launch> static int ts_by_dtype(const char *entry, ts_dtype dtype, Launch launch) {
    switch (dtype) {
    case TS_F32:
        return launch(float());
    case TS_BF16:
        return launch(ts_bf16());
    default:
        return TS_FAIL(TS_EINTERNAL, "%s: dtype %s, wanted F32 or BF16", entry, ts_dtype_name(dtype));
    }
}

// ---- several numbers

// What a thread moves with one instruction (up to 16 bytes; more take several). Any type may be read through it.
template <int BYTES> struct __attribute__((may_alias, aligned(BYTES < 16 ? BYTES : 16))) ts_words {
    uint32_t word[BYTES / 4];
};

// out = from[0 .. N); `from` is aligned to N numbers, or to 16 bytes where they are more. N even for bf16.
template <int N> static __device__ __forceinline__ void ts_load(float (&out)[N], const float *from) {
    const ts_words<N * 4> words = *(const ts_words<N * 4> *)from;
#pragma unroll
    for (int i = 0; i < N; i++) {
        out[i] = __uint_as_float(words.word[i]);
    }
}
template <int N> static __device__ __forceinline__ void ts_load(float (&out)[N], const ts_bf16 *from) {
    const ts_words<N * 2> words = *(const ts_words<N * 2> *)from;
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        out[i] = __uint_as_float(words.word[i / 2] << 16);
        out[i + 1] = __uint_as_float(words.word[i / 2] & 0xffff0000u);
    }
}

// to[0 .. N) = in; aligned as for ts_load.
template <int N> static __device__ __forceinline__ void ts_store(float *to, const float (&in)[N]) {
    ts_words<N * 4> words;
#pragma unroll
    for (int i = 0; i < N; i++) {
        words.word[i] = __float_as_uint(in[i]);
    }
    *(ts_words<N * 4> *)to = words;
}
template <int N> static __device__ __forceinline__ void ts_store(ts_bf16 *to, const float (&in)[N]) {
    ts_words<N * 2> words;
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        words.word[i / 2] = ts_bf16_pair(in[i], in[i + 1]);
    }
    *(ts_words<N * 2> *)to = words;
}

// The same for the `count` numbers that there are, which may be fewer than N or none: 0 takes the place of the others.
// At any address.
template <int N, typename T>
static __device__ __forceinline__ void ts_load_some(float (&out)[N], const T *from, int64_t count) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        out[i] = i < count ? ts_to_f32(from[i]) : 0.0f;
    }
}
template <int N, typename T>
static __device__ __forceinline__ void ts_store_some(T *to, const float (&in)[N], int64_t count) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (i < count) {
            to[i] = ts_from_f32<T>(in[i]);
        }
    }
}

// Begins to bring what is at `place` to the L2 cache.
static __device__ __forceinline__ void ts_prefetch(const void *place) {
#ifdef TS_SHIM
    (void)place;
#else
    asm volatile("prefetch.global.L2 [%0];" ::"l"(place));
#endif
}

// Whether a pointer, or a distance in bytes, is a multiple of 16 bytes: for the host, before it chooses ts_load.
static inline bool ts_is_aligned(const void *pointer) {
    return (uintptr_t)pointer % 16 == 0;
}

// ---- sums over threads

enum { TS_WARP = 32 };

struct ts_add {
    template <typename T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
struct ts_larger {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// x of all 32 lanes of a warp together, the same for each.
template <typename T, typename Together> static __device__ __forceinline__ T ts_warp_reduce(T x, Together together) {
#pragma unroll
    for (int lanes = TS_WARP / 2; lanes; lanes /= 2) {
        x = together(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    }
    return x;
}
template <typename T> static __device__ __forceinline__ T ts_warp_sum(T x) {
    return ts_warp_reduce(x, ts_add());
}
static __device__ __forceinline__ float ts_warp_max(float x) {
    return ts_warp_reduce(x, ts_larger());
}

// Shared memory of the sums of a block. It is used in two halves by turns, so that a sum needs one barrier: whoever
// writes a half again has passed the barrier of the sum in between, and so has everyone who read it.
template <typename T, int N> struct ts_block_memory { T of_warp[2][N][TS_WARP]; };

// Replaces each of x[0 .. N) by that of all threads of the block together, which are whole warps; `none` is what leaves
// a number as it is. `turn` is 0 before the first of a kernel's calls with this memory.
template <typename T, int N, typename Together>
static __device__ __forceinline__ void ts_block_reduce(T (&x)[N], T none, Together together,
                                                       ts_block_memory<T, N> &memory, int &turn) {
    const int warp = (int)threadIdx.x / TS_WARP, lane = (int)threadIdx.x % TS_WARP, warps = (int)blockDim.x / TS_WARP;
    T(&of_warp)[N][TS_WARP] = memory.of_warp[turn];
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = ts_warp_reduce(x[i], together);
        if (lane == 0) {
            of_warp[i][warp] = x[i];
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = ts_warp_reduce(lane < warps ? of_warp[i][lane] : none, together);
    }
    turn ^= 1;
}
template <typename T, int N>
static __device__ __forceinline__ void ts_block_sum(T (&x)[N], ts_block_memory<T, N> &memory, int &turn) {
    ts_block_reduce(x, T(0), ts_add(), memory, turn);
}

#endif
