// SPDX-License-Identifier: Apache-2.0
// Shared by parity.c (the command), parity_run.c (the components) and parity_compare.c (rows and layouts).
#ifndef TS_MODEL_PARITY_PRIVATE_H
#define TS_MODEL_PARITY_PRIVATE_H

#include "core/nn/tape.h"
#include "core/store/safetensors.h"

typedef struct ts_parity {
    const char *model, *config, *io_path, *grads_path;  // config and grads_path may be NULL
    ts_dtype operand_dtype;
    double tolerance;
    // the state of one check
    ts_safetensors *io, *grads;
    bool *seen;            // [tensors in io] compared, or an input
    const int32_t *level;  // row of temb for each token, once probed; [batch, tokens]
    int64_t batch, tokens;
    int compared, exceeded;
    int status;  // first failure inside a probe
} ts_parity;

// Runs the component that config.json names on the inputs in io and compares. 0 however far the tensors are apart.
int ts_parity_run(ts_parity *p);

// A tape probe (user = ts_parity): compares the variable with the tensor of its name in io, if there is one.
void ts_parity_probe(void *user, const char *name, const ts_var *var);
// Compares `ours`, in our layout, with a gradient in grads.
int ts_parity_gradient(ts_parity *p, const char *name, const float *ours, ts_shape shape);
// Prints a row and counts. Outputs are judged by the largest difference, gradients by its ratio to the largest value.
void ts_parity_row(ts_parity *p, const char *name, const float *ours, const float *reference, int64_t count,
                   bool relative);

// Tensor of io as f32 or i64 in a new buffer that the caller frees; TS_EINPUT when absent or not of `ndim` dimensions.
int ts_parity_read(ts_parity *p, const char *name, int ndim, ts_dtype dtype, ts_shape *shape, void **out);
// [B, C, N..] <-> [B, N.., C]
void ts_channels_last(const float *from, float *to, int64_t batch, int64_t channels, int64_t places);
void ts_channels_first(const float *from, float *to, int64_t batch, int64_t channels, int64_t places);

#endif
