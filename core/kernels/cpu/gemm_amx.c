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

// ---- packing

// Arrays of vectors stay in registers only when every loop over them is unrolled.
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

// Transposes a 16x16 matrix of 32-bit words.
TS_INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    UNROLL for (int i = 0; i < 16; i += 4) {
        const __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]), b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        const __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]), d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // t[4 i + j] holds column 4 q + j of rows 4 i .. 4 i + 3 in its 128-bit lane q.
    UNROLL for (int j = 0; j < 4; j++) {
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
TS_INLINE void load_rows(__m512i r[16], const uint16_t *from, int64_t stride, int64_t rows, int64_t columns) {
    UNROLL for (int i = 0; i < 16; i++) {
        r[i] = i < rows ? load_row(from + i * stride, columns) : _mm512_setzero_si512();
    }
}

// `from` holds k rows of 16 outer elements: row p of the tile gets k = 2p and 2p + 1 of each, side by side.
TS_INLINE void load_pairs(__m512i r[16], const uint16_t *from, int64_t stride, int64_t k, int64_t outer) {
    const __mmask16 lanes = (__mmask16)first_lanes(outer);
    UNROLL for (int p = 0; p < 16; p++) {
        const __mmask16 even = 2 * p < k ? lanes : 0, odd = 2 * p + 1 < k ? lanes : 0;
        const uint16_t *row = from + 2 * p * stride;
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(even, row));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(odd, row + stride));
        r[p] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    }
}

// One tile of an operand. `outer_first`: element (outer, k) is at from[outer * ld + k], else at from[k * ld + outer].
// `pairs`: the layout of B, else that of A. The four cases are two copies and two transposes.
TS_INLINE void pack_tile(char *to, const uint16_t *from, int64_t ld, bool outer_first, bool pairs, int64_t outer,
                         int64_t k) {
    __m512i r[16];
    if (outer_first) {
        load_rows(r, from, ld, outer, k);
    } else {
        load_pairs(r, from, ld, k, outer);
    }
    if (outer_first == pairs) {
        transpose(r);
    }
    UNROLL for (int i = 0; i < 16; i++) {
        _mm512_store_si512(to + i * 64, r[i]);
    }
}

// The same, with everything constant that can be: four functions for whole tiles.
static void pack_tile_of(char *to, const uint16_t *from, int64_t ld, bool outer_first, bool pairs, int64_t outer,
                         int64_t k) {
    if (outer < 16 || k < EDGE) {
        pack_tile(to, from, ld, outer_first, pairs, outer, k);
    } else if (outer_first && pairs) {
        pack_tile(to, from, ld, true, true, 16, EDGE);
    } else if (outer_first) {
        pack_tile(to, from, ld, true, false, 16, EDGE);
    } else if (pairs) {
        pack_tile(to, from, ld, false, true, 16, EDGE);
    } else {
        pack_tile(to, from, ld, false, false, 16, EDGE);
    }
}

// One step of panel or row block `index` of an operand with `extent` outer elements.
static void pack_step(char *to, const uint16_t *matrix, int64_t ld, bool outer_first, bool pairs, int64_t extent,
                      int64_t index, int64_t step, const pass *p) {
    const int64_t k = p->k_begin + step * EDGE, k_count = min(EDGE, p->k_begin + p->k_count - k);
    for (int64_t half = 0; half < 2; half++) {
        const int64_t outer = index * EDGE + half * 16;
        const uint16_t *from = matrix + (outer_first ? outer * ld + k : k * ld + outer);
        pack_tile_of(to + (index * p->steps + step) * STEP + half * TILE, from, ld, outer_first, pairs, extent - outer,
                     k_count);
    }
}

// Tiles may read A as it lies when its rows hold whole steps of k and there are 32 of them.
TS_INLINE bool reads_a_directly(const pass *p, int64_t block) {
    return !p->g->transpose_a && p->k_count % EDGE == 0 && (block + 1) * EDGE <= p->g->m;
}

// Memory is read along its rows: threads share out panels (row blocks) when these are the rows, else steps of k.
static void pack_operands(const pass *p) {
    const ts_gemm *g = p->g;
    const bool b_outer_first = g->transpose_b, a_outer_first = !g->transpose_a;
    const int64_t b_outer = b_outer_first ? p->panels : p->steps, b_inner = b_outer_first ? p->steps : p->panels;
    const int64_t a_outer = a_outer_first ? p->row_blocks : p->steps,
                  a_inner = a_outer_first ? p->steps : p->row_blocks;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < b_outer; i++) {
        for (int64_t j = 0; j < b_inner; j++) {
            pack_step(p->packed_b, g->b, g->ldb, b_outer_first, true, g->n, b_outer_first ? i : j,
                      b_outer_first ? j : i, p);
        }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a_outer; i++) {
        for (int64_t j = 0; j < a_inner; j++) {
            if (!reads_a_directly(p, a_outer_first ? i : j)) {
                pack_step(p->packed_a, g->a, g->lda, a_outer_first, false, g->m, a_outer_first ? i : j,
                          a_outer_first ? j : i, p);
            }
        }
    }
}

// ---- results

// A row of a micro-block: 32 floats.
typedef struct line {
    __m512 low, high;
} line;

TS_INLINE line line_load(const float *from, __mmask32 lanes) {
    return (line){_mm512_maskz_loadu_ps((__mmask16)lanes, from),
                  _mm512_maskz_loadu_ps((__mmask16)(lanes >> 16), from + 16)};
}

TS_INLINE line line_add(line a, line b) {
    return (line){_mm512_add_ps(a.low, b.low), _mm512_add_ps(a.high, b.high)};
}

