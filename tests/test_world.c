// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2 timeout=120
// The shapes world: factors, pixels, held-out combinations, files.
#include <inttypes.h>
#include <limits.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/comm/comm.h"
#include "core/media/video.h"
#include "data/world.h"
#include "tests/ts_test.h"

static ts_comm *world;
static char folder[64];
static const ts_shapes_world small = {.seed = 5, .width = 64, .height = 48, .frames = 9};  // of run("w", "--seed=5")

static void test_factors(void) {
    int64_t seen[TS_SHAPES_COLOURS][TS_SHAPES_SHAPES][TS_SHAPES_DIRECTIONS] = {0};
    for (int64_t i = 0; i < 9600; i++) {
        const double w = i % 2 ? 64 : 96, h = 64, frames = 17;
        const ts_shapes_world shapes = {
            .seed = 7, .width = (int64_t)w, .height = (int64_t)h, .frames = (int64_t)frames};
        const ts_shapes_factors f = ts_shapes_draw(&shapes, i);
        seen[f.colour][f.shape][f.direction]++;
        const ts_shapes_direction d = ts_shapes_directions[f.direction];
        const double travel = f.speed * (frames - 1), x1 = f.x + d.dx * travel, y1 = f.y + d.dy * travel;
        CHECK(travel >= (d.dx ? w : h) / 2 - 1e-9);
        CHECK(fmin(f.x, x1) >= f.radius - 1e-9 && fmax(f.x, x1) <= w - f.radius + 1e-9);
        CHECK(fmin(f.y, y1) >= f.radius - 1e-9 && fmax(f.y, y1) <= h - f.radius + 1e-9);
        CHECK(f.radius >= 0.119 * 64 && f.radius <= 0.221 * 64);
        CHECK(f.background >= 0 && f.background < TS_SHAPES_BACKGROUNDS);
    }
    for (int64_t i = 0; i < 96; i++) {  // 100 expected of each: six standard deviations either way
        CHECK((&seen[0][0][0])[i] > 40 && (&seen[0][0][0])[i] < 160);
    }
    char text[128];
    const ts_shapes_factors f = {.colour = 6, .shape = 2, .direction = 3, .background = 2};
    CHECK(strcmp(ts_shapes_caption(&f, text, sizeof text), "a orange triangle moves down on a navy background") == 0);
}

// Wrapping clips begin anywhere along their way and are inside the frame across it; mixed ones are one of both, with
// the same factors otherwise.
static void test_motions(void) {
    enum { CLIPS = 4000, SPANS = 8 };
    const ts_shapes_world cross = {.seed = 7, .motion = TS_SHAPES_CROSS, .width = 96, .height = 64, .frames = 17};
    ts_shapes_world wrap = cross, mixed = cross;
    wrap.motion = TS_SHAPES_WRAP;
    mixed.motion = TS_SHAPES_MIXED;
    int64_t start[SPANS] = {0}, speed[SPANS] = {0}, wraps = 0;
    for (int64_t i = 0; i < CLIPS; i++) {
        const ts_shapes_factors a = ts_shapes_draw(&cross, i), f = ts_shapes_draw(&wrap, i),
                                m = ts_shapes_draw(&mixed, i);
        const bool x = ts_shapes_directions[f.direction].dx != 0;
        const double along = x ? 96 : 64, across = x ? 64 : 96, first = x ? f.x : f.y, other = x ? f.y : f.x;
        CHECK(f.colour == a.colour && f.shape == a.shape && f.direction == a.direction && f.radius == a.radius);
        CHECK(first >= 0 && first <= along && other >= f.radius && other <= across - f.radius);
        CHECK(f.speed >= along / 64 && f.speed <= along / 16);
        start[(int)(first / along * (SPANS - 1e-9))]++;
        speed[(int)((f.speed / along * 64 - 1) / 3 * (SPANS - 1e-9))]++;
        CHECK(!memcmp(&m, &a, sizeof m) || !memcmp(&m, &f, sizeof m));
        wraps += !memcmp(&m, &f, sizeof m);
    }
    for (int i = 0; i < SPANS; i++) {  // 500 expected of each
        CHECK(start[i] > 380 && start[i] < 620);
        CHECK(speed[i] > 380 && speed[i] < 620);
    }
    CHECK(100 * wraps > 72 * CLIPS && 100 * wraps < 78 * CLIPS);
}

