// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=120
// Video files written and read back, hostile files refused, images and contact sheets.
#include <fcntl.h>
#include <limits.h>
#include <png.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/rng.h"
#include "core/media/image.h"
#include "core/media/video.h"
#include "tests/ts_test.h"

static char folder[64];

static const char *in_folder(const char *name) {
    static char path[4][PATH_MAX];
    static int next;
    char *out = path[next = (next + 1) % 4];
    snprintf(out, PATH_MAX, "%s/%s", folder, name);
    return out;
}

// A smooth moving picture: what H.264 is made for, so that the bound on its error can be tight.
static uint8_t *make_frames(int64_t frames, int64_t height, int64_t width) {
    uint8_t *rgb = malloc((size_t)(frames * height * width * 3));
    for (int64_t t = 0, i = 0; t < frames; t++) {
        for (int64_t y = 0; y < height; y++) {
            for (int64_t x = 0; x < width; x++) {
                rgb[i++] = (uint8_t)(128 + 100 * sin(0.05 * (double)(x + 2 * t)));
                rgb[i++] = (uint8_t)(128 + 100 * sin(0.05 * (double)(y + t)));
                rgb[i++] = (uint8_t)(128 + 100 * cos(0.04 * (double)(x + y)));
            }
        }
    }
    return rgb;
}

static double psnr(const uint8_t *a, const uint8_t *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (a[i] - b[i]) * (a[i] - b[i]);
    }
    return 10 * log10(255.0 * 255.0 * (double)n / (sum + 1e-9));
}

static const ts_video_writer_params small = {
    .width = 96, .height = 64, .fps_numerator = 24000, .fps_denominator = 1001};
enum { FRAMES = 30, FRAME_BYTES = 96 * 64 * 3 };

static void test_round_trip(void) {
    const char *path = in_folder("a.mp4");
    uint8_t *rgb = make_frames(FRAMES, small.height, small.width), *back = malloc(FRAME_BYTES);
    CHECK_OK(ts_video_write(path, rgb, FRAMES, &small));
    CHECK(!ts_path_exists(in_folder("a.mp4.tmp")));
    ts_video_reader *reader;
    CHECK_OK(ts_video_reader_open(&reader, path, NULL));
    const ts_video_info info = ts_video_reader_info(reader);
    CHECK(info.width == 96 && info.height == 64 && info.frames == FRAMES);
    CHECK(info.fps == 24000.0 / 1001.0);
    CHECK_NEAR(info.duration, FRAMES * 1001.0 / 24000.0, 1e-9);
    CHECK(strcmp(info.codec, "h264") == 0);
    double worst = 99;
    int64_t t = 0;
    int status;
    for (double time; !(status = ts_video_reader_next(reader, back, &time)); t++) {
        CHECK_NEAR(time, (double)t * 1001.0 / 24000.0, 1e-6);
        const double quality = t < FRAMES ? psnr(rgb + t * FRAME_BYTES, back, FRAME_BYTES) : 0;
        worst = quality < worst ? quality : worst;
    }
    CHECK(status == TS_EOF);
    CHECK(t == FRAMES);
    CHECK(worst > 38);
    CHECK(ts_video_reader_damaged(reader) == 0);
    ts_video_reader_close(&reader);

    // Equal frames make equal files.
    CHECK_OK(ts_video_write(in_folder("b.mp4"), rgb, FRAMES, &small));
    uint64_t a = 0, b = 1;
    CHECK_OK(ts_file_hash(path, &a));
    CHECK_OK(ts_file_hash(in_folder("b.mp4"), &b));
    CHECK(a == b);
    free(rgb);
    free(back);
}

// faststart: the index lies before the frames.
static void test_faststart(void) {
    char *bytes;
    size_t size;
    CHECK_OK(ts_file_read(in_folder("a.mp4"), 1 << 24, &bytes, &size));
    const char *moov = memmem(bytes, size, "moov", 4), *mdat = memmem(bytes, size, "mdat", 4);
    CHECK(moov && mdat && moov < mdat);
    free(bytes);
}

// The left third of a wide picture must not be seen in a square cut from its centre.
static void test_cover_and_crop(void) {
    const ts_video_writer_params wide = {
        .width = 192, .height = 64, .fps_numerator = 8, .fps_denominator = 1, .crf = 8};
    uint8_t *rgb = malloc(192 * 64 * 3);
    for (int64_t i = 0; i < 192 * 64; i++) {
        const int64_t x = i % 192;
        rgb[i * 3 + 0] = x < 64 ? 255 : 0;
        rgb[i * 3 + 1] = x >= 64 && x < 128 ? 255 : 0;
        rgb[i * 3 + 2] = x >= 128 ? 255 : 0;
    }
    CHECK_OK(ts_video_write(in_folder("wide.mp4"), rgb, 1, &wide));
    ts_video_reader *reader;
    uint8_t out[32 * 32 * 3];
    double time;
    CHECK_OK(ts_video_reader_open(&reader, in_folder("wide.mp4"), NULL));
    CHECK_OK(ts_video_reader_set_output(reader, 32, 32));
    CHECK_OK(ts_video_reader_next(reader, out, &time));
    for (int64_t i = 0; i < 32 * 32; i++) {
        if (i % 32 > 1 && i % 32 < 30) {
            CHECK(out[i * 3] < 40 && out[i * 3 + 1] > 215 && out[i * 3 + 2] < 40);
        }
    }
    ts_video_reader_close(&reader);
    free(rgb);
}

