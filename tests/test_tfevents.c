// SPDX-License-Identifier: Apache-2.0
// Event files: the checksum against published vectors, and the framing read back byte by byte.
#include <dirent.h>
#include <stdint.h>
#include <unistd.h>

#include "core/base/file.h"
#include "tests/ts_test.h"
#include "train/tfevents.h"

// RFC 3720, appendix B.4, and the customary check value of "123456789".
static void test_crc32c(void) {
    uint8_t bytes[32];
    memset(bytes, 0, sizeof bytes);
    CHECK(ts_crc32c(bytes, 32) == 0x8a9136aau);
    memset(bytes, 0xff, sizeof bytes);
    CHECK(ts_crc32c(bytes, 32) == 0x62a8ab43u);
    for (int i = 0; i < 32; i++) {
        bytes[i] = (uint8_t)i;
    }
    CHECK(ts_crc32c(bytes, 32) == 0x46dd794eu);
    CHECK(ts_crc32c("123456789", 9) == 0xe3069283u);
    CHECK(ts_crc32c("", 0) == 0);
    CHECK(ts_crc32c_masked("", 0) == 0xa282ead8u);
    CHECK(ts_crc32c_masked("123456789", 9) == ((0xe3069283u >> 15 | 0xe3069283u << 17) + 0xa282ead8u));
}

static uint64_t little_endian(const uint8_t *p, int bytes) {
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--) {
        value = value << 8 | p[i];
    }
    return value;
}

// Checks the framing of the record at `at`; returns where the next one starts.
static size_t check_record(const uint8_t *file, size_t bytes, size_t at, const uint8_t **data, size_t *length) {
    CHECK(at + 16 <= bytes);
    *length = (size_t)little_endian(file + at, 8);
    CHECK(at + 16 + *length <= bytes);
    CHECK(little_endian(file + at + 8, 4) == ts_crc32c_masked(file + at, 8));
    *data = file + at + 12;
    CHECK(little_endian(*data + *length, 4) == ts_crc32c_masked(*data, *length));
    return at + 16 + *length;
}

static void write_events(const char *folder) {
    ts_tfevents *events = NULL;
    static uint8_t image[300000];
    for (size_t i = 0; i < sizeof image; i++) {
        image[i] = (uint8_t)(i * 7);
    }
    CHECK_OK(ts_tfevents_open(&events, folder));
    CHECK_OK(ts_tfevents_scalar(events, 300, "loss", 0.5));
    CHECK_OK(ts_tfevents_png(events, 301, "samples", image, sizeof image, 40, 30));
    CHECK_OK(ts_tfevents_flush(events));
    ts_tfevents_close(&events);
    CHECK(!events);
}

static void check_events(const char *path) {
    char *text = NULL;
    size_t bytes = 0;
    CHECK_OK(ts_file_read(path, 1 << 20, &text, &bytes));
    const uint8_t *file = (const uint8_t *)text, *data;
    size_t length, at = check_record(file, bytes, 0, &data, &length);
    // wall_time: key 9 and a double; step: key 16 and 0; version: key 26, length 13.
    CHECK(data[0] == 9 && data[9] == 16 && data[10] == 0 && data[11] == 26 && data[12] == 13);
    CHECK(!memcmp(data + 13, "brain.Event:2", 13) && length == 26);

    at = check_record(file, bytes, at, &data, &length);
    // step 300 is the varint ac 02; summary (42) of one value (10): tag "loss" (10), 0.5f (21).
    const uint8_t scalar[] = {16, 0xac, 2, 42, 13, 10, 11, 10, 4, 'l', 'o', 's', 's', 21, 0, 0, 0, 0x3f};
    CHECK(length == 9 + sizeof scalar && !memcmp(data + 9, scalar, sizeof scalar));

    at = check_record(file, bytes, at, &data, &length);
    CHECK(at == bytes && length > 300000 && data[length - 1] == (uint8_t)(299999 * 7));
    free(text);
}

int main(void) {
    test_crc32c();
    char folder[] = "/tmp/tessera-tfevents-XXXXXX";
    CHECK(mkdtemp(folder));
    write_events(folder);
    char **names = NULL, path[4096];
    int64_t count = 0;
    CHECK_OK(ts_folder_list(folder, &names, &count));
    CHECK(count == 1 && !strncmp(names[0], "events.out.tfevents.", 20));
    CHECK_OK(ts_path_join(path, sizeof path, folder, names[0]));
    check_events(path);
    ts_folder_list_free(names, count);
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
