// SPDX-License-Identifier: Apache-2.0
// Softmax attention:  O = softmax(scale * Q K^T + bias) V      per batch item and head
//
// q [B, Lq, heads * head_dim], k and v [B, Lk, heads * head_dim]: whole variables, or columns of fused projections, in
// the tape's operand dtype. O [B, Lq, heads * head_dim] in the same. Never an Lq x Lk matrix in memory.
#ifndef TS_NN_ATTENTION_H
#define TS_NN_ATTENTION_H

#include "core/nn/layer.h"

typedef struct ts_attention_heads {
    int64_t batch, heads, head_dim;
    double scale;
} ts_attention_heads;

// bias_strip f32 [heads, Lq + Lk - 1] or NULL: the bias of (query i, key j) is strip[h][j - i + Lq - 1].
// key_count [B], device memory, or NULL: keys from key_count[b] on are masked out; must outlive the backward pass.
ts_var *ts_nn_attention(ts_tape *tape, ts_attention_heads heads, ts_columns q, ts_columns k, ts_columns v,
                        ts_var *bias_strip, const int32_t *key_count);

// The keys of a batch item in `count` contexts of equal length, each seen by queries of its own: queries first[c] ..
// first[c + 1] - 1 of every batch item attend to context c alone. first [count + 1], from 0 to Lq, never falling, so
// that any context may be seen by none; it must outlive the backward pass. A count of 1 needs no `first`.
typedef struct ts_attention_contexts {
    int64_t count;
    const int64_t *first;
} ts_attention_contexts;
// k and v [B, count, keys of a context, heads * head_dim]. One kernel call a context, or one for all where they have
// equally many queries; of one context the call is that of ts_nn_attention.
ts_var *ts_nn_attention_contexts(ts_tape *tape, ts_attention_heads heads, ts_columns q, ts_columns k, ts_columns v,
                                 ts_attention_contexts contexts);

// The bias strip of T5's relative positions for `length` queries and keys:
//   strip[h][p] = table[bucket(p - (length - 1))][h]     table [buckets, heads]; p - (length - 1) = key - query
// Half of the buckets are for keys after the query; of each half, one half counts single steps, the rest grows
// logarithmically up to max_distance (Raffel et al. 2020, "Exploring the limits of transfer learning").
ts_var *ts_nn_relative_bias(ts_tape *tape, const ts_param *table, int64_t length, int64_t max_distance);
int64_t ts_relative_bucket(int64_t key_minus_query, int64_t buckets, int64_t max_distance);

#endif
