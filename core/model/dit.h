// SPDX-License-Identifier: Apache-2.0
// The transformer over spacetime patches, in the Wan form (Wan Team 2025, "Wan: open and advanced large-scale video
// generative models"), with sizes from config.json and tensor names of diffusers' WanTransformer3DModel.
//
// Noise level is per latent frame, or per token: every frame of every sample carries its own timestep. So is the text,
// if wanted: every frame may see a context of its own.
//
// On the mesh of its parameters the transformer is sharded: heads and feed-forward widths over the tensor axis, tokens
// over the sequence axes and, between pairs of layers, over the tensor axis too (core/nn/rows.h). Latents, text and
// timesteps are alike on all ranks of the model group, and what depends on text and timesteps alone is computed on each
// of them. Every rank's gradients are partial: their sum over the world, or over the replica group for parameters that
// are cut, is the gradient of the sum of the ranks' losses. So are the gradients of inputs, summed over the model
// group.
//
// Bits: the velocity on ulysses ranks is that of one rank. Ring and tensor ranks add in another order, unless the mesh
// is reproducible (ts_mesh.reproducible): then it has the bits of one rank on every mesh, where products are fixed
// (ts_kernels_cpu_products_fixed).
#ifndef TS_MODEL_DIT_H
#define TS_MODEL_DIT_H

#include <jansson.h>
#include <stdint.h>

#include "core/nn/param.h"
#include "core/nn/rows.h"
#include "core/nn/tape.h"

typedef struct ts_dit_config {
    int64_t patch[3];         // t, h, w
    int64_t heads, head_dim;  // width = heads * head_dim
    int64_t in_channels, out_channels;
    int64_t text_dim, freq_dim, ffn_dim, layers;
    int64_t rope_max_positions;
    int64_t text_rows;  // rows the prompt is padded to with zeros (Wan: 512)
    double eps;
    bool cross_attention_norm;
    bool absolute_positions;  // ours: a learned linear of cosines of the (t, h, w) place is added to the patches
    int64_t image_dim, added_kv_dim, image_positions;  // image branch of image-to-video models; 0 = absent
} ts_dit_config;

typedef struct ts_dit ts_dit;

// From transformer/config.json (diffusers names; absent fields take the class defaults). `name` is for messages.
int ts_dit_config_from_json(ts_dit_config *out, const json_t *config, const char *name);
json_t *ts_dit_config_to_json(const ts_dit_config *config);  // new reference
int64_t ts_dit_width(const ts_dit_config *config);

// Declares the parameters in `params` (prefix "" for a diffusers transformer folder) and keeps handles. Does not
// allocate. The mesh is that of `params`.
int ts_dit_open(ts_dit **out, const ts_dit_config *config, ts_params *params, const char *prefix);
void ts_dit_close(ts_dit **dit);
const ts_dit_config *ts_dit_get_config(const ts_dit *dit);
int ts_dit_init(ts_dit *dit, uint64_t seed);  // fresh weights, after ts_params_allocate

typedef struct ts_dit_input {
    ts_var *latent;         // [B, T, H, W, in_channels] f32
    ts_var *context;        // [B, rows, text_dim] f32, rows beyond the prompt zero; attended without mask. Of several
                            //   contexts for each sample [B, contexts_per_sample, rows, text_dim]
    ts_var *image;          // [B, rows, image_dim] f32 or NULL
    const float *timestep;  // 1000 * sigma, [B, timesteps_per_sample]: 1 (a level per sample), T (per latent frame)
    int64_t timesteps_per_sample;  //   or L (per token), host memory, read during the call (see TS_DIT_UPLOAD_LEVELS)
    int64_t contexts_per_sample;   // 0 and 1: all tokens see one context; K: those of a frame see the frame's own,
    const int32_t *frame_context;  //   [T / patch] 0 .. K-1, never falling, the same for all samples, host memory, read
                                   //   during the call; NULL: K = T / patch, frame f sees context f
    ts_recompute recompute;        // of each block
    // Called, when the pass is recorded, as soon as backward has finished the gradients of a block's parameters, with
    // the number of their group; or NULL. Those of group 0 are final at the end of the backward pass.
    ts_tape_mark_fn grad_ready;
    void *grad_user;
} ts_dit_input;

// What a pass uploads first (number 0 of a recording of it, core/base/device.h): the different levels, f32, in the
// order of their first place in `timestep`. Nothing else that it uploads depends on them but by which of them are
// equal.
enum { TS_DIT_UPLOAD_LEVELS };

// Velocity [B, T, H, W, out_channels] f32 on every rank of the model group, or NULL (see ts_tape_status). T, H, W must
// be multiples of the patch. A gradient of it must be alike on these ranks. Collective over the model group.
// Probes: "level" (row of "temb" for each timestep), "rope_cos", "rope_sin", "patch_embedding.output", "temb",
// "timestep_proj", "context", "context_img", "block.I.attn1.output", "block.I.attn2.output", "block.I.ffn.output",
// "block.I.output", "sample". Those of patches and blocks are own rows; all are device memory.
ts_var *ts_dit_forward(ts_tape *tape, const ts_dit *dit, const ts_dit_input *input);

// ---- own tokens: for losses, which need no message
// Velocity [own rows, token features] f32 of this rank's own tokens; features in order (pt, ph, pw, c).
ts_var *ts_dit_forward_tokens(ts_tape *tape, const ts_dit *dit, const ts_dit_input *input);
// The whole velocity from that; ts_dit_forward is one after the other. `video` is the shape of the latent.
ts_var *ts_dit_collect(ts_tape *tape, const ts_dit *dit, ts_var *velocity, ts_shape video);
// Which tokens a rank has of a latent [B, T, H, W, C]: `video`. Weights of frames: ts_tokens_spread.
ts_tokens ts_dit_tokens(const ts_dit *dit, ts_shape video);
int64_t ts_dit_token_features(const ts_dit *dit);
// The same tokens of a video [B, T, H, W, C], a target say: out [own rows, features of a token]. Device memory.
int ts_dit_take_tokens(ts_tape *tape, const ts_dit *dit, ts_shape video, const float *from, float *out);

// Model FLOPs of one forward pass of one sample, multiply-add = 2: what "achieved GFLOP/s" is computed from. Counted
// are the blocks, the patch embedding and the head; the conditioning is left out.
double ts_dit_flops(const ts_dit_config *config, int64_t frames, int64_t height, int64_t width);

#endif
