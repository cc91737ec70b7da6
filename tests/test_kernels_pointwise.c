// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=120 backend=cuda
// Activations, softmax, casts, loss, optimizer, embedding, patches, sinusoid and noise against double precision.
#include "tests/kernels_test.h"

static const int64_t COUNTS[] = {0, 1, 3, 15, 16, 17, 1000, 40003};
enum { COUNT_COUNT = sizeof COUNTS / sizeof *COUNTS };

// ---- activations

static double gelu(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double gelu_slope(double x) {
    const double t = tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

// Random numbers of several sizes, and the edges.
static void *wide_random(ts_dtype dtype, int64_t n) {
    static const double edges[] = {0, -0.0, 1e30, -1e30, 90, -90, 1e-30, -1e-30, 12, -12, 3e-39};
    void *x = test_random(dtype, n, 4);
    for (int64_t i = 0; i < n && i < (int64_t)(sizeof edges / sizeof *edges); i++) {
        test_put(x, dtype, n - 1 - i, edges[i]);
    }
    return x;
}

static void gelu_check(const ts_kernels *k, ts_dtype dtype, int64_t n) {
    const size_t bytes = (size_t)n * ts_dtype_bytes(dtype);
    void *x = wide_random(dtype, n), *b = test_random(dtype, n, 1), *d_y = test_random(dtype, n, 1);
    void *y = test_zeros(bytes), *d_x = test_zeros(bytes), *z = test_zeros(bytes), *d_a = test_zeros(bytes),
         *d_b = test_zeros(bytes);
    double *want[5];
    for (int i = 0; i < 5; i++) {
        want[i] = test_zeros((size_t)n * sizeof(double));
    }
    for (int64_t i = 0; i < n; i++) {
        const double v = test_get(x, dtype, i), w = test_get(b, dtype, i), d = test_get(d_y, dtype, i);
        const double slope = fabs(v) > 100 ? v > 0 : gelu_slope(v), value = fabs(v) > 100 ? fmax(v, 0) : gelu(v);
        want[0][i] = value;
        want[1][i] = d * slope;
        want[2][i] = value * w;
        want[3][i] = d * w * slope;
        want[4][i] = d * value;
    }
    CHECK_OK(k->gelu_forward(x, y, dtype, n));
    CHECK_OK(k->gelu_backward(x, d_y, d_x, dtype, n));
    CHECK_OK(k->gated_gelu_forward(x, b, z, dtype, n));
    CHECK_OK(k->gated_gelu_backward(x, b, d_y, d_a, d_b, dtype, n));
    const double relative = 2 * test_epsilon(dtype) + 1e-6, size = dtype == TS_BF16 ? 1e-3 : 4e-6;
    CHECK(test_close("gelu", y, dtype, want[0], n, size / 2, relative));
    CHECK(test_close("gelu d_x", d_x, dtype, want[1], n, size / 2, relative));
    CHECK(test_close("gated_gelu", z, dtype, want[2], n, size, relative));
    CHECK(test_close("gated_gelu d_a", d_a, dtype, want[3], n, size, relative));
    CHECK(test_close("gated_gelu d_b", d_b, dtype, want[4], n, size, relative));
    CHECK_OK(k->gelu_forward(x, x, dtype, n));  // in place
    CHECK(memcmp(x, y, bytes) == 0);
}

// x Phi(x), and its slope Phi(x) + x phi(x).
static void gelu_erf_check(const ts_kernels *k, int64_t n) {
    float *x = test_random(TS_F32, n, 4), *y = test_zeros((size_t)n * sizeof *y), *d_y = test_random(TS_F32, n, 1);
    double *want = test_doubles(x, TS_F32, n), *want_d = test_doubles(d_y, TS_F32, n);
    for (int64_t i = 0; i < n; i++) {
        const double v = (double)x[i], below = erfc(-v * sqrt(0.5)) / 2;
        want[i] = v * below;
        want_d[i] *= below + v * exp(-v * v / 2) / sqrt(2 * acos(-1));
    }
    CHECK_OK(k->gelu_erf_forward(x, y, n));
    CHECK(test_close("gelu_erf", y, TS_F32, want, n, 2e-6, 1e-6));
    CHECK_OK(k->gelu_erf_backward(x, d_y, y, n));
    CHECK(test_close("gelu_erf d_x", y, TS_F32, want_d, n, 2e-6, 1e-6));
}

static void activation_cases(const ts_kernels *k) {
    for (int c = 0; c < COUNT_COUNT; c++) {
        const int64_t n = COUNTS[c];
        gelu_check(k, TS_F32, n);
        gelu_check(k, TS_BF16, n);
        gelu_erf_check(k, n);
        float *x = test_random(TS_F32, n, 4), *y = test_zeros((size_t)n * sizeof *y), *d_y = test_random(TS_F32, n, 1);
        double *want = test_doubles(x, TS_F32, n), *want_d = test_doubles(d_y, TS_F32, n);
        for (int64_t i = 0; i < n; i++) {
            const double s = sigmoid((double)x[i]);
            want[i] *= s;
            want_d[i] *= s * (1 + (double)x[i] * (1 - s));
        }
        CHECK_OK(k->silu_forward(x, y, n));
        CHECK(test_close("silu", y, TS_F32, want, n, 1e-6, 1e-6));
        CHECK_OK(k->silu_backward(x, d_y, y, n));
        CHECK(test_close("silu d_x", y, TS_F32, want_d, n, 2e-6, 1e-6));
        test_free_blocks();
    }
    const float not_a_number = NAN;
    const float *x = test_copy(&not_a_number, sizeof not_a_number);
    float *y = test_zeros(sizeof *y);
    CHECK_OK(k->gelu_forward(x, y, TS_F32, 1));
    CHECK(isnan(*y));
    CHECK_FAILS(k->gelu_forward(y, y, TS_I32, 1), TS_EINTERNAL, "gelu");
}

static void softmax_cases(const ts_kernels *k) {
    static const int64_t shapes[][2] = {{1, 1}, {5, 3}, {7, 16}, {3, 77}, {200, 130}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (int size = 1; size <= 10000; size *= 100) {
            const int64_t rows = shapes[s][0], width = shapes[s][1], n = rows * width;
            float *x = test_random(TS_F32, n, size), *y = test_zeros((size_t)n * sizeof *y);
            double *want = test_doubles(x, TS_F32, n);
            for (int64_t row = 0; row < rows; row++) {
                double max = -INFINITY, sum = 0;
                for (int64_t i = 0; i < width; i++) {
                    max = fmax(max, want[row * width + i]);
                }
                for (int64_t i = 0; i < width; i++) {
                    sum += exp(want[row * width + i] - max);
                }
                for (int64_t i = 0; i < width; i++) {
                    want[row * width + i] = exp(want[row * width + i] - max) / sum;
                }
            }
            CHECK_OK(k->softmax(x, y, rows, width));
            CHECK(test_close("softmax", y, TS_F32, want, n, 1e-7, 2e-6));
            test_free_blocks();
        }
    }
}

// ---- simple vectors

static void cast_check(const ts_kernels *k, int64_t n) {
    float *x = wide_random(TS_F32, n), *back = test_zeros((size_t)n * sizeof *back);
    if (n > 20) {
        const uint32_t nan_payload = 0x7fffffffu;  // rounding it up would give -0
        memcpy(&x[3], &nan_payload, sizeof *x);
        x[4] = INFINITY;
        x[5] = 3.4e38f;
    }
    uint16_t *h = test_zeros((size_t)n * sizeof *h);
    CHECK_OK(k->cast(x, TS_F32, h, TS_BF16, n));
    CHECK_OK(k->cast(h, TS_BF16, back, TS_F32, n));
    for (int64_t i = 0; i < n; i++) {
        const bool flushed = fabsf(x[i]) < 0x1p-126f && (h[i] & 0x7fff) == 0;  // subnormal numbers may become 0
        const bool quiet = isnan(x[i]) && isnan(back[i]);                      // and NaN another NaN
        CHECK(h[i] == ts_f32_to_bf16(x[i]) || flushed || quiet);
        CHECK(ts_f32_to_bf16(back[i]) == h[i] || quiet);
    }
}

static void vector_cases(const ts_kernels *k) {
    for (int c = 0; c < COUNT_COUNT; c++) {
        const int64_t n = COUNTS[c];
        cast_check(k, n);
        float *x = test_random(TS_F32, n, 1), *y = test_random(TS_F32, n, 1);
        double *want = test_doubles(y, TS_F32, n), *doubled = test_doubles(x, TS_F32, n), squares = 0;
        double *got = test_zeros(sizeof *got);
        for (int64_t i = 0; i < n; i++) {
            squares += (double)x[i] * (double)x[i];
            want[i] += -2.5 * (double)x[i];
            doubled[i] *= 3;
        }
        CHECK_OK(k->axpy(-2.5f, x, y, n));
        CHECK(test_close("axpy", y, TS_F32, want, n, 1e-6, 1e-6));
        CHECK_OK(k->sum_squares(x, n, got));
        CHECK_NEAR(*got, squares, 1e-13 * squares);
        CHECK_OK(k->scale(3, x, n));
        CHECK(test_close("scale", x, TS_F32, doubled, n, 0, 1e-7));
        test_free_blocks();
    }
    const int64_t n = 3 * 65536 + 77;
    float *x = test_random(TS_F32, n, 1);
    double *one = test_zeros(sizeof *one), *two = test_zeros(sizeof *two);
    const int most = omp_get_max_threads();
    omp_set_num_threads(1);
    CHECK_OK(k->sum_squares(x, n, one));
    omp_set_num_threads(3);
    CHECK_OK(k->sum_squares(x, n, two));
    CHECK(*one == *two);
    omp_set_num_threads(most);
}

// Rows between others that must stay as they are, at offsets of any parity.
static void copy_rows_cases(const ts_kernels *k) {
    static const int64_t shapes[][4] = {{0, 5, 5, 5}, {3, 0, 4, 4}, {1, 7, 7, 7}, {5, 3, 9, 4}, {300, 384, 1000, 768}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const int64_t rows = shapes[s][0], bytes = shapes[s][1], from_stride = shapes[s][2], to_stride = shapes[s][3];
        char *from = test_zeros((size_t)(rows * from_stride + 1)), *to = test_zeros((size_t)(rows * to_stride + 1));
        for (int64_t i = 0; i < rows * from_stride + 1; i++) {
            from[i] = (char)(1 + i % 101);
        }
        CHECK_OK(k->copy_rows(from + 1, from_stride, to + 1, to_stride, rows, bytes));
        int64_t wrong = to[0] != 0;
        for (int64_t i = 0; i < rows * to_stride; i++) {
            const int64_t row = i / to_stride, column = i % to_stride;
            wrong += to[1 + i] != (column < bytes ? from[1 + row * from_stride + column] : 0);
        }
        CHECK(wrong == 0);
        test_free_blocks();
    }
}

// ---- loss and optimizer

static void mse_cases(const ts_kernels *k) {
    static const int64_t shapes[][2] = {{1, 1}, {6, 5}, {130, 64}, {400, 97}};
    for (int variant = 0; variant < 8; variant++) {
        const int64_t rows = shapes[variant / 2][0], width = shapes[variant / 2][1], n = rows * width;
        float *v = test_random(TS_F32, n, 1), *target = test_random(TS_F32, n, 1);
        float *weight = test_random(TS_F32, rows, 1), *d_v = test_zeros((size_t)n * sizeof *d_v);
        weight[0] = 0;
        const double scale = 1.0 / (double)n;
        double want = 0, *loss = test_random(TS_F32, 2, 1), *want_d = test_zeros((size_t)n * sizeof *want_d);
        double *row_loss = test_zeros((size_t)rows * sizeof *row_loss), row_sum = 0;
        for (int64_t i = 0; i < n; i++) {
            const double w = variant % 2 ? (double)weight[i / width] : 1, e = (double)v[i] - (double)target[i];
            want += w * e * e * scale;
            want_d[i] = 2 * scale * w * e;
        }
        const ts_mse p = {.rows = rows,
                          .width = width,
                          .v = v,
                          .target = target,
                          .weight = variant % 2 ? weight : NULL,
                          .scale = scale,
                          .loss = loss,
                          .row_loss = row_loss,
                          .d_v = d_v};
        CHECK_OK(k->mse(&p));
        CHECK_NEAR(*loss, want, 1e-6 * (fabs(want) + 1e-3));
        CHECK(test_close("mse d_v", d_v, TS_F32, want_d, n, 1e-8, 1e-6));
        for (int64_t row = 0; row < rows; row++) {
            row_sum += row_loss[row];
        }
        CHECK_NEAR(row_sum * scale, want, 1e-6 * (fabs(want) + 1e-3));
        ts_mse plain = p;
        plain.row_loss = NULL;
        plain.d_v = NULL;
        plain.loss = test_zeros(sizeof(double));
        CHECK_OK(k->mse(&plain));
        CHECK(*plain.loss == *loss);
        test_free_blocks();
    }
}

static void adamw_check(const ts_kernels *k, int64_t n, bool extras) {
    float *w = test_random(TS_F32, n, 1), *m = test_random(TS_F32, n, 0.1), *v = test_random(TS_F32, n, 0.1);
    float *grad = test_random(TS_F32, n, 1), *ema = test_random(TS_F32, n, 1);
    uint16_t *operand = test_zeros((size_t)n * sizeof *operand);
    for (int64_t i = 0; i < n; i++) {
        v[i] = fabsf(v[i]);
        grad[i] *= i % 7 ? 1 : 1e-20f;
    }
    double *want_w = test_doubles(w, TS_F32, n), *want_m = test_doubles(m, TS_F32, n),
           *want_v = test_doubles(v, TS_F32, n);
    double *want_ema = test_doubles(ema, TS_F32, n);
    const ts_adamw p = {.count = n,
                        .step = 3,
                        .lr = 1e-2f,
                        .beta1 = 0.9f,
                        .beta2 = 0.99f,
                        .eps = 1e-8f,
                        .weight_decay = 0.1f,
                        .grad_scale = 0.5f,
                        .weight = w,
                        .m = m,
                        .v = v,
                        .grad = grad,
                        .operand = extras ? operand : NULL,
                        .ema = extras ? ema : NULL,
                        .ema_decay = 0.9f};
    for (int64_t i = 0; i < n; i++) {
        const double g = (double)grad[i] * 0.5, b1 = (double)0.9f, b2 = (double)0.99f;
        want_m[i] = b1 * want_m[i] + (1 - b1) * g;
        want_v[i] = b2 * want_v[i] + (1 - b2) * g * g;
        const double step = want_m[i] / (1 - pow(b1, 3)) / (sqrt(want_v[i] / (1 - pow(b2, 3))) + 1e-8);
        want_w[i] -= (double)1e-2f * (step + (double)0.1f * want_w[i]);
        want_ema[i] = 0.9 * want_ema[i] + 0.1 * want_w[i];
    }
    CHECK_OK(k->adamw(&p));
    CHECK(test_close("adamw weight", w, TS_F32, want_w, n, 4e-7, 4e-7));
    CHECK(test_close("adamw m", m, TS_F32, want_m, n, 1e-7, 4e-7));
    CHECK(test_close("adamw v", v, TS_F32, want_v, n, 1e-9, 4e-7));
    for (int64_t i = 0; i < n && extras; i++) {
        CHECK(operand[i] == ts_f32_to_bf16(w[i]));
    }
    if (extras) {
        CHECK(test_close("adamw ema", ema, TS_F32, want_ema, n, 1e-6, 1e-6));
    }
}

// Stochastic rounding by its definition (ts_rounding), of numbers that the update leaves as they are.
static void rounding_check(const ts_kernels *k, int64_t n, int64_t first, const float *w, uint16_t *operand) {
    float *zeros = test_zeros((size_t)n * sizeof *zeros), *m = test_zeros((size_t)n * sizeof *m);
    float *v = test_zeros((size_t)n * sizeof *v), *weight = test_copy(w, (size_t)n * sizeof *w);
    const ts_adamw p = {.count = n,
                        .step = 5,
                        .eps = 1e-8f,
                        .grad_scale = 1,
                        .weight = weight,
                        .m = m,
                        .v = v,
                        .grad = zeros,
                        .operand = operand,
                        .rounding = TS_ROUND_STOCHASTIC,
                        .seed = 0x123456789abcdefu,
                        .first = first};
    CHECK_OK(k->adamw(&p));
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t e = first + i;
        const ts_philox draw = ts_philox_draw(p.seed, TS_RNG_ROUND, (uint64_t)p.step, (uint32_t)(e / 8));
        const uint32_t word = draw.word[e % 8 / 2], half = e % 2 ? word >> 16 : word & 0xffff;
        uint32_t bits;
        memcpy(&bits, &w[i], sizeof bits);
        wrong += operand[i] != (isnan(w[i]) ? (bits >> 16 | 0x40) : (bits + half) >> 16);
        wrong += bits % 65536 == 0 && operand[i] != bits >> 16;  // what bf16 holds stays
    }
    CHECK(wrong == 0);
}

static void rounding_cases(const ts_kernels *k) {
    for (int c = 0; c < COUNT_COUNT; c++) {
        const int64_t n = COUNTS[c], firsts[] = {0, 3, ((int64_t)1 << 35) - n};
        float *w = test_random(TS_F32, n, 1);
        for (int64_t i = 0; i < n; i += 5) {
            w[i] = i % 2 ? NAN : ts_bf16_to_f32(ts_f32_to_bf16(w[i]));
        }
        for (int f = 0; f < 3; f++) {
            rounding_check(k, n, firsts[f], w, test_zeros((size_t)n * sizeof(uint16_t)));
        }
        test_free_blocks();
    }
    enum { N = 1 << 16 };
    float *w = test_zeros(N * sizeof *w);
    uint16_t *operand = test_zeros(N * sizeof *operand);
    double mean = 0;
    for (int i = 0; i < N; i++) {
        w[i] = 1.001f;  // between 1 and 1 + 2^-7; to nearest it is 1
    }
    rounding_check(k, N, 40, w, operand);
    for (int i = 0; i < N; i++) {
        mean += (double)ts_bf16_to_f32(operand[i]) / N;
    }
    CHECK_NEAR(mean, 1.001, 5 * 0x1p-7 * 0.334 / 256);  // five deviations of the mean
    CHECK_FAILS(
        k->adamw(&(ts_adamw){
            .count = 1, .step = 1, .operand = operand, .rounding = TS_ROUND_STOCHASTIC, .first = (int64_t)1 << 35}),
        TS_EINTERNAL, "2^35");
}

static void adamw_cases(const ts_kernels *k) {
    for (int c = 0; c < COUNT_COUNT; c++) {
        adamw_check(k, COUNTS[c], c % 2);
        test_free_blocks();
    }
    enum { W, M, V, G };
    const float number[] = {1, 1e-38f, 1e-38f, 0};
    float *x = test_copy(number, sizeof number);
    const ts_adamw p = {.count = 1,
                        .step = 100,
                        .lr = 0,
                        .beta1 = 0.1f,
                        .beta2 = 0.1f,
                        .eps = 1e-8f,
                        .grad_scale = 1,
                        .weight = &x[W],
                        .m = &x[M],
                        .v = &x[V],
                        .grad = &x[G]};
    CHECK_OK(k->adamw(&p));
    CHECK(x[M] == 0 && x[V] == 0 && x[W] == 1);  // no denormal moments are left behind
    volatile float tiny = 1e-38f;
    CHECK(tiny * 0.1f > 0);  // and the caller's arithmetic is as it was
}

// ---- tables and patches

static void embedding_cases(const ts_kernels *k) {
    enum { VOCAB = 11, N = 300, WIDTH = 70 };
    float *table = test_random(TS_F32, VOCAB * WIDTH, 1), *y = test_zeros(N * WIDTH * sizeof *y);
    float *d_y = test_random(TS_F32, N * WIDTH, 1), *d_table = test_random(TS_F32, VOCAB * WIDTH, 1);
    int32_t *id = test_zeros(N * sizeof *id);
    double *want = test_zeros(N * WIDTH * sizeof *want), *want_d = test_doubles(d_table, TS_F32, VOCAB * WIDTH);
    for (int i = 0; i < N; i++) {
        id[i] = (int32_t)(i * i % VOCAB);
        for (int c = 0; c < WIDTH; c++) {
            want[i * WIDTH + c] = (double)table[id[i] * WIDTH + c];
            want_d[id[i] * WIDTH + c] += (double)d_y[i * WIDTH + c];
        }
    }
    CHECK_OK(k->embedding_forward(table, id, y, N, WIDTH));
    CHECK_OK(k->embedding_backward(d_y, id, d_table, N, WIDTH));
    CHECK(test_close("embedding", y, TS_F32, want, N * WIDTH, 0, 0));
    CHECK(test_close("embedding d_table", d_table, TS_F32, want_d, VOCAB * WIDTH, 2e-5, 1e-5));
}

static void sinusoid_cases(const ts_kernels *k) {
    enum { ROWS = 5, HALF = 33 };
    const float times[ROWS] = {0, 1, 0.25f, 999.5f, 1000};
    const float *t = test_copy(times, sizeof times);
    float *y = test_zeros(ROWS * 2 * HALF * sizeof *y);
    double want[ROWS * 2 * HALF];
    for (int row = 0; row < ROWS; row++) {
        for (int i = 0; i < HALF; i++) {
            const double angle = (double)t[row] * exp(-log(10000) * i / HALF);
            want[row * 2 * HALF + i] = cos(angle);
            want[row * 2 * HALF + HALF + i] = sin(angle);
        }
    }
    CHECK_OK(k->sinusoid(t, y, ROWS, HALF));
    CHECK(test_close("sinusoid", y, TS_F32, want, ROWS * 2 * HALF, 6e-8, 6e-8));
}

static void patch_check(const ts_kernels *k, ts_patchify p) {
    const int64_t n = p.batch * p.frames * p.height * p.width * p.channels;
    const int64_t volume = p.patch_t * p.patch_h * p.patch_w, features = volume * p.channels;
    p.video = test_random(TS_F32, n, 1);
    p.tokens = test_zeros((size_t)n * ts_dtype_bytes(p.dtype_tokens));
    CHECK_OK(k->patchify(&p));
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t c = i % p.channels, w = i / p.channels % p.width, h = i / p.channels / p.width % p.height;
        const int64_t bt = i / p.channels / p.width / p.height, t = bt % p.frames, b = bt / p.frames;
        const int64_t token = ((b * (p.frames / p.patch_t) + t / p.patch_t) * (p.height / p.patch_h) + h / p.patch_h) *
                                  (p.width / p.patch_w) +
                              w / p.patch_w;
        const int64_t place = (t % p.patch_t * p.patch_h + h % p.patch_h) * p.patch_w + w % p.patch_w;
        const int64_t feature = p.channels_first ? c * volume + place : place * p.channels + c;
        const float want = p.dtype_tokens == TS_BF16 ? ts_bf16_to_f32(ts_f32_to_bf16(p.video[i])) : p.video[i];
        wrong += test_get(p.tokens, p.dtype_tokens, token * features + feature) != (double)want;
        p.video[i] = want;
    }
    CHECK(wrong == 0);
    const float *video = p.video;
    p.video = test_zeros((size_t)n * sizeof *p.video);
    CHECK_OK(k->unpatchify(&p));
    CHECK(memcmp(video, p.video, (size_t)n * sizeof *video) == 0);
}

