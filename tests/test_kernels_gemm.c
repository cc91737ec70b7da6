// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=120 backend=cuda
// Matrix products of every form against a double-precision loop, on every instruction set here.
#include "tests/kernels_test.h"

typedef struct shape {
    int64_t m, n, k;
} shape;

static const shape SHAPES[] = {{5, 9, 0},     {4, 0, 3},        {1, 1, 1},      {1, 40, 7},   {5, 1, 33},
                               {17, 31, 2},   {32, 32, 32},     {33, 65, 97},   {48, 16, 64}, {130, 70, 40},
                               {64, 96, 512}, {100, 129, 1100}, {200, 384, 128}};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES };

typedef struct form {
    ts_dtype ab, c;
    bool ta, tb, accumulate, bias, gelu, before;
    int64_t pad;  // added to every row stride
} form;

static double gelu(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

// The product in double precision, and the size of the sums' terms for the tolerance.
static void reference(const ts_gemm *p, const void *c_before, double *out, double *size) {
    const double *a = test_doubles(p->a, p->dtype_ab, (p->transpose_a ? p->k : p->m) * p->lda);
    const double *b = test_doubles(p->b, p->dtype_ab, (p->transpose_b ? p->n : p->k) * p->ldb);
    const int64_t a_row = p->transpose_a ? 1 : p->lda, a_step = p->transpose_a ? p->lda : 1;
    const int64_t b_column = p->transpose_b ? p->ldb : 1, b_step = p->transpose_b ? 1 : p->ldb;
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t j = 0; j < p->n; j++) {
            double sum = 0, terms = 0;
            for (int64_t l = 0; l < p->k; l++) {
                const double term = a[i * a_row + l * a_step] * b[j * b_column + l * b_step];
                sum += term;
                terms += term * term;
            }
            const double c = p->accumulate ? test_get(c_before, p->dtype_c, i * p->ldc + j) : 0;
            const double bias = p->bias ? (double)p->bias[j] : 0;
            out[i * p->n + j] = sum + c + bias;
            size[i * p->n + j] = sqrt(terms) + fabs(c) + fabs(bias);
        }
    }
}

// Rounding of a sum of k products in f32 grows like sqrt(k); the result is rounded to C's dtype (and GELU's slope is at
// most 1.13).
static bool agrees(const ts_gemm *p, const void *got, const double *want, const double *size, bool through_gelu) {
    const double sums = 8 * test_epsilon(TS_F32) * sqrt((double)p->k + 4);
    for (int64_t i = 0; i < p->m * p->n; i++) {
        const double w = through_gelu ? gelu(want[i]) : want[i];
        const double g = test_get(got, p->dtype_c, i / p->n * p->ldc + i % p->n);
        // On a GPU the bias of a bf16 C is rounded, too.
        const bool rounded_bias = p->bias && p->dtype_c == TS_BF16 && strcmp(test_where(), "cuda") == 0;
        const double bias = rounded_bias ? 1.13 * test_epsilon(TS_BF16) * fabs((double)p->bias[i % p->n]) : 0;
        const double rounding =
            (through_gelu ? 3 : 1.01) * test_epsilon(p->dtype_c) * (fabs(w) + fabs(through_gelu ? want[i] : 0));
        if (!(fabs(g - w) <= 1.13 * sums * size[i] + rounding + bias)) {
            fprintf(stderr,
                    "gemm [%s] %lldx%lldx%lld %s->%s ta %d tb %d accumulate %d bias %d gelu %d: (%lld, %lld) is %.9g, "
                    "wanted %.9g\n",
                    test_where(), (long long)p->m, (long long)p->n, (long long)p->k, ts_dtype_name(p->dtype_ab),
                    ts_dtype_name(p->dtype_c), p->transpose_a, p->transpose_b, p->accumulate, p->bias != NULL, p->gelu,
                    (long long)(i / p->n), (long long)(i % p->n), g, w);
            return false;
        }
    }
    return true;
}

static bool padding_untouched(const ts_gemm *p, const void *before) {
    for (int64_t i = 0; i < p->m * p->ldc; i++) {
        const bool outside = i % p->ldc >= p->n;
        if (outside && test_get(before, p->dtype_c, i) != test_get(p->c, p->dtype_c, i)) {
            return false;
        }
    }
    return true;
}

static ts_gemm make(shape s, form f) {
    ts_gemm p = {.m = s.m,
                 .n = s.n,
                 .k = s.k,
                 .lda = (f.ta ? s.m : s.k) + f.pad,
                 .ldb = (f.tb ? s.k : s.n) + f.pad,
                 .ldc = s.n + f.pad,
                 .transpose_a = f.ta,
                 .transpose_b = f.tb,
                 .dtype_ab = f.ab,
                 .dtype_c = f.c,
                 .accumulate = f.accumulate,
                 .gelu = f.gelu};
    p.a = test_random(f.ab, (f.ta ? s.k : s.m) * p.lda, 1);
    p.b = test_random(f.ab, (f.tb ? s.n : s.k) * p.ldb, 1 / sqrt((double)(s.k ? s.k : 1)));
    p.c = test_random(f.c, s.m * p.ldc, 1);
    p.bias = f.bias ? test_random(TS_F32, s.n, 1) : NULL;
    p.before_gelu = f.before ? test_random(f.c, s.m * p.ldc, 1) : NULL;
    return p;
}

