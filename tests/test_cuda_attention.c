// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=120 backend=cuda
// Attention of a device against the CPU's in f32 on the same, rounded, operands: shapes that reach every kernel of the
// CUDA backend, which are chosen by dtype, head size and alignment.
#include "core/base/rng.h"
#include "tests/device_test.h"

typedef struct shape {
    const char *what;
    int64_t batch, heads, head_dim, queries, keys;
    ts_dtype dtype;
    int64_t gap;  // elements between rows: rows start at multiples of 16 bytes, as tensor cores need it, or do not
    bool bias, masked, f32_results;
    float spread;  // size of the scores
    float apart;   // added to every number of q and taken off every number of k: all scores are far below 0
} shape;

static const shape SHAPES[] = {
    {"one query, one key", 1, 1, 1, 1, 1, TS_F32, 0, false, false, false, 1, 0},
    {"odd everything", 2, 3, 12, 7, 13, TS_F32, 3, true, true, false, 1, 0},
    {"size 32", 1, 2, 32, 70, 65, TS_F32, 0, false, false, false, 1, 0},
    {"size 64, bias", 3, 1, 64, 40, 75, TS_F32, 1, true, true, false, 1, 0},
    {"size 128", 1, 1, 128, 33, 66, TS_F32, 0, false, false, true, 1, 0},
    {"size 256", 1, 1, 256, 20, 33, TS_F32, 0, true, false, false, 1, 0},
    {"large scores", 1, 1, 32, 9, 150, TS_F32, 5, false, false, false, 400, 0},
    {"bf16, bias", 2, 2, 64, 70, 70, TS_BF16, 0, true, true, false, 1, 0},
    {"bf16, rows not aligned", 2, 1, 32, 65, 33, TS_BF16, 3, false, true, false, 1, 0},
    {"bf16, size 20", 1, 2, 20, 31, 40, TS_BF16, 0, false, false, true, 1, 0},
    {"bf16, size 100", 1, 1, 100, 20, 40, TS_BF16, 0, false, false, false, 1, 0},
    {"bf16, size 160", 1, 1, 160, 17, 20, TS_BF16, 0, false, false, false, 1, 0},
    {"tensor cores, one query", 2, 2, 32, 1, 50, TS_BF16, 0, false, false, false, 1, 0},
    {"tensor cores, one key", 1, 2, 16, 9, 1, TS_BF16, 8, false, false, false, 1, 0},
    {"tensor cores, size 32", 2, 1, 32, 150, 200, TS_BF16, 0, false, true, false, 1, 0},
    {"tensor cores, size 40", 1, 2, 40, 65, 64, TS_BF16, 0, false, false, true, 1, 0},
    {"tensor cores, size 64", 1, 1, 64, 193, 130, TS_BF16, 8, false, false, false, 1, 0},
    {"tensor cores, size 80, text", 2, 2, 80, 33, 17, TS_BF16, 0, false, true, false, 1, 0},
    {"tensor cores, size 128", 1, 1, 128, 129, 161, TS_BF16, 0, false, false, false, 1, 0},
    {"tensor cores, size 128, f32 results", 2, 1, 128, 40, 70, TS_BF16, 16, false, true, true, 1, 0},
    {"tensor cores, size 128, many tiles", 2, 2, 128, 140, 400, TS_BF16, 8, false, false, false, 1, 0},
    {"tensor cores, size 64, many tiles, f32 results", 1, 3, 64, 260, 530, TS_BF16, 0, false, false, true, 1, 0},
    {"tensor cores, rising scores", 1, 1, 64, 20, 300, TS_BF16, 0, false, false, false, 40, 0},
    {"tensor cores, large scores", 1, 1, 64, 50, 260, TS_BF16, 0, false, false, false, 4000, 0},
    {"tensor cores, far apart", 1, 1, 64, 20, 70, TS_BF16, 0, false, false, false, 1, 4},
    {"tensor cores, several blocks", 1, 1, 128, 300, 390, TS_BF16, 0, false, false, false, 1, 0},
};

// ---- one call: its operands as the device gets them, and as contiguous f32

enum { Q, K, V, D_OUT, OUT, D_Q, D_K, D_V, TENSORS };
typedef struct tensor {
    ts_dtype dtype;
    int64_t rows, row, batch;  // rows of a batch item, strides
    size_t bytes;
    void *host, *device;
    float *plain;  // [batch, rows, heads, head_dim]
} tensor;

