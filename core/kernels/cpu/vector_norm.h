// SPDX-License-Identifier: Apache-2.0
// Layer norm with scale and shift, and RMS norm with rotary embedding; a template included by vector_*.c.
// Formulas and the gradient contract: core/kernels/kernels.h.

// ---- layer norm

TS_INLINE vec centred(const float *x, float mean, int64_t i, int64_t count) {
    return vec_keep(vec_load_f32(x, i, count) - mean, count);
}

TS_INLINE vec squared(vec v) {
    return v * v;
}

TS_INLINE vec scaled(const float *scale, float offset, int64_t i, int64_t count) {
    return scale ? offset + vec_load_f32(scale, i, count) : vec_set(1.0f);
}

TS_INLINE vec shifted(const float *shift, int64_t i, int64_t count) {
    return shift ? vec_load_f32(shift, i, count) : vec_set(0.0f);
}

TS_INLINE void layer_norm_row(const ts_layer_norm *p, int64_t row, ts_dtype type) {
    const int64_t width = p->width, t = table_row(p->row_index, row) * p->table_stride;
    const float *x = p->x + row * width;
    const float *scale_row = p->scale ? p->scale + t : NULL, *shift_row = p->shift ? p->shift + t : NULL;
    void *y = (char *)p->y + (size_t)(row * width) * ts_dtype_bytes(type);
    vec sum = {0}, squares = {0};
    TS_FOR_VECTORS(0, width, sum += vec_load_f32(x, i, count));
    const float mean = vec_sum(sum) / (float)width;
    TS_FOR_VECTORS(0, width, squares += squared(centred(x, mean, i, count)));
    const float rstd = 1.0f / sqrtf(vec_sum(squares) / (float)width + p->eps);
    TS_FOR_VECTORS(0, width,
                   vec_store(y, type, i, count,
                             centred(x, mean, i, count) * rstd * scaled(scale_row, p->scale_offset, i, count) +
                                 shifted(shift_row, i, count)));
    if (p->mean) {
        p->mean[row] = mean;
    }
    if (p->rstd) {
        p->rstd[row] = rstd;
    }
}

static int layer_norm_forward(const ts_layer_norm *p) {
    TS_TRY(check_operand(p->dtype_y, "layer_norm"));
    TS_BY_DTYPE(p->dtype_y, {
        TS_PRAGMA(omp parallel for schedule(static) if (p->rows * p->width > TS_PARALLEL_MIN))
        for (int64_t row = 0; row < p->rows; row++) {
            layer_norm_row(p, row, type);
        }
    });
    return 0;
}

// What the backward pass of one row reads and writes.
typedef struct layer_norm_gradient {
    const float *x, *scale;    // [width]; scale may be NULL
    const void *d_y;           // [width]
    float *d_scale, *d_shift;  // [width] `+=`, or NULL
    float mean, rstd, offset;
    vec sum_g, sum_gx;  // of g = d_y * (offset + scale), and of g * normalised x
} layer_norm_gradient;

TS_INLINE void layer_norm_gather(layer_norm_gradient *b, ts_dtype type, int64_t i, int64_t count) {
    const vec normal = centred(b->x, b->mean, i, count) * b->rstd;
    const vec d = vec_load(b->d_y, type, i, count);
    const vec g = d * scaled(b->scale, b->offset, i, count);
    b->sum_g += g;
    b->sum_gx += g * normal;
    if (b->d_scale) {
        vec_store_f32(b->d_scale, i, count, vec_load_f32(b->d_scale, i, count) + d * normal);
    }
    if (b->d_shift) {
        vec_store_f32(b->d_shift, i, count, vec_load_f32(b->d_shift, i, count) + d);
    }
}

// d_x = rstd (g - mean(g) - normalised x * mean(g * normalised x))
TS_INLINE void layer_norm_scatter(const layer_norm_gradient *b, float mean_g, float mean_gx, float *d_x,
                                  bool accumulate, ts_dtype type, int64_t i, int64_t count) {
    const vec normal = centred(b->x, b->mean, i, count) * b->rstd;
    const vec g = vec_load(b->d_y, type, i, count) * scaled(b->scale, b->offset, i, count);
    const vec d = b->rstd * (g - mean_g - normal * mean_gx);
    vec_store_f32(d_x, i, count, accumulate ? d + vec_load_f32(d_x, i, count) : d);
}

