// SPDX-License-Identifier: Apache-2.0
// Parameters to and from safetensors.
#ifndef TS_MODEL_WEIGHTS_H
#define TS_MODEL_WEIGHTS_H

#include "core/nn/param.h"

// Reads every parameter whose name starts with `prefix` from the tensor of the rest of that name, in `path` (a file, an
// index or a folder). Refuses missing tensors, tensors nobody asked for, wrong shapes, NaN and infinity. Operands are
// not refreshed.
int ts_weights_load(ts_params *params, const char *prefix, const char *path);
// Only whether names and shapes fit: before memory is allocated for sizes that nothing but a config.json claims.
int ts_weights_check(ts_params *params, const char *prefix, const char *path);

// Writes the parameters that start with `prefix`, f32, without the prefix; `values` is laid out as params->value.
int ts_weights_save(const ts_params *params, const float *values, const char *prefix, const char *path);

#endif
