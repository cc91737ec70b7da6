// SPDX-License-Identifier: Apache-2.0
// A sum that tells a tensor's numbers, whoever adds up which of them: each 32-bit element is mixed with its index in
// the whole tensor, and the mixtures are added modulo 2^64. Parts may be summed by any ranks in any order.
//
//   k = golden (index + 1)    product = (low k xor element) (high k or 1)    mixture = product xor product >> 32
//
// For each index the mixture is another one for every other element, so one changed element, by whatever bits, always
// changes the sum; of other damage 1 in 2^32 at most would pass.
#ifndef TS_STORE_ELEMENT_SUM_H
#define TS_STORE_ELEMENT_SUM_H

#include <stdbool.h>
#include <stdint.h>

// Of elements [first, first + n) of a tensor, at `data`, f32 [n].
uint64_t ts_element_sum(const float *data, int64_t n, int64_t first);

// Index of the first element that is NaN or infinite, or -1.
int64_t ts_find_not_finite(const float *data, int64_t n);

#endif
