// SPDX-License-Identifier: Apache-2.0
// Template of the bf16 attention engine, backward part; see attention_bf16.h.
//
//   P = exp(S - lse)   dV = P^T dO   dP = dO V^T   dS = P * (dP - rowsum(dO * O))   dQ = scale dS K   dK = scale dS^T Q
//
// Scores are computed transposed, S^T = K Q^T: rows are keys. P^T and dS^T then leave the vector registers as left
// operands of dV and dK, and dS^T, its rows interleaved by pairs, as right operand of dQ^T = K^T dS^T. A step takes
// SPAN x SPAN blocks of scores, then all their products: deeper ones would carry their sums less often, but overflow
// the first cache. (Running the products between the blocks of scores, for the sake of overlap, was a quarter slower on
// Sapphire Rapids.)
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "core/kernels/cpu/attention_blocks.h"

enum { SPAN = 4 };

typedef struct backward_state {
    const ts_attention *p;
    int64_t batch, head, keys;
    int64_t key_blocks, query_blocks, wide;  // blocks of keys, of queries, of head_dim
    uint16_t *key, *value;                   // left [key_blocks][wide], depth head_dim
    uint16_t *key_transposed;                // left [wide][key_blocks], depth keys
    uint16_t *query, *d_out;                 // right [query_blocks][wide], depth head_dim
    uint16_t *query_rows, *d_out_rows;       // right [query_blocks][wide], depth queries
    float *lse, *delta;                      // [query_blocks][EDGE]; lse in powers of two
    float *scores, *d_p;                     // one block
    uint16_t *p_left, *ds_left;              // left [SPAN][SPAN], depth queries
    uint16_t *ds_right;                      // right [SPAN][SPAN], depth keys
    float *d_key, *d_value;                  // [SPAN][wide] blocks
    float *d_query;                          // [query_blocks][wide] blocks, transposed
} backward_state;

// Blocks of scores [first_key, + keys) x [first_query, + queries).
typedef struct backward_step {
    int64_t first_key, keys, first_query, queries;
} backward_step;

static size_t backward_layout(const ts_attention *p, backward_state *s, void *scratch) {
    const int64_t key_blocks = edges(p->keys), query_blocks = edges(p->queries), wide = edges(p->head_dim);
    const int64_t key_size = key_blocks * wide * BLOCK, query_size = query_blocks * wide * BLOCK;
    uintptr_t cursor = (uintptr_t)scratch;
    s->query_blocks = query_blocks;
    s->wide = wide;
    s->key = attention_carve(&cursor, key_size, sizeof(uint16_t));
    s->value = attention_carve(&cursor, key_size, sizeof(uint16_t));
    s->key_transposed = attention_carve(&cursor, key_size, sizeof(uint16_t));
    s->query = attention_carve(&cursor, query_size, sizeof(uint16_t));
    s->d_out = attention_carve(&cursor, query_size, sizeof(uint16_t));
    s->query_rows = attention_carve(&cursor, query_size, sizeof(uint16_t));
    s->d_out_rows = attention_carve(&cursor, query_size, sizeof(uint16_t));
    s->lse = attention_carve(&cursor, query_blocks * EDGE, sizeof(float));
    s->delta = attention_carve(&cursor, query_blocks * EDGE, sizeof(float));
    s->scores = attention_carve(&cursor, BLOCK, sizeof(float));
    s->d_p = attention_carve(&cursor, BLOCK, sizeof(float));
    s->p_left = attention_carve(&cursor, SPAN * SPAN * BLOCK, sizeof(uint16_t));
    s->ds_left = attention_carve(&cursor, SPAN * SPAN * BLOCK, sizeof(uint16_t));
    s->ds_right = attention_carve(&cursor, SPAN * SPAN * BLOCK, sizeof(uint16_t));
    s->d_key = attention_carve(&cursor, SPAN * wide * BLOCK, sizeof(float));
    s->d_value = attention_carve(&cursor, SPAN * wide * BLOCK, sizeof(float));
    s->d_query = attention_carve(&cursor, query_size, sizeof(float));
    return cursor - (uintptr_t)scratch;
}

