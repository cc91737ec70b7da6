// SPDX-License-Identifier: Apache-2.0
// Ways into and out of token space.
#ifndef TS_NN_EMBED_H
#define TS_NN_EMBED_H

#include "core/nn/tape.h"

// video [B, T, H, W, C] f32 -> tokens [B, L, C * pt * ph * pw] in dtype; token order (t, h, w), feature order
// (c, pt, ph, pw), that of a Conv3d weight.
ts_var *ts_nn_patchify(ts_tape *tape, ts_var *video, const int64_t patch[3], ts_dtype dtype);
// tokens [B, L, pt * ph * pw * C], feature order (pt, ph, pw, c) -> video `shape` [B, T, H, W, C] f32
ts_var *ts_nn_unpatchify(ts_tape *tape, ts_var *tokens, const int64_t patch[3], ts_shape shape);

// y [n.., width] f32 = table[id], table [vocabulary, width]; `shape` is that of id. id, device memory, must outlive the
// backward pass.
ts_var *ts_nn_embedding(ts_tape *tape, const ts_param *table, const int32_t *id, ts_shape shape);

// y [rows, 2 half] f32 = [cos(t w_i) | sin(t w_i)], w_i = 10000^(-i / half). t [rows], device memory. No gradient.
ts_var *ts_nn_sinusoid(ts_tape *tape, const float *t, int64_t rows, int64_t half);

#endif
