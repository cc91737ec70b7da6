// SPDX-License-Identifier: Apache-2.0
#include "train/peak.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/base/status.h"

// Short enough to start a run with, long enough to meet moments when nothing else runs.
enum { EDGE = 768 };
static const double TRIAL_SECONDS = 0.2;

static int best_product(const ts_kernels *kernels, ts_dtype dtype, void *a, void *b, float *c, double *best) {
    const ts_gemm product = {.m = EDGE,
                             .n = EDGE,
                             .k = EDGE,
                             .a = a,
                             .b = b,
                             .c = c,
                             .lda = EDGE,
                             .ldb = EDGE,
                             .ldc = EDGE,
                             .transpose_b = true,
                             .dtype_ab = dtype,
                             .dtype_c = TS_F32};
    const double flops = 2.0 * EDGE * EDGE * EDGE;
    const double begin = ts_clock_seconds();
    for (double start = begin, end; start - begin < TRIAL_SECONDS; start = end) {
        TS_TRY(kernels->gemm(&product));
        end = ts_clock_seconds();
        const double rate = flops / (end - start);
        *best = rate > *best ? rate : *best;
    }
    return TS_OK;
}

int ts_peak_measure(const ts_kernels *kernels, ts_dtype dtype, ts_comm *world, double *flops_per_second) {
    const size_t bytes = (size_t)EDGE * EDGE * sizeof(float);
    void *a = ts_aligned_alloc(bytes), *b = ts_aligned_alloc(bytes);
    float *c = ts_aligned_alloc(bytes);
    int status = a && b && c ? TS_OK : TS_ERESOURCE;
    *flops_per_second = 0;
    if (!status) {
        memset(a, 0, bytes);
        memset(b, 0, bytes);
        status = best_product(kernels, dtype, a, b, c, flops_per_second);
    }
    free(a);
    free(b);
    free(c);
    TS_TRY(ts_agree(world, status));
    return ts_all_reduce(world, flops_per_second, 1, TS_F64, TS_SUM);
}
