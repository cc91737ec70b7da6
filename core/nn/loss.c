// SPDX-License-Identifier: Apache-2.0
#include "core/nn/loss.h"

#include "core/nn/layer.h"

int ts_nn_velocity_loss(ts_tape *tape, ts_var *v, const ts_velocity_loss *p) {
    if (ts_tape_status(tape)) {
        return ts_tape_status(tape);
    }
    const int64_t count = ts_shape_count(v->value.shape);
    TS_ASSERT(v->value.dtype == TS_F32 && (p->rows > 0 ? count % p->rows : count) == 0);
    ts_grad_slot d_v = {0};
    if (v->needs_grad) {
        TS_TRY(ts_tape_try(tape, ts_grad_begin(tape, ts_whole(v), TS_F32, false, &d_v)));
    }
    const ts_mse args = {.rows = p->rows,
                         .width = p->rows ? count / p->rows : 0,
                         .v = v->value.data,
                         .target = p->target,
                         .weight = p->weight,
                         .scale = p->scale,
                         .loss = p->loss,
                         .row_loss = p->row_loss,
                         .d_v = d_v.data};
    TS_TRY(ts_tape_try(tape, TS_KERNEL(tape, mse, &args)));
    return v->needs_grad ? ts_tape_try(tape, ts_grad_end(tape, ts_whole(v), &d_v)) : 0;
}
