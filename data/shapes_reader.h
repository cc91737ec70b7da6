// SPDX-License-Identifier: Apache-2.0
// Reads a video of the shapes world from its pixels: which colour, which shape, which direction and speed, on which
// background.
//
// It knows the palette and the geometry of data/world.h, the torus included, and nothing of how the video was made: it
// judges generated videos as it judges real ones (tests/test_reader.c measures it on real ones). Every frame is read by
// itself first, so that a video may change its colour on the way.
#ifndef TS_DATA_SHAPES_READER_H
#define TS_DATA_SHAPES_READER_H

#include <stdbool.h>
#include <stdint.h>

#include "data/world.h"

// Indices are those of the tables of data/world.h; lengths are pixels.
typedef struct ts_shapes_frame {
    bool found;              // false: nothing stands out of the background; then only `background` and the way count
    int colour, background;  // nearest of the palettes
    double area;             // covered
    double x, y;             // centroid, from the top left corner: 0 <= x < width, 0 <= y < height
    double way_x, way_y;  // from the first frame that was found: the steps between frames, each taken the shorter way
                          // round the torus, added up
} ts_shapes_frame;

typedef struct ts_shapes_reading {
    bool found;                    // in one frame at least
    int colour, shape;             // colour: that of most frames
    int direction;                 // of the velocity's larger part
    int background;                // that of most frames
    double vx, vy;                 // pixels a frame, as ts_shapes_velocity gives them for all frames
    double speed;                  // hypot(vx, vy)
    double fit[TS_SHAPES_SHAPES];  // overlap with each shape at the object's size and place, mean over frames
} ts_shapes_reading;

// rgb [frames, height, width, 3] u8, out [frames]. The object must cover at least a hundredth of a frame and less than
// half of it. TS_ERESOURCE without memory.
int ts_shapes_read_frames(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width, ts_shapes_frame *out);

// Mean velocity over frames [first, end) in pixels a frame: the least-squares line through the way gone, so that one
// odd frame does not decide. 0 and 0 when fewer than two of them were found.
void ts_shapes_velocity(const ts_shapes_frame *frame, int64_t first, int64_t end, double *vx, double *vy);
// The direction nearest to a velocity: an index into ts_shapes_directions.
int ts_shapes_direction_of(double vx, double vy);

// All of it for one video. TS_ERESOURCE without memory.
int ts_shapes_read(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width, ts_shapes_reading *out);
// Same of a video file of 2 to 4096 frames; the status of the reader when it cannot be opened.
int ts_shapes_read_file(const char *path, ts_shapes_reading *out);

// Colour, shape, direction and background named by a caption of the fixed grammar; false when the text is not of it.
bool ts_shapes_parse_caption(const char *caption, ts_shapes_factors *out);

#endif
