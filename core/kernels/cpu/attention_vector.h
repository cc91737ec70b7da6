// SPDX-License-Identifier: Apache-2.0
// Template of the attention engine in f32 arithmetic. Included once by the file of each instruction set, which defines
//   LANES        floats in a vector
//   ROWS         rows of a register tile; ROWS x 2 vectors of sums must fit the registers
//   VEC_MAX      VEC_MAX(a, b): a where it is greater, else b; so a NaN in b stays
//   max_lanes    float max_lanes(vector): the greatest lane
//   ENGINE_NAME  the engine defined here
// Vectors are the compiler's own (GCC and clang), so the arithmetic is written once for all widths.
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "core/kernels/cpu/attention.h"

enum {
    COLUMNS = 2 * LANES,  // of a register tile
    QUERY_BLOCK = 48,     // multiples of every ROWS and COLUMNS
    KEY_BLOCK = 96,
};
_Static_assert(QUERY_BLOCK % ROWS == 0 && KEY_BLOCK % ROWS == 0 && KEY_BLOCK % COLUMNS == 0, "blocks of whole tiles");

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

static inline vec vec_load(const float *from) {
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}
static inline void vec_store(float *to, vec v) {
    memcpy(to, &v, sizeof v);
}
static inline vec vec_set(float f) {
    return f - (vec){0};  // a plain broadcast: f - 0 is f, while 0 + f is not when f is -0
}
static inline float vec_sum_lanes(vec v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) {
        sum += v[i];
    }
    return sum;
}
// exp(x) for x <= 88, relative error 2e-7; exactly 0 below -87.7. With n the integer nearest to x / ln 2 and f the
// rest, exp(x) = 2^n 2^f, and a polynomial of least relative error gives 2^f. Adding 1.5 * 2^23 leaves n in the low
// bits of the mantissa.
static inline vec vec_exp(vec x) {
    const vec round = vec_set(0x1.8p23f), log2_e = vec_set(0x1.715476p0f);
    x = VEC_MAX(vec_set(-88.0f), x);
    const vec shifted = x * log2_e + round;
    const vec f = x * log2_e - (shifted - round);
    vec e = f * 0x1.5c08e6p-10f + 0x1.3d0c54p-7f;
    e = e * f + 0x1.c6b6e4p-5f;
    e = e * f + 0x1.ebf918p-3f;
    e = e * f + 0x1.62e428p-1f;
    e = e * f + 1.0f;
    const ivec power = ((ivec)shifted - (ivec)round + 127) << 23;
    return e * (vec)power;
}

static float exp_one(float x) {
    return vec_exp(vec_set(x))[0];
}

// ---- products

typedef struct matrix {  // element (i, k) is data[i * row + k * step]
    const float *data;
    int64_t row, step;
} matrix;

// ROWS rows and `vectors` vectors of C (+)= A B, held in registers over the whole depth.
static inline __attribute__((always_inline)) void multiply_tile(const int vectors, int64_t depth, matrix a,
                                                                const float *b, int64_t b_row, float *c, int64_t c_row,
                                                                bool accumulate) {
    vec sum[ROWS][2];
    for (int i = 0; i < ROWS; i++) {
        for (int j = 0; j < vectors; j++) {
            sum[i][j] = accumulate ? vec_load(c + i * c_row + j * LANES) : vec_set(0);
        }
    }
    for (int64_t k = 0; k < depth; k++) {
        vec right[2];
        for (int j = 0; j < vectors; j++) {
            right[j] = vec_load(b + k * b_row + j * LANES);
        }
        for (int i = 0; i < ROWS; i++) {
            const vec left = vec_set(a.data[i * a.row + k * a.step]);
            for (int j = 0; j < vectors; j++) {
                sum[i][j] += left * right[j];
            }
        }
    }
    for (int i = 0; i < ROWS; i++) {
        for (int j = 0; j < vectors; j++) {
            vec_store(c + i * c_row + j * LANES, sum[i][j]);
        }
    }
}

