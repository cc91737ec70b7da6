// SPDX-License-Identifier: Apache-2.0
// Pictures brought to the size of a video's frames: resized to cover, centre-cropped, as frames of files are.
#ifndef TS_MEDIA_RESIZE_H
#define TS_MEDIA_RESIZE_H

#include <stdint.h>

// from [height, width, channels] u8 -> to [to_height, to_width, channels] u8, channels 1 to 4, sides 1 and more. The
// largest part of the centre that has the shape of `to` is shown. A triangle filter as wide as a pixel of the result,
// or of the source when enlarging; equal sizes are a copy. The same bits on every machine. TS_ERESOURCE.
int ts_resize_cover(const uint8_t *from, int64_t height, int64_t width, int channels, uint8_t *to, int64_t to_height,
                    int64_t to_width);

#endif
