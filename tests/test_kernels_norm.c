// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=120 backend=cuda
// Norms, gated residuals and sums over rows: forward against double-precision loops, gradients against finite
// differences of those loops, and the same bits for any number of threads.
#include "tests/kernels_test.h"

typedef struct shape {
    int64_t rows, width, tables;  // tables 0: no row index
} shape;

static const shape SHAPES[] = {{1, 1, 0},    {1, 17, 1},   {3, 16, 2},    {33, 5, 33},   {70, 48, 3},
                               {65, 64, 0},  {97, 130, 5}, {300, 384, 4}, {40, 128, 40}, {6, 2184, 2},
                               {5, 2085, 3}, {10, 36, 25}, {2, 8200, 0}};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES };

// Non-decreasing table rows in uneven runs.
static int32_t *row_index(shape s) {
    if (!s.tables) {
        return NULL;
    }
    int32_t *index = test_zeros((size_t)s.rows * sizeof *index);
    for (int64_t row = 0; row < s.rows; row++) {
        const double place = (double)row / (double)s.rows;
        index[row] = (int32_t)((double)s.tables * place * place);
        if (s.tables == s.rows) {
            index[row] = (int32_t)row;
        }
    }
    return index;
}

// Between rows: so many numbers that all rows begin at multiples of 16 bytes, when their width does, or that they do
// not.
static int64_t gap(shape s) {
    return s.rows % 2 ? 3 : 8;
}

static int64_t table_count(shape s) {
    return s.tables ? s.tables : 1;
}

// ---- layer norm

typedef struct layer_case {
    ts_layer_norm call;
    double *scale, *shift, *weight;  // weight of every output element in the scalar that is differentiated
} layer_case;

// y of the whole call in double precision; x [rows, width], scale and shift as tables.
static void layer_reference(const ts_layer_norm *p, const double *x, const double *scale, const double *shift,
                            double *y) {
    for (int64_t row = 0; row < p->rows; row++) {
        double mean = 0, variance = 0;
        for (int64_t i = 0; i < p->width; i++) {
            mean += x[row * p->width + i] / (double)p->width;
        }
        for (int64_t i = 0; i < p->width; i++) {
            variance += pow(x[row * p->width + i] - mean, 2) / (double)p->width;
        }
        const int64_t t = (p->row_index ? p->row_index[row] : 0) * p->table_stride;
        for (int64_t i = 0; i < p->width; i++) {
            const double normal = (x[row * p->width + i] - mean) / sqrt(variance + (double)p->eps);
            y[row * p->width + i] = scale ? normal * ((double)p->scale_offset + scale[t + i]) + shift[t + i] : normal;
        }
    }
}

static double layer_scalar(const layer_case *c, const double *x, const double *scale, const double *shift) {
    double *y = test_zeros((size_t)(c->call.rows * c->call.width) * sizeof *y), sum = 0;
    layer_reference(&c->call, x, scale, shift, y);
    for (int64_t i = 0; i < c->call.rows * c->call.width; i++) {
        sum += c->weight[i] * y[i];
    }
    free(test_blocks[--test_block_count]);
    return sum;
}

static double layer_of_x(const void *context, const double *x) {
    const layer_case *c = context;
    return layer_scalar(c, x, c->scale, c->shift);
}

// x holds the scale table, then the shift table.
static double layer_of_tables(const void *context, const double *x) {
    const layer_case *c = context;
    double *input = test_doubles(c->call.x, TS_F32, c->call.rows * c->call.width);
    const double sum = layer_scalar(c, input, x, x + c->call.table_rows * c->call.table_stride);
    free(test_blocks[--test_block_count]);
    return sum;
}