TS_INLINE void line_store(void *c, ts_dtype dtype, int64_t at, __mmask32 lanes, line v) {
    if (dtype == TS_BF16) {
        _mm512_mask_storeu_epi16((uint16_t *)c + at, lanes, (__m512i)_mm512_cvtne2ps_pbh(v.high, v.low));
    } else {
        _mm512_mask_storeu_ps((float *)c + at, (__mmask16)lanes, v.low);
        _mm512_mask_storeu_ps((float *)c + at + 16, (__mmask16)(lanes >> 16), v.high);
    }
}

TS_INLINE line line_gelu(line v, ts_dtype dtype) {
    return (line){(__m512)vec_gelu_of(dtype, (vec)v.low), (__m512)vec_gelu_of(dtype, (vec)v.high)};
}

// v as memory of that dtype would give it back.
TS_INLINE line line_round(line v, ts_dtype dtype) {
    if (dtype == TS_F32) {
        return v;
    }
    const __m512i bits = (__m512i)_mm512_cvtne2ps_pbh(v.high, v.low);
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(bits));
    const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(bits, 1));
    return (line){_mm512_castsi512_ps(_mm512_slli_epi32(low, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(high, 16))};
}

// A finished micro-block whose results are still in the buffer.
typedef struct pending {
    const float *sums;  // [32, 32]
    int64_t row, column, rows;
    __mmask32 lanes;
} pending;

TS_INLINE void finish_row(const pass *p, const pending *done, int64_t i) {
    const ts_gemm *g = p->g;
    const int64_t row = done->row + i, at = row * g->ldc + done->column;
    const int64_t partial_at = row * p->partial_row + done->column;
    line v = line_load(done->sums + i * EDGE, 0xffffffffu);
    if (!p->first) {
        v = line_add(v, line_load(p->partial + partial_at, done->lanes));
    } else if (g->accumulate) {
        v = line_add(v, line_load((const float *)g->c + at, done->lanes));
    }
    if (!p->last) {
        line_store(p->partial, TS_F32, partial_at, done->lanes, v);
        return;
    }
    if (g->bias) {
        v = line_add(v, line_load(g->bias + done->column, done->lanes));
    }
    if (g->before_gelu) {
        line_store(g->before_gelu, g->dtype_c, at, done->lanes, v);
    }
    // GELU of the rounded value: what is made later from before_gelu has the same bits.
    line_store(g->c, g->dtype_c, at, done->lanes, g->gelu ? line_gelu(line_round(v, g->dtype_c), g->dtype_c) : v);
}

// ---- multiplication

// Tiles 0 to 3 accumulate the micro-block, 4 and 5 are A, 6 and 7 are B; all 16 rows of 64
// bytes. Constant data: GCC's intrinsic does not tell the optimizer that all 64 bytes are
// read.
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TILES = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

// Where the tiles of a micro-block's operands lie: the first of A, its second half of rows,
// row stride, and step.
typedef struct operands {
    const char *a;
    int64_t a_second, a_stride, a_step;
    const char *b;
} operands;

TS_INLINE operands operands_of(const pass *p, int64_t block, int64_t panel) {
    const char *b = p->packed_b + panel * p->steps * STEP;
    if (!reads_a_directly(p, block)) {
        return (operands){p->packed_a + block * p->steps * STEP, TILE, 64, STEP, b};
    }
    const int64_t stride = p->g->lda * (int64_t)sizeof(uint16_t);
    const uint16_t *a = (const uint16_t *)p->g->a + block * EDGE * p->g->lda + p->k_begin;
    return (operands){(const char *)a, 16 * stride, stride, 64, b};
}

// out [32, 32] = the sum of all steps; meanwhile the vector units finish the micro-block
// before.
static void multiply(const pass *p, float *out, operands o, const pending *done) {
    const int64_t quota = divide_up(done->rows, p->steps);
    int64_t finished = 0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < p->steps; step++) {
        _tile_loadd(6, o.b, 64);
        _tile_loadd(4, o.a, o.a_stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, o.b + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, o.a + o.a_second, o.a_stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        o.a += o.a_step;
        o.b += STEP;
        for (const int64_t end = min(finished + quota, done->rows); finished < end; finished++) {
            finish_row(p, done, finished);
        }
    }
    _tile_stored(0, out, EDGE * sizeof *out);
    _tile_stored(1, out + 16, EDGE * sizeof *out);
    _tile_stored(2, out + 16 * EDGE, EDGE * sizeof *out);
    _tile_stored(3, out + 16 * EDGE + 16, EDGE * sizeof *out);
}

// Micro-blocks in the order group of panels, row block, panel; each thread takes a stretch
// of them.
static void compute(const pass *p) {
    const int64_t total = p->row_blocks * p->panels, threads = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t begin = total * me / threads, end = total * (me + 1) / threads;
    const int64_t per_group = p->row_blocks * p->group;
    _Alignas(64) float sums[2][EDGE * EDGE];
    pending done = {.rows = 0};
    for (int64_t i = begin; i < end; i++) {
        const int64_t group = i / per_group, within = i % per_group;
        const int64_t panels = min(p->group, p->panels - group * p->group);
        const int64_t block = within / panels, panel = group * p->group + within % panels;
        multiply(p, sums[i % 2], operands_of(p, block, panel), &done);
        done = (pending){sums[i % 2], block * EDGE, panel * EDGE, min(EDGE, p->g->m - block * EDGE),
                         first_lanes(p->g->n - panel * EDGE)};
    }
    for (int64_t row = 0; row < done.rows; row++) {
        finish_row(p, &done, row);
    }
}

static void run_pass(const pass *p) {
    const double work = (double)p->g->m * (double)p->g->n * (double)p->g->k;
#pragma omp parallel if (work > 1e6)
    {
        pack_operands(p);
        _tile_loadconfig(&TILES);
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
