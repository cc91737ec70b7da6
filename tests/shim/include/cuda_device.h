// SPDX-License-Identifier: Apache-2.0
// What CUDA C++ adds to C++, for kernels compiled as host code: built-in variables, barriers, warp exchanges, atomics,
// vectors and arithmetic functions, and the launch.
#ifndef TS_SHIM_CUDA_DEVICE_H
#define TS_SHIM_CUDA_DEVICE_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#ifdef __SANITIZE_ADDRESS__
#define __forceinline__ inline  // checks in every copy of a kernel's functions would take minutes to compile
#else
#define __forceinline__ inline __attribute__((always_inline))
#endif
#define __launch_bounds__(...)
#define __shared__   static thread_local
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict

// One block at a time for each thread of the host.
extern __thread uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

// ---- vectors

#define TS_SHIM_VECTOR2(type, scalar, alignment)                                                                       \
    struct alignas(alignment) type {                                                                                   \
        scalar x, y;                                                                                                   \
    };                                                                                                                 \
    static inline type make_##type(scalar x, scalar y) {                                                               \
        return {x, y};                                                                                                 \
    }
#define TS_SHIM_VECTOR4(type, scalar, alignment)                                                                       \
    struct alignas(alignment) type {                                                                                   \
        scalar x, y, z, w;                                                                                             \
    };                                                                                                                 \
    static inline type make_##type(scalar x, scalar y, scalar z, scalar w) {                                           \
        return {x, y, z, w};                                                                                           \
    }
TS_SHIM_VECTOR2(float2, float, 8)
TS_SHIM_VECTOR2(double2, double, 16)
TS_SHIM_VECTOR2(int2, int, 8)
TS_SHIM_VECTOR2(uint2, unsigned, 8)
TS_SHIM_VECTOR2(ushort2, unsigned short, 4)
TS_SHIM_VECTOR2(longlong2, long long, 16)
TS_SHIM_VECTOR2(ulonglong2, unsigned long long, 16)
TS_SHIM_VECTOR4(float4, float, 16)
TS_SHIM_VECTOR4(int4, int, 16)
TS_SHIM_VECTOR4(uint4, unsigned, 16)
TS_SHIM_VECTOR4(ushort4, unsigned short, 8)
TS_SHIM_VECTOR4(uchar4, unsigned char, 4)
#undef TS_SHIM_VECTOR2
#undef TS_SHIM_VECTOR4

struct float3 {
    float x, y, z;
};
struct int3 {
    int x, y, z;
};
static inline float3 make_float3(float x, float y, float z) {
    return {x, y, z};
}
static inline int3 make_int3(int x, int y, int z) {
    return {x, y, z};
}

// ---- launches

extern "C" int ts_cuda_check(cudaError_t code, const char *call);
extern "C" void *ts_shim_dynamic_shared(void);

// `name` is the kernel as the source names it, `function` its address.
cudaError_t ts_shim_launch_closure(const char *name, const void *function, dim3 grid, dim3 block, size_t shared_bytes,
                                   cudaStream_t stream, std::function<void()> thread);
// A pointer among the arguments must be the device's, or page-locked, or NULL; none in a struct may be the host's.
bool ts_shim_check_argument(const char *kernel, int index, const void *pointer);
bool ts_shim_check_words(const char *kernel, int index, const void *words, size_t count);

template <typename T> static inline bool ts_shim_check_value(const char *kernel, int index, const T &value) {
    if constexpr (std::is_pointer_v<T>) {
        return ts_shim_check_argument(kernel, index, (const void *)value);
    } else if constexpr (std::is_class_v<T> && std::is_trivially_copyable_v<T> && alignof(T) >= sizeof(void *)) {
#ifdef __clang__
        return true;  // it cannot tell padding, which may look like anything
#else
        T clean = value;
        __builtin_clear_padding(&clean);
        return ts_shim_check_words(kernel, index, &clean, sizeof clean / sizeof(void *));
#endif
    } else {
        (void)kernel, (void)index, (void)value;
        return true;
    }
}