static size_t backward_bytes(const ts_attention *p) {
    backward_state s;
    return backward_layout(p, &s, NULL);
}

// delta[i] = sum of dO * O over head_dim; lse in powers of two. Rows that do not exist get probability 0.
static void prepare_statistics(const backward_state *s, const rows *out, const rows *d_out) {
    const ts_attention *p = s->p;
    const float *lse = p->lse + (s->batch * p->heads + s->head) * p->queries;
    const __m512i upper = _mm512_set1_epi32(-65536);
    for (int64_t i = 0; i < s->query_blocks * EDGE; i++) {
        s->lse[i] = i < p->queries ? lse[i] * (float)M_LOG2E : 1e30f;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t e = 0; i < p->queries && e < p->head_dim; e += EDGE) {
            const __mmask32 mask = low_bits(p->head_dim - e);
            const __m512i a = _mm512_maskz_loadu_epi16(mask, out->data + i * out->stride + e);
            const __m512i b = _mm512_maskz_loadu_epi16(mask, d_out->data + i * d_out->stride + e);
            sum = _mm512_fmadd_ps((__m512)_mm512_slli_epi32(a, 16), (__m512)_mm512_slli_epi32(b, 16), sum);
            sum = _mm512_fmadd_ps((__m512)_mm512_and_si512(a, upper), (__m512)_mm512_and_si512(b, upper), sum);
        }
        s->delta[i] = _mm512_reduce_add_ps(sum);
    }
}

static void backward_pack(const backward_state *s) {
    const ts_attention *p = s->p;
    const int64_t b = s->batch, h = s->head;
    const rows k = rows_of(p, p->k, b, h, p->k_batch, p->k_row, s->keys);
    const rows v = rows_of(p, p->v, b, h, p->v_batch, p->v_row, s->keys);
    const rows q = rows_of(p, p->q, b, h, p->q_batch, p->q_row, p->queries);
    const rows out = rows_of(p, p->out, b, h, p->out_batch, p->out_row, p->queries);
    const rows d_out = rows_of(p, p->d_out, b, h, p->out_batch, p->out_row, p->queries);
    for (int64_t e = 0; e < s->wide; e++) {
        for (int64_t j = 0; j < s->key_blocks; j++) {
            pack_left(s->key + (j * s->wide + e) * BLOCK, &k, j, e);
            pack_left(s->value + (j * s->wide + e) * BLOCK, &v, j, e);
            pack_left_transposed(s->key_transposed + (e * s->key_blocks + j) * BLOCK, &k, j, e);
        }
        for (int64_t i = 0; i < s->query_blocks; i++) {
            const int64_t at = (i * s->wide + e) * BLOCK;
            pack_right_transposed(s->query + at, &q, i, e);
            pack_right_transposed(s->d_out + at, &d_out, i, e);
            pack_right(s->query_rows + at, &q, i, e);
            pack_right(s->d_out_rows + at, &d_out, i, e);
        }
    }
    prepare_statistics(s, &out, &d_out);
}

// S^T and dP^T of key block j and query block i. A row behind an odd last key gets probability 0.
static void backward_scores(const backward_state *s, int64_t j, int64_t i) {
    const int64_t wide = s->wide;
    float *scores = s->scores, *d_p = s->d_p;
    multiply_block(s->key + j * wide * BLOCK, BLOCK, s->query + i * wide * BLOCK, BLOCK, wide, scores, false);
    multiply_block(s->value + j * wide * BLOCK, BLOCK, s->d_out + i * wide * BLOCK, BLOCK, wide, d_p, false);
    if (s->keys - j * EDGE < EDGE && s->keys % 2 == 1) {  // the last pair has one key only
        float *row = scores + s->keys % EDGE * EDGE;
        _mm512_store_ps(row, _mm512_set1_ps(-1e30f));
        _mm512_store_ps(row + LANES, _mm512_set1_ps(-1e30f));
    }
}

