// SPDX-License-Identifier: Apache-2.0
// bf16 matrix products on AMX tiles.
//
// A tile is 16 rows of 64 bytes. TDPBF16PS multiplies a 16x32 tile of A by a 32x16 tile of B, whose rows hold pairs
// (k, k+1) side by side, into 16x16 floats. A micro-block of C is 32x32: four accumulating tiles, two of A and two of
// B, so each load feeds two multiplications.
//
//   packed B   [panel of 32 columns][step of 32 k][2 tiles]   1 KiB tiles, zeros beyond n and k
//   packed A   [block of 32 rows]   [step of 32 k][2 tiles]   likewise; A as it lies in memory serves when it is whole
//
// All threads pack, then share out the micro-blocks. k is cut into blocks whose size depends on k alone, and each is
// summed in order, so the bits do not depend on the thread count. Results leave through a 4 KiB buffer in which bias,
// accumulation, GELU and rounding are applied while the next micro-block multiplies.
#include "core/kernels/cpu/gemm_amx.h"

#include <immintrin.h>
#include <omp.h>

#include "core/base/status.h"
#include "core/kernels/cpu/cpu.h"
#include "core/kernels/cpu/vector.h"

enum {
    EDGE = 32,              // of a micro-block, and k of one step
    TILE = 1024,            // bytes
    STEP = 2 * TILE,        // bytes of packed A or B for one micro-block and one step
    K_BLOCK = 2048,         // most k summed in one pass: a row block and a group of panels stay in the L2 cache
    GROUP_BYTES = 1 << 20,  // of packed B that row blocks pass over before going on
};

typedef struct pass {
    const ts_gemm *g;
    int64_t k_begin, k_count, steps;  // this pass sums k_begin .. k_begin + k_count
    bool first, last;
    int64_t row_blocks, panels, group;  // group: panels in a group
    char *packed_a, *packed_b;
    float *partial;  // [m, partial_row]: sums between passes
    int64_t partial_row;
} pass;

static inline int64_t min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static inline int64_t divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// ---- packing -------------------------------------------------------------------------------------------------------

