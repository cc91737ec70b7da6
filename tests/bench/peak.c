// SPDX-License-Identifier: Apache-2.0
// The machine's peak: loops that keep every multiplier busy and touch no memory, and one that touches nothing else.
#include <immintrin.h>
#include <omp.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/kernels/cpu/cpu.h"
#include "tests/bench/bench.h"

// Twelve sums hide a latency of four cycles on two or three multipliers.
enum { SUMS = 12, ROUNDS = 40000, TRIALS = 25 };

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

static _Thread_local volatile float sink;  // keeps the loops' results alive

static double sse_loop(void) {
    __m128 sum[SUMS], factor = _mm_set1_ps(0.999f);
    UNROLL for (int i = 0; i < SUMS; i++) {
        sum[i] = _mm_set1_ps((float)i);
    }
    for (int round = 0; round < ROUNDS; round++) {
        UNROLL for (int i = 0; i < SUMS; i++) {
            sum[i] = _mm_add_ps(_mm_mul_ps(sum[i], factor), factor);
        }
    }
    UNROLL for (int i = 0; i < SUMS; i++) {
        sink = _mm_cvtss_f32(sum[i]);
    }
    return 2.0 * 4 * SUMS * ROUNDS;
}

__attribute__((target("avx2,fma"))) static double avx2_loop(void) {
    __m256 sum[SUMS], factor = _mm256_set1_ps(0.999f);
    UNROLL for (int i = 0; i < SUMS; i++) {
        sum[i] = _mm256_set1_ps((float)i);
    }
    for (int round = 0; round < ROUNDS; round++) {
        UNROLL for (int i = 0; i < SUMS; i++) {
            sum[i] = _mm256_fmadd_ps(sum[i], factor, factor);
        }
    }
    UNROLL for (int i = 0; i < SUMS; i++) {
        sink = _mm256_cvtss_f32(sum[i]);
    }
    return 2.0 * 8 * SUMS * ROUNDS;
}

__attribute__((target("avx512f"))) static double avx512_loop(void) {
    __m512 sum[SUMS], factor = _mm512_set1_ps(0.999f);
    UNROLL for (int i = 0; i < SUMS; i++) {
        sum[i] = _mm512_set1_ps((float)i);
    }
    for (int round = 0; round < ROUNDS; round++) {
        UNROLL for (int i = 0; i < SUMS; i++) {
            sum[i] = _mm512_fmadd_ps(sum[i], factor, factor);
        }
    }
    UNROLL for (int i = 0; i < SUMS; i++) {
        sink = _mm512_cvtss_f32(sum[i]);
    }
    return 2.0 * 16 * SUMS * ROUNDS;
}

__attribute__((target("avx512f,avx512bf16"))) static double dot_loop(void) {
    __m512 sum[SUMS];
    const __m512bh factor = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    UNROLL for (int i = 0; i < SUMS; i++) {
        sum[i] = _mm512_set1_ps((float)i);
    }
    for (int round = 0; round < ROUNDS; round++) {
        UNROLL for (int i = 0; i < SUMS; i++) {
            sum[i] = _mm512_dpbf16_ps(sum[i], factor, factor);
        }
    }
    UNROLL for (int i = 0; i < SUMS; i++) {
        sink = _mm512_cvtss_f32(sum[i]);
    }
    return 4.0 * 16 * SUMS * ROUNDS;
}

static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TILES = {.palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

// A product of tiles is 16 x 16 x 32 multiply-adds.
__attribute__((target("amx-tile,amx-bf16"))) static double tile_loop(void) {
    _tile_loadconfig(&TILES);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int round = 0; round < ROUNDS / 4; round++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 2.0 * 16 * 16 * 32 * ROUNDS;
}

// Greatest FLOP/s of all threads running `loop` at once.
static double best_rate(double (*loop)(void)) {
    double best = 0;
    for (int trial = 0; trial < TRIALS; trial++) {
        double flops = 0;
        const double begin = ts_bench_seconds();
#pragma omp parallel reduction(+ : flops)
        flops += loop();
        const double rate = flops / (ts_bench_seconds() - begin);
        best = rate > best ? rate : best;
    }
    return best;
}

// Three arrays far beyond the caches.
static int measure_triad(double *rate) {
    const int64_t n = 24 << 20;
    float *a = ts_aligned_alloc((size_t)(3 * n) * sizeof *a);
    if (!a) {
        return TS_ERESOURCE;
    }
    float *b = a + n, *c = a + 2 * n;
    *rate = 0;
    for (int trial = 0; trial < 6; trial++) {  // the first one maps the pages
        const double begin = ts_bench_seconds();
#pragma omp parallel for simd schedule(static)
        for (int64_t i = 0; i < n; i++) {
            if (trial == 0) {
                b[i] = c[i] = 1;
            }
            a[i] = b[i] + 3.0f * c[i];
        }
        const double bytes = 3.0 * (double)n * sizeof *a / (ts_bench_seconds() - begin);
        *rate = trial && bytes > *rate ? bytes : *rate;
    }
    free(a);
    return 0;
}

int ts_bench_peak_measure(ts_bench_peak *out) {
    const ts_isa isa = ts_cpu_isa();
    *out = (ts_bench_peak){0};
    out->f32 = best_rate(isa >= TS_ISA_AVX512 ? avx512_loop : isa >= TS_ISA_AVX2 ? avx2_loop : sse_loop);
    out->bf16_dot = isa >= TS_ISA_AVX512BF16 ? best_rate(dot_loop) : 0;
    out->bf16_tiles = isa >= TS_ISA_AMX ? best_rate(tile_loop) : 0;
    out->bf16 = out->f32 > out->bf16_dot ? out->f32 : out->bf16_dot;
    out->bf16 = out->bf16_tiles > out->bf16 ? out->bf16_tiles : out->bf16;
    return measure_triad(&out->memory);
}
