// SPDX-License-Identifier: Apache-2.0
// Template of the bf16 attention engine, forward part and engine. Included once by the file of each instruction set,
// which defines ENGINE_NAME and, before,
//   // C [32, 32] f32 (+)= A B over `depth` blocks; a_step, b_step: elements between the blocks of A and of B
//   static inline void multiply_block(const uint16_t *a, int64_t a_step, const uint16_t *b, int64_t b_step,
//                                     int64_t depth, float *c, bool accumulate);
//
// Scores are made and consumed a block at a time, the products with V for GROUP blocks at once. The order of the calls
// keeps the matrix unit and the vector units busy together: while the softmax of one block runs, the processor can
// already execute the next block's scores and the previous group's products, which do not depend on it.
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "core/kernels/cpu/attention_bf16_backward.h"

// ---- forward
// --------------------------------------------------------------------------------------------------------- The softmax
// refers to a maximum per row that is raised only when a score exceeds it by GROWTH (in powers of two): probabilities
// are then up to 2^GROWTH too large, as are their sums and the output, which cancels; and after the first blocks of a
// row hardly any rescaling is left to do.

enum { GROUP = 4, GROWTH = 8 };

// What a block of 32 queries accumulates.
typedef struct row_block {
    float sum[EDGE * LANES];  // sums of probabilities, not yet added across lanes
    float reference[EDGE];    // the maximum referred to, in units of q k
    float offset[EDGE];       // reference * log2 scale
    float limit[EDGE];        // scores above raise the reference
    float fade[EDGE];         // factor owed to `out`
    int64_t first;            // query
    bool faded;
} __attribute__((aligned(64))) row_block;

typedef struct forward_state {
    const ts_attention *p;
    int64_t batch, head, last, keys;  // queries end at `last`
    int64_t key_blocks, wide;         // blocks of keys and of head_dim
    float log2_scale;
    rows q;
    uint16_t *query;          // left [wide]
    uint16_t *key;            // right [key_blocks][wide], depth head_dim
    uint16_t *value;          // right [key_blocks][wide], depth keys
    float *scores;            // [2] blocks
    uint16_t *probabilities;  // left [2][GROUP]
    float *out;               // [2][wide] blocks
    row_block *block;         // [2]
} forward_state;

// The products of one group with V, done in `wide` parts while the next group's softmax runs.
typedef struct forward_products {
    int64_t query_block, first_key, count, done;
    const uint16_t *probabilities;
} forward_products;

static size_t forward_layout(const ts_attention *p, forward_state *s, void *scratch) {
    const int64_t key_blocks = edges(p->keys), wide = edges(p->head_dim);
    uintptr_t cursor = (uintptr_t)scratch;
    s->wide = wide;
    s->query = attention_carve(&cursor, wide * BLOCK, sizeof(uint16_t));
    s->key = attention_carve(&cursor, key_blocks * wide * BLOCK, sizeof(uint16_t));
    s->value = attention_carve(&cursor, key_blocks * wide * BLOCK, sizeof(uint16_t));
    s->scores = attention_carve(&cursor, 2 * BLOCK, sizeof(float));
    s->probabilities = attention_carve(&cursor, 2 * GROUP * BLOCK, sizeof(uint16_t));
    s->out = attention_carve(&cursor, 2 * wide * BLOCK, sizeof(float));
    s->block = attention_carve(&cursor, 2, sizeof(row_block));
    return cursor - (uintptr_t)scratch;
}

static size_t forward_bytes(const ts_attention *p) {
    forward_state s;
    return forward_layout(p, &s, NULL);
}

