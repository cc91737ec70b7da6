// SPDX-License-Identifier: Apache-2.0
#include "core/model/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/json.h"
#include "core/base/status.h"
#include "core/nn/activation.h"
#include "core/nn/attention.h"
#include "core/nn/embed.h"
#include "core/nn/linear.h"
#include "core/nn/residual.h"

typedef struct text_block {
    ts_linear qkv, out;  // [3 inner, D], [D, inner]: inner = heads * head_dim need not be D
    ts_param *bias;      // [buckets, heads]
    ts_param *norm_attention, *norm_ffn;
    ts_linear gate, up, down;  // wi_0, wi_1, wo
} text_block;

struct ts_text {
    ts_text_config config;
    ts_param *embedding;  // [vocabulary, D]
    text_block *block;    // [layers]
    ts_param *norm;
};

// ---- configuration

enum { MAX_SIZE = 1 << 20, MAX_LAYERS = 1024, PREFIX_BYTES = 160 };

static int check_kind(const json_t *config, const char *name) {
    const char *text;
    TS_TRY(ts_json_string_or(config, "model_type", name, "umt5", &text));
    if (strcmp(text, "umt5") != 0) {
        return TS_FAIL(TS_EINPUT, "%s: model_type is '%s', only umt5 is supported", name, text);
    }
    TS_TRY(ts_json_string_or(config, "feed_forward_proj", name, "gated-gelu", &text));
    if (strcmp(text, "gated-gelu") != 0) {
        return TS_FAIL(TS_EINPUT, "%s: feed_forward_proj is '%s', only gated-gelu is supported", name, text);
    }
    return 0;
}

int ts_text_config_from_json(ts_text_config *out, const json_t *config, const char *name) {
    ts_text_config c = {0};
    TS_TRY(check_kind(config, name));
    TS_TRY(ts_json_int_or(config, "vocab_size", name, 1, 1 << 24, 250112, &c.vocabulary));
    TS_TRY(ts_json_int_or(config, "d_model", name, 1, MAX_SIZE, 512, &c.width));
    TS_TRY(ts_json_int_or(config, "d_kv", name, 1, MAX_SIZE, 64, &c.head_dim));
    TS_TRY(ts_json_int_or(config, "d_ff", name, 1, MAX_SIZE, 1024, &c.ffn_dim));
    TS_TRY(ts_json_int_or(config, "num_layers", name, 1, MAX_LAYERS, 8, &c.layers));
    TS_TRY(ts_json_int_or(config, "num_heads", name, 1, MAX_SIZE, 6, &c.heads));
    TS_TRY(ts_json_int_or(config, "relative_attention_num_buckets", name, 4, 4096, 32, &c.buckets));
    TS_TRY(ts_json_int_or(config, "relative_attention_max_distance", name, 2, MAX_SIZE, 128, &c.max_distance));
    TS_TRY(ts_json_real_or(config, "layer_norm_epsilon", name, 1e-6, &c.eps));
    if (c.buckets % 2 || c.max_distance <= c.buckets / 4) {
        return TS_FAIL(TS_EINPUT,
                       "%s: relative_attention_num_buckets must be even and relative_attention_max_distance above a "
                       "quarter of it",
                       name);
    }
    if (c.heads * c.head_dim > MAX_SIZE || !(c.eps > 0.0 && c.eps < 1.0)) {
        return TS_FAIL(TS_EINPUT, "%s: num_heads x d_kv is above %d, or layer_norm_epsilon is not between 0 and 1",
                       name, MAX_SIZE);
    }
    *out = c;
    return 0;
}

json_t *ts_text_config_to_json(const ts_text_config *c) {
    return json_pack("{s:[s], s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:i, s:i}",  //
                     "architectures", "UMT5EncoderModel",                                         //
                     "model_type", "umt5", "feed_forward_proj", "gated-gelu",                     //
                     "vocab_size", (json_int_t)c->vocabulary, "d_model", (json_int_t)c->width,    //
                     "d_kv", (json_int_t)c->head_dim, "d_ff", (json_int_t)c->ffn_dim,             //
                     "num_layers", (json_int_t)c->layers, "num_heads", (json_int_t)c->heads,      //
                     "relative_attention_num_buckets", (json_int_t)c->buckets,                    //
                     "relative_attention_max_distance", (json_int_t)c->max_distance,              //
                     "layer_norm_epsilon", c->eps, "pad_token_id", 0, "eos_token_id", 1);
}

// ---- parameters

// Vectors and tables do not decay.
static int declare(ts_param **out, ts_params *params, const char *prefix, const char *name, ts_shape shape) {
    return ts_params_declare(out, params, prefix, name, shape, false);
}

