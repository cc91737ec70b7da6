// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the random numbers: pointwise bodies for C and CUDA.
//
// Only operations that IEEE 754 rounds exactly are used (integer, conversion, *, +, /, sqrt), in a fixed order and
// never fused, so the bits are equal on every processor and compiler. Files that include this must be compiled with
// -ffp-contract=off (the project's default); under nvcc the __f*_rn forms are never contracted.
#ifndef TS_BASE_RNG_MATH_H
#define TS_BASE_RNG_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDA_ARCH__)
#define TS_RNG_MUL(a, b)    __fmul_rn((a), (b))
#define TS_RNG_ADD(a, b)    __fadd_rn((a), (b))
#define TS_RNG_DIV(a, b)    __fdiv_rn((a), (b))
#define TS_RNG_SQRT(a)      __fsqrt_rn(a)
#define TS_RNG_FLOAT(i)     __int2float_rn(i)
#define TS_RNG_FROM_BITS(i) __int_as_float(i)
#define TS_RNG_BITS(f)      __float_as_int(f)
#else
#define TS_RNG_MUL(a, b)    ((a) * (b))
#define TS_RNG_ADD(a, b)    ((a) + (b))
#define TS_RNG_DIV(a, b)    ((a) / (b))
#define TS_RNG_SQRT(a)      sqrtf(a)
#define TS_RNG_FLOAT(i)     ((float)(i))
#define TS_RNG_FROM_BITS(i) ts_rng_from_bits(i)
#define TS_RNG_BITS(f)      ts_rng_bits(f)
#endif
#if defined(__CUDACC__)
#define TS_RNG_FN static __host__ __device__ __forceinline__
#else
#define TS_RNG_FN static inline __attribute__((always_inline))
#endif

