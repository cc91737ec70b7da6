// SPDX-License-Identifier: Apache-2.0
#include "core/base/arena.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/base/status.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(from, bytes)   __asan_poison_memory_region((from), (bytes))
#define UNPOISON(from, bytes) __asan_unpoison_memory_region((from), (bytes))
#else
#define POISON(from, bytes)   ((void)(from), (void)(bytes))
#define UNPOISON(from, bytes) ((void)(from), (void)(bytes))
#endif

enum { ALIGNMENT = 64, DEVICE_ALIGNMENT = 256, HUGE_PAGE = 2 << 20, HUGE_FROM = 4 << 20 };

typedef struct chunk {
    char *base;  // NULL in counting mode, where one endless chunk holds only the count
    size_t bytes, used;
} chunk;

struct ts_arena {
    const char *name;  // borrowed
    const ts_device *device;
    size_t alignment, chunk_bytes;
    bool counting;
    chunk *chunks;  // [count]; blocks are taken from chunks[current], the ones after it are empty
    size_t count, current;
    size_t live, peak;  // bytes of blocks in use, and their maximum
    uint64_t system_calls;
};

static size_t round_up(size_t bytes, size_t to) {
    return (bytes + to - 1) / to * to;
}

int ts_arena_open(ts_arena **out, const char *name, size_t chunk_bytes, bool counting) {
    return ts_arena_open_on(out, &ts_device_host, name, chunk_bytes, counting);
}

int ts_arena_open_on(ts_arena **out, const ts_device *device, const char *name, size_t chunk_bytes, bool counting) {
    *out = NULL;
    ts_arena *arena = ts_calloc(1, sizeof *arena);
    if (!arena) {
        return TS_ERESOURCE;
    }
    const size_t alignment = device->is_host ? ALIGNMENT : DEVICE_ALIGNMENT;
    *arena = (ts_arena){.name = name,
                        .device = device,
                        .alignment = alignment,
                        .chunk_bytes = round_up(chunk_bytes, alignment),
                        .counting = counting};
    *out = arena;
    return TS_OK;
}

// Memory that nobody owns must not be read: the sanitizer tells on the host, an imitated device spoils it.
static void give_up(const ts_arena *arena, char *from, size_t bytes) {
    if (arena->device->is_host) {
        POISON(from, bytes);
    } else if (arena->device->spoil && bytes) {
        arena->device->spoil(from, bytes);
    }
}

static void free_chunks(ts_arena *arena) {
    for (size_t i = 0; i < arena->count; i++) {
        if (arena->chunks[i].base && arena->device->is_host) {
            UNPOISON(arena->chunks[i].base, arena->chunks[i].bytes);
        }
        arena->device->release(arena->chunks[i].base);
    }
    free(arena->chunks);
    arena->chunks = NULL;
    arena->count = arena->current = 0;
}

void ts_arena_close(ts_arena **arena) {
    if (*arena) {
        free_chunks(*arena);
        free(*arena);
        *arena = NULL;
    }
}

// A new last chunk of `wanted` bytes; false when memory is exhausted.
static bool add_chunk(ts_arena *arena, size_t wanted) {
    chunk *chunks = realloc(arena->chunks, (arena->count + 1) * sizeof *chunks);
    if (!chunks) {
        return false;
    }
    arena->chunks = chunks;
    char *base = NULL;
    if (!arena->counting) {
        base = arena->device->allocate(wanted);
        if (!base) {
            return false;
        }
        give_up(arena, base, wanted);
        arena->system_calls++;
    }
    // Offsets begin after one line in counting mode, so that no block is NULL.
    chunks[arena->count++] = (chunk){.base = base, .bytes = arena->counting ? SIZE_MAX : wanted};
    return true;
}

// How large a chunk should be for a block of `bytes`: a quarter of what is there already, so that many small blocks
// make few chunks.
static size_t chunk_for(const ts_arena *arena, size_t bytes) {
    size_t wanted = arena->live / 4;
    wanted = wanted > arena->chunk_bytes ? wanted : arena->chunk_bytes;
    return round_up(wanted > bytes ? wanted : bytes, arena->alignment);
}

void *ts_arena_alloc(ts_arena *arena, size_t bytes) {
    if (bytes > SIZE_MAX / 4) {
        (void)TS_FAIL(TS_ERESOURCE, "arena %s: a block of %zu bytes is beyond all memory", arena->name, bytes);
        return NULL;
    }
    const size_t need = round_up(bytes ? bytes : 1, arena->alignment);
    size_t at = arena->current;
    while (at < arena->count && arena->chunks[at].bytes - arena->chunks[at].used < need) {
        at++;
    }
    if (at == arena->count && !add_chunk(arena, chunk_for(arena, need))) {
        (void)TS_FAIL(TS_ERESOURCE,
                      "arena %s: out of memory at %zu MiB, asking for %zu MiB more; use a smaller batch "
                      "or model, or more ranks",
                      arena->name, arena->live >> 20, (need + (1u << 20) - 1) >> 20);
        return NULL;
    }
    chunk *from = &arena->chunks[at];
    const size_t offset = from->used;
    from->used += need;
    arena->current = at;
    arena->live += need;
    arena->peak = arena->live > arena->peak ? arena->live : arena->peak;
    if (arena->counting) {
        return (void *)(uintptr_t)(offset + arena->alignment);
    }
    if (arena->device->is_host) {
        UNPOISON(from->base + offset, bytes);
    }
    return from->base + offset;
}

