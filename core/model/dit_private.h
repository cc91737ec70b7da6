// SPDX-License-Identifier: Apache-2.0
// The transformer's inside: dit_weights.c declares it, dit_positions.c makes its tables, dit_condition.c tells each
// token its level and context, dit.c runs it, block after block of dit_block.c.
#ifndef TS_MODEL_DIT_PRIVATE_H
#define TS_MODEL_DIT_PRIVATE_H

#include "core/model/dit.h"
#include "core/nn/attention.h"
#include "core/nn/linear.h"
#include "core/nn/norm.h"
#include "core/nn/rows.h"

// Four cosine waves along each of t, h and w (see dit_positions.c).
enum { DIT_POSITION_WAVES = 4, DIT_POSITION_FEATURES = 3 * DIT_POSITION_WAVES };

typedef struct dit_block {
    int group;        // of its parameters
    ts_param *table;  // [1, 6, D]
    ts_linear self_qkv, self_out;
    ts_param *self_norm_q, *self_norm_k;            // [D]
    ts_param *cross_norm_weight, *cross_norm_bias;  // [D], or NULL
    ts_linear cross_q, cross_kv, cross_out;
    ts_param *cross_norm_q, *cross_norm_k;  // [D]
    ts_linear image_kv;                     // with the image branch only
    ts_param *image_norm_k;
    ts_linear ffn_in, ffn_out;
} dit_block;

typedef struct dit_image {
    ts_param *positions;  // [1, image_positions, image_dim] or NULL
    ts_param *norm_1_weight, *norm_1_bias, *norm_2_weight, *norm_2_bias;
    ts_linear in, out;
} dit_image;

// Constants of one token grid, on one device.
typedef struct dit_positions {
    struct dit_positions *next;
    const ts_device *device;
    int64_t grid[3], tokens;
    // Device memory, NULL until something is computed:
    float *cosine, *sine;  // [tokens, head_dim / 2]
    float *features;       // [tokens, DIT_POSITION_FEATURES], or NULL without absolute positions
} dit_positions;

struct ts_dit {
    ts_dit_config config;
    const ts_mesh *mesh;  // that of the parameters
    int64_t width;
    ts_linear patch, position;
    ts_linear time_1, time_2, time_projection, text_1, text_2;
    dit_image image;
    dit_block *block;  // [layers]
    ts_param *table;   // [1, 2, D]
    ts_linear out;
    dit_positions **positions;  // list of the grids seen so far: a cache, so that it may change in a const model
};

// What all blocks of one forward pass share; lives as long as the tape's step.
typedef struct dit_pass {
    const ts_dit *dit;
    ts_tokens tokens;
    ts_rows rows;                    // those of this sequence part, over the tensor axis
    ts_attention_heads heads;        // of this rank's tensor part
    ts_rope rope;                    // of the tokens of this sequence part
    ts_row_map levels;               // row of the modulation table for each own row
    ts_attention_contexts contexts;  // of the text, and which tokens of this sequence part see each
} dit_pass;

// Refuses timesteps, contexts and image features that are not those of a latent [B, T, H, W, C].
int dit_check_condition(const ts_dit_config *config, const ts_dit_input *in);
// Rows of the modulation table: fills level[B * per sample], the row of each timestep, and t[rows], the level of each
// row; returns the number of rows. Never more rows than timesteps.
int64_t dit_levels(ts_tape *tape, const ts_dit_input *in, int32_t *level, float *t);
// Which tokens of this sequence part see which context; `frames` as the transformer counts them.
int dit_contexts(ts_tape *tape, const ts_dit_input *in, const ts_tokens *tokens, int64_t frames,
                 ts_attention_contexts *out);

// Block `index` of a pass: x [own rows, D] f32 -> the same. text [B, contexts, rows, D] and image [B, rows, D] or NULL
// in the operand dtype, modulation [table rows, 6 D] f32.
ts_var *dit_block_forward(ts_tape *tape, const dit_pass *pass, int index, ts_var *x, ts_var *text, ts_var *modulation,
                          ts_var *image, ts_recompute recompute);

// The grid of a video [B, T, H, W, C] and, unless the tape only counts, its tables on the tape's device, made at first
// use. Not thread-safe.
int dit_positions_get(const dit_positions **out, const ts_dit *dit, ts_shape video, const ts_tape *tape);
void dit_positions_free(dit_positions *list);

// Image rows [B, rows, image_dim] f32 -> [B, rows, D] in the operand dtype.
ts_var *dit_image_embedding(ts_tape *tape, const ts_dit *dit, ts_var *image);

#endif