TS_RNG_FN float ts_rng_from_bits(int32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
TS_RNG_FN int32_t ts_rng_bits(float f) {
    int32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

// One of the ten rounds of Philox4x32, on c[0..3] with the round's key.
TS_RNG_FN void ts_philox_round(uint32_t *c0, uint32_t *c1, uint32_t *c2, uint32_t *c3, uint32_t key0, uint32_t key1) {
    const uint64_t a = (uint64_t)0xD2511F53u * *c0, b = (uint64_t)0xCD9E8D57u * *c2;
    const uint32_t next0 = (uint32_t)(b >> 32) ^ *c1 ^ key0, next2 = (uint32_t)(a >> 32) ^ *c3 ^ key1;
    *c0 = next0;
    *c1 = (uint32_t)b;
    *c2 = next2;
    *c3 = (uint32_t)a;
}
enum { TS_PHILOX_ROUNDS = 10 };
#define TS_PHILOX_WEYL0 0x9E3779B9u  // the keys advance by the golden ratio ...
#define TS_PHILOX_WEYL1 0xBB67AE85u  // ... and by the square root of 3, less 1

// Draw `lane` of the stream (seed, purpose, index): see rng.h.
TS_RNG_FN void ts_philox_words(uint64_t seed, uint32_t purpose, uint64_t index, uint32_t lane, uint32_t word[4]) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    word[0] = lane;
    word[1] = purpose;
    word[2] = (uint32_t)index;
    word[3] = (uint32_t)(index >> 32);
    for (int round = 0; round < TS_PHILOX_ROUNDS; round++) {
        ts_philox_round(&word[0], &word[1], &word[2], &word[3], key0, key1);
        key0 += TS_PHILOX_WEYL0;
        key1 += TS_PHILOX_WEYL1;
    }
}

// bf16 of x, rounded up with the probability of what is cut off where `random` is 16 random bits. NaN stays NaN, and
// what is beyond the largest number becomes infinite.
TS_RNG_FN uint16_t ts_bf16_stochastic(float x, uint32_t random) {
    const uint32_t bits = (uint32_t)TS_RNG_BITS(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    return (uint16_t)((bits + random) >> 16);
}

// Horner step: sum * z + coefficient.
#define TS_RNG_STEP(sum, z, coefficient) TS_RNG_ADD(TS_RNG_MUL((sum), (z)), (coefficient))

// log(x) for normal x > 0. x = m 2^e with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh(s) with s = (m - 1) / (m + 1),
// and |s| < 0.172 lets five terms of the series reach single precision.
TS_RNG_FN float ts_rng_log(float x) {
    const int32_t sqrt_half = 0x3f3504f3;
    const int32_t bits = TS_RNG_BITS(x), e = (bits - sqrt_half) >> 23;
    const float m = TS_RNG_FROM_BITS(bits - (int32_t)((uint32_t)e << 23));
    const float s = TS_RNG_DIV(TS_RNG_ADD(m, -1.0f), TS_RNG_ADD(m, 1.0f)), z = TS_RNG_MUL(s, s);
    float sum = 2.0f / 9;
    sum = TS_RNG_STEP(sum, z, 2.0f / 7);
    sum = TS_RNG_STEP(sum, z, 2.0f / 5);
    sum = TS_RNG_STEP(sum, z, 2.0f / 3);
    sum = TS_RNG_STEP(sum, z, 2.0f);
    return TS_RNG_ADD(TS_RNG_MUL(TS_RNG_FLOAT(e), 0.693147181f), TS_RNG_MUL(s, sum));
}

// Sine and cosine of x in [-pi/4, pi/4], by their series.
TS_RNG_FN void ts_rng_sin_cos(float x, float *sine, float *cosine) {
    const float z = TS_RNG_MUL(x, x);
    float s = 1.0f / 362880, c = 1.0f / 40320;
    s = TS_RNG_STEP(s, z, -1.0f / 5040);
    c = TS_RNG_STEP(c, z, -1.0f / 720);
    s = TS_RNG_STEP(s, z, 1.0f / 120);
    c = TS_RNG_STEP(c, z, 1.0f / 24);
    s = TS_RNG_STEP(s, z, -1.0f / 6);
    c = TS_RNG_STEP(c, z, -0.5f);
    s = TS_RNG_STEP(s, z, 1.0f);
    c = TS_RNG_STEP(c, z, 1.0f);
    *sine = TS_RNG_MUL(x, s);
    *cosine = c;
}

// Two independent standard normals from two random words (Box and Muller). The radius takes 31 bits of `a`, so that
// |normal| reaches 6.5; the angle takes all of `b`: two bits for the quarter turn, the rest within [-pi/4, pi/4).
TS_RNG_FN void ts_rng_box_muller(uint32_t a, uint32_t b, float *first, float *second) {
    const float u = TS_RNG_MUL(TS_RNG_FLOAT((int32_t)(a >> 1 | 1)), 0x1p-31f);  // (0, 1]
    const float radius = TS_RNG_SQRT(TS_RNG_MUL(-2.0f, ts_rng_log(u)));
    float sine, cosine;
    ts_rng_sin_cos(TS_RNG_MUL(TS_RNG_FLOAT((int32_t)(b << 2)), 0.785398163f * 0x1p-31f), &sine, &cosine);
    const uint32_t quarter = b >> 30;
    const float x = quarter & 1 ? sine : cosine, y = quarter & 1 ? cosine : sine;
    // The quarter's signs, put straight into the sign bit: minus for x in quarters 1 and 2, for y in 2 and 3.
    const uint32_t minus_x = (quarter + 1) << 30 & 0x80000000u, minus_y = b & 0x80000000u;
    *first = TS_RNG_MUL(radius, TS_RNG_FROM_BITS((int32_t)((uint32_t)TS_RNG_BITS(x) ^ minus_x)));
    *second = TS_RNG_MUL(radius, TS_RNG_FROM_BITS((int32_t)((uint32_t)TS_RNG_BITS(y) ^ minus_y)));
}

#endif
