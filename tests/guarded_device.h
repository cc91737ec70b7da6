// SPDX-License-Identifier: Apache-2.0
// A device whose memory the host cannot touch: pages without access outside the device's own calls. Its work is done
// when a call returns, memory that nobody wrote holds NaN. Kernels for it: tests/guarded_kernels.h.
#ifndef TS_TEST_GUARDED_DEVICE_H
#define TS_TEST_GUARDED_DEVICE_H

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

static void *guarded_allocate(size_t bytes);

static void guarded_release(void *memory) {
    for (int i = 0; memory && i < GUARDED_BLOCKS; i++) {
        if (guarded_block[i].first == memory) {
            ts_device_forget(memory);
            munmap(memory, guarded_block[i].bytes);
            guarded_block[i].first = NULL;
        }
    }
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
    guarded_access(to, bytes, PROT_READ | PROT_WRITE);
    guarded_access(from, bytes, PROT_READ | PROT_WRITE);
    if (bytes) {
        memcpy(to, from, bytes);
    }
    guarded_access(to, bytes, PROT_NONE);
    guarded_access(from, bytes, PROT_NONE);
    return TS_OK;
}

static int guarded_zero(void *to, size_t bytes) {
    guarded_access(to, bytes, PROT_READ | PROT_WRITE);
    memset(to, 0, bytes);
    guarded_access(to, bytes, PROT_NONE);
    return TS_OK;
}

static int guarded_finish(void) {
    return TS_OK;
}

static void guarded_spoil(void *memory, size_t bytes) {
    guarded_access(memory, bytes, PROT_READ | PROT_WRITE);
    memset(memory, 0xff, bytes);
    guarded_access(memory, bytes, PROT_NONE);
}

static const ts_device guarded_device = {
    .name = "guarded",
    .allocate = guarded_allocate,
    .release = guarded_release,
    .allocate_host = ts_aligned_alloc,
    .release_host = free,
    .upload = guarded_move,
    .upload_held = guarded_move,
    .download = guarded_move,
    .fetch = guarded_move,
    .copy = guarded_move,
    .zero = guarded_zero,
    .finish = guarded_finish,
    .spoil = guarded_spoil,
};

static void *guarded_allocate(size_t bytes) {
    for (int i = 0; i < GUARDED_BLOCKS; i++) {
        if (!guarded_block[i].first) {
            const size_t whole = (bytes / GUARDED_PAGE + 1) * GUARDED_PAGE;
            void *memory = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (memory == MAP_FAILED || ts_device_note(&guarded_device, memory, whole)) {
                return NULL;
            }
            guarded_block[i].first = memory;
            guarded_block[i].bytes = whole;
            guarded_spoil(memory, bytes);
            return memory;
        }
    }
    return NULL;
}

#endif
