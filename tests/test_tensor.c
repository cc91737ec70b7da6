// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=30
#include "core/tensor/tensor.h"

#include "tests/ts_test.h"

static void test_shapes(void) {
    char text[64];
    CHECK(ts_shape_count(TS_SHAPE(2, 3, 4)) == 24 && ts_shape_count((ts_shape){.ndim = 0}) == 1);
    CHECK(ts_shape_count(TS_SHAPE(5, 0, INT64_MAX, INT64_MAX)) == 0);
    CHECK(ts_shape_count(TS_SHAPE(INT64_MAX, 3)) == INT64_MAX);
    CHECK(ts_shape_equal(TS_SHAPE(2, 3), TS_SHAPE(2, 3)) && !ts_shape_equal(TS_SHAPE(2, 3), TS_SHAPE(2, 3, 1)));
    CHECK(strcmp(ts_shape_text(TS_SHAPE(2, 16, 3), text, sizeof text), "[2, 16, 3]") == 0);
    CHECK(strcmp(ts_shape_text((ts_shape){.ndim = 0}, text, sizeof text), "[]") == 0);
    CHECK(strlen(ts_shape_text(TS_SHAPE(1234567, 1234567), text, 9)) == 8);
    CHECK(strcmp(ts_dtype_name(TS_BF16), "BF16") == 0 && ts_dtype_bytes(TS_F64) == 8 && ts_dtype_bytes(TS_BOOL) == 1);
}

static void test_new(void) {
    ts_arena *arena = NULL;
    CHECK_OK(ts_arena_open(&arena, "tensor", 1 << 16, false));
    const ts_tensor t = ts_tensor_new(arena, TS_F32, TS_SHAPE(4, 5));
    CHECK(t.data && ts_tensor_bytes(&t) == 80 && t.dtype == TS_F32);
    const ts_tensor huge = ts_tensor_new(arena, TS_F32, TS_SHAPE(INT64_MAX, INT64_MAX));
    CHECK(!huge.data && ts_tensor_bytes(&huge) == SIZE_MAX);
    ts_arena_close(&arena);
}

// Value of a half by the definition.
static double half_value(uint16_t h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023, sign = h >> 15 ? -1 : 1;
    if (exponent == 31) {
        return fraction ? (double)NAN : sign * (double)INFINITY;
    }
    return sign * (exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24));
}

static void test_all_halves(void) {
    int wrong = 0;
    for (int h = 0; h < 65536; h++) {
        const double expected = half_value((uint16_t)h), got = (double)ts_f16_to_f32((uint16_t)h);
        wrong += isnan(expected) ? !isnan(got) : got != expected || signbit(got) != signbit(expected);
    }
    CHECK(wrong == 0);
}

static void test_bf16(void) {
    CHECK(ts_f32_to_bf16(1.0f) == 0x3f80 && ts_bf16_to_f32(0x3f80) == 1.0f);
    CHECK(ts_f32_to_bf16(1.00390625f) == 0x3f80);    // a tie goes to even, down
    CHECK(ts_f32_to_bf16(1.01171875f) == 0x3f82);    // and up
    CHECK(ts_f32_to_bf16(1.00390637f) == 0x3f81);    // just above the tie
    CHECK(ts_f32_to_bf16(3.4028235e38f) == 0x7f80);  // overflows to infinity
    CHECK(isnan(ts_bf16_to_f32(ts_f32_to_bf16(NAN))));
    const uint32_t quiet_low = 0x7f800001;  // a NaN whose upper half alone is infinity
    float f;
    memcpy(&f, &quiet_low, sizeof f);
    CHECK(isnan(ts_bf16_to_f32(ts_f32_to_bf16(f))));
}

static void test_convert(void) {
    enum { N = 1300 };  // more than two blocks
    float f[N], back[N];
    double d[N];
    unsigned char bytes[2 * N + 1];
    uint16_t half[N];
    for (int i = 0; i < N; i++) {
        f[i] = (float)(i - 600) * 0.5f;
        half[i] = (uint16_t)(i * 20);
    }
    CHECK_OK(ts_convert(bytes + 1, TS_BF16, f, TS_F32, N));  // unaligned
    CHECK_OK(ts_convert(back, TS_F32, bytes + 1, TS_BF16, N));
    CHECK_OK(ts_convert(d, TS_F64, bytes + 1, TS_BF16, N));
    for (int i = 0; i < N; i++) {
        CHECK(back[i] == ts_bf16_to_f32(ts_f32_to_bf16(f[i])) && d[i] == (double)back[i]);
    }
    CHECK_OK(ts_convert(d, TS_F64, f, TS_F32, N));
    CHECK_OK(ts_convert(back, TS_F32, d, TS_F64, N));
    CHECK(memcmp(back, f, sizeof f) == 0);
    CHECK_OK(ts_convert(back, TS_F32, half, TS_F16, N));
    CHECK(back[7] == ts_f16_to_f32(140) && back[1299] == ts_f16_to_f32((uint16_t)(1299 * 20)));
    CHECK_OK(ts_convert(back, TS_F32, f, TS_F32, 0));
    CHECK_FAILS(ts_convert(half, TS_F16, f, TS_F32, N), TS_EINPUT, "cannot convert F32 to F16");
    CHECK_FAILS(ts_convert(back, TS_F32, d, TS_I64, N), TS_EINPUT, "cannot convert I64 to F32");
}

int main(void) {
    test_shapes();
    test_new();
    test_all_halves();
    test_bf16();
    test_convert();
    return ts_test_end();
}