static void layer_gradients(const ts_kernels *k, layer_case *c) {
    ts_layer_norm *p = &c->call;
    const int64_t n = p->rows * p->width, table = p->table_rows * p->table_stride;
    float *before = test_random(TS_F32, n, 1), *tables = test_random(TS_F32, 2 * table, 1);
    p->d_x = test_copy(before, (size_t)n * sizeof(float));
    float *d_tables = test_copy(tables, (size_t)(2 * table) * sizeof(float));
    p->d_scale = c->scale ? d_tables : NULL;
    p->d_shift = c->scale ? d_tables + table : NULL;
    CHECK_OK(k->layer_norm_backward(p));
    double *g = test_zeros((size_t)n * sizeof *g), *gt = test_zeros((size_t)(2 * table) * sizeof *gt);
    for (int64_t i = 0; i < n; i++) {
        g[i] = (double)p->d_x[i] - (p->accumulate_d_x ? (double)before[i] : 0);
    }
    for (int64_t i = 0; i < 2 * table; i++) {
        gt[i] = (double)d_tables[i] - (double)tables[i];
    }
    test_gradient("layer_norm d_x", layer_of_x, c, test_doubles(p->x, TS_F32, n), g, n, 1, 2e-5);
    if (c->scale) {
        double *both = test_doubles(p->scale, TS_F32, 2 * table);
        test_gradient("layer_norm d_scale, d_shift", layer_of_tables, c, both, gt, 2 * table, 1, 2e-5);
    }
}

static void layer_check(const ts_kernels *k, shape s, ts_dtype dtype, bool affine, double offset) {
    const int64_t n = s.rows * s.width, stride = s.width + gap(s), table = table_count(s) * stride;
    const int64_t shift = affine && offset == 0;  // an odd place in memory
    float *tables = test_random(TS_F32, 2 * table, 0.5), *x = (float *)test_random(TS_F32, n + shift, 2) + shift;
    for (int64_t i = 0; i < n; i++) {
        x[i] += 5;  // a mean that a one-pass variance would drown in
    }
    layer_case c = {.call = {.rows = s.rows,
                             .width = s.width,
                             .eps = 1e-5f,
                             .scale_offset = (float)offset,
                             .x = x,
                             .y = test_zeros((size_t)n * ts_dtype_bytes(dtype)),
                             .dtype_y = dtype,
                             .scale = affine ? tables : NULL,
                             .shift = affine ? tables + table : NULL,
                             .table_stride = stride,
                             .table_rows = table_count(s),
                             .row_index = row_index(s),
                             .mean = test_zeros((size_t)s.rows * sizeof(float)),
                             .rstd = test_zeros((size_t)s.rows * sizeof(float)),
                             .accumulate_d_x = offset > 0}};
    c.scale = affine ? test_doubles(tables, TS_F32, table) : NULL;
    c.shift = affine ? test_doubles(tables + table, TS_F32, table) : NULL;
    CHECK_OK(k->layer_norm_forward(&c.call));
    double *want = test_zeros((size_t)n * sizeof *want);
    layer_reference(&c.call, test_doubles(x, TS_F32, n), c.scale, c.shift, want);
    CHECK(test_close("layer_norm", c.call.y, dtype, want, n, 4e-6, 2 * test_epsilon(dtype)));
    void *d_y = test_random(dtype, n, 1);
    c.call.d_y = d_y;
    c.weight = test_doubles(d_y, dtype, n);
    layer_gradients(k, &c);
}

static void layer_norm_cases(const ts_kernels *k) {
    for (int i = 0; i < SHAPE_COUNT; i++) {
        for (int variant = 0; variant < 6; variant++) {
            layer_check(k, SHAPES[i], variant % 2 ? TS_BF16 : TS_F32, variant / 2 > 0, variant / 2 > 1 ? 1 : 0);
            test_free_blocks();
        }
    }
}

// ---- RMS norm with rotation

typedef struct rms_case {
    ts_rms_norm call;
    double *x, *weight, *direction;  // direction: weight of every output in the scalar; all contiguous
} rms_case;

