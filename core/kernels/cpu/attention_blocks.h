// SPDX-License-Identifier: Apache-2.0
// Blocks of 32 x 32 bf16, the unit of the bf16 attention engines, and their packing with AVX-512.
//
// A product C (+)= A B is cut into 32 x 32 blocks of C (f32, row-major). Along the depth A and B are sequences of
// blocks of 2 KiB each, in the layouts that AMX tiles and vdpbf16ps share:
//   left   A: [32 rows][32 of depth]
//   right  B: [2 halves][16 pairs of depth][16 columns][2]: the two depths of a pair lie side by side, and a half holds
//          16 of the 32 columns
// Rows behind the last and head_dim elements behind the last are zero.
#ifndef TS_KERNELS_CPU_ATTENTION_BLOCKS_H
#define TS_KERNELS_CPU_ATTENTION_BLOCKS_H

#include <immintrin.h>

#include "core/kernels/cpu/attention.h"

enum {
    EDGE = 32,            // rows and columns of a block
    BLOCK = EDGE * EDGE,  // elements
    HALF = BLOCK / 2,     // elements of one half
    LANES = 16,           // floats of a vector
};

// A head's rows as stored by the caller.
typedef struct rows {
    const uint16_t *data;
    int64_t stride, count, width;  // elements between rows; rows; elements of a row that belong to the head
} rows;

static inline int64_t edges(int64_t n) {
    return (n + EDGE - 1) / EDGE;
}

// The low `n` bits, all from 32 on.
static inline __mmask32 low_bits(int64_t n) {
    return n >= EDGE ? 0xffffffffu : (1u << n) - 1u;
}

// Elements [32 j, 32 j + 32) of rows [32 i, 32 i + 32), zeros outside.
static inline void load_block(__m512i line[EDGE], const rows *from, int64_t i, int64_t j) {
    const __mmask32 mask = low_bits(from->width - j * EDGE);
    const uint16_t *first = from->data + i * EDGE * from->stride + j * EDGE;
    const int64_t count = attention_min(EDGE, from->count - i * EDGE);
    for (int64_t r = 0; r < count; r++) {
        line[r] = _mm512_maskz_loadu_epi16(mask, first + r * from->stride);
    }
    for (int64_t r = count; r < EDGE; r++) {
        line[r] = _mm512_setzero_si512();
    }
}

// 16 x 16 transpose of 32-bit elements.
static inline void transpose_16(__m512i x[LANES]) {
    __m512i y[LANES];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 4; i++) {  // x[4 g + i] holds column 4 l + i of rows 4 g .. 4 g + 3 in its lane l
        y[i] = _mm512_shuffle_i32x4(x[i], x[4 + i], 0x88);
        y[4 + i] = _mm512_shuffle_i32x4(x[i], x[4 + i], 0xdd);
        y[8 + i] = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0x88);
        y[12 + i] = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[8 + i], 0x88);
        x[8 + i] = _mm512_shuffle_i32x4(y[i], y[8 + i], 0xdd);
        x[4 + i] = _mm512_shuffle_i32x4(y[4 + i], y[12 + i], 0x88);
        x[12 + i] = _mm512_shuffle_i32x4(y[4 + i], y[12 + i], 0xdd);
    }
}

// Element 2 j of the result is a[j], 2 j + 1 is b[j], for the 16 j of a half.
static inline __m512i interleave(__m512i a, __m512i b, int half) {
    static const uint16_t FIRST[32]
        __attribute__((aligned(64))) = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                        8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i index = _mm512_add_epi16(_mm512_load_si512(FIRST), _mm512_set1_epi16((short)(16 * half)));
    return _mm512_permutex2var_epi16(a, index, b);
}

// A left block: rows are rows.
static inline void pack_left(uint16_t *to, const rows *from, int64_t i, int64_t j) {
    __m512i line[EDGE];
    load_block(line, from, i, j);
    for (int r = 0; r < EDGE; r++) {
        _mm512_store_si512(to + r * EDGE, line[r]);
    }
}