typedef struct problem {
    const shape *s;
    tensor t[TENSORS];
    ts_attention call, oracle;
    size_t lse_bytes, strip_bytes;
} problem;

static void *host_memory(size_t bytes) {
    void *memory = test_new_copy(&ts_device_host, bytes);
    memset(memory, 0, bytes);
    return memory;
}

static float get(const void *data, ts_dtype dtype, int64_t i) {
    return dtype == TS_BF16 ? ts_bf16_to_f32(((const uint16_t *)data)[i]) : ((const float *)data)[i];
}

static void put(void *data, ts_dtype dtype, int64_t i, float value) {
    if (dtype == TS_BF16) {
        ((uint16_t *)data)[i] = ts_f32_to_bf16(value);
    } else {
        ((float *)data)[i] = value;
    }
}

static int64_t width_of(const shape *s) {
    return s->heads * s->head_dim;
}

// Random numbers times `size` around `middle`; the elements between rows are 77.
static void fill(const shape *s, tensor *t, int index, float size, float middle) {
    const int64_t width = width_of(s), n = s->batch * t->rows * width;
    t->bytes = (size_t)(s->batch * t->batch) * ts_dtype_bytes(t->dtype);
    t->host = host_memory(t->bytes);
    t->plain = host_memory((size_t)n * sizeof *t->plain);
    for (int64_t i = 0; i < s->batch * t->batch; i++) {
        put(t->host, t->dtype, i, 77);
    }
    ts_rng_normal_fill(t->plain, n, 7, TS_RNG_TEST, (uint64_t)index, 0);
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = i / width / t->rows * t->batch + i / width % t->rows * t->row + i % width;
        put(t->host, t->dtype, at, middle + size * t->plain[i]);
        t->plain[i] = get(t->host, t->dtype, at);
    }
    t->device = test_device(t->host, t->bytes);
}

static float *random_floats(int64_t n, uint64_t index, void **device) {
    float *host = host_memory((size_t)n * sizeof *host);
    ts_rng_normal_fill(host, n, 7, TS_RNG_TEST, index, 0);
    float *copy = host_memory((size_t)n * sizeof *host);
    memcpy(copy, host, (size_t)n * sizeof *host);
    *device = test_device(copy, (size_t)n * sizeof *host);
    return host;
}

static void make_optional(problem *x) {
    const shape *s = x->s;
    const int64_t strip = s->heads * (s->queries + s->keys - 1);
    if (s->bias) {
        void *bias, *d_bias;
        x->oracle.bias_strip = random_floats(strip, 20, &bias);
        x->oracle.d_bias_strip = random_floats(strip, 21, &d_bias);
        x->call.bias_strip = bias;
        x->call.d_bias_strip = d_bias;
        x->strip_bytes = (size_t)strip * sizeof(float);
    }
    if (s->masked) {
        int32_t *count = host_memory((size_t)s->batch * sizeof *count);
        for (int64_t b = 0; b < s->batch; b++) {
            count[b] = (int32_t)(s->keys - s->keys * b / s->batch - (s->keys > 2));
        }
        x->oracle.key_count = count;
        x->call.key_count = test_device(count, (size_t)s->batch * sizeof *count);
    }
}

