// SPDX-License-Identifier: Apache-2.0
// Working memory of kernels: grows to the largest call and stays, so a step allocates nothing after the first. It is
// freed when its thread ends, which an OpenMP runtime lets happen whenever a smaller team is asked for.
#include <pthread.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/kernels/cpu/cpu.h"

typedef struct piece {
    void *data;
    size_t bytes;
} piece;

static _Thread_local piece scratch[TS_SCRATCH_COUNT];

static pthread_key_t at_thread_end;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void release(void *pieces) {
    for (int use = 0; use < TS_SCRATCH_COUNT; use++) {
        free(((piece *)pieces)[use].data);
        ((piece *)pieces)[use] = (piece){0};
    }
}

static void make_key(void) {
    pthread_key_create(&at_thread_end, release);
}

void *ts_cpu_scratch(ts_scratch use, size_t bytes) {
    if (scratch[use].bytes < bytes || !scratch[use].data) {
        const size_t grown = bytes + bytes / 4 + 4096;
        pthread_once(&once, make_key);
        pthread_setspecific(at_thread_end, scratch);
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