static void patch_cases(const ts_kernels *k) {
    for (int variant = 0; variant < 4; variant++) {
        ts_patchify p = {.channels_first = variant & 1, .dtype_tokens = variant & 2 ? TS_BF16 : TS_F32};
        p.batch = p.frames = p.height = p.width = p.channels = p.patch_t = p.patch_h = p.patch_w = 1;
        patch_check(k, p);
        p.batch = 2, p.frames = 6, p.height = 4, p.width = 10, p.channels = 3;
        p.patch_t = 3, p.patch_h = 2, p.patch_w = 5;
        patch_check(k, p);
        p.patch_w = 4;
        CHECK_FAILS(k->patchify(&p), TS_EINTERNAL, "whole patches");
        test_free_blocks();
    }
}

static void noise_cases(const ts_kernels *k) {
    enum { N = 10000 };
    float *whole = test_zeros(N * sizeof *whole), *part = test_zeros(N * sizeof *part);
    ts_rng_normal_fill(whole, N, 7, TS_RNG_TEST, 9, 0);
    CHECK_OK(k->noise(part, N - 13, 7, TS_RNG_TEST, 9, 13));
    CHECK(memcmp(whole + 13, part, (N - 13) * sizeof *part) == 0);
}

static void choice_cases(void) {
    const ts_kernels *k;
    CHECK_FAILS(ts_kernels_cpu(&k, "sse9"), TS_EUSAGE, "unknown");
    CHECK_OK(ts_kernels_cpu(&k, NULL));
    CHECK(strcmp(k->name, "cpu") == 0);
}

int main(void) {
    choice_cases();
    test_close_can_fail();
    test_levels("avx512bf16", activation_cases);
    test_levels("avx512bf16", softmax_cases);
    test_levels("avx512bf16", vector_cases);
    test_levels("avx512bf16", mse_cases);
    test_levels("avx512bf16", adamw_cases);
    test_levels("avx512bf16", rounding_cases);
    test_levels("generic", copy_rows_cases);
    test_levels("generic", embedding_cases);
    test_levels("generic", sinusoid_cases);
    test_levels("generic", patch_cases);
    test_levels("generic", noise_cases);
    return ts_test_end();
}
