// SPDX-License-Identifier: Apache-2.0
// The peak of a device other than the host, as its own libraries reach it: a large product, and a large copy.
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/rng.h"
#include "core/base/status.h"
#include "tests/bench/bench.h"

// Products grow until one takes long enough to fill the chip; the rates of small ones say nothing of it.
enum { LEAST_EDGE = 256, MOST_EDGE = 8192, RUNS = 5 };
static const double LONG_ENOUGH = 1e-3;

float *ts_bench_numbers(const ts_kernels *kernels, int64_t count, uint64_t index) {
    const ts_device *device = kernels->device;
    float *out = device->allocate((size_t)count * sizeof *out);
    if (out && kernels->noise(out, count, 1, TS_RNG_TEST, index, 0)) {
        device->release(out);
        return NULL;
    }
    return out;
}

float *ts_bench_squares(const ts_kernels *kernels, int64_t count, uint64_t index) {
    const size_t bytes = (size_t)count * sizeof(float);
    float *squares = ts_aligned_alloc(bytes), *out = kernels->device->allocate(bytes);
    int status = squares && out ? TS_OK : TS_ERESOURCE;
    if (!status) {
        ts_rng_normal_fill(squares, count, 1, TS_RNG_TEST, index, 0);
        for (int64_t i = 0; i < count; i++) {
            squares[i] *= squares[i];
        }
        status = kernels->device->upload(out, squares, bytes);
    }
    free(squares);
    if (status) {
        kernels->device->release(out);
    }
    return status ? NULL : out;
}

typedef struct product {
    const ts_kernels *kernels;
    ts_gemm gemm;
} product;

static int call_product(const void *context) {
    const product *p = context;
    return p->kernels->gemm(&p->gemm);
}

static int time_product(const ts_kernels *kernels, ts_dtype dtype, const void *a, const void *b, void *c, int64_t edge,
                        ts_bench_time *time) {
    const product p = {kernels,
                       {.m = edge,
                        .n = edge,
                        .k = edge,
                        .a = a,
                        .b = b,
                        .c = c,
                        .lda = edge,
                        .ldb = edge,
                        .ldc = edge,
                        .transpose_b = true,
                        .dtype_ab = dtype,
                        .dtype_c = dtype}};
    return ts_bench_measure(call_product, &p, RUNS, time);
}

static int grow_product(const ts_kernels *kernels, ts_dtype dtype, const void *a, const void *b, void *c, double *rate,
                        int64_t *edge) {
    ts_bench_time time;
    for (*edge = LEAST_EDGE;; *edge *= 2) {
        TS_TRY(time_product(kernels, dtype, a, b, c, *edge, &time));
        *rate = 2.0 * (double)*edge * (double)*edge * (double)*edge / time.median;
        if (time.median >= LONG_ENOUGH || *edge == MOST_EDGE) {
            return 0;
        }
    }
}

typedef struct copy {
    const ts_device *device;
    void *to;
    const void *from;
    size_t bytes;
} copy;

static int call_copy(const void *context) {
    const copy *c = context;
    return c->device->copy(c->to, c->from, c->bytes);
}

// Operands of the largest product in f32: 256 MiB each, beyond every cache.
int ts_bench_peak_measure_on(const ts_kernels *kernels, ts_bench_peak *out) {
    const int64_t count = (int64_t)MOST_EDGE * MOST_EDGE;
    const ts_device *device = kernels->device;
    float *a = ts_bench_numbers(kernels, count, 1), *b = ts_bench_numbers(kernels, count, 2);
    float *c = device->allocate((size_t)count * sizeof *c);
    int64_t edge_f32;
    *out = (ts_bench_peak){0};
    int status = a && b && c ? TS_OK : TS_ERESOURCE;
    TS_TRY_GOTO(status, status, done);
    TS_TRY_GOTO(status, grow_product(kernels, TS_F32, a, b, c, &out->f32, &edge_f32), done);
    const copy whole = {device, c, a, (size_t)count * sizeof *c};
    ts_bench_time time;
    TS_TRY_GOTO(status, ts_bench_measure(call_copy, &whole, RUNS, &time), done);
    out->memory = 2.0 * (double)whole.bytes / time.median;
    // In halves of c and a: the bf16 operands of b and a, which is needed no more.
    uint16_t *const narrow_a = (uint16_t *)c, *const narrow_b = narrow_a + count;
    TS_TRY_GOTO(status, kernels->cast(a, TS_F32, narrow_a, TS_BF16, count), done);
    TS_TRY_GOTO(status, kernels->cast(b, TS_F32, narrow_b, TS_BF16, count), done);
    TS_TRY_GOTO(status, grow_product(kernels, TS_BF16, narrow_a, narrow_b, a, &out->bf16, &out->edge), done);
done:
    device->release(a);
    device->release(b);
    device->release(c);
    return status;
}