static void rms_reference(const rms_case *c, const double *x, const double *weight, double *y) {
    const ts_rms_norm *p = &c->call;
    for (int64_t row = 0; row < p->rows; row++) {
        const double *from = x + row * p->width;
        double *to = y + row * p->width, mean = 0;
        for (int64_t i = 0; i < p->width; i++) {
            mean += from[i] * from[i] / (double)p->width;
        }
        for (int64_t i = 0; i < p->width; i++) {
            to[i] = from[i] / sqrt(mean + (double)p->eps) * weight[i];
        }
        for (int64_t i = 0; p->cosine && i < p->width; i += 2) {
            const int64_t angle = row % p->positions * (p->head_dim / 2) + i % p->head_dim / 2;
            const double cosine = (double)p->cosine[angle], sine = (double)p->sine[angle], a = to[i], b = to[i + 1];
            to[i] = a * cosine - b * sine;
            to[i + 1] = a * sine + b * cosine;
        }
    }
}

static double rms_scalar(const rms_case *c, const double *x, const double *weight) {
    const int64_t n = c->call.rows * c->call.width;
    double *y = test_zeros((size_t)n * sizeof *y), sum = 0;
    rms_reference(c, x, weight, y);
    for (int64_t i = 0; i < n; i++) {
        sum += c->direction[i] * y[i];
    }
    free(test_blocks[--test_block_count]);
    return sum;
}

static double rms_of_x(const void *context, const double *x) {
    const rms_case *c = context;
    return rms_scalar(c, x, c->weight);
}

static double rms_of_weight(const void *context, const double *weight) {
    const rms_case *c = context;
    return rms_scalar(c, c->x, weight);
}

// The [rows, width] part of a strided block, contiguous.
static double *gather(const void *data, ts_dtype dtype, int64_t rows, int64_t width, int64_t stride) {
    double *out = test_zeros((size_t)(rows * width) * sizeof *out);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = 0; i < width; i++) {
            out[row * width + i] = test_get(data, dtype, row * stride + i);
        }
    }
    return out;
}

static void rms_gradients(const ts_kernels *k, rms_case *c, bool accumulate) {
    ts_rms_norm *p = &c->call;
    const int64_t n = p->rows * p->width;
    p->accumulate_d_x = accumulate;
    void *before = test_random(p->dtype_x, p->rows * p->x_row, 1);
    float *weight_before = test_random(TS_F32, p->width, 1);
    p->d_x = test_copy(before, (size_t)(p->rows * p->x_row) * ts_dtype_bytes(p->dtype_x));
    p->d_weight = test_copy(weight_before, (size_t)p->width * sizeof(float));
    CHECK_OK(k->rms_norm_backward(p));
    double *g = gather(p->d_x, p->dtype_x, p->rows, p->width, p->x_row);
    const double *b = gather(before, p->dtype_x, p->rows, p->width, p->x_row);
    double *gw = test_doubles(p->d_weight, TS_F32, p->width);
    for (int64_t i = 0; i < n && accumulate; i++) {
        g[i] -= b[i];
    }
    for (int64_t i = 0; i < p->width; i++) {
        gw[i] -= (double)weight_before[i];
    }
    const double tolerance = p->dtype_x == TS_BF16 ? 4e-3 : 2e-5;
    test_gradient("rms_norm d_x", rms_of_x, c, c->x, g, n, 1, tolerance);
    test_gradient("rms_norm d_weight", rms_of_weight, c, c->weight, gw, p->width, 1, 2e-5);
}

