// SPDX-License-Identifier: Apache-2.0
#include "core/store/element_sum.h"

#include "core/store/element_sum_avx2.h"

static uint64_t sum_plain(const uint32_t *element, int64_t n, uint64_t key) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < n; i++, key += TS_GOLDEN) {
        sum += ts_element_mix(element[i], key);
    }
    return sum;
}

uint64_t ts_element_sum(const float *data, int64_t n, int64_t first) {
    const uint32_t *element = (const uint32_t *)(const void *)data;
    const uint64_t key = TS_GOLDEN * ((uint64_t)first + 1);
    int64_t done = 0;
    uint64_t sum = 0;
    if (__builtin_cpu_supports("avx2")) {
        done = n - n % TS_ELEMENT_SUM_STRIDE;
        sum = ts_element_sum_avx2(element, done, key);
    }
    return sum + sum_plain(element + done, n - done, key + TS_GOLDEN * (uint64_t)done);
}

enum { EXPONENT = 0x7f800000 };

static bool all_finite(const uint32_t *element, int64_t n) {
    uint32_t wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        wrong |= (element[i] & EXPONENT) == EXPONENT;
    }
    return !wrong;
}

int64_t ts_find_not_finite(const float *data, int64_t n) {
    const uint32_t *element = (const uint32_t *)(const void *)data;
    if (all_finite(element, n)) {
        return -1;
    }
    int64_t i = 0;
    while ((element[i] & EXPONENT) != EXPONENT) {
        i++;
    }
    return i;
}
