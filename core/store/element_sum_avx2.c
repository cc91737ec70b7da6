// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "core/store/element_sum_avx2.h"

enum { VECTORS = TS_ELEMENT_SUM_STRIDE / 4, AHEAD = 4096 };

uint64_t ts_element_sum_avx2(const uint32_t *element, int64_t n, uint64_t key) {
    const __m256i one = _mm256_set1_epi64x(1);
    const __m256i step = _mm256_set1_epi64x((int64_t)(TS_GOLDEN * TS_ELEMENT_SUM_STRIDE));
    __m256i keys[VECTORS], sums[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        const uint64_t k = key + TS_GOLDEN * (uint64_t)(4 * v);
        keys[v] = _mm256_set_epi64x((int64_t)(k + 3 * TS_GOLDEN), (int64_t)(k + 2 * TS_GOLDEN),
                                    (int64_t)(k + TS_GOLDEN), (int64_t)k);
        sums[v] = _mm256_setzero_si256();
    }
    for (int64_t i = 0; i < n; i += TS_ELEMENT_SUM_STRIDE) {
        _mm_prefetch((const char *)(element + i) + AHEAD, _MM_HINT_T0);
        for (int v = 0; v < VECTORS; v++) {
            const __m128i packed = _mm_loadu_si128((const __m128i *)(const void *)(element + i + 4 * v));
            const __m256i low = _mm256_xor_si256(keys[v], _mm256_cvtepu32_epi64(packed));
            const __m256i high = _mm256_or_si256(_mm256_srli_epi64(keys[v], 32), one);
            const __m256i product = _mm256_mul_epu32(low, high);
            sums[v] = _mm256_add_epi64(sums[v], _mm256_xor_si256(product, _mm256_srli_epi64(product, 32)));
            keys[v] = _mm256_add_epi64(keys[v], step);
        }
    }
    uint64_t sum = 0;
    for (int v = 0; v < VECTORS; v++) {
        uint64_t lane[4];
        _mm256_storeu_si256((__m256i *)(void *)lane, sums[v]);
        sum += lane[0] + lane[1] + lane[2] + lane[3];
    }
    return sum;
}
