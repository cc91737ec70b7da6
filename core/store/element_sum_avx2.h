// SPDX-License-Identifier: Apache-2.0
// Inside the element sum: what its plain and its vector form share.
#ifndef TS_STORE_ELEMENT_SUM_AVX2_H
#define TS_STORE_ELEMENT_SUM_AVX2_H

#include <stdint.h>

#define TS_GOLDEN UINT64_C(0x9e3779b97f4a7c15)

static inline uint64_t ts_element_mix(uint32_t element, uint64_t key) {
    const uint64_t product = (uint64_t)((uint32_t)key ^ element) * ((key >> 32) | 1);
    return product ^ (product >> 32);
}

enum { TS_ELEMENT_SUM_STRIDE = 16 };

// n is a multiple of the stride; the key is that of the first element.
uint64_t ts_element_sum_avx2(const uint32_t *element, int64_t n, uint64_t key);

#endif
