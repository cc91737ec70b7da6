// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// Pixels of files at the times of a timeline: rates, retiming, playing backwards, ends, pictures, damaged files.
#include <limits.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/memory.h"
#include "core/base/rng.h"
#include "core/media/image.h"
#include "core/media/resize.h"
#include "core/media/video.h"
#include "tests/read_frames.h"
#include "tests/ts_test.h"

enum { SIDE = 32, FRAME = SIDE * SIDE * 3, COUNT = 12 };

#if defined(__SANITIZE_ADDRESS__)
static const int64_t MOST_MEMORY = 400 << 20;  // freed blocks are kept for a while
#else
static const int64_t MOST_MEMORY = 4 << 20;
#endif

static char folder[64];

static const char *in_folder(const char *name) {
    static char path[4][PATH_MAX];
    static int next;
    char *out = path[next = (next + 1) % 4];
    snprintf(out, PATH_MAX, "%s/%s", folder, name);
    return out;
}

// Frame t is a plain grey of 20 t: what a codec keeps nearly as it is, so that a frame tells its number.
static void write_steps(const char *name, int64_t frames, int fps_numerator, int fps_denominator) {
    uint8_t *rgb = malloc((size_t)(frames * FRAME));
    for (int64_t t = 0; t < frames; t++) {
        memset(rgb + t * FRAME, (int)(10 + 20 * (t % COUNT)), FRAME);
    }
    const ts_video_writer_params params = {
        .width = SIDE, .height = SIDE, .fps_numerator = fps_numerator, .fps_denominator = fps_denominator, .crf = 1};
    CHECK_OK(ts_video_write(in_folder(name), rgb, frames, &params));
    free(rgb);
}

// Reads `frames` frames and tells each by its grey, in frames.
static int64_t numbers(const char *name, double first, double step, int64_t frames, double *number) {
    uint8_t *rgb = malloc((size_t)(frames * FRAME));
    int64_t filled = -1;
    CHECK_OK(read_frames(in_folder(name), first, step, frames, SIDE, SIDE, rgb, &filled));
    for (int64_t i = 0; i < filled; i++) {
        number[i] = (rgb[i * FRAME + FRAME / 2] - 10) / 20.0;
    }
    free(rgb);
    return filled;
}

static void check_numbers(const char *name, double first, double step, int64_t frames, int64_t filled,
                          const double *wanted) {
    double number[64];
    const int64_t had = numbers(name, first, step, frames, number);
    CHECK(had == filled);
    for (int64_t i = 0; i < had && i < filled; i++) {
        CHECK_NEAR(number[i], wanted[i], 0.11);
    }
}

// At the file's own rate frames are the reader's, bit for bit.
static void test_same_rate(void) {
    static uint8_t rgb[COUNT * FRAME], frame[FRAME];
    int64_t filled;
    CHECK_OK(read_frames(in_folder("steps.mp4"), 0, 0.125, COUNT, SIDE, SIDE, rgb, &filled));
    CHECK(filled == COUNT);
    ts_video_reader *reader;
    double time;
    CHECK_OK(ts_video_reader_open(&reader, in_folder("steps.mp4"), NULL));
    for (int64_t t = 0; t < COUNT; t++) {
        CHECK_OK(ts_video_reader_next(reader, frame, &time));
        CHECK(memcmp(frame, rgb + t * FRAME, FRAME) == 0);
    }
    ts_video_reader_close(&reader);
}

static void test_times(void) {
    check_numbers("steps.mp4", 0.25, 0.125, 4, 4, (double[]){2, 3, 4, 5});            // from the third frame on
    check_numbers("steps.mp4", 0, 0.25, 6, 6, (double[]){0, 2, 4, 6, 8, 10});         // twice as fast
    check_numbers("steps.mp4", 0, 0.0625, 6, 6, (double[]){0, 0.5, 1, 1.5, 2, 2.5});  // half: means between frames
    check_numbers("steps.mp4", 0, 0.03125, 5, 5, (double[]){0, 0.25, 0.5, 0.75, 1});  // a quarter
    check_numbers("steps.mp4", 0, 0.1875, 5, 5, (double[]){0, 2, 3, 5, 6});           // 1.5: the nearest
    check_numbers("steps.mp4", 0.625, -0.125, 6, 6, (double[]){5, 4, 3, 2, 1, 0});    // backwards
    check_numbers("steps.mp4", 0.25, -0.0625, 5, 5, (double[]){2, 1.5, 1, 0.5, 0});   // slowly
    check_numbers("steps.mp4", 0.128, 0.125, 3, 3, (double[]){1, 2, 3});              // near enough: no mean
    check_numbers("steps.mp4", 0.5, 0, 3, 3, (double[]){4, 4, 4});                    // a still
    check_numbers("fast.mp4", 0, 0.125, 4, 4, (double[]){0, 4, 8, 11});               // 30 frames a second
    check_numbers("odd.mp4", 0, 1001 / 24000.0, 4, 4, (double[]){0, 1, 2, 3});        // 23.976
    check_numbers("one.mp4", 0, 0.125, 3, 1, (double[]){0});
    check_numbers("one.mp4", 0, 0.03125, 5, 4, (double[]){0, 0, 0, 0});  // shown for an eighth of a second
}

