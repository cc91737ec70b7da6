// SPDX-License-Identifier: Apache-2.0
// Slices of tensors to and from files, and the sums that ranks add up in parts.
#include "core/store/slice.h"

#include <fcntl.h>
#include <unistd.h>

#include "core/base/rng.h"
#include "core/store/element_sum.h"
#include "guarded_device.h"
#include "ts_test.h"

enum { LENGTH = 1300000 };  // more than passes between a device and the host at a time

static char path[64] = "/tmp/ts-slice-XXXXXX";
static int fd;
static float whole[LENGTH], back[LENGTH];

// ---- sums

// The formula of the header, one element at a time.
static uint64_t plain_sum(const float *data, int64_t n, int64_t first) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t element;
        memcpy(&element, &data[i], sizeof element);
        const uint64_t key = UINT64_C(0x9e3779b97f4a7c15) * ((uint64_t)(first + i) + 1);
        const uint64_t product = (uint64_t)((uint32_t)key ^ element) * ((key >> 32) | 1);
        sum += product ^ (product >> 32);
    }
    return sum;
}

static void test_sum(void) {
    for (int64_t n = 0; n < 70; n++) {
        CHECK(ts_element_sum(whole + n % 3, n, n * 1000003) == plain_sum(whole + n % 3, n, n * 1000003));
    }
    const int64_t far = INT64_C(1) << 40;
    CHECK(ts_element_sum(whole, LENGTH, far) == plain_sum(whole, LENGTH, far));
    const uint64_t all = ts_element_sum(whole, LENGTH, 0);
    uint64_t parts = 0;
    for (int64_t end = LENGTH, n; end > 0; end -= n) {  // from the back, in uneven parts
        n = end < 777 ? end : 1 + end % 777;
        parts += ts_element_sum(whole + end - n, n, end - n);
    }
    CHECK(parts == all);
    CHECK(ts_element_sum(whole, LENGTH, 1) != all);
}

// Any bit of any element, two elements exchanged, a block of zeros.
static void test_sum_finds_damage(void) {
    enum { N = 1000 };
    const uint64_t sum = ts_element_sum(whole, N, 0);
    for (int i = 0; i < N; i++) {
        uint32_t element;
        memcpy(&element, &whole[i], sizeof element);
        for (int bit = 0; bit < 32; bit++) {
            const uint32_t flipped = element ^ (UINT32_C(1) << bit);
            memcpy(&whole[i], &flipped, sizeof element);
            CHECK(ts_element_sum(whole, N, 0) != sum);
        }
        memcpy(&whole[i], &element, sizeof element);
        const int other = (i * 7 + 1) % N;
        const float kept = whole[i];
        whole[i] = whole[other];
        whole[other] = kept;
        CHECK(i == other || ts_element_sum(whole, N, 0) != sum);
        whole[other] = whole[i];
        whole[i] = kept;
    }
    CHECK(ts_element_sum(whole, N, 0) == sum);
    memset(back, 0, sizeof back);
    memcpy(back, whole, 500 * sizeof *back);
    CHECK(ts_element_sum(back, N, 0) != sum);
}

static void test_finite(void) {
    CHECK(ts_find_not_finite(whole, LENGTH) == -1 && ts_find_not_finite(whole, 0) == -1);
    const float kept = whole[4711];
    whole[4711] = -INFINITY;
    whole[4712] = NAN;
    CHECK(ts_find_not_finite(whole, LENGTH) == 4711);
    whole[4711] = kept;
    CHECK(ts_find_not_finite(whole, LENGTH) == 4712);
    whole[4712] = 1;
}

// ---- slices

