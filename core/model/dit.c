// SPDX-License-Identifier: Apache-2.0
#include "core/model/dit.h"

#include <math.h>

#include "core/model/dit_private.h"
#include "core/nn/activation.h"
#include "core/nn/attention.h"
#include "core/nn/embed.h"
#include "core/nn/residual.h"

// ---- blocks

// What all blocks of one forward pass share; lives as long as the tape's step.
typedef struct forward_pass {
    const ts_dit *dit;
    int64_t batch;
    ts_rope rope;
    ts_row_map levels;  // row of the modulation table for each token
} forward_pass;

typedef struct block_context {
    const forward_pass *pass;
    const dit_block *block;
    int index;
} block_context;

static ts_attention_heads heads_of(const forward_pass *pass) {
    const ts_dit_config *c = &pass->dit->config;
    return (ts_attention_heads){pass->batch, c->heads, c->head_dim, 1.0 / sqrt((double)c->head_dim)};
}

// n [B, L, D] -> [B, L, D]
static ts_var *self_attention(ts_tape *tape, const forward_pass *pass, const dit_block *b, ts_var *n) {
    const int64_t D = pass->dit->width;
    const double eps = pass->dit->config.eps;
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    ts_var *qkv = ts_nn_linear(tape, &b->self_qkv, n, dtype);  // [B, L, 3 D]
    ts_var *q = ts_nn_rms_norm(tape, (ts_columns){qkv, 0, D}, eps, b->self_norm_q, pass->rope, dtype);
    ts_var *k = ts_nn_rms_norm(tape, (ts_columns){qkv, D, D}, eps, b->self_norm_k, pass->rope, dtype);
    ts_var *o =
        ts_nn_attention(tape, heads_of(pass), ts_whole(q), ts_whole(k), (ts_columns){qkv, 2 * D, D}, NULL, NULL);
    return ts_nn_linear(tape, &b->self_out, o, dtype);
}

// q [B, L, D] attends to the rows of context [B, rows, D] through one pair of key and value projections.
static ts_var *attend(ts_tape *tape, const forward_pass *pass, const ts_linear *kv_layer, const ts_param *norm_k,
                      ts_var *q, ts_var *context) {
    const int64_t D = pass->dit->width;
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    ts_var *kv = ts_nn_linear(tape, kv_layer, context, dtype);  // [B, rows, 2 D]
    ts_var *k = ts_nn_rms_norm(tape, (ts_columns){kv, 0, D}, pass->dit->config.eps, norm_k, (ts_rope){0}, dtype);
    return ts_nn_attention(tape, heads_of(pass), ts_whole(q), ts_whole(k), (ts_columns){kv, D, D}, NULL, NULL);
}

// n [B, L, D] -> [B, L, D]; the text's rows are attended without mask, those of an image in a softmax of their own.
static ts_var *cross_attention(ts_tape *tape, const forward_pass *pass, const dit_block *b, ts_var *n, ts_var *text,
                               ts_var *image) {
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    ts_var *q = ts_nn_linear(tape, &b->cross_q, n, dtype);
    q = ts_nn_rms_norm(tape, ts_whole(q), pass->dit->config.eps, b->cross_norm_q, (ts_rope){0}, dtype);
    ts_var *o = attend(tape, pass, &b->cross_kv, b->cross_norm_k, q, text);
    if (image) {
        ts_var *o_image = attend(tape, pass, &b->image_kv, b->image_norm_k, q, image);
        o = ts_nn_cast(tape, ts_nn_residual(tape, ts_nn_cast(tape, o, TS_F32), o_image), dtype);
    }
    return ts_nn_linear(tape, &b->cross_out, o, dtype);
}

