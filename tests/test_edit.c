// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,4 timeout=120
// What the verbs hold is held: latents come out as the codec encodes the source's frames, to the last bit, wherever a
// verb puts them and on any number of ranks; what is free is something else.
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/model/codec.h"
#include "core/store/safetensors.h"
#include "infer/edit/verbs.h"
#include "infer/sampler/decode.h"
#include "tests/read_frames.h"
#include "tests/ts_test.h"

enum { SIDE = 64, FRAMES = 33, H = SIDE / 8, C = 16, FRAME = H * H * C, PIXELS = SIDE * SIDE * 3, MAX_T = 20 };

static ts_comm *world;
static ts_codec *codec;
static char folder[] = "/tmp/test_edit_XXXXXX", source[TS_PATH_BYTES], other[TS_PATH_BYTES], saved[TS_PATH_BYTES];
static uint8_t pixels[2][FRAMES * PIXELS];  // of source and other, as they are read back
static float got[MAX_T * FRAME], wanted[FRAME];
static int64_t got_frames;

// A square that moves to the right, or down, over a pattern.
static void write_source(const char *path, int which, uint8_t *rgb) {
    for (int t = 0; t < FRAMES; t++) {
        for (int y = 0; y < SIDE; y++) {
            for (int x = 0; x < SIDE; x++) {
                const int at = which ? y : x, across = which ? x : y;
                const bool in = at >= t && at < t + 16 && across >= 20 && across < 36;
                uint8_t *p = rgb + ((t * SIDE + y) * SIDE + x) * 3;
                p[0] = in ? 220 : (uint8_t)(2 * x);
                p[1] = in ? 40 : (uint8_t)(2 * y);
                p[2] = which ? 160 : 60;
            }
        }
    }
    CHECK_OK(ts_write_video(path, rgb, FRAMES, SIDE, SIDE, 8, NULL));
}

// Runs a verb, a NULL-terminated list of arguments, and reads its latents on rank 0.
static void run(int (*verb)(ts_comm *, int, char **), const char *const *arguments) {
    static const char *const common[] = {
        "--model", "configs/shapes-model", "--steps", "2",    "--threads", "1", "--watch",
        "0",       "--save-latents",       saved,     "--out"};
    char out[TS_PATH_BYTES], *argv[40] = {(char *)"verb"};
    int argc = 1;
    CHECK_OK(ts_path_join(out, sizeof out, folder, "out.mp4"));
    for (; *arguments; arguments++) {
        argv[argc++] = (char *)(uintptr_t)*arguments;
    }
    for (size_t i = 0; i < sizeof common / sizeof common[0]; i++) {
        argv[argc++] = (char *)(uintptr_t)common[i];
    }
    argv[argc++] = out;
    CHECK_OK(verb(world, argc, argv));
    if (ts_comm_rank(world) > 0) {
        return;
    }
    ts_safetensors *file;
    CHECK_OK(ts_safetensors_open(&file, saved));
    const ts_safetensors_entry *entry = ts_safetensors_find(file, "latents");
    CHECK(entry && entry->shape.ndim == 4 && entry->shape.dim[0] <= MAX_T);
    got_frames = entry->shape.dim[0];
    CHECK_OK(ts_safetensors_read_f32(file, "latents", TS_SHAPE(got_frames, H, H, C), got));
    ts_safetensors_close(&file);
}

// Whether latent frame t is what the codec makes of pixel frames of `which` from `first` on.
static bool holds(int64_t t, bool lone, int which, int64_t first) {
    const uint8_t *from = pixels[which] + first * PIXELS;
    CHECK_OK(lone ? ts_codec_encode(codec, from, 1, SIDE, SIDE, wanted)
                  : ts_codec_encode_groups(codec, from, 1, SIDE, SIDE, wanted));
    return memcmp(wanted, got + t * FRAME, sizeof wanted) == 0;
}

#define RUN(verb, ...)        run(ts_command_##verb, (const char *const[]){__VA_ARGS__, NULL})
#define ROOT_CHECK(condition) CHECK(ts_comm_rank(world) > 0 || (condition))

static void check_remix(void) {
    RUN(remix, source, "--prompt", "a red circle", "--strength", "0");
    ROOT_CHECK(got_frames == 9);
    for (int64_t t = 0; t < 9; t++) {
        ROOT_CHECK(holds(t, t == 0, 0, t ? 4 * t - 3 : 0));
    }
    RUN(remix, source, "--prompt", "a red circle", "--strength", "0.7", "--box", "16,32,16,32");
    for (int64_t t = 0; t < 9 && ts_comm_rank(world) == 0; t++) {
        CHECK(!holds(t, t == 0, 0, t ? 4 * t - 3 : 0));
        for (int64_t i = 0; i < H * H; i++) {
            const bool in = i % H >= 2 && i % H < 4 && i / H >= 4;
            const bool same = memcmp(wanted + i * C, got + t * FRAME + i * C, C * sizeof *wanted) == 0;
            CHECK(same == !in);
        }
    }
}

