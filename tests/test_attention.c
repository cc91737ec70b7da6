// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=120 backend=cuda
// Fused attention against a double-precision loop that forms the whole score matrix, on every instruction set here.
#include "tests/kernels_test.h"

static const ts_kernels *kernels;

typedef struct shape {
    const char *what;
    int64_t batch, heads, head_dim, queries, keys;
    bool fused;    // q, k, v are columns of one projection (needs queries == keys)
    bool bias;     // relative position bias
    bool masked;   // key_count
    float spread;  // scores are of this size
} shape;

static const shape SHAPES[] = {
    {"one query, one key", 1, 1, 1, 1, 1, false, false, false, 1},
    {"one query", 2, 2, 32, 1, 50, false, false, false, 1},
    {"one key", 1, 2, 16, 9, 1, false, false, false, 1},
    {"7 x 13", 2, 3, 12, 7, 13, false, false, false, 1},
    {"80 x 80, fused projection", 3, 4, 32, 80, 80, true, false, false, 1},
    {"80 x 17 text rows", 2, 4, 32, 80, 17, false, false, true, 1},
    {"head_dim 28", 2, 3, 28, 75, 75, true, false, false, 1},
    {"head_dim 12", 1, 2, 12, 33, 65, false, false, true, 1},
    {"head_dim 64", 1, 2, 64, 193, 130, false, false, false, 1},
    {"head_dim 128", 1, 2, 128, 65, 97, false, false, true, 1},
    {"head_dim 160", 1, 1, 160, 50, 49, false, false, false, 1},
    {"head_dim 256", 1, 1, 256, 20, 33, false, false, false, 1},
    {"bias", 3, 2, 32, 40, 40, true, true, true, 1},
    {"bias, rectangular", 2, 2, 24, 21, 110, false, true, false, 1},
    {"several blocks", 1, 1, 32, 300, 700, false, false, false, 1},
    {"equal scores", 1, 2, 32, 70, 70, false, false, false, 0},
    {"scores up to 100", 1, 2, 32, 70, 150, false, false, false, 40},
    {"scores up to 10,000", 1, 2, 64, 50, 260, false, false, false, 4000},
};

// A tensor [batch, rows, heads, head_dim] with strides: the values as the kernel reads them, and as doubles.
typedef struct operand {
    void *data;  // first element
    int64_t row, batch;
} operand;

typedef struct problem {
    ts_attention call;
    void *q_block, *k_block, *v_block, *d_q_block, *d_k_block, *d_v_block;  // what is allocated
    float *strip, *d_strip, *lse;
    int32_t *key_count;
    double *out, *d_q, *d_k, *d_v, *d_bias, *reference_lse;  // the reference, contiguous
    int64_t fused_factor;
} problem;

static void *random_block(ts_dtype dtype, int64_t n, uint64_t index, float size) {
    float *noise = malloc((size_t)n * sizeof *noise);
    void *block = test_zeros((size_t)n * ts_dtype_bytes(dtype));
    if (!noise) {
        abort();
    }
    ts_rng_normal_fill(noise, n, 7, TS_RNG_TEST, index, 0);
    for (int64_t i = 0; i < n; i++) {
        test_put(block, dtype, i, (double)(size * noise[i]));
    }
    free(noise);
    return block;
}

static void *shifted(void *block, ts_dtype dtype, int64_t elements) {
    return (char *)block + (size_t)elements * ts_dtype_bytes(dtype);
}

// Rows of separate tensors carry a gap, so that strides and neighbours are tested: of 3 elements, or of as many as keep
// rows at multiples of 16 bytes, where kernels for tensor cores take them.
static int64_t gap(const shape *s) {
    return s->batch == 1 && s->keys > 1 ? 8 : 3;
}