static void make_problem(problem *x, const shape *s) {
    static const bool OF_KEYS[TENSORS] = {[K] = true, [V] = true, [D_K] = true, [D_V] = true};
    *x = (problem){.s = s};
    for (int i = 0; i < TENSORS; i++) {
        tensor *t = &x->t[i];
        t->rows = OF_KEYS[i] ? s->keys : s->queries;
        t->row = width_of(s) + s->gap;
        t->batch = t->rows * t->row;
        t->dtype = s->f32_results && i > OUT ? TS_F32 : s->dtype;
        fill(s, t, i, i == Q || i == K ? sqrtf(s->spread) : 1, i == Q ? s->apart : i == K ? -s->apart : 0);
    }
    const tensor *t = x->t;
    const int64_t width = width_of(s);
    float *lse = host_memory((size_t)(s->batch * s->heads * s->queries) * sizeof(float));
    x->lse_bytes = (size_t)(s->batch * s->heads * s->queries) * sizeof(float);
    x->call = (ts_attention){.batch = s->batch,
                             .heads = s->heads,
                             .head_dim = s->head_dim,
                             .queries = s->queries,
                             .keys = s->keys,
                             .dtype = s->dtype,
                             .f32_results = s->f32_results,
                             .scale = 1.0f / sqrtf((float)s->head_dim)};
    ts_attention *c = &x->call;
    x->oracle = *c;
    c->q_row = c->k_row = c->v_row = c->out_row = t[Q].row;
    c->q_batch = c->out_batch = t[Q].batch;
    c->k_batch = c->v_batch = t[K].batch;
    c->lse = test_device(host_memory(x->lse_bytes), x->lse_bytes);
    c->q = t[Q].device, c->k = t[K].device, c->v = t[V].device, c->out = t[OUT].device;
    c->d_out = t[D_OUT].device, c->d_q = t[D_Q].device, c->d_k = t[D_K].device, c->d_v = t[D_V].device;
    ts_attention *o = &x->oracle;
    o->dtype = TS_F32;
    o->f32_results = false;
    o->q = t[Q].plain, o->k = t[K].plain, o->v = t[V].plain, o->out = t[OUT].plain, o->d_out = t[D_OUT].plain;
    o->d_q = t[D_Q].plain, o->d_k = t[D_K].plain, o->d_v = t[D_V].plain, o->lse = lse;
    o->q_row = o->k_row = o->v_row = o->out_row = width;
    o->q_batch = o->out_batch = s->queries * width;
    o->k_batch = o->v_batch = s->keys * width;
    make_optional(x);
}

// ---- comparison

// Largest difference over the largest number of the oracle, or over `floor` when all of it is small. Infinite when a
// gap between rows was written to.
static double difference(const problem *x, const tensor *t, ts_dtype dtype, const void *device, double floor) {
    const int64_t width = width_of(x->s);
    const void *host = test_host(device, (size_t)(x->s->batch * t->batch) * ts_dtype_bytes(dtype));
    double worst = 0, size = floor;
    for (int64_t i = 0; i < x->s->batch * t->rows * t->row; i++) {
        const int64_t row = i / t->row, e = i % t->row;
        const double got = (double)get(host, dtype, i);
        if (e >= width) {
            worst = got == 77 ? worst : INFINITY;
            continue;
        }
        const double wanted = (double)t->plain[row * width + e];
        worst = isnan(got) ? INFINITY : fmax(worst, fabs(got - wanted));
        size = fmax(size, fabs(wanted));
    }
    return worst / size;
}

static double float_difference(const float *device, const float *wanted, size_t bytes) {
    const float *got = device ? test_host(device, bytes) : NULL;
    double worst = 0, size = 1;
    for (size_t i = 0; got && i < bytes / sizeof *got; i++) {
        worst = isnan(got[i]) ? INFINITY : fmax(worst, fabs((double)got[i] - (double)wanted[i]));
        size = fmax(size, fabs((double)wanted[i]));
    }
    return worst / size;
}

// f32: rounding of sums; scores of size x carry x * 2^-24 into the exponent. bf16: results, P and dS have 8 bits.
static double tolerance(const shape *s) {
    return s->dtype == TS_F32 ? 4e-6 + 2e-6 * (double)s->spread : s->spread > 1 || s->apart > 0 ? 2.5e-2 : 1.2e-2;
}

static void report(const shape *s, const char *what, double found, double allowed) {
    if (!(found <= allowed)) {
        fprintf(stderr, "%s, %s: %s is off by %.3g\n", test_kernels->name, s->what, what, found);
        ts_test_failures++;
    }
}