// C [rows, columns] (+)= A [rows, depth] B [depth, columns]. Whole tiles are computed: rows are rounded up to ROWS and
// columns to LANES, in scratch that has them. A C element's sum runs in order of depth wherever its tile lies.
static void multiply(int64_t rows, int64_t columns, int64_t depth, matrix a, const float *b, int64_t b_row, float *c,
                     int64_t c_row, bool accumulate) {
    for (int64_t j = 0; j < columns; j += COLUMNS) {
        for (int64_t i = 0; i < rows; i += ROWS) {
            const matrix a_rows = {a.data + i * a.row, a.row, a.step};
            if (columns - j > LANES) {
                multiply_tile(2, depth, a_rows, b + j, b_row, c + i * c_row + j, c_row, accumulate);
            } else {
                multiply_tile(1, depth, a_rows, b + j, b_row, c + i * c_row + j, c_row, accumulate);
            }
        }
    }
}

// ---- packing

// to [padded_rows, padded] f32 = scale * from [rows, head_dim] of any stride; the padding is zero.
static void pack_rows(float *to, int64_t padded, int64_t padded_rows, const void *from, ts_dtype dtype, int64_t stride,
                      int64_t rows, int64_t head_dim, float scale) {
    for (int64_t r = 0; r < rows; r++) {
        float *row = to + r * padded;
        if (dtype == TS_BF16) {
            const uint16_t *source = (const uint16_t *)from + r * stride;
            for (int64_t i = 0; i < head_dim; i++) {
                row[i] = scale * ts_bf16_to_f32(source[i]);
            }
        } else {
            const float *source = (const float *)from + r * stride;
            for (int64_t i = 0; i < head_dim; i++) {
                row[i] = scale * source[i];
            }
        }
        memset(row + head_dim, 0, (size_t)(padded - head_dim) * sizeof *row);
    }
    memset(to + rows * padded, 0, (size_t)((padded_rows - rows) * padded) * sizeof *to);
}

// to [rows, head_dim] of any stride = scale * from [rows, padded] f32
static void unpack_rows(void *to, ts_dtype dtype, int64_t stride, const float *from, int64_t padded, int64_t rows,
                        int64_t head_dim, float scale) {
    for (int64_t r = 0; r < rows; r++) {
        const float *row = from + r * padded;
        if (dtype == TS_BF16) {
            uint16_t *target = (uint16_t *)to + r * stride;
            for (int64_t i = 0; i < head_dim; i++) {
                target[i] = ts_f32_to_bf16(scale * row[i]);
            }
        } else {
            float *target = (float *)to + r * stride;
            for (int64_t i = 0; i < head_dim; i++) {
                target[i] = scale * row[i];
            }
        }
    }
}

static void zero_rows(void *to, ts_dtype dtype, int64_t stride, int64_t first, int64_t last, int64_t head_dim) {
    const size_t bytes = dtype == TS_BF16 ? 2 : 4;
    for (int64_t r = first; r < last; r++) {
        memset((char *)to + (size_t)(r * stride) * bytes, 0, (size_t)head_dim * bytes);
    }
}

// Blocks of KEY_BLOCK columns, each [head_dim, KEY_BLOCK]: to[block][i][c] = from[block * KEY_BLOCK + c][i]. Columns
// are filled up to a multiple of LANES.
static void transpose_blocks(float *to, const float *from, int64_t padded, int64_t rows, int64_t head_dim) {
    for (int64_t first = 0; first < rows; first += KEY_BLOCK) {
        float *block = to + first * head_dim;
        const int64_t columns = attention_min(KEY_BLOCK, attention_round_up(rows - first, LANES));
        for (int64_t c = 0; c < columns; c += LANES) {
            for (int64_t i = 0; i < head_dim; i++) {
                vec column;
                for (int lane = 0; lane < LANES; lane++) {
                    column[lane] = from[(first + c + lane) * padded + i];
                }
                vec_store(block + i * KEY_BLOCK + c, column);
            }
        }
    }
}