static void make_operands(problem *x, const shape *s, ts_dtype dtype) {
    ts_attention *c = &x->call;
    const int64_t width = s->heads * s->head_dim;
    const float size = sqrtf(s->spread);
    if (s->fused) {
        const int64_t row = 3 * width, n = s->batch * s->queries * row;
        x->q_block = random_block(dtype, n, 1, size);
        x->d_q_block = random_block(dtype, n, 9, 1);
        c->q = x->q_block;
        c->k = shifted(x->q_block, dtype, width);
        c->v = shifted(x->q_block, dtype, 2 * width);
        c->d_q = x->d_q_block;
        c->d_k = shifted(x->d_q_block, dtype, width);
        c->d_v = shifted(x->d_q_block, dtype, 2 * width);
        c->q_row = c->k_row = c->v_row = row;
        c->q_batch = c->k_batch = c->v_batch = s->queries * row;
        return;
    }
    c->q_row = c->k_row = c->v_row = width + gap(s);
    c->q_batch = s->queries * c->q_row;
    c->k_batch = c->v_batch = s->keys * c->k_row;
    c->q = x->q_block = random_block(dtype, s->batch * c->q_batch, 1, size);
    c->k = x->k_block = random_block(dtype, s->batch * c->k_batch, 2, size);
    c->v = x->v_block = random_block(dtype, s->batch * c->v_batch, 3, 1);
    c->d_q = x->d_q_block = random_block(dtype, s->batch * c->q_batch, 9, 1);
    c->d_k = x->d_k_block = random_block(dtype, s->batch * c->k_batch, 9, 1);
    c->d_v = x->d_v_block = random_block(dtype, s->batch * c->v_batch, 9, 1);
}

static void make_problem(problem *x, const shape *s, ts_dtype dtype) {
    *x = (problem){.call = {.batch = s->batch,
                            .heads = s->heads,
                            .head_dim = s->head_dim,
                            .queries = s->queries,
                            .keys = s->keys,
                            .dtype = dtype,
                            .scale = 1.0f / sqrtf((float)s->head_dim)}};
    ts_attention *c = &x->call;
    make_operands(x, s, dtype);
    c->out_row = s->heads * s->head_dim + gap(s);
    c->out_batch = s->queries * c->out_row;
    c->out = random_block(dtype, s->batch * c->out_batch, 9, 1);
    c->d_out = random_block(dtype, s->batch * c->out_batch, 4, 1);
    c->lse = x->lse = test_zeros((size_t)(s->batch * s->heads * s->queries) * sizeof(float));
    if (s->bias) {
        const int64_t strip = s->heads * (s->queries + s->keys - 1);
        c->bias_strip = x->strip = random_block(TS_F32, strip, 5, 1);
        c->d_bias_strip = x->d_strip = random_block(TS_F32, strip, 6, 1);
    }
    if (s->masked) {
        x->key_count = test_zeros((size_t)s->batch * sizeof *x->key_count);
        for (int64_t b = 0; b < s->batch; b++) {
            x->key_count[b] = (int32_t)(s->keys - (s->keys * b) / s->batch - (s->keys > 2 ? 1 : 0));
        }
        c->key_count = x->key_count;
    }
}

static double *doubles(int64_t n) {
    return test_zeros((size_t)n * sizeof(double));
}