// Cuts [rows, columns] into `cuts` slices by columns; each is written and read, and the file is the whole again.
static void check_columns(const ts_device *device, int64_t rows, int64_t columns, int64_t cuts) {
    float *part = device->allocate(LENGTH * sizeof *part);
    static float row_back[LENGTH];
    const ts_slice_file file = {fd, path, 40};
    uint64_t written = 0, read = 0;
    CHECK(ftruncate(fd, 0) == 0);
    for (int64_t cut = 0; cut < cuts; cut++) {
        const int64_t first = columns * cut / cuts, n = columns * (cut + 1) / cuts - first;
        const ts_slice slice = {part, 1, {{first, rows, n, columns}}};
        int64_t wrong;
        for (int64_t row = 0; row < rows; row++) {
            CHECK_OK(device->upload(part + row * n, whole + row * columns + first, (size_t)n * sizeof *part));
        }
        CHECK(ts_slice_count(&slice) == rows * n);
        CHECK_OK(ts_slice_write(&file, &slice, &written, &wrong));
        CHECK(wrong == -1);
    }
    CHECK(written == plain_sum(whole, rows * columns, 0));
    CHECK(pread(fd, back, sizeof back, 40) == rows * columns * 4);
    CHECK(!memcmp(back, whole, (size_t)(rows * columns) * 4));
    for (int64_t cut = 0; cut < cuts; cut++) {
        const int64_t first = columns * cut / cuts, n = columns * (cut + 1) / cuts - first;
        const ts_slice slice = {part, 1, {{first, rows, n, columns}}};
        CHECK_OK(device->zero(part, (size_t)(rows * n) * sizeof *part));
        CHECK_OK(ts_slice_read(&file, &slice, &read));
        for (int64_t row = 0; row < rows; row++) {
            CHECK_OK(device->download(row_back, part + row * n, (size_t)n * sizeof *part));
            CHECK(!memcmp(row_back, whole + row * columns + first, (size_t)n * sizeof *part));
        }
    }
    CHECK(read == written);
    device->release(part);
}

static void test_pieces(void) {
    // A range that begins inside a run, has two whole ones, and ends inside another.
    const ts_slice slice = {back, 3, {{7, 1, 3, 10}, {15, 2, 5, 10}, {35, 1, 2, 10}}};
    const float wanted[] = {7, 8, 9, 15, 16, 17, 18, 19, 25, 26, 27, 28, 29, 35, 36};
    const ts_slice_file file = {fd, path, 8};
    float numbers[40];
    for (int i = 0; i < 40; i++) {
        numbers[i] = (float)i;
    }
    CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, numbers, sizeof numbers, 8) == sizeof numbers);
    uint64_t sum = 0, again = 0;
    int64_t wrong;
    CHECK_OK(ts_slice_read(&file, &slice, &sum));
    CHECK(!memcmp(back, wanted, sizeof wanted) && ts_slice_count(&slice) == 15);
    back[4] = NAN;
    CHECK_FAILS(ts_slice_write(&file, &slice, &again, &wrong), TS_EINPUT, "not finite");
    CHECK(wrong == 16);
    CHECK(ftruncate(fd, 8 + 36 * 4) == 0);
    CHECK_FAILS(ts_slice_read(&file, &slice, &sum), TS_EINPUT, "truncated");
}

int main(void) {
    fd = mkstemp(path);
    CHECK(fd >= 0);
    ts_rng_normal_fill(whole, LENGTH, 1, TS_RNG_TEST, 0, 0);
    test_sum();
    test_sum_finds_damage();
    test_finite();
    const ts_device *const devices[] = {&ts_device_host, &guarded_device};
    for (int i = 0; i < 2; i++) {
        check_columns(devices[i], 1, 100, 1);
        check_columns(devices[i], 0, 100, 1);
        check_columns(devices[i], 300, 50, 3);     // short runs, read together
        check_columns(devices[i], 25000, 50, 1);   // more of them than cross at a time
        check_columns(devices[i], 2, 600000, 3);   // long ones
        check_columns(devices[i], 1000, 199, 50);  // far apart
        check_columns(devices[i], 13, 90001, 1);
    }
    test_pieces();
    close(fd);
    unlink(path);
    return ts_test_end();
}
