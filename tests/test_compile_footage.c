// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=120
// Real footage of any size, rate and shape, whole and broken, as sources of a timeline.
#include "tests/compile_scene.h"

static const char *const FILES[] = {"cup.mp4", "tree.avi", "vtest.avi", "montage.mp4"};

static int compile_one(ts_compiled *out, const char *path, ts_size2 size, double fps, const char *from, double speed,
                       double strength) {
    ts_timeline t = scene_timeline(17);
    t.size = size;
    t.fps = fps;
    ts_timeline_track e = scene_entry("all", TS_SOURCE_VIDEO, path);
    e.from = from;
    e.speed = speed;
    e.strength = strength;
    return scene_compile(out, &t, &e, 1);
}

// Held latents are the codec's of what the reader gives, bit for bit.
static void check_held(const char *path, ts_size2 size, double fps, double from, double speed) {
    ts_compiled c;
    char text[32];
    snprintf(text, sizeof text, "%.9gs", speed < 0 ? from - speed / fps : from);
    CHECK_OK(compile_one(&c, path, size, fps, text, speed, 0));
    const int64_t bytes = 17 * size.width * size.height * 3;
    uint8_t *rgb = malloc((size_t)bytes);
    int64_t filled;
    CHECK_OK(read_frames(path, from, speed / fps, 17, size.height, size.width, rgb, &filled));
    CHECK(filled == 17);
    float *latent = malloc((size_t)ts_canvas_numbers(&c.canvas) * sizeof *latent);
    CHECK_OK(ts_codec_encode(scene_model->codec, rgb, 17, size.height, size.width, latent));
    CHECK(memcmp(latent, c.canvas.source, (size_t)ts_canvas_numbers(&c.canvas) * sizeof *latent) == 0);
    int64_t least = 255, most = 0;
    for (int64_t i = 0; i < bytes; i++) {
        least = rgb[i] < least ? rgb[i] : least;
        most = rgb[i] > most ? rgb[i] : most;
    }
    CHECK(most - least > 60);  // there is something to be seen
    free(latent);
    free(rgb);
    ts_compiled_close(&c);
}

static void test_whole(const char *path) {
    check_held(path, (ts_size2){64, 64}, 8, 0.5, 1);
    check_held(path, (ts_size2){48, 96}, 24, 0, 0.5);
    check_held(path, (ts_size2){128, 64}, 8, 2.5, -1);
    ts_compiled c;
    CHECK_FAILS(compile_one(&c, path, (ts_size2){64, 64}, 8, "1:00:00", 1, 0.5), TS_EINPUT, "has nothing");
    CHECK_FAILS(compile_one(&c, path, (ts_size2){64, 64}, 8, "end", 1, 0), TS_EINPUT, "has nothing");
    CHECK_OK(compile_one(&c, path, (ts_size2){64, 64}, 8, "end", -1, 0.5));
    ts_compiled_close(&c);
}

// The first part of the file: what can be read is a source, what cannot is told in one line.
static void test_broken(const char *path) {
    char *bytes;
    size_t size;
    CHECK_OK(ts_file_read(path, 256 << 20, &bytes, &size));
    for (int part = 1; part < 8; part += 2) {
        CHECK_OK(ts_file_write_atomic(in_scene("broken"), bytes, size * (size_t)part / 8));
        ts_compiled c;
        const int status = compile_one(&c, in_scene("broken"), (ts_size2){64, 64}, 8, NULL, 1, part % 4 == 1 ? 0 : 0.5);
        CHECK(status == TS_OK || status == TS_EINPUT);
        CHECK(status == TS_OK || (!strchr(ts_error_text(), '\n') && strstr(ts_error_text(), "edit.yaml:7: track[0]")));
        ts_compiled_close(&c);
    }
    free(bytes);
}

int main(void) {
    char path[PATH_MAX];
    const char *shared = ts_test_shared();
    scene_open();
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        snprintf(path, sizeof path, "%s/videos/%s", shared, FILES[i]);
        if (!ts_path_exists(path)) {
            ts_test_skip("needs the videos beside the golden files");
        }
        test_whole(path);
        test_broken(path);
    }
    scene_close();
    return ts_test_end();
}