// Reference of one query: probabilities into `row`; adds to every gradient.
static void reference_query(problem *x, int64_t b, int64_t h, int64_t i, double *row, double *ds) {
    const ts_attention *c = &x->call;
    const int64_t d = c->head_dim, count = c->key_count ? c->key_count[b] : c->keys;
    const int64_t q = b * c->q_batch + i * c->q_row + h * d, o = b * c->out_batch + i * c->out_row + h * d;
    const int64_t strip = h * (c->queries + c->keys - 1) + c->queries - 1 - i;
    double max = -1e300, sum = 0;
    for (int64_t j = 0; j < count; j++) {
        double dot = 0;
        for (int64_t e = 0; e < d; e++) {
            dot +=
                test_get(c->q, c->dtype, q + e) * test_get(c->k, c->dtype, b * c->k_batch + j * c->k_row + h * d + e);
        }
        row[j] = (double)c->scale * dot + (c->bias_strip ? (double)c->bias_strip[strip + j] : 0);
        max = fmax(max, row[j]);
    }
    for (int64_t j = 0; j < count; j++) {
        sum += row[j] = exp(row[j] - max);
    }
    double delta = 0;
    for (int64_t j = 0; j < count; j++) {
        row[j] /= sum;
        ds[j] = 0;
        for (int64_t e = 0; e < d; e++) {
            const double v = test_get(c->v, c->dtype, b * c->v_batch + j * c->v_row + h * d + e);
            const double g = test_get(c->d_out, c->dtype, o + e);
            x->out[((b * c->queries + i) * c->heads + h) * d + e] += row[j] * v;
            x->d_v[((b * c->keys + j) * c->heads + h) * d + e] += row[j] * g;
            ds[j] += g * v;
        }
        delta += row[j] * ds[j];
    }
    for (int64_t j = 0; j < count; j++) {
        ds[j] = row[j] * (ds[j] - delta);
        for (int64_t e = 0; e < d; e++) {
            const double k = test_get(c->k, c->dtype, b * c->k_batch + j * c->k_row + h * d + e);
            x->d_q[((b * c->queries + i) * c->heads + h) * d + e] += (double)c->scale * ds[j] * k;
            x->d_k[((b * c->keys + j) * c->heads + h) * d + e] +=
                (double)c->scale * ds[j] * test_get(c->q, c->dtype, q + e);
        }
        if (c->bias_strip) {
            x->d_bias[strip + j] += ds[j];
        }
    }
    x->reference_lse[(b * c->heads + h) * c->queries + i] = max + log(sum);
}

static void make_reference(problem *x) {
    const ts_attention *c = &x->call;
    const int64_t width = c->heads * c->head_dim, strip = c->heads * (c->queries + c->keys - 1);
    x->out = doubles(c->batch * c->queries * width);
    x->d_q = doubles(c->batch * c->queries * width);
    x->d_k = doubles(c->batch * c->keys * width);
    x->d_v = doubles(c->batch * c->keys * width);
    x->reference_lse = doubles(c->batch * c->heads * c->queries);
    x->d_bias = doubles(strip);
    for (int64_t i = 0; x->d_strip && i < strip; i++) {
        x->d_bias[i] = (double)x->d_strip[i];  // the gradient is added to what is there
    }
    double *row = doubles(c->keys), *ds = doubles(c->keys);
    for (int64_t b = 0; b < c->batch; b++) {
        for (int64_t h = 0; h < c->heads; h++) {
            for (int64_t i = 0; i < c->queries; i++) {
                reference_query(x, b, h, i, row, ds);
            }
        }
    }
}

// Largest difference over the largest value of the reference, or over `floor` when all of it is small.
static double difference(const ts_attention *c, const void *got, int64_t rows, int64_t row, int64_t batch,
                         const double *reference, double floor) {
    const int64_t width = c->heads * c->head_dim;
    double worst = 0, size = floor;
    for (int64_t b = 0; b < c->batch; b++) {
        for (int64_t i = 0; i < rows; i++) {
            for (int64_t e = 0; e < width; e++) {
                const double r = reference[(b * rows + i) * width + e];
                const double g = test_get(got, c->dtype, b * batch + i * row + e);
                worst = isnan(g) ? INFINITY : fmax(worst, fabs(g - r));
                size = fmax(size, fabs(r));
            }
        }
    }
    return worst / size;
}

// f32: rounding of sums; scores of size x carry x * 2^-24 into the exponent. bf16: results, P and dS have 8 bits.
static double tolerance(ts_dtype dtype, float spread) {
    return dtype == TS_F32 ? 4e-6 + 2e-6 * (double)spread : spread > 1 ? 2e-2 : 1.2e-2;
}