template <typename... P, typename... A>
static cudaError_t ts_shim_launch_on(const char *name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                                     void (*kernel)(P...), A &&...arguments) {
    std::tuple<std::remove_const_t<P>...> copy(static_cast<P>(arguments)...);
    int index = 0;
    const bool fine = std::apply([&](auto &...a) { return (ts_shim_check_value(name, index++, a) && ...); }, copy);
    if (!fine) {
        return cudaErrorIllegalAddress;
    }
    return ts_shim_launch_closure(name, (const void *)kernel, grid, block, shared_bytes, stream,
                                  [kernel, copy] { std::apply(kernel, copy); });
}

// What TS_LAUNCH is here.
template <typename... P, typename... A>
static int ts_shim_launch(const char *name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          void (*kernel)(P...), A &&...arguments) {
    return ts_cuda_check(ts_shim_launch_on(name, grid, block, shared_bytes, stream, kernel, arguments...), name);
}

template <typename F>
static inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute attribute, int value) {
    return cudaFuncSetAttribute((const void *)kernel, attribute, value);
}
template <typename F>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, F *kernel, int threads,
                                                                        size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, (const void *)kernel, threads, shared);
}
template <typename T> static inline cudaError_t cudaMalloc(T **memory, size_t bytes) {
    return cudaMalloc((void **)memory, bytes);
}

// ---- barriers and warp exchanges
// Their places in the source tell two calls apart where threads went different ways.

void ts_shim_syncthreads(int line);
int ts_shim_syncthreads_reduce(int predicate, int operation, int line);  // 0 and, 1 or, 2 count
void ts_shim_syncwarp(unsigned mask, int line);
// *value of lane `source` of the warp, for each lane that calls; 4 or 8 bytes.
void ts_shim_shuffle(unsigned mask, void *value, size_t bytes, int source, const char *what, int line);
unsigned ts_shim_vote(unsigned mask, int predicate, int line);
enum ts_shim_reduction { TS_SHIM_ADD, TS_SHIM_MIN, TS_SHIM_MAX, TS_SHIM_AND, TS_SHIM_OR, TS_SHIM_XOR };
uint32_t ts_shim_reduce(unsigned mask, uint32_t value, ts_shim_reduction reduction, bool is_signed, int line);
int ts_shim_lane();

static inline void __syncthreads(int line = __builtin_LINE()) {
    ts_shim_syncthreads(line);
}
static inline int __syncthreads_and(int predicate, int line = __builtin_LINE()) {
    return ts_shim_syncthreads_reduce(predicate, 0, line);
}
static inline int __syncthreads_or(int predicate, int line = __builtin_LINE()) {
    return ts_shim_syncthreads_reduce(predicate, 1, line);
}
static inline int __syncthreads_count(int predicate, int line = __builtin_LINE()) {
    return ts_shim_syncthreads_reduce(predicate, 2, line);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
    ts_shim_syncwarp(mask, line);
}

template <typename T> static inline T ts_shim_shuffled(unsigned mask, T value, int source, const char *what, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "lanes exchange 4 or 8 bytes");
    ts_shim_shuffle(mask, &value, sizeof value, source, what, line);
    return value;
}
// Lanes whose source is outside their part of `width` lanes keep their own value.
template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
    const int lane = ts_shim_lane();
    return ts_shim_shuffled(mask, value, (lane & -width) | (source & (width - 1)), "__shfl_sync", line);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, int line = __builtin_LINE()) {
    const int lane = ts_shim_lane(), source = lane ^ lanes;
    return ts_shim_shuffled(mask, value, source < (lane & -width) + width ? source : lane, "__shfl_xor_sync", line);
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
    const int lane = ts_shim_lane(), source = lane - (int)by;
    return ts_shim_shuffled(mask, value, source >= (lane & -width) ? source : lane, "__shfl_up_sync", line);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
    const int lane = ts_shim_lane(), source = lane + (int)by;
    return ts_shim_shuffled(mask, value, source < (lane & -width) + width ? source : lane, "__shfl_down_sync", line);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return ts_shim_vote(mask, predicate, line);
}
static inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return ts_shim_vote(mask, predicate, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return ts_shim_vote(mask, !predicate, line) == 0;
}
static inline unsigned __reduce_add_sync(unsigned mask, unsigned value, int line = __builtin_LINE()) {
    return ts_shim_reduce(mask, value, TS_SHIM_ADD, false, line);
}
static inline int __reduce_add_sync(unsigned mask, int value, int line = __builtin_LINE()) {
    return (int)ts_shim_reduce(mask, (uint32_t)value, TS_SHIM_ADD, true, line);
}
static inline unsigned __reduce_max_sync(unsigned mask, unsigned value, int line = __builtin_LINE()) {
    return ts_shim_reduce(mask, value, TS_SHIM_MAX, false, line);
}
static inline int __reduce_max_sync(unsigned mask, int value, int line = __builtin_LINE()) {
    return (int)ts_shim_reduce(mask, (uint32_t)value, TS_SHIM_MAX, true, line);
}
static inline unsigned __reduce_min_sync(unsigned mask, unsigned value, int line = __builtin_LINE()) {
    return ts_shim_reduce(mask, value, TS_SHIM_MIN, false, line);
}
static inline int __reduce_min_sync(unsigned mask, int value, int line = __builtin_LINE()) {
    return (int)ts_shim_reduce(mask, (uint32_t)value, TS_SHIM_MIN, true, line);
}
static inline unsigned __reduce_or_sync(unsigned mask, unsigned value, int line = __builtin_LINE()) {
    return ts_shim_reduce(mask, value, TS_SHIM_OR, false, line);
}
static inline unsigned __reduce_and_sync(unsigned mask, unsigned value, int line = __builtin_LINE()) {
    return ts_shim_reduce(mask, value, TS_SHIM_AND, false, line);
}

