// SPDX-License-Identifier: Apache-2.0
#include "train/token_loss.h"

#include "core/base/status.h"
#include "core/nn/layer.h"
#include "core/nn/loss.h"

int ts_token_loss(ts_tape *tape, const ts_dit *dit, const ts_dit_input *input, const ts_token_target *target,
                  ts_var **velocity) {
    *velocity = ts_dit_forward_tokens(tape, dit, input);
    TS_TRY(ts_tape_status(tape));
    const ts_shape video = input->latent->value.shape;
    const ts_tokens tokens = ts_dit_tokens(dit, video);
    const size_t rows = (size_t)tokens.rows.count;
    ts_arena *arena = ts_tape_arena(tape);
    float *own = ts_arena_alloc(arena, rows * (size_t)ts_dit_token_features(dit) * sizeof *own);
    float *spread = target->weight ? ts_tape_object(tape, rows * sizeof *spread) : NULL;
    if (!own || (target->weight && !spread)) {
        return TS_ERESOURCE;
    }
    TS_TRY(ts_dit_take_tokens(tape, dit, video, target->target, own));
    if (spread && ts_tape_computes(tape)) {
        ts_tokens_spread(&tokens, target->weight, target->frames, spread);
    }
    const float *weight = spread ? ts_tape_upload(tape, spread, rows * sizeof *spread) : NULL;
    TS_TRY(ts_tape_status(tape));
    return ts_nn_velocity_loss(
        tape, *velocity,
        &(ts_velocity_loss){
            .target = own, .rows = tokens.rows.count, .weight = weight, .scale = target->scale, .loss = target->loss});
}