// Scores of query block `i` and key block `j`, number `t` of the call. Columns behind the last key get a score whose
// probability is zero.
static void forward_scores(const forward_state *s, int64_t t, int64_t i, int64_t j) {
    if (j == 0) {
        for (int64_t e = 0; e < s->wide; e++) {
            pack_left(s->query + e * BLOCK, &s->q, i, e);
        }
    }
    float *scores = s->scores + (t & 1) * BLOCK;
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

static void set_reference(const forward_state *s, row_block *b, int r, float reference) {
    b->reference[r] = reference;
    b->offset[r] = reference * s->log2_scale;
    b->limit[r] = s->log2_scale > 0 ? reference + GROWTH / s->log2_scale : INFINITY;
}

// The references of a new block of queries: the largest scores with the first block of keys.
static void start_rows(const forward_state *s, row_block *b, const float *scores) {
    for (int half = 0; half < 2; half++) {
        __m512i top[LANES];
        for (int r = 0; r < LANES; r++) {
            const float *row = scores + (half * LANES + r) * EDGE;
            top[r] = (__m512i)_mm512_max_ps(_mm512_load_ps(row), _mm512_load_ps(row + LANES));
        }
        transpose_16(top);
        __m512 reference = (__m512)top[0];
        for (int r = 1; r < LANES; r++) {
            reference = _mm512_max_ps(reference, (__m512)top[r]);
        }
        const __m512 log2_scale = _mm512_set1_ps(s->log2_scale);
        const __m512 margin = _mm512_set1_ps(s->log2_scale > 0 ? GROWTH / s->log2_scale : INFINITY);
        _mm512_storeu_ps(b->reference + half * LANES, reference);
        _mm512_storeu_ps(b->offset + half * LANES, _mm512_mul_ps(reference, log2_scale));
        _mm512_storeu_ps(b->limit + half * LANES, _mm512_add_ps(reference, margin));
        _mm512_storeu_ps(b->fade + half * LANES, _mm512_set1_ps(1.0f));
    }
    memset(b->sum, 0, sizeof b->sum);
    b->faded = false;
}

// Row r met a score above its limit: refers it to a new maximum. The sum and the probabilities of this group's `done`
// earlier blocks are scaled here, the output when the products under way are finished.
static __attribute__((noinline)) void raise_reference(const forward_state *s, row_block *b, int r, float reference,
                                                      uint16_t *group, int64_t done) {
    const float fade = exp2f((b->reference[r] - reference) * s->log2_scale);
    const __m512 factor = _mm512_set1_ps(fade);
    for (int64_t i = 0; i < done; i++) {
        uint16_t *row = group + i * BLOCK + r * EDGE;
        const __m512i words = _mm512_load_si512(row);
        const __m512i even = _mm512_slli_epi32(words, 16), odd = _mm512_and_si512(words, _mm512_set1_epi32(-65536));
        const __m512i low = (__m512i)_mm512_mul_ps((__m512)even, factor),
                      high = (__m512i)_mm512_mul_ps((__m512)odd, factor);
        const __m512i half = _mm512_set1_epi32(0x8000);
        const __m512i packed = _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(_mm512_add_epi32(low, half), 16),
                                                       _mm512_add_epi32(high, half));
        _mm512_store_si512(row, packed);
    }
    float *sum = b->sum + r * LANES;
    _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), factor));
    b->fade[r] *= fade;
    b->faded = true;
    set_reference(s, b, r, reference);
}

// Probabilities of one block of scores into block `index` of the group, a left block.
static void forward_softmax(const forward_state *s, row_block *b, const float *scores, uint16_t *group, int64_t index) {
    const __m512 log2_scale = _mm512_set1_ps(s->log2_scale);
    for (int r = 0; r < EDGE; r++) {
        const __m512 s0 = _mm512_load_ps(scores + r * EDGE), s1 = _mm512_load_ps(scores + r * EDGE + LANES);
        const __m512 top = _mm512_max_ps(s0, s1);
        if (__builtin_expect(_mm512_cmp_ps_mask(top, _mm512_set1_ps(b->limit[r]), _CMP_GT_OQ) != 0, 0)) {
            raise_reference(s, b, r, _mm512_reduce_max_ps(top), group, index);
        }
        const __m512 offset = _mm512_set1_ps(b->offset[r]);
        const __m512 e0 = exp2_16(_mm512_fmsub_ps(s0, log2_scale, offset));
        const __m512 e1 = exp2_16(_mm512_fmsub_ps(s1, log2_scale, offset));
        float *sum = b->sum + r * LANES;
        _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), _mm512_add_ps(e0, e1)));
        _mm512_store_si512(group + index * BLOCK + r * EDGE, round_pair(e0, e1));
    }
}

static void store_row(uint16_t *to, const float *block, int64_t wide, int64_t width, __m512 factor) {
    for (int64_t e = 0; e < wide; e++) {
        const float *from = block + e * BLOCK;
        const __m512i pair = round_pair(_mm512_mul_ps(_mm512_load_ps(from), factor),
                                        _mm512_mul_ps(_mm512_load_ps(from + LANES), factor));
        _mm512_mask_storeu_epi16(to + e * EDGE, low_bits(width - e * EDGE), pair);
    }
}