void *ts_arena_zalloc(ts_arena *arena, size_t bytes) {
    void *block = ts_arena_alloc(arena, bytes);
    if (block && !arena->counting && arena->device->zero(block, bytes)) {
        return NULL;
    }
    return block;
}

char *ts_arena_strdup(ts_arena *arena, const char *text) {
    const size_t bytes = strlen(text) + 1;
    TS_ASSERT(arena->device->is_host);
    char *copy = ts_arena_alloc(arena, bytes);
    if (copy && !arena->counting) {
        memcpy(copy, text, bytes);
    }
    return copy;
}

char *ts_arena_printf(ts_arena *arena, const char *format, ...) {
    TS_ASSERT(arena->device->is_host);
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    TS_ASSERT(length >= 0);
    char *text = ts_arena_alloc(arena, (size_t)length + 1);
    if (text && !arena->counting) {
        va_start(arguments, format);
        vsnprintf(text, (size_t)length + 1, format, arguments);
        va_end(arguments);
    }
    return text;
}

ts_arena_mark ts_arena_save(const ts_arena *arena) {
    const bool empty = arena->count == 0;
    return (ts_arena_mark){.chunk = arena->current, .used = empty ? 0 : arena->chunks[arena->current].used};
}

static void cut_chunk(ts_arena *arena, size_t index, size_t used) {
    chunk *c = &arena->chunks[index];
    TS_ASSERT(used <= c->used);
    arena->live -= c->used - used;
    if (c->base) {
        give_up(arena, c->base + used, c->used - used);
    }
    c->used = used;
}

void ts_arena_release(ts_arena *arena, ts_arena_mark mark) {
    TS_ASSERT(mark.chunk <= arena->current);
    for (size_t i = arena->current; i > mark.chunk; i--) {
        cut_chunk(arena, i, 0);
    }
    if (arena->count) {
        cut_chunk(arena, mark.chunk, mark.used);
    }
    arena->current = mark.chunk;
}

void ts_arena_reset(ts_arena *arena) {
    ts_arena_release(arena, (ts_arena_mark){0, 0});
    if (arena->count > 1) {
        free_chunks(arena);
        // When even this fails, the next block reports it.
        (void)add_chunk(arena, arena->peak);
    }
}

int ts_arena_reserve(ts_arena *arena, size_t bytes) {
    TS_ASSERT(arena->live == 0);
    if (arena->counting || bytes == 0 || (arena->count == 1 && arena->chunks[0].bytes >= bytes)) {
        return TS_OK;
    }
    free_chunks(arena);
    if (!add_chunk(arena, round_up(bytes, arena->alignment))) {
        return TS_FAIL(TS_ERESOURCE, "arena %s: no %zu MiB to reserve; use a smaller batch or model, or more ranks",
                       arena->name, (bytes + (1u << 20) - 1) >> 20);
    }
    return TS_OK;
}

bool ts_arena_counting(const ts_arena *arena) {
    return arena->counting;
}

size_t ts_arena_used(const ts_arena *arena) {
    return arena->live;
}

size_t ts_arena_peak(const ts_arena *arena) {
    return arena->peak;
}

uint64_t ts_arena_system_calls(const ts_arena *arena) {
    return arena->system_calls;
}

// ---- heap

void *ts_malloc(size_t bytes) {
    void *block = malloc(bytes ? bytes : 1);
    if (!block) {
        (void)TS_FAIL(TS_ERESOURCE, "out of memory, asking for %zu bytes", bytes);
    }
    return block;
}

void *ts_calloc(size_t count, size_t bytes) {
    void *block = calloc(count ? count : 1, bytes ? bytes : 1);
    if (!block) {
        (void)TS_FAIL(TS_ERESOURCE, "out of memory, asking for %zu x %zu bytes", count, bytes);
    }
    return block;
}

void *ts_aligned_alloc(size_t bytes) {
    if (bytes <= SIZE_MAX / 2) {
        const bool huge = bytes >= HUGE_FROM;
        const size_t alignment = huge ? HUGE_PAGE : ALIGNMENT, padded = round_up(bytes ? bytes : 1, alignment);
        void *block = aligned_alloc(alignment, padded);
        if (block) {
            if (huge) {
                (void)madvise(block, padded, MADV_HUGEPAGE);  // advice only: refusal costs speed, not correctness
            }
            return block;
        }
    }
    (void)TS_FAIL(TS_ERESOURCE, "out of memory, asking for %zu bytes", bytes);
    return NULL;
}
