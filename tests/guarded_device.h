// SPDX-License-Identifier: Apache-2.0
// A device whose memory the host cannot touch: pages without access outside the device's own calls. Its work is done
// when a call returns, memory that nobody wrote holds NaN. A thread may fetch beside the others' calls, as a
// checkpoint's does. Kernels for it: tests/guarded_kernels.h.
#ifndef TS_TEST_GUARDED_DEVICE_H
#define TS_TEST_GUARDED_DEVICE_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/base/arena.h"
#include "core/base/device.h"
#include "core/base/status.h"

enum { GUARDED_PAGE = 4096, GUARDED_BLOCKS = 256 };

static struct {
    char *first;
    size_t bytes;  // whole pages
} guarded_block[GUARDED_BLOCKS];

static pthread_mutex_t guarded_lock = PTHREAD_MUTEX_INITIALIZER;  // held while pages are open

static void *guarded_allocate(size_t bytes);

static void guarded_release(void *memory) {
    pthread_mutex_lock(&guarded_lock);
    for (int i = 0; memory && i < GUARDED_BLOCKS; i++) {
        if (guarded_block[i].first == memory) {
            ts_device_forget(memory);
            munmap(memory, guarded_block[i].bytes);
            guarded_block[i].first = NULL;
        }
    }
    pthread_mutex_unlock(&guarded_lock);
}

// Opens or closes the pages of bytes in a block; the host's own are left alone.
static void guarded_access(const void *place, size_t bytes, int access) {
    for (int i = 0; i < GUARDED_BLOCKS; i++) {
        const uintptr_t first = (uintptr_t)guarded_block[i].first, at = (uintptr_t)place;
        if (first && at >= first && at < first + guarded_block[i].bytes) {
            const size_t page = (at - first) / GUARDED_PAGE, end = (at - first + bytes) / GUARDED_PAGE + 1;
            mprotect(guarded_block[i].first + page * GUARDED_PAGE, (end - page) * GUARDED_PAGE, access);
        }
    }
}

static int guarded_move(void *to, const void *from, size_t bytes) {
    pthread_mutex_lock(&guarded_lock);
    guarded_access(to, bytes, PROT_READ | PROT_WRITE);
    guarded_access(from, bytes, PROT_READ | PROT_WRITE);
    if (bytes) {
        memcpy(to, from, bytes);
    }
    guarded_access(to, bytes, PROT_NONE);
    guarded_access(from, bytes, PROT_NONE);
    pthread_mutex_unlock(&guarded_lock);
    return TS_OK;
}

static void guarded_fill(void *to, int byte, size_t bytes) {
    pthread_mutex_lock(&guarded_lock);
    guarded_access(to, bytes, PROT_READ | PROT_WRITE);
    memset(to, byte, bytes);
    guarded_access(to, bytes, PROT_NONE);
    pthread_mutex_unlock(&guarded_lock);
}

static int guarded_zero(void *to, size_t bytes) {
    guarded_fill(to, 0, bytes);
    return TS_OK;
}

static int guarded_waits;  // calls in which the host waited for the device

static int guarded_finish(void) {
    guarded_waits++;
    return TS_OK;
}

static int guarded_download(void *to, const void *from, size_t bytes) {
    guarded_waits++;
    return guarded_move(to, from, bytes);
}

static int guarded_memory(size_t *free_bytes, size_t *total) {
    *free_bytes = *total = (size_t)1 << 30;
    return TS_OK;
}

static void guarded_spoil(void *memory, size_t bytes) {
    guarded_fill(memory, 0xff, bytes);
}

static const ts_device guarded_device = {
    .name = "guarded",
    .allocate = guarded_allocate,
    .release = guarded_release,
    .allocate_host = ts_aligned_alloc,
    .release_host = free,
    .upload = guarded_move,
    .upload_held = guarded_move,
    .download = guarded_download,
    .fetch = guarded_move,
    .copy = guarded_move,
    .zero = guarded_zero,
    .finish = guarded_finish,
    .memory = guarded_memory,
    .spoil = guarded_spoil,
};

static void *guarded_allocate(size_t bytes) {
    const size_t whole = (bytes / GUARDED_PAGE + 1) * GUARDED_PAGE;
    void *memory = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || ts_device_note(&guarded_device, memory, whole)) {
        return NULL;
    }
    int i = 0;
    pthread_mutex_lock(&guarded_lock);
    while (i < GUARDED_BLOCKS && guarded_block[i].first) {
        i++;
    }
    if (i < GUARDED_BLOCKS) {
        guarded_block[i].first = memory;
        guarded_block[i].bytes = whole;
    }
    pthread_mutex_unlock(&guarded_lock);
    if (i < GUARDED_BLOCKS) {
        guarded_spoil(memory, bytes);
    }
    return i < GUARDED_BLOCKS ? memory : NULL;
}

#endif