// Adds the bias of this query to its scores and puts -FLT_MAX behind the last key.
static void finish_scores(float *scores, const float *bias, int64_t keys) {
    for (int64_t j = 0; bias && j < keys; j++) {
        scores[j] += bias[j];
    }
    for (int64_t j = keys; j < attention_round_up(keys, LANES); j++) {
        scores[j] = -FLT_MAX;
    }
}

// Bias row of query i and its first key, or NULL.
static const float *bias_row(const ts_attention *p, int64_t head, int64_t query, int64_t first_key) {
    const int64_t strip = p->queries + p->keys - 1;
    return p->bias_strip ? p->bias_strip + head * strip + first_key - query + p->queries - 1 : NULL;
}

// ---- forward

typedef struct forward_scratch {
    int64_t padded;       // head_dim rounded up to LANES
    float *k_transposed;  // blocks [head_dim, KEY_BLOCK]
    float *k, *v;         // [keys, padded]
    float *q, *out;       // [QUERY_BLOCK, padded]
    float *scores;        // [QUERY_BLOCK, KEY_BLOCK], then probabilities
    float *maximum;       // [QUERY_BLOCK]
    float *sum;           // [QUERY_BLOCK, LANES], not yet added across lanes
} forward_scratch;

static size_t forward_layout(const ts_attention *p, forward_scratch *w, void *scratch) {
    const int64_t padded = attention_round_up(p->head_dim, LANES);
    const int64_t keys = attention_round_up(p->keys, KEY_BLOCK);
    uintptr_t cursor = (uintptr_t)scratch;
    w->padded = padded;
    w->k_transposed = attention_carve(&cursor, keys * p->head_dim, sizeof(float));
    w->k = attention_carve(&cursor, keys * padded, sizeof(float));
    w->v = attention_carve(&cursor, keys * padded, sizeof(float));
    w->q = attention_carve(&cursor, QUERY_BLOCK * padded, sizeof(float));
    w->out = attention_carve(&cursor, QUERY_BLOCK * padded, sizeof(float));
    w->scores = attention_carve(&cursor, QUERY_BLOCK * KEY_BLOCK, sizeof(float));
    w->maximum = attention_carve(&cursor, QUERY_BLOCK, sizeof(float));
    w->sum = attention_carve(&cursor, QUERY_BLOCK * LANES, sizeof(float));
    return cursor - (uintptr_t)scratch;
}

static size_t forward_bytes(const ts_attention *p) {
    forward_scratch w;
    return forward_layout(p, &w, NULL);
}

// One row of the online softmax: scores become exp(score - maximum); sums and `out` are rescaled when the maximum
// grows.
static void online_softmax(float *scores, int64_t keys, float *maximum, float *sum, float *out, int64_t padded) {
    vec top = vec_load(scores);
    for (int64_t j = LANES; j < keys; j += LANES) {
        top = VEC_MAX(vec_load(scores + j), top);
    }
    const float peak = fmaxf(max_lanes(top), *maximum);
    vec total = vec_load(sum);
    if (peak > *maximum) {
        const float fade = exp_one(*maximum - peak);
        for (int64_t i = 0; i < padded; i += LANES) {
            vec_store(out + i, vec_load(out + i) * fade);
        }
        total *= fade;
        *maximum = peak;
    }
    for (int64_t j = 0; j < keys; j += LANES) {
        const vec e = vec_exp(vec_load(scores + j) - peak);
        vec_store(scores + j, e);
        total += e;
    }
    vec_store(sum, total);
}