// Transposes a 16x16 matrix of 32-bit words.
TS_INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 4) {
        const __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]), b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        const __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]), d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // t[4 i + j] holds column 4 q + j of rows 4 i .. 4 i + 3 in its 128-bit lane q.
    for (int j = 0; j < 4; j++) {
        const __m512i a = _mm512_shuffle_i32x4(t[j], t[4 + j], 0x88), b = _mm512_shuffle_i32x4(t[j], t[4 + j], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0xdd);
        r[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        r[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        r[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        r[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

TS_INLINE __mmask32 first_lanes(int64_t count) {
    return count >= 32 ? 0xffffffffu : count <= 0 ? 0 : (1u << count) - 1;
}

// 32 elements from `from`, those beyond `count` zero.
TS_INLINE __m512i load_row(const uint16_t *from, int64_t count) {
    return count >= 32 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(first_lanes(count), from);
}

// A tile of 16 rows as they lie: row r is 32 elements at from + r * stride.
TS_INLINE void load_tile(__m512i r[16], const uint16_t *from, int64_t stride, int64_t rows, int64_t columns) {
    for (int i = 0; i < 16; i++) {
        r[i] = i < rows ? load_row(from + i * stride, columns) : _mm512_setzero_si512();
    }
}

TS_INLINE void store_tile(char *to, const __m512i r[16]) {
    for (int i = 0; i < 16; i++) {
        _mm512_store_si512(to + i * 64, r[i]);
    }
}

// `from` holds k rows of 32 outer elements. Both tiles of the step as pairs: row p of tile t holds, for its 16 outer
// elements, k = 2p and 2p + 1. Unpacking works within 128-bit lanes, hence the permutation before.
TS_INLINE void load_pairs(__m512i tile[2][16], const uint16_t *from, int64_t stride, int64_t k, int64_t outer) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), zero = _mm512_setzero_si512();
    for (int p = 0; p < 16; p++) {
        const __m512i even = 2 * p < k ? load_row(from + 2 * p * stride, outer) : zero;
        const __m512i odd = 2 * p + 1 < k ? load_row(from + (2 * p + 1) * stride, outer) : zero;
        const __m512i a = _mm512_permutexvar_epi64(order, even), b = _mm512_permutexvar_epi64(order, odd);
        tile[0][p] = _mm512_unpacklo_epi16(a, b);
        tile[1][p] = _mm512_unpackhi_epi16(a, b);
    }
}

// One step of one panel or row block of an operand. `outer_first`: element (outer, k) is at from[outer * ld + k], else
// at from[k * ld + outer]. `pairs`: the layout of B, else that of A. The four cases are two copies and two transposes.
TS_INLINE void pack_step(char *to, const uint16_t *from, int64_t ld, bool outer_first, bool pairs, int64_t outer,
                         int64_t k) {
    __m512i tile[2][16];
    if (outer_first) {
        load_tile(tile[0], from, ld, outer, k);
        load_tile(tile[1], from + 16 * ld, ld, outer - 16, k);
    } else {
        load_pairs(tile, from, ld, k, outer);
    }
    for (int t = 0; t < 2; t++) {
        if (outer_first == pairs) {
            transpose(tile[t]);
        }
        store_tile(to + t * TILE, tile[t]);
    }
}

// All steps of panel or block `index` of an operand with `extent` outer elements.
static void pack(char *to, const uint16_t *matrix, int64_t ld, bool outer_first, bool pairs, int64_t extent,
                 int64_t index, const pass *p) {
    const int64_t outer = min(EDGE, extent - index * EDGE);
    for (int64_t step = 0; step < p->steps; step++) {
        const int64_t begin = p->k_begin + step * EDGE, k = min(EDGE, p->k_begin + p->k_count - begin);
        const uint16_t *from = matrix + (outer_first ? index * EDGE * ld + begin : begin * ld + index * EDGE);
        char *step_to = to + (index * p->steps + step) * STEP;
        if (outer == EDGE && k == EDGE) {
            pack_step(step_to, from, ld, outer_first, pairs, EDGE, EDGE);
        } else {
            pack_step(step_to, from, ld, outer_first, pairs, outer, k);
        }
    }
}

// Tiles may read A as it lies when its rows hold whole steps of k and there are 32 of them.
TS_INLINE bool reads_a_directly(const pass *p, int64_t block) {
    return !p->g->transpose_a && p->k_count % EDGE == 0 && (block + 1) * EDGE <= p->g->m;
}

static void pack_operands(const pass *p) {
    const ts_gemm *g = p->g;
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < p->panels; panel++) {
        pack(p->packed_b, g->b, g->ldb, g->transpose_b, true, g->n, panel, p);
    }
#pragma omp for schedule(static)
    for (int64_t block = 0; block < p->row_blocks; block++) {
        if (!reads_a_directly(p, block)) {
            pack(p->packed_a, g->a, g->lda, !g->transpose_a, false, g->m, block, p);
        }
    }
}

// ---- multiplication ------------------------------------------------------------------------------------------------

// Tiles 0 to 3 accumulate the micro-block, 4 and 5 are A, 6 and 7 are B.
static void configure_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        config.row_bytes[tile] = 64;
        config.rows[tile] = 16;
    }
    _tile_loadconfig(&config);
}

// out [32, 32] = the sum of all steps
static void multiply(float *out, const char *a, int64_t a_second, int64_t a_stride, int64_t a_step, const char *b,
                     int64_t steps) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < steps; step++) {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a, a_stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + a_second, a_stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        a += a_step;
        b += STEP;
    }
    _tile_stored(0, out, EDGE * sizeof *out);
    _tile_stored(1, out + 16, EDGE * sizeof *out);
    _tile_stored(2, out + 16 * EDGE, EDGE * sizeof *out);
    _tile_stored(3, out + 16 * EDGE + 16, EDGE * sizeof *out);
}

// ---- results -------------------------------------------------------------------------------------------------------

TS_INLINE __m512 load_result(const float *from, __mmask16 lanes) {
    return _mm512_maskz_loadu_ps(lanes, from);
}

TS_INLINE void store_result(void *c, ts_dtype dtype, int64_t at, __mmask16 lanes, __m512 v) {
    if (dtype == TS_BF16) {
        _mm256_mask_storeu_epi16((uint16_t *)c + at, lanes, (__m256i)_mm512_cvtneps_pbh(v));
    } else {
        _mm512_mask_storeu_ps((float *)c + at, lanes, v);
    }
}

