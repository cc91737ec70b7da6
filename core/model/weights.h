// SPDX-License-Identifier: Apache-2.0
// Parameters to and from safetensors.
#ifndef TS_MODEL_WEIGHTS_H
#define TS_MODEL_WEIGHTS_H

#include "core/nn/param.h"

// Reads every parameter whose name starts with `prefix` from the tensor of the rest of that name, in `path` (a file, an
// index or a folder), by way of a buffer of 16 MiB where the parameters are not the host's memory. Refuses missing
// tensors, tensors nobody asked for, wrong shapes, NaN and infinity. Operands are not refreshed.
int ts_weights_load(ts_params *params, const char *prefix, const char *path);
// Only whether names and shapes fit: before memory is allocated for sizes that nothing but a config.json claims.
int ts_weights_check(ts_params *params, const char *prefix, const char *path);

// Numbers of this rank: elements [first, first + count) of its part of a parameter.
typedef struct ts_weights_part {
    const ts_param *param;
    int64_t first, count;
    const float *data;  // host memory
} ts_weights_part;

// Writes the parameters that start with `prefix`, f32, without the prefix, whole: every rank its parts, of which every
// element is in exactly one. Other parts are passed over. `path` must not exist, and may be half written after an
// error: it belongs into a temporary folder. Collective over `world`.
int ts_weights_save_parts(const ts_params *params, const ts_weights_part *part, int64_t parts, const char *prefix,
                          const char *path, ts_comm *world);
// The parts of one rank that holds all, in a new array of params->count that the caller frees; `values` is laid out as
// params->value. NULL when memory is exhausted.
ts_weights_part *ts_weights_all(const ts_params *params, const float *values);
// Writes all of them, by one rank.
int ts_weights_save(const ts_params *params, const float *values, const char *prefix, const char *path);

#endif
