// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=120 backend=cuda
// What samplers and optimizers do to flat ranges of numbers - combine, mix, fold, momentum, Newton-Schulz steps,
// normalize - against double precision, from aligned places and others.
#include "tests/kernels_test.h"

static const int64_t COUNTS[] = {0, 1, 3, 16, 17, 1000, 40003, 600000};
enum { COUNT_COUNT = sizeof COUNTS / sizeof *COUNTS };

// Runs check(k, n, shift) for counts from 0 up, from the beginning of a block and from its second number.
static void by_count(const ts_kernels *k, void (*check)(const ts_kernels *k, int64_t n, int64_t shift)) {
    for (int c = 0; c < COUNT_COUNT; c++) {
        for (int64_t shift = 0; shift < 2; shift++) {
            check(k, COUNTS[c], shift);
            test_free_blocks();
        }
    }
}

static float *numbers(int64_t n, int64_t shift) {
    return (float *)test_random(TS_F32, n + shift, 1) + shift;
}

static void combine_check(const ts_kernels *k, int64_t n, int64_t shift) {
    for (int terms = 1; terms <= TS_MAX_TERMS; terms++) {
        ts_combine p = {.n = n, .terms = terms};
        double *want = test_zeros((size_t)n * sizeof *want);
        for (int t = 0; t < terms; t++) {
            const float *x = numbers(n, t == 1 ? shift : 0);
            p.c[t] = test_number();
            p.x[t] = x;
            for (int64_t i = 0; i < n; i++) {
                want[i] += p.c[t] * (double)x[i];
            }
        }
        float *in_place = numbers(n, shift);  // the last term, and the result
        for (int64_t i = 0; i < n; i++) {
            want[i] += p.c[terms - 1] * ((double)in_place[i] - (double)p.x[terms - 1][i]);
        }
        p.x[terms - 1] = p.out = in_place;
        CHECK_OK(k->combine(&p));
        CHECK(test_close("combine", in_place, TS_F32, want, n, 1e-9, 1.01 * test_epsilon(TS_F32)));
    }
}

// Rows of four classes: all terms; some left out; 1 for the result alone, whose rows keep their bits; none. In rows
// that leave the first term out it is inf and NaN. Bit by bit.
static void combine_rows_check(const ts_kernels *k, int64_t rows, int64_t width, int64_t shift) {
    enum { TERMS = 4, OUT = 2, CLASSES = 4 };
    const double class_c[CLASSES][TS_MAX_TERMS] = {
        {0.3, -1.7, 2.25, 0.11}, {0.0, 0.7, -0.2, 0.0}, {0.0, 0.0, 1.0, 0.0, 5.0, 5.0}, {0.0}};
    const int64_t n = rows * width;
    ts_combine p = {.n = n, .terms = TERMS, .width = width};
    p.class_c = test_copy(class_c, sizeof class_c);
    int32_t *row_class = test_zeros((size_t)rows * sizeof *row_class);
    float *x[TERMS], *before, *want = test_zeros((size_t)n * sizeof *want);
    for (int t = 0; t < TERMS; t++) {
        p.x[t] = x[t] = numbers(n, t == 1 ? 0 : shift);
    }
    for (int64_t row = 0; row < rows; row++) {
        row_class[row] = (int32_t)((row * 7 + 3) % 5 % CLASSES);
        for (int64_t i = row * width; i < (row + 1) * width && row_class[row]; i++) {
            x[0][i] = i % 2 ? NAN : INFINITY;  // must not be seen where the coefficient is 0
            x[OUT][i] = row_class[row] == 3 || (row_class[row] == 2 && i % 3 == 0) ? -0.0f : x[OUT][i];
        }
    }
    before = test_copy(x[OUT], (size_t)n * sizeof *before);
    for (int64_t i = 0; i < n; i++) {
        const double *c = class_c[row_class[i / width]];
        double sum = c[0] != 0.0 ? c[0] * (double)x[0][i] : 0.0;
        for (int t = 1; t < TERMS && row_class[i / width] < 2; t++) {
            const double product = c[t] * (double)x[t][i];
            sum = t == 1 && c[0] == 0.0 ? product : c[t] != 0.0 ? sum + product : sum;
        }
        want[i] = row_class[i / width] == 2 ? before[i] : (float)sum;
    }
    p.row_class = row_class;
    p.out = x[OUT];
    CHECK_OK(k->combine(&p));
    CHECK(memcmp(x[OUT], want, (size_t)n * sizeof *want) == 0);
    test_free_blocks();
}

static void combine_rows_cases(const ts_kernels *k) {
    static const int64_t shapes[][2] = {{0, 4}, {1, 1}, {5, 3}, {9, 8}, {7, 16}, {320, 16}, {130, 64}, {3, 70001}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (int64_t shift = 0; shift < 2; shift++) {
            combine_rows_check(k, shapes[s][0], shapes[s][1], shift);
        }
    }
    ts_combine p = {.n = 5, .terms = 1, .width = 2, .row_class = test_zeros(4), .class_c = test_zeros(8)};
    CHECK_FAILS(k->combine(&p), TS_EINTERNAL, "5 numbers in rows of 2");
    p.width = 5;
    p.class_c = NULL;
    CHECK_FAILS(k->combine(&p), TS_EINTERNAL, "without coefficients");
}

static void combine_cases(const ts_kernels *k) {
    by_count(k, combine_check);
    ts_combine p = {.n = 1, .terms = TS_MAX_TERMS + 1};
    CHECK_FAILS(k->combine(&p), TS_EINTERNAL, "combine");
    p.terms = 0;
    CHECK_FAILS(k->combine(&p), TS_EINTERNAL, "combine");
}