static void rms_check(const ts_kernels *k, shape s, int64_t head_dim, ts_dtype from, ts_dtype to) {
    const int64_t width = head_dim ? s.width / head_dim * head_dim : s.width, n = s.rows * width;
    const int64_t positions = s.rows / 2 + 1;
    rms_case c = {.call = {.rows = s.rows,
                           .width = width,
                           .x_row = width + gap(s),
                           .y_row = width + 2 * gap(s),
                           .eps = 1e-6f,
                           .dtype_x = from,
                           .dtype_y = to,
                           .weight = test_random(TS_F32, width, 1),
                           .rstd = test_zeros((size_t)s.rows * sizeof(float)),
                           .positions = positions,
                           .head_dim = head_dim}};
    c.call.x = test_random(from, s.rows * c.call.x_row, 3);
    c.call.y = test_zeros((size_t)(s.rows * c.call.y_row) * ts_dtype_bytes(to));
    if (head_dim) {
        float *angles = test_random(TS_F32, positions * head_dim, 1);
        for (int64_t i = 0; i < positions * head_dim / 2; i++) {
            const double angle = 3 * (double)angles[i];
            angles[i] = (float)cos(angle);
            angles[positions * head_dim / 2 + i] = (float)sin(angle);
        }
        c.call.cosine = angles;
        c.call.sine = angles + positions * head_dim / 2;
    }
    CHECK_OK(k->rms_norm_forward(&c.call));
    c.x = gather(c.call.x, from, s.rows, width, c.call.x_row);
    c.weight = test_doubles(c.call.weight, TS_F32, width);
    double *want = test_zeros((size_t)n * sizeof *want);
    rms_reference(&c, c.x, c.weight, want);
    const double *got = gather(c.call.y, to, s.rows, width, c.call.y_row);
    const double absolute = 4e-6 * (1 + (double)width / 8192);  // f32 sums of many squares are less exact
    for (int64_t i = 0; i < n; i++) {
        if (!(fabs(got[i] - want[i]) <= absolute + 2 * test_epsilon(to) * fabs(want[i]))) {
            fprintf(stderr, "rms_norm [%s]: %.9g, wanted %.9g\n", test_where(), got[i], want[i]);
            ts_test_failures++;
            break;
        }
    }
    void *d_y = test_random(to, s.rows * c.call.y_row, 1);
    c.call.d_y = d_y;
    c.direction = gather(d_y, to, s.rows, width, c.call.y_row);
    rms_gradients(k, &c, from == TS_F32 && to == TS_BF16);
}

// The same call with its columns cut between two ranks, `left` of them in the first part.
static void rms_cut_check(const ts_kernels *k, const ts_rms_norm *whole, int64_t left) {
    const int64_t rows = whole->rows, first[3] = {0, left, whole->width};
    const size_t from = ts_dtype_bytes(whole->dtype_x), to = ts_dtype_bytes(whole->dtype_y);
    float *sums[2], *total = test_zeros((size_t)rows * sizeof *total);
    float *d_weight = test_zeros((size_t)whole->width * sizeof *d_weight);
    void *y = test_zeros((size_t)(rows * whole->y_row) * to), *d_x = test_zeros((size_t)(rows * whole->x_row) * from);
    ts_rms_norm part[2];
    for (int i = 0; i < 2; i++) {
        part[i] = *whole;
        part[i].width = first[i + 1] - first[i];
        part[i].whole_width = whole->width;
        part[i].x = (const char *)whole->x + (size_t)first[i] * from;
        part[i].d_y = (const char *)whole->d_y + (size_t)first[i] * to;
        part[i].y = (char *)y + (size_t)first[i] * to;
        part[i].d_x = (char *)d_x + (size_t)first[i] * from;
        part[i].accumulate_d_x = false;
        part[i].weight = whole->weight + first[i];
        part[i].d_weight = d_weight + first[i];
        part[i].rstd = test_zeros((size_t)rows * sizeof(float));
        sums[i] = test_zeros((size_t)rows * sizeof(float));
    }
    for (int backward = 0; backward < 2; backward++) {
        for (int i = 0; i < 2; i++) {
            part[i].sums = sums[i];
            CHECK_OK((backward ? k->rms_norm_products : k->rms_norm_squares)(&part[i]));
        }
        for (int64_t row = 0; row < rows; row++) {
            total[row] = sums[0][row] + sums[1][row];
        }
        for (int i = 0; i < 2; i++) {
            part[i].sums = total;
            CHECK_OK((backward ? k->rms_norm_backward : k->rms_norm_forward)(&part[i]));
        }
    }
    const double *got[] = {gather(y, whole->dtype_y, rows, whole->width, whole->y_row),
                           gather(d_x, whole->dtype_x, rows, whole->width, whole->x_row),
                           test_doubles(d_weight, TS_F32, whole->width)};
    const double *want[] = {gather(whole->y, whole->dtype_y, rows, whole->width, whole->y_row),
                            gather(whole->d_x, whole->dtype_x, rows, whole->width, whole->x_row),
                            test_doubles(whole->d_weight, TS_F32, whole->width)};
    const double epsilon[] = {test_epsilon(whole->dtype_y), test_epsilon(whole->dtype_x), 0};
    for (int which = 0; which < 3; which++) {
        const int64_t n = which == 2 ? whole->width : rows * whole->width;
        for (int64_t i = 0; i < n; i++) {
            CHECK_NEAR(got[which][i], want[which][i], 2e-5 + (1e-5 + 2 * epsilon[which]) * fabs(want[which][i]));
        }
    }
}

