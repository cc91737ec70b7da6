// SPDX-License-Identifier: Apache-2.0
// The transformer's parameters: names, shapes, fresh values.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/model/dit_private.h"

enum { PREFIX_BYTES = 160 };

// Vectors and tables do not decay.
static int declare(ts_param **out, ts_params *params, const char *prefix, const char *name, ts_shape shape) {
    return ts_params_declare(out, params, prefix, name, shape, false);
}

// A vector over the columns of all heads; each rank of the tensor axis has those of its heads.
static int declare_heads(ts_param **out, ts_params *params, const char *prefix, const char *name,
                         const ts_dit_config *c) {
    const ts_declaration as = {.whole = TS_SHAPE(ts_dit_width(c)), .cut = 0, .unit = c->head_dim};
    return ts_params_declare_as(out, params, prefix, name, &as);
}

// Projections of width D from all columns to those of the heads, or from those of the heads to all.
static int open_to_heads(ts_linear *out, const ts_dit_config *c, ts_params *params, const char *prefix,
                         const char *const *names, int count) {
    const int64_t D = ts_dit_width(c);
    const ts_linear_shape shape = {D, D, true, TS_LINEAR_CUT_OUT, c->head_dim};
    return ts_linear_open_as(out, params, prefix, names, count, &shape);
}

static int open_from_heads(ts_linear *out, const ts_dit_config *c, ts_params *params, const char *prefix,
                           const char *name) {
    const int64_t D = ts_dit_width(c);
    const ts_linear_shape shape = {D, D, true, TS_LINEAR_CUT_IN, c->head_dim};
    return ts_linear_open_as(out, params, prefix, &name, 1, &shape);
}

static int open_self_attention(dit_block *b, const ts_dit_config *c, ts_params *params, const char *prefix) {
    const char *const qkv[] = {"attn1.to_q", "attn1.to_k", "attn1.to_v"};
    TS_TRY(open_to_heads(&b->self_qkv, c, params, prefix, qkv, 3));
    TS_TRY(declare_heads(&b->self_norm_q, params, prefix, "attn1.norm_q.weight", c));
    TS_TRY(declare_heads(&b->self_norm_k, params, prefix, "attn1.norm_k.weight", c));
    return open_from_heads(&b->self_out, c, params, prefix, "attn1.to_out.0");
}

static int open_cross_attention(dit_block *b, const ts_dit_config *c, ts_params *params, const char *prefix) {
    const int64_t D = ts_dit_width(c);
    if (c->cross_attention_norm) {
        TS_TRY(declare(&b->cross_norm_weight, params, prefix, "norm2.weight", TS_SHAPE(D)));
        TS_TRY(declare(&b->cross_norm_bias, params, prefix, "norm2.bias", TS_SHAPE(D)));
    }
    TS_TRY(open_to_heads(&b->cross_q, c, params, prefix, (const char *const[]){"attn2.to_q"}, 1));
    const char *const kv[] = {"attn2.to_k", "attn2.to_v"};
    TS_TRY(open_to_heads(&b->cross_kv, c, params, prefix, kv, 2));
    TS_TRY(declare_heads(&b->cross_norm_q, params, prefix, "attn2.norm_q.weight", c));
    TS_TRY(declare_heads(&b->cross_norm_k, params, prefix, "attn2.norm_k.weight", c));
    if (c->added_kv_dim) {
        const char *const image_kv[] = {"attn2.add_k_proj", "attn2.add_v_proj"};
        TS_TRY(open_to_heads(&b->image_kv, c, params, prefix, image_kv, 2));
        TS_TRY(declare_heads(&b->image_norm_k, params, prefix, "attn2.norm_added_k.weight", c));
    }
    return open_from_heads(&b->cross_out, c, params, prefix, "attn2.to_out.0");
}

static int open_feed_forward(dit_block *b, const ts_dit_config *c, ts_params *params, const char *prefix) {
    const int64_t D = ts_dit_width(c);
    const ts_linear_shape in = {D, c->ffn_dim, true, TS_LINEAR_CUT_OUT, 1};
    const ts_linear_shape out = {c->ffn_dim, D, true, TS_LINEAR_CUT_IN, 1};
    TS_TRY(ts_linear_open_as(&b->ffn_in, params, prefix, (const char *const[]){"ffn.net.0.proj"}, 1, &in));
    return ts_linear_open_as(&b->ffn_out, params, prefix, (const char *const[]){"ffn.net.2"}, 1, &out);
}