static void test_ends(void) {
    check_numbers("steps.mp4", 1.25, 0.125, 6, 2, (double[]){10, 11});
    check_numbers("steps.mp4", 1.375, 0.0625, 6, 2, (double[]){11, 11});  // the last frame lasts as long as others
    check_numbers("steps.mp4", 1.5, 0.125, 3, 0, NULL);
    check_numbers("steps.mp4", 1e9, 0.125, 3, 0, NULL);
    check_numbers("steps.mp4", -0.125, 0.125, 3, 0, NULL);
    check_numbers("steps.mp4", 0.25, -0.125, 6, 3, (double[]){2, 1, 0});
    check_numbers("steps.mp4", 1.75, -0.125, 4, 0, NULL);  // it begins later than the file ends
    check_numbers("steps.mp4", -1, -0.125, 4, 0, NULL);
}

// Long files cost time, not memory.
static void test_memory(void) {
    ts_source *source;
    static uint8_t frame[FRAME];
    CHECK_OK(ts_source_open(&source, in_folder("long.mp4"), 0, 0.125, SIDE, SIDE, 3));
    CHECK_OK(ts_source_next(source, frame));
    const int64_t before = ts_memory_resident();
    int64_t count = 1;
    int status;
    while (!(status = ts_source_next(source, frame))) {
        count++;
    }
    CHECK(status == TS_EOF && count == 3000);
    CHECK(ts_source_next(source, frame) == TS_EOF);
    CHECK(ts_memory_resident() - before < MOST_MEMORY);  // 9 MB of frames went through
    ts_source_close(&source);
    CHECK(source == NULL);
}

static void test_describe(void) {
    ts_source_info info;
    CHECK_OK(ts_source_describe(&info, in_folder("steps.mp4")));
    CHECK(!info.picture && info.width == SIDE && info.height == SIDE && info.frames == COUNT);
    CHECK_NEAR(info.fps, 8, 1e-9);
    CHECK_NEAR(info.duration, 1.5, 1e-6);
    CHECK_OK(ts_source_describe(&info, in_folder("wide.png")));
    CHECK(info.picture && info.width == 96 && info.height == 32 && info.frames == 1 && info.fps == 0);
    CHECK_FAILS(ts_source_describe(&info, in_folder("none.mp4")), TS_EINPUT, "none.mp4: no such file");
    CHECK_FAILS(ts_source_describe(&info, folder), TS_EINPUT, "is a folder");
}

// ---- pictures

// Red, green and blue thirds: a square from the centre is green.
static void write_pictures(void) {
    uint8_t *rgb = calloc(96 * 32, 3);
    for (int64_t i = 0; i < 96 * 32; i++) {
        rgb[i * 3 + i % 96 / 32] = 255;
    }
    CHECK_OK(ts_image_write_png(in_folder("wide.png"), rgb, 32, 96));
    free(rgb);
    CHECK_OK(ts_file_write_atomic(in_folder("half.png"), "\x89PNG\r\n\x1a\nno more", 15));
}

static void test_picture(void) {
    static uint8_t rgb[3 * FRAME];
    int64_t filled;
    CHECK_OK(read_frames(in_folder("wide.png"), 3, 0.125, 3, SIDE, SIDE, rgb, &filled));
    CHECK(filled == 3);
    for (int64_t i = 0; i < 3 * FRAME; i++) {
        CHECK(rgb[i] == (i % 3 == 1 ? 255 : 0));
    }
    CHECK_FAILS(read_frames(in_folder("half.png"), 0, 0.1, 1, SIDE, SIDE, rgb, &filled), TS_EINPUT, "half.png: ");
    ts_source *source;
    CHECK_OK(ts_source_open(&source, in_folder("wide.png"), 0, 0.125, SIDE, SIDE, 1));
    CHECK_OK(ts_source_next(source, rgb));
    CHECK(rgb[0] == 182 && rgb[SIDE * SIDE - 1] == 182);  // of green, 183 / 256
    ts_source_close(&source);
}