static void rms_cut_cases(const ts_kernels *k) {
    static const int64_t lefts[] = {0, 28, 56, 84};
    for (int types = 0; types < 4; types++) {
        for (size_t i = 0; i < sizeof lefts / sizeof *lefts; i++) {
            const ts_dtype from = types & 1 ? TS_BF16 : TS_F32, to = types & 2 ? TS_BF16 : TS_F32;
            enum { ROWS = 37, WIDTH = 84, HEAD_DIM = 28, X_ROW = 90, Y_ROW = 85, POSITIONS = 5 };
            const ts_rms_norm whole = {.rows = ROWS,
                                       .width = WIDTH,
                                       .x_row = X_ROW,
                                       .y_row = Y_ROW,
                                       .eps = 1e-6f,
                                       .x = test_random(from, ROWS * X_ROW, 3),
                                       .y = test_zeros(ROWS * Y_ROW * sizeof(float)),
                                       .dtype_x = from,
                                       .dtype_y = to,
                                       .weight = test_random(TS_F32, WIDTH, 1),
                                       .rstd = test_zeros(ROWS * sizeof(float)),
                                       .cosine = test_random(TS_F32, POSITIONS * HEAD_DIM / 2, 1),
                                       .sine = test_random(TS_F32, POSITIONS * HEAD_DIM / 2, 1),
                                       .positions = POSITIONS,
                                       .head_dim = HEAD_DIM,
                                       .d_y = test_random(to, ROWS * Y_ROW, 1),
                                       .d_x = test_zeros(ROWS * X_ROW * sizeof(float)),
                                       .d_weight = test_zeros(WIDTH * sizeof(float))};
            CHECK_OK(k->rms_norm_forward(&whole));
            CHECK_OK(k->rms_norm_backward(&whole));
            rms_cut_check(k, &whole, lefts[i]);
            test_free_blocks();
        }
    }
}

static void rms_norm_cases(const ts_kernels *k) {
    static const int64_t head_dims[] = {0, 2, 12, 16, 28, 64};
    for (int i = 0; i < SHAPE_COUNT; i++) {
        for (size_t h = 0; h < sizeof head_dims / sizeof *head_dims; h++) {
            for (int types = 0; types < 4 && SHAPES[i].width >= head_dims[h]; types++) {
                rms_check(k, SHAPES[i], head_dims[h], types & 1 ? TS_BF16 : TS_F32, types & 2 ? TS_BF16 : TS_F32);
                test_free_blocks();
            }
        }
    }
}

// ---- gated residual, bias gradient, sums over rows

