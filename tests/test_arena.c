// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=30
#include "core/base/arena.h"

#include <stdint.h>

#include "tests/ts_test.h"

static void test_blocks(void) {
    ts_arena *arena = NULL;
    CHECK_OK(ts_arena_open(&arena, "test", 4096, false));
    CHECK(ts_arena_used(arena) == 0 && ts_arena_peak(arena) == 0 && !ts_arena_counting(arena));
    char *before = NULL;
    for (size_t bytes = 0; bytes < 300; bytes += 7) {
        char *block = ts_arena_alloc(arena, bytes);
        CHECK(block && (uintptr_t)block % 64 == 0 && block != before);
        memset(block, 0xaa, bytes);
        before = block;
    }
    char *zero = ts_arena_zalloc(arena, 100000);  // larger than a chunk
    int sum = 0;
    for (int i = 0; i < 100000; i++) {
        sum += zero[i];
    }
    CHECK(sum == 0);
    CHECK(strcmp(ts_arena_strdup(arena, "words"), "words") == 0);
    CHECK(strcmp(ts_arena_printf(arena, "%d-%s", 7, "x"), "7-x") == 0);
    ts_arena_close(&arena);
    CHECK(arena == NULL);
    ts_arena_close(&arena);
}

// What one step of training does: blocks, a nested scope, and everything freed.
static size_t step(ts_arena *arena) {
    for (int i = 0; i < 20; i++) {
        float *kept = ts_arena_alloc(arena, 1000 * sizeof *kept);
        const ts_arena_mark mark = ts_arena_save(arena);
        float *scratch = ts_arena_alloc(arena, 5000 * sizeof *scratch);
        CHECK(kept && scratch);
        if (!ts_arena_counting(arena)) {
            kept[999] = scratch[4999] = 1;
        }
        ts_arena_release(arena, mark);
    }
    const size_t used = ts_arena_used(arena);
    ts_arena_reset(arena);
    CHECK(ts_arena_used(arena) == 0);
    return used;
}

static void test_steps_and_counting(void) {
    ts_arena *real = NULL, *counting = NULL;
    CHECK_OK(ts_arena_open(&real, "real", 8192, false));
    CHECK_OK(ts_arena_open(&counting, "counting", 8192, true));
    CHECK(step(real) == 20 * 4032 && step(counting) == 20 * 4032);
    const uint64_t calls = ts_arena_system_calls(real);
    CHECK(calls > 1);
    for (int i = 0; i < 5; i++) {
        step(real);
    }
    CHECK(ts_arena_system_calls(real) == calls);
    CHECK(ts_arena_peak(real) == ts_arena_peak(counting));
    CHECK(ts_arena_peak(real) == 20 * 4032 + 20032);
    CHECK(ts_arena_counting(counting) && ts_arena_system_calls(counting) == 0);
    // More than any machine has can be counted.
    CHECK(ts_arena_alloc(counting, (size_t)1 << 50) != NULL);
    CHECK(ts_arena_zalloc(counting, (size_t)1 << 50) != NULL);
    CHECK(ts_arena_peak(counting) >= (size_t)2 << 50);
    ts_arena_close(&real);
    ts_arena_close(&counting);
}

static void test_marks_across_chunks(void) {
    ts_arena *arena = NULL;
    CHECK_OK(ts_arena_open(&arena, "marks", 1024, false));
    const ts_arena_mark empty = ts_arena_save(arena);
    char *first = ts_arena_alloc(arena, 64);
    memset(first, 7, 64);
    const ts_arena_mark mark = ts_arena_save(arena);
    for (int i = 0; i < 10; i++) {
        CHECK(ts_arena_alloc(arena, 1000) != NULL);
    }
    const uint64_t calls = ts_arena_system_calls(arena);
    ts_arena_release(arena, mark);
    CHECK(ts_arena_used(arena) == 64 && first[63] == 7);
    for (int i = 0; i < 10; i++) {
        CHECK(ts_arena_alloc(arena, 1000) != NULL);
    }
    CHECK(ts_arena_system_calls(arena) == calls);  // released chunks are used again
    ts_arena_release(arena, empty);
    CHECK(ts_arena_used(arena) == 0);
    ts_arena_close(&arena);
}

static void test_exhaustion(void) {
    ts_arena *arena = NULL;
    CHECK_OK(ts_arena_open(&arena, "small", 1024, false));
    CHECK(ts_arena_alloc(arena, SIZE_MAX) == NULL && strstr(ts_error_text(), "beyond all memory"));
    CHECK(ts_arena_alloc(arena, SIZE_MAX - 100) == NULL);
    CHECK(ts_aligned_alloc(SIZE_MAX - 3) == NULL);
#if !defined(__SANITIZE_ADDRESS__)
    CHECK(ts_arena_alloc(arena, (size_t)1 << 60) == NULL && strstr(ts_error_text(), "arena small: out of memory"));
    CHECK(ts_aligned_alloc((size_t)1 << 60) == NULL && strstr(ts_error_text(), "out of memory"));
#endif
    CHECK(ts_arena_alloc(arena, 10) != NULL);  // still usable
    ts_arena_close(&arena);
}

static void test_heap(void) {
    char *a = ts_malloc(0), *b = ts_calloc(10, 10), *c = ts_aligned_alloc(100), *d = ts_aligned_alloc((size_t)5 << 20);
    CHECK(a && b && c && d && b[99] == 0);
    CHECK((uintptr_t)c % 64 == 0 && (uintptr_t)d % (2 << 20) == 0);
    free(a);
    free(b);
    free(c);
    free(d);
}

int main(void) {
    test_blocks();
    test_steps_and_counting();
    test_marks_across_chunks();
    test_exhaustion();
    test_heap();
    return ts_test_end();
}