TS_INLINE void layer_norm_row_backward(const ts_layer_norm *p, const row_sums *sums, int64_t chunk, int64_t row,
                                       ts_dtype type) {
    const int64_t width = p->width, at = row * width;
    layer_norm_gradient b = {
        .x = p->x + at,
        .scale = p->scale ? p->scale + table_row(p->row_index, row) * p->table_stride : NULL,
        .d_y = (const char *)p->d_y + (size_t)at * ts_dtype_bytes(type),
        .d_scale = row_sums_at(sums, chunk, row, 0),
        .d_shift = row_sums_at(sums, chunk, row, 1),
        .mean = p->mean[row],
        .rstd = p->rstd[row],
        .offset = p->scale_offset,
    };
    TS_FOR_VECTORS(0, width, layer_norm_gather(&b, type, i, count));
    const float mean_g = vec_sum(b.sum_g) / (float)width, mean_gx = vec_sum(b.sum_gx) / (float)width;
    float *d_x = p->d_x + at;
    if (p->accumulate_d_x) {
        TS_FOR_VECTORS(0, width, layer_norm_scatter(&b, mean_g, mean_gx, d_x, true, type, i, count));
    } else {
        TS_FOR_VECTORS(0, width, layer_norm_scatter(&b, mean_g, mean_gx, d_x, false, type, i, count));
    }
}

static int layer_norm_backward(const ts_layer_norm *p) {
    TS_TRY(check_operand(p->dtype_y, "layer_norm"));
    row_sums sums = {.rows = p->rows,
                     .width = p->width,
                     .row_index = p->row_index,
                     .table_stride = p->table_stride,
                     .count = 2,
                     .target = {p->d_scale, p->d_shift}};
    TS_TRY(row_sums_open(&sums));
    TS_BY_DTYPE(p->dtype_y, {
        TS_PRAGMA(omp parallel for schedule(static) if (p->rows * p->width > TS_PARALLEL_MIN))
        for (int64_t chunk = 0; chunk < sums.chunks; chunk++) {
            row_sums_begin(&sums, chunk);
            for (int64_t row = chunk * ROW_CHUNK; row < chunk_end(&sums, chunk); row++) {
                layer_norm_row_backward(p, &sums, chunk, row, type);
            }
        }
    });
    row_sums_finish(&sums);
    return 0;
}

// ---- rotary embedding

// Lane lists for pairs: {0,0,1,1,...} doubles a cosine for both members of its pair, {1,0,3,2,...} swaps the members.
#if TS_WIDTH == 16
#define PAIR_DOUBLE 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7
#define PAIR_SWAP   1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14
#define PAIR_SIGN   -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1
#elif TS_WIDTH == 8
#define PAIR_DOUBLE 0, 0, 1, 1, 2, 2, 3, 3
#define PAIR_SWAP   1, 0, 3, 2, 5, 4, 7, 6
#define PAIR_SIGN   -1, 1, -1, 1, -1, 1, -1, 1
#else
#define PAIR_DOUBLE 0, 0, 1, 1
#define PAIR_SWAP   1, 0, 3, 2
#define PAIR_SIGN   -1, 1, -1, 1
#endif

// cosine[p], sine[p] of the row's position; direction -1 rotates back (the transpose).
typedef struct rotation {
    const float *cosine, *sine;  // [head_dim / 2] or NULL: none
    float direction;
} rotation;

TS_INLINE vec pair_load(const float *table, int64_t i, int64_t count) {
    vec_half h = {0};
    memcpy(&h, table + i / 2, (size_t)count * 2);
    return __builtin_shufflevector(h, h, PAIR_DOUBLE);
}

// (a, b) -> (a cos - b sin, a sin + b cos); i is the element's place in its head.
TS_INLINE vec rotate(rotation r, vec u, int64_t i, int64_t count) {
    if (!r.cosine) {
        return u;
    }
    const vec swapped = __builtin_shufflevector(u, u, PAIR_SWAP);
    const vec sign = {PAIR_SIGN};
    return u * pair_load(r.cosine, i, count) + swapped * (sign * r.direction) * pair_load(r.sine, i, count);
}

TS_INLINE rotation rotation_of(const ts_rms_norm *p, int64_t row, float direction) {
    const int64_t at = p->cosine ? row % p->positions * (p->head_dim / 2) : 0;
    return (rotation){p->cosine ? p->cosine + at : NULL, p->cosine ? p->sine + at : NULL, direction};
}

// ---- RMS norm

// Calls `statement` with `from` and `type`, the dtypes of x and y, as constants.
#define BY_TWO_DTYPES(p, statement)                                                                                    \
    do {                                                                                                               \
        if ((p)->dtype_x == TS_F32) {                                                                                  \
            const ts_dtype from = TS_F32;                                                                              \
            TS_BY_DTYPE((p)->dtype_y, statement);                                                                      \
        } else {                                                                                                       \
            const ts_dtype from = TS_BF16;                                                                             \
            TS_BY_DTYPE((p)->dtype_y, statement);                                                                      \
        }                                                                                                              \
    } while (0)

