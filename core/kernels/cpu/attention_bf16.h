// SPDX-License-Identifier: Apache-2.0
// Template of the bf16 attention engine, forward part and engine. Included once by the file of each instruction set,
// which defines ENGINE_NAME and, before,
//   // C [32, 32] f32 (+)= A B over `depth` blocks; a_step, b_step: elements between the blocks of A and of B
//   static inline void multiply_block(const uint16_t *a, int64_t a_step, const uint16_t *b, int64_t b_step,
//                                     int64_t depth, float *c, bool accumulate);
//
// A step takes a block of queries and GROUP blocks of keys: scores, softmax, products with V. (Taking turns in smaller
// pieces, so that the next scores could overlap with this softmax, gained nothing on Sapphire Rapids.)
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "core/kernels/cpu/attention_bf16_backward.h"

// The softmax refers to a maximum per row that is raised only when a score exceeds it by GROWTH (in powers of two):
// probabilities are then up to 2^GROWTH too large, as are their sums and the output, which cancels; and after the first
// keys of a row hardly any rescaling is left to do.
enum { GROUP = 4, GROWTH = 8 };

// What a block of 32 queries accumulates.
typedef struct row_block {
    float sum[EDGE * LANES];  // sums of probabilities, not yet added across lanes
    float reference[EDGE];    // the maximum referred to, in units of q k
    float offset[EDGE];       // reference * log2 scale
    float limit[EDGE];        // scores above raise the reference
} __attribute__((aligned(64))) row_block;

typedef struct forward_state {
    const ts_attention *p;
    int64_t batch, head, last, keys;  // queries end at `last`
    int64_t key_blocks, wide;         // blocks of keys and of head_dim
    float log2_scale, growth;         // growth: GROWTH in units of q k
    rows q;
    uint16_t *key;            // right [key_blocks][wide], depth head_dim
    uint16_t *value;          // right [key_blocks][wide], depth keys
    float *scores;            // [GROUP] blocks
    uint16_t *probabilities;  // left [GROUP]
    uint16_t *query;          // left [wide]
    float *out;               // [wide] blocks
    row_block *block;
} forward_state;

static size_t forward_layout(const ts_attention *p, forward_state *s, void *scratch) {
    const int64_t key_blocks = edges(p->keys), wide = edges(p->head_dim);
    uintptr_t cursor = (uintptr_t)scratch;
    s->wide = wide;
    s->key = attention_carve(&cursor, key_blocks * wide * BLOCK, sizeof(uint16_t));
    s->value = attention_carve(&cursor, key_blocks * wide * BLOCK, sizeof(uint16_t));
    s->scores = attention_carve(&cursor, GROUP * BLOCK, sizeof(float));
    s->probabilities = attention_carve(&cursor, GROUP * BLOCK, sizeof(uint16_t));
    s->query = attention_carve(&cursor, wide * BLOCK, sizeof(uint16_t));
    s->out = attention_carve(&cursor, wide * BLOCK, sizeof(float));
    s->block = attention_carve(&cursor, 1, sizeof(row_block));
    return cursor - (uintptr_t)scratch;
}

static size_t forward_bytes(const ts_attention *p) {
    forward_state s;
    return forward_layout(p, &s, NULL);
}

// Scores of key block j. Columns behind the last key get a score whose probability is zero.
static void forward_scores(const forward_state *s, int64_t j, float *scores) {
    multiply_block(s->query, BLOCK, s->key + j * s->wide * BLOCK, BLOCK, s->wide, scores, false);
    const int64_t valid = s->keys - j * EDGE;
    if (valid < EDGE) {
        const __mmask32 outside = ~low_bits(valid);
        for (int r = 0; r < EDGE; r++) {
            _mm512_mask_store_ps(scores + r * EDGE, (__mmask16)outside, _mm512_set1_ps(-1e30f));
            _mm512_mask_store_ps(scores + r * EDGE + LANES, (__mmask16)(outside >> 16), _mm512_set1_ps(-1e30f));
        }
    }
}

