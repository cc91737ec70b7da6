// SPDX-License-Identifier: Apache-2.0
// Inside of the pca codec, shared by its use (codec_pca.c) and its fitting (codec_fit.c).
//
//   z[c] = scale[c] * axes[c] . (x - mean)            x: the pixels of a block, 0..255
//   x    = mean + sum_c z[c] / scale[c] * axes[c]     then rounded and clamped
//
// A block is 8 x 8 x 3 pixels of the first frame, or 4 x 8 x 8 x 3 of four later frames, in (t, y, x, colour) order.
//
// What a group alone forgets of its motion, its neighbours in time remember: where there is one, the half of a group's
// frames that lies next to it is decoded from both, by least squares over the clips of the fit:
//   x[half] = mean[half] + join [z of the earlier, z of the later]
#ifndef TS_MODEL_CODEC_PCA_H
#define TS_MODEL_CODEC_PCA_H

#include "core/base/split.h"
#include "core/model/codec.h"

enum {
    TS_CODEC_VERSION = 2,  // 1: without joins
    TS_CODEC_TIME = 4,
    TS_CODEC_SPACE = 8,
    TS_CODEC_COLOURS = 3,
    TS_CODEC_FIRST_DIMS = 8 * 8 * 3,
    TS_CODEC_LATER_DIMS = 4 * 8 * 8 * 3,
    TS_CODEC_HALF_DIMS = TS_CODEC_LATER_DIMS / 2,
    TS_CODEC_MAX_CHANNELS = TS_CODEC_FIRST_DIMS
};

// One linear map between blocks and latent vectors.
typedef struct ts_codec_transform {
    int64_t frames, dims;  // of a block
    float *mean;           // [dims]
    float *axes;           // [C, dims], orthonormal rows
    float *scale;          // [C], positive
    float *encode;         // [panels of 8 channels, dims, 8]: scale * axes, transposed
    float *decode;         // [panels of 8 pixels, C, 8]: axes / scale
} ts_codec_transform;

// Which half of a group, beside what.
typedef enum {
    TS_CODEC_BEGIN_FIRST,  // the first two frames, after the first latent frame
    TS_CODEC_BEGIN,        // the first two frames, after another group
    TS_CODEC_END,          // the last two frames, before another group
    TS_CODEC_JOINS
} ts_codec_join_kind;
typedef struct ts_codec_join {
    float *matrix;  // [HALF_DIMS, 2 C]
    float *decode;  // [panels of 8 pixels, 2 C, 8]
} ts_codec_join;

struct ts_codec {
    int64_t channels;
    double scale_power, explained;
    uint64_t fingerprint;
    ts_codec_transform first, later;
    ts_codec_join join[TS_CODEC_JOINS];
    // The last pixel frame of a group as a first latent frame: first = last_first group + last_offset
    float *last_first;   // [panels of 8 channels, C, 8]
    float *last_offset;  // [C]
};

// Room for `channels`, with mean, axes and scale to be filled and then prepared: packs the matrices for use and takes
// the fingerprint.
int ts_codec_new(ts_codec **out, int64_t channels);
int ts_codec_prepare(ts_codec *codec);
uint64_t ts_codec_join_sum(const ts_codec *codec);  // of the joins, which the fingerprint leaves out

// Fills a join from sums over pairs of blocks, the earlier one's pixels before the later one's, each less `centre`:
// sum [D], product [D, D], of which the lower half is read. The codec's means, axes and scales are there. Without pairs
// it is what the group alone gives. TS_ERESOURCE without memory.
typedef struct ts_codec_pairs {
    int64_t count, dims;  // D: of both blocks
    const int64_t *sum, *product;
    double centre;
} ts_codec_pairs;
int ts_codec_join_fit(ts_codec *codec, ts_codec_join_kind kind, const ts_codec_pairs *pairs);
// Refuses clips that are not 1 + 4k frames of multiples of 8, or of more than 2^31 pixels.
int ts_codec_check_clip(int64_t frames, int64_t height, int64_t width);
// Pixels of the block whose first pixel is `from`, row stride and frame stride in bytes: runs of 24 bytes.
static inline const uint8_t *ts_codec_block_run(const uint8_t *from, int64_t t, int64_t y, int64_t width,
                                                int64_t height) {
    return from + (t * height + y) * width * TS_CODEC_COLOURS;
}

// Decoding goes by rows of blocks, t h of them in a latent, each for itself. A row of the first latent frame makes one
// strip of 8 x W pixels, a row of a later one four, in four frames. Rows are counted as if there were a first frame
// where there is none.
int ts_codec_check_stretch(const ts_codec_stretch *s);  // sizes that cannot be decoded: TS_EUSAGE
// Strips that the rows before `row` make.
static inline int64_t ts_codec_strips(int64_t row, int64_t h) {
    return row < h ? row : h + TS_CODEC_TIME * (row - h);
}
// The rows that a stretch gives pixels of.
static inline ts_part ts_codec_stretch_rows(const ts_codec_stretch *s) {
    return (ts_part){(s->groups + s->before) * s->h, (s->t - s->before - s->after) * s->h};
}
// The rows of `rows` that lie in latent frame `frame`, one of those that it touches.
ts_part ts_codec_band(ts_part rows, int64_t h, int64_t frame);
// Decodes some rows of a stretch. Pixels are packed: a band after the other, each [frames, 8 rows, 8 w, 3]; of all rows
// that is the whole clip.
void ts_codec_decode_rows(const ts_codec *codec, const ts_codec_stretch *s, ts_part rows, uint8_t *pixels);

#endif
