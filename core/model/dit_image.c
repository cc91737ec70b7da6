// SPDX-License-Identifier: Apache-2.0
#include "core/model/dit_private.h"
#include "core/nn/activation.h"
#include "core/nn/residual.h"

static const double IMAGE_EPS = 1e-5;

//   LN(W2 gelu(W1 LN(image + positions) + b1) + b2)        affine layer norms, exact GELU
ts_var *dit_image_embedding(ts_tape *tape, const ts_dit *dit, ts_var *image) {
    const dit_image *w = &dit->image;
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    if (w->positions) {
        image = ts_nn_add_rows(tape, image, ts_tape_param(tape, w->positions));
    }
    ts_var *y = ts_nn_layer_norm_affine(tape, image, IMAGE_EPS, w->norm_1_weight, w->norm_1_bias, dtype);
    y = ts_nn_gelu_erf(tape, ts_nn_linear(tape, &w->in, y, TS_F32));
    y = ts_nn_linear(tape, &w->out, ts_nn_cast(tape, y, dtype), TS_F32);
    return ts_nn_layer_norm_affine(tape, y, IMAGE_EPS, w->norm_2_weight, w->norm_2_bias, dtype);
}
