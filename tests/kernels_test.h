// SPDX-License-Identifier: Apache-2.0
// What the kernel tests share: blocks of random operands, double-precision comparison, instruction sets, threads, and
// the way to another device's kernels.
#ifndef TS_KERNELS_TEST_H
#define TS_KERNELS_TEST_H

#include <omp.h>

#include "core/base/rng.h"
#include "core/kernels/kernels.h"
#include "tests/bridge.h"
#include "tests/ts_test.h"

// ---- memory of one case: separate blocks, so that a sanitizer sees every overrun
// All that a kernel reads or writes is in blocks: on a device that is not the host they are what is copied there.

enum { TEST_MAX_BLOCKS = 256 };
static void *test_blocks[TEST_MAX_BLOCKS];
static size_t test_block_bytes[TEST_MAX_BLOCKS];
static int test_block_count;

static inline void *test_zeros(size_t bytes) {
    void *block = calloc(1, bytes ? bytes : 1);
    if (!block || test_block_count == TEST_MAX_BLOCKS) {
        abort();
    }
    test_block_bytes[test_block_count] = bytes;
    return test_blocks[test_block_count++] = block;
}

static inline size_t test_find_block(const void *place, char **first) {
    for (int i = 0; i < test_block_count; i++) {
        *first = test_blocks[i];
        if ((const char *)place >= *first && (const char *)place <= *first + test_block_bytes[i]) {
            return test_block_bytes[i];
        }
    }
    fprintf(stderr, "a kernel is given a pointer outside of the test's blocks\n");
    exit(1);
}

static inline void test_free_blocks(void) {
    while (test_block_count) {
        free(test_blocks[--test_block_count]);
    }
}

static inline double test_get(const void *data, ts_dtype dtype, int64_t i) {
    return dtype == TS_BF16 ? (double)ts_bf16_to_f32(((const uint16_t *)data)[i]) : (double)((const float *)data)[i];
}

static inline void test_put(void *data, ts_dtype dtype, int64_t i, double value) {
    if (dtype == TS_BF16) {
        ((uint16_t *)data)[i] = ts_f32_to_bf16((float)value);
    } else {
        ((float *)data)[i] = (float)value;
    }
}

static uint64_t test_stream;  // the state of the random numbers

// Uniform with deviation 1 (SplitMix64): the library's generator is too slow for millions of doubles.
static inline double test_number(void) {
    uint64_t z = test_stream += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((double)(z >> 11) * 0x1p-53 - 0.5) * 3.4641016151377544;
}

static inline void *test_random(ts_dtype dtype, int64_t n, double size) {
    void *data = test_zeros((size_t)n * ts_dtype_bytes(dtype));
    for (int64_t i = 0; i < n; i++) {
        test_put(data, dtype, i, size * test_number());
    }
    return data;
}

static inline double *test_doubles(const void *data, ts_dtype dtype, int64_t n) {
    double *out = test_zeros((size_t)n * sizeof *out);
    for (int64_t i = 0; i < n; i++) {
        out[i] = test_get(data, dtype, i);
    }
    return out;
}

static inline void *test_copy(const void *data, size_t bytes) {
    return memcpy(test_zeros(bytes), data, bytes);
}

// ---- what is tested

// Whether this case is run on a GPU's kernels; a SKIP where there is no GPU.
static inline bool test_on_gpu(void) {
    const bool gpu = strcmp(ts_test_backend(), "cpu") != 0;
    if (gpu && ts_kernels_gpus() == 0) {
        ts_test_skip("no GPU");
    }
    return gpu;
}

static inline const char *test_where(void) {
    return test_on_gpu() ? "cuda" : ts_kernels_cpu_instruction_set();
}

// ---- comparison

// Unit roundoff: the largest relative error of one rounding.
static inline double test_epsilon(ts_dtype dtype) {
    return dtype == TS_BF16 ? 0x1p-8 : 0x1p-24;
}