static void check_shape(const shape *s, const ts_kernels *cpu) {
    problem x;
    make_problem(&x, s);
    CHECK_OK(cpu->attention_forward(&x.oracle));
    CHECK_OK(cpu->attention_backward(&x.oracle));
    // Results of forward that stay f32 are compared, but backward reads them in the operands' dtype.
    ts_attention forward = x.call;
    void *wide = test_device(host_memory(x.t[OUT].bytes * 2), x.t[OUT].bytes * 2);
    if (s->f32_results) {
        float *gaps = host_memory((size_t)(s->batch * x.t[OUT].batch) * sizeof *gaps);
        for (int64_t i = 0; i < s->batch * x.t[OUT].batch; i++) {
            gaps[i] = 77;
        }
        forward.out = wide = test_device(gaps, (size_t)(s->batch * x.t[OUT].batch) * sizeof *gaps);
        CHECK_OK(test_kernels->attention_forward(&forward));
    }
    forward = x.call;
    forward.f32_results = false;
    CHECK_OK(test_kernels->attention_forward(&forward));
    CHECK_OK(test_kernels->attention_backward(&x.call));
    // Gradients of flat and of sharp softmaxes vanish, by cancellation of terms of the size of q and k.
    const double floor = 0.1 * sqrt(1 + (double)s->spread), allowed = tolerance(s);
    report(s, "out", difference(&x, &x.t[OUT], s->dtype, x.call.out, floor), allowed);
    if (s->f32_results) {
        report(s, "out in f32", difference(&x, &x.t[OUT], TS_F32, wide, floor), allowed);
    }
    report(s, "d_q", difference(&x, &x.t[D_Q], x.t[D_Q].dtype, x.call.d_q, floor), allowed);
    report(s, "d_k", difference(&x, &x.t[D_K], x.t[D_K].dtype, x.call.d_k, floor), allowed);
    report(s, "d_v", difference(&x, &x.t[D_V], x.t[D_V].dtype, x.call.d_v, floor), allowed);
    report(s, "lse", float_difference(x.call.lse, x.oracle.lse, x.lse_bytes), allowed);
    report(s, "d_bias", float_difference(x.call.d_bias_strip, x.oracle.d_bias_strip, x.strip_bytes), allowed);
    // The comparison itself must be able to fail.
    x.t[D_K].plain[width_of(s) * s->keys - 1] += (float)(3 * floor);
    CHECK(s->spread > 1 || difference(&x, &x.t[D_K], x.t[D_K].dtype, x.call.d_k, floor) > allowed);
    test_free_copies();
}

// ---- bits, edges

// The same call gives the same bits, whatever order blocks and threads ran in, and f32 results are those of bf16 before
// their rounding.
static void check_bits(const shape *s) {
    problem x, again, wide;
    shape wider = *s;
    wider.f32_results = true;
    make_problem(&x, s);
    make_problem(&again, s);
    make_problem(&wide, &wider);
    wide.call.f32_results = false;
    problem *const all[] = {&x, &again, &wide};
    for (int i = 0; i < 3; i++) {
        CHECK_OK(test_kernels->attention_forward(&all[i]->call));
        all[i]->call.f32_results = all[i]->s->f32_results;
        CHECK_OK(test_kernels->attention_backward(&all[i]->call));
    }
    for (int i = D_Q; i <= D_V; i++) {
        CHECK(test_same(x.t[i].device, again.t[i].device, x.t[i].bytes));
        const void *narrow = test_host(x.t[i].device, x.t[i].bytes);
        const float *full = test_host(wide.t[i].device, wide.t[i].bytes);
        for (size_t e = 0; e < wide.t[i].bytes / sizeof *full; e++) {
            const float rounded = s->dtype == TS_BF16 ? ts_bf16_to_f32(ts_f32_to_bf16(full[e])) : full[e];
            CHECK(rounded == get(narrow, s->dtype, (int64_t)e) || fabsf(full[e]) < 0x1p-126f);
        }
    }
    CHECK(test_same(x.call.out, again.call.out, x.t[OUT].bytes));
    CHECK(test_same(x.call.lse, again.call.lse, x.lse_bytes));
    test_free_copies();
}

// A NaN that reaches a query must reach its output, and no other; statistics may be left out.
static void check_nan(const shape *s) {
    problem x;
    make_problem(&x, s);
    put(x.t[Q].host, s->dtype, 0, NAN);
    x.call.q = test_device(x.t[Q].host, x.t[Q].bytes);
    x.call.f32_results = false;
    x.call.lse = NULL;
    CHECK_OK(test_kernels->attention_forward(&x.call));
    const void *out = test_host(x.call.out, x.t[OUT].bytes);
    CHECK(isnan(get(out, s->dtype, 0)));
    CHECK(!isnan(get(out, s->dtype, x.call.out_row)));
    test_free_copies();
}

static bool all_are(const void *device, ts_dtype dtype, int64_t n, float value) {
    const void *host = test_host(device, (size_t)n * ts_dtype_bytes(dtype));
    for (int64_t i = 0; i < n; i++) {
        if (get(host, dtype, i) != value) {
            return false;
        }
    }
    return true;
}