static int check_rms_norm(const ts_rms_norm *p) {
    TS_TRY(check_operand(p->dtype_x, "rms_norm"));
    TS_TRY(check_operand(p->dtype_y, "rms_norm"));
    const bool turns = p->cosine && p->rows > 0;
    if (turns && (p->head_dim < 2 || p->head_dim % 2 || p->width % p->head_dim || p->positions < 1)) {
        return TS_FAIL(TS_EINTERNAL, "rms_norm: rotation with head_dim %lld, width %lld, %lld positions",
                       (long long)p->head_dim, (long long)p->width, (long long)p->positions);
    }
    return 0;
}

TS_INLINE const void *rms_norm_x(const ts_rms_norm *p, int64_t row, ts_dtype from) {
    return (const char *)p->x + (size_t)(row * p->x_row) * ts_dtype_bytes(from);
}

TS_INLINE float rms_norm_row_squares(const ts_rms_norm *p, int64_t row, ts_dtype from) {
    const void *x = rms_norm_x(p, row, from);
    vec squares = {0};
    TS_FOR_VECTORS(0, p->width, squares += squared(vec_load(x, from, i, count)));
    return vec_sum(squares);
}

// The mean over a row: of the sum over this part, or of the whole row where that is given.
TS_INLINE float rms_norm_mean(const ts_rms_norm *p, int64_t row, float part) {
    return p->sums ? p->sums[row] / (float)p->whole_width : part / (float)p->width;
}

TS_INLINE void rms_norm_row(const ts_rms_norm *p, int64_t row, ts_dtype from, ts_dtype to) {
    const void *x = rms_norm_x(p, row, from);
    void *y = (char *)p->y + (size_t)(row * p->y_row) * ts_dtype_bytes(to);
    const float squares = p->sums ? 0.0f : rms_norm_row_squares(p, row, from);
    const float rstd = 1.0f / sqrtf(rms_norm_mean(p, row, squares) + p->eps);
    if (p->rstd) {
        p->rstd[row] = rstd;
    }
    const rotation r = rotation_of(p, row, 1.0f);
    const int64_t head_dim = p->cosine ? p->head_dim : p->width;
    for (int64_t head = 0; head < p->width; head += head_dim) {
        TS_FOR_VECTORS(
            0, head_dim,
            vec_store(y, to, head + i, count,
                      rotate(r, vec_load(x, from, head + i, count) * rstd * vec_load_f32(p->weight, head + i, count), i,
                             count)));
    }
}

static int rms_norm_forward(const ts_rms_norm *p) {
    TS_TRY(check_rms_norm(p));
#pragma omp parallel for schedule(static) if (p->rows * p->width > TS_PARALLEL_MIN)
    for (int64_t row = 0; row < p->rows; row++) {
        BY_TWO_DTYPES(p, rms_norm_row(p, row, from, type));
    }
    return 0;
}

static int rms_norm_squares(const ts_rms_norm *p) {
    TS_TRY(check_rms_norm(p));
#pragma omp parallel for schedule(static) if (p->rows * p->width > TS_PARALLEL_MIN)
    for (int64_t row = 0; row < p->rows; row++) {
        TS_BY_DTYPE(p->dtype_x, p->sums[row] = rms_norm_row_squares(p, row, type));
    }
    return 0;
}

typedef struct rms_norm_gradient {
    const void *x, *d_y;  // [width]
    const float *weight;  // [width]
    float *g, *d_weight;  // [width]: g = (d_y rotated back) * weight; d_weight `+=`
    float rstd;
    vec sum;  // of g * x
} rms_norm_gradient;

TS_INLINE void rms_norm_gather(rms_norm_gradient *b, rotation r, int64_t head, ts_dtype from, ts_dtype to, int64_t i,
                               int64_t count) {
    const vec d_u = rotate(r, vec_load(b->d_y, to, head + i, count), i, count);
    const vec x = vec_load(b->x, from, head + i, count);
    const vec g = d_u * vec_load_f32(b->weight, head + i, count);
    b->sum += g * x;
    vec_store_f32(b->g, head + i, count, g);
    if (b->d_weight) {
        vec_store_f32(b->d_weight, head + i, count, vec_load_f32(b->d_weight, head + i, count) + d_u * x * b->rstd);
    }
}