// Overwrites the 3x3 matrix of every track header with a quarter turn clockwise, as telephones do.
static void turn_file(const char *from, const char *to) {
    static const uint32_t turned[9] = {0, 1 << 16, 0, 0xffff0000u, 0, 0, 0, 0, 1u << 30};
    char *bytes;
    size_t size;
    CHECK_OK(ts_file_read(from, 1 << 24, &bytes, &size));
    for (char *p = bytes; (p = memmem(p, size - (size_t)(p - bytes), "tkhd", 4)); p += 4) {
        for (int i = 0; i < 9; i++) {
            const uint32_t big = __builtin_bswap32(turned[i]);
            memcpy(p + 4 + 40 + i * 4, &big, 4);
        }
    }
    CHECK_OK(ts_file_write_atomic(to, bytes, size));
    free(bytes);
}

static void test_rotation(void) {
    turn_file(in_folder("wide.mp4"), in_folder("turned.mp4"));
    ts_video_reader *reader;
    double time;
    CHECK_OK(ts_video_reader_open(&reader, in_folder("turned.mp4"), NULL));
    const ts_video_info info = ts_video_reader_info(reader);
    CHECK(info.width == 64 && info.height == 192);
    uint8_t *rgb = malloc(192 * 64 * 3);
    CHECK_OK(ts_video_reader_next(reader, rgb, &time));
    const uint8_t *top = rgb + (10 * 64 + 32) * 3, *middle = rgb + (96 * 64 + 32) * 3,
                  *bottom = rgb + (180 * 64 + 32) * 3;
    CHECK(top[0] > 215 && middle[1] > 215 && bottom[2] > 215);  // red was on the left, now on top
    ts_video_reader_close(&reader);
    free(rgb);
}

static void write_text(const char *name, const char *text, size_t bytes) {
    CHECK_OK(ts_file_write_atomic(in_folder(name), text, bytes));
}

static int read_all(const char *path, const ts_video_limits *limits) {
    ts_video_reader *reader;
    TS_TRY(ts_video_reader_open(&reader, path, limits));
    const ts_video_info info = ts_video_reader_info(reader);
    uint8_t *rgb = malloc((size_t)(info.width * info.height * 3));
    double time;
    int status;
    while (!(status = ts_video_reader_next(reader, rgb, &time))) {
    }
    free(rgb);
    ts_video_reader_close(&reader);
    return status == TS_EOF ? TS_OK : status;
}

// 8-bit mono PCM: a file of sound alone.
static void write_sound(const char *name) {
    static const unsigned char head[44] =
        "RIFF\x24\x10\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x8\0data\0\x10\0";
    char bytes[44 + 4096];
    memset(bytes, 128, sizeof bytes);
    memcpy(bytes, head, sizeof head);
    write_text(name, bytes, sizeof bytes);
}

static void test_hostile(void) {
    write_text("empty.mp4", "", 0);
    CHECK_FAILS(read_all(in_folder("empty.mp4"), NULL), TS_EINPUT, "empty.mp4: the file is empty");
    CHECK_FAILS(read_all(in_folder("none.mp4"), NULL), TS_EINPUT, "no such file");
    CHECK_FAILS(read_all(folder, NULL), TS_EINPUT, "is a folder");
    CHECK(mkfifo(in_folder("pipe.mp4"), 0600) == 0);
    CHECK_FAILS(read_all(in_folder("pipe.mp4"), NULL), TS_EINPUT, "not a regular file");
    const char hls[] =
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/passwd\n#EXT-X-ENDLIST\n";
    write_text("hls.mp4", hls, sizeof hls - 1);
    CHECK_FAILS(read_all(in_folder("hls.mp4"), NULL), TS_EINPUT, "hls.mp4: ");
    char concat[PATH_MAX];
    const int n = snprintf(concat, sizeof concat, "ffconcat version 1.0\nfile '%s'\n", in_folder("a.mp4"));
    write_text("concat.mp4", concat, (size_t)n);
    CHECK_FAILS(read_all(in_folder("concat.mp4"), NULL), TS_EINPUT, "not one of the accepted containers");
    write_sound("sound.wav");
    CHECK_FAILS(read_all(in_folder("sound.wav"), NULL), TS_EINPUT, "not one of the accepted containers");
    write_text("text.mp4", "not a video at all\n", 19);
    CHECK_FAILS(read_all(in_folder("text.mp4"), NULL), TS_EINPUT, "text.mp4: ");
    CHECK_FAILS(read_all("http://localhost/a.mp4", NULL), TS_EINPUT, "no such file");
    CHECK_FAILS(read_all("concat:a.mp4|b.mp4", NULL), TS_EINPUT, "no such file");
}