static void gated_check(const ts_kernels *k, shape s, ts_dtype dtype, bool gated, bool in_place) {
    const int64_t n = s.rows * s.width, stride = s.width + gap(s), table = table_count(s) * stride;
    const int32_t *index = row_index(s);
    float *x = test_random(TS_F32, n, 1), *gate = test_random(TS_F32, table, 1), *d_out = test_random(TS_F32, n, 1);
    float *d_gate = test_random(TS_F32, table, 1);
    void *y = test_random(dtype, n, 1), *d_y = test_zeros((size_t)n * ts_dtype_bytes(dtype));
    double *out_want = test_doubles(x, TS_F32, n), *d_y_want = test_doubles(d_out, TS_F32, n);
    double *d_gate_want = test_doubles(d_gate, TS_F32, table);
    for (int64_t i = 0; i < n; i++) {
        const int64_t t = (index ? index[i / s.width] : 0) * stride + i % s.width;
        out_want[i] += test_get(y, dtype, i) * (gated ? (double)gate[t] : 1);
        d_gate_want[t] += (double)d_out[i] * test_get(y, dtype, i);
        d_y_want[i] *= gated ? (double)gate[t] : 1;
    }
    ts_gated_residual p = {.rows = s.rows,
                           .width = s.width,
                           .x = x,
                           .y = y,
                           .dtype_y = dtype,
                           .out = in_place ? x : test_zeros((size_t)n * sizeof(float)),
                           .gate = gated ? gate : NULL,
                           .table_stride = stride,
                           .table_rows = table_count(s),
                           .row_index = index,
                           .d_out = d_out,
                           .d_y = d_y,
                           .d_gate = gated ? d_gate : NULL};
    CHECK_OK(k->gated_residual_forward(&p));
    CHECK_OK(k->gated_residual_backward(&p));
    CHECK(test_close("gated_residual", p.out, TS_F32, out_want, n, 1e-6, 1e-6));
    CHECK(test_close("gated_residual d_y", d_y, dtype, d_y_want, n, 1e-6, 2 * test_epsilon(dtype)));
    if (gated) {
        CHECK(test_close("gated_residual d_gate", d_gate, TS_F32, d_gate_want, table, 2e-5, 1e-5));
    }
}

static void sum_check(const ts_kernels *k, shape s, ts_dtype dtype) {
    const int64_t stride = s.width + gap(s), n = s.rows * stride, b_rows = table_count(s);
    void *d_y = test_random(dtype, n, 1);
    float *d_bias = test_random(TS_F32, s.width, 1), *d_b = test_random(TS_F32, b_rows * s.width, 1);
    double *want = test_doubles(d_bias, TS_F32, s.width), *want_b = test_doubles(d_b, TS_F32, b_rows * s.width);
    float *x = test_random(TS_F32, s.rows * s.width, 1), *sum = test_zeros((size_t)(s.rows * s.width) * sizeof *sum);
    double *added = test_doubles(x, TS_F32, s.rows * s.width);
    for (int64_t i = 0; i < s.rows * s.width; i++) {
        const int64_t b = i / s.width % b_rows * s.width + i % s.width;
        want[i % s.width] += test_get(d_y, dtype, i / s.width * stride + i % s.width);
        added[i] += (double)d_b[b];
        want_b[b] += (double)x[i];
    }
    CHECK_OK(k->bias_gradient(d_y, dtype, s.rows, s.width, stride, d_bias));
    CHECK(test_close("bias_gradient", d_bias, TS_F32, want, s.width, 2e-5, 1e-5));
    CHECK_OK(k->add_rows(x, d_b, sum, s.rows, b_rows, s.width));
    CHECK(test_close("add_rows", sum, TS_F32, added, s.rows * s.width, 0, 2 * test_epsilon(TS_F32)));
    CHECK_OK(k->sum_rows(x, d_b, s.rows, b_rows, s.width));
    CHECK(test_close("sum_rows", d_b, TS_F32, want_b, b_rows * s.width, 2e-5, 1e-5));
}

