// SPDX-License-Identifier: Apache-2.0
// Working memory of kernels: grows to the largest call and stays, so a step allocates nothing after the first.
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/kernels/cpu/cpu.h"

static _Thread_local struct {
    void *data;
    size_t bytes;
} scratch[TS_SCRATCH_COUNT];

void *ts_cpu_scratch(ts_scratch use, size_t bytes) {
    if (scratch[use].bytes < bytes || !scratch[use].data) {
        const size_t grown = bytes + bytes / 4 + 4096;
        free(scratch[use].data);
        scratch[use].bytes = 0;
        scratch[use].data = ts_aligned_alloc(grown);
        if (!scratch[use].data) {
            return NULL;
        }
        scratch[use].bytes = grown;
    }
    return scratch[use].data;
}