// Queries [first, first + count), at most QUERY_BLOCK.
static void forward_block(const ts_attention *p, const forward_scratch *w, int64_t batch, int64_t head, int64_t first,
                          int64_t count) {
    const int64_t padded = w->padded, keys = attention_keys(p, batch);
    const int64_t q_at = attention_offset(p, batch, head, p->q_batch) + first * p->q_row;
    pack_rows(w->q, padded, QUERY_BLOCK, attention_at(p->q, p->dtype, q_at), p->dtype, p->q_row, count, p->head_dim,
              p->scale);
    memset(w->out, 0, (size_t)(QUERY_BLOCK * padded) * sizeof *w->out);
    for (int64_t i = 0; i < QUERY_BLOCK; i++) {
        w->maximum[i] = -FLT_MAX;
        vec_store(w->sum + i * LANES, vec_set(0));
    }
    for (int64_t key = 0; key < keys; key += KEY_BLOCK) {
        const int64_t n = attention_min(KEY_BLOCK, keys - key);
        multiply(count, n, p->head_dim, (matrix){w->q, padded, 1}, w->k_transposed + key * p->head_dim, KEY_BLOCK,
                 w->scores, KEY_BLOCK, false);
        for (int64_t i = 0; i < count; i++) {
            float *scores = w->scores + i * KEY_BLOCK;
            finish_scores(scores, bias_row(p, head, first + i, key), n);
            online_softmax(scores, n, w->maximum + i, w->sum + i * LANES, w->out + i * padded, padded);
        }
        multiply(count, padded, n, (matrix){w->scores, KEY_BLOCK, 1}, w->v + key * padded, padded, w->out, padded,
                 true);
    }
    const ts_dtype result = attention_result(p);
    const int64_t out_at = attention_offset(p, batch, head, p->out_batch) + first * p->out_row;
    for (int64_t i = 0; i < count; i++) {
        const float sum = vec_sum_lanes(vec_load(w->sum + i * LANES));
        unpack_rows(attention_at_mutable(p->out, result, out_at + i * p->out_row), result, p->out_row,
                    w->out + i * padded, padded, 1, p->head_dim, 1.0f / sum);
        if (p->lse) {
            p->lse[(batch * p->heads + head) * p->queries + first + i] = w->maximum[i] + logf(sum);
        }
    }
}

static void forward(const ts_attention *p, int64_t batch, int64_t head, int64_t first, int64_t last, void *scratch) {
    forward_scratch w;
    forward_layout(p, &w, scratch);
    const int64_t keys = attention_keys(p, batch), padded_keys = attention_round_up(keys, LANES);
    const int64_t k_at = attention_offset(p, batch, head, p->k_batch);
    const int64_t v_at = attention_offset(p, batch, head, p->v_batch);
    pack_rows(w.k, w.padded, padded_keys, attention_at(p->k, p->dtype, k_at), p->dtype, p->k_row, keys, p->head_dim, 1);
    transpose_blocks(w.k_transposed, w.k, w.padded, keys, p->head_dim);
    pack_rows(w.v, w.padded, padded_keys, attention_at(p->v, p->dtype, v_at), p->dtype, p->v_row, keys, p->head_dim, 1);
    for (int64_t i = first; i < last; i += QUERY_BLOCK) {
        forward_block(p, &w, batch, head, i, attention_min(QUERY_BLOCK, last - i));
    }
}

// ---- backward

//   P = exp(S - lse)   dV = P^T dO   dP = dO V^T   dS = P * (dP - rowsum(dO * O))   dQ = scale dS K   dK = scale dS^T Q

typedef struct backward_scratch {
    int64_t padded;
    float *k_transposed, *v_transposed;  // blocks [head_dim, KEY_BLOCK]
    float *k, *v;                        // [keys, padded]
    float *q, *d_out, *d_q;              // [queries, padded]; q is scaled
    float *delta;                        // [queries]
    float *d_k, *d_v;                    // [KEY_BLOCK, padded]
    float *p, *ds;                       // [QUERY_BLOCK, KEY_BLOCK]
} backward_scratch;

