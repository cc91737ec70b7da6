// SPDX-License-Identifier: Apache-2.0
// The text encoder: T5-style, in the UMT5 form (own relative position bias in every layer), tensor names of
// transformers.
#ifndef TS_MODEL_TEXT_H
#define TS_MODEL_TEXT_H

#include <jansson.h>
#include <stdint.h>

#include "core/nn/param.h"
#include "core/nn/tape.h"

typedef struct ts_text_config {
    int64_t vocabulary, width, head_dim, heads, ffn_dim, layers;
    int64_t buckets, max_distance;
    double eps;
} ts_text_config;

typedef struct ts_text ts_text;

int ts_text_config_from_json(ts_text_config *out, const json_t *config, const char *name);
json_t *ts_text_config_to_json(const ts_text_config *config);
int ts_text_open(ts_text **out, const ts_text_config *config, ts_params *params, const char *prefix);
void ts_text_close(ts_text **text);
const ts_text_config *ts_text_get_config(const ts_text *text);
int ts_text_init(ts_text *text, uint64_t seed);

// ids [B, rows] padded with 0, counts [B] real ids of each (host memory). Result [B, rows, width] f32; rows from
// counts[b] on are zero when zero_padding (what the transformer expects), else whatever the encoder gives.
ts_var *ts_text_forward(ts_tape *tape, const ts_text *text, const int32_t *ids, const int32_t *counts, int64_t batch,
                        int64_t rows, bool zero_padding);
// The same of prompts of full length, whatever they say: for counting and timing. Result [B, rows, width] f32.
ts_var *ts_text_forward_full(ts_tape *tape, const ts_text *text, int64_t batch, int64_t rows);

#endif
