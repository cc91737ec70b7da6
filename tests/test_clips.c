// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// Buckets, and which frames a clip holds.
#include <limits.h>

#include "core/base/file.h"
#include "data/clips.h"
#include "tests/ts_test.h"

static char folder[64];

static const char *in_folder(const char *name) {
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void test_parse(void) {
    ts_bucket b;
    CHECK_OK(ts_bucket_parse("96x64x17", &b));
    CHECK(b.width == 96 && b.height == 64 && b.frames == 17);
    CHECK_OK(ts_bucket_parse("8x8x1", &b));
    static const char *const bad[] = {"",
                                      "64x64",
                                      "64x64x16",
                                      "60x64x17",
                                      "64x64x17x",
                                      "0x64x17",
                                      "-8x64x17",
                                      "64x64x-3",
                                      "64 64 17",
                                      "8200x8x1",
                                      "64x64x4101",
                                      "64x64x17 ",
                                      "999999999999999999999x8x1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_FAILS(ts_bucket_parse(bad[i], &b), TS_EUSAGE, "bucket");
    }
    CHECK_FAILS(ts_bucket_parse("8192x8192x4097", &b), TS_EUSAGE, "4 GiB");
}

static void test_choose(void) {
    static const ts_bucket b[] = {{64, 64, 17}, {64, 64, 33},   {96, 64, 17},
                                  {64, 96, 17}, {128, 128, 17}, {192, 128, 9}};
    const int n = sizeof b / sizeof *b;
    CHECK(ts_bucket_choose(b, n, 8, 100, 100, 10) == 1);  // square, not enlarged, longest
    CHECK(ts_bucket_choose(b, n, 8, 100, 100, 3) == 0);   // 33 frames need 4 s
    CHECK(ts_bucket_choose(b, n, 8, 400, 400, 10) == 4);  // the larger of the same aspect
    CHECK(ts_bucket_choose(b, n, 8, 32, 32, 10) == 1);    // all need enlarging: the smaller
    CHECK(ts_bucket_choose(b, n, 8, 150, 100, 10) == 2);  // 3:2
    CHECK(ts_bucket_choose(b, n, 8, 1920, 1280, 10) == 5);
    CHECK(ts_bucket_choose(b, n, 8, 720, 1280, 10) == 3);  // the nearest aspect
    CHECK(ts_bucket_choose(b, n, 8, 100, 100, 1.5) == 5);  // the only one that is short enough
    CHECK(ts_bucket_choose(b, n, 8, 100, 100, 1.0) == -1);
    CHECK(ts_bucket_choose(b, n, 8, 100, 100, 1.01) == 5);
    CHECK(ts_bucket_choose(b, 0, 8, 100, 100, 10) == -1);
}

// Frame t is grey of level 4 t: what a clip shows tells which frame it took.
static void write_ramp(const char *name, int64_t frames, int fps) {
    const ts_video_writer_params params = {
        .width = 64, .height = 64, .fps_numerator = fps, .fps_denominator = 1, .crf = 4};
    uint8_t *rgb = malloc((size_t)frames * 64 * 64 * 3);
    for (int64_t t = 0; t < frames; t++) {
        memset(rgb + t * 64 * 64 * 3, (int)(4 * t), 64 * 64 * 3);
    }
    CHECK_OK(ts_video_write(in_folder(name), rgb, frames, &params));
    free(rgb);
}

static int shown(const ts_clip *clip, const ts_bucket *b, int64_t t) {
    return (clip->pixels[(t * b->height * b->width + b->width * b->height / 2) * 3] + 2) / 4;
}

// Reads a file; checks clip k, sample t against frame (k stride + t) * step. Returns the number of clips.
static int64_t read_clips(const char *name, ts_bucket b, double fps, double stride, int64_t stride_samples,
                          double step) {
    const ts_clip_params params = {
        .buckets = &b, .bucket_count = 1, .fps = fps, .stride = stride, .limits = ts_video_limits_default()};
    ts_clip_reader *reader;
    CHECK_OK(ts_clip_reader_open(&reader, in_folder(name), &params));
    ts_clip clip;
    int64_t k = 0;
    int status;
    const int64_t expected = ts_clip_reader_clips(reader);
    for (; !(status = ts_clip_reader_next(reader, &clip)); k++) {
        CHECK(clip.index == k);
        CHECK_NEAR(clip.start, (double)(k * stride_samples) / fps, 1e-9);
        CHECK_NEAR(clip.end - clip.start, (double)b.frames / fps, 1e-9);
        for (int64_t t = 0; t < b.frames; t++) {
            CHECK(shown(&clip, &b, t) == (int)floor((double)(k * stride_samples + t) * step + 0.02));
        }
    }
    CHECK(status == TS_EOF);
    CHECK(k == 0 || expected == k);
    ts_clip_reader_close(&reader);
    return k;
}

static void test_samples(void) {
    write_ramp("24.mp4", 60, 24);
    const ts_bucket b = {32, 32, 5};
    CHECK(read_clips("24.mp4", b, 24, 0, 5, 1) == 12);
    CHECK(read_clips("24.mp4", b, 8, 0, 5, 3) == 4);           // every third frame
    CHECK(read_clips("24.mp4", b, 10, 0, 5, 2.4) == 5);        // the latest frame shown by then
    CHECK(read_clips("24.mp4", b, 48, 0, 5, 0.5) == 24);       // each twice
    CHECK(read_clips("24.mp4", b, 24, 2 / 24.0, 2, 1) == 28);  // overlapping
    CHECK(read_clips("24.mp4", b, 24, 8 / 24.0, 8, 1) == 7);   // with gaps
    write_ramp("17.mp4", 17, 8);
    CHECK(read_clips("17.mp4", (ts_bucket){64, 64, 17}, 8, 0, 17, 1) == 1);
    CHECK(read_clips("17.mp4", (ts_bucket){64, 64, 21}, 8, 0, 21, 1) == 0);
    CHECK(read_clips("17.mp4", (ts_bucket){64, 64, 1}, 8, 0, 1, 1) == 17);
    write_ramp("1.mp4", 1, 8);
    CHECK(read_clips("1.mp4", (ts_bucket){8, 8, 1}, 8, 0, 1, 1) == 1);
    CHECK(read_clips("1.mp4", (ts_bucket){8, 8, 5}, 8, 0, 5, 1) == 0);
}

// A file cut short, its damage allowed: the header promises more than is there, so the reader falls back on the
// shorter bucket.
static void test_cut_short(void) {
    char *bytes;
    size_t size;
    CHECK_OK(ts_file_read(in_folder("17.mp4"), 1 << 20, &bytes, &size));
    const size_t head = (size_t)((char *)memmem(bytes, size, "mdat", 4) - bytes) + 4;
    CHECK_OK(ts_file_write_atomic(in_folder("cut.mp4"), bytes, head + (size - head) * 3 / 4));
    free(bytes);
    static const ts_bucket buckets[] = {{64, 64, 17}, {64, 64, 5}};
    ts_clip_params params = {.buckets = buckets, .bucket_count = 2, .fps = 8, .limits = ts_video_limits_default()};
    ts_clip_reader *reader;
    ts_clip clip;
    params.limits.max_damaged_share = 0.9;
    CHECK_OK(ts_clip_reader_open(&reader, in_folder("cut.mp4"), &params));
    CHECK(ts_clip_reader_bucket(reader) == 0);
    CHECK_OK(ts_clip_reader_next(reader, &clip));
    CHECK(ts_clip_reader_bucket(reader) == 1);
    CHECK(shown(&clip, &buckets[1], 4) == 4);
    ts_clip_reader_close(&reader);

    params.limits.max_damaged_share = 0.1;
    CHECK_OK(ts_clip_reader_open(&reader, in_folder("cut.mp4"), &params));
    int status;
    while (!(status = ts_clip_reader_next(reader, &clip))) {
    }
    CHECK(status == TS_EINPUT && ts_clip_reader_damaged(reader) > 0);
    ts_clip_reader_close(&reader);
    CHECK_FAILS(ts_clip_reader_open(&reader, in_folder("none.mp4"), &params), TS_EINPUT, "no such file");
}

int main(void) {
    strcpy(folder, "/tmp/tessera-clips-XXXXXX");
    CHECK(mkdtemp(folder) != NULL);
    test_parse();
    test_choose();
    test_samples();
    test_cut_short();
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
