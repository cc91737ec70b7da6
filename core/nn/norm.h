// SPDX-License-Identifier: Apache-2.0
// Normalisation layers over the last dimension.
#ifndef TS_NN_NORM_H
#define TS_NN_NORM_H

#include "core/nn/rows.h"

// Which row of a modulation table belongs to each row of a variable.
typedef struct ts_row_map {
    const int32_t *index;  // [rows], device memory; non-decreasing if a backward pass follows. NULL: table row 0 for all
    int64_t table_rows;
} ts_row_map;

//   y = (x - mean) / sqrt(variance + eps) * (scale_offset + scale[t]) + shift[t]         t = map.index[row]
// x f32 [.., D]; scale and shift: D columns of f32 variables [table rows, *] of one row stride, or .var NULL: plain.
// scale_offset 1 modulates; 0 with a weight and a bias is the affine layer norm. y in dtype_y.
ts_var *ts_nn_layer_norm(ts_tape *tape, ts_var *x, double eps, double scale_offset, ts_columns scale, ts_columns shift,
                         ts_row_map map, ts_dtype dtype_y);
// The affine form with its two parameters.
ts_var *ts_nn_layer_norm_affine(ts_tape *tape, ts_var *x, double eps, const ts_param *weight, const ts_param *bias,
                                ts_dtype dtype_y);

// Rotary position embedding: angles of `positions` consecutive rows, repeating.
typedef struct ts_rope {
    const float *cosine, *sine;  // [positions, head_dim / 2], device memory; NULL: no rotation
    int64_t positions, head_dim;
} ts_rope;

//   u = x / sqrt(mean(x^2) + eps) * weight;  pairs (2p, 2p+1) of each head of u rotate by angle[row % positions][p]
// over all columns taken (all heads together). x f32 or bf16; y [.., width of x] in dtype_y.
ts_var *ts_nn_rms_norm(ts_tape *tape, ts_columns x, double eps, const ts_param *weight, ts_rope rope, ts_dtype dtype_y);
// The same of columns that are cut over the ranks of rows.comm, as `weight` is: the mean is over all of theirs. x has
// rows.total rows. Their sums are all-reduced, f32, forward and backward: 2 (ranks - 1) / ranks * 4 bytes a row each
// way. Reproducible, forward: own rows are brought together by an all-to-all instead, and their sums gathered.
ts_var *ts_nn_rms_norm_cut(ts_tape *tape, ts_rows rows, ts_columns x, double eps, const ts_param *weight, ts_rope rope,
                           ts_dtype dtype_y);

#endif