static inline void __threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {
    __threadfence();
}
void __nanosleep(unsigned nanoseconds);  // lets the other threads go on
[[noreturn]] void __trap();

// ---- atomics: blocks may run on several threads of the host

template <typename T, typename F> static inline T ts_shim_update(T *place, F &&changed) {
    using bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    static_assert(sizeof(T) == sizeof(bits), "atomics are of 4 or 8 bytes");
    bits *const at = reinterpret_cast<bits *>(place);
    bits old = __atomic_load_n(at, __ATOMIC_RELAXED), next;
    T before;
    do {
        std::memcpy(&before, &old, sizeof before);
        const T after = changed(before);
        std::memcpy(&next, &after, sizeof next);
    } while (!__atomic_compare_exchange_n(at, &old, next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return before;
}
template <typename T> static inline T atomicAdd(T *place, std::common_type_t<T> value) {
    return ts_shim_update(place, [=](T old) { return (T)(old + value); });
}
template <typename T> static inline T atomicSub(T *place, std::common_type_t<T> value) {
    return ts_shim_update(place, [=](T old) { return (T)(old - value); });
}
template <typename T> static inline T atomicMax(T *place, std::common_type_t<T> value) {
    return ts_shim_update(place, [=](T old) { return old > value ? old : value; });
}
template <typename T> static inline T atomicMin(T *place, std::common_type_t<T> value) {
    return ts_shim_update(place, [=](T old) { return old < value ? old : value; });
}
template <typename T> static inline T atomicOr(T *place, std::common_type_t<T> value) {
    return ts_shim_update(place, [=](T old) { return (T)(old | value); });
}
template <typename T> static inline T atomicAnd(T *place, std::common_type_t<T> value) {
    return ts_shim_update(place, [=](T old) { return (T)(old & value); });
}
template <typename T> static inline T atomicExch(T *place, std::common_type_t<T> value) {
    return ts_shim_update(place, [=](T) { return (T)value; });
}
template <typename T> static inline T atomicCAS(T *place, std::common_type_t<T> expected, std::common_type_t<T> value) {
    return ts_shim_update(place, [=](T old) { return old == expected ? (T)value : old; });
}
static inline unsigned atomicInc(unsigned *place, unsigned last) {
    return ts_shim_update(place, [=](unsigned old) { return old >= last ? 0 : old + 1; });
}

// ---- loads and stores with cache hints

template <typename T> static inline T __ldg(const T *from) {
    return *from;
}
#define __ldca(from)                    (*(from))
#define __ldcg(from)                    (*(from))
#define __ldcs(from)                    (*(from))
#define __ldlu(from)                    (*(from))
#define __ldcv(from)                    (*(from))
#define __stcg(to, x)                   (*(to) = (x))
#define __stcs(to, x)                   (*(to) = (x))
#define __stwb(to, x)                   (*(to) = (x))
#define __stwt(to, x)                   (*(to) = (x))
#define __cvta_generic_to_shared(place) ((size_t)(place))

// ---- arithmetic
// The approximate functions are the exact ones here: what they lack shows on a GPU alone.

#define __expf(x)      expf(x)
#define __exp10f(x)    ts_shim_exp10f(x)
#define __logf(x)      logf(x)
#define __log2f(x)     log2f(x)
#define __log10f(x)    log10f(x)
#define __sinf(x)      sinf(x)
#define __cosf(x)      cosf(x)
#define __tanf(x)      tanf(x)
#define __powf(x, y)   powf((x), (y))
#define __tanhf(x)     tanhf(x)
#define __saturatef(x) fminf(fmaxf((x), 0.0f), 1.0f)
#define __assume(x)    __builtin_assume(x)

static inline float ts_shim_exp10f(float x) {
    return (float)std::pow(10.0, (double)x);
}
static inline float __fdividef(float a, float b) {
    return a / b;
}
static inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
static inline double rsqrt(double x) {
    return 1.0 / sqrt(x);
}
static inline float normcdff(float x) {
    return 0.5f * erfcf(-x * 0.70710678f);
}
static inline void sincospif(float x, float *s, float *c) {
    *s = (float)std::sin((double)x * M_PI), *c = (float)std::cos((double)x * M_PI);
}
#define __sincosf(x, s, c) sincosf((x), (s), (c))

static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline float __fsub_rn(float a, float b) {
    return a - b;
}
static inline float __fmul_rn(float a, float b) {
    return a * b;
}
static inline float __fdiv_rn(float a, float b) {
    return a / b;
}
static inline float __frcp_rn(float a) {
    return 1.0f / a;
}
static inline float __fsqrt_rn(float a) {
    return sqrtf(a);
}
static inline float __frsqrt_rn(float a) {
    return 1.0f / sqrtf(a);
}
static inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
static inline double __dadd_rn(double a, double b) {
    return a + b;
}
static inline double __dsub_rn(double a, double b) {
    return a - b;
}
static inline double __dmul_rn(double a, double b) {
    return a * b;
}
static inline double __ddiv_rn(double a, double b) {
    return a / b;
}
static inline double __dsqrt_rn(double a) {
    return sqrt(a);
}
static inline double __fma_rn(double a, double b, double c) {
    return fma(a, b, c);
}

template <typename To, typename From> static inline To ts_shim_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To out;
    std::memcpy(&out, &x, sizeof out);
    return out;
}
static inline unsigned __float_as_uint(float x) {
    return ts_shim_bits<unsigned>(x);
}
static inline float __uint_as_float(unsigned x) {
    return ts_shim_bits<float>(x);
}
static inline int __float_as_int(float x) {
    return ts_shim_bits<int>(x);
}
static inline float __int_as_float(int x) {
    return ts_shim_bits<float>(x);
}
static inline long long __double_as_longlong(double x) {
    return ts_shim_bits<long long>(x);
}
static inline double __longlong_as_double(long long x) {
    return ts_shim_bits<double>(x);
}
static inline float __double2float_rn(double x) {
    return (float)x;
}
static inline float __int2float_rn(int x) {
    return (float)x;
}
static inline float __uint2float_rn(unsigned x) {
    return (float)x;
}
static inline double __uint2double_rn(unsigned x) {
    return (double)x;
}
static inline int __float2int_rn(float x) {
    return (int)lrintf(x);
}
static inline int __float2int_rz(float x) {
    return (int)x;
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)(((uint64_t)a * b) >> 32);
}
static inline int __mulhi(int a, int b) {
    return (int)(((int64_t)a * b) >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
static inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
static inline int __clz(int x) {
    return x ? __builtin_clz((unsigned)x) : 32;
}
static inline int __clzll(long long x) {
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}
static inline int __ffs(int x) {
    return __builtin_ffs(x);
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return (unsigned)((((uint64_t)high << 32 | low) << (by & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (by & 31));
}
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        out |= (unsigned)(bytes >> (8 * (selector >> 4 * i & 7)) & 0xff) << 8 * i;
    }
    return out;
}

// CUDA has min and max of all arithmetic types in the global namespace.
template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
static inline std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return (T)b < (T)a ? (T)b : (T)a;
}
template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
static inline std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return (T)a < (T)b ? (T)b : (T)a;
}

#endif