static void test_truncated(void) {
    char *bytes;
    size_t size;
    CHECK_OK(ts_file_read(in_folder("a.mp4"), 1 << 24, &bytes, &size));
    const char *mdat = memmem(bytes, size, "mdat", 4);
    const size_t head = (size_t)(mdat - bytes) + 4;
    write_text("half.mp4", bytes, head + (size - head) / 2);
    CHECK_FAILS(read_all(in_folder("half.mp4"), NULL), TS_EINPUT, "damaged or missing");
    const ts_video_limits lenient = {.max_pixels = 1 << 20, .max_frames = 1000, .max_damaged_share = 0.9};
    CHECK_OK(read_all(in_folder("half.mp4"), &lenient));
    for (size_t cut = 1; cut < head; cut += head / 23) {  // in mid-header: any error will do, but an error
        write_text("cut.mp4", bytes, cut);
        CHECK(read_all(in_folder("cut.mp4"), NULL) == TS_EINPUT);
    }
    // Damage that the decoder can conceal costs frames, not the file.
    memset(bytes + head + (size - head) * 3 / 4, 0x55, 200);
    write_text("damaged.mp4", bytes, size);
    CHECK_FAILS(read_all(in_folder("damaged.mp4"), &(ts_video_limits){1 << 20, 1000, 0.0}), TS_EINPUT, "damaged");
    CHECK_OK(read_all(in_folder("damaged.mp4"), &lenient));
    free(bytes);
}

// Bytes changed at random, half of them in the header: frames or one line of text, nothing else.
static void test_mutants(void) {
    char *bytes;
    size_t size;
    CHECK_OK(ts_file_read(in_folder("a.mp4"), 1 << 24, &bytes, &size));
    char *mutant = malloc(size);
    int refused = 0;
    for (uint64_t i = 0; i < 200; i++) {
        memcpy(mutant, bytes, size);
        const uint64_t zone = i % 2 ? size : 1500, changes = 1 + ts_rng_below(5, TS_RNG_TEST, i, 0, 12);
        for (uint32_t j = 1; j <= changes; j++) {
            mutant[ts_rng_below(5, TS_RNG_TEST, i, 2 * j, zone)] =
                (char)ts_rng_below(5, TS_RNG_TEST, i, 2 * j + 1, 256);
        }
        write_text("mutant.mp4", mutant, size);
        const int status = read_all(in_folder("mutant.mp4"), &(ts_video_limits){1 << 20, 1000, 0.5});
        CHECK(status == TS_OK || status == TS_EINPUT);
        CHECK(status == TS_OK || !strchr(ts_error_text(), '\n'));
        refused += status == TS_EINPUT;
    }
    CHECK(refused > 10 && refused < 190);
    free(mutant);
    free(bytes);
}

static void test_limits(void) {
    CHECK_FAILS(read_all(in_folder("a.mp4"), &(ts_video_limits){96 * 64 - 1, 1000, 0.1}), TS_EINPUT, "max_pixels");
    CHECK_FAILS(read_all(in_folder("a.mp4"), &(ts_video_limits){96 * 64, FRAMES - 1, 0.1}), TS_EINPUT, "30 frames");
    CHECK_OK(read_all(in_folder("a.mp4"), &(ts_video_limits){96 * 64, FRAMES, 0.1}));
    // A header that claims 65500 x 65500 pixels.
    char *bytes;
    size_t size;
    CHECK_OK(ts_file_read(in_folder("a.mp4"), 1 << 24, &bytes, &size));
    char *avc1 = memmem(bytes, size, "avc1", 4);  // the brand, then the sample entry
    avc1 = memmem(avc1 + 4, size - (size_t)(avc1 + 4 - bytes), "avc1", 4);
    CHECK(avc1 != NULL);
    memcpy(avc1 + 4 + 24, "\xff\xdc\xff\xdc", 4);
    write_text("huge.mp4", bytes, size);
    CHECK_FAILS(read_all(in_folder("huge.mp4"), NULL), TS_EINPUT, "65500x65500 are above the limit");
    free(bytes);
}

