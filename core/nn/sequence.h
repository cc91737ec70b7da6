// SPDX-License-Identifier: Apache-2.0
// Attention over tokens that are sharded along the sequence axes, ring x ulysses of R x U ranks.
//
// A sample's L tokens are split over sequence rank s = ring * U + ulysses (ts_split over R U parts), so that a ring
// rank's U parts are consecutive. Ulysses (Jacobs et al. 2023, "DeepSpeed Ulysses"): one all-to-all turns [B, L_s, all
// heads] of q, k and v into [B, L_r, heads of this ulysses rank], L_r the tokens of the whole ulysses group; another
// brings the output back. Ring (Liu et al. 2023, "Ring attention with blockwise transformers"): keys and values travel
// round the ring, each stop attends to the block that is there, and running statistics merge the parts exactly:
//   lse' = log(e^lse + e^lse_j);   O' = e^(lse - lse') O + e^(lse_j - lse') O_j
// The product exchanges first; the ring then carries the group's tokens of the exchanged heads. Heads and tokens need
// not divide: parts are uneven (ts_split), and may be empty.
//
// Bytes a rank sends for B samples, e bytes an element, h heads of size d, n tokens on this rank s, h_u heads of
// ulysses rank u, L_r tokens on the U ranks of ring rank r, L_next those on ring rank r + 1:
//
//                ulysses, all-to-all                       ring, hops
//   forward      B e d [3 n (h - h_u) + (L_r - n) h_u]     2 B e d h_u (L - L_next)
//   backward     B e d [n (h - h_u) + 3 (L_r - n) h_u]     2 B d h_u [e (L - L_next) + 4 (L - L_r)]
//   calls each   2                                         R - 1 forward, 2 (R - 1) backward
//
// With even parts, S = R U and D = h d: ulysses (4 B L D e / S) (U - 1) / U each way; ring (2 B L D e / S) (R - 1)
// forward, and that with e + 4 for e backward. Backward of the ring sends K and V again, and their gradients in f32.
// With block recompute the forward's bytes are sent twice. With elementwise recompute the output of attention and its
// statistics are kept, so that the ring's tour is not made a second time; the exchanges are, since to keep what arrives
// would take 4 B n D e more bytes of every layer.
//
// Bits: ulysses gives those of one rank, forward and backward, of output and gradients alike. The ring adds the parts
// of a softmax up in an order of its own: in f32 the last digits differ, and bf16 outputs where rounding decides. On a
// reproducible mesh (ts_mesh.reproducible) its forward gives the bits of one rank, too.
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
