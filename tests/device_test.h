// SPDX-License-Identifier: Apache-2.0
// Tests that run on any device: which kernel tables a case is for, and numbers to and from their memory.
//
//   for (int i = 0; test_choose(i); i++) {      once on a GPU; on the CPU a second time where the host cannot look
//       float *x = test_device(host, bytes);    test_kernels is the table
//       .. compare(test_host(x, bytes), ..)
//   }
#ifndef TS_TEST_DEVICE_TEST_H
#define TS_TEST_DEVICE_TEST_H

#include "tests/guarded_kernels.h"
#include "tests/ts_test.h"

static const ts_kernels *test_kernels;

enum { TEST_COPIES = 4096 };
static struct {
    const ts_device *device;
    void *data;
} test_copy[TEST_COPIES];
static int test_copies;

static inline void test_free_copies(void) {
    while (test_copies) {
        test_copies--;
        test_copy[test_copies].device->release(test_copy[test_copies].data);
    }
}

static inline void *test_new_copy(const ts_device *device, size_t bytes) {
    void *data = test_copies < TEST_COPIES ? device->allocate(bytes) : NULL;
    if (!data) {
        fprintf(stderr, "no memory for a copy of %zu bytes: %s\n", bytes, ts_error_text());
        abort();
    }
    test_copy[test_copies].device = device;
    test_copy[test_copies++].data = data;
    return data;
}

// Table number `index` for this case; false past the last one. A SKIP where the case is for a GPU and there is none.
static inline bool test_choose(int index) {
    const bool on_cpu = strcmp(ts_test_backend(), "cpu") == 0;
    test_free_copies();
    if (index > (on_cpu ? 1 : 0)) {
        return false;
    }
    const int status =
        index == 1 ? guarded_kernels_open(&test_kernels) : ts_kernels_open(&test_kernels, ts_test_backend(), 0);
    if (status == TS_EPEER) {
        ts_test_skip(ts_error_text());
    }
    CHECK_OK(status);
    return status == 0;
}

// Whether kernels may be many times slower than the CPU's own: a case should then be as small as what it shows allows.
static inline bool test_is_slow(void) {
    return strcmp(test_kernels->name, "cuda") == 0;
}

// Device memory with these numbers, until test_choose or test_free_copies; on the host they themselves.
static inline void *test_device(const void *host, size_t bytes) {
    const ts_device *device = test_kernels->device;
    if (device->is_host) {
        return (void *)(uintptr_t)host;
    }
    void *copy = test_new_copy(device, bytes);
    CHECK_OK(device->upload(copy, host, bytes));
    return copy;
}

// The numbers of device memory, as lasting; on the host they themselves.
static inline const void *test_host(const void *place, size_t bytes) {
    const ts_device *device = ts_device_of(place);
    if (device->is_host) {
        return place;
    }
    void *copy = test_new_copy(&ts_device_host, bytes);
    CHECK_OK(device->download(copy, place, bytes));
    return copy;
}

static inline bool test_same(const void *a, const void *b, size_t bytes) {
    return memcmp(test_host(a, bytes), test_host(b, bytes), bytes) == 0;
}

#endif