// m = table + modulation: shift, scale, gate of the self-attention, then of the feed-forward.
//   x += SelfAttention(LN(x) (1 + scale) + shift) gate
//   x += CrossAttention(LN(x) w + b, text)
//   x += FFN(LN(x) (1 + scale) + shift) gate
static ts_var *block_forward(ts_tape *tape, const void *context, ts_var *const *inputs) {
    const block_context *bc = context;
    const forward_pass *pass = bc->pass;
    const dit_block *b = bc->block;
    const int64_t D = pass->dit->width;
    const double eps = pass->dit->config.eps;
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    ts_var *x = inputs[0], *text = inputs[1], *image = inputs[3];
    ts_var *m = ts_nn_add_rows(tape, inputs[2], ts_tape_param_part(tape, b->table, 0, TS_SHAPE(1, 6 * D)));
    const ts_columns shift_sa = {m, 0, D}, scale_sa = {m, D, D}, gate_sa = {m, 2 * D, D};
    const ts_columns shift_ff = {m, 3 * D, D}, scale_ff = {m, 4 * D, D}, gate_ff = {m, 5 * D, D};

    ts_var *n = ts_nn_layer_norm(tape, x, eps, 1.0, scale_sa, shift_sa, pass->levels, dtype);
    ts_var *y = self_attention(tape, pass, b, n);
    ts_tape_probe(tape, y, "block.%d.attn1.output", bc->index);
    x = ts_nn_gated_residual(tape, x, y, gate_sa, pass->levels);

    n = b->cross_norm_weight ? ts_nn_layer_norm_affine(tape, x, eps, b->cross_norm_weight, b->cross_norm_bias, dtype)
                             : ts_nn_cast(tape, x, dtype);
    y = cross_attention(tape, pass, b, n, text, image);
    ts_tape_probe(tape, y, "block.%d.attn2.output", bc->index);
    x = ts_nn_residual(tape, x, y);

    n = ts_nn_layer_norm(tape, x, eps, 1.0, scale_ff, shift_ff, pass->levels, dtype);
    y = ts_nn_linear(tape, &b->ffn_out, ts_nn_linear_gelu(tape, &b->ffn_in, n), dtype);
    ts_tape_probe(tape, y, "block.%d.ffn.output", bc->index);
    x = ts_nn_block_sum(tape, x, y, gate_ff, pass->levels);
    ts_tape_probe(tape, x, "block.%d.output", bc->index);
    return x;
}

// ---- conditioning

// Rows of equal timestep, one after another, share a row of the modulation table: one noise level for each sample costs
// B rows, not B L. Fills levels[B L] and t[rows]; returns the number of rows.
static int64_t distinct_levels(const ts_dit_input *in, int64_t batch, int64_t tokens, int32_t *level, float *t) {
    const int64_t per_sample = in->timesteps_per_sample, tokens_per_step = tokens / per_sample;
    int64_t rows = 0;
    for (int64_t i = 0; i < batch * per_sample; i++) {
        // Without values (counting) every timestep is taken as different.
        if (i == 0 || !in->timestep || in->timestep[i] != t[rows - 1]) {
            t[rows++] = in->timestep ? in->timestep[i] : 0.0f;
        }
        for (int64_t j = 0; j < tokens_per_step; j++) {
            level[i * tokens_per_step + j] = (int32_t)(rows - 1);
        }
    }
    return rows;
}

// temb = W2 silu(W1 sinusoid(t) + b1) + b2      [rows, D]
static ts_var *time_embedding(ts_tape *tape, const ts_dit *dit, const float *t, int64_t rows) {
    ts_var *e = ts_nn_sinusoid(tape, t, rows, dit->config.freq_dim / 2);
    return ts_nn_linear(tape, &dit->time_2, ts_nn_silu(tape, ts_nn_linear(tape, &dit->time_1, e, TS_F32)), TS_F32);
}

// c = W2 gelu(W1 context + b1) + b2             [B, rows, D]
static ts_var *text_embedding(ts_tape *tape, const ts_dit *dit, ts_var *context) {
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    return ts_nn_linear(tape, &dit->text_2, ts_nn_linear_gelu(tape, &dit->text_1, ts_nn_cast(tape, context, dtype)),
                        dtype);
}

