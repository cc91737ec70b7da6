// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// Pictures read: PNG of every kind of pixel, transparency, JPEG and its orientation, hostile and damaged files.
#include <limits.h>
#include <png.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "core/base/file.h"
#include "core/base/rng.h"
#include "core/media/image.h"
#include "tests/ts_test.h"

static char folder[64];

static const char *in_folder(const char *name) {
    static char path[4][PATH_MAX];
    static int next;
    char *out = path[next = (next + 1) % 4];
    snprintf(out, PATH_MAX, "%s/%s", folder, name);
    return out;
}

enum { HEIGHT = 5, WIDTH = 7, PIXELS = HEIGHT * WIDTH };

static const char *write_png(const char *name, png_uint_32 format, const void *pixels, const void *colours,
                             png_uint_32 entries) {
    const char *path = in_folder(name);
    png_image image = {
        .version = PNG_IMAGE_VERSION, .width = WIDTH, .height = HEIGHT, .format = format, .colormap_entries = entries};
    CHECK(png_image_write_to_file(&image, path, 0, pixels, 0, colours));
    return path;
}

static void read_both(const char *path, uint8_t **rgb, uint8_t **grey, int64_t want_height, int64_t want_width) {
    int64_t height[2] = {0}, width[2] = {0};
    CHECK_OK(ts_image_read(path, rgb, &height[0], &width[0]));
    CHECK_OK(ts_image_read_grey(path, grey, &height[1], &width[1]));
    CHECK(height[0] == want_height && width[0] == want_width && height[1] == want_height && width[1] == want_width);
}

static void test_rgb_and_grey(void) {
    uint8_t pixels[PIXELS * 3], *rgb, *grey;
    for (int i = 0; i < PIXELS * 3; i++) {
        pixels[i] = (uint8_t)(i * 37);
    }
    read_both(write_png("rgb.png", PNG_FORMAT_RGB, pixels, NULL, 0), &rgb, &grey, HEIGHT, WIDTH);
    CHECK(memcmp(rgb, pixels, sizeof pixels) == 0);
    for (int i = 0; i < PIXELS; i++) {
        const uint8_t *p = pixels + 3 * i;
        CHECK_NEAR(grey[i], 0.2126 * p[0] + 0.7152 * p[1] + 0.0722 * p[2], 1.0);
    }
    free(rgb);
    free(grey);
    read_both(write_png("grey.png", PNG_FORMAT_GRAY, pixels, NULL, 0), &rgb, &grey, HEIGHT, WIDTH);
    CHECK(memcmp(grey, pixels, PIXELS) == 0);
    CHECK(rgb[3 * 4] == pixels[4] && rgb[3 * 4 + 1] == pixels[4] && rgb[3 * 4 + 2] == pixels[4]);
    free(rgb);
    free(grey);
    const uint8_t colours[2][3] = {{0, 0, 0}, {255, 255, 255}};
    uint8_t places[PIXELS] = {0};
    places[9] = 1;
    read_both(write_png("palette.png", PNG_FORMAT_RGB_COLORMAP, places, colours, 2), &rgb, &grey, HEIGHT, WIDTH);
    CHECK(grey[8] == 0 && grey[9] == 255 && rgb[3 * 9 + 2] == 255 && rgb[3 * 10] == 0);
    free(rgb);
    free(grey);
}

// A picture shows white where it is transparent; a mask is nothing there.
static void test_alpha(void) {
    uint8_t pixels[PIXELS][4], *rgb, *grey;
    for (int i = 0; i < PIXELS; i++) {
        memcpy(pixels[i], (const uint8_t[]){200, 100, 0, (uint8_t)(i == 0 ? 0 : i == 1 ? 128 : 255)}, 4);
    }
    read_both(write_png("alpha.png", PNG_FORMAT_RGBA, pixels, NULL, 0), &rgb, &grey, HEIGHT, WIDTH);
    CHECK(rgb[0] == 255 && rgb[1] == 255 && rgb[2] == 255 && grey[0] == 0);
    CHECK_NEAR(rgb[3], 227, 1);
    CHECK_NEAR(rgb[5], 127, 1);
    CHECK_NEAR(grey[1], grey[2] * 128.0 / 255.0, 1);
    for (int i = 2; i < PIXELS; i++) {
        CHECK(memcmp(rgb + 3 * i, pixels[i], 3) == 0);
    }
    free(rgb);
    free(grey);
}

// ---- JPEG: red, green above blue, white, 48 x 32 pixels

static const char QUADRANTS[] = "tests/vectors/quadrants.jpg";

static char corner(const uint8_t *rgb, int64_t width, int64_t y, int64_t x) {
    const uint8_t *p = rgb + (y * width + x) * 3;
    const int bits = (p[0] > 240) << 2 | (p[1] > 240) << 1 | (p[2] > 240);
    return "kbgcrmyw"[bits];
}

static void check_corners(const char *path, int64_t height, int64_t width, const char *want) {
    uint8_t *rgb, *grey;
    read_both(path, &rgb, &grey, height, width);
    const char got[] = {corner(rgb, width, 3, 3), corner(rgb, width, 3, width - 4), corner(rgb, width, height - 4, 3),
                        corner(rgb, width, height - 4, width - 4), '\0'};
    CHECK(strcmp(got, want) == 0);
    free(rgb);
    free(grey);
}