static int open_block(text_block *b, const ts_text_config *c, ts_params *params, const char *prefix, int64_t index) {
    const int64_t D = c->width, inner = c->heads * c->head_dim;
    char at[PREFIX_BYTES];
    snprintf(at, sizeof at, "%sencoder.block.%lld.layer.0.", prefix, (long long)index);
    const char *const qkv[] = {"SelfAttention.q", "SelfAttention.k", "SelfAttention.v"};
    TS_TRY(ts_linear_open_joined(&b->qkv, params, at, qkv, 3, D, inner, false));
    TS_TRY(ts_linear_open(&b->out, params, at, "SelfAttention.o", inner, D, false));
    TS_TRY(
        declare(&b->bias, params, at, "SelfAttention.relative_attention_bias.weight", TS_SHAPE(c->buckets, c->heads)));
    TS_TRY(declare(&b->norm_attention, params, at, "layer_norm.weight", TS_SHAPE(D)));
    snprintf(at, sizeof at, "%sencoder.block.%lld.layer.1.", prefix, (long long)index);
    TS_TRY(ts_linear_open(&b->gate, params, at, "DenseReluDense.wi_0", D, c->ffn_dim, false));
    TS_TRY(ts_linear_open(&b->up, params, at, "DenseReluDense.wi_1", D, c->ffn_dim, false));
    TS_TRY(ts_linear_open(&b->down, params, at, "DenseReluDense.wo", c->ffn_dim, D, false));
    ts_linear *const hidden[] = {&b->qkv, &b->out, &b->gate, &b->up, &b->down};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++) {
        ts_linear_mark_hidden(hidden[i]);
    }
    return declare(&b->norm_ffn, params, at, "layer_norm.weight", TS_SHAPE(D));
}

static int open_all(ts_text *text, ts_params *params, const char *prefix) {
    const ts_text_config *c = &text->config;
    TS_TRY(declare(&text->embedding, params, prefix, "shared.weight", TS_SHAPE(c->vocabulary, c->width)));
    for (int64_t i = 0; i < c->layers; i++) {
        TS_TRY(open_block(&text->block[i], c, params, prefix, i));
    }
    return declare(&text->norm, params, prefix, "encoder.final_layer_norm.weight", TS_SHAPE(c->width));
}

int ts_text_open(ts_text **out, const ts_text_config *config, ts_params *params, const char *prefix) {
    TS_ASSERT(strlen(prefix) < PREFIX_BYTES / 2);
    ts_text *text = ts_calloc(1, sizeof *text);
    if (!text) {
        return TS_ERESOURCE;
    }
    text->config = *config;
    text->block = ts_calloc((size_t)config->layers, sizeof *text->block);
    const int status = text->block ? open_all(text, params, prefix) : TS_ERESOURCE;
    if (status) {
        ts_text_close(&text);
        return status;
    }
    *out = text;
    return 0;
}

void ts_text_close(ts_text **text) {
    if (*text) {
        free((*text)->block);
        free(*text);
        *text = NULL;
    }
}

const ts_text_config *ts_text_get_config(const ts_text *text) {
    return &text->config;
}

// Attention has no 1/sqrt(head_dim): it is in the deviation of q's weights.
int ts_text_init(ts_text *text, uint64_t seed) {
    const ts_text_config *c = &text->config;
    const double inner = (double)(c->heads * c->head_dim);
    TS_TRY(ts_param_init_normal(text->embedding, seed, 1.0f));
    for (int64_t i = 0; i < c->layers; i++) {
        text_block *b = &text->block[i];
        TS_TRY(ts_linear_init(&b->qkv, seed, 1.0));
        TS_TRY(ts_param_init_normal(b->qkv.weight[0], seed, (float)(1.0 / sqrt((double)(c->width * c->head_dim)))));
        TS_TRY(ts_linear_init(&b->out, seed, 1.0));
        TS_TRY(ts_param_init_normal(b->bias, seed, (float)(1.0 / sqrt(inner))));
        TS_TRY(ts_param_init_constant(b->norm_attention, 1.0f));
        TS_TRY(ts_linear_init(&b->gate, seed, 1.0));
        TS_TRY(ts_linear_init(&b->up, seed, 1.0));
        TS_TRY(ts_linear_init(&b->down, seed, 1.0));
        TS_TRY(ts_param_init_constant(b->norm_ffn, 1.0f));
    }
    return ts_param_init_constant(text->norm, 1.0f);
}

// ---- forward

typedef struct block_context {
    const ts_text_config *config;
    const text_block *block;
    const int32_t *counts;  // [batch], device memory
    int64_t batch, rows;
} block_context;

static ts_var *rms_norm(ts_tape *tape, ts_var *x, double eps, const ts_param *weight, ts_dtype dtype) {
    return ts_nn_rms_norm(tape, ts_whole(x), eps, weight, (ts_rope){0}, dtype);
}

