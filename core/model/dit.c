// SPDX-License-Identifier: Apache-2.0
#include "core/model/dit.h"

#include <math.h>

#include "core/model/dit_private.h"
#include "core/nn/activation.h"
#include "core/nn/embed.h"
#include "core/nn/residual.h"

// ---- conditioning

// temb = W2 silu(W1 sinusoid(t) + b1) + b2      [rows, D]
static ts_var *time_embedding(ts_tape *tape, const ts_dit *dit, const float *t, int64_t rows) {
    ts_var *e = ts_nn_sinusoid(tape, t, rows, dit->config.freq_dim / 2);
    return ts_nn_linear(tape, &dit->time_2, ts_nn_silu(tape, ts_nn_linear(tape, &dit->time_1, e, TS_F32)), TS_F32);
}

// c = W2 gelu(W1 context + b1) + b2             [B, contexts, rows, D]
static ts_var *text_embedding(ts_tape *tape, const ts_dit *dit, ts_var *context) {
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    return ts_nn_linear(tape, &dit->text_2, ts_nn_linear_gelu(tape, &dit->text_1, ts_nn_cast(tape, context, dtype)),
                        dtype);
}

// `table` from an element on; there are no tables when nothing is computed.
static float *table_from(float *table, int64_t first) {
    return table ? table + first : NULL;
}

// x [own rows, D] f32 = patches W^T + b (+ positions W_p^T + b_p)
static ts_var *token_embedding(ts_tape *tape, const dit_pass *pass, ts_var *latent, const dit_positions *positions) {
    const ts_dit *dit = pass->dit;
    const ts_part part = pass->tokens.part;
    ts_var *patches = ts_nn_patchify(tape, latent, dit->config.patch, ts_tape_operand_dtype(tape));
    patches = ts_nn_take_tokens(tape, patches, dit->mesh, &pass->tokens);
    ts_var *x = ts_nn_linear(tape, &dit->patch, patches, TS_F32);
    ts_tape_probe(tape, x, "patch_embedding.output");
    if (dit->config.absolute_positions && part.count > 0) {
        const ts_tensor features = {TS_F32, TS_SHAPE(part.count, DIT_POSITION_FEATURES),
                                    table_from(positions->features, part.first * DIT_POSITION_FEATURES)};
        ts_var *embedding = ts_nn_linear(tape, &dit->position, ts_tape_input(tape, features, false), TS_F32);
        x = ts_nn_add_rows_from(tape, x, embedding, pass->tokens.rows.first % part.count);
    }
    return x;
}

// v = W (LN(x) (1 + scale) + shift) + b, shift and scale = table + temb     [own rows, features of a token] f32
static ts_var *head(ts_tape *tape, const dit_pass *pass, ts_var *x, ts_var *temb) {
    const ts_dit *dit = pass->dit;
    const int64_t D = dit->width;
    ts_var *shift = ts_nn_add_rows(tape, temb, ts_tape_param_part(tape, dit->table, 0, TS_SHAPE(1, D)));
    ts_var *scale = ts_nn_add_rows(tape, temb, ts_tape_param_part(tape, dit->table, D, TS_SHAPE(1, D)));
    x = ts_nn_layer_norm(tape, x, dit->config.eps, 1.0, ts_whole(scale), ts_whole(shift), pass->levels,
                         ts_tape_operand_dtype(tape));
    return ts_nn_linear(tape, &dit->out, x, TS_F32);
}

// ---- forward

static int check_input(const ts_dit *dit, const ts_dit_input *in) {
    const ts_dit_config *c = &dit->config;
    const ts_shape *s = &in->latent->value.shape;
    if (s->ndim != 5 || s->dim[4] != c->in_channels) {
        return TS_FAIL(TS_EINPUT, "the transformer wants latents [B, T, H, W, %lld]", (long long)c->in_channels);
    }
    for (int i = 0; i < 3; i++) {
        if (s->dim[1 + i] % c->patch[i] || s->dim[1 + i] / c->patch[i] > c->rope_max_positions) {
            return TS_FAIL(TS_EINPUT, "latent side %lld must be a multiple of the patch %lld and at most %lld patches",
                           (long long)s->dim[1 + i], (long long)c->patch[i], (long long)c->rope_max_positions);
        }
    }
    return dit_check_condition(c, in);
}

static void probe_inputs(ts_tape *tape, const ts_dit_input *in, const int32_t *level, const dit_positions *positions,
                         int64_t pairs) {
    const ts_shape levels = TS_SHAPE(in->latent->value.shape.dim[0], in->timesteps_per_sample);
    const ts_shape angles = TS_SHAPE(positions->tokens, pairs);
    if (!ts_tape_has_probe(tape)) {
        return;
    }
    void *rows = ts_tape_upload(tape, level, (size_t)ts_shape_count(levels) * sizeof *level);
    ts_tape_probe(tape, ts_tape_input(tape, (ts_tensor){TS_I32, levels, rows}, false), "level");
    ts_tape_probe(tape, ts_tape_input(tape, (ts_tensor){TS_F32, angles, positions->cosine}, false), "rope_cos");
    ts_tape_probe(tape, ts_tape_input(tape, (ts_tensor){TS_F32, angles, positions->sine}, false), "rope_sin");
}