// 16 results of one row, starting at column `column`.
TS_INLINE void finish_vector(const pass *p, const float *sums, int64_t row, int64_t column, __mmask16 lanes) {
    const ts_gemm *g = p->g;
    const int64_t at = row * g->ldc + column, partial_at = row * p->partial_row + column;
    __m512 v = _mm512_load_ps(sums);
    if (!p->first) {
        v = _mm512_add_ps(v, load_result(p->partial + partial_at, lanes));
    } else if (g->accumulate) {
        v = _mm512_add_ps(v, load_result((const float *)g->c + at, lanes));
    }
    if (!p->last) {
        _mm512_mask_storeu_ps(p->partial + partial_at, lanes, v);
        return;
    }
    if (g->bias) {
        v = _mm512_add_ps(v, load_result(g->bias + column, lanes));
    }
    if (g->before_gelu) {
        store_result(g->before_gelu, g->dtype_c, at, lanes, v);
    }
    store_result(g->c, g->dtype_c, at, lanes, g->gelu ? (__m512)vec_gelu((vec)v) : v);
}

static void finish_block(const pass *p, const float *sums, int64_t block, int64_t panel) {
    const int64_t rows = min(EDGE, p->g->m - block * EDGE), columns = p->g->n - panel * EDGE;
    const __mmask32 lanes = first_lanes(columns);
    for (int64_t i = 0; i < rows; i++) {
        finish_vector(p, sums + i * EDGE, block * EDGE + i, panel * EDGE, (__mmask16)lanes);
        finish_vector(p, sums + i * EDGE + 16, block * EDGE + i, panel * EDGE + 16, (__mmask16)(lanes >> 16));
    }
}

static void compute_block(const pass *p, int64_t block, int64_t panel) {
    _Alignas(64) float sums[EDGE * EDGE];
    const char *b = p->packed_b + panel * p->steps * STEP;
    if (reads_a_directly(p, block)) {
        const int64_t stride = p->g->lda * (int64_t)sizeof(uint16_t);
        const char *a = (const char *)((const uint16_t *)p->g->a + block * EDGE * p->g->lda + p->k_begin);
        multiply(sums, a, 16 * stride, stride, 64, b, p->steps);
    } else {
        multiply(sums, p->packed_a + block * p->steps * STEP, TILE, 64, STEP, b, p->steps);
    }
    finish_block(p, sums, block, panel);
}

// Micro-blocks in the order group of panels, row block, panel; each thread takes a stretch of them.
static void compute(const pass *p) {
    const int64_t total = p->row_blocks * p->panels, threads = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t begin = total * me / threads, end = total * (me + 1) / threads;
    const int64_t per_group = p->row_blocks * p->group;
    for (int64_t i = begin; i < end; i++) {
        const int64_t group = i / per_group, within = i % per_group;
        const int64_t panels = min(p->group, p->panels - group * p->group);
        compute_block(p, within / panels, group * p->group + within % panels);
    }
}

static void run_pass(const pass *p) {
    const double work = (double)p->g->m * (double)p->g->n * (double)p->g->k;
#pragma omp parallel if (work > 1e6)
    {
        pack_operands(p);
        configure_tiles();
        compute(p);
        _tile_release();
    }
}

int ts_amx_gemm(const ts_gemm *g) {
    const int64_t passes = divide_up(g->k, K_BLOCK), k_block = divide_up(divide_up(g->k, passes), EDGE) * EDGE;
    pass p = {.g = g, .row_blocks = divide_up(g->m, EDGE), .panels = divide_up(g->n, EDGE)};
    const int64_t step_bytes = k_block / EDGE * STEP;
    p.group = GROUP_BYTES / step_bytes;
    p.packed_b = ts_cpu_scratch(TS_SCRATCH_OPERAND, (size_t)((p.panels + p.row_blocks) * step_bytes));
    if (!p.packed_b) {
        return TS_ERESOURCE;
    }
    p.packed_a = p.packed_b + p.panels * step_bytes;
    p.partial = g->c;
    p.partial_row = g->ldc;
    if (passes > 1 && g->dtype_c == TS_BF16) {
        p.partial_row = g->n;
        p.partial = ts_cpu_scratch(TS_SCRATCH_RESULT, (size_t)(g->m * g->n) * sizeof *p.partial);
        if (!p.partial) {
            return TS_ERESOURCE;
        }
    }
    for (p.k_begin = 0; p.k_begin < g->k; p.k_begin += k_block) {
        p.k_count = min(k_block, g->k - p.k_begin);
        p.steps = divide_up(p.k_count, EDGE);
        p.first = p.k_begin == 0;
        p.last = p.k_begin + p.k_count == g->k;
        run_pass(&p);
    }
    return 0;
}
