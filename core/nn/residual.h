// SPDX-License-Identifier: Apache-2.0
// Sums on the residual stream.
#ifndef TS_NN_RESIDUAL_H
#define TS_NN_RESIDUAL_H

#include "core/nn/norm.h"

//   out = x + y * gate[t]       t = map.index[row];  gate .var NULL: out = x + y
// x, out f32 [.., D]; y operand dtype or f32; gate: D columns of an f32 variable.
// Unless recorded, the sum takes x's memory: x must not be read afterwards. Recorded, x's gradient is that of out
// itself, handed over without a copy.
ts_var *ts_nn_gated_residual(ts_tape *tape, ts_var *x, ts_var *y, ts_columns gate, ts_row_map map);
static inline ts_var *ts_nn_residual(ts_tape *tape, ts_var *x, ts_var *y) {
    return ts_nn_gated_residual(tape, x, y, (ts_columns){0}, (ts_row_map){0});
}
// The same as the last sum of a block: under elementwise recompute it is kept, since it is the next block's input.
ts_var *ts_nn_block_sum(ts_tape *tape, ts_var *x, ts_var *y, ts_columns gate, ts_row_map map);

// out[r] = x[r] + b[r % rows of b], f32, both [.., D]. Positions, table entries.
ts_var *ts_nn_add_rows(ts_tape *tape, ts_var *x, ts_var *b);
// out[r] = x[r] + b[(first + r) % rows of b]       first < rows of b
ts_var *ts_nn_add_rows_from(ts_tape *tape, ts_var *x, ts_var *b, int64_t first);

#endif