// On the torus a clip is the same picture wherever it lies: moved by whole pixels it is rolled, also over the corner,
// and after a round it is where it was.
static void test_torus(void) {
    enum { W = 48, H = 32 };
    static uint8_t here[3 * H * W * 3], there[3 * H * W * 3];
    for (int shape = 0; shape < TS_SHAPES_SHAPES; shape++) {
        for (int direction = 0; direction < TS_SHAPES_DIRECTIONS; direction++) {
            const double speed = ts_shapes_directions[direction].dx ? W / 2.0 : H / 2.0;
            ts_shapes_factors f = {.colour = 3,
                                   .shape = shape,
                                   .direction = direction,
                                   .radius = 6.3,
                                   .x = 24.3,
                                   .y = 15.6,
                                   .speed = speed};
            ts_world_shapes_render(&f, W, H, 3, here);
            CHECK(!memcmp(here, here + 2 * H * W * 3, H * W * 3) && memcmp(here, here + H * W * 3, H * W * 3));
            f.x += 23;  // on the right border, and half a turn further
            f.y -= 14 + 3 * H;
            ts_world_shapes_render(&f, W, H, 3, there);
            for (int i = 0; i < 3 * H * W; i++) {
                const int t = i / (H * W), y = i / W % H, x = i % W;
                const int from = (t * H + (y + 14) % H) * W + (x + W - 23) % W;
                for (int c = 0; c < 3; c++) {
                    CHECK(abs(there[3 * i + c] - here[3 * from + c]) <= 1);  // the last bit of a place may differ
                }
            }
        }
    }
}

// The covered area is that of the shape: white on black, so that the sum of the pixels measures it.
static void test_area(void) {
    enum { SIDE = 64 };
    uint8_t *rgb = malloc(2 * SIDE * SIDE * 3);
    for (int shape = 0; shape < TS_SHAPES_SHAPES; shape++) {
        for (double radius = 8; radius < 14; radius += 1.7) {
            const ts_shapes_factors f = {
                .colour = 7, .shape = shape, .direction = 1, .radius = radius, .x = 20.3, .y = 31.6, .speed = 22.25};
            ts_world_shapes_render(&f, SIDE, SIDE, 2, rgb);
            const double wanted[] = {M_PI * radius * radius, 1.76 * 1.76 * radius * radius, 1.8 * radius * radius};
            for (int t = 0; t < 2; t++) {
                double area = 0, x = 0, y = 0;
                for (int i = 0; i < SIDE * SIDE; i++) {
                    const double covered = (rgb[(t * SIDE * SIDE + i) * 3] - 8) / 237.0;
                    area += covered;
                    x += covered * (i % SIDE + 0.5);
                    y += covered * (i / SIDE + 0.5);
                }
                CHECK_NEAR(area, wanted[shape], 0.01 * wanted[shape]);
                CHECK_NEAR(x / area, 20.3 + t * 22.25, 0.03);
                CHECK_NEAR(y / area, 31.6 + (shape == 2 ? 0.2 * radius : 0), 0.05);  // a triangle's centroid is lower
            }
        }
    }
    free(rgb);
}

static const char *in_folder(const char *name) {
    static char path[4][PATH_MAX];
    static int next;
    char *out = path[next = (next + 1) % 4];
    snprintf(out, PATH_MAX, "%s/%s", folder, name);
    return out;
}

static void write_text(const char *name, const char *text) {
    CHECK_OK(ts_file_write_atomic(in_folder(name), text, strlen(text)));
}

