// SPDX-License-Identifier: Apache-2.0
// Inside of the pca codec, shared by its use (codec_pca.c) and its fitting (codec_fit.c).
//
//   z[c] = scale[c] * axes[c] . (x - mean)            x: the pixels of a block, 0..255
//   x    = mean + sum_c z[c] / scale[c] * axes[c]     then rounded and clamped
//
// A block is 8 x 8 x 3 pixels of the first frame, or 4 x 8 x 8 x 3 of four later frames, in (t, y, x, colour) order.
#ifndef TS_MODEL_CODEC_PCA_H
#define TS_MODEL_CODEC_PCA_H

#include "core/base/split.h"
#include "core/model/codec.h"

enum {
    TS_CODEC_VERSION = 1,
    TS_CODEC_TIME = 4,
    TS_CODEC_SPACE = 8,
    TS_CODEC_COLOURS = 3,
    TS_CODEC_FIRST_DIMS = 8 * 8 * 3,
    TS_CODEC_LATER_DIMS = 4 * 8 * 8 * 3,
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

struct ts_codec {
    int64_t channels;
    double scale_power, explained;
    uint64_t fingerprint;
    ts_codec_transform first, later;
    // The last pixel frame of a group as a first latent frame: first = last_first group + last_offset
    float *last_first;   // [panels of 8 channels, C, 8]
    float *last_offset;  // [C]
};

// Room for `channels`, with mean, axes and scale to be filled and then prepared: packs the matrices for use and takes
// the fingerprint.
int ts_codec_new(ts_codec **out, int64_t channels);
int ts_codec_prepare(ts_codec *codec);
// Refuses clips that are not 1 + 4k frames of multiples of 8, or of more than 2^31 pixels.
int ts_codec_check_clip(int64_t frames, int64_t height, int64_t width);
// Pixels of the block whose first pixel is `from`, row stride and frame stride in bytes: runs of 24 bytes.
static inline const uint8_t *ts_codec_block_run(const uint8_t *from, int64_t t, int64_t y, int64_t width,
                                                int64_t height) {
    return from + (t * height + y) * width * TS_CODEC_COLOURS;
}

// Decoding goes by rows of blocks, t h of them in a latent, each for itself. A row of the first latent frame makes one
// strip of 8 x W pixels, a row of a later one four, in four frames.
int ts_codec_check_latent(int64_t t, int64_t h, int64_t w);  // sizes that cannot be decoded: TS_EUSAGE
// Strips that the rows before `row` make.
static inline int64_t ts_codec_strips(int64_t row, int64_t h) {
    return row < h ? row : h + TS_CODEC_TIME * (row - h);
}
// The rows of `rows` that lie in latent frame `frame`, one of those that it touches.
ts_part ts_codec_band(ts_part rows, int64_t h, int64_t frame);
// Decodes some rows of a latent [t, h, w, C], from rows.first on: `latent` [rows.count, w, C]. Pixels are packed: a
// band after the other, each [frames, 8 rows, 8 w, 3]; of all rows that is the whole clip.
void ts_codec_decode_rows(const ts_codec *codec, const float *latent, int64_t h, int64_t w, ts_part rows,
                          uint8_t *pixels);

#endif