// The references of a new block of queries: the largest scores with its first keys, `count` blocks.
static void start_rows(const forward_state *s, int64_t count) {
    row_block *b = s->block;
    const __m512 log2_scale = _mm512_set1_ps(s->log2_scale), growth = _mm512_set1_ps(s->growth);
    for (int half = 0; half < 2; half++) {
        __m512i top[LANES];
        for (int r = 0; r < LANES; r++) {
            const float *row = s->scores + (half * LANES + r) * EDGE;
            __m512 max = _mm512_max_ps(_mm512_load_ps(row), _mm512_load_ps(row + LANES));
            for (int64_t j = 1; j < count; j++) {
                max = _mm512_max_ps(max, _mm512_load_ps(row + j * BLOCK));
                max = _mm512_max_ps(max, _mm512_load_ps(row + j * BLOCK + LANES));
            }
            top[r] = (__m512i)max;
        }
        transpose_16(top);
        __m512 reference = (__m512)top[0];
        for (int r = 1; r < LANES; r++) {
            reference = _mm512_max_ps(reference, (__m512)top[r]);
        }
        _mm512_storeu_ps(b->reference + half * LANES, reference);
        _mm512_storeu_ps(b->offset + half * LANES, _mm512_mul_ps(reference, log2_scale));
        _mm512_storeu_ps(b->limit + half * LANES, _mm512_add_ps(reference, growth));
    }
    memset(b->sum, 0, sizeof b->sum);
}

// Row r met a score above its limit: refers it, its sum and its output to a new maximum.
static __attribute__((noinline)) void raise_reference(const forward_state *s, int r, float reference) {
    row_block *b = s->block;
    const __m512 fade = _mm512_set1_ps(exp2f((b->reference[r] - reference) * s->log2_scale));
    float *sum = b->sum + r * LANES;
    _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), fade));
    for (int64_t e = 0; e < s->wide; e++) {
        float *row = s->out + e * BLOCK + r * EDGE;
        _mm512_store_ps(row, _mm512_mul_ps(_mm512_load_ps(row), fade));
        _mm512_store_ps(row + LANES, _mm512_mul_ps(_mm512_load_ps(row + LANES), fade));
    }
    b->reference[r] = reference;
    b->offset[r] = reference * s->log2_scale;
    b->limit[r] = reference + s->growth;
}

// Probabilities of the first `row_count` rows for `count` blocks of keys; the others, behind the last query, are left
// alone.
static inline __attribute__((always_inline)) void forward_softmax(const forward_state *s, int64_t row_count,
                                                                  int64_t count) {
    row_block *b = s->block;
    const __m512 log2_scale = _mm512_set1_ps(s->log2_scale);
    for (int r = 0; r < row_count; r++) {
        const float *row = s->scores + r * EDGE;
        __m512 top = _mm512_max_ps(_mm512_load_ps(row), _mm512_load_ps(row + LANES));
        for (int64_t j = 1; j < count; j++) {
            const float *next = row + j * BLOCK;
            top = _mm512_max_ps(top, _mm512_max_ps(_mm512_load_ps(next), _mm512_load_ps(next + LANES)));
        }
        if (__builtin_expect(_mm512_cmp_ps_mask(top, _mm512_set1_ps(b->limit[r]), _CMP_GT_OQ) != 0, 0)) {
            raise_reference(s, r, _mm512_reduce_max_ps(top));
        }
        const __m512 offset = _mm512_set1_ps(b->offset[r]);
        __m512 sum = _mm512_load_ps(b->sum + r * LANES);
        for (int64_t j = 0; j < count; j++) {
            const __m512 s0 = _mm512_load_ps(row + j * BLOCK), s1 = _mm512_load_ps(row + j * BLOCK + LANES);
            const __m512 e0 = exp2_16(_mm512_fmsub_ps(s0, log2_scale, offset));
            const __m512 e1 = exp2_16(_mm512_fmsub_ps(s1, log2_scale, offset));
            sum = _mm512_add_ps(sum, _mm512_add_ps(e0, e1));
            _mm512_store_si512(s->probabilities + j * BLOCK + r * EDGE, round_pair(e0, e1));
        }
        _mm512_store_ps(b->sum + r * LANES, sum);
    }
}

// Row of a block from element `at` of the output on.
static void store_row(const forward_state *s, int64_t at, const float *block, __m512 factor) {
    for (int64_t e = 0; e < s->wide; e++) {
        const float *from = block + e * BLOCK;
        store_results(s->p, s->p->out, at + e * EDGE, s->p->head_dim - e * EDGE,
                      _mm512_mul_ps(_mm512_load_ps(from), factor), _mm512_mul_ps(_mm512_load_ps(from + LANES), factor));
    }
}