static void check_extend(void) {
    RUN(extend, source, "--before", "8f", "--after", "8f", "--to", "17f");
    ROOT_CHECK(got_frames == 9);  // 9 frames in front, 16 held, 8 behind
    for (int64_t t = 0; t < 9; t++) {
        ROOT_CHECK(holds(t, t == 0, 0, t < 3 ? 0 : 4 * (t - 3)) == (t >= 3 && t < 7));
    }
}

static void check_loop(void) {
    RUN(loop, source, "--seam", "1s");
    ROOT_CHECK(got_frames == 10);
    for (int64_t t = 0; t < 10; t++) {
        ROOT_CHECK(holds(t, false, 0, t < 8 ? 4 * t : 0) == (t < 8));
    }
}

static void check_loop_ends(void) {
    RUN(loop, source, "--seam", "1s", "--ends", "0.3");
    for (int64_t t = 0; t < 10; t++) {
        ROOT_CHECK(holds(t, false, 0, t < 8 ? 4 * t : 0) == (t > 0 && t < 7));
    }
    RUN(loop, source, "--seam", "1s", "--ends", "0.3", "--to", "4f");
    ROOT_CHECK(got_frames == 3 && !holds(0, false, 0, 0));
}

static void check_recut(void) {
    // The end first, then two frames a step, then a stretch that is slowed down, behind a gap.
    RUN(recut, source, "--keep", "16f-33f", "--keep", "0f-16f@2x", "--fill-gaps", "4f", "--keep", "0s-1s@0.5x");
    ROOT_CHECK(got_frames == 1 + 4 + 1 + 2 + 1 + 4);
    for (int64_t t = 0; t < 5; t++) {
        ROOT_CHECK(holds(t, t == 0, 0, t ? 16 + 4 * t - 3 : 16));
    }
    static uint8_t fast[8 * PIXELS];
    for (int64_t i = 0; i < 8; i++) {
        memcpy(fast + i * PIXELS, pixels[0] + 2 * i * PIXELS, PIXELS);
    }
    CHECK_OK(ts_codec_encode_groups(codec, fast, 1, SIDE, SIDE, wanted));
    ROOT_CHECK(memcmp(wanted, got + 6 * FRAME, sizeof wanted) == 0);
    ROOT_CHECK(!holds(5, false, 0, 0) && !holds(9, false, 0, 0));
}

static void check_blend(void) {
    RUN(blend, source, other);
    ROOT_CHECK(got_frames == 9 && holds(0, true, 0, 0) && holds(8, false, 1, 29));
    for (int64_t t = 1; t < 8; t++) {
        ROOT_CHECK(!holds(t, false, 0, 4 * t - 3) && !holds(t, false, 1, 4 * t - 3));
    }
}

// Guidance away from what the video should not show counts without a prompt, too.
static void check_guidance(void) {
    static float weak[MAX_T * FRAME];
    RUN(extend, source, "--to", "5f", "--after", "4f", "--negative", "a red circle", "--guidance", "1");
    memcpy(weak, got, sizeof weak);
    RUN(extend, source, "--to", "5f", "--after", "4f", "--negative", "a red circle", "--guidance", "6");
    ROOT_CHECK(got_frames == 3 && memcmp(weak, got, 2 * FRAME * sizeof *got) == 0);
    ROOT_CHECK(memcmp(weak + 2 * FRAME, got + 2 * FRAME, sizeof wanted) != 0);
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_codec_load(&codec, "configs/shapes-model/codec"));
    if (ts_comm_rank(world) == 0) {
        CHECK(mkdtemp(folder));
    }
    CHECK_OK(ts_broadcast(world, folder, sizeof folder, 0));
    CHECK_OK(ts_path_join(source, sizeof source, folder, "source.mp4"));
    CHECK_OK(ts_path_join(other, sizeof other, folder, "other.mp4"));
    CHECK_OK(ts_path_join(saved, sizeof saved, folder, "saved.safetensors"));
    if (ts_comm_rank(world) == 0) {
        int64_t filled;
        write_source(source, 0, pixels[0]);
        write_source(other, 1, pixels[1]);
        CHECK_OK(read_frames(source, 0, 1.0 / 8, FRAMES, SIDE, SIDE, pixels[0], &filled));
        CHECK_OK(read_frames(other, 0, 1.0 / 8, FRAMES, SIDE, SIDE, pixels[1], &filled));
    }
    check_remix();
    check_extend();
    check_loop();
    check_loop_ends();
    check_recut();
    check_blend();
    check_guidance();
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
    ts_codec_close(&codec);
    ts_world_close(&world, TS_OK);
    return ts_test_end();
}