static void check_shape(const shape *s, ts_dtype dtype) {
    problem x;
    make_problem(&x, s, dtype);
    make_reference(&x);
    const ts_attention *c = &x.call;
    CHECK_OK(kernels->attention_forward(c));
    CHECK_OK(kernels->attention_backward(c));
    // Gradients of flat and of sharp softmaxes vanish, by cancellation of terms of the size of q and k.
    const double floor = 0.1 * sqrt(1 + (double)s->spread);
    double lse = 0, bias = 0, bias_size = 1;
    for (int64_t i = 0; i < c->batch * c->heads * c->queries; i++) {
        lse = fmax(lse, fabs((double)x.lse[i] - x.reference_lse[i]) / fmax(1, fabs(x.reference_lse[i])));
    }
    for (int64_t i = 0; x.d_strip && i < c->heads * (c->queries + c->keys - 1); i++) {
        bias = fmax(bias, fabs((double)x.d_strip[i] - x.d_bias[i]));
        bias_size = fmax(bias_size, fabs(x.d_bias[i]));
    }
    const double found[] = {
        difference(c, c->out, c->queries, c->out_row, c->out_batch, x.out, floor),
        difference(c, c->d_q, c->queries, c->q_row, c->q_batch, x.d_q, floor),
        difference(c, c->d_k, c->keys, c->k_row, c->k_batch, x.d_k, floor),
        difference(c, c->d_v, c->keys, c->v_row, c->v_batch, x.d_v, floor),
        lse,
        bias / bias_size,
    };
    static const char *const NAMES[] = {"out", "d_q", "d_k", "d_v", "lse", "d_bias"};
    for (int i = 0; i < 6; i++) {
        if (!(found[i] <= tolerance(dtype, s->spread))) {
            fprintf(stderr, "%s, %s, %s: %s is off by %.3g\n", test_where(), ts_dtype_name(dtype), s->what, NAMES[i],
                    found[i]);
            ts_test_failures++;
        }
    }
    test_free_blocks();
}

// The bytes of every result, in one block.
static char *results(const shape *s, ts_dtype dtype, int threads, size_t *bytes) {
    problem x;
    make_problem(&x, s, dtype);
    const ts_attention *c = &x.call;
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    CHECK_OK(kernels->attention_forward(c));
    CHECK_OK(kernels->attention_backward(c));
    omp_set_num_threads(before);
    const size_t e = ts_dtype_bytes(dtype);
    const struct {
        const void *data;
        size_t bytes;
    } part[] = {
        {c->out, (size_t)(c->batch * c->out_batch) * e},
        {x.d_q_block, (size_t)(c->batch * c->q_batch) * e},
        {x.d_k_block, x.d_k_block ? (size_t)(c->batch * c->k_batch) * e : 0},
        {x.d_v_block, x.d_v_block ? (size_t)(c->batch * c->v_batch) * e : 0},
        {x.lse, (size_t)(c->batch * c->heads * c->queries) * sizeof(float)},
        {x.d_strip, x.d_strip ? (size_t)(c->heads * (c->queries + c->keys - 1)) * sizeof(float) : 0},
    };
    *bytes = 0;
    for (int i = 0; i < 6; i++) {
        *bytes += part[i].bytes;
    }
    char *all = test_zeros(*bytes), *at = all;
    for (int i = 0; i < 6; i++) {
        if (part[i].bytes) {
            memcpy(at, part[i].data, part[i].bytes);
            at += part[i].bytes;
        }
    }
    return all;
}

static void check_threads(const shape *s, ts_dtype dtype) {
    size_t bytes, again_bytes;
    char *one = results(s, dtype, 1, &bytes);
    for (int threads = 2; threads <= 3; threads++) {
        char *again = results(s, dtype, threads, &again_bytes);
        if (bytes != again_bytes || memcmp(one, again, bytes) != 0) {
            fprintf(stderr, "%s, %s, %s: 1 and %d threads differ\n", test_where(), ts_dtype_name(dtype), s->what,
                    threads);
            ts_test_failures++;
        }
    }
    test_free_blocks();
}

// A NaN that reaches a query must reach its output; elements between the rows must not be touched.
static void check_edges(ts_dtype dtype) {
    problem x;
    make_problem(&x, &SHAPES[3], dtype);
    const ts_attention *c = &x.call;
    test_put(x.q_block, dtype, 0, NAN);
    test_put(c->out, dtype, c->out_row - 1, 77.0f);
    CHECK_OK(kernels->attention_forward(c));
    CHECK(isnan(test_get(c->out, dtype, 0)));
    CHECK(!isnan(test_get(c->out, dtype, c->out_row)));
    CHECK_NEAR(test_get(c->out, dtype, c->out_row - 1), 77.0, 1.0);
    test_free_blocks();
}

