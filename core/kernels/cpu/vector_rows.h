// SPDX-License-Identifier: Apache-2.0
// Sums over rows, for gradients of what was broadcast over rows; a template included by vector_*.c.
//
// Rows are cut into chunks of ROW_CHUNK whatever the thread count. Table indices do not decrease from row to row, so
// only the first and the last table row met in a chunk can also occur in other chunks: their sums go to the chunk's own
// partial sums and are added up in chunk order afterwards. All others are this chunk's alone and are added in place.

enum { ROW_CHUNK = 32, ROW_SUMS_MAX = 2 };

typedef struct row_sums {
    int64_t rows, width, chunks;
    const int32_t *row_index;     // [rows] or NULL
    int64_t table_stride;         // of the targets
    int count;                    // targets in use
    float *target[ROW_SUMS_MAX];  // table rows; NULL: not wanted
    float *part;                  // [chunks, 2 (first, last), ROW_SUMS_MAX, width]
} row_sums;

TS_INLINE int64_t table_row(const int32_t *row_index, int64_t row) {
    return row_index ? row_index[row] : 0;
}

static int row_sums_open(row_sums *sums) {
    sums->chunks = (sums->rows + ROW_CHUNK - 1) / ROW_CHUNK;
    sums->part =
        ts_cpu_scratch(TS_SCRATCH_REDUCE, (size_t)(sums->chunks * 2 * ROW_SUMS_MAX * sums->width) * sizeof *sums->part);
    return sums->part ? 0 : TS_ERESOURCE;
}

TS_INLINE float *row_sums_part(const row_sums *sums, int64_t chunk, int last, int which) {
    return sums->part + ((chunk * 2 + last) * ROW_SUMS_MAX + which) * sums->width;
}

TS_INLINE int64_t chunk_end(const row_sums *sums, int64_t chunk) {
    return (chunk + 1) * ROW_CHUNK < sums->rows ? (chunk + 1) * ROW_CHUNK : sums->rows;
}

static void row_sums_begin(const row_sums *sums, int64_t chunk) {
    memset(row_sums_part(sums, chunk, 0, 0), 0, (size_t)(2 * ROW_SUMS_MAX * sums->width) * sizeof *sums->part);
}

// Where a row of this chunk adds its contribution to target `which`; NULL when not wanted.
TS_INLINE float *row_sums_at(const row_sums *sums, int64_t chunk, int64_t row, int which) {
    if (!sums->target[which]) {
        return NULL;
    }
    const int64_t t = table_row(sums->row_index, row);
    if (t == table_row(sums->row_index, chunk * ROW_CHUNK)) {
        return row_sums_part(sums, chunk, 0, which);
    }
    if (t == table_row(sums->row_index, chunk_end(sums, chunk) - 1)) {
        return row_sums_part(sums, chunk, 1, which);
    }
    return sums->target[which] + t * sums->table_stride;
}

TS_INLINE void row_add(float *to, const float *from, int64_t begin, int64_t end) {
    TS_FOR_VECTORS(begin, end, vec_store_f32(to, i, count, vec_load_f32(to, i, count) + vec_load_f32(from, i, count)));
}

// Adds the partial sums up in chunk order; threads share out the columns. Call outside of parallel regions.
static void row_sums_finish(const row_sums *sums) {
    enum { COLUMNS = 64 };
#pragma omp parallel for schedule(static) if (sums->chunks * sums->width > TS_PARALLEL_MIN)
    for (int64_t begin = 0; begin < sums->width; begin += COLUMNS) {
        const int64_t end = begin + COLUMNS < sums->width ? begin + COLUMNS : sums->width;
        for (int64_t chunk = 0; chunk < sums->chunks; chunk++) {
            const int64_t first = table_row(sums->row_index, chunk * ROW_CHUNK);
            const int64_t last = table_row(sums->row_index, chunk_end(sums, chunk) - 1);
            for (int which = 0; which < sums->count; which++) {
                float *target = sums->target[which];
                if (target) {
                    row_add(target + first * sums->table_stride, row_sums_part(sums, chunk, 0, which), begin, end);
                }
                if (target && last != first) {
                    row_add(target + last * sums->table_stride, row_sums_part(sums, chunk, 1, which), begin, end);
                }
            }
        }
    }
}

