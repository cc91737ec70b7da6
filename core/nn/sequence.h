// SPDX-License-Identifier: Apache-2.0
// Attention over tokens that are sharded along the sequence axes, ring x ulysses of R x U ranks.
//
// A sample's L tokens are split over sequence rank s = ring * U + ulysses (ts_split over R U parts), so that a ring
// rank's U parts are consecutive. Ulysses (Jacobs et al. 2023, "DeepSpeed Ulysses"): one all-to-all turns [B, L_s, all
// heads] of q, k and v into [B, L_r, heads of this ulysses rank], L_r the tokens of the whole ulysses group; another
// brings the output back. Ring (Liu et al. 2023, "Ring attention with blockwise transformers"): keys and values travel
// round the ring, each stop attends to the block that is there, and running statistics merge the parts exactly:
//   lse' = log(e^lse + e^lse_j);   O' = e^(lse - lse') O + e^(lse_j - lse') O_j
// Heads and tokens need not divide: parts are uneven (ts_split), and may be empty.
//
// Bytes a rank sends, n_p the tokens of part p of a sample, h_u the heads of ulysses rank u, d the head size, e bytes
// an element, B samples:
//   ulysses forward    B e d [ 3 n_s (h - h_u)  +  (L_r - n_s) h_u ]     backward the same, turned round
//   ring forward       B e 2 d h_u (L - n of the block that is next after its own) .. see core/comm/README.md
#ifndef TS_NN_SEQUENCE_H
#define TS_NN_SEQUENCE_H

#include "core/comm/mesh.h"
#include "core/nn/attention.h"

// q, k, v: columns [B, L_s, heads * head_dim] of this rank's tokens in the tape's operand dtype (heads.heads are those
// this rank's tensor part has, alike on all ranks of the sequence group). `tokens` L of the whole sample.
// Result [B, L_s, heads * head_dim]. With one sequence rank (or a NULL mesh) it is ts_nn_attention. Collective over the
// sequence group, forward and backward.
ts_var *ts_nn_sequence_attention(ts_tape *tape, const ts_mesh *mesh, ts_attention_heads heads, int64_t tokens,
                                 ts_columns q, ts_columns k, ts_columns v);

#endif
