// SPDX-License-Identifier: Apache-2.0
// Loss, optimizer and the sums they need; a template included by vector_*.c. Formulas: core/kernels/kernels.h.

TS_INLINE void add_squares(const float *x, vec_f64 *sum, int64_t i, int64_t count) {
    enum { HALF = TS_WIDTH / 2 };
    const vec v = vec_load_f32(x, i, count);
    vec_half low, high;
    memcpy(&low, &v, sizeof low);
    memcpy(&high, (const char *)&v + sizeof low, sizeof high);
    const vec_f64 a = __builtin_convertvector(low, vec_f64), b = __builtin_convertvector(high, vec_f64);
    *sum += a * a + b * b;
}

static double sum_squares_range(const float *x, int64_t n) {
    vec_f64 sum = {0};
    TS_FOR_VECTORS(0, n, add_squares(x, &sum, i, count));
    double total = 0;
    for (int lane = 0; lane < TS_WIDTH / 2; lane++) {
        total += sum[lane];
    }
    return total;
}

static int sum_squares(const float *x, int64_t n, double *sum) {
    enum { CHUNK = 65536 };
    const int64_t chunks = (n + CHUNK - 1) / CHUNK;
    double *part = ts_cpu_scratch(TS_SCRATCH_REDUCE, (size_t)chunks * sizeof *part);
    if (!part) {
        return TS_ERESOURCE;
    }
#pragma omp parallel for schedule(static) if (chunks > 1)
    for (int64_t c = 0; c < chunks; c++) {
        part[c] = sum_squares_range(x + c * CHUNK, n - c * CHUNK < CHUNK ? n - c * CHUNK : CHUNK);
    }
    double total = 0;
    for (int64_t c = 0; c < chunks; c++) {
        total += part[c];
    }
    *sum += total;
    return 0;
}

TS_INLINE void error_block(const float *v, const float *target, float *error, vec_f64 *sum, int64_t i, int64_t count) {
    float difference[TS_WIDTH];
    const vec e = vec_load_f32(v, i, count) - vec_load_f32(target, i, count);
    memcpy(difference, &e, sizeof difference);
    add_squares(difference, sum, 0, TS_WIDTH);
    if (error) {
        vec_store_f32(error, i, count, e);
    }
}

// Sum of squared errors of one row; d_v gets factor * error.
static double mse_row(const float *v, const float *target, float *d_v, float factor, int64_t width) {
    vec_f64 sum = {0};
    TS_FOR_VECTORS(0, width, error_block(v, target, d_v, &sum, i, count));
    if (d_v) {
        TS_FOR_VECTORS(0, width, vec_store_f32(d_v, i, count, vec_load_f32(d_v, i, count) * factor));
    }
    double total = 0;
    for (int lane = 0; lane < TS_WIDTH / 2; lane++) {
        total += sum[lane];
    }
    return total;
}

static int mse(const ts_mse *p) {
    double *row_loss = p->row_loss;
    if (!row_loss) {
        row_loss = ts_cpu_scratch(TS_SCRATCH_REDUCE, (size_t)p->rows * sizeof *row_loss);
        if (!row_loss) {
            return TS_ERESOURCE;
        }
    }
#pragma omp parallel for schedule(static) if (p->rows * p->width > TS_PARALLEL_MIN)
    for (int64_t row = 0; row < p->rows; row++) {
        const int64_t at = row * p->width;
        const double weight = p->weight ? (double)p->weight[row] : 1.0;
        row_loss[row] = weight * mse_row(p->v + at, p->target + at, p->d_v ? p->d_v + at : NULL,
                                         (float)(2.0 * p->scale * weight), p->width);
    }
    double total = 0;
    for (int64_t row = 0; row < p->rows; row++) {
        total += row_loss[row];
    }
    *p->loss = total * p->scale;
    return 0;
}

TS_INLINE void adamw_block(const ts_adamw *p, const ts_adamw_factors *f, bool nearest, int64_t i, int64_t count) {
    const vec g = vec_load_f32(p->grad, i, count) * p->grad_scale;
    const vec m = f->m_keep * vec_load_f32(p->m, i, count) + f->m_take * g;
    const vec v = f->v_keep * vec_load_f32(p->v, i, count) + f->v_take * (g * g);
    const vec w =
        f->shrink * vec_load_f32(p->weight, i, count) - f->step_size * m / (vec_sqrt(v * f->v_correction) + p->eps);
    vec_store_f32(p->m, i, count, m);
    vec_store_f32(p->v, i, count, v);
    vec_store_f32(p->weight, i, count, w);
    if (nearest) {
        vec_store(p->operand, TS_BF16, i, count, w);
    }
    if (p->ema) {
        const vec ema = p->ema_decay * vec_load_f32(p->ema, i, count) + (1.0f - p->ema_decay) * w;
        vec_store_f32(p->ema, i, count, ema);
    }
}

// Moments of weights whose gradient stays 0 decay into denormal numbers, on which vector units are a hundred times
// slower; they are flushed to 0 here, and only here.
static int adamw(const ts_adamw *p) {
    ts_adamw_factors f;
    TS_TRY(ts_adamw_begin(p, &f));
    const bool nearest = p->operand && p->rounding == TS_ROUND_NEAREST;
#pragma omp parallel if (p->count > TS_PARALLEL_MIN)
    {
        enum { FLUSH = 0x8040 };  // flush results to zero, take denormal operands as zero
        const unsigned control = __builtin_ia32_stmxcsr();
        __builtin_ia32_ldmxcsr(control | FLUSH);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < p->count; block += TS_BLOCK) {
            const int64_t end = block + TS_BLOCK < p->count ? block + TS_BLOCK : p->count;
            TS_FOR_VECTORS(block, end, adamw_block(p, &f, nearest, i, count));
            if (p->operand && !nearest) {
                ts_cpu_round(p, block, end);
            }
        }
        __builtin_ia32_ldmxcsr(control);
    }
    return 0;
}