// C must be gelu_forward of before_gelu, bit by bit.
static bool is_gelu_of_rounded(const ts_kernels *k, const ts_gemm *p) {
    const size_t element = ts_dtype_bytes(p->dtype_c), row = (size_t)p->ldc * element;
    char *again = test_zeros((size_t)p->m * row);
    CHECK_OK(k->gelu_forward(p->before_gelu, again, p->dtype_c, p->m * p->ldc));
    bool same = true;
    for (int64_t i = 0; i < p->m; i++) {
        const size_t at = (size_t)i * row;
        same = same && memcmp(again + at, (const char *)p->c + at, (size_t)p->n * element) == 0;
    }
    return same;
}

static void check(const ts_kernels *k, shape s, form f) {
    ts_gemm p = make(s, f);
    const void *before = test_copy(p.c, (size_t)(s.m * p.ldc) * ts_dtype_bytes(f.c));
    double *want = test_zeros((size_t)(s.m * s.n) * sizeof *want),
           *size = test_zeros((size_t)(s.m * s.n) * sizeof *size);
    reference(&p, before, want, size);
    CHECK_OK(k->gemm(&p));
    CHECK(agrees(&p, p.c, want, size, f.gelu));
    CHECK(padding_untouched(&p, before));
    if (f.before) {
        CHECK(agrees(&p, p.before_gelu, want, size, false));
        CHECK(is_gelu_of_rounded(k, &p));
    }
    test_free_blocks();
}

static void forms_of(const ts_kernels *k, shape s, ts_dtype ab, ts_dtype c) {
    for (int transposes = 0; transposes < 4; transposes++) {
        const bool ta = transposes & 1, tb = transposes & 2;
        check(k, s, (form){.ab = ab, .c = c, .ta = ta, .tb = tb});
        check(k, s, (form){.ab = ab, .c = c, .ta = ta, .tb = tb, .bias = true, .pad = 3});
        check(k, s, (form){.ab = ab, .c = c, .ta = ta, .tb = tb, .bias = true, .gelu = true, .before = tb, .pad = 64});
        if (c == TS_F32) {
            check(k, s, (form){.ab = ab, .c = c, .ta = ta, .tb = tb, .accumulate = true, .pad = 1});
            check(k, s,
                  (form){.ab = ab,
                         .c = c,
                         .ta = ta,
                         .tb = tb,
                         .accumulate = true,
                         .bias = true,
                         .gelu = true,
                         .before = true});
        }
    }
}

static void gemm_cases(const ts_kernels *k) {
    for (int i = 0; i < SHAPE_COUNT; i++) {
        for (int types = 0; types < 4; types++) {
            forms_of(k, SHAPES[i], types & 1 ? TS_BF16 : TS_F32, types & 2 ? TS_BF16 : TS_F32);
        }
    }
}

// The same bits on one, two and three threads, where the product is ours (oneDNN cuts k up by threads).
static void thread_cases(const ts_kernels *k) {
    if (strcmp(test_where(), "amx") != 0) {
        return;
    }
    const int most = omp_get_max_threads();
    static const shape shapes[] = {{200, 384, 1100}, {384, 128, 2560}, {1100, 130, 96}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape s = shapes[i];
        ts_gemm p = make(s, (form){.ab = TS_BF16, .c = TS_F32, .ta = i == 1, .tb = i == 0, .accumulate = i == 1});
        const size_t bytes = (size_t)(s.m * p.ldc) * sizeof(float);
        const void *before = test_copy(p.c, bytes);
        omp_set_num_threads(1);
        CHECK_OK(k->gemm(&p));
        const void *one = test_copy(p.c, bytes);
        for (int threads = 2; threads <= 3; threads++) {
            memcpy(p.c, before, bytes);
            omp_set_num_threads(threads);
            CHECK_OK(k->gemm(&p));
            CHECK(memcmp(one, p.c, bytes) == 0);
        }
        omp_set_num_threads(most);
        test_free_blocks();
    }
}

static void bad_calls(const ts_kernels *k) {
    uint16_t *x = test_zeros(4 * sizeof *x);
    float *y = test_zeros(4 * sizeof *y);
    ts_gemm p = {.m = 2,
                 .n = 2,
                 .k = 2,
                 .lda = 2,
                 .ldb = 2,
                 .ldc = 2,
                 .a = x,
                 .b = x,
                 .c = y,
                 .dtype_ab = TS_BF16,
                 .dtype_c = TS_F32};
    CHECK_OK(k->gemm(&p));
    p.lda = 1;
    CHECK_FAILS(k->gemm(&p), TS_EINTERNAL, "gemm");
    p.lda = 2;
    p.dtype_c = TS_BF16;
    p.accumulate = true;
    CHECK_FAILS(k->gemm(&p), TS_EINTERNAL, "accumulate");
    p.accumulate = false;
    p.m = 0;
    CHECK_OK(k->gemm(&p));
}

int main(void) {
    test_close_can_fail();
    test_levels("amx", gemm_cases);
    test_levels("amx", thread_cases);
    test_levels("generic", bad_calls);
    return ts_test_end();
}