static void test_writer_errors(void) {
    ts_video_writer *writer;
    ts_video_writer_params odd = small;
    odd.width = 95;
    CHECK_FAILS(ts_video_writer_open(&writer, in_folder("odd.mp4"), &odd), TS_EUSAGE, "even");
    CHECK_FAILS(ts_video_writer_open(&writer, in_folder("no/such.mp4"), &small), TS_EINPUT, "cannot be created");
    CHECK_OK(ts_video_writer_open(&writer, in_folder("none-added.mp4"), &small));
    CHECK_FAILS(ts_video_writer_commit(&writer), TS_EUSAGE, "at least one frame");
    CHECK(writer == NULL);
    CHECK_OK(ts_video_writer_open(&writer, in_folder("left.mp4"), &small));
    ts_video_writer_abandon(&writer);
    CHECK(!ts_path_exists(in_folder("left.mp4")) && !ts_path_exists(in_folder("left.mp4.tmp")));
}

// A limit on file size stands for the full disk: writes fail in the same way.
static void test_full_disk(void) {
    uint8_t *rgb = malloc(FRAMES * FRAME_BYTES);
    for (int64_t i = 0; i < FRAMES * FRAME_BYTES; i++) {
        rgb[i] = (uint8_t)(ts_philox_draw(1, TS_RNG_TEST, (uint64_t)i, 0).word[0]);  // noise: large files
    }
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before;
    getrlimit(RLIMIT_FSIZE, &before);
    const struct rlimit tight = {.rlim_cur = 40000, .rlim_max = before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &tight);
    const int status = ts_video_write(in_folder("full.mp4"), rgb, FRAMES, &small);
    setrlimit(RLIMIT_FSIZE, &before);
    CHECK(status == TS_ERESOURCE);
    CHECK(!ts_path_exists(in_folder("full.mp4")) && !ts_path_exists(in_folder("full.mp4.tmp")));
    free(rgb);
}

static void test_png(void) {
    uint8_t *rgb = make_frames(1, 33, 47);
    CHECK_OK(ts_image_write_png(in_folder("a.png"), rgb, 33, 47));
    png_image image = {.version = PNG_IMAGE_VERSION};
    CHECK(png_image_begin_read_from_file(&image, in_folder("a.png")));
    image.format = PNG_FORMAT_RGB;
    CHECK(image.width == 47 && image.height == 33);
    uint8_t back[33 * 47 * 3];
    CHECK(png_image_finish_read(&image, NULL, back, 0, NULL));
    CHECK(memcmp(rgb, back, sizeof back) == 0);
    uint8_t *png;
    size_t bytes;
    CHECK_FAILS(ts_image_encode_png(rgb, 0, 47, &png, &bytes), TS_EUSAGE, "0 pixels");
    free(rgb);
}

static void test_contact_sheet(void) {
    uint8_t *rgb = make_frames(9, 20, 40), *sheet;
    const ts_contact_row rows[2] = {{rgb, 9, 20, 40, "The quick brown fox: 0123456789 (\xc3\xa9)"},
                                    {rgb, 9, 20, 40, NULL}};
    int64_t height, width;
    CHECK_OK(ts_contact_sheet_render(rows, 2, 3, &sheet, &height, &width));
    CHECK(width == 2 + 3 * 42);
    CHECK(height == 2 + 2 * 22 + 2 * 9 + 2);                                              // two lines of label
    CHECK(memcmp(sheet + (2 * width + 2) * 3, rgb, 40 * 3) == 0);                         // first frame
    CHECK(memcmp(sheet + (2 * width + 2 + 42) * 3, rgb + 4 * 20 * 40 * 3, 40 * 3) == 0);  // middle
    CHECK(memcmp(sheet + (2 * width + 2 + 84) * 3, rgb + 8 * 20 * 40 * 3, 40 * 3) == 0);  // last
    int64_t ink = 0;
    for (int64_t i = 24 * width; i < 42 * width; i++) {
        ink += sheet[i * 3] == 230;
    }
    CHECK(ink > 200);
    free(sheet);
    // Narrower than a letter: no label, and no write outside.
    const ts_contact_row narrow = {rgb, 1, 1, 1, "label"};
    CHECK_OK(ts_contact_sheet_render(&narrow, 1, 1, &sheet, &height, &width));
    CHECK(width == 5 && height == 5);
    free(sheet);
    CHECK_FAILS(ts_contact_sheet_write(in_folder("s.png"), rows, 0, 3), TS_EUSAGE, "1 row");
    CHECK_OK(ts_contact_sheet_write(in_folder("s.png"), rows, 2, 3));
    free(rgb);
}

int main(void) {
    strcpy(folder, "/tmp/tessera-media-XXXXXX");
    CHECK(mkdtemp(folder) != NULL);
    test_round_trip();
    test_faststart();
    test_cover_and_crop();
    test_rotation();
    test_hostile();
    test_truncated();
    test_mutants();
    test_limits();
    test_writer_errors();
    test_full_disk();
    test_png();
    test_contact_sheet();
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
