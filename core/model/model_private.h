// SPDX-License-Identifier: Apache-2.0
// Shared by model.c (the object) and model_io.c (its folder).
#ifndef TS_MODEL_MODEL_PRIVATE_H
#define TS_MODEL_MODEL_PRIVATE_H

#include "core/model/model.h"

// Name prefixes of the parts in the parameter set.
extern const char *const TS_MODEL_TRANSFORMER;
extern const char *const TS_MODEL_TEXT;

// A model with zero weights; with `folder` (or NULL) only when the weights there have its names and shapes. Tokenizer
// and codec stay the caller's on failure.
int ts_model_assemble(ts_model **out, const ts_model_params *params, ts_tokenizer *tokenizer, ts_codec *codec,
                      const char *folder);
// Whether the weights of a model folder have the names and shapes of the declared parameters.
int ts_model_check_weights(ts_params *params, const char *folder);
// TS_EINPUT with the sizes that differ when the parts do not fit each other.
int ts_model_check_fit(const ts_dit_config *dit, const ts_text_config *text, const ts_tokenizer *tokenizer,
                       const ts_codec *codec);

#endif
