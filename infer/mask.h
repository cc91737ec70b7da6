// SPDX-License-Identifier: Apache-2.0
// Masks: which pixels of a span may change, from pictures, videos and boxes, to a share for each token.
#ifndef TS_INFER_MASK_H
#define TS_INFER_MASK_H

#include <stdbool.h>
#include <stdint.h>

// mask [frames, height, width] f32, 0 .. 1.

// Adds (the larger counts) a rectangle x, y, width, height, in pixels, to frames [first, end).
void ts_mask_add_box(float *mask, int64_t height, int64_t width, int64_t first, int64_t end, const int64_t box[4]);
// Adds a PNG, to all frames, or a video, from its beginning: brightness, scaled to fit.
int ts_mask_add_file(float *mask, int64_t frames, int64_t height, int64_t width, const char *path);
// Softens edges outward: values fall linearly to 0 over `feather` pixels beyond where they are 1.
int ts_mask_feather(float *mask, int64_t frames, int64_t height, int64_t width, double feather);
// The share of a token is the largest of its pixels' in its frames: a token that holds any free pixel may change.
// share [latent frames, height / token_height, width / token_width]; pixel frames of latent frames as in
// ts_span_snap (infer/timeline.h).
void ts_mask_tokens(const float *mask, int64_t frames, int64_t height, int64_t width, int64_t time_factor, bool loop,
                    int64_t token_height, int64_t token_width, float *share);

#endif
