// SPDX-License-Identifier: Apache-2.0
// Kernels over flat ranges: how the threads share n numbers. Each has N that follow one another, moved 16 bytes at a
// time where every pointer is aligned; the range may end anywhere.
#ifndef TS_KERNELS_CUDA_FLAT_CUH
#define TS_KERNELS_CUDA_FLAT_CUH

#include "core/kernels/cuda/number.cuh"

enum { TS_FLAT_THREADS = 256 };

// A thread's numbers of a type: 32 bytes, a sector of the memory, so that two loads are on their way.
template <typename T> struct ts_flat_count { static constexpr int N = 32 / sizeof(T); };

// The place of a thread's first number.
template <int N> static __device__ __forceinline__ int64_t ts_flat_first() {
    return ((int64_t)blockIdx.x * TS_FLAT_THREADS + threadIdx.x) * N;
}

// Numbers i .. i + N - 1 of n; 0 beyond the end.
template <bool ALIGNED, int N, typename T>
static __device__ __forceinline__ void ts_flat_load(float (&out)[N], const T *from, int64_t i, int64_t n) {
    if (ALIGNED && i + N <= n) {
        ts_load(out, from + i);
    } else {
        ts_load_some(out, from + i, n - i);
    }
}
template <bool ALIGNED, int N, typename T>
static __device__ __forceinline__ void ts_flat_store(T *to, const float (&in)[N], int64_t i, int64_t n) {
    if (ALIGNED && i + N <= n) {
        ts_store(to + i, in);
    } else {
        ts_store_some(to + i, in, n - i);
    }
}

// Blocks whose threads have `each` of n numbers; TS_EINTERNAL when they are more than a launch can have.
static inline int ts_flat_blocks(const char *entry, int64_t n, int each, unsigned *blocks) {
    const int64_t of_block = (int64_t)each * TS_FLAT_THREADS, count = n / of_block + (n % of_block != 0);
    if (n < 0 || count > INT32_MAX) {
        return TS_FAIL(TS_EINTERNAL, "%s: %lld numbers: fewer than none, or too many for one call", entry,
                       (long long)n);
    }
    *blocks = (unsigned)count;
    return TS_OK;
}

// Whether all are multiples of 16 bytes; NULL, for what is not there, is one.
template <typename... P> static inline bool ts_are_aligned(const P *...pointer) {
    return (ts_is_aligned(pointer) && ...);
}

// Launches a kernel over n numbers, `each` for a thread, in a function that returns a status. The kernel's name, in
// parentheses, sees the constant ALIGNED.
#define TS_FLAT(entry, kernel, aligned, n, each, ...)                                                                  \
    do {                                                                                                               \
        unsigned blocks_ = 0;                                                                                          \
        TS_TRY(ts_flat_blocks((entry), (n), (each), &blocks_));                                                        \
        if (blocks_ > 0 && (aligned)) {                                                                                \
            constexpr bool ALIGNED = true;                                                                             \
            TS_TRY(TS_LAUNCH(kernel, blocks_, TS_FLAT_THREADS, 0, __VA_ARGS__));                                       \
        } else if (blocks_ > 0) {                                                                                      \
            constexpr bool ALIGNED = false;                                                                            \
            TS_TRY(TS_LAUNCH(kernel, blocks_, TS_FLAT_THREADS, 0, __VA_ARGS__));                                       \
        }                                                                                                              \
    } while (0)

#endif
