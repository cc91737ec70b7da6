// SPDX-License-Identifier: Apache-2.0
// The flow-matching loss (Lipman et al. 2023, "Flow matching for generative modeling"): with x_s = (1 - s) x0 + s e,
// the model's velocity v should equal e - x0.
#ifndef TS_NN_LOSS_H
#define TS_NN_LOSS_H

#include "core/nn/tape.h"

// Pointers are device memory.
typedef struct ts_velocity_loss {
    const float *target;  // [count of v]: noise - clean
    int64_t rows;         // v is seen as [rows, count / rows]: a row for each latent frame, say
    const float *weight;  // [rows] or NULL: held frames weigh 0
    double scale;         // 1 / (global number of weighted elements)
    double *loss;         // [1]
    double *row_loss;     // [rows] unscaled weighted sums, or NULL
} ts_velocity_loss;

//   loss = scale * sum_r weight[r] * sum_i (v[r,i] - target[r,i])^2
// Sets v's gradient when recording, so that ts_tape_backward(tape, v, NULL) follows. Returns the tape's status.
int ts_nn_velocity_loss(ts_tape *tape, ts_var *v, const ts_velocity_loss *p);

#endif