static void test_grey_video(void) {
    ts_source *source;
    static uint8_t grey[SIDE * SIDE];
    CHECK_OK(ts_source_open(&source, in_folder("steps.mp4"), 0.25, 0.0625, SIDE, SIDE, 1));
    for (int i = 0; i < 4; i++) {
        CHECK_OK(ts_source_next(source, grey));
        CHECK_NEAR(grey[99], 50 + 10 * i, 3);
    }
    ts_source_close(&source);
}

// ---- resizing

// The formula by itself, in one dimension and f64, over all pixels.
static double resized(const uint8_t *from, int64_t length, int64_t to_length, double scale, int64_t i) {
    const double reach = scale < 1 ? 1 / scale : 1;
    const double middle = (double)length / 2 + ((double)i + 0.5 - (double)to_length / 2) / scale;
    double sum = 0, total = 0;
    for (int64_t k = 0; k < length; k++) {
        const double w = fmax(0, 1 - fabs((double)k + 0.5 - middle) / reach);
        sum += w * from[k];
        total += w;
    }
    return sum / total;
}

static void test_resize(void) {
    static const int64_t sizes[][4] = {{1, 40, 1, 7},  {1, 7, 1, 40}, {1, 1, 5, 3},  {3, 50, 1, 16},
                                       {9, 9, 32, 32}, {2, 64, 8, 8}, {64, 2, 8, 8}, {40, 40, 40, 39}};
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
        const int64_t h = sizes[n][0], w = sizes[n][1], to_h = sizes[n][2], to_w = sizes[n][3];
        uint8_t *row = malloc((size_t)w), *from = malloc((size_t)(h * w)), *to = malloc((size_t)(to_h * to_w));
        for (int64_t x = 0; x < w; x++) {
            row[x] = (uint8_t)ts_rng_below(3, TS_RNG_TEST, n, (uint32_t)x, 256);
        }
        for (int64_t i = 0; i < h * w; i++) {
            from[i] = row[i % w];
        }
        CHECK_OK(ts_resize_cover(from, h, w, 1, to, to_h, to_w));
        const double scale = fmax((double)to_w / (double)w, (double)to_h / (double)h);
        for (int64_t i = 0; i < to_h * to_w; i++) {
            CHECK_NEAR(to[i], resized(row, w, to_w, scale, i % to_w), 0.51);
        }
        free(row);
        free(from);
        free(to);
    }
}

// ---- damaged files

static void test_mutants(void) {
    char *bytes;
    size_t size;
    CHECK_OK(ts_file_read(in_folder("steps.mp4"), 1 << 24, &bytes, &size));
    static uint8_t rgb[COUNT * FRAME];
    int refused = 0;
    for (uint64_t i = 0; i < 60; i++) {
        char *mutant = malloc(size);
        memcpy(mutant, bytes, size);
        const size_t cut = i % 3 ? size : 1 + ts_rng_below(9, TS_RNG_TEST, i, 0, size - 1);
        for (uint32_t j = 1; j < 8; j++) {
            mutant[ts_rng_below(9, TS_RNG_TEST, i, 2 * j, cut)] = (char)ts_rng_below(9, TS_RNG_TEST, i, 2 * j + 1, 256);
        }
        CHECK_OK(ts_file_write_atomic(in_folder("mutant.mp4"), mutant, cut));
        int64_t filled;
        const double step = i % 2 ? -0.1 : 0.1;
        const int status = read_frames(in_folder("mutant.mp4"), 0.9, step, COUNT, SIDE, SIDE, rgb, &filled);
        CHECK(status == TS_OK || status == TS_EINPUT);
        CHECK(status == TS_OK || !strchr(ts_error_text(), '\n'));
        refused += status == TS_EINPUT;
        free(mutant);
    }
    CHECK(refused > 5);
    free(bytes);
}

int main(void) {
    snprintf(folder, sizeof folder, "/tmp/tessera-source-XXXXXX");
    CHECK(mkdtemp(folder) != NULL);
    write_steps("steps.mp4", COUNT, 8, 1);
    write_steps("fast.mp4", COUNT, 30, 1);
    write_steps("odd.mp4", COUNT, 24000, 1001);
    write_steps("one.mp4", 1, 8, 1);
    write_steps("long.mp4", 3000, 8, 1);
    write_pictures();
    test_same_rate();
    test_times();
    test_ends();
    test_memory();
    test_describe();
    test_picture();
    test_grey_video();
    test_resize();
    test_mutants();
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