// P^T and dS^T of one block, of which `row_count` keys exist, from S^T and dP^T. The rows behind are zero.
static void backward_softmax(const backward_state *s, int64_t i, int64_t row_count, uint16_t *p_left, uint16_t *ds_left,
                             uint16_t *ds_right) {
    const float *scores = s->scores, *d_p = s->d_p;
    const __m512 log2_scale = _mm512_set1_ps(s->p->scale * (float)M_LOG2E);
    const __m512 lse[2] = {_mm512_load_ps(s->lse + i * EDGE), _mm512_load_ps(s->lse + i * EDGE + LANES)};
    const __m512 delta[2] = {_mm512_load_ps(s->delta + i * EDGE), _mm512_load_ps(s->delta + i * EDGE + LANES)};
    const int64_t pairs = (row_count + 1) / 2;
    for (int64_t pair = 0; pair < pairs; pair++) {
        __m512i line[2];
        for (int r = 0; r < 2; r++) {
            const int64_t at = (2 * pair + r) * EDGE;
            __m512 e[2], ds[2];
            for (int half = 0; half < 2; half++) {
                const __m512 score = _mm512_load_ps(scores + at + half * LANES);
                e[half] = exp2_16(_mm512_fmsub_ps(score, log2_scale, lse[half]));
                ds[half] = _mm512_mul_ps(e[half], _mm512_sub_ps(_mm512_load_ps(d_p + at + half * LANES), delta[half]));
            }
            line[r] = round_pair(ds[0], ds[1]);
            _mm512_store_si512(p_left + at, round_pair(e[0], e[1]));
            _mm512_store_si512(ds_left + at, line[r]);
        }
        _mm512_store_si512(ds_right + pair * EDGE, interleave(line[0], line[1], 0));
        _mm512_store_si512(ds_right + HALF + pair * EDGE, interleave(line[0], line[1], 1));
    }
    const size_t rest = (size_t)(LANES - pairs) * EDGE * sizeof(uint16_t);
    memset(p_left + 2 * pairs * EDGE, 0, 2 * rest);
    memset(ds_left + 2 * pairs * EDGE, 0, 2 * rest);
    memset(ds_right + pairs * EDGE, 0, rest);
    memset(ds_right + HALF + pairs * EDGE, 0, rest);
}

// dV (of P) or dK (of dS) of the step's keys += left^T times the rows of dO or Q.
static void key_products(const backward_state *s, const backward_step *g, const uint16_t *left, const uint16_t *right,
                         float *to) {
    for (int64_t j = 0; j < g->keys; j++) {
        for (int64_t e = 0; e < s->wide; e++) {
            multiply_block(left + j * SPAN * BLOCK, BLOCK, right + (g->first_query * s->wide + e) * BLOCK,
                           s->wide * BLOCK, g->queries, to + (j * s->wide + e) * BLOCK, g->first_query > 0);
        }
    }
}

// dQ^T of the step's queries += K^T dS^T.
static void query_products(const backward_state *s, const backward_step *g) {
    for (int64_t i = 0; i < g->queries; i++) {
        for (int64_t e = 0; e < s->wide; e++) {
            multiply_block(s->key_transposed + (e * s->key_blocks + g->first_key) * BLOCK, BLOCK,
                           s->ds_right + i * SPAN * BLOCK, BLOCK, g->keys,
                           s->d_query + ((g->first_query + i) * s->wide + e) * BLOCK, g->first_key > 0);
        }
    }
}

// Where the gradient of one (batch, head) goes: rows of any stride.
typedef struct gradient_rows {
    void *data;
    int64_t stride, count;
} gradient_rows;

static gradient_rows gradient_of(const backward_state *s, void *base, int64_t batch_stride, int64_t stride,
                                 int64_t count) {
    const int64_t at = attention_offset(s->p, s->batch, s->head, batch_stride);
    return (gradient_rows){attention_at_mutable(base, attention_result(s->p), at), stride, count};
}

// Rows [32 i, 32 i + 32) of a gradient from their [wide] blocks.
static void store_rows(const backward_state *s, gradient_rows to, int64_t i, const float *from, float scale) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (int64_t r = 0; r < EDGE && i * EDGE + r < to.count; r++) {
        for (int64_t e = 0; e < s->wide; e++) {
            const float *row = from + e * BLOCK + r * EDGE;
            store_results(s->p, to.data, (i * EDGE + r) * to.stride + e * EDGE, s->p->head_dim - e * EDGE,
                          _mm512_mul_ps(_mm512_load_ps(row), factor),
                          _mm512_mul_ps(_mm512_load_ps(row + LANES), factor));
        }
    }
}

