// SPDX-License-Identifier: Apache-2.0
#include "core/model/model.h"

#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/model/model_private.h"
#include "core/nn/layer.h"

const char *const TS_MODEL_TRANSFORMER = "transformer.";
const char *const TS_MODEL_TEXT = "text_encoder.";

int ts_model_assemble(ts_model **out, const ts_model_params *params, ts_tokenizer *tokenizer, ts_codec *codec,
                      const char *folder) {
    int status = ts_model_check_fit(&params->dit, &params->text, tokenizer, codec);
    if (status) {
        return folder ? ts_fail_context(status, "%s", folder) : status;
    }
    ts_model *model = ts_calloc(1, sizeof *model);
    if (!model) {
        return TS_ERESOURCE;
    }
    model->defaults = params->defaults;
    TS_TRY_GOTO(status, ts_params_open(&model->params), failed);
    model->params->mesh = params->mesh;
    model->params->kernels = params->kernels;
    TS_TRY_GOTO(status, ts_dit_open(&model->dit, &params->dit, model->params, TS_MODEL_TRANSFORMER), failed);
    TS_TRY_GOTO(status, ts_text_open(&model->text, &params->text, model->params, TS_MODEL_TEXT), failed);
    if (folder) {
        TS_TRY_GOTO(status, ts_model_check_weights(model->params, folder), failed);
    }
    TS_TRY_GOTO(status, ts_params_allocate(model->params, params->operand_dtype, false), failed);
    model->tokenizer = tokenizer;
    model->codec = codec;
    *out = model;
    return 0;
failed:
    ts_model_close(&model);
    return status;
}

static int init_weights(ts_model *model, uint64_t seed) {
    TS_TRY(ts_dit_init(model->dit, seed));
    TS_TRY(ts_text_init(model->text, seed));
    return ts_params_refresh_operands(model->params);
}

int ts_model_new(ts_model **out, const ts_model_params *params, ts_tokenizer *tokenizer, ts_codec *codec) {
    ts_model *model;
    TS_TRY(ts_model_assemble(&model, params, tokenizer, codec, NULL));
    const int status = init_weights(model, params->seed);
    if (status) {
        model->tokenizer = NULL;  // still the caller's, as the codec
        model->codec = NULL;
        ts_model_close(&model);
        return status;
    }
    *out = model;
    return 0;
}

int ts_model_check_fit(const ts_dit_config *dit, const ts_text_config *text, const ts_tokenizer *tokenizer,
                       const ts_codec *codec) {
    const int64_t channels = ts_codec_get_info(codec).channels, vocabulary = ts_tokenizer_vocabulary(tokenizer);
    if (dit->in_channels != channels || dit->out_channels != channels) {
        return TS_FAIL(TS_EINPUT, "the transformer has %lld input and %lld output channels, the codec makes %lld",
                       (long long)dit->in_channels, (long long)dit->out_channels, (long long)channels);
    }
    if (dit->text_dim != text->width) {
        return TS_FAIL(TS_EINPUT, "the transformer wants text of width %lld, the text encoder makes %lld",
                       (long long)dit->text_dim, (long long)text->width);
    }
    if (vocabulary > text->vocabulary) {
        return TS_FAIL(TS_EINPUT, "the tokenizer has %lld words, the text encoder knows %lld", (long long)vocabulary,
                       (long long)text->vocabulary);
    }
    if (dit->image_dim) {
        return TS_FAIL(TS_EINPUT, "this transformer wants image features, and a model folder holds no image encoder");
    }
    return 0;
}

void ts_model_close(ts_model **model) {
    if (!*model) {
        return;
    }
    ts_codec_close(&(*model)->codec);
    ts_tokenizer_close(&(*model)->tokenizer);
    ts_text_close(&(*model)->text);
    ts_dit_close(&(*model)->dit);
    ts_params_close(&(*model)->params);
    free(*model);
    *model = NULL;
}

static int tokenize(const ts_model *model, const char *const *prompts, int64_t n, int64_t rows, int32_t *ids,
                    int32_t *counts) {
    for (int64_t i = 0; i < n; i++) {
        int64_t count;
        const int status = ts_tokenizer_encode(model->tokenizer, prompts[i], rows, ids + i * rows, &count);
        if (status) {
            return ts_fail_context(status, "prompt %lld", (long long)i + 1);
        }
        counts[i] = (int32_t)count;
    }
    return 0;
}

ts_var *ts_model_encode_text(ts_tape *tape, const ts_model *model, const char *const *prompts, int64_t n) {
    if (ts_tape_status(tape)) {
        return NULL;
    }
    const int64_t rows = ts_dit_get_config(model->dit)->text_rows;
    int32_t *ids = ts_tape_object(tape, (size_t)(n * rows) * sizeof *ids);
    int32_t *counts = ts_tape_object(tape, (size_t)n * sizeof *counts);
    if (!ids || !counts || ts_tape_try(tape, tokenize(model, prompts, n, rows, ids, counts))) {
        return NULL;
    }
    return ts_text_forward(tape, model->text, ids, counts, n, rows, true);
}

int ts_model_text_fits(const ts_model *model, const char *prompt, bool *fits) {
    const int64_t rows = ts_dit_get_config(model->dit)->text_rows;
    int64_t count = 0;
    int32_t *ids = ts_malloc((size_t)(rows + 1) * sizeof *ids);
    const int status = ids ? ts_tokenizer_encode(model->tokenizer, prompt, rows + 1, ids, &count) : TS_ERESOURCE;
    free(ids);
    *fits = count <= rows;
    return status;
}