// Every |got - want| <= absolute + relative |want|; the first violation is printed. Returns whether all are.
static inline bool test_close(const char *what, const void *got, ts_dtype dtype, const double *want, int64_t n,
                              double absolute, double relative) {
    for (int64_t i = 0; i < n; i++) {
        const double g = test_get(got, dtype, i);
        if (!(fabs(g - want[i]) <= absolute + relative * fabs(want[i]))) {
            fprintf(stderr, "%s [%s]: element %lld is %.9g, wanted %.9g (tolerance %g + %g)\n", what, test_where(),
                    (long long)i, g, want[i], absolute, relative * fabs(want[i]));
            return false;
        }
    }
    return true;
}

// The comparison itself must notice one wrong number among n.
static inline void test_close_can_fail(void) {
    const double want[3] = {1, 2, 3};
    const float wrong[3] = {1, 2.001f, 3};
    fprintf(stderr, "(one violation is expected here) ");
    CHECK(!test_close("a known error", wrong, TS_F32, want, 3, 0, 1e-5));
}

// ---- gradients

// A scalar function of x [n] in double precision.
typedef double (*test_function)(const void *context, const double *x);

// Compares <gradient, direction> with (f(x + h d) - f(x - h d)) / 2h along several random directions, half of them
// non-zero only in a few places. `tolerance` is relative to the norm of the direction times that of the gradient plus
// `size`, the size of the terms whose difference a component is.
static inline void test_gradient(const char *what, test_function f, const void *context, const double *x,
                                 const double *gradient, int64_t n, double size, double tolerance) {
    enum { DIRECTIONS = 4 };
    double *d = test_zeros((size_t)n * sizeof *d), *moved = test_zeros((size_t)n * sizeof *moved);
    for (int direction = 0; direction < DIRECTIONS; direction++) {
        double analytic = 0, gradient_norm = 0, d_norm = 0, difference = 0;
        for (int64_t i = 0; i < n; i++) {
            const double z = test_number();
            d[i] = direction % 2 && test_number() < 1.5 ? 0 : z;
            analytic += gradient[i] * d[i];
            gradient_norm += gradient[i] * gradient[i];
            d_norm += d[i] * d[i];
        }
        const double h = 1e-5;
        for (int side = -1; side <= 1; side += 2) {
            for (int64_t i = 0; i < n; i++) {
                moved[i] = x[i] + side * h * d[i];
            }
            difference += side * f(context, moved) / (2 * h);
        }
        if (!(fabs(analytic - difference) <= tolerance * sqrt(d_norm) * (sqrt(gradient_norm) + size))) {
            fprintf(stderr, "%s [%s]: directional derivative %.9g, by differences %.9g\n", what,
                    ts_kernels_cpu_instruction_set(), analytic, difference);
            ts_test_failures++;
        }
    }
}

// ---- instruction sets and devices

// Runs `body` with the table of every instruction set up to `highest` that this machine has. From the highest down: the
// GEMM library keeps to the level of its first call. On a GPU, runs it once, with the GPU's kernels.
static inline void test_levels(const char *highest, void (*body)(const ts_kernels *k)) {
    static const char *const levels[] = {"amx", "avx512bf16", "avx512", "avx2", "generic"};
    const ts_kernels *k;
    if (test_on_gpu()) {
        CHECK_OK(ts_kernels_open(&k, "cuda", 0));
        body(bridge_open(k, test_find_block));
        test_free_blocks();
        return;
    }
    bool reached = false;
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        reached = reached || strcmp(levels[i], highest) == 0;
        if (reached && ts_kernels_cpu(&k, levels[i]) == 0) {
            CHECK(strcmp(ts_kernels_cpu_instruction_set(), levels[i]) == 0);
            body(k);
            test_free_blocks();
        }
    }
    CHECK_OK(ts_kernels_cpu(&k, "auto"));
}

#endif
