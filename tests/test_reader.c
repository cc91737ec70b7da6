// SPDX-License-Identifier: Apache-2.0
// The shapes reader on real clips: rendered, encoded as H.264, read back from the file.
#include <unistd.h>

#include "core/base/file.h"
#include "core/media/video.h"
#include "data/world.h"
#include "tests/shapes_reader.h"
#include "tests/ts_test.h"

enum { CLIPS = 192, SIDE = 64, FRAMES = 17 };

int main(void) {
    static uint8_t rgb[FRAMES * SIDE * SIDE * 3];
    const ts_shapes_hold_out none = {0};
    const ts_video_writer_params params = {SIDE, SIDE, 8, 1, 18, NULL};
    char folder[] = "/tmp/tessera-reader-XXXXXX", path[256], caption[256];
    CHECK(mkdtemp(folder));
    int colour = 0, shape = 0, direction = 0, background = 0;
    for (int64_t i = 0; i < CLIPS; i++) {
        const ts_shapes_factors f = ts_shapes_draw(&none, 77, i, SIDE, SIDE, FRAMES);
        shapes_reading said = {0}, seen = {0};
        ts_world_shapes_render(&f, SIDE, SIDE, FRAMES, rgb);
        snprintf(path, sizeof path, "%s/clip.mp4", folder);
        CHECK_OK(ts_video_write(path, rgb, FRAMES, &params));
        CHECK_OK(shapes_read_file(path, &seen));
        CHECK(shapes_parse_caption(ts_shapes_caption(&f, caption, sizeof caption), &said));
        CHECK(said.colour == f.colour && said.shape == f.shape && said.direction == f.direction);
        colour += seen.found && seen.colour == f.colour;
        shape += seen.found && seen.shape == f.shape;
        direction += seen.found && seen.direction == f.direction;
        background += seen.background == f.background;
        const ts_shapes_direction *d = &ts_shapes_directions[f.direction];
        CHECK_NEAR(seen.moved_x, d->dx * f.speed * (FRAMES - 1), 2.0);
        CHECK_NEAR(seen.moved_y, d->dy * f.speed * (FRAMES - 1), 2.0);
    }
    printf("of %d real clips: colour %d, shape %d, direction %d, background %d\n", CLIPS, colour, shape, direction,
           background);
    CHECK(colour == CLIPS && direction == CLIPS && background == CLIPS);
    CHECK(shape >= CLIPS * 99 / 100);

    // The reader sees nothing in a plain picture, and the grammar is not guessed at.
    memset(rgb, 90, sizeof rgb);
    shapes_reading other;
    CHECK(!shapes_read(rgb, FRAMES, SIDE, SIDE).found);
    CHECK(!shapes_parse_caption("a red dog moves left on a black background", &other));
    CHECK_FAILS(shapes_read_file("/nonexistent.mp4", &other), TS_EINPUT, "nonexistent");
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
