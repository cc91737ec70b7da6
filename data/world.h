// SPDX-License-Identifier: Apache-2.0
// Procedural corpora: real video files with captions and the factors that made them.
//
// The shapes world: one shape moves across a plain background.
//   a {colour} {shape} moves {direction} on a {background} background
// The frame is a torus: what leaves on one side comes in on the other, so every clip has a true continuation.
// Every factor is drawn by Philox (seed, clip), so that any number of ranks writes the same files.
#ifndef TS_DATA_WORLD_H
#define TS_DATA_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/comm/comm.h"

enum { TS_SHAPES_COLOURS = 8, TS_SHAPES_SHAPES = 3, TS_SHAPES_DIRECTIONS = 4, TS_SHAPES_BACKGROUNDS = 4 };

typedef struct ts_shapes_colour {
    const char *name;
    uint8_t rgb[3];
} ts_shapes_colour;
typedef struct ts_shapes_direction {
    const char *name;
    int dx, dy;  // y grows downward
} ts_shapes_direction;
extern const ts_shapes_colour ts_shapes_colours[TS_SHAPES_COLOURS];
extern const char *const ts_shapes_shapes[TS_SHAPES_SHAPES];  // circle, square, triangle
extern const ts_shapes_direction ts_shapes_directions[TS_SHAPES_DIRECTIONS];
extern const ts_shapes_colour ts_shapes_backgrounds[TS_SHAPES_BACKGROUNDS];

// What a clip shows of that motion.
typedef enum {
    TS_SHAPES_CROSS,  // the shape stays inside the frame and crosses at least half of it from first to last frame
    TS_SHAPES_WRAP,   // it begins anywhere along its way, and goes 1/64 to 4/64 of the side a frame
    TS_SHAPES_MIXED,  // three of four clips wrap, the others cross, whose start tells the direction
} ts_shapes_motion;

typedef struct ts_shapes_factors {
    int colour, shape, direction, background;  // indices into the tables above
    double radius;                             // pixels: the shape fits a square of side 2 radius about (x, y)
    double x, y;                               // of that square's centre in frame 0: pixels from the top left corner
    double speed;                              // pixels a frame
} ts_shapes_factors;

// Combinations of colour, shape and direction that must not occur.
typedef struct ts_shapes_hold_out {
    bool held[TS_SHAPES_COLOURS][TS_SHAPES_SHAPES][TS_SHAPES_DIRECTIONS];
} ts_shapes_hold_out;
// One combination a line, "red circle left"; '*' stands for any: "* square up". A leading "- " (a YAML list), empty
// lines and what follows '#' are passed over. TS_EUSAGE with file:line for anything else.
int ts_shapes_hold_out_read(ts_shapes_hold_out *out, const char *path);
// How many of the combinations are left.
int64_t ts_shapes_allowed(const ts_shapes_hold_out *hold_out);

// What the factors of clips are drawn for.
typedef struct ts_shapes_world {
    ts_shapes_hold_out hold_out;  // some combination must be allowed
    uint64_t seed;
    ts_shapes_motion motion;
    int64_t width, height, frames;  // frames >= 2
} ts_shapes_world;
// The factors of a clip. Across its way the shape is inside the frame, whatever the motion.
ts_shapes_factors ts_shapes_draw(const ts_shapes_world *world, int64_t clip);
const char *ts_shapes_caption(const ts_shapes_factors *factors, char *out, size_t out_bytes);  // returns out
// rgb [frames, height, width, 3] u8, edges anti-aliased, also across the border.
void ts_world_shapes_render(const ts_shapes_factors *factors, int64_t width, int64_t height, int64_t frames,
                            uint8_t *rgb);

// tessera world --kind shapes --clips N --size WxH --frames F --fps R --seed S --out DIR
//               [--motion cross|wrap|mixed] [--hold-out FILE]
// Writes DIR/0000001.mp4 ... and DIR/metadata.jsonl (Hugging Face videofolder), which comes last. Collective.
int ts_command_world(ts_comm *world, int argc, char **argv);

#endif
