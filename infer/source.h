// SPDX-License-Identifier: Apache-2.0
// Pixels of a track entry at the times of the result, whatever the file's size and rate.
#ifndef TS_INFER_SOURCE_H
#define TS_INFER_SOURCE_H

#include <stdint.h>

#include "core/media/video.h"

typedef struct ts_source_info {
    int64_t width, height, frames;  // frames: 0 when unknown
    double fps, duration;
} ts_source_info;
int ts_source_describe(ts_source_info *out, const char *path);

// Frames at the times first_time + i * step_time seconds, i < frames, as rgb [frames, height, width, 3] u8: each frame
// resized to cover and centre-cropped; a time between two frames of the file is their mean weighted by distance, one
// within a thousandth of a frame of either is that frame itself. *filled is how many frames the file had: fewer when it
// ends early. A still image is every frame. Memory: a few frames of the file. TS_EINPUT "path: ...".
int ts_source_read(const char *path, double first_time, double step_time, int64_t frames, int64_t height, int64_t width,
                   uint8_t *rgb, int64_t *filled);

#endif