// A right block whose depth runs over the rows: pairs of rows are interleaved.
static inline void pack_right(uint16_t *to, const rows *from, int64_t i, int64_t j) {
    __m512i line[EDGE];
    load_block(line, from, i, j);
    for (int half = 0; half < 2; half++) {
        for (int r = 0; r < LANES; r++) {
            _mm512_store_si512(to + half * HALF + r * EDGE, interleave(line[2 * r], line[2 * r + 1], half));
        }
    }
}

// A right block whose depth runs along the rows: pairs stay together and become columns.
static inline void pack_right_transposed(uint16_t *to, const rows *from, int64_t i, int64_t j) {
    __m512i line[EDGE];
    load_block(line, from, i, j);
    transpose_16(line);
    transpose_16(line + LANES);
    for (int r = 0; r < EDGE; r++) {
        _mm512_store_si512(to + r * EDGE, line[r]);
    }
}

// A left block whose depth runs over the rows.
static inline void pack_left_transposed(uint16_t *to, const rows *from, int64_t i, int64_t j) {
    __m512i line[EDGE], pairs[LANES];
    load_block(line, from, i, j);
    for (int half = 0; half < 2; half++) {
        for (int r = 0; r < LANES; r++) {
            pairs[r] = interleave(line[2 * r], line[2 * r + 1], half);
        }
        transpose_16(pairs);
        for (int r = 0; r < LANES; r++) {
            _mm512_store_si512(to + half * HALF + r * EDGE, pairs[r]);
        }
    }
}

// The rows of one (batch, head) of a bf16 tensor.
static inline rows rows_of(const ts_attention *p, const void *base, int64_t batch, int64_t head, int64_t batch_stride,
                           int64_t row_stride, int64_t count) {
    const uint16_t *data = (const uint16_t *)base + attention_offset(p, batch, head, batch_stride);
    return (rows){data, row_stride, count, p->head_dim};
}

static inline __m512i round_pair(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// Writes `count` results, at most 32, from element `at` on: bf16, or f32 when the call wants that.
static inline void store_results(const ts_attention *p, void *to, int64_t at, int64_t count, __m512 low, __m512 high) {
    const __mmask32 mask = low_bits(count);
    if (p->f32_results) {
        _mm512_mask_storeu_ps((float *)to + at, (__mmask16)mask, low);
        _mm512_mask_storeu_ps((float *)to + at + LANES, (__mmask16)(mask >> LANES), high);
    } else {
        _mm512_mask_storeu_epi16((uint16_t *)to + at, mask, round_pair(low, high));
    }
}

// 2^x, relative error 8e-5 (a thirtieth of a bf16 rounding), 0 far below and NaN for NaN.
static inline __m512 exp2_16(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
    __m512 e = _mm512_fmadd_ps(f, _mm512_set1_ps(0.07802452f), _mm512_set1_ps(0.22606723f));
    e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(0.69583344f));
    e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(0.99992526f));
    return _mm512_scalef_ps(e, x);
}

// ln x for normal x > 0: x = 2^n m with m in [0.75, 1.5), ln m = 2 artanh((m - 1) / (m + 1)).
static inline __m512 log_16(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
    const __m512 n = _mm512_getexp_ps(_mm512_div_ps(x, m));
    const __m512 z = _mm512_div_ps(_mm512_sub_ps(m, one), _mm512_add_ps(m, one)), z2 = _mm512_mul_ps(z, z);
    __m512 series = _mm512_fmadd_ps(z2, _mm512_set1_ps(2.0f / 9), _mm512_set1_ps(2.0f / 7));
    series = _mm512_fmadd_ps(series, z2, _mm512_set1_ps(2.0f / 5));
    series = _mm512_fmadd_ps(series, z2, _mm512_set1_ps(2.0f / 3));
    series = _mm512_fmadd_ps(series, z2, _mm512_set1_ps(2.0f));
    return _mm512_fmadd_ps(n, _mm512_set1_ps(0x1.62e43p-1f), _mm512_mul_ps(series, z));
}

#endif
