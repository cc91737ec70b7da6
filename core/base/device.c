// SPDX-License-Identifier: Apache-2.0
#include "core/base/device.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"

// ---- the host

static int host_move(void *to, const void *from, size_t bytes) {
    if (bytes) {
        memcpy(to, from, bytes);
    }
    return TS_OK;
}

static int host_zero(void *to, size_t bytes) {
    enum { CHUNK = 1 << 16 };
    const int64_t chunks = (int64_t)((bytes + CHUNK - 1) / CHUNK);
#pragma omp parallel for schedule(static) if (chunks > 1)
    for (int64_t i = 0; i < chunks; i++) {
        const size_t first = (size_t)i * CHUNK;
        memset((char *)to + first, 0, bytes - first < CHUNK ? bytes - first : CHUNK);
    }
    return TS_OK;
}

static int host_finish(void) {
    return TS_OK;
}

const ts_device ts_device_host = {
    .name = "cpu",
    .is_host = true,
    .allocate = ts_aligned_alloc,
    .release = free,
    .allocate_host = ts_aligned_alloc,
    .release_host = free,
    .upload = host_move,
    .upload_held = host_move,
    .download = host_move,
    .fetch = host_move,
    .copy = host_move,
    .zero = host_zero,
    .finish = host_finish,
};

// ---- whose memory it is

// Sorted by address. A program has few: arenas ask for large chunks.
typedef struct range {
    uintptr_t first, end;
    const ts_device *device;
} range;

static struct {
    pthread_mutex_t lock;
    range *range;
    size_t count, capacity;
} noted = {.lock = PTHREAD_MUTEX_INITIALIZER};

// Index of the first range that ends after `place`.
static size_t find(uintptr_t place) {
    size_t low = 0, high = noted.count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (noted.range[middle].end > place) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

const ts_device *ts_device_of(const void *place) {
    const uintptr_t at = (uintptr_t)place;
    pthread_mutex_lock(&noted.lock);
    const size_t i = find(at);
    const bool inside = i < noted.count && noted.range[i].first <= at;
    const ts_device *device = inside ? noted.range[i].device : &ts_device_host;
    pthread_mutex_unlock(&noted.lock);
    return device;
}

const void *ts_device_block(const void *place, size_t *bytes) {
    const uintptr_t at = (uintptr_t)place;
    pthread_mutex_lock(&noted.lock);
    const size_t i = find(at);
    const bool inside = i < noted.count && noted.range[i].first <= at;
    const range found = inside ? noted.range[i] : (range){0, 0, NULL};
    pthread_mutex_unlock(&noted.lock);
    *bytes = found.end - found.first;
    return (const void *)found.first;
}

static bool make_room(void) {
    if (noted.count < noted.capacity) {
        return true;
    }
    const size_t capacity = noted.capacity ? 2 * noted.capacity : 16;
    range *grown = realloc(noted.range, capacity * sizeof *grown);
    if (grown) {
        noted.range = grown;
        noted.capacity = capacity;
    }
    return grown != NULL;
}

int ts_device_note(const ts_device *device, const void *memory, size_t bytes) {
    const uintptr_t first = (uintptr_t)memory;
    pthread_mutex_lock(&noted.lock);
    const bool room = make_room();
    if (room) {
        const size_t i = find(first);
        memmove(noted.range + i + 1, noted.range + i, (noted.count++ - i) * sizeof *noted.range);
        noted.range[i] = (range){first, first + (bytes ? bytes : 1), device};
    }
    pthread_mutex_unlock(&noted.lock);
    return room ? TS_OK : TS_FAIL(TS_ERESOURCE, "out of memory for the list of a device's blocks");
}

void ts_device_forget(const void *memory) {
    const uintptr_t first = (uintptr_t)memory;
    pthread_mutex_lock(&noted.lock);
    const size_t i = find(first);
    if (i < noted.count && noted.range[i].first == first) {
        memmove(noted.range + i, noted.range + i + 1, (--noted.count - i) * sizeof *noted.range);
    }
    pthread_mutex_unlock(&noted.lock);
}