static size_t backward_layout(const ts_attention *p, backward_scratch *w, void *scratch) {
    const int64_t padded = attention_round_up(p->head_dim, LANES);
    const int64_t keys = attention_round_up(p->keys, KEY_BLOCK), queries = attention_round_up(p->queries, QUERY_BLOCK);
    uintptr_t cursor = (uintptr_t)scratch;
    w->padded = padded;
    w->k_transposed = attention_carve(&cursor, keys * p->head_dim, sizeof(float));
    w->v_transposed = attention_carve(&cursor, keys * p->head_dim, sizeof(float));
    w->k = attention_carve(&cursor, keys * padded, sizeof(float));
    w->v = attention_carve(&cursor, keys * padded, sizeof(float));
    w->q = attention_carve(&cursor, queries * padded, sizeof(float));
    w->d_out = attention_carve(&cursor, queries * padded, sizeof(float));
    w->d_q = attention_carve(&cursor, queries * padded, sizeof(float));
    w->delta = attention_carve(&cursor, queries, sizeof(float));
    w->d_k = attention_carve(&cursor, KEY_BLOCK * padded, sizeof(float));
    w->d_v = attention_carve(&cursor, KEY_BLOCK * padded, sizeof(float));
    w->p = attention_carve(&cursor, QUERY_BLOCK * KEY_BLOCK, sizeof(float));
    w->ds = attention_carve(&cursor, QUERY_BLOCK * KEY_BLOCK, sizeof(float));
    return cursor - (uintptr_t)scratch;
}

static size_t backward_bytes(const ts_attention *p) {
    backward_scratch w;
    return backward_layout(p, &w, NULL);
}

// delta[i] = sum over head_dim of dO * O. The rows of O pass through d_q, which is not in use yet.
static void row_products(const ts_attention *p, const backward_scratch *w, int64_t batch, int64_t head) {
    const int64_t at = attention_offset(p, batch, head, p->out_batch);
    pack_rows(w->d_q, w->padded, p->queries, attention_at(p->out, p->dtype, at), p->dtype, p->out_row, p->queries,
              p->head_dim, 1);
    for (int64_t i = 0; i < p->queries; i++) {
        vec sum = vec_set(0);
        for (int64_t j = 0; j < w->padded; j += LANES) {
            sum += vec_load(w->d_q + i * w->padded + j) * vec_load(w->d_out + i * w->padded + j);
        }
        w->delta[i] = vec_sum_lanes(sum);
    }
}

// Everything of one (batch, head) that the blocks read; d_q starts from zero.
static void backward_pack(const ts_attention *p, const backward_scratch *w, int64_t batch, int64_t head) {
    const ts_dtype dtype = p->dtype;
    const int64_t keys = attention_keys(p, batch), padded_keys = attention_round_up(keys, LANES);
    const int64_t padded_queries = attention_round_up(p->queries, QUERY_BLOCK), d = p->head_dim;
    const void *q = attention_at(p->q, dtype, attention_offset(p, batch, head, p->q_batch));
    const void *k = attention_at(p->k, dtype, attention_offset(p, batch, head, p->k_batch));
    const void *v = attention_at(p->v, dtype, attention_offset(p, batch, head, p->v_batch));
    const void *d_out = attention_at(p->d_out, dtype, attention_offset(p, batch, head, p->out_batch));
    pack_rows(w->k, w->padded, padded_keys, k, dtype, p->k_row, keys, d, 1);
    pack_rows(w->v, w->padded, padded_keys, v, dtype, p->v_row, keys, d, 1);
    transpose_blocks(w->k_transposed, w->k, w->padded, keys, d);
    transpose_blocks(w->v_transposed, w->v, w->padded, keys, d);
    pack_rows(w->q, w->padded, padded_queries, q, dtype, p->q_row, p->queries, d, p->scale);
    pack_rows(w->d_out, w->padded, padded_queries, d_out, dtype, p->out_row, p->queries, d, 1);
    row_products(p, w, batch, head);
    memset(w->d_q, 0, (size_t)(padded_queries * w->padded) * sizeof *w->d_q);
}

// One row: scores in p become probabilities, dP in ds becomes dS.
static void softmax_gradient(float *p, float *ds, int64_t keys, float lse, float delta) {
    for (int64_t j = 0; j < keys; j += LANES) {
        const vec e = vec_exp(vec_load(p + j) - lse);
        vec_store(p + j, e);
        vec_store(ds + j, e * (vec_load(ds + j) - delta));
    }
}