// x [B, L, D] f32 = patches W^T + b (+ positions W_p^T + b_p)
static ts_var *token_embedding(ts_tape *tape, const ts_dit *dit, ts_var *latent, const dit_positions *positions) {
    ts_var *patches = ts_nn_patchify(tape, latent, dit->config.patch, ts_tape_operand_dtype(tape));
    ts_var *x = ts_nn_linear(tape, &dit->patch, patches, TS_F32);
    ts_tape_probe(tape, x, "patch_embedding.output");
    if (dit->config.absolute_positions) {
        const ts_tensor features = {TS_F32, TS_SHAPE(positions->tokens, DIT_POSITION_FEATURES), positions->features};
        x = ts_nn_add_rows(tape, x, ts_nn_linear(tape, &dit->position, ts_tape_input(tape, features, false), TS_F32));
    }
    return x;
}

// v = unpatchify(W (LN(x) (1 + scale) + shift) + b), shift and scale = table + temb
static ts_var *head(ts_tape *tape, const ts_dit *dit, ts_var *x, ts_var *temb, ts_row_map levels, ts_shape video) {
    const int64_t D = dit->width;
    ts_var *shift = ts_nn_add_rows(tape, temb, ts_tape_param_part(tape, dit->table, 0, TS_SHAPE(1, D)));
    ts_var *scale = ts_nn_add_rows(tape, temb, ts_tape_param_part(tape, dit->table, D, TS_SHAPE(1, D)));
    x = ts_nn_layer_norm(tape, x, dit->config.eps, 1.0, ts_whole(scale), ts_whole(shift), levels,
                         ts_tape_operand_dtype(tape));
    ts_var *v = ts_nn_unpatchify(tape, ts_nn_linear(tape, &dit->out, x, TS_F32), dit->config.patch, video);
    ts_tape_probe(tape, v, "sample");
    return v;
}

// ---- forward

static int check_image(const ts_dit_config *c, const ts_shape *image, int64_t batch) {
    if (image->ndim != 3 || image->dim[0] != batch || image->dim[1] < 1 || image->dim[2] != c->image_dim) {
        return TS_FAIL(TS_EINPUT, "the transformer wants image features [%lld, rows, %lld]", (long long)batch,
                       (long long)c->image_dim);
    }
    if (c->image_positions && image->dim[1] != c->image_positions) {
        return TS_FAIL(TS_EINPUT, "the transformer wants %lld rows of image features, and has %lld",
                       (long long)c->image_positions, (long long)image->dim[1]);
    }
    return 0;
}

static int check_input(const ts_dit *dit, const ts_dit_input *in) {
    const ts_dit_config *c = &dit->config;
    const ts_shape *s = &in->latent->value.shape, *text = &in->context->value.shape;
    if (s->ndim != 5 || s->dim[4] != c->in_channels) {
        return TS_FAIL(TS_EINPUT, "the transformer wants latents [B, T, H, W, %lld]", (long long)c->in_channels);
    }
    for (int i = 0; i < 3; i++) {
        if (s->dim[1 + i] % c->patch[i] || s->dim[1 + i] / c->patch[i] > c->rope_max_positions) {
            return TS_FAIL(TS_EINPUT, "latent side %lld must be a multiple of the patch %lld and at most %lld patches",
                           (long long)s->dim[1 + i], (long long)c->patch[i], (long long)c->rope_max_positions);
        }
    }
    if (text->ndim != 3 || text->dim[0] != s->dim[0] || text->dim[1] < 1 || text->dim[2] != c->text_dim) {
        return TS_FAIL(TS_EINPUT, "the transformer wants a context [%lld, rows, %lld]", (long long)s->dim[0],
                       (long long)c->text_dim);
    }
    const int64_t frames = s->dim[1] / c->patch[0];
    const int64_t tokens = frames * (s->dim[2] / c->patch[1]) * (s->dim[3] / c->patch[2]);
    const int64_t n = in->timesteps_per_sample;
    if (n != 1 && n != frames && n != tokens) {
        return TS_FAIL(TS_EINPUT, "%lld timesteps for each sample: wanted 1, %lld (frames) or %lld (tokens)",
                       (long long)n, (long long)frames, (long long)tokens);
    }
    if (!in->image != !c->image_dim) {
        return TS_FAIL(TS_EINPUT, c->image_dim ? "this transformer wants image features"
                                               : "this transformer takes no image features");
    }
    return in->image ? check_image(c, &in->image->value.shape, s->dim[0]) : 0;
}

