// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// Philox against the published vectors; the normals against libm, their moments, and their invariance to slicing.
#include "core/base/rng.h"

#include <stdbool.h>

#include "core/base/clock.h"
#include "core/base/rng_math.h"
#include "tests/ts_test.h"

// key = {seed low, seed high}, counter = {lane, purpose, index low, index high}.
static void check_vector(const uint32_t c[4], const uint32_t k[2], const uint32_t expected[4]) {
    const ts_philox draw = ts_philox_draw((uint64_t)k[1] << 32 | k[0], c[1], (uint64_t)c[3] << 32 | c[2], c[0]);
    CHECK(memcmp(draw.word, expected, sizeof draw.word) == 0);
}

static void test_known_answers(void) {
    check_vector((uint32_t[]){0, 0, 0, 0}, (uint32_t[]){0, 0},
                 (uint32_t[]){0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    check_vector((uint32_t[]){~0u, ~0u, ~0u, ~0u}, (uint32_t[]){~0u, ~0u},
                 (uint32_t[]){0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    check_vector((uint32_t[]){0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, (uint32_t[]){0xa4093822, 0x299f31d0},
                 (uint32_t[]){0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

static void test_functions_against_libm(void) {
    double worst_log = 0, worst_sine = 0;
    for (int i = 1; i <= 200000; i++) {
        const float x = (float)i * 5e-6f, angle = ((float)i * 1e-5f - 1) * 0.785398f;
        const double exact = log((double)x);
        if (exact != 0) {
            worst_log = fmax(worst_log, fabs((double)ts_rng_log(x) / exact - 1));
        }
        float sine, cosine;
        ts_rng_sin_cos(angle, &sine, &cosine);
        worst_sine = fmax(worst_sine, fabs((double)sine - sin((double)angle)));
        worst_sine = fmax(worst_sine, fabs((double)cosine - cos((double)angle)));
    }
    CHECK(worst_log < 1e-6);
    CHECK(worst_sine < 2e-7);
    CHECK_NEAR(ts_rng_log(0x1p-31f), -31 * 0.6931471805599453, 2e-6);
    CHECK(ts_rng_log(1.0f) == 0);
}

static void test_box_muller_extremes(void) {
    float x, y;
    ts_rng_box_muller(0, 0, &x, &y);  // the smallest u, the middle of the first quarter
    CHECK_NEAR(x, sqrt(62 * 0.6931471805599453), 1e-5);
    CHECK_NEAR(y, 0, 1e-6);
    ts_rng_box_muller(~0u, 0x12345678u, &x, &y);  // u rounds to 1
    CHECK(x == 0 && y == 0);
    ts_rng_box_muller(0, 1u << 30, &x, &y);  // a quarter turn on
    CHECK_NEAR(x, 0, 1e-6);
    CHECK(y > 6.5f);
    ts_rng_box_muller(0, 2u << 30, &x, &y);
    CHECK(x < -6.5f);
    ts_rng_box_muller(0, 3u << 30, &x, &y);
    CHECK(y < -6.5f);
}

// The formula in double precision: radius sqrt(-2 log u), angle in quarter turns q + t/2 with t in [-1, 1).
static void test_box_muller_against_libm(void) {
    for (uint32_t lane = 0; lane < 10000; lane++) {
        const ts_philox draw = ts_philox_draw(11, TS_RNG_TEST, 0, lane);
        const double u = (double)(draw.word[0] >> 1 | 1) * 0x1p-31, radius = sqrt(-2 * log(u));
        const double turn = (double)(int32_t)(draw.word[1] << 2) * 0x1p-32, quarter = (double)(draw.word[1] >> 30);
        const double angle = (quarter + turn) * 1.5707963267948966;
        CHECK_NEAR(ts_rng_normal(11, TS_RNG_TEST, 0, 4 * lane), radius * cos(angle), 2e-6);
        CHECK_NEAR(ts_rng_normal(11, TS_RNG_TEST, 0, 4 * lane + 1), radius * sin(angle), 2e-6);
    }
}

enum { N = 1 << 20 };
static float numbers[N], again[N];

static void test_normal_moments(void) {
    ts_rng_normal_fill(numbers, N, 7, TS_RNG_TEST, 3, 0);
    double sum = 0, square = 0, cube = 0, fourth = 0, neighbour = 0, pair = 0;
    int beyond = 0;
    for (int i = 0; i < N; i++) {
        const double x = (double)numbers[i];
        sum += x;
        square += x * x;
        cube += x * x * x;
        fourth += x * x * x * x;
        neighbour += i ? x * (double)numbers[i - 1] : 0;
        pair += i ? x * x * (double)numbers[i - 1] * (double)numbers[i - 1] : 0;
        beyond += fabs(x) > 3;
    }
    CHECK_NEAR(sum / N, 0, 4e-3);
    CHECK_NEAR(square / N, 1, 6e-3);
    CHECK_NEAR(cube / N, 0, 1.6e-2);
    CHECK_NEAR(fourth / N, 3, 4e-2);
    CHECK_NEAR(neighbour / N, 0, 4e-3);
    CHECK_NEAR(pair / N, 1, 1.2e-2);
    CHECK_NEAR((double)beyond / N, 0.0026998, 2e-4);
}

static void test_slices(void) {
    const int64_t firsts[] = {0, 1, 2, 3, 5, 63, 64, 65, 1000}, counts[] = {0, 1, 2, 3, 4, 63, 64, 65, 129, 1000};
    for (size_t f = 0; f < sizeof firsts / sizeof firsts[0]; f++) {
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            again[counts[c]] = 123;
            ts_rng_normal_fill(again, counts[c], 7, TS_RNG_TEST, 3, firsts[f]);
            CHECK(memcmp(again, numbers + firsts[f], (size_t)counts[c] * sizeof *again) == 0);
            CHECK(again[counts[c]] == 123);
        }
    }
    CHECK(ts_rng_normal(7, TS_RNG_TEST, 3, 17) == numbers[17]);
    // The far end of a stream, where lanes use all 32 bits.
    ts_rng_normal_fill(again, 5, 7, TS_RNG_TEST, 3, ((int64_t)1 << 34) - 5);
    CHECK(isfinite(again[4]));
    ts_rng_normal_fill(again, 8, 7, TS_RNG_TEST, 4, 0);
    CHECK(memcmp(again, numbers, 8 * sizeof *again) != 0);
}

// The reproducibility contract: these bits must never change.
static void test_frozen_bits(void) {
    static const uint32_t frozen[] = {0xbf46ff60, 0x3fa10576, 0xbdd4d012, 0xbeef0c64,
                                      0xbea14042, 0x3f3ec9e5, 0x3ff4dc09, 0x3f3615cb};
    ts_rng_normal_fill(again, 8, 42, TS_RNG_NOISE, 5, 0);
    uint32_t bits[8];
    memcpy(bits, again, sizeof bits);
    for (int i = 0; i < 8; i++) {
        if (bits[i] != frozen[i]) {
            fprintf(stderr, "normal %d has bits %08x, not %08x\n", i, bits[i], frozen[i]);
        }
        CHECK(bits[i] == frozen[i]);
    }
}

static void test_uniform_and_below(void) {
    double sum = 0;
    int histogram[10] = {0};
    for (uint32_t i = 0; i < 100000; i++) {
        const float u = ts_rng_uniform(1, TS_RNG_TEST, 2, i);
        CHECK(u >= 0 && u < 1);
        sum += (double)u;
        histogram[ts_rng_below(1, TS_RNG_TEST, 3, i, 10)]++;
    }
    CHECK_NEAR(sum / 100000, 0.5, 4e-3);
    for (int i = 0; i < 10; i++) {
        CHECK(abs(histogram[i] - 10000) < 400);
    }
    CHECK(ts_rng_below(1, TS_RNG_TEST, 3, 0, 1) == 0);
}

static void test_permutation(void) {
    enum { COUNT = 1000 };
    int64_t order[COUNT], other[COUNT];
    bool seen[COUNT] = {false};
    ts_rng_permutation(order, COUNT, 9, TS_RNG_SHUFFLE, 0);
    int64_t fixed = 0;
    for (int i = 0; i < COUNT; i++) {
        CHECK(order[i] >= 0 && order[i] < COUNT && !seen[order[i]]);
        seen[order[i]] = true;
        fixed += order[i] == i;
    }
    CHECK(fixed < 10);
    ts_rng_permutation(other, COUNT, 9, TS_RNG_SHUFFLE, 1);
    CHECK(memcmp(order, other, sizeof order) != 0);
    ts_rng_permutation(other, COUNT, 9, TS_RNG_SHUFFLE, 0);
    CHECK(memcmp(order, other, sizeof order) == 0);
    ts_rng_permutation(other, 0, 9, TS_RNG_SHUFFLE, 0);
}

static void print_speed(void) {
    double best = 1e9;
    for (int i = 0; i < 10; i++) {
        const double start = ts_clock_seconds();
        ts_rng_normal_fill(numbers, N, 7, TS_RNG_TEST, 3, 0);
        best = fmin(best, ts_clock_seconds() - start);
    }
    printf("%.0f million normals a second\n", N / best * 1e-6);
}

int main(void) {
    test_known_answers();
    test_functions_against_libm();
    test_box_muller_extremes();
    test_box_muller_against_libm();
    test_normal_moments();
    test_slices();
    test_frozen_bits();
    test_uniform_and_below();
    test_permutation();
    print_speed();
    return ts_test_end();
}