//   x += o(Attention(q n, k n, v n; bias))     n = RMS(x), no 1/sqrt(head_dim)
//   x += wo(gelu(wi_0 n) * (wi_1 n))           n = RMS(x)
static ts_var *block_forward(ts_tape *tape, const void *context, ts_var *const *inputs) {
    const block_context *bc = context;
    const ts_text_config *c = bc->config;
    const text_block *b = bc->block;
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    const int64_t inner = c->heads * c->head_dim;
    const ts_attention_heads heads = {bc->batch, c->heads, c->head_dim, 1.0};
    ts_var *x = inputs[0];

    ts_var *qkv = ts_nn_linear(tape, &b->qkv, rms_norm(tape, x, c->eps, b->norm_attention, dtype), dtype);
    ts_var *bias = ts_nn_relative_bias(tape, b->bias, bc->rows, c->max_distance);
    ts_var *o = ts_nn_attention(tape, heads, (ts_columns){qkv, 0, inner}, (ts_columns){qkv, inner, inner},
                                (ts_columns){qkv, 2 * inner, inner}, bias, bc->counts);
    x = ts_nn_residual(tape, x, ts_nn_linear(tape, &b->out, o, dtype));

    ts_var *n = rms_norm(tape, x, c->eps, b->norm_ffn, dtype);
    ts_var *u = ts_nn_gated_gelu(tape, ts_nn_linear(tape, &b->gate, n, dtype), ts_nn_linear(tape, &b->up, n, dtype));
    return ts_nn_residual(tape, x, ts_nn_linear(tape, &b->down, u, dtype));
}

static int check_input(const ts_text_config *c, const int32_t *ids, const int32_t *counts, int64_t batch,
                       int64_t rows) {
    if (batch < 1) {
        return TS_FAIL(TS_EINPUT, "there is no text to encode");
    }
    for (int64_t b = 0; b < batch; b++) {
        if (counts[b] < 1 || counts[b] > rows) {
            return TS_FAIL(TS_EINPUT, "text %lld has %d ids, must be from 1 to %lld", (long long)b, counts[b],
                           (long long)rows);
        }
    }
    for (int64_t i = 0; i < batch * rows; i++) {
        if (ids[i] < 0 || ids[i] >= c->vocabulary) {
            return TS_FAIL(TS_EINPUT,
                           "text id %d is not below the vocabulary's size %lld: tokenizer and text encoder "
                           "do not fit each other",
                           ids[i], (long long)c->vocabulary);
        }
    }
    return 0;
}

ts_var *ts_text_forward(ts_tape *tape, const ts_text *text, const int32_t *ids, const int32_t *counts, int64_t batch,
                        int64_t rows, bool zero_padding) {
    const ts_text_config *c = &text->config;
    if (ts_tape_status(tape) || ts_tape_try(tape, check_input(c, ids, counts, batch, rows))) {
        return NULL;
    }
    // Backward reads ids and counts again: keep copies.
    int32_t *id = ts_tape_object(tape, (size_t)(batch * rows) * sizeof *id);
    int32_t *count = ts_tape_object(tape, (size_t)batch * sizeof *count);
    if (!id || !count) {
        return NULL;
    }
    memcpy(id, ids, (size_t)(batch * rows) * sizeof *id);
    memcpy(count, counts, (size_t)batch * sizeof *count);
    const int32_t *device_id = ts_tape_upload(tape, id, (size_t)(batch * rows) * sizeof *id);
    const int32_t *device_count = ts_tape_upload(tape, count, (size_t)batch * sizeof *count);
    ts_var *x = ts_nn_embedding(tape, text->embedding, device_id, TS_SHAPE(batch, rows));
    for (int64_t i = 0; i < c->layers; i++) {
        block_context *context = ts_tape_object(tape, sizeof *context);
        if (!context) {
            return NULL;
        }
        *context = (block_context){c, &text->block[i], device_count, batch, rows};
        x = ts_tape_scope(tape, block_forward, context, &x, 1, TS_RECOMPUTE_NONE);
    }
    x = rms_norm(tape, x, c->eps, text->norm, TS_F32);
    x = zero_padding ? ts_nn_keep_rows(tape, x, count, batch) : x;
    ts_tape_probe(tape, x, "last_hidden_state");
    return x;
}

ts_var *ts_text_forward_full(ts_tape *tape, const ts_text *text, int64_t batch, int64_t rows) {
    int32_t *ids = ts_tape_object(tape, (size_t)(batch * rows) * sizeof *ids);
    int32_t *counts = ts_tape_object(tape, (size_t)batch * sizeof *counts);
    for (int64_t i = 0; counts && i < batch; i++) {
        counts[i] = (int32_t)rows;
    }
    return ids && counts ? ts_text_forward(tape, text, ids, counts, batch, rows, true) : NULL;
}