// The pass's shared facts, and t[rows] of the distinct noise levels, device memory.
static dit_pass *begin_pass(ts_tape *tape, const ts_dit *dit, const ts_dit_input *in, const dit_positions *positions,
                            const float **t) {
    const ts_dit_config *c = &dit->config;
    const int64_t batch = in->latent->value.shape.dim[0], pairs = c->head_dim / 2;
    const ts_tokens tokens = ts_tokens_of(dit->mesh, batch, positions->tokens);
    const int64_t steps = batch * in->timesteps_per_sample, tokens_per_step = tokens.tokens / in->timesteps_per_sample;
    dit_pass *pass = ts_tape_object(tape, sizeof *pass);
    int32_t *level = ts_tape_object(tape, (size_t)steps * sizeof *level);
    int32_t *own = ts_tape_object(tape, (size_t)tokens.rows.count * sizeof *own);
    float *distinct = ts_tape_object(tape, (size_t)steps * sizeof *distinct);
    if (!pass || !level || !own || !distinct) {
        return NULL;
    }
    const int64_t rows = dit_levels(tape, in, level, distinct);
    for (int64_t r = 0; r < tokens.rows.count; r++) {
        own[r] = level[ts_tokens_place(&tokens, r) / tokens_per_step];
    }
    *t = ts_tape_upload(tape, distinct, (size_t)rows * sizeof *distinct);
    const int32_t *index = ts_tape_upload(tape, own, (size_t)tokens.rows.count * sizeof *own);
    ts_attention_contexts contexts;
    if (!*t || !index || dit_contexts(tape, in, &tokens, positions->grid[0], &contexts)) {
        return NULL;
    }
    ts_comm *tensor = ts_mesh_axis(dit->mesh, TS_AXIS_TENSOR);
    const int64_t heads = ts_split(c->heads, ts_comm_size(tensor), ts_comm_rank(tensor)).count;
    const int64_t first = tokens.part.first * pairs;
    *pass = (dit_pass){.dit = dit,
                       .tokens = tokens,
                       .rows = {tensor, batch * tokens.part.count, dit->mesh && dit->mesh->reproducible},
                       .heads = {batch, heads, c->head_dim, 1.0 / sqrt((double)c->head_dim)},
                       .rope = {table_from(positions->cosine, first), table_from(positions->sine, first),
                                tokens.part.count, c->head_dim},
                       .levels = {index, rows},
                       .contexts = contexts};
    probe_inputs(tape, in, level, positions, pairs);
    return pass;
}

ts_tokens ts_dit_tokens(const ts_dit *dit, ts_shape video) {
    const int64_t *patch = dit->config.patch;
    return ts_tokens_of(dit->mesh, video.dim[0],
                        video.dim[1] / patch[0] * (video.dim[2] / patch[1]) * (video.dim[3] / patch[2]));
}

int64_t ts_dit_token_features(const ts_dit *dit) {
    const ts_dit_config *c = &dit->config;
    return c->patch[0] * c->patch[1] * c->patch[2] * c->out_channels;
}

int ts_dit_take_tokens(ts_tape *tape, const ts_dit *dit, ts_shape video, const float *from, float *out) {
    const ts_tokens tokens = ts_dit_tokens(dit, video);
    const int64_t *patch = dit->config.patch, *dim = video.dim;
    ts_patchify args = {.batch = dim[0],
                        .frames = dim[1],
                        .height = dim[2],
                        .width = dim[3],
                        .channels = dim[4],
                        .patch_t = patch[0],
                        .patch_h = patch[1],
                        .patch_w = patch[2],
                        .video = (float *)(uintptr_t)from,
                        .tokens = out,
                        .dtype_tokens = TS_F32};
    if (tokens.rows.count == tokens.batch * tokens.tokens) {
        return TS_KERNEL(tape, patchify, &args);
    }
    const size_t row = (size_t)(patch[0] * patch[1] * patch[2] * dim[4]) * sizeof *out;
    const size_t bytes = (size_t)(tokens.batch * tokens.tokens) * row;
    args.tokens = ts_pool_take(tape, bytes);
    if (!args.tokens) {
        return TS_ERESOURCE;
    }
    TS_TRY(TS_KERNEL(tape, patchify, &args));
    TS_TRY(ts_rows_take(tape, &tokens, args.tokens, out, row));
    ts_pool_give(tape, args.tokens, bytes);
    return TS_OK;
}

ts_var *ts_dit_forward_tokens(ts_tape *tape, const ts_dit *dit, const ts_dit_input *in) {
    const dit_positions *positions;
    const float *t;
    if (ts_tape_status(tape) || ts_tape_try(tape, check_input(dit, in)) ||
        ts_tape_try(tape, dit_positions_get(&positions, dit, in->latent->value.shape, tape))) {
        return NULL;
    }
    const dit_pass *pass = begin_pass(tape, dit, in, positions, &t);
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
    ts_var *x = token_embedding(tape, pass, in->latent, positions);
    for (int i = 0; i < (int)dit->config.layers; i++) {
        if (in->grad_ready) {
            ts_tape_mark(tape, in->grad_ready, in->grad_user, dit->block[i].group);
        }
        x = dit_block_forward(tape, pass, i, x, text, modulation, image, in->recompute);
    }
    return x ? head(tape, pass, x, temb) : NULL;
}

ts_var *ts_dit_collect(ts_tape *tape, const ts_dit *dit, ts_var *velocity, ts_shape video) {
    const ts_tokens tokens = ts_dit_tokens(dit, video);
    ts_var *whole = ts_nn_collect_tokens(tape, velocity, dit->mesh, &tokens);
    video.dim[4] = dit->config.out_channels;
    ts_var *v = ts_nn_unpatchify(tape, whole, dit->config.patch, video);
    ts_tape_probe(tape, v, "sample");
    return v;
}

ts_var *ts_dit_forward(ts_tape *tape, const ts_dit *dit, const ts_dit_input *in) {
    ts_var *velocity = ts_dit_forward_tokens(tape, dit, in);
    return velocity ? ts_dit_collect(tape, dit, velocity, in->latent->value.shape) : NULL;
}