static int open_block(dit_block *b, const ts_dit_config *c, ts_params *params, const char *prefix, int64_t index) {
    char at[PREFIX_BYTES];
    snprintf(at, sizeof at, "%sblocks.%lld.", prefix, (long long)index);
    b->group = ts_params_begin_group(params);
    TS_TRY(declare(&b->table, params, at, "scale_shift_table", TS_SHAPE(1, 6, ts_dit_width(c))));
    TS_TRY(open_self_attention(b, c, params, at));
    TS_TRY(open_cross_attention(b, c, params, at));
    TS_TRY(open_feed_forward(b, c, params, at));
    ts_linear *const hidden[] = {&b->self_qkv,  &b->self_out, &b->cross_q, &b->cross_kv,
                                 &b->cross_out, &b->ffn_in,   &b->ffn_out};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++) {
        ts_linear_mark_hidden(hidden[i]);
    }
    // Of the projections of width D these four give the most memory back for the least time. With what is left, x (4
    // bytes), attention's output, that of to_out, what comes before GELU (8) and the feed-forward's output, a bf16
    // block keeps 18 bytes x tokens x width.
    b->self_qkv.again = b->cross_q.again = b->cross_kv.again = b->image_kv.again = b->cross_out.again = true;
    ts_params_end_group(params);
    return 0;
}

static int open_image(dit_image *image, const ts_dit_config *c, ts_params *params, const char *prefix) {
    const int64_t D = ts_dit_width(c), I = c->image_dim;
    char at[PREFIX_BYTES];
    snprintf(at, sizeof at, "%scondition_embedder.image_embedder.", prefix);
    if (c->image_positions) {
        TS_TRY(declare(&image->positions, params, at, "pos_embed", TS_SHAPE(1, c->image_positions, I)));
    }
    TS_TRY(declare(&image->norm_1_weight, params, at, "norm1.weight", TS_SHAPE(I)));
    TS_TRY(declare(&image->norm_1_bias, params, at, "norm1.bias", TS_SHAPE(I)));
    TS_TRY(ts_linear_open(&image->in, params, at, "ff.net.0.proj", I, I, true));
    TS_TRY(ts_linear_open(&image->out, params, at, "ff.net.2", I, D, true));
    TS_TRY(declare(&image->norm_2_weight, params, at, "norm2.weight", TS_SHAPE(D)));
    return declare(&image->norm_2_bias, params, at, "norm2.bias", TS_SHAPE(D));
}

// The patch embedding is stored as a Conv3d whose kernel is its stride: a linear layer over the flattened patch.
static int open_patch(ts_dit *dit, ts_params *params, const char *prefix) {
    const ts_dit_config *c = &dit->config;
    const int64_t features = c->in_channels * c->patch[0] * c->patch[1] * c->patch[2];
    TS_TRY(ts_linear_open(&dit->patch, params, prefix, "patch_embedding", features, dit->width, true));
    dit->patch.weight[0]->shape = TS_SHAPE(dit->width, c->in_channels, c->patch[0], c->patch[1], c->patch[2]);
    dit->patch.weight[0]->whole = dit->patch.weight[0]->shape;
    if (c->absolute_positions) {
        TS_TRY(ts_linear_open(&dit->position, params, prefix, "absolute_positions", DIT_POSITION_FEATURES, dit->width,
                              true));
        ts_linear_mark_precise(&dit->position);
    }
    return 0;
}

static int open_conditioning(ts_dit *dit, ts_params *params, const char *prefix) {
    const ts_dit_config *c = &dit->config;
    const int64_t D = dit->width;
    char at[PREFIX_BYTES];
    snprintf(at, sizeof at, "%scondition_embedder.", prefix);
    TS_TRY(ts_linear_open(&dit->time_1, params, at, "time_embedder.linear_1", c->freq_dim, D, true));
    TS_TRY(ts_linear_open(&dit->time_2, params, at, "time_embedder.linear_2", D, D, true));
    TS_TRY(ts_linear_open(&dit->time_projection, params, at, "time_proj", D, 6 * D, true));
    // The noise level steers every layer and is only a row or so for each frame: f32 throughout.
    ts_linear_mark_precise(&dit->time_1);
    ts_linear_mark_precise(&dit->time_2);
    ts_linear_mark_precise(&dit->time_projection);
    TS_TRY(ts_linear_open(&dit->text_1, params, at, "text_embedder.linear_1", c->text_dim, D, true));
    TS_TRY(ts_linear_open(&dit->text_2, params, at, "text_embedder.linear_2", D, D, true));
    return c->image_dim ? open_image(&dit->image, c, params, prefix) : 0;
}

static int open_all(ts_dit *dit, ts_params *params, const char *prefix) {
    const ts_dit_config *c = &dit->config;
    TS_TRY(open_patch(dit, params, prefix));
    TS_TRY(open_conditioning(dit, params, prefix));
    for (int64_t i = 0; i < c->layers; i++) {
        TS_TRY(open_block(&dit->block[i], c, params, prefix, i));
    }
    TS_TRY(declare(&dit->table, params, prefix, "scale_shift_table", TS_SHAPE(1, 2, dit->width)));
    const int64_t features = c->out_channels * c->patch[0] * c->patch[1] * c->patch[2];
    return ts_linear_open(&dit->out, params, prefix, "proj_out", dit->width, features, true);
}

