// SPDX-License-Identifier: Apache-2.0
#include "train/muon.h"

#include <math.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/status.h"

struct ts_muon {
    const ts_kernels *kernels;
    ts_dtype operand;
    double *squares;     // [1] |u|^2
    float *gram, *poly;  // [smaller, smaller]: A, and a I + b A + c A A
    void *x_operand;     // [elements]          what the products read
    void *side_operand;  // [smaller, smaller]
};

int ts_muon_open(ts_muon **out, const ts_kernels *kernels, ts_dtype operand, int64_t elements, int64_t smaller) {
    ts_muon *m = ts_calloc(1, sizeof *m);
    if (!m) {
        return TS_ERESOURCE;
    }
    const ts_device *device = kernels->device;
    const size_t square = (size_t)(smaller * smaller), bytes = ts_dtype_bytes(operand);
    *m = (ts_muon){.kernels = kernels, .operand = operand};
    m->squares = device->allocate(sizeof *m->squares);
    m->gram = device->allocate(square * sizeof(float));
    m->poly = device->allocate(square * sizeof(float));
    m->x_operand = device->allocate((size_t)elements * bytes);
    m->side_operand = device->allocate(square * bytes);
    if (!m->squares || !m->gram || !m->poly || !m->x_operand || !m->side_operand) {
        ts_muon_close(&m);
        return TS_ERESOURCE;
    }
    *out = m;
    return TS_OK;
}

void ts_muon_close(ts_muon **muon) {
    ts_muon *m = *muon;
    if (m) {
        const ts_device *device = m->kernels->device;
        device->release(m->squares);
        device->release(m->gram);
        device->release(m->poly);
        device->release(m->x_operand);
        device->release(m->side_operand);
        free(m);
        *muon = NULL;
    }
}

// poly = a I + b A + c A A of the Gram matrix A in m->gram, so that one product makes the step.
static int polynomial(ts_muon *m, int64_t side) {
    static const float a = 3.4445f, b = -4.7750f, c = 2.0315f;
    TS_TRY(m->kernels->cast(m->gram, TS_F32, m->side_operand, m->operand, side * side));
    const ts_gemm squared = {
        .m = side,
        .n = side,
        .k = side,
        .a = m->side_operand,
        .b = m->side_operand,
        .c = m->poly,
        .lda = side,
        .ldb = side,
        .ldc = side,
        .dtype_ab = m->operand,
        .dtype_c = TS_F32,
    };
    TS_TRY(m->kernels->gemm(&squared));
    TS_TRY(m->kernels->newton_schulz(a, b, c, m->gram, m->poly, side));
    return m->kernels->cast(m->poly, TS_F32, m->side_operand, m->operand, side * side);
}

// One Newton-Schulz step on x [rows, columns] in place. The Gram matrix is taken on the smaller side: X X^T of a wide
// x, X^T X of a tall one, and the product comes from the same side.
static int newton_schulz_step(ts_muon *m, float *x, int64_t rows, int64_t columns) {
    const bool tall = rows > columns;
    const int64_t side = tall ? columns : rows;
    TS_TRY(m->kernels->cast(x, TS_F32, m->x_operand, m->operand, rows * columns));
    const ts_gemm gram = {
        .m = side,
        .n = side,
        .k = tall ? rows : columns,
        .a = m->x_operand,
        .b = m->x_operand,
        .c = m->gram,
        .lda = columns,
        .ldb = columns,
        .ldc = side,
        .transpose_a = tall,
        .transpose_b = !tall,
        .dtype_ab = m->operand,
        .dtype_c = TS_F32,
    };
    TS_TRY(m->kernels->gemm(&gram));
    TS_TRY(polynomial(m, side));
    const ts_gemm product = {
        .m = rows,
        .n = columns,
        .k = side,
        .a = tall ? m->x_operand : m->side_operand,
        .b = tall ? m->side_operand : m->x_operand,
        .c = x,
        .lda = side,
        .ldb = columns,
        .ldc = columns,
        .dtype_ab = m->operand,
        .dtype_c = TS_F32,
    };
    return m->kernels->gemm(&product);
}

int64_t ts_muon_bytes(ts_dtype operand, int64_t elements, int64_t smaller) {
    const int64_t bytes = (int64_t)ts_dtype_bytes(operand), square = smaller * smaller;
    return square * (2 * (int64_t)sizeof(float) + bytes) + elements * bytes;
}

int ts_muon_direction(ts_muon *m, int64_t rows, int64_t columns, float *u) {
    enum { STEPS = 5 };
    const int64_t n = rows * columns;
    TS_TRY(m->kernels->device->zero(m->squares, sizeof *m->squares));
    TS_TRY(m->kernels->sum_squares(u, n, m->squares));
    TS_TRY(m->kernels->normalize(m->squares, u, n));
    for (int step = 0; step < STEPS; step++) {
        TS_TRY(newton_schulz_step(m, u, rows, columns));
    }
    const double tall = rows > columns ? (double)rows / (double)columns : 1.0;
    return m->kernels->scale((float)sqrt(tall), u, n);
}
