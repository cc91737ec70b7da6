// SPDX-License-Identifier: Apache-2.0
// bf16 attention with AVX512-BF16: vdpbf16ps multiplies pairs of bf16 and adds both products to a float.
#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline void multiply_block(const uint16_t *a, int64_t a_step, const uint16_t *b, int64_t b_step, int64_t depth,
                                  float *c, bool accumulate) {
    enum { ROWS = 8, C_ROW = 32, PAIRS = 16, HALF_BLOCK = 512 };
    for (int first = 0; first < 32; first += ROWS, c += ROWS * C_ROW) {
        __m512 sum[ROWS][2];
        for (int r = 0; r < ROWS; r++) {
            sum[r][0] = accumulate ? _mm512_load_ps(c + r * C_ROW) : _mm512_setzero_ps();
            sum[r][1] = accumulate ? _mm512_load_ps(c + r * C_ROW + 16) : _mm512_setzero_ps();
        }
        for (int64_t k = 0; k < depth; k++) {
            const uint16_t *left = a + k * a_step + first * 32, *right = b + k * b_step;
            for (int pair = 0; pair < PAIRS; pair++) {
                const __m512bh right0 = (__m512bh)_mm512_load_si512(right + pair * 32);
                const __m512bh right1 = (__m512bh)_mm512_load_si512(right + HALF_BLOCK + pair * 32);
                for (int r = 0; r < ROWS; r++) {
                    int32_t both;
                    memcpy(&both, left + r * 32 + 2 * pair, sizeof both);
                    const __m512bh broadcast = (__m512bh)_mm512_set1_epi32(both);
                    sum[r][0] = _mm512_dpbf16_ps(sum[r][0], broadcast, right0);
                    sum[r][1] = _mm512_dpbf16_ps(sum[r][1], broadcast, right1);
                }
            }
        }
        for (int r = 0; r < ROWS; r++) {
            _mm512_store_ps(c + r * C_ROW, sum[r][0]);
            _mm512_store_ps(c + r * C_ROW + 16, sum[r][1]);
        }
    }
}

#define ENGINE_NAME  ts_attention_avx512bf16
#define THREAD_BEGIN NULL
#define THREAD_END   NULL
#include "core/kernels/cpu/attention_bf16.h"