// The picture with an Exif segment that tells its orientation, 1 to 8.
static const char *write_oriented(const char *jpeg, size_t bytes, char orientation) {
    const char exif[] = {'\xff', '\xe1', 0, 34, 'E', 'x', 'i', 'f', 0, 0,           'M', 'M', 0, 42, 0, 0,
                         0,      8,      0, 1,  // one entry: tag 0x0112, a short
                         1,      0x12,   0, 3,  0,   0,   0,   1,   0, orientation, 0,   0,   0, 0,  0, 0};
    char *out = malloc(bytes + sizeof exif);
    memcpy(out, jpeg, 2);
    memcpy(out + 2, exif, sizeof exif);
    memcpy(out + 2 + sizeof exif, jpeg + 2, bytes - 2);
    CHECK_OK(ts_file_write_atomic(in_folder("turned.jpg"), out, bytes + sizeof exif));
    free(out);
    return in_folder("turned.jpg");
}

static void test_jpeg(void) {
    check_corners(QUADRANTS, 32, 48, "rgbw");
    char *jpeg;
    size_t bytes;
    CHECK_OK(ts_file_read(QUADRANTS, 1 << 20, &jpeg, &bytes));
    check_corners(write_oriented(jpeg, bytes, 1), 32, 48, "rgbw");
    check_corners(write_oriented(jpeg, bytes, 2), 32, 48, "grwb");
    check_corners(write_oriented(jpeg, bytes, 3), 32, 48, "wbgr");
    check_corners(write_oriented(jpeg, bytes, 6), 48, 32, "brwg");
    check_corners(write_oriented(jpeg, bytes, 8), 48, 32, "gwrb");
    free(jpeg);
}

// ---- what is refused

static void check_refused(const char *path, const char *words) {
    uint8_t *pixels = (uint8_t *)folder;
    int64_t height, width;
    CHECK_FAILS(ts_image_read(path, &pixels, &height, &width), TS_EINPUT, words);
    CHECK(pixels == NULL && !strchr(ts_error_text(), '\n'));
    CHECK_FAILS(ts_image_read_grey(path, &pixels, &height, &width), TS_EINPUT, words);
    CHECK(pixels == NULL);
}

static const char *write_bytes(const char *name, const void *bytes, size_t count) {
    const char *path = in_folder(name);
    CHECK_OK(ts_file_write_atomic(path, bytes, count));
    return path;
}

// Every length and many changes of a file: a picture or one line, no crash.
static void check_mutants(const char *path, int64_t most_pixels) {
    char *bytes;
    size_t count;
    CHECK_OK(ts_file_read(path, 1 << 20, &bytes, &count));
    for (size_t cut = 0; cut < count * 9 / 10; cut += 1 + count / 40) {
        check_refused(write_bytes("mutant", bytes, cut), "mutant");
    }
    char *mutant = malloc(count);
    for (uint64_t i = 0; i < 150; i++) {
        memcpy(mutant, bytes, count);
        for (uint32_t j = 0; j < 3; j++) {
            const uint64_t place = ts_rng_below(5, TS_RNG_TEST, i, 2 * j, count);
            mutant[place] = (char)ts_rng_below(5, TS_RNG_TEST, i, 2 * j + 1, 256);
        }
        uint8_t *pixels;
        int64_t height = 0, width = 0;
        const int status = ts_image_read(write_bytes("mutant", mutant, count), &pixels, &height, &width);
        CHECK(status == TS_OK || status == TS_EINPUT);
        CHECK(status == TS_OK ? height * width <= most_pixels : !strchr(ts_error_text(), '\n'));
        free(pixels);
    }
    free(mutant);
    free(bytes);
}

static void test_refused(void) {
    check_refused(in_folder("none.png"), "none.png");
    check_refused(folder, folder);
    check_refused(write_bytes("empty.png", "", 0), "neither a PNG nor a JPEG");
    check_refused(write_bytes("text.png", "not a picture", 13), "neither a PNG nor a JPEG");
    CHECK(mkfifo(in_folder("pipe.png"), 0600) == 0);
    check_refused(in_folder("pipe.png"), "pipe.png");
    check_mutants(in_folder("rgb.png"), TS_IMAGE_MAX_PIXELS);
    check_mutants(QUADRANTS, TS_IMAGE_MAX_PIXELS);
}

static uint32_t png_sum(const uint8_t *bytes, size_t count) {
    uint32_t sum = 0xffffffffu;
    for (size_t i = 0; i < count; i++) {
        sum ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            sum = sum >> 1 ^ (sum & 1 ? 0xedb88320u : 0);
        }
    }
    return ~sum;
}

static void put_big(char *to, uint32_t value) {
    value = __builtin_bswap32(value);
    memcpy(to, &value, 4);
}

// Headers that claim more than there is, or may be.
static void test_huge(void) {
    static const uint32_t sizes[][2] = {{1000000, 5}, {16384, 16384}, {7, 16385}, {0x7fffffff, 0x7fffffff}};
    char *bytes;
    size_t count;
    CHECK_OK(ts_file_read(in_folder("rgb.png"), 1 << 20, &bytes, &count));
    for (int i = 0; i < 4; i++) {
        put_big(bytes + 16, sizes[i][0]);
        put_big(bytes + 20, sizes[i][1]);
        put_big(bytes + 29, png_sum((const uint8_t *)bytes + 12, 17));
        check_refused(write_bytes("huge.png", bytes, count), i < 3 ? "scale it down" : "huge.png");
    }
    free(bytes);
    CHECK_OK(ts_file_read(QUADRANTS, 1 << 20, &bytes, &count));
    char *frame = memmem(bytes, count, "\xff\xc0", 2);
    CHECK(frame != NULL);
    memset(frame + 5, 0xf0, 4);
    check_refused(write_bytes("huge.jpg", bytes, count), "huge.jpg");
    free(bytes);
}

int main(void) {
    strcpy(folder, "/tmp/tessera-image-XXXXXX");
    CHECK(mkdtemp(folder) != NULL);
    test_rgb_and_grey();
    test_alpha();
    test_jpeg();
    test_refused();
    test_huge();
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