// out = out / sum, lse = scale * reference + ln sum, for the rows that exist.
static void finish_rows(const forward_state *s, int64_t first) {
    const row_block *b = s->block;
    const ts_attention *p = s->p;
    const int64_t at = attention_offset(p, s->batch, s->head, p->out_batch) + first * p->out_row;
    for (int half = 0; half < 2; half++) {
        const int64_t count = attention_min(LANES, s->last - first - half * LANES);
        if (count <= 0) {
            return;
        }
        __m512i lanes[LANES];
        for (int r = 0; r < LANES; r++) {
            lanes[r] = _mm512_load_si512(b->sum + (half * LANES + r) * LANES);
        }
        transpose_16(lanes);
        __m512 sum = (__m512)lanes[0];
        for (int r = 1; r < LANES; r++) {
            sum = _mm512_add_ps(sum, (__m512)lanes[r]);
        }
        float inverse[LANES] __attribute__((aligned(64)));
        _mm512_store_ps(inverse, _mm512_div_ps(_mm512_set1_ps(1.0f), sum));
        for (int64_t r = 0; r < count; r++) {
            const int64_t row = half * LANES + r;
            store_row(s, at + row * p->out_row, s->out + row * EDGE, _mm512_set1_ps(inverse[r]));
        }
        if (p->lse) {
            float *lse = p->lse + (s->batch * p->heads + s->head) * p->queries + first + half * LANES;
            const __m512 reference = _mm512_loadu_ps(b->reference + half * LANES);
            const __m512 value = _mm512_fmadd_ps(reference, _mm512_set1_ps(p->scale), log_16(sum));
            _mm512_mask_storeu_ps(lse, (__mmask16)low_bits(count), value);
        }
    }
}

// Key blocks [first, first + count) for a block of queries of which `row_count` exist.
static void forward_group(const forward_state *s, int64_t row_count, int64_t first, int64_t count) {
    for (int64_t j = 0; j < count; j++) {
        forward_scores(s, first + j, s->scores + j * BLOCK);
    }
    if (first == 0) {
        start_rows(s, count);
    }
    if (count == GROUP) {
        forward_softmax(s, row_count, GROUP);
    } else {
        forward_softmax(s, row_count, count);
    }
    for (int64_t e = 0; e < s->wide; e++) {
        multiply_block(s->probabilities, BLOCK, s->value + (first * s->wide + e) * BLOCK, s->wide * BLOCK, count,
                       s->out + e * BLOCK, first > 0);
    }
}

static void forward_queries(const forward_state *s, int64_t first) {
    for (int64_t i = 0; i < edges(s->last - first); i++) {
        for (int64_t e = 0; e < s->wide; e++) {
            pack_left(s->query + e * BLOCK, &s->q, i, e);
        }
        const int64_t row_count = attention_min(EDGE, s->last - first - i * EDGE);
        for (int64_t j = 0; j < s->key_blocks; j += GROUP) {
            forward_group(s, row_count, j, attention_min(GROUP, s->key_blocks - j));
        }
        finish_rows(s, first + i * EDGE);
    }
}

static void forward(const ts_attention *p, int64_t batch, int64_t head, int64_t first, int64_t last, void *scratch) {
    forward_state s = {.p = p, .batch = batch, .head = head, .last = last};
    forward_layout(p, &s, scratch);
    s.keys = attention_keys(p, batch);
    s.key_blocks = edges(s.keys);
    s.log2_scale = p->scale * (float)M_LOG2E;
    s.growth = s.log2_scale > 0 ? GROWTH / s.log2_scale : INFINITY;
    s.q = rows_of(p, p->q, batch, head, p->q_batch, p->q_row, last);
    s.q.data += first * p->q_row;
    s.q.count -= first;
    const rows k = rows_of(p, p->k, batch, head, p->k_batch, p->k_row, s.keys);
    const rows v = rows_of(p, p->v, batch, head, p->v_batch, p->v_row, s.keys);
    for (int64_t j = 0; j < s.key_blocks; j++) {
        for (int64_t e = 0; e < s.wide; e++) {
            pack_right_transposed(s.key + (j * s.wide + e) * BLOCK, &k, j, e);
            pack_right(s.value + (j * s.wide + e) * BLOCK, &v, j, e);
        }
    }
    forward_queries(&s, first);
}

const ts_attention_engine ENGINE_NAME = {
    .forward_bytes = forward_bytes,
    .backward_bytes = backward_bytes,
    .forward = forward,
    .backward = backward,
    .thread_begin = THREAD_BEGIN,
    .thread_end = THREAD_END,
};