static void test_hold_out(void) {
    ts_shapes_hold_out held;
    write_text("held.txt", "# combinations\nred circle left\n\n- '*' is no name\n");
    CHECK_FAILS(ts_shapes_hold_out_read(&held, in_folder("held.txt")), TS_EUSAGE, "held.txt:4: not a combination");
    write_text("held.txt", "red circle\n");
    CHECK_FAILS(ts_shapes_hold_out_read(&held, in_folder("held.txt")), TS_EUSAGE, "held.txt:1");
    write_text("held.txt", "* * *\n");
    CHECK_FAILS(ts_shapes_hold_out_read(&held, in_folder("held.txt")), TS_EUSAGE, "leave some");
    CHECK_FAILS(ts_shapes_hold_out_read(&held, in_folder("no.txt")), TS_EINPUT, "no.txt");
    write_text("held.txt", "- red circle left  # once\n\r\n* square up\nblue * *");
    CHECK_OK(ts_shapes_hold_out_read(&held, in_folder("held.txt")));
    CHECK(ts_shapes_allowed(&held) == 96 - 1 - 7 - 12);
    const ts_shapes_world shapes = {.hold_out = held, .seed = 1, .width = 64, .height = 64, .frames = 17};
    for (int64_t i = 0; i < 2000; i++) {
        const ts_shapes_factors f = ts_shapes_draw(&shapes, i);
        CHECK(!held.held[f.colour][f.shape][f.direction]);
        CHECK(f.colour != 2 && !(f.shape == 1 && f.direction == 2));
    }
}

static int run(const char *out, const char *extra) {
    char size[] = "--size=64x48", clips[] = "--clips=7", frames[] = "--frames=9", name[PATH_MAX], option[PATH_MAX];
    snprintf(name, sizeof name, "--out=%s", in_folder(out));
    snprintf(option, sizeof option, "%s", extra);
    char *arguments[] = {(char[]){"world"}, size, clips, frames, name, option, NULL};
    return ts_command_world(world, extra ? 6 : 5, arguments);
}

static uint64_t hash(const char *name) {
    uint64_t sum = 0;
    CHECK_OK(ts_file_hash(in_folder(name), &sum));
    return sum;
}

// A file is the same whichever rank of how many wrote it: here clip 4 is written once more by rank 0 alone.
static void test_same_anywhere(void) {
    const ts_shapes_factors f = ts_shapes_draw(&small, 3);
    uint8_t rgb[9 * 48 * 64 * 3];
    char caption[128];
    ts_world_shapes_render(&f, 64, 48, 9, rgb);
    const ts_video_writer_params video = {.width = 64,
                                          .height = 48,
                                          .fps_numerator = 8,
                                          .fps_denominator = 1,
                                          .title = ts_shapes_caption(&f, caption, sizeof caption)};
    CHECK_OK(ts_video_write(in_folder("alone.mp4"), rgb, 9, &video));
    CHECK(hash("alone.mp4") == hash("w/0000004.mp4"));
}

static void test_files(void) {
    CHECK_OK(run("w", "--seed=5"));
    CHECK_OK(run("again", "--seed=5"));
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        char **names;
        int64_t count;
        CHECK_OK(ts_folder_list(in_folder("w"), &names, &count));
        CHECK(count == 8 && strcmp(names[0], "0000001.mp4") == 0 && strcmp(names[7], "metadata.jsonl") == 0);
        ts_folder_list_free(names, count);
        CHECK(hash("w/0000003.mp4") == hash("again/0000003.mp4"));
        CHECK(hash("w/0000003.mp4") != hash("w/0000004.mp4"));
        CHECK(hash("w/metadata.jsonl") == hash("again/metadata.jsonl"));
        ts_video_reader *reader;
        CHECK_OK(ts_video_reader_open(&reader, in_folder("w/0000007.mp4"), NULL));
        const ts_video_info info = ts_video_reader_info(reader);
        CHECK(info.width == 64 && info.height == 48 && info.frames == 9 && info.fps == 8);
        ts_video_reader_close(&reader);
    }
    CHECK_OK(ts_barrier(world));
}

