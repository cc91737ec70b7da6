// SPDX-License-Identifier: Apache-2.0
// Kernels over flat ranges whose loops need no help to become vectors. Formulas: core/kernels/kernels.h.
#include <math.h>

#include "core/base/rng.h"
#include "core/base/rng_math.h"
#include "core/base/status.h"
#include "core/kernels/combine.h"
#include "core/kernels/cpu/cpu.h"

enum { SMALL = 16384 };  // below it threads cost more than they bring

static int mix(const ts_mix *p) {
    const int64_t width = p->width;
#pragma omp parallel for schedule(static) if (p->rows * width > SMALL)
    for (int64_t row = 0; row < p->rows; row++) {
        const float sigma = p->sigma[row], *x0 = p->x0 + row * width;
        float *x = p->x + row * width, *target = p->eps_to_target + row * width;
        for (int64_t i = 0; i < width; i++) {
            const float eps = target[i];
            x[i] = (1.0f - sigma) * x0[i] + sigma * eps;
            target[i] = eps - x0[i];
        }
    }
    return 0;
}

// One row with the coefficients of its class, those of 0 left out.
static void combine_row(const ts_combine *p, int64_t row) {
    const double *class_c = p->class_c + (int64_t)p->row_class[row] * TS_MAX_TERMS;
    double c[TS_MAX_TERMS];
    const float *x[TS_MAX_TERMS];
    int terms = 0;
    for (int k = 0; k < p->terms; k++) {
        c[terms] = class_c[k];
        x[terms] = p->x[k] + row * p->width;
        terms += class_c[k] != 0.0;
    }
    float *out = p->out + row * p->width;
    for (int64_t i = 0; i < p->width; i++) {
        double sum = terms ? c[0] * (double)x[0][i] : 0.0;
        for (int k = 1; k < terms; k++) {
            sum += c[k] * (double)x[k][i];
        }
        out[i] = (float)sum;
    }
}

static int combine(const ts_combine *p) {
    TS_TRY(ts_combine_check(p));
    if (p->row_class) {
#pragma omp parallel for schedule(static) if (p->n > SMALL)
        for (int64_t row = 0; row < p->n / p->width; row++) {
            combine_row(p, row);
        }
        return 0;
    }
#pragma omp parallel for schedule(static) if (p->n > SMALL)
    for (int64_t i = 0; i < p->n; i++) {
        double sum = p->c[0] * (double)p->x[0][i];
        for (int k = 1; k < p->terms; k++) {
            sum += p->c[k] * (double)p->x[k][i];
        }
        p->out[i] = (float)sum;
    }
    return 0;
}

static int fold(float *grad, uint16_t *kept, int64_t n) {
#pragma omp parallel for simd schedule(static) if (n > SMALL)
    for (int64_t i = 0; i < n; i++) {
        kept[i] = ts_f32_to_bf16(ts_bf16_to_f32(kept[i]) + grad[i]);
        grad[i] = 0.0f;
    }
    return 0;
}

static int momentum(float grad_scale, float decay, float *m, float *u, int64_t n) {
#pragma omp parallel for simd schedule(static) if (n > SMALL)
    for (int64_t i = 0; i < n; i++) {
        const float grad = u[i] * grad_scale;
        m[i] = decay * m[i] + grad;
        u[i] = grad + decay * m[i];
    }
    return 0;
}

static int newton_schulz(float a, float b, float c, const float *gram, float *square, int64_t side) {
#pragma omp parallel for schedule(static) if (side * side > SMALL)
    for (int64_t row = 0; row < side; row++) {
        for (int64_t i = row * side; i < (row + 1) * side; i++) {
            square[i] = b * gram[i] + c * square[i];
        }
        square[row * side + row] += a;
    }
    return 0;
}

static int normalize(const double *squares, float *x, int64_t n) {
    return ts_cpu_table()->scale((float)(1.0 / (sqrt(*squares) + 1e-20)), x, n);
}

// The random bits of eight neighbours are those of one draw.
void ts_cpu_round(const ts_adamw *p, int64_t begin, int64_t end) {
    uint32_t word[4] = {0};
    for (int64_t i = begin; i < end; i++) {
        const int64_t e = p->first + i;
        if (i == begin || e % 8 == 0) {
            ts_philox_words(p->seed, TS_RNG_ROUND, (uint64_t)p->step, (uint32_t)(e / 8), word);
        }
        p->operand[i] = ts_bf16_stochastic(p->weight[i], word[e % 8 / 2] >> (e % 2 * 16) & 0xffffu);
    }
}

void ts_cpu_fill_flat(ts_kernels *kernels) {
    kernels->mix = mix;
    kernels->combine = combine;
    kernels->fold = fold;
    kernels->momentum = momentum;
    kernels->newton_schulz = newton_schulz;
    kernels->normalize = normalize;
}