static void mix_cases(const ts_kernels *k) {
    static const int64_t shapes[][2] = {{0, 4}, {3, 0}, {1, 1}, {5, 3}, {7, 16}, {130, 64}, {3, 70001}, {5000, 3}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (int64_t shift = 0; shift < 2; shift++) {
            const int64_t rows = shapes[s][0], width = shapes[s][1], n = rows * width;
            float *x0 = numbers(n, shift), *eps = numbers(n, shift), *sigma = numbers(rows, 0), *x = numbers(n, shift);
            double *want = test_zeros((size_t)n * sizeof *want), *want_target = test_doubles(eps, TS_F32, n);
            for (int64_t row = 0; row < rows; row++) {
                sigma[row] = fabsf(sigma[row]) / 2;
            }
            for (int64_t i = 0; i < n; i++) {
                const double level = (double)sigma[i / width];
                want[i] = (1 - level) * (double)x0[i] + level * (double)eps[i];
                want_target[i] -= (double)x0[i];
            }
            const ts_mix p = {.rows = rows, .width = width, .x0 = x0, .sigma = sigma, .x = x, .eps_to_target = eps};
            CHECK_OK(k->mix(&p));
            CHECK(test_close("mix", x, TS_F32, want, n, 6e-7, 0));
            CHECK(test_close("mix target", eps, TS_F32, want_target, n, 0, 1.01 * test_epsilon(TS_F32)));
            test_free_blocks();
        }
    }
}

static void fold_check(const ts_kernels *k, int64_t n, int64_t shift) {
    float *grad = numbers(n, shift);
    uint16_t *kept = (uint16_t *)test_random(TS_BF16, n + shift, 1) + shift;
    uint16_t *want = test_zeros((size_t)n * sizeof *want);
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        want[i] = ts_f32_to_bf16(ts_bf16_to_f32(kept[i]) + grad[i]);
    }
    CHECK_OK(k->fold(grad, kept, n));
    for (int64_t i = 0; i < n; i++) {
        wrong += kept[i] != want[i] || grad[i] != 0;
    }
    CHECK(wrong == 0);
}

static void fold_cases(const ts_kernels *k) {
    by_count(k, fold_check);
}

static void momentum_check(const ts_kernels *k, int64_t n, int64_t shift) {
    float *m = numbers(n, shift), *u = numbers(n, shift);
    double *want_m = test_doubles(m, TS_F32, n), *want_u = test_doubles(u, TS_F32, n);
    const float grad_scale = 0.3f, decay = 0.95f;
    for (int64_t i = 0; i < n; i++) {
        const double g = want_u[i] * (double)grad_scale;
        want_m[i] = (double)decay * want_m[i] + g;
        want_u[i] = g + (double)decay * want_m[i];
    }
    CHECK_OK(k->momentum(grad_scale, decay, m, u, n));
    CHECK(test_close("momentum", m, TS_F32, want_m, n, 3e-7, 0));
    CHECK(test_close("momentum u", u, TS_F32, want_u, n, 5e-7, 0));
}

static void momentum_cases(const ts_kernels *k) {
    by_count(k, momentum_check);
}

static void newton_schulz_cases(const ts_kernels *k) {
    static const int64_t sides[] = {0, 1, 2, 37, 64, 701};
    for (size_t s = 0; s < sizeof sides / sizeof *sides; s++) {
        const int64_t side = sides[s], n = side * side;
        const float a = 3.4445f, b = -4.775f, c = 2.0315f;
        float *gram = numbers(n, 0), *square = numbers(n, 0);
        double *want = test_doubles(square, TS_F32, n);
        for (int64_t i = 0; i < n; i++) {
            want[i] = (double)b * (double)gram[i] + (double)c * want[i] + (i / side == i % side ? (double)a : 0);
        }
        CHECK_OK(k->newton_schulz(a, b, c, gram, square, side));
        CHECK(test_close("newton_schulz", square, TS_F32, want, n, 3e-6, 0));
        test_free_blocks();
    }
}

// The sum of squares stays where it is taken: normalize reads it there.
static void normalize_check(const ts_kernels *k, int64_t n, int64_t shift) {
    float *x = numbers(n, shift);
    double *want = test_doubles(x, TS_F32, n), *squares = test_zeros(sizeof *squares), sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += want[i] * want[i];
    }
    for (int64_t i = 0; i < n; i++) {
        want[i] /= sqrt(sum) + 1e-20;
    }
    CHECK_OK(k->sum_squares(x, n, squares));
    CHECK_NEAR(*squares, sum, 1e-12 * sum);
    CHECK_OK(k->normalize(squares, x, n));
    CHECK(test_close("normalize", x, TS_F32, want, n, 0, 2.1 * test_epsilon(TS_F32)));
}

static void normalize_cases(const ts_kernels *k) {
    by_count(k, normalize_check);
    float *zeros = test_zeros(40 * sizeof *zeros);
    double *squares = test_zeros(sizeof *squares);
    CHECK_OK(k->normalize(squares, zeros, 40));
    CHECK(zeros[0] == 0 && zeros[39] == 0);
}

int main(void) {
    test_close_can_fail();
    test_levels("avx512bf16", normalize_cases);
    test_levels("generic", combine_cases);
    test_levels("generic", combine_rows_cases);
    test_levels("generic", mix_cases);
    test_levels("generic", fold_cases);
    test_levels("generic", momentum_cases);
    test_levels("generic", newton_schulz_cases);
    return ts_test_end();
}