// What the pixels of the file show is what its line says.
static void test_metadata(void) {
    char *text, *rest;
    size_t bytes;
    CHECK_OK(ts_file_read(in_folder("w/metadata.jsonl"), 1 << 20, &text, &bytes));
    rest = text;
    for (int64_t i = 0; i < 7; i++) {
        const char *line = strsep(&rest, "\n"), *value;
        json_t *object;
        CHECK_OK(ts_json_parse(line, strlen(line), "metadata.jsonl", &object));
        char name[32], caption[128];
        const ts_shapes_factors f = ts_shapes_draw(&small, i);
        snprintf(name, sizeof name, "%07" PRId64 ".mp4", i + 1);
        CHECK_OK(ts_json_string(object, "file_name", "line", &value));
        CHECK(strcmp(value, name) == 0);
        CHECK_OK(ts_json_string(object, "text", "line", &value));
        CHECK(strcmp(value, ts_shapes_caption(&f, caption, sizeof caption)) == 0);
        CHECK_OK(ts_json_string(object, "direction", "line", &value));
        CHECK(strcmp(value, ts_shapes_directions[f.direction].name) == 0);
        CHECK_NEAR(json_real_value(json_object_get(object, "speed")), f.speed, 1e-5);
        CHECK_NEAR(json_real_value(json_object_get(object, "radius")), f.radius, 1e-5);
        json_decref(object);

        uint8_t rgb[64 * 48 * 3];
        double time;
        ts_video_reader *reader;
        snprintf(name, sizeof name, "w/%07" PRId64 ".mp4", i + 1);
        CHECK_OK(ts_video_reader_open(&reader, in_folder(name), NULL));
        CHECK_OK(ts_video_reader_next(reader, rgb, &time));
        const uint8_t *pixel = rgb + ((int64_t)f.y * 64 + (int64_t)f.x) * 3;
        for (int c = 0; c < 3; c++) {
            CHECK_NEAR(pixel[c], ts_shapes_colours[f.colour].rgb[c], 12);
        }
        ts_video_reader_close(&reader);
    }
    free(text);
}

static void test_refusals(void) {
    CHECK_FAILS(run("w", "--size=65x48"), TS_EUSAGE, "even");
    CHECK_FAILS(run("w", "--fps=0"), TS_EUSAGE, "fps");
    CHECK_FAILS(run("w", "--motion=zigzag"), TS_EUSAGE, "motion");
    CHECK_FAILS(run("w", "--hold-out=/no/such/file"), TS_EINPUT, "/no/such/file");
    CHECK_OK(ts_barrier(world));
    CHECK_OK(run("w", "--clips=3"));  // an earlier world is replaced, all of it
    if (ts_comm_rank(world) == 0) {
        CHECK(!ts_path_exists(in_folder("w/0000007.mp4")) && ts_path_exists(in_folder("w/0000003.mp4")));
        write_text("w/thesis.txt", "years of work");
    }
    CHECK_OK(ts_barrier(world));
    CHECK_FAILS(run("w", NULL), TS_EUSAGE, "holds thesis.txt");
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK(unlink(in_folder("w/thesis.txt")) == 0 && unlink(in_folder("w/metadata.jsonl")) == 0);
    }
    CHECK_OK(ts_barrier(world));
    CHECK_FAILS(run("w", NULL), TS_EUSAGE, "not the metadata of a shapes world");
    CHECK(ts_path_exists(in_folder("w/0000003.mp4")));
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    strcpy(folder, "/tmp/tessera-world-XXXXXX");
    if (ts_comm_rank(world) == 0) {
        CHECK(mkdtemp(folder) != NULL);
    }
    CHECK_OK(ts_broadcast(world, folder, sizeof folder, 0));
    test_factors();
    test_motions();
    test_torus();
    test_area();
    if (ts_comm_rank(world) == 0) {
        test_hold_out();
    }
    test_files();
    if (ts_comm_rank(world) == 0) {
        test_same_anywhere();
        test_metadata();
    }
    CHECK_OK(ts_barrier(world));
    test_refusals();
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
    const int result = ts_test_end();
    ts_world_close(&world, result);
    return result;
}
