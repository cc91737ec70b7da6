// SPDX-License-Identifier: Apache-2.0
// bf16 attention on AMX tiles: a block is 2 x 2 tiles of sums, 2 of A and 2 of B, all eight registers.
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

// The tile file is configured for the length of a parallel region and released after it: other users of AMX (oneDNN)
// load their own configuration.
static void load_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("" ::"r"(&config) : "memory");  // the intrinsic tells the compiler of 8 of the 64 bytes it reads
    _tile_loadconfig(&config);
}

static void release_tiles(void) {
    _tile_release();
}

static inline void multiply_block(const uint16_t *a, int64_t a_step, const uint16_t *b, int64_t b_step, int64_t depth,
                                  float *c, bool accumulate) {
    enum { C_ROW = 32 * 4, AB_ROW = 64, TILE = 512, C_BELOW = 16 * 32, C_RIGHT = 16 };
    __asm__ volatile("" ::: "memory");  // tile loads do not tell the compiler what they read
    if (accumulate) {
        _tile_loadd(0, c, C_ROW);
        _tile_loadd(1, c + C_RIGHT, C_ROW);
        _tile_loadd(2, c + C_BELOW, C_ROW);
        _tile_loadd(3, c + C_BELOW + C_RIGHT, C_ROW);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; k++, a += a_step, b += b_step) {
        _tile_loadd(6, b, AB_ROW);
        _tile_loadd(4, a, AB_ROW);
        _tile_loadd(7, b + TILE, AB_ROW);
        _tile_loadd(5, a + TILE, AB_ROW);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, C_ROW);
    _tile_stored(1, c + C_RIGHT, C_ROW);
    _tile_stored(2, c + C_BELOW, C_ROW);
    _tile_stored(3, c + C_BELOW + C_RIGHT, C_ROW);
}

#define ENGINE_NAME  ts_attention_amx
#define THREAD_BEGIN load_tiles
#define THREAD_END   release_tiles
#include "core/kernels/cpu/attention_bf16.h"
