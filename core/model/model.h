// SPDX-License-Identifier: Apache-2.0
// A model folder: everything that turns a prompt into a video, in diffusers' layout.
//
//   MODEL/model_index.json                components, and our defaults for generation
//   MODEL/transformer/                    config.json + diffusion_pytorch_model.safetensors (or sharded)
//   MODEL/text_encoder/                   config.json + model.safetensors
//   MODEL/tokenizer/tokenizer.json
//   MODEL/codec/                          config.json + codec.safetensors
//   MODEL/scheduler/scheduler_config.json flow shift
#ifndef TS_MODEL_MODEL_H
#define TS_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/comm/mesh.h"
#include "core/model/codec.h"
#include "core/model/dit.h"
#include "core/model/text.h"
#include "core/model/tokenizer.h"
#include "core/model/weights.h"

// What a model was trained for; generation starts from these.
typedef struct ts_model_defaults {
    int64_t width, height, frames;  // pixels, pixel frames
    double fps;
    double flow_shift, guidance;
    int64_t steps;
} ts_model_defaults;

typedef struct ts_model {
    ts_params *params;  // transformer parameters "transformer.*" and text encoder parameters "text_encoder.*"
    ts_dit *dit;
    ts_text *text;  // trained jointly
    ts_tokenizer *tokenizer;
    ts_codec *codec;
    ts_model_defaults defaults;
} ts_model;

// A fresh model: parameters declared, allocated and initialised from `seed`. Takes ownership of tokenizer and codec on
// success; they stay the caller's on failure.
typedef struct ts_model_params {
    ts_dit_config dit;
    ts_text_config text;
    ts_model_defaults defaults;
    const ts_mesh *mesh;        // borrowed for the model's life: weights are cut over its tensor axis; NULL: one rank
    const ts_kernels *kernels;  // whose device holds the weights; NULL: the CPU's
    ts_dtype operand_dtype;
    uint64_t seed;
} ts_model_params;
int ts_model_new(ts_model **out, const ts_model_params *params, ts_tokenizer *tokenizer, ts_codec *codec);

// What a folder says of itself: `dit`, `text` and `defaults` of *out; nothing else of it is touched, no weight is read.
int ts_model_describe(ts_model_params *out, const char *folder);
// Loads a folder onto the device of `kernels` (NULL: the CPU's); each rank of the mesh (or NULL) reads its slices of
// the weights. Refuses NaN, wrong shapes, and parts that do not fit each other (channels, text width, vocabulary).
// Unless it is for training the f32 values of bf16 operands are dropped (ts_params_settle). Not collective: ranks may
// fail alone.
int ts_model_load(ts_model **out, const char *folder, const ts_kernels *kernels, const ts_mesh *mesh,
                  ts_dtype operand_dtype, bool for_training);
// Saves the weights or their moving average: each rank its parts (core/model/weights.h), streamed, whichever way the
// model is cut. Made in FOLDER.tmp, which then trades places with FOLDER: a kill leaves the one or the other.
// Collective over `world`, the same status on all ranks.
int ts_model_save_parts(const ts_model *model, const ts_weights_part *part, int64_t parts, const char *folder,
                        ts_comm *world);
// The same of one rank that holds all; `values` is a flat array in the layout of params->value, in host memory.
int ts_model_save(const ts_model *model, const float *values, const char *folder);
void ts_model_close(ts_model **model);

// Text context of prompts: tokenizes, runs the encoder on `tape`; [n, text_rows, text_dim] f32, zero beyond each
// prompt.
ts_var *ts_model_encode_text(ts_tape *tape, const ts_model *model, const char *const *prompts, int64_t n);

// Whether a prompt has no more tokens than the model reads; of a longer one the end has no effect.
int ts_model_text_fits(const ts_model *model, const char *prompt, bool *fits);

#endif