// The gradients of one block of scores: queries [query, query + m), keys [key, key + n).
static void backward_block(const ts_attention *p, const backward_scratch *w, int64_t batch, int64_t head, int64_t query,
                           int64_t m, int64_t key, int64_t n) {
    const int64_t padded = w->padded, d = p->head_dim;
    const float *q = w->q + query * padded, *d_out = w->d_out + query * padded;
    const float *lse = p->lse + (batch * p->heads + head) * p->queries + query;
    multiply(m, n, d, (matrix){q, padded, 1}, w->k_transposed + key * d, KEY_BLOCK, w->p, KEY_BLOCK, false);
    multiply(m, n, d, (matrix){d_out, padded, 1}, w->v_transposed + key * d, KEY_BLOCK, w->ds, KEY_BLOCK, false);
    for (int64_t i = 0; i < m; i++) {
        float *p_row = w->p + i * KEY_BLOCK, *ds_row = w->ds + i * KEY_BLOCK;
        finish_scores(p_row, bias_row(p, head, query + i, key), n);
        softmax_gradient(p_row, ds_row, n, lse[i], w->delta[query + i]);
        if (p->d_bias_strip) {
            const int64_t strip = p->queries + p->keys - 1;
            float *d_bias = p->d_bias_strip + head * strip + key - (query + i) + p->queries - 1;
            for (int64_t j = 0; j < n; j++) {
                d_bias[j] += ds_row[j];
            }
        }
    }
    multiply(n, padded, m, (matrix){w->p, 1, KEY_BLOCK}, d_out, padded, w->d_v, padded, query > 0);
    multiply(n, padded, m, (matrix){w->ds, 1, KEY_BLOCK}, q, padded, w->d_k, padded, query > 0);
    multiply(m, padded, n, (matrix){w->ds, KEY_BLOCK, 1}, w->k + key * padded, padded, w->d_q + query * padded, padded,
             true);
}

static void backward(const ts_attention *p, int64_t batch, int64_t head, void *scratch) {
    backward_scratch w;
    backward_layout(p, &w, scratch);
    backward_pack(p, &w, batch, head);
    const ts_dtype dtype = attention_result(p);
    const int64_t keys = attention_keys(p, batch);
    void *d_q = attention_at_mutable(p->d_q, dtype, attention_offset(p, batch, head, p->q_batch));
    void *d_k = attention_at_mutable(p->d_k, dtype, attention_offset(p, batch, head, p->k_batch));
    void *d_v = attention_at_mutable(p->d_v, dtype, attention_offset(p, batch, head, p->v_batch));
    for (int64_t key = 0; key < keys; key += KEY_BLOCK) {
        const int64_t n = attention_min(KEY_BLOCK, keys - key);
        for (int64_t query = 0; query < p->queries; query += QUERY_BLOCK) {
            backward_block(p, &w, batch, head, query, attention_min(QUERY_BLOCK, p->queries - query), key, n);
        }
        unpack_rows(attention_at_mutable(d_k, dtype, key * p->k_row), dtype, p->k_row, w.d_k, w.padded, n, p->head_dim,
                    1);
        unpack_rows(attention_at_mutable(d_v, dtype, key * p->v_row), dtype, p->v_row, w.d_v, w.padded, n, p->head_dim,
                    1);
    }
    unpack_rows(d_q, dtype, p->q_row, w.d_q, w.padded, p->queries, p->head_dim, p->scale);
    zero_rows(d_k, dtype, p->k_row, keys, p->keys, p->head_dim);
    zero_rows(d_v, dtype, p->v_row, keys, p->keys, p->head_dim);
}

const ts_attention_engine ENGINE_NAME = {
    .forward_bytes = forward_bytes,
    .backward_bytes = backward_bytes,
    .forward = forward,
    .backward = backward,
};
