// SPDX-License-Identifier: Apache-2.0
// Shared by parity.c (the command), parity_run.c (the components), parity_whole.c (wholes from the ranks' parts) and
// parity_compare.c (rows and layouts).
#ifndef TS_MODEL_PARITY_PRIVATE_H
#define TS_MODEL_PARITY_PRIVATE_H

#include "core/comm/mesh.h"
#include "core/nn/rows.h"
#include "core/nn/tape.h"
#include "core/store/safetensors.h"

typedef struct ts_parity {
    ts_comm *world;
    const char *mesh_text;
    const char *model, *config, *io_path, *grads_path;  // config and grads_path may be NULL
    const ts_kernels *kernels;
    ts_dtype operand_dtype;
    double tolerance;
    // the state of one check
    ts_safetensors *io, *grads;
    bool *seen;  // [tensors in io] compared, or an input
    ts_mesh mesh;
    int64_t batch;     // samples in io
    ts_part samples;   // those of this rank
    ts_tokens tokens;  // this rank's own rows, of its samples
    int32_t *level;    // row of temb for each timestep, once probed; [own samples, per_sample]
    int64_t per_sample;
    int compared, exceeded;
    int status;  // first failure inside a probe
} ts_parity;

// Runs the component that config.json names on the inputs in io and compares. 0 however far the tensors are apart.
int ts_parity_run(ts_parity *p);

// A tape probe (user = ts_parity): compares the variable with the tensor of its name in io, if there is one.
void ts_parity_probe(void *user, const char *name, const ts_var *var);
// Compares `ours`, whole and in our layout, with a gradient in grads.
int ts_parity_gradient(ts_parity *p, const char *name, const float *ours, ts_shape shape);

// ---- wholes from parts: collective over the world; the same on every rank. *out is freed by the caller.
// How ranks hold a value.
typedef enum {
    PARITY_ALIKE,    // all of them whole
    PARITY_SAMPLES,  // own samples, alike on the ranks of a model group
    PARITY_PARTIAL,  // own samples, to be summed over those ranks
    PARITY_ROWS      // own rows of own samples
} ts_parity_layout;
// From this rank's part `data`, host memory: *whole is the shape that it has of all samples; PARITY_ROWS: [batch,
// tokens, width].
int ts_parity_whole(const ts_parity *p, ts_parity_layout layout, const float *data, ts_shape shape, ts_shape *whole,
                    float **out);
// The sum of all ranks' gradients of a parameter, slices put into their places.
int ts_parity_whole_gradient(const ts_parity *p, const ts_param *param, float **out);
// Prints a row (rank 0) and counts. Outputs are judged by the largest difference, gradients by its ratio to the largest
// value.
void ts_parity_row(ts_parity *p, const char *name, const float *ours, const float *reference, int64_t count,
                   bool relative);

// Tensor of io as f32 or i64 in a new buffer that the caller frees; TS_EINPUT when absent or not of `ndim` dimensions.
int ts_parity_read(ts_parity *p, const char *name, int ndim, ts_dtype dtype, ts_shape *shape, void **out);
// [B, C, N..] <-> [B, N.., C]
void ts_channels_last(const float *from, float *to, int64_t batch, int64_t channels, int64_t places);
void ts_channels_first(const float *from, float *to, int64_t batch, int64_t channels, int64_t places);

#endif
