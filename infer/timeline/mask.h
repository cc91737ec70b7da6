// SPDX-License-Identifier: Apache-2.0
// Masks: which pixels of a span may change, from pictures, videos and boxes, to a share for each token.
#ifndef TS_INFER_MASK_H
#define TS_INFER_MASK_H

#include <stdbool.h>
#include <stdint.h>

// mask [frames, height, width] f32, 0 held .. 1 may change. What is added counts where it is larger.

// A rectangle x, y, width, height, in pixels, in frames [first, end). Parts outside the mask are left out.
void ts_mask_add_box(float *mask, int64_t height, int64_t width, int64_t first, int64_t end, const int64_t box[4]);
// The brightness of one frame, grey [height, width] u8 (infer/timeline/source.h with one channel): white is 1. `mask`
// is that frame's.
void ts_mask_add_grey(float *mask, int64_t height, int64_t width, const uint8_t *grey);
// White for black.
void ts_mask_invert(float *mask, int64_t frames, int64_t height, int64_t width);
// Softens edges outward: values fall by 1 / feather a pixel beyond where they are, until they meet what is there. Along
// rows, columns and diagonals distances are true, between them up to 8 % too long. 0: nothing changes.
void ts_mask_feather(float *mask, int64_t frames, int64_t height, int64_t width, double feather);
// The share of a token is the largest of its pixels' in its frames: a token that holds any free pixel may change.
// share [latent frames, height / token_height, width / token_width]; pixel frames of latent frames as in
// ts_span_snap (infer/timeline/timeline.h).
void ts_mask_tokens(const float *mask, int64_t frames, int64_t height, int64_t width, int64_t time_factor, bool loop,
                    int64_t token_height, int64_t token_width, float *share);

#endif