// Fills b->g and b->sum, and adds to b->d_weight.
TS_INLINE void rms_norm_row_gather(const ts_rms_norm *p, rms_norm_gradient *b, int64_t row, ts_dtype from,
                                   ts_dtype to) {
    const rotation back = rotation_of(p, row, -1.0f);
    const int64_t head_dim = p->cosine ? p->head_dim : p->width;
    b->x = rms_norm_x(p, row, from);
    b->d_y = (const char *)p->d_y + (size_t)(row * p->y_row) * ts_dtype_bytes(to);
    b->weight = p->weight;
    b->rstd = p->rstd[row];
    for (int64_t head = 0; head < p->width; head += head_dim) {
        TS_FOR_VECTORS(0, head_dim, rms_norm_gather(b, back, head, from, to, i, count));
    }
}

// d_x = rstd g - x rstd^3 mean(g x)
TS_INLINE void rms_norm_scatter(const rms_norm_gradient *b, float factor, void *d_x, bool accumulate, ts_dtype from,
                                int64_t i, int64_t count) {
    const vec d = vec_load_f32(b->g, i, count) * b->rstd - vec_load(b->x, from, i, count) * factor;
    vec_store(d_x, from, i, count, accumulate ? d + vec_load(d_x, from, i, count) : d);
}

TS_INLINE void rms_norm_row_backward(const ts_rms_norm *p, const row_sums *sums, float *g, int64_t chunk, int64_t row,
                                     ts_dtype from, ts_dtype to) {
    rms_norm_gradient b = {.g = g, .d_weight = row_sums_at(sums, chunk, row, 0)};
    rms_norm_row_gather(p, &b, row, from, to);
    const float factor = b.rstd * b.rstd * b.rstd * rms_norm_mean(p, row, vec_sum(b.sum));
    void *d_x = (char *)p->d_x + (size_t)(row * p->x_row) * ts_dtype_bytes(from);
    if (p->accumulate_d_x) {
        TS_FOR_VECTORS(0, p->width, rms_norm_scatter(&b, factor, d_x, true, from, i, count));
    } else {
        TS_FOR_VECTORS(0, p->width, rms_norm_scatter(&b, factor, d_x, false, from, i, count));
    }
}

TS_INLINE void rms_norm_row_products(const ts_rms_norm *p, float *g, int64_t row, ts_dtype from, ts_dtype to) {
    rms_norm_gradient b = {.g = g};
    rms_norm_row_gather(p, &b, row, from, to);
    p->sums[row] = vec_sum(b.sum);
}

// Working memory for g: a row for each chunk.
static float *rms_norm_rows(const ts_rms_norm *p, int64_t chunks) {
    return ts_cpu_scratch(TS_SCRATCH_OPERAND, (size_t)(chunks * p->width) * sizeof(float));
}

static int rms_norm_products(const ts_rms_norm *p) {
    TS_TRY(check_rms_norm(p));
    const row_sums sums = {.rows = p->rows, .width = p->width, .chunks = (p->rows + ROW_CHUNK - 1) / ROW_CHUNK};
    float *gradients = rms_norm_rows(p, sums.chunks);
    if (!gradients) {
        return TS_ERESOURCE;
    }
#pragma omp parallel for schedule(static) if (p->rows * p->width > TS_PARALLEL_MIN)
    for (int64_t chunk = 0; chunk < sums.chunks; chunk++) {
        for (int64_t row = chunk * ROW_CHUNK; row < chunk_end(&sums, chunk); row++) {
            BY_TWO_DTYPES(p, rms_norm_row_products(p, gradients + chunk * p->width, row, from, type));
        }
    }
    return 0;
}

static int rms_norm_backward(const ts_rms_norm *p) {
    TS_TRY(check_rms_norm(p));
    if (p->accumulate_d_x && p->dtype_x != TS_F32) {
        return TS_FAIL(TS_EINTERNAL, "rms_norm: accumulating d_x needs F32");
    }
    row_sums sums = {.rows = p->rows, .width = p->width, .row_index = NULL, .count = 1, .target = {p->d_weight}};
    TS_TRY(row_sums_open(&sums));
    float *gradients = rms_norm_rows(p, sums.chunks);
    if (!gradients) {
        return TS_ERESOURCE;
    }
#pragma omp parallel for schedule(static) if (p->rows * p->width > TS_PARALLEL_MIN)
    for (int64_t chunk = 0; chunk < sums.chunks; chunk++) {
        row_sums_begin(&sums, chunk);
        for (int64_t row = chunk * ROW_CHUNK; row < chunk_end(&sums, chunk); row++) {
            BY_TWO_DTYPES(p, rms_norm_row_backward(p, &sums, gradients + chunk * p->width, chunk, row, from, type));
        }
    }
    row_sums_finish(&sums);
    return 0;
}