// The pass's shared facts, and t[rows] of the distinct noise levels.
static forward_pass *begin_pass(ts_tape *tape, const ts_dit *dit, const ts_dit_input *in,
                                const dit_positions *positions, float **t) {
    const int64_t batch = in->latent->value.shape.dim[0], tokens = positions->tokens;
    forward_pass *pass = ts_tape_object(tape, sizeof *pass);
    int32_t *level = ts_tape_object(tape, (size_t)(batch * tokens) * sizeof *level);
    *t = ts_tape_object(tape, (size_t)(batch * in->timesteps_per_sample) * sizeof **t);
    if (!pass || !level || !*t) {
        return NULL;
    }
    const int64_t rows = distinct_levels(in, batch, tokens, level, *t);
    *pass = (forward_pass){.dit = dit,
                           .batch = batch,
                           .rope = {positions->cosine, positions->sine, tokens, dit->config.head_dim},
                           .levels = {level, rows}};
    if (ts_tape_computes(tape)) {
        const int64_t pairs = dit->config.head_dim / 2;
        ts_tape_probe(tape, ts_tape_input(tape, (ts_tensor){TS_I32, TS_SHAPE(batch, tokens), level}, false), "level");
        ts_tape_probe(tape, ts_tape_input(tape, (ts_tensor){TS_F32, TS_SHAPE(tokens, pairs), positions->cosine}, false),
                      "rope_cos");
        ts_tape_probe(tape, ts_tape_input(tape, (ts_tensor){TS_F32, TS_SHAPE(tokens, pairs), positions->sine}, false),
                      "rope_sin");
    }
    return pass;
}

ts_var *ts_dit_forward(ts_tape *tape, const ts_dit *dit, const ts_dit_input *in) {
    if (ts_tape_status(tape) || ts_tape_try(tape, check_input(dit, in))) {
        return NULL;
    }
    const dit_positions *positions;
    if (ts_tape_try(tape, dit_positions_get(&positions, dit, in->latent->value.shape))) {
        return NULL;
    }
    float *t;
    const forward_pass *pass = begin_pass(tape, dit, in, positions, &t);
    if (!pass) {
        return NULL;
    }
    ts_var *temb = time_embedding(tape, dit, t, pass->levels.table_rows);
    ts_var *modulation = ts_nn_linear(tape, &dit->time_projection, ts_nn_silu(tape, temb), TS_F32);  // [rows, 6 D]
    ts_var *text = text_embedding(tape, dit, in->context);
    ts_var *image = in->image ? dit_image_embedding(tape, dit, in->image) : NULL;
    ts_tape_probe(tape, temb, "temb");
    ts_tape_probe(tape, modulation, "timestep_proj");
    ts_tape_probe(tape, text, "context");
    if (image) {
        ts_tape_probe(tape, image, "context_img");
    }

    ts_var *x = token_embedding(tape, dit, in->latent, positions);
    for (int i = 0; i < (int)dit->config.layers; i++) {
        block_context *context = ts_tape_object(tape, sizeof *context);
        if (!context) {
            return NULL;
        }
        *context = (block_context){pass, &dit->block[i], i};
        ts_var *inputs[] = {x, text, modulation, image};
        x = ts_tape_scope(tape, block_forward, context, inputs, 4, in->recompute);
    }
    ts_shape video = in->latent->value.shape;
    video.dim[4] = dit->config.out_channels;
    return head(tape, dit, x, temb, pass->levels, video);
}
