// SPDX-License-Identifier: Apache-2.0
// Text contexts of prompts: encoded once each, and mixed.
#ifndef TS_INFER_CONTEXTS_H
#define TS_INFER_CONTEXTS_H

#include "core/model/model.h"

typedef struct ts_contexts ts_contexts;

// `tape`, in run mode, is borrowed and reset; `batch` prompts are encoded together.
int ts_contexts_open(ts_contexts **out, const ts_model *model, ts_tape *tape, int64_t batch);
void ts_contexts_close(ts_contexts **contexts);

// Encodes those of these prompts that are new. Collective over the model's tensor axis.
int ts_contexts_add(ts_contexts *contexts, const char *const *prompt, int64_t n);
// The weighted sum of contexts of prompts that were added, those of weight 0 left out: out [text rows, text width] f32,
// memory of the model's device.
int ts_contexts_mix(const ts_contexts *contexts, const char *const *prompt, const float *weight, int64_t n, float *out);
int64_t ts_contexts_numbers(const ts_contexts *contexts);  // of one: text rows * text width

#endif
