// SPDX-License-Identifier: Apache-2.0
// Pointwise layers.
#ifndef TS_NN_ACTIVATION_H
#define TS_NN_ACTIVATION_H

#include "core/nn/tape.h"

// y = x / (1 + exp(-x)), f32
ts_var *ts_nn_silu(ts_tape *tape, ts_var *x);
// y = x Phi(x), the exact GELU, f32 (the tanh form is fused into ts_nn_linear_gelu)
ts_var *ts_nn_gelu_erf(ts_tape *tape, ts_var *x);
// y = gelu_tanh(a) * b, both of one shape and dtype
ts_var *ts_nn_gated_gelu(ts_tape *tape, ts_var *a, ts_var *b);
// x rounded to `dtype`; x itself when it has that dtype already.
ts_var *ts_nn_cast(ts_tape *tape, ts_var *x, ts_dtype dtype);
// x [B, rows, D] f32 with the rows from counts[b] on set to zero. Takes x's memory: x must not be read afterwards, by
// backward functions either. counts, host memory, must outlive the backward pass.
ts_var *ts_nn_keep_rows(ts_tape *tape, ts_var *x, const int32_t *counts, int64_t batch);

#endif