static void transpose_block(float *block) {
    __m512i quarter[4][LANES];
    for (int r = 0; r < EDGE; r++) {
        quarter[r / LANES * 2][r % LANES] = _mm512_load_si512(block + r * EDGE);
        quarter[r / LANES * 2 + 1][r % LANES] = _mm512_load_si512(block + r * EDGE + LANES);
    }
    for (int i = 0; i < 4; i++) {
        transpose_16(quarter[i]);
        float *to = block + i % 2 * LANES * EDGE + i / 2 * LANES;
        for (int r = 0; r < LANES; r++) {
            _mm512_store_si512(to + r * EDGE, quarter[i][r]);
        }
    }
}

static void backward_span(const backward_state *s, const backward_step *g) {
    for (int64_t j = 0; j < g->keys; j++) {
        for (int64_t i = 0; i < g->queries; i++) {
            const int64_t left = (j * SPAN + i) * BLOCK;
            backward_scores(s, g->first_key + j, g->first_query + i);
            backward_softmax(s, g->first_query + i, attention_min(EDGE, s->keys - (g->first_key + j) * EDGE),
                             s->p_left + left, s->ds_left + left, s->ds_right + (i * SPAN + j) * BLOCK);
        }
    }
    key_products(s, g, s->p_left, s->d_out_rows, s->d_value);
    key_products(s, g, s->ds_left, s->query_rows, s->d_key);
    query_products(s, g);
}

// All queries for SPAN blocks of keys at a time, whose gradients are then complete.
static void backward_steps(const backward_state *s) {
    const ts_attention *p = s->p;
    const gradient_rows d_k = gradient_of(s, p->d_k, p->k_batch, p->k_row, s->keys);
    const gradient_rows d_v = gradient_of(s, p->d_v, p->v_batch, p->v_row, s->keys);
    for (int64_t j = 0; j < s->key_blocks; j += SPAN) {
        const int64_t keys = attention_min(SPAN, s->key_blocks - j);
        for (int64_t i = 0; i < s->query_blocks; i += SPAN) {
            const int64_t queries = attention_min(SPAN, s->query_blocks - i);
            backward_span(s, &(backward_step){j, keys, i, queries});
        }
        for (int64_t n = 0; n < keys; n++) {
            const int64_t at = n * s->wide * BLOCK;
            store_rows(s, d_k, j + n, s->d_key + at, p->scale);
            store_rows(s, d_v, j + n, s->d_value + at, 1.0f);
        }
    }
}

// Rows of keys that are masked out.
static void zero_rows(const backward_state *s, gradient_rows to) {
    const ts_dtype dtype = attention_result(s->p);
    for (int64_t r = s->keys; r < to.count; r++) {
        memset(attention_at_mutable(to.data, dtype, r * to.stride), 0, (size_t)s->p->head_dim * ts_dtype_bytes(dtype));
    }
}

static void backward(const ts_attention *p, int64_t batch, int64_t head, void *scratch) {
    backward_state s = {.p = p, .batch = batch, .head = head, .keys = attention_keys(p, batch)};
    backward_layout(p, &s, scratch);
    s.key_blocks = edges(s.keys);
    backward_pack(&s);
    backward_steps(&s);
    const gradient_rows d_q = gradient_of(&s, p->d_q, p->q_batch, p->q_row, p->queries);
    for (int64_t i = 0; i < s.query_blocks; i++) {
        float *from = s.d_query + i * s.wide * BLOCK;
        for (int64_t e = 0; e < s.wide; e++) {
            transpose_block(from + e * BLOCK);
        }
        store_rows(&s, d_q, i, from, p->scale);
    }
    zero_rows(&s, gradient_of(&s, p->d_k, p->k_batch, p->k_row, p->keys));
    zero_rows(&s, gradient_of(&s, p->d_v, p->v_batch, p->v_row, p->keys));
}
