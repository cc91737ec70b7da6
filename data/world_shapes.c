// SPDX-License-Identifier: Apache-2.0
// The shapes world: factors, captions, pixels.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/rng.h"
#include "core/base/status.h"
#include "data/world.h"

const ts_shapes_colour ts_shapes_colours[TS_SHAPES_COLOURS] = {
    {"red", {225, 35, 35}},      {"green", {40, 190, 60}}, {"blue", {50, 90, 245}},    {"yellow", {245, 230, 40}},
    {"magenta", {230, 45, 220}}, {"cyan", {45, 220, 225}}, {"orange", {250, 140, 25}}, {"white", {245, 245, 245}},
};
const char *const ts_shapes_shapes[TS_SHAPES_SHAPES] = {"circle", "square", "triangle"};
const ts_shapes_direction ts_shapes_directions[TS_SHAPES_DIRECTIONS] = {
    {"left", -1, 0}, {"right", 1, 0}, {"up", 0, -1}, {"down", 0, 1}};
const ts_shapes_colour ts_shapes_backgrounds[TS_SHAPES_BACKGROUNDS] = {
    {"black", {8, 8, 8}}, {"grey", {112, 112, 112}}, {"navy", {16, 22, 92}}, {"brown", {92, 58, 30}}};

enum { CIRCLE, SQUARE, TRIANGLE };

// ---- held-out combinations

enum { MAX_HOLD_OUT_BYTES = 1 << 20 };

static const char *colour_name(int i) {
    return ts_shapes_colours[i].name;
}
static const char *shape_name(int i) {
    return ts_shapes_shapes[i];
}
static const char *direction_name(int i) {
    return ts_shapes_directions[i].name;
}

// Finds `word` among the `count` names: *first..*last is its index, or all of them for "*".
static bool find_name(const char *word, const char *(*name)(int), int count, int *first, int *last) {
    if (strcmp(word, "*") == 0) {
        *first = 0;
        *last = count - 1;
        return true;
    }
    for (int i = 0; i < count; i++) {
        if (strcmp(word, name(i)) == 0) {
            *first = *last = i;
            return true;
        }
    }
    return false;
}

static int read_line(ts_shapes_hold_out *out, char *line, const char *path, int64_t number) {
    line[strcspn(line, "#\r")] = '\0';
    char *rest = line, *word[4] = {NULL};
    int words = 0;
    for (char *w; words < 4 && (w = strtok_r(rest, " \t", &rest));) {
        if (words > 0 || strcmp(w, "-") != 0) {
            word[words++] = w;
        }
    }
    if (words == 0) {
        return TS_OK;
    }
    int c0, c1, s0, s1, d0, d1;
    if (words != 3 || !find_name(word[0], colour_name, TS_SHAPES_COLOURS, &c0, &c1) ||
        !find_name(word[1], shape_name, TS_SHAPES_SHAPES, &s0, &s1) ||
        !find_name(word[2], direction_name, TS_SHAPES_DIRECTIONS, &d0, &d1)) {
        return TS_FAIL(TS_EUSAGE,
                       "%s:%lld: not a combination; write COLOUR SHAPE DIRECTION, as in \"red circle left\" "
                       "or \"* square up\"",
                       path, (long long)number);
    }
    for (int c = c0; c <= c1; c++) {
        for (int s = s0; s <= s1; s++) {
            memset(&out->held[c][s][d0], 1, (size_t)(d1 - d0 + 1) * sizeof(bool));
        }
    }
    return TS_OK;
}

int ts_shapes_hold_out_read(ts_shapes_hold_out *out, const char *path) {
    *out = (ts_shapes_hold_out){0};
    char *text;
    size_t bytes;
    TS_TRY(ts_file_read(path, MAX_HOLD_OUT_BYTES, &text, &bytes));
    int status = strlen(text) == bytes ? TS_OK : TS_FAIL(TS_EUSAGE, "%s: holds a NUL byte; give a text file", path);
    char *rest = text;
    for (int64_t number = 1; !status && rest; number++) {
        char *line = strsep(&rest, "\n");
        status = read_line(out, line, path, number);
    }
    free(text);
    if (!status && ts_shapes_allowed(out) == 0) {
        status = TS_FAIL(TS_EUSAGE, "%s: every combination is held out; leave some", path);
    }
    return status;
}

int64_t ts_shapes_allowed(const ts_shapes_hold_out *hold_out) {
    const bool *held = &hold_out->held[0][0][0];
    int64_t allowed = 0;
    for (size_t i = 0; i < sizeof hold_out->held / sizeof *held; i++) {
        allowed += !held[i];
    }
    return allowed;
}

// ---- factors

// Lanes of the clip's random stream. Integers take a whole draw each, uniforms a quarter: lanes 8.. are draws 2...
enum {
    LANE_COMBINATION = 0,
    LANE_BACKGROUND = 1,
    LANE_RADIUS = 8,
    LANE_TRAVEL,
    LANE_START,
    LANE_ACROSS,
    LANE_WRAPS,
};

// Radius as a share of the frame's shorter side. The largest leaves 0.56 of the side to travel.
static const double MIN_RADIUS = 0.12, MAX_RADIUS = 0.22;
// Of a shape that wraps, in sides a frame. The fastest goes round in 16 frames, far from where its direction would be
// in doubt.
static const double MIN_SPEED = 1.0 / 64, MAX_SPEED = 4.0 / 64;

static const double WRAPPING_SHARE = 0.75;  // of mixed clips

static double between(double low, double high, double u) {
    return low + (high - low) * u;
}

