// SPDX-License-Identifier: Apache-2.0
// Pixels of a track entry at the times of the result, whatever the file's size and rate.
//
// Frames are resized to cover and centre-cropped. Where the file has frames at least as often as they are asked for,
// the nearest one in time is taken, as films are shown at another rate; where it has fewer, as in slow motion, what
// lies between two frames is their mean weighted by distance. A time within a twentieth of a frame of one is that frame
// itself, bit for bit. The last frame is shown for as long as a frame of the file's rate. A still picture (PNG or JPEG,
// told by its first bytes) is every frame.
#ifndef TS_INFER_SOURCE_H
#define TS_INFER_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct ts_source_info {
    bool picture;
    int64_t width, height, frames;  // frames: 0 when unknown, 1 of a picture
    double fps, duration;           // seconds; 0 when unknown, and of a picture
} ts_source_info;
// TS_EINPUT "path: ...".
int ts_source_describe(ts_source_info *out, const char *path);

// One frame after the other: memory of three frames, whatever the length.
typedef struct ts_source ts_source;

// Frame i is that at first_time + i * step_time seconds; neither is negative. channels: 3 RGB; 1 brightness, where
// what is transparent in a picture is black. TS_EINPUT "path: ...".
int ts_source_open(ts_source **out, const char *path, double first_time, double step_time, int64_t height,
                   int64_t width, int channels);
// The next frame: pixels [height, width, channels] u8. TS_EOF when the file has ended.
int ts_source_next(ts_source *source, uint8_t *pixels);
void ts_source_close(ts_source **source);

#endif