static void row_cases(const ts_kernels *k) {
    for (int i = 0; i < SHAPE_COUNT; i++) {
        for (int variant = 0; variant < 8; variant++) {
            const ts_dtype dtype = variant & 1 ? TS_BF16 : TS_F32;
            gated_check(k, SHAPES[i], dtype, variant & 2, variant & 4);
            sum_check(k, SHAPES[i], dtype);
            test_free_blocks();
        }
    }
}

// ---- no rows at all

// Nothing is written, and nothing is read.
static void empty_cases(const ts_kernels *k) {
    enum { WIDTH = 20 };
    float *x = test_random(TS_F32, WIDTH, 1);
    const float *before = test_copy(x, WIDTH * sizeof *x);
    const ts_layer_norm layer = {.width = WIDTH,
                                 .x = x,
                                 .y = x,
                                 .dtype_y = TS_F32,
                                 .mean = x,
                                 .rstd = x,
                                 .d_y = x,
                                 .d_x = x,
                                 .d_scale = x,
                                 .d_shift = x};
    CHECK_OK(k->layer_norm_forward(&layer));
    CHECK_OK(k->layer_norm_backward(&layer));
    const ts_rms_norm rms = {.width = WIDTH,
                             .x = x,
                             .y = x,
                             .dtype_x = TS_F32,
                             .dtype_y = TS_F32,
                             .weight = x,
                             .rstd = x,
                             .sums = x,
                             .whole_width = WIDTH,
                             .d_y = x,
                             .d_x = x,
                             .d_weight = x};
    CHECK_OK(k->rms_norm_squares(&rms));
    CHECK_OK(k->rms_norm_forward(&rms));
    CHECK_OK(k->rms_norm_products(&rms));
    CHECK_OK(k->rms_norm_backward(&rms));
    const ts_gated_residual gated = {
        .width = WIDTH, .x = x, .y = x, .dtype_y = TS_F32, .out = x, .d_out = x, .d_y = x, .d_gate = x};
    CHECK_OK(k->gated_residual_forward(&gated));
    CHECK_OK(k->gated_residual_backward(&gated));
    CHECK_OK(k->bias_gradient(x, TS_F32, 0, WIDTH, WIDTH, x));
    CHECK_OK(k->add_rows(x, x, x, 0, 1, WIDTH));
    CHECK_OK(k->sum_rows(x, x, 0, 1, WIDTH));
    CHECK_OK(k->softmax(x, x, 0, WIDTH));
    CHECK(memcmp(x, before, WIDTH * sizeof *x) == 0);
    const ts_mse mse = {.width = WIDTH, .v = x, .target = x, .scale = 1, .loss = test_random(TS_F32, 2, 1), .d_v = x};
    CHECK_OK(k->mse(&mse));
    CHECK(*mse.loss == 0);
}

// Dtypes that are not operands, and rotations of heads that are not whole, are refused.
static void bad_calls(const ts_kernels *k) {
    float *x = test_zeros(8 * sizeof *x);
    const ts_layer_norm layer = {.rows = 1, .width = 4, .x = x, .y = x, .dtype_y = TS_F64};
    CHECK_FAILS(k->layer_norm_forward(&layer), TS_EINTERNAL, "layer_norm");
    ts_rms_norm rms = {.rows = 1,
                       .width = 4,
                       .x_row = 4,
                       .y_row = 4,
                       .x = x,
                       .y = x,
                       .dtype_x = TS_F32,
                       .dtype_y = TS_F32,
                       .weight = x,
                       .cosine = x,
                       .sine = x,
                       .positions = 1,
                       .head_dim = 3};
    CHECK_FAILS(k->rms_norm_forward(&rms), TS_EINTERNAL, "head_dim 3");
    rms.cosine = rms.sine = NULL;
    rms.dtype_x = TS_BF16;
    rms.accumulate_d_x = true;
    CHECK_FAILS(k->rms_norm_backward(&rms), TS_EINTERNAL, "accumulating");
    CHECK_FAILS(k->bias_gradient(x, TS_I32, 1, 4, 4, x), TS_EINTERNAL, "bias_gradient");
}

