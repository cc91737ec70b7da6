// SPDX-License-Identifier: Apache-2.0
#include "train/peak.h"

#include "core/base/clock.h"
#include "core/base/rng.h"
#include "core/base/status.h"

// Short enough to start a run with, long enough to meet moments when nothing else runs.
static const double TRIAL_SECONDS = 0.2;
// On the host a product that fits the caches; on a device one that fills it, which is sought for.
enum { HOST_EDGE = 768, LEAST_EDGE = 256, MOST_EDGE = 4096 };
// Products that a device is given at a time, so that it does not wait for the host between them.
enum { AT_ONCE = 8 };
static const double LONG_ENOUGH = 1e-3;

typedef struct operands {
    const ts_kernels *kernels;
    ts_dtype dtype;
    void *a, *b;  // [edge, edge] dtype
    float *c;     // [edge, edge]
} operands;

static int open_operands(operands *o, int64_t edge) {
    const ts_device *device = o->kernels->device;
    const int64_t count = edge * edge;
    o->a = device->allocate((size_t)count * ts_dtype_bytes(o->dtype));
    o->b = device->allocate((size_t)count * ts_dtype_bytes(o->dtype));
    o->c = device->allocate((size_t)count * sizeof *o->c);
    if (!o->a || !o->b || !o->c) {
        return TS_ERESOURCE;
    }
    // Not zeros, of which some chips make less work than training will.
    TS_TRY(o->kernels->noise(o->c, count, 1, TS_RNG_TEST, 0, 0));
    TS_TRY(o->kernels->cast(o->c, TS_F32, o->a, o->dtype, count));
    return o->kernels->cast(o->c, TS_F32, o->b, o->dtype, count);
}

static void close_operands(const operands *o) {
    const ts_device *device = o->kernels->device;
    device->release(o->a);
    device->release(o->b);
    device->release(o->c);
}

// Seconds of one of `runs` products in a row.
static int time_products(const operands *o, int64_t edge, int runs, double *seconds) {
    const ts_gemm product = {.m = edge,
                             .n = edge,
                             .k = edge,
                             .a = o->a,
                             .b = o->b,
                             .c = o->c,
                             .lda = edge,
                             .ldb = edge,
                             .ldc = edge,
                             .transpose_b = true,
                             .dtype_ab = o->dtype,
                             .dtype_c = TS_F32};
    const double start = ts_clock_seconds();
    for (int i = 0; i < runs; i++) {
        TS_TRY(o->kernels->gemm(&product));
    }
    TS_TRY(o->kernels->device->finish());
    *seconds = (ts_clock_seconds() - start) / runs;
    return TS_OK;
}

// The second product of an edge counts: the first may choose an algorithm.
static int find_edge(const operands *o, int64_t *edge) {
    double seconds = 0;
    for (*edge = LEAST_EDGE;; *edge *= 2) {
        TS_TRY(time_products(o, *edge, 1, &seconds));
        TS_TRY(time_products(o, *edge, 1, &seconds));
        if (seconds >= LONG_ENOUGH || *edge == MOST_EDGE) {
            return TS_OK;
        }
    }
}

static int best_product(const operands *o, int64_t edge, double *best) {
    const double flops = 2.0 * (double)edge * (double)edge * (double)edge, begin = ts_clock_seconds();
    while (ts_clock_seconds() - begin < TRIAL_SECONDS) {
        double seconds;
        TS_TRY(time_products(o, edge, o->kernels->device->is_host ? 1 : AT_ONCE, &seconds));
        *best = flops / seconds > *best ? flops / seconds : *best;
    }
    return TS_OK;
}

int ts_peak_measure(const ts_kernels *kernels, ts_dtype dtype, ts_comm *world, double *flops_per_second) {
    const bool is_host = kernels->device->is_host;
    operands o = {.kernels = kernels, .dtype = dtype};
    int64_t edge = is_host ? HOST_EDGE : MOST_EDGE;
    *flops_per_second = 0;
    int status = open_operands(&o, edge);
    status = status || is_host ? status : find_edge(&o, &edge);
    status = status ? status : best_product(&o, edge, flops_per_second);
    close_operands(&o);
    TS_TRY(ts_agree(world, status));
    return ts_all_reduce(world, flops_per_second, 1, TS_F64, TS_SUM);
}