// The n-th combination that is allowed.
static int nth_allowed(const ts_shapes_hold_out *hold_out, uint64_t n) {
    const bool *held = &hold_out->held[0][0][0];
    int combination = 0;
    for (; held[combination] || n > 0; combination++) {
        n -= !held[combination];
    }
    return combination;
}

ts_shapes_factors ts_shapes_draw(const ts_shapes_world *world, int64_t clip) {
    const uint64_t index = (uint64_t)clip, seed = world->seed, allowed = (uint64_t)ts_shapes_allowed(&world->hold_out);
    const int combination =
        nth_allowed(&world->hold_out, ts_rng_below(seed, TS_RNG_WORLD, index, LANE_COMBINATION, allowed));
    ts_shapes_factors f = {.colour = combination / (TS_SHAPES_SHAPES * TS_SHAPES_DIRECTIONS),
                           .shape = combination / TS_SHAPES_DIRECTIONS % TS_SHAPES_SHAPES,
                           .direction = combination % TS_SHAPES_DIRECTIONS,
                           .background =
                               (int)ts_rng_below(seed, TS_RNG_WORLD, index, LANE_BACKGROUND, TS_SHAPES_BACKGROUNDS)};
    double u[5];
    for (uint32_t i = 0; i < 5; i++) {
        u[i] = (double)ts_rng_uniform(seed, TS_RNG_WORLD, index, LANE_RADIUS + i);
    }
    const ts_shapes_direction *d = &ts_shapes_directions[f.direction];
    const double along = (double)(d->dx ? world->width : world->height);
    const double across = (double)(d->dx ? world->height : world->width);
    f.radius = between(MIN_RADIUS, MAX_RADIUS, u[0]) * fmin(along, across);
    // Centre of the first frame as if it moved right or down, mirrored for left and up.
    double start;
    if (world->motion == TS_SHAPES_WRAP || (world->motion == TS_SHAPES_MIXED && u[4] < WRAPPING_SHARE)) {
        f.speed = between(MIN_SPEED, MAX_SPEED, u[1]) * along;
        start = along * u[2];
    } else {
        const double room = along - 2 * f.radius, travel = between(along / 2, room, u[1]);
        f.speed = travel / (double)(world->frames - 1);
        start = f.radius + (room - travel) * u[2];
    }
    const double first = d->dx + d->dy > 0 ? start : along - start;
    const double other = between(f.radius, across - f.radius, u[3]);
    f.x = d->dx ? first : other;
    f.y = d->dx ? other : first;
    return f;
}

const char *ts_shapes_caption(const ts_shapes_factors *f, char *out, size_t out_bytes) {
    snprintf(out, out_bytes, "a %s %s moves %s on a %s background", ts_shapes_colours[f->colour].name,
             ts_shapes_shapes[f->shape], ts_shapes_directions[f->direction].name,
             ts_shapes_backgrounds[f->background].name);
    return out;
}

// ---- pixels

// Signed distance from the shape's edge, negative inside; (x, y) from its centre.
static double edge_distance(int shape, double radius, double x, double y) {
    if (shape == CIRCLE) {
        return hypot(x, y) - radius;
    }
    if (shape == SQUARE) {
        const double side = 0.88 * radius, qx = fabs(x) - side, qy = fabs(y) - side;
        return hypot(fmax(qx, 0), fmax(qy, 0)) + fmin(fmax(qx, qy), 0);
    }
    // Corners (0, -r), (-r, 0.8 r), (r, 0.8 r): the farther out of its base and its nearer slope.
    return fmax(y - 0.8 * radius, (1.8 * fabs(x) - (y + radius)) / hypot(1.8, 1));
}

static int64_t wrap(int64_t i, int64_t size) {
    return (i % size + size) % size;
}

// Centred on (cx, cy), which may be any number of sides away.
static void render_frame(const ts_shapes_factors *f, int64_t width, int64_t height, double cx, double cy,
                         uint8_t *rgb) {
    const uint8_t *back = ts_shapes_backgrounds[f->background].rgb, *fore = ts_shapes_colours[f->colour].rgb;
    for (int64_t i = 0; i < width * height; i++) {
        memcpy(rgb + i * 3, back, 3);
    }
    // The pixels about the shape, in its own neighbourhood of the torus: no pixel twice.
    const double reach = f->radius + 1;
    const int64_t x0 = (int64_t)floor(cx - reach), x1 = (int64_t)fmin((double)(x0 + width), ceil(cx + reach));
    const int64_t y0 = (int64_t)floor(cy - reach), y1 = (int64_t)fmin((double)(y0 + height), ceil(cy + reach));
    for (int64_t y = y0; y < y1; y++) {
        for (int64_t x = x0; x < x1; x++) {
            // The covered share of a pixel that a straight edge crosses at this distance from its centre.
            const double distance = edge_distance(f->shape, f->radius, (double)x + 0.5 - cx, (double)y + 0.5 - cy);
            const double covered = fmin(fmax(0.5 - distance, 0), 1);
            uint8_t *pixel = rgb + (wrap(y, height) * width + wrap(x, width)) * 3;
            for (int c = 0; c < 3; c++) {
                pixel[c] = (uint8_t)lround(back[c] + covered * (fore[c] - back[c]));
            }
        }
    }
}

void ts_world_shapes_render(const ts_shapes_factors *f, int64_t width, int64_t height, int64_t frames, uint8_t *rgb) {
    const ts_shapes_direction *d = &ts_shapes_directions[f->direction];
    for (int64_t t = 0; t < frames; t++) {
        const double way = f->speed * (double)t;
        render_frame(f, width, height, f->x + d->dx * way, f->y + d->dy * way, rgb + t * height * width * 3);
    }
}