// ---- the same bits for any number of threads

enum { MANY_ROWS = 700, MANY_WIDTH = 96, MANY_TABLES = 9 };

// All gradients that are sums over rows, of one fixed input, in a new block.
static float *sums_with_threads(const ts_kernels *k, int threads) {
    const shape s = {MANY_ROWS, MANY_WIDTH, MANY_TABLES};
    const int64_t n = MANY_ROWS * MANY_WIDTH, table = MANY_TABLES * MANY_WIDTH;
    test_stream = 1000;
    omp_set_num_threads(threads);
    float *out = test_zeros((size_t)(3 * table + 2 * MANY_WIDTH) * sizeof *out);
    float *x = test_random(TS_F32, n, 1), *d_x = test_zeros((size_t)n * sizeof *d_x);
    uint16_t *y = test_random(TS_BF16, n, 1), *d_y = test_zeros((size_t)n * sizeof *d_y);
    float *mean = test_zeros(MANY_ROWS * sizeof *mean), *rstd = test_zeros(MANY_ROWS * sizeof *rstd);
    ts_layer_norm layer = {.rows = s.rows,
                           .width = s.width,
                           .eps = 1e-5f,
                           .x = x,
                           .y = d_y,
                           .dtype_y = TS_BF16,
                           .table_stride = s.width,
                           .table_rows = s.tables,
                           .row_index = row_index(s),
                           .mean = mean,
                           .rstd = rstd,
                           .d_y = y,
                           .d_x = d_x,
                           .d_scale = out,
                           .d_shift = out + table};
    CHECK_OK(k->layer_norm_forward(&layer));
    CHECK_OK(k->layer_norm_backward(&layer));
    ts_gated_residual gated = {.rows = s.rows,
                               .width = s.width,
                               .x = x,
                               .y = y,
                               .dtype_y = TS_BF16,
                               .table_stride = s.width,
                               .table_rows = s.tables,
                               .row_index = layer.row_index,
                               .d_out = x,
                               .d_y = d_y,
                               .d_gate = out + 2 * table};
    CHECK_OK(k->gated_residual_backward(&gated));
    ts_rms_norm rms = {.rows = s.rows,
                       .width = s.width,
                       .x_row = s.width,
                       .y_row = s.width,
                       .eps = 1e-6f,
                       .x = y,
                       .y = d_y,
                       .dtype_x = TS_BF16,
                       .dtype_y = TS_BF16,
                       .weight = x,
                       .rstd = rstd,
                       .d_y = y,
                       .d_x = d_y,
                       .d_weight = out + 3 * table};
    CHECK_OK(k->rms_norm_forward(&rms));
    CHECK_OK(k->rms_norm_backward(&rms));
    CHECK_OK(k->bias_gradient(y, TS_BF16, s.rows, s.width, s.width, out + 3 * table + MANY_WIDTH));
    return out;
}

static void thread_cases(const ts_kernels *k) {
    const int most = omp_get_max_threads();
    const size_t bytes = (3 * MANY_TABLES * MANY_WIDTH + 2 * MANY_WIDTH) * sizeof(float);
    const float *one = sums_with_threads(k, 1);
    for (int threads = 2; threads <= 5; threads++) {
        CHECK(memcmp(one, sums_with_threads(k, threads), bytes) == 0);
    }
    omp_set_num_threads(most);
}

int main(void) {
    test_close_can_fail();
    test_levels("avx512bf16", layer_norm_cases);
    test_levels("avx512bf16", rms_norm_cases);
    test_levels("avx512bf16", rms_cut_cases);
    test_levels("avx512bf16", row_cases);
    test_levels("avx512bf16", empty_cases);
    test_levels("generic", bad_calls);
    test_levels("avx512bf16", thread_cases);
    return ts_test_end();
}
