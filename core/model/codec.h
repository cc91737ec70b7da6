// SPDX-License-Identifier: Apache-2.0
// Codecs between pixels and latents. Causal in time: 1 + 4k frames <-> 1 + k latent frames, 8 x 8 pixels -> 1.
//
// `pca` is a linear spacetime transform in closed form: the first frame's 8x8x3 blocks and the later frames' 4x8x8x3
// blocks are each projected on their leading principal axes and scaled by (standard deviation)^-scale_power. Latents of
// a group are a function of its pixels alone; the pixels decoded from it look at its neighbours in time, too, so that
// motion goes on evenly from group to group.
//
// A codec works on the CPU, in host memory, whichever device the model computes on: it is a small part of the work, and
// its pixels go to and from files.
#ifndef TS_MODEL_CODEC_H
#define TS_MODEL_CODEC_H

#include <stdbool.h>
#include <stdint.h>

#include "core/comm/comm.h"
#include "core/tensor/tensor.h"

typedef struct ts_codec ts_codec;

typedef struct ts_codec_info {
    const char *kind;                   // "pca"
    int64_t channels;                   // C
    int64_t time_factor, space_factor;  // 4, 8
    double explained;                   // share of pixel variance that a latent keeps, measured when fitted
    uint64_t fingerprint;               // of the transform: data and model must agree
} ts_codec_info;

// Loads folder/config.json + folder/codec.safetensors.
int ts_codec_load(ts_codec **out, const char *folder);
int ts_codec_save(const ts_codec *codec, const char *folder);
void ts_codec_close(ts_codec **codec);
ts_codec_info ts_codec_get_info(const ts_codec *codec);

// pixels [T, H, W, 3] u8 (RGB) -> latent [1 + (T-1)/4, H/8, W/8, C] f32. T = 1 + 4k; H, W multiples of 8.
int ts_codec_encode(const ts_codec *codec, const uint8_t *pixels, int64_t frames, int64_t height, int64_t width,
                    float *latent);
// latent [t, h, w, C] f32 -> pixels [1 + 4 (t-1), 8 h, 8 w, 3] u8, clamped.
int ts_codec_decode(const ts_codec *codec, const float *latent, int64_t t, int64_t h, int64_t w, uint8_t *pixels);

// The same, with the work shared out over `comm`, each of whose ranks has the latent: every rank decodes some rows of
// blocks, in space and time, and the pixels go to rank `root`, which alone gives `pixels` (NULL elsewhere). The result
// is, bit for bit, that of ts_codec_decode. Collective. A rank sends the pixels it made, a byte a colour; those of
// `root` stay.
int ts_codec_decode_shared(const ts_codec *codec, const float *latent, int64_t t, int64_t h, int64_t w, ts_comm *comm,
                           int root, uint8_t *pixels);

// Latent frames that lie side by side in time, some of which may only be there for what they say of their neighbours:
// decoded stretch by stretch, each with one frame more on either side, a clip has the bits that it has as a whole.
typedef struct ts_codec_stretch {
    const float *latent;  // [t, h, w, C]
    int64_t t, h, w;
    bool groups;         // all are groups; else the first is a first frame
    bool before, after;  // the first, the last gives no pixels
} ts_codec_stretch;
// Pixels [frames, 8 h, 8 w, 3] of a stretch, on rank `root` of comm (NULL: decoded here). Collective over comm.
int ts_codec_decode_stretch(const ts_codec *codec, const ts_codec_stretch *stretch, ts_comm *comm, int root,
                            uint8_t *pixels);

// Groups alone, without a first frame: pixels [4 n, H, W, 3] u8 <-> latent [n, H/8, W/8, C] f32. Latents are, bit for
// bit, what the later frames of a whole clip become; pixels are those of a clip but for the first two frames, which
// know nothing of what was before them.
int ts_codec_encode_groups(const ts_codec *codec, const uint8_t *pixels, int64_t groups, int64_t height, int64_t width,
                           float *latent);
int ts_codec_decode_groups(const ts_codec *codec, const float *latent, int64_t groups, int64_t h, int64_t w,
                           uint8_t *pixels);
// The last pixel frame of each group as a first latent frame: group [count, h, w, C] -> first [count, h, w, C]. Decoded
// from the group alone and encoded, but neither rounded nor clamped: one C x C matrix and an offset, so that it is
// linear in the group (but for the offset) and costs little; count may be 0. The bits of a position do not depend on
// what is around it. first may not be group.
int ts_codec_first_of(const ts_codec *codec, const float *group, int64_t count, int64_t h, int64_t w, float *first);

// One video goes over into another within groups: of pixel frame k of to's groups, share[k] becomes from's and the rest
// stays. from, to [count, C] positions, to in place; share [time_factor]. Computed between latents:
//   to[j] += scale[j] axes[j] . (share x sum_c (from[c] - to[c]) / scale[c] axes[c])
// which for shares that are alike is to + share (from - to), but for rounding.
void ts_codec_cross(const ts_codec *codec, const float *share, const float *from, int64_t count, float *to);

// Fitting: add clips on every rank, then finish, collectively: sums are reduced over `comm` in f64.
typedef struct ts_codec_fit ts_codec_fit;
int ts_codec_fit_open(ts_codec_fit **out, int64_t channels, double scale_power);
int ts_codec_fit_add(ts_codec_fit *fit, const uint8_t *pixels, int64_t frames, int64_t height, int64_t width);
// Collective. TS_EINPUT when no rank added a clip of several frames, or all are one still colour.
int ts_codec_fit_finish(ts_codec_fit *fit, ts_comm *comm, ts_codec **out);
void ts_codec_fit_close(ts_codec_fit **fit);

#endif