static bool all_are(const float *data, int64_t n, float value) {
    for (int64_t i = 0; i < n; i++) {
        if (data[i] != value) {
            return false;
        }
    }
    return true;
}

// A shard may have no queries, no keys or no heads: results that exist are those of empty sums.
static void check_empty(ts_dtype dtype) {
    for (int what = 0; what < 3; what++) {
        problem x;
        make_problem(&x, &SHAPES[3], dtype);
        ts_attention c = x.call;
        c.queries = what == 0 ? 0 : c.queries;
        c.keys = what == 1 ? 0 : c.keys;
        c.heads = what == 2 ? 0 : c.heads;
        CHECK_OK(kernels->attention_forward(&c));
        CHECK_OK(kernels->attention_backward(&c));
        const int64_t width = c.heads * c.head_dim;
        for (int64_t i = 0; i < c.batch * c.queries * width && what == 1; i++) {
            const int64_t row = i / width % c.queries, batch = i / width / c.queries;
            CHECK(test_get(c.out, dtype, batch * c.out_batch + row * c.out_row + i % width) == 0);
            CHECK(test_get(c.d_q, dtype, batch * c.q_batch + row * c.q_row + i % width) == 0);
        }
        for (int64_t i = 0; i < c.batch * c.keys * width && what == 0; i++) {
            const int64_t at = i / width / c.keys * c.k_batch + i / width % c.keys * c.k_row + i % width;
            CHECK(test_get(c.d_k, dtype, at) == 0);
            CHECK(test_get(c.d_v, dtype, at) == 0);
        }
        CHECK(what != 1 || all_are(x.lse, c.batch * c.heads * c.queries, -INFINITY));
        test_free_blocks();
    }
}

// Results in f32 are those in the operand dtype before their rounding.
static void check_f32_results(const shape *s, ts_dtype dtype) {
    problem x;
    make_problem(&x, s, dtype);
    const ts_attention *c = &x.call;
    CHECK_OK(kernels->attention_forward(c));
    ts_attention wide = *c;
    wide.f32_results = true;
    wide.out = test_zeros((size_t)(c->batch * c->out_batch) * sizeof(float));
    CHECK_OK(kernels->attention_forward(&wide));
    const void *wide_out = wide.out;
    CHECK_OK(kernels->attention_backward(c));
    wide.out = c->out;  // backward reads it, in the operand dtype
    wide.d_q = test_zeros((size_t)(c->batch * c->q_batch) * sizeof(float));
    wide.d_k = test_zeros((size_t)(c->batch * c->k_batch) * sizeof(float));
    wide.d_v = test_zeros((size_t)(c->batch * c->v_batch) * sizeof(float));
    CHECK_OK(kernels->attention_backward(&wide));
    const struct {
        const void *narrow, *wide;
        int64_t rows, row, batch;
    } tensor[] = {{c->out, wide_out, c->queries, c->out_row, c->out_batch},
                  {c->d_q, wide.d_q, c->queries, c->q_row, c->q_batch},
                  {c->d_k, wide.d_k, c->keys, c->k_row, c->k_batch},
                  {c->d_v, wide.d_v, c->keys, c->v_row, c->v_batch}};
    int64_t wrong = 0;
    for (int t = 0; t < 4; t++) {
        const int64_t width = c->heads * c->head_dim;
        for (int64_t i = 0; i < c->batch * tensor[t].rows * width; i++) {
            const int64_t row = i / width % tensor[t].rows, batch = i / width / tensor[t].rows;
            const int64_t at = batch * tensor[t].batch + row * tensor[t].row + i % width;
            const float full = ((const float *)tensor[t].wide)[at];
            const float rounded = dtype == TS_BF16 ? ts_bf16_to_f32(ts_f32_to_bf16(full)) : full;
            const bool tiny = fabsf(full) < 0x1p-126f;  // the processor's conversion makes it 0
            wrong += test_get(tensor[t].narrow, dtype, at) != (double)rounded && !tiny;
        }
    }
    CHECK(wrong == 0);
    test_free_blocks();
}

