// SPDX-License-Identifier: Apache-2.0
// The body of every vector_LEVEL.c: all vector kernels, compiled for that file's instruction set, and the function
// TS_FILL that enters them into the table.
#include <math.h>

#include "core/base/status.h"
#include "core/kernels/adamw.h"
#include "core/kernels/cpu/cpu.h"
#include "core/kernels/cpu/vector.h"

#include "core/kernels/cpu/vector_activation.h"
#include "core/kernels/cpu/vector_optimizer.h"
#include "core/kernels/cpu/vector_rows.h"

#include "core/kernels/cpu/vector_norm.h"

void TS_FILL(ts_kernels *kernels) {
    kernels->bias_gradient = bias_gradient;
    kernels->layer_norm_forward = layer_norm_forward;
    kernels->layer_norm_backward = layer_norm_backward;
    kernels->rms_norm_forward = rms_norm_forward;
    kernels->rms_norm_backward = rms_norm_backward;
    kernels->rms_norm_squares = rms_norm_squares;
    kernels->rms_norm_products = rms_norm_products;
    kernels->gated_residual_forward = gated_residual_forward;
    kernels->gated_residual_backward = gated_residual_backward;
    kernels->gelu_forward = gelu_forward;
    kernels->gelu_backward = gelu_backward;
    kernels->gated_gelu_forward = gated_gelu_forward;
    kernels->gated_gelu_backward = gated_gelu_backward;
    kernels->silu_forward = silu_forward;
    kernels->silu_backward = silu_backward;
    kernels->softmax = softmax;
    kernels->add_rows = add_rows;
    kernels->sum_rows = sum_rows;
    kernels->axpy = axpy;
    kernels->scale = scale;
    kernels->cast = cast;
    kernels->sum_squares = sum_squares;
    kernels->mse = mse;
    kernels->adamw = adamw;
}
