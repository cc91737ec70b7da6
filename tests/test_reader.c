// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=120
// The shapes reader on real clips: rendered, encoded as H.264, read back from the file.
#include <unistd.h>

#include "core/base/file.h"
#include "core/media/video.h"
#include "data/shapes_reader.h"
#include "tests/ts_test.h"

enum { CLIPS = 192, SIDE = 64, FRAMES = 17, LONG = 61 };

static char folder[] = "/tmp/tessera-reader-XXXXXX", path[256];
static uint8_t rgb[LONG * SIDE * SIDE * 3];

static void write_clip(const ts_shapes_factors *f, int64_t frames) {
    const ts_video_writer_params params = {SIDE, SIDE, 8, 1, 18, NULL};
    ts_world_shapes_render(f, SIDE, SIDE, frames, rgb);
    CHECK_OK(ts_video_write(path, rgb, frames, &params));
}

// Right in everything, in both motions.
static void test_real_clips(ts_shapes_motion motion, const char *name) {
    const ts_shapes_world world = {.seed = 77, .motion = motion, .width = SIDE, .height = SIDE, .frames = FRAMES};
    int colour = 0, shape = 0, direction = 0, background = 0;
    double worst_speed = 0;
    for (int64_t i = 0; i < CLIPS; i++) {
        const ts_shapes_factors f = ts_shapes_draw(&world, i);
        ts_shapes_reading seen;
        write_clip(&f, FRAMES);
        CHECK_OK(ts_shapes_read_file(path, &seen));
        colour += seen.found && seen.colour == f.colour;
        shape += seen.found && seen.shape == f.shape;
        direction += seen.found && seen.direction == f.direction;
        background += seen.background == f.background;
        const ts_shapes_direction *d = &ts_shapes_directions[f.direction];
        worst_speed = fmax(worst_speed, hypot(seen.vx - d->dx * f.speed, seen.vy - d->dy * f.speed) / f.speed);
    }
    printf("%s, of %d real clips: colour %d, shape %d, direction %d, background %d; speed within %.2f %%\n", name,
           CLIPS, colour, shape, direction, background, 100 * worst_speed);
    CHECK(colour == CLIPS && direction == CLIPS && background == CLIPS);
    CHECK(shape >= CLIPS * 99 / 100);
    CHECK(worst_speed < 0.03);
}

// Frame by frame: places on the torus, the way unwrapped over several rounds, and what changes half-way.
static void test_frames(void) {
    static ts_shapes_frame frame[LONG];
    enum { CHANGE = 30 };
    for (int direction = 0; direction < TS_SHAPES_DIRECTIONS; direction++) {
        const ts_shapes_direction *d = &ts_shapes_directions[direction];
        ts_shapes_factors f = {.colour = 1, .direction = direction, .radius = 9, .x = 60, .y = 5, .speed = 3};
        ts_world_shapes_render(&f, SIDE, SIDE, CHANGE, rgb);
        f.x += d->dx * 3 * (CHANGE - 1);
        f.y += d->dy * 3 * (CHANGE - 1);
        f.colour = 6;
        f.background = 2;
        f.speed = 1.5;
        ts_world_shapes_render(&f, SIDE, SIDE, LONG - CHANGE + 1, rgb + (CHANGE - 1) * SIDE * SIDE * 3);
        CHECK_OK(ts_shapes_read_frames(rgb, LONG, SIDE, SIDE, frame));
        for (int t = 0; t < LONG; t++) {
            const double way = t < CHANGE ? 3.0 * t : 3.0 * (CHANGE - 1) + 1.5 * (t - CHANGE + 1);
            const double x = 60 + d->dx * way, y = 5 + d->dy * way;
            CHECK(frame[t].found && frame[t].colour == (t < CHANGE - 1 ? 1 : 6));
            CHECK(frame[t].background == (t < CHANGE - 1 ? 0 : 2));
            CHECK_NEAR(frame[t].area, M_PI * 81, 5);
            CHECK_NEAR(frame[t].x, x - SIDE * floor(x / SIDE), 0.06);
            CHECK_NEAR(frame[t].y, y - SIDE * floor(y / SIDE), 0.06);
            CHECK_NEAR(frame[t].way_x, d->dx * way, 0.1);
            CHECK_NEAR(frame[t].way_y, d->dy * way, 0.1);
        }
        double vx, vy;
        ts_shapes_velocity(frame, 0, CHANGE, &vx, &vy);
        CHECK_NEAR(vx, 3.0 * d->dx, 0.02);
        CHECK_NEAR(vy, 3.0 * d->dy, 0.02);
        CHECK(ts_shapes_direction_of(vx, vy) == direction);
        ts_shapes_velocity(frame, CHANGE, LONG, &vx, &vy);
        CHECK_NEAR(vx, 1.5 * d->dx, 0.02);
        CHECK_NEAR(vy, 1.5 * d->dy, 0.02);
        ts_shapes_velocity(frame, 7, 8, &vx, &vy);
        CHECK(vx == 0 && vy == 0);
    }
}

static void test_captions(void) {
    char text[128];
    const ts_shapes_factors f = {.colour = 6, .shape = 2, .direction = 3, .background = 2};
    ts_shapes_factors said;
    CHECK(ts_shapes_parse_caption(ts_shapes_caption(&f, text, sizeof text), &said));
    CHECK(said.colour == 6 && said.shape == 2 && said.direction == 3 && said.background == 2);
    CHECK(!ts_shapes_parse_caption("a red dog moves left on a black background", &said));
}

// Nothing is seen in a plain picture; a frame without the object does not break the way.
static void test_nothing(void) {
    static ts_shapes_frame frame[FRAMES];
    const int64_t frame_bytes = SIDE * SIDE * 3;
    const ts_shapes_factors f = {.direction = 1, .radius = 9, .x = 50, .y = 30, .speed = 4};
    ts_world_shapes_render(&f, SIDE, SIDE, FRAMES, rgb);
    memset(rgb, 90, (size_t)frame_bytes);
    memset(rgb + 6 * frame_bytes, 90, (size_t)frame_bytes);
    CHECK_OK(ts_shapes_read_frames(rgb, FRAMES, SIDE, SIDE, frame));
    CHECK(!frame[0].found && frame[1].found && !frame[6].found && frame[6].way_x == frame[5].way_x);
    CHECK_NEAR(frame[16].way_x, 4.0 * 15, 0.1);
    ts_shapes_reading seen;
    memset(rgb, 90, sizeof rgb);
    CHECK_OK(ts_shapes_read(rgb, FRAMES, SIDE, SIDE, &seen));
    CHECK(!seen.found && seen.speed == 0);
    CHECK_FAILS(ts_shapes_read_file("/nonexistent.mp4", &seen), TS_EINPUT, "nonexistent");
}

int main(void) {
    CHECK(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/clip.mp4", folder);
    test_real_clips(TS_SHAPES_CROSS, "cross");
    test_real_clips(TS_SHAPES_WRAP, "wrap");
    test_frames();
    test_captions();
    test_nothing();
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