// out = out / sum, lse = scale * reference + ln sum, for the rows that exist.
static void finish_rows(const forward_state *s, const row_block *b, const float *out) {
    const ts_attention *p = s->p;
    uint16_t *to = (uint16_t *)p->out + attention_offset(p, s->batch, s->head, p->out_batch) + b->first * p->out_row;
    for (int half = 0; half < 2; half++) {
        const int64_t count = attention_min(LANES, s->last - b->first - half * LANES);
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
            store_row(to + row * p->out_row, out + row * EDGE, s->wide, p->head_dim, _mm512_set1_ps(inverse[r]));
        }
        if (p->lse) {
            float *lse = p->lse + (s->batch * p->heads + s->head) * p->queries + b->first + half * LANES;
            const __m512 reference = _mm512_loadu_ps(b->reference + half * LANES);
            const __m512 value = _mm512_fmadd_ps(reference, _mm512_set1_ps(p->scale), log_16(sum));
            _mm512_mask_storeu_ps(lse, (__mmask16)low_bits(count), value);
        }
    }
}

// Goes on with the products of a group up to part `until` of `wide`.
static void run_products(const forward_state *s, forward_products *g, int64_t until) {
    float *out = s->out + (g->query_block & 1) * s->wide * BLOCK;
    for (; g->done < until; g->done++) {
        multiply_block(g->probabilities, BLOCK, s->value + (g->first_key * s->wide + g->done) * BLOCK, s->wide * BLOCK,
                       g->count, out + g->done * BLOCK, g->first_key > 0);
    }
}

static void fade_rows(const forward_state *s, row_block *b, float *out) {
    for (int64_t i = 0; i < s->wide * EDGE; i++) {
        const __m512 factor = _mm512_set1_ps(b->fade[i % EDGE]);
        float *row = out + i * EDGE;
        _mm512_store_ps(row, _mm512_mul_ps(_mm512_load_ps(row), factor));
        _mm512_store_ps(row + LANES, _mm512_mul_ps(_mm512_load_ps(row + LANES), factor));
    }
}

// A group's products are complete: pays what the rows owe, or writes the rows out after their last group.
static void end_products(const forward_state *s, forward_products *g) {
    if (g->count == 0) {
        return;
    }
    run_products(s, g, s->wide);
    row_block *b = s->block + (g->query_block & 1);
    float *out = s->out + (g->query_block & 1) * s->wide * BLOCK;
    if (g->first_key + g->count == s->key_blocks) {
        finish_rows(s, b, out);
    } else if (b->faded) {
        fade_rows(s, b, out);
    }
}

static void forward_blocks(const forward_state *s, int64_t first) {
    const int64_t query_blocks = edges(s->last - first), total = query_blocks * s->key_blocks;
    forward_products products = {0};
    forward_scores(s, 0, 0, 0);
    for (int64_t t = 0; t < total; t++) {
        const int64_t i = t / s->key_blocks, j = t % s->key_blocks, index = j % GROUP;
        const int64_t count = attention_min(GROUP, s->key_blocks - (j - index));
        if (t + 1 < total) {
            forward_scores(s, t + 1, (t + 1) / s->key_blocks, (t + 1) % s->key_blocks);
        }
        row_block *b = s->block + (i & 1);
        const float *scores = s->scores + (t & 1) * BLOCK;
        uint16_t *group =
            s->probabilities + ((i * ((s->key_blocks + GROUP - 1) / GROUP) + j / GROUP) & 1) * GROUP * BLOCK;
        if (j == 0) {
            start_rows(s, b, scores);
            b->first = first + i * EDGE;
        }
        forward_softmax(s, b, scores, group, index);
        if (products.count > 0) {
            run_products(s, &products, (index + 1) * s->wide / count);
        }
        if (index + 1 == count) {
            end_products(s, &products);
            b->faded = false;
            for (int r = 0; r < EDGE; r++) {
                b->fade[r] = 1.0f;
            }
            products = (forward_products){i, j - index, count, 0, group};
        }
    }
    end_products(s, &products);
}

static void forward(const ts_attention *p, int64_t batch, int64_t head, int64_t first, int64_t last, void *scratch) {
    forward_state s = {.p = p, .batch = batch, .head = head, .last = last};
    forward_layout(p, &s, scratch);
    s.keys = attention_keys(p, batch);
    s.key_blocks = edges(s.keys);
    s.log2_scale = p->scale * (float)M_LOG2E;
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
    forward_blocks(&s, first);
}

const ts_attention_engine ENGINE_NAME = {
    .forward_bytes = forward_bytes,
    .backward_bytes = backward_bytes,
    .forward = forward,
    .backward = backward,
    .thread_begin = THREAD_BEGIN,
    .thread_end = THREAD_END,
};
