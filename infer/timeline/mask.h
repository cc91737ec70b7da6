// SPDX-License-Identifier: Apache-2.0
// Masks: which pixels of a span may change, from pictures, videos and boxes, to a share for each token.
#ifndef TS_INFER_MASK_H
#define TS_INFER_MASK_H

#include <stdint.h>

// Numbers are f32, 0 held .. 1 may change.

// Onto one frame, mask [height, width], where what is added is larger. A rectangle x, y, width, height, in pixels; what
// is outside of the frame is left out.
void ts_mask_add_box(float *mask, int64_t height, int64_t width, const int64_t box[4]);
// The brightness of a frame, grey [height, width] u8 (infer/timeline/source.h with one channel): white is 1.
void ts_mask_add_grey(float *mask, int64_t height, int64_t width, const uint8_t *grey);

// On several, mask [frames, height, width]. White for black.
void ts_mask_invert(float *mask, int64_t frames, int64_t height, int64_t width);
// Softens edges outward: values fall by 1 / feather a pixel beyond where they are, until they meet what is there. Along
// rows, columns and diagonals distances are true, between them up to 8 % too long. 0: nothing changes.
void ts_mask_feather(float *mask, int64_t frames, int64_t height, int64_t width, double feather);
// The pixel frames of one latent frame to its tokens, share [height / token_height, width / token_width]: the largest
// of a token's pixels, so that a token that holds any free pixel may change.
void ts_mask_tokens(const float *mask, int64_t frames, int64_t height, int64_t width, int64_t token_height,
                    int64_t token_width, float *share);

#endif
