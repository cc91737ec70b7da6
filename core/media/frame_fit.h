// SPDX-License-Identifier: Apache-2.0
// A decoded frame of any size, pixel format and orientation -> RGB [height, width, 3] u8 of a fixed size: resized to
// cover, centre-cropped, turned upright.
#ifndef TS_MEDIA_FRAME_FIT_H
#define TS_MEDIA_FRAME_FIT_H

#include <libavutil/frame.h>
#include <stdbool.h>
#include <stdint.h>

// How stored pixels lie on the screen: first transposed, then mirrored along the displayed axes.
typedef struct ts_orientation {
    bool transpose, flip_x, flip_y;
} ts_orientation;
// From libav's display matrix (NULL: upright). Angles are rounded to quarter turns.
ts_orientation ts_orientation_of(const int32_t *matrix);

typedef struct ts_frame_fit_key {
    int source_width, source_height, source_format, colorspace, range, width, height;
} ts_frame_fit_key;

typedef struct ts_frame_fit {
    int64_t width, height;  // of the result, as displayed
    double pixel_aspect;    // width / height of a stored pixel
    ts_orientation orientation;
    struct SwsContext *scaler;  // rebuilt when the key changes
    ts_frame_fit_key key;
    uint8_t *stored;  // the scaled frame before it is turned, rows padded: scalers write past the end of a row
    int stored_stride;
} ts_frame_fit;

// Crops `frame` in place (its pixels stay untouched), so it can be used once. `path` for messages.
int ts_frame_fit_apply(ts_frame_fit *fit, AVFrame *frame, const char *path, uint8_t *rgb);
void ts_frame_fit_close(ts_frame_fit *fit);

#endif