// Attention over all keys is that over two parts of them, merged.
static void check_merge(const shape *s) {
    problem x, reference;
    make_problem(&x, s, TS_F32);
    make_problem(&reference, s, TS_F32);
    CHECK_OK(kernels->attention_forward(&reference.call));
    const int64_t rows = s->batch * s->queries, width = s->heads * s->head_dim, statistics = rows * s->heads;
    float *out = test_zeros((size_t)(rows * width) * sizeof *out),
          *part = test_zeros((size_t)(rows * width) * sizeof *part);
    float *lse = test_zeros((size_t)statistics * sizeof *lse),
          *part_lse = test_zeros((size_t)statistics * sizeof *part_lse);
    for (int64_t first = 0; first <= s->keys; first += (s->keys + 1) / 2) {
        ts_attention c = x.call;
        c.out_row = width;
        c.out_batch = s->queries * width;
        c.keys = first;
        c.out = out;
        c.lse = lse;
        CHECK_OK(kernels->attention_forward(&c));
        c.keys = s->keys - first;
        c.k = shifted(x.k_block, TS_F32, first * c.k_row);
        c.v = shifted(x.v_block, TS_F32, first * c.v_row);
        c.out = part;
        c.lse = part_lse;
        CHECK_OK(kernels->attention_forward(&c));
        const ts_attention_merge merge = {s->batch, s->queries, s->heads, s->head_dim, out, lse, part, part_lse};
        CHECK_OK(kernels->attention_merge(&merge));
        for (int64_t i = 0; i < rows * width; i++) {
            const int64_t at = i / width / s->queries * reference.call.out_batch +
                               i / width % s->queries * reference.call.out_row + i % width;
            CHECK_NEAR(out[i], ((const float *)reference.call.out)[at], 1e-5);
        }
        for (int64_t i = 0; i < statistics; i++) {
            CHECK_NEAR(lse[i], reference.lse[i], 1e-5 * (1 + fabs((double)reference.lse[i])));
        }
    }
    for (int64_t i = 0; i < statistics; i++) {
        lse[i] = part_lse[i] = -INFINITY;  // no keys at all
    }
    const ts_attention_merge none = {s->batch, s->queries, s->heads, s->head_dim, out, lse, part, part_lse};
    CHECK_OK(kernels->attention_merge(&none));
    CHECK(all_are(out, rows * width, 0) && all_are(lse, statistics, -INFINITY));
    test_free_blocks();
}

static void check_refusals(void) {
    problem x;
    make_problem(&x, &SHAPES[3], TS_F32);
    ts_attention c = x.call;
    c.head_dim = 257;
    CHECK_FAILS(kernels->attention_forward(&c), TS_EUSAGE, "head_dim 257");
    c = x.call;
    c.keys = -1;
    CHECK_FAILS(kernels->attention_forward(&c), TS_EUSAGE, "keys -1");
    c = x.call;
    c.dtype = TS_F64;
    CHECK_FAILS(kernels->attention_forward(&c), TS_EUSAGE, "F64");
    c = x.call;
    if (!test_on_gpu()) {  // there the host does not see the counts: they are brought into range
        c.key_count = (const int32_t[]){13, 14};
        CHECK_FAILS(kernels->attention_forward(&c), TS_EUSAGE, "key_count[1] = 14");
    }
    c = x.call;
    c.lse = NULL;
    CHECK_OK(kernels->attention_forward(&c));
    CHECK_FAILS(kernels->attention_backward(&c), TS_EUSAGE, "lse");
    test_free_blocks();
}

static void attention_cases(const ts_kernels *k) {
    static const ts_dtype DTYPES[] = {TS_F32, TS_BF16};
    kernels = k;
    for (int t = 0; t < 2; t++) {
        for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
            check_shape(&SHAPES[i], DTYPES[t]);
            check_threads(&SHAPES[i], DTYPES[t]);
        }
        check_edges(DTYPES[t]);
        check_empty(DTYPES[t]);
        check_f32_results(&SHAPES[4], DTYPES[t]);
        check_f32_results(&SHAPES[7], DTYPES[t]);
    }
    check_merge(&SHAPES[3]);
    check_merge(&SHAPES[8]);
    check_refusals();
}

int main(void) {
    test_levels("amx", attention_cases);
    return ts_test_end();
}