// d_bias[n] += sum over m rows of d_y
static int bias_gradient(const void *d_y, ts_dtype dtype, int64_t m, int64_t n, int64_t row_stride, float *d_bias) {
    TS_TRY(check_operand(dtype, "bias_gradient"));
    row_sums sums = {.rows = m, .width = n, .count = 1, .target = {d_bias}};
    TS_TRY(row_sums_open(&sums));
#pragma omp parallel for schedule(static) if (m * n > TS_PARALLEL_MIN)
    for (int64_t chunk = 0; chunk < sums.chunks; chunk++) {
        float *sum = row_sums_part(&sums, chunk, 0, 0);
        memset(sum, 0, (size_t)n * sizeof *sum);
        for (int64_t row = chunk * ROW_CHUNK; row < chunk_end(&sums, chunk); row++) {
            const void *from = (const char *)d_y + (size_t)(row * row_stride) * ts_dtype_bytes(dtype);
            TS_BY_DTYPE(
                dtype,
                TS_FOR_VECTORS(
                    0, n, vec_store_f32(sum, i, count, vec_load_f32(sum, i, count) + vec_load(from, type, i, count))));
        }
    }
    row_sums_finish(&sums);
    return 0;
}

static int sum_rows(const float *d_out, float *d_b, int64_t rows, int64_t b_rows, int64_t width) {
    if (b_rows == 1) {
        return bias_gradient(d_out, TS_F32, rows, width, width, d_b);
    }
#pragma omp parallel for schedule(static) if (rows * width > TS_PARALLEL_MIN)
    for (int64_t b = 0; b < b_rows; b++) {
        for (int64_t row = b; row < rows; row += b_rows) {
            row_add(d_b + b * width, d_out + row * width, 0, width);
        }
    }
    return 0;
}

// ---- out = x + y * gate[t]

static int gated_residual_forward(const ts_gated_residual *p) {
    TS_TRY(check_operand(p->dtype_y, "gated_residual"));
#pragma omp parallel for schedule(static) if (p->rows * p->width > TS_PARALLEL_MIN)
    for (int64_t row = 0; row < p->rows; row++) {
        const float *gate = p->gate ? p->gate + table_row(p->row_index, row) * p->table_stride : NULL;
        const float *x = p->x + row * p->width;
        const void *y = (const char *)p->y + (size_t)(row * p->width) * ts_dtype_bytes(p->dtype_y);
        float *out = p->out + row * p->width;
        TS_BY_DTYPE(p->dtype_y,
                    TS_FOR_VECTORS(0, p->width,
                                   vec_store_f32(out, i, count,
                                                 vec_load_f32(x, i, count) +
                                                     vec_load(y, type, i, count) *
                                                         (gate ? vec_load_f32(gate, i, count) : vec_set(1.0f)))));
    }
    return 0;
}

TS_INLINE void gate_block(const float *d_out, const void *y, const float *gate, void *d_y, float *d_gate, ts_dtype type,
                          int64_t i, int64_t count) {
    const vec d = vec_load_f32(d_out, i, count);
    vec_store(d_y, type, i, count, gate ? d * vec_load_f32(gate, i, count) : d);
    if (d_gate) {
        vec_store_f32(d_gate, i, count, vec_load_f32(d_gate, i, count) + d * vec_load(y, type, i, count));
    }
}

static int gated_residual_backward(const ts_gated_residual *p) {
    TS_TRY(check_operand(p->dtype_y, "gated_residual"));
    row_sums sums = {.rows = p->rows,
                     .width = p->width,
                     .row_index = p->row_index,
                     .table_stride = p->table_stride,
                     .count = 1,
                     .target = {p->d_gate}};
    TS_TRY(row_sums_open(&sums));
#pragma omp parallel for schedule(static) if (p->rows * p->width > TS_PARALLEL_MIN)
    for (int64_t chunk = 0; chunk < sums.chunks; chunk++) {
        row_sums_begin(&sums, chunk);
        for (int64_t row = chunk * ROW_CHUNK; row < chunk_end(&sums, chunk); row++) {
            const size_t at = (size_t)(row * p->width) * ts_dtype_bytes(p->dtype_y);
            const float *gate = p->gate ? p->gate + table_row(p->row_index, row) * p->table_stride : NULL;
            const float *d_out = p->d_out + row * p->width;
            float *d_gate = row_sums_at(&sums, chunk, row, 0);
            const void *y = (const char *)p->y + at;
            void *d_y = (char *)p->d_y + at;
            TS_BY_DTYPE(p->dtype_y,
                        TS_FOR_VECTORS(0, p->width, gate_block(d_out, y, gate, d_y, d_gate, type, i, count)));
        }
    }
    row_sums_finish(&sums);
    return 0;
}