int ts_dit_open(ts_dit **out, const ts_dit_config *config, ts_params *params, const char *prefix) {
    TS_ASSERT(strlen(prefix) < PREFIX_BYTES / 2);
    ts_dit *dit = ts_calloc(1, sizeof *dit);
    if (!dit) {
        return TS_ERESOURCE;
    }
    dit->config = *config;
    dit->width = ts_dit_width(config);
    dit->mesh = params->mesh;
    dit->block = ts_calloc((size_t)config->layers, sizeof *dit->block);
    dit->positions = ts_calloc(1, sizeof(dit_positions *));
    const int status = dit->block && dit->positions ? open_all(dit, params, prefix) : TS_ERESOURCE;
    if (status) {
        ts_dit_close(&dit);
        return status;
    }
    *out = dit;
    return 0;
}

void ts_dit_close(ts_dit **dit) {
    if (!*dit) {
        return;
    }
    if ((*dit)->positions) {
        dit_positions_free(*(*dit)->positions);
    }
    free((*dit)->positions);
    free((*dit)->block);
    free(*dit);
    *dit = NULL;
}

const ts_dit_config *ts_dit_get_config(const ts_dit *dit) {
    return &dit->config;
}

// ---- fresh values

// Adds 1 to row `row` of a block's table [1, 6, D].
static int open_gate(const ts_param *table, int64_t row, int64_t width) {
    float *gate = ts_malloc((size_t)width * sizeof *gate);
    int status = gate ? ts_param_read(table, row * width, width, gate) : TS_ERESOURCE;
    for (int64_t i = 0; i < width && !status; i++) {
        gate[i] += 1.0f;
    }
    status = status ? status : ts_param_write(table, row * width, width, gate);
    free(gate);
    return status;
}

// Blocks start wide open and deaf to the noise level: gates at 1, the time projection and the head at 0. With
// orthogonalised momentum this learns far sooner than closed gates (see configs/shapes.yaml).
static int init_block(dit_block *b, uint64_t seed, int64_t width) {
    TS_TRY(ts_param_init_normal(b->table, seed, (float)(1.0 / sqrt((double)width))));
    TS_TRY(open_gate(b->table, 2, width));  // of the self-attention
    TS_TRY(open_gate(b->table, 5, width));  // of the feed-forward
    ts_linear *const linears[] = {&b->self_qkv, &b->self_out,  &b->cross_q, &b->cross_kv,
                                  &b->image_kv, &b->cross_out, &b->ffn_in,  &b->ffn_out};
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++) {
        TS_TRY(ts_linear_init(linears[i], seed, 1.0));
    }
    ts_param *const ones[] = {b->self_norm_q,  b->self_norm_k,  b->cross_norm_weight,
                              b->cross_norm_q, b->cross_norm_k, b->image_norm_k};
    for (size_t i = 0; i < sizeof ones / sizeof *ones; i++) {
        if (ones[i]) {
            TS_TRY(ts_param_init_constant(ones[i], 1.0f));
        }
    }
    return b->cross_norm_bias ? ts_param_init_constant(b->cross_norm_bias, 0.0f) : 0;
}

static int init_image(dit_image *image, uint64_t seed) {
    if (image->positions) {
        TS_TRY(ts_param_init_constant(image->positions, 0.0f));
    }
    TS_TRY(ts_param_init_constant(image->norm_1_weight, 1.0f));
    TS_TRY(ts_param_init_constant(image->norm_1_bias, 0.0f));
    TS_TRY(ts_linear_init(&image->in, seed, 1.0));
    TS_TRY(ts_linear_init(&image->out, seed, 1.0));
    TS_TRY(ts_param_init_constant(image->norm_2_weight, 1.0f));
    return ts_param_init_constant(image->norm_2_bias, 0.0f);
}

int ts_dit_init(ts_dit *dit, uint64_t seed) {
    TS_TRY(ts_linear_init(&dit->patch, seed, 1.0));
    TS_TRY(ts_linear_init(&dit->position, seed, 1.0));
    TS_TRY(ts_linear_init(&dit->time_1, seed, 1.0));
    TS_TRY(ts_linear_init(&dit->time_2, seed, 1.0));
    TS_TRY(ts_linear_init(&dit->time_projection, seed, 0.0));
    TS_TRY(ts_linear_init(&dit->text_1, seed, 1.0));
    TS_TRY(ts_linear_init(&dit->text_2, seed, 1.0));
    if (dit->config.image_dim) {
        TS_TRY(init_image(&dit->image, seed));
    }
    for (int64_t i = 0; i < dit->config.layers; i++) {
        TS_TRY(init_block(&dit->block[i], seed, dit->width));
    }
    TS_TRY(ts_param_init_normal(dit->table, seed, (float)(1.0 / sqrt((double)dit->width))));
    return ts_linear_init(&dit->out, seed, 0.0);
}
