// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3 timeout=60
// Videos written a stretch at a time, by any number of ranks, are those decoded whole; so are their contact sheets.
#include "infer/edit/film.h"

#include <signal.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/rng.h"
#include "core/base/signal.h"
#include "core/media/image.h"
#include "infer/sampler/decode.h"
#include "tests/ts_test.h"

enum { T = 7, H = 3, W = 4, C = 16, PIXELS = 8 * H * 8 * W * 3 };

static ts_codec *codec;
static ts_comm *world;
static char folder[] = "/tmp/test_film_XXXXXX";
static float latents[T * H * W * C];
static float circle[3 * T * H * W * C];    // the latents three times
static uint8_t whole[3 * 4 * T * PIXELS];  // decoded at once

static bool same_bytes(const char *a, const char *b) {
    char path_a[TS_PATH_BYTES], path_b[TS_PATH_BYTES];
    uint64_t sum_a = 1, sum_b = 2;
    CHECK_OK(ts_path_join(path_a, sizeof path_a, folder, a));
    CHECK_OK(ts_path_join(path_b, sizeof path_b, folder, b));
    CHECK_OK(ts_file_hash(path_a, &sum_a));
    CHECK_OK(ts_file_hash(path_b, &sum_b));
    return sum_a == sum_b;
}

// Rank 0 decodes all at once and writes what is to be met.
static void write_wanted(const ts_film *film) {
    char path[TS_PATH_BYTES];
    const int64_t frames = ts_film_pixel_frames(codec, film);
    uint8_t *pixels = whole;
    if (film->loop) {  // the middle one of three rounds
        for (int i = 0; i < 3; i++) {
            memcpy(circle + i * T * H * W * C, latents, sizeof latents);
        }
        CHECK_OK(ts_codec_decode_groups(codec, circle, 3 * T, H, W, whole));
        pixels += 4 * T * PIXELS;
    } else {
        CHECK_OK(ts_codec_decode(codec, latents, T, H, W, whole));
    }
    CHECK_OK(ts_path_join(path, sizeof path, folder, "wanted.mp4"));
    CHECK_OK(ts_write_video(path, pixels, frames, 8 * H, 8 * W, film->fps, film->title));
    const ts_contact_row rows[] = {{pixels, frames, 8 * H, 8 * W, film->title},
                                   {pixels, frames, 8 * H, 8 * W, film->title}};
    CHECK_OK(ts_path_join(path, sizeof path, folder, "wanted.png"));
    CHECK_OK(ts_contact_sheet_write(path, rows, 2, 9));
}

static void check_film(bool loop, int64_t stretch) {
    const ts_film film = {latents, T, H, W, loop, stretch, 7.5, "a film"};
    const bool is_root = ts_comm_rank(world) == 0;
    char path[TS_PATH_BYTES];
    CHECK(ts_film_pixel_frames(codec, &film) == (loop ? 4 * T : 4 * T - 3));
    CHECK_OK(ts_path_join(path, sizeof path, folder, "got.mp4"));
    CHECK_OK(ts_film_write(codec, &film, world, 0, path));
    if (is_root) {
        write_wanted(&film);
        CHECK(same_bytes("got.mp4", "wanted.mp4"));
        CHECK_OK(ts_path_join(path, sizeof path, folder, "got.png"));
        CHECK_OK(ts_film_write_sheet(codec, (ts_film[]){film, film}, 2, path));
        CHECK(same_bytes("got.png", "wanted.png"));
    }
}

// A signal on the rank that writes, or no place to write to: the same error on all ranks, and no file.
static void check_failures(void) {
    const ts_film film = {latents, T, H, W, false, 2, 8, NULL};
    char path[TS_PATH_BYTES];
    CHECK_OK(ts_path_join(path, sizeof path, folder, "none/a.mp4"));
    CHECK_FAILS(ts_film_write(codec, &film, world, 0, path), TS_EINPUT, "a.mp4");
    CHECK_OK(ts_path_join(path, sizeof path, folder, "stopped.mp4"));
    CHECK_OK(ts_signal_catch());
    if (ts_comm_rank(world) == ts_comm_size(world) - 1) {
        raise(SIGTERM);
    }
    CHECK_FAILS(ts_film_write(codec, &film, world, 0, path), TS_ESTOPPED, "stopped by SIGTERM");
    ts_signal_release();
    char **names = NULL;
    int64_t count = -1;
    CHECK_OK(ts_barrier(world));
    CHECK_OK(ts_folder_list(folder, &names, &count));
    CHECK(count == 4);  // what was wanted and got before
    ts_folder_list_free(names, count);
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_codec_load(&codec, "configs/shapes-model/codec"));
    CHECK(ts_codec_get_info(codec).channels == C);
    if (ts_comm_rank(world) == 0) {
        CHECK(mkdtemp(folder));
    }
    CHECK_OK(ts_broadcast(world, folder, sizeof folder, 0));
    ts_rng_normal_fill(latents, T * H * W * C, 3, TS_RNG_SAMPLE, 0, 0);
    for (int64_t stretch = 0; stretch < 4; stretch++) {
        check_film(false, stretch);
        check_film(true, stretch);
    }
    check_failures();
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
    ts_codec_close(&codec);
    ts_world_close(&world, TS_OK);
    return ts_test_end();
}