// A shard may have no queries, no keys or no heads: results that exist are those of empty sums.
static void check_empty(ts_dtype dtype) {
    const shape s = {"empty", 2, 3, 32, 7, 13, dtype, 0, false, false, false, 1, 0};
    for (int what = 0; what < 3; what++) {
        problem x;
        make_problem(&x, &s);
        ts_attention *c = &x.call;
        c->queries = what == 0 ? 0 : c->queries;
        c->keys = what == 1 ? 0 : c->keys;
        c->heads = what == 2 ? 0 : c->heads;
        CHECK_OK(test_kernels->attention_forward(c));
        CHECK_OK(test_kernels->attention_backward(c));
        if (what == 1) {
            CHECK(all_are(c->out, dtype, s.batch * c->out_batch, 0));
            CHECK(all_are(c->d_q, dtype, s.batch * c->q_batch, 0));
            CHECK(all_are(c->lse, TS_F32, s.batch * s.heads * s.queries, -INFINITY));
        }
        if (what == 0) {
            CHECK(all_are(c->d_k, dtype, s.batch * c->k_batch, 0) && all_are(c->d_v, dtype, s.batch * c->v_batch, 0));
        }
        test_free_copies();
    }
}

// Parts of the keys, one of them without any, merged as on the CPU.
static void check_merge(const ts_kernels *cpu) {
    enum { BATCH = 2, QUERIES = 5, HEADS = 3, SIZE = 33, ROWS = BATCH * QUERIES * HEADS, N = ROWS * SIZE };
    void *out, *part, *lse, *part_lse;
    ts_attention_merge wanted = {BATCH, QUERIES, HEADS, SIZE, .out = random_floats(N, 30, &out)};
    wanted.part = random_floats(N, 31, &part);
    wanted.lse = random_floats(ROWS, 32, &lse);
    float *other = random_floats(ROWS, 33, &part_lse);
    wanted.lse[3] = wanted.lse[4] = other[4] = other[5] = -INFINITY;
    wanted.part_lse = other;
    float *own_lse = host_memory(ROWS * sizeof *own_lse);
    memcpy(own_lse, wanted.lse, ROWS * sizeof *own_lse);
    lse = test_device(own_lse, ROWS * sizeof *own_lse);
    part_lse = test_device(other, ROWS * sizeof *other);
    const ts_attention_merge call = {BATCH, QUERIES, HEADS, SIZE, out, lse, part, part_lse};
    CHECK_OK(cpu->attention_merge(&wanted));
    CHECK_OK(test_kernels->attention_merge(&call));
    CHECK(float_difference(out, wanted.out, N * sizeof(float)) < 1e-6);
    const float *got = test_host(lse, ROWS * sizeof *got);
    for (int i = 0; i < ROWS; i++) {
        CHECK(got[i] == wanted.lse[i] || fabsf(got[i] - wanted.lse[i]) < 1e-6f);
    }
    test_free_copies();
}

static void check_refusals(void) {
    problem x;
    make_problem(&x, &SHAPES[1]);
    ts_attention c = x.call;
    c.head_dim = 257;
    CHECK_FAILS(test_kernels->attention_forward(&c), TS_EUSAGE, "head_dim 257");
    c = x.call;
    c.keys = -1;
    CHECK_FAILS(test_kernels->attention_forward(&c), TS_EUSAGE, "keys -1");
    c = x.call;
    c.dtype = TS_F64;
    CHECK_FAILS(test_kernels->attention_forward(&c), TS_EUSAGE, "F64");
    c = x.call;
    c.lse = NULL;
    CHECK_FAILS(test_kernels->attention_backward(&c), TS_EUSAGE, "lse");
    test_free_copies();
}

int main(void) {
    const ts_kernels *cpu;
    CHECK_OK(ts_kernels_open(&cpu, "cpu", 0));
    for (int i = 0; test_choose(i); i++) {
        for (size_t shape_index = 0; shape_index < sizeof SHAPES / sizeof *SHAPES; shape_index++) {
            check_shape(&SHAPES[shape_index], cpu);
        }
        check_bits(&SHAPES[3]);   // f32 on CUDA cores, with a bias
        check_bits(&SHAPES[14]);  // tensor cores, with masked keys
        check_bits(&SHAPES[20]);  // without: where sm_90 has kernels of its own
        check_nan(&SHAPES[1]);
        check_nan(&SHAPES[16]);
        check_empty(TS_F32);
        check_empty(TS_BF16);
        check_merge(cpu);
        check_refusals();
    }
    return ts_test_end();
}
