// SPDX-License-Identifier: Apache-2.0
// Arenas: memory with one lifetime, freed at once.
//
// An arena grows by chunks and keeps them on reset, merged into one. One whose need was counted before reserves it, and
// never grows. All blocks are 64-byte aligned (a cache line, and what AVX-512 and AMX loads like best); on a device
// other than the host, 256-byte aligned (what its tensor cores and copy engines ask for at most).
#ifndef TS_BASE_ARENA_H
#define TS_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/device.h"

typedef struct ts_arena ts_arena;
typedef struct ts_arena_mark {
    size_t chunk, used;
} ts_arena_mark;

// `chunk_bytes` is the smallest chunk asked of the system. In `counting` mode nothing is allocated: ts_arena_alloc
// returns NULL-based offsets that must not be dereferenced, and ts_arena_peak tells what a real run would need.
int ts_arena_open(ts_arena **out, const char *name, size_t chunk_bytes, bool counting);
// The same of a device's memory; ts_arena_strdup and _printf are for the host's.
int ts_arena_open_on(ts_arena **out, const ts_device *device, const char *name, size_t chunk_bytes, bool counting);
void ts_arena_close(ts_arena **arena);

// Uninitialised / zeroed bytes, valid until reset or release below the mark; NULL when memory is exhausted
// (the error text is set). zalloc zeroes nothing in counting mode.
void *ts_arena_alloc(ts_arena *arena, size_t bytes);
void *ts_arena_zalloc(ts_arena *arena, size_t bytes);
char *ts_arena_strdup(ts_arena *arena, const char *text);
char *ts_arena_printf(ts_arena *arena, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Makes an empty arena ready for blocks of `bytes` in all (as ts_arena_peak counts them), in one chunk.
int ts_arena_reserve(ts_arena *arena, size_t bytes);
ts_arena_mark ts_arena_save(const ts_arena *arena);
void ts_arena_release(ts_arena *arena, ts_arena_mark mark);  // frees everything allocated since the mark
void ts_arena_reset(ts_arena *arena);                        // frees everything; merges chunks

bool ts_arena_counting(const ts_arena *arena);
size_t ts_arena_used(const ts_arena *arena);
size_t ts_arena_peak(const ts_arena *arena);
uint64_t ts_arena_system_calls(const ts_arena *arena);  // chunks asked of the system so far

// Checked heap allocation for objects that outlive arenas; NULL and error text when exhausted.
void *ts_malloc(size_t bytes);
void *ts_calloc(size_t count, size_t bytes);
// 64-byte aligned; free with free(). Uses transparent huge pages from 4 MiB on.
void *ts_aligned_alloc(size_t bytes);

#endif
