// SPDX-License-Identifier: Apache-2.0
// The loss of a rank's own tokens: over the model group the parts add up to the loss of the samples, each token once.
#ifndef TS_TRAIN_TOKEN_LOSS_H
#define TS_TRAIN_TOKEN_LOSS_H

#include "core/model/dit.h"

typedef struct ts_token_target {
    const float *target;  // [B, T, H, W, C] of the whole samples: noise - clean; on the tape's device
    const float *weight;  // [B, frames], or NULL: 1; on the host
    int64_t frames;       // T
    double scale;         // of the sum of squared errors
    double *loss;         // [1] `=` this rank's part; on the device
} ts_token_target;

// Forward pass and loss. *velocity has its gradient when the tape records, so that ts_tape_backward(tape, *velocity,
// NULL) follows. Returns the tape's status. Collective over the model group.
int ts_token_loss(ts_tape *tape, const ts_dit *dit, const ts_dit_input *input, const ts_token_target *target,
                  ts_var **velocity);

#endif
