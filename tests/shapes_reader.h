// SPDX-License-Identifier: Apache-2.0
// Reads a clip of the shapes world from its pixels: which colour, which shape, which direction, on which background.
//
// It knows the palette and the geometry of data/world and nothing of how the clip was made, so it judges generated
// clips as it judges real ones (tests/test_reader.c measures it on real ones).
#ifndef TS_TESTS_SHAPES_READER_H
#define TS_TESTS_SHAPES_READER_H

#include <stdbool.h>
#include <stdint.h>

typedef struct shapes_reading {
    bool found;                                // false: no object stands out of the background
    int colour, shape, direction, background;  // indices into the names of data/world.h
    double moved_x, moved_y;                   // displacement of the centroid from first to last frame, pixels
    double fit[3];  // overlap with each shape at the object's size and place, mean over frames
} shapes_reading;

// rgb [frames, height, width, 3].
shapes_reading shapes_read(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width);

// Same of an MP4; the status of the reader when it cannot be opened.
int shapes_read_file(const char *path, shapes_reading *out);

// Factors named by a caption of the fixed grammar; false when the text is not of the grammar.
bool shapes_parse_caption(const char *caption, shapes_reading *out);

#endif
