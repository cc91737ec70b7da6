// SPDX-License-Identifier: Apache-2.0
// Inside core/nn/sequence*.c only: a rank's place on the sequence axes, and the ring part of attention over them.
#ifndef TS_NN_SEQUENCE_PRIVATE_H
#define TS_NN_SEQUENCE_PRIVATE_H

#include "core/base/split.h"
#include "core/nn/collective.h"
#include "core/nn/sequence.h"

typedef struct sequence_place {
    ts_comm *ulysses, *ring;
    bool reproducible;            // as the mesh says
    int64_t tokens;               // L, of a whole sample
    ts_attention_heads all, own;  // heads before and after the exchange: those of the group, those of this ulysses rank
} sequence_place;

// The tokens of a ring rank, that is of the ulysses group at this place of the ring. As ts_split rounds, the parts of
// the group's ranks are a split of exactly these.
static inline ts_part sequence_group(const sequence_place *place, int ring_rank) {
    return ts_split(place->tokens, ts_comm_size(place->ring), ring_rank);
}

// The tokens of a rank of this rank's ulysses group.
static inline ts_part sequence_part(const sequence_place *place, int ulysses_rank) {
    const int ring = ts_comm_rank(place->ring), group = ts_comm_size(place->ulysses);
    return ts_split(place->tokens, ts_comm_size(place->ring) * group, ring * group + ulysses_rank);
}

// Attention of the group's tokens, own heads, over all tokens: q, k, v [B, L_r, own heads * head_dim] of ring rank r.
// Collective over place->ring, forward and backward.
ts_var *sequence_ring_attention(ts_tape *tape, const sequence_place *place, ts_columns q, ts_columns k, ts_columns v);

#endif
