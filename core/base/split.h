// SPDX-License-Identifier: Apache-2.0
// The one way in which things are dealt out: tokens, heads, widths, samples, parameters, frames.
#ifndef TS_BASE_SPLIT_H
#define TS_BASE_SPLIT_H

#include <stdint.h>

typedef struct ts_part {
    int64_t first, count;
} ts_part;

static inline int64_t ts_split_first(int64_t n, int parts, int index) {
    return (n * index + parts - 1) / parts;
}

// Part `index` of n things in `parts` consecutive parts whose sizes differ by at most one. The first part has no fewer
// than any other; with n < parts some are empty.
static inline ts_part ts_split(int64_t n, int parts, int index) {
    const int64_t first = ts_split_first(n, parts, index);
    return (ts_part){first, ts_split_first(n, parts, index + 1) - first};
}

#endif
