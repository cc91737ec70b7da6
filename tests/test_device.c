// TEST: timeout=120 backend=cuda
// SPDX-License-Identifier: Apache-2.0
// What core/base/device.h promises of a device, of whichever one this case runs on.
#include "core/base/device.h"

#include <pthread.h>
#include <stdint.h>

#include "core/kernels/kernels.h"
#include "tests/ts_test.h"

static const ts_device *device;

// ---- memory

static void test_memory(void) {
    CHECK(strcmp(device->name, ts_test_backend()) == 0);
    CHECK(device->is_host == (strcmp(device->name, "cpu") == 0));
    char *memory = device->allocate(1000), *empty = device->allocate(0);
    CHECK(memory && empty);
    CHECK((uintptr_t)memory % (device->is_host ? 64 : 256) == 0);
    CHECK(ts_device_of(memory) == device && ts_device_of(memory + 999) == device);
    int local;
    CHECK(ts_device_of(&local) == &ts_device_host);
    device->release(memory);
    device->release(empty);
    device->release(NULL);
    CHECK(ts_device_of(memory) == &ts_device_host);
    char *host = device->allocate_host(100);
    CHECK(host && ts_device_of(host) == &ts_device_host);
    memset(host, 1, 100);
    device->release_host(host);
    device->release_host(NULL);
}

static void test_exhausted(void) {
    if (!device->is_host) {
        CHECK(device->allocate((size_t)1 << 50) == NULL);
        CHECK(strstr(ts_error_text(), "out of memory"));
    }
}

// ---- moves

// Bytes that tell where they are from.
static unsigned char mark(size_t i, unsigned seed) {
    return (unsigned char)(i * 7 + i / 251 + seed * 31);
}

static bool has_marks(const unsigned char *bytes, size_t count, unsigned seed) {
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != mark(i, seed)) {
            return false;
        }
    }
    return true;
}

// The source is overwritten as soon as the call returns. More bytes than any staging memory holds at once.
static void test_upload(size_t bytes) {
    unsigned char *from = malloc(bytes), *to = malloc(bytes), *memory = device->allocate(bytes);
    CHECK(from && to && memory);
    for (unsigned seed = 0; seed < 2; seed++) {
        for (size_t i = 0; i < bytes; i++) {
            from[i] = mark(i, seed);
        }
        CHECK_OK(device->upload(memory, from, bytes));
        memset(from, 0, bytes);
        CHECK_OK(device->download(to, memory, bytes));
        CHECK(has_marks(to, bytes, seed));
    }
    free(from);
    free(to);
    device->release(memory);
}

static void test_many_uploads(void) {
    enum { COUNT = 5000, EACH = 100 };
    unsigned char *memory = device->allocate((size_t)COUNT * EACH), *to = malloc((size_t)COUNT * EACH);
    unsigned char piece[EACH];
    CHECK(memory && to);
    for (size_t k = 0; k < COUNT; k++) {
        for (size_t i = 0; i < EACH; i++) {
            piece[i] = mark(k * EACH + i, 3);
        }
        CHECK_OK(device->upload(memory + k * EACH, piece, EACH));
    }
    CHECK_OK(device->download(to, memory, (size_t)COUNT * EACH));
    CHECK(has_marks(to, (size_t)COUNT * EACH, 3));
    free(to);
    device->release(memory);
}

static void test_copies(void) {
    enum { N = 3000 };
    unsigned char *a = device->allocate(N), *b = device->allocate(N), *host = device->allocate_host(N), out[N];
    CHECK(a && b && host);
    for (size_t i = 0; i < N; i++) {
        host[i] = mark(i, 5);
    }
    CHECK_OK(device->upload_held(a, host, N));
    CHECK_OK(device->zero(b, N));
    CHECK_OK(device->copy(b, a, N - 1));
    CHECK_OK(device->finish());
    CHECK_OK(device->download(out, b, N));
    CHECK(has_marks(out, N - 1, 5) && out[N - 1] == 0);
    CHECK_OK(device->upload(a, host, 0));
    CHECK_OK(device->download(out, a, 0));
    CHECK_OK(device->copy(b, a, 0));
    CHECK_OK(device->zero(b, 0));
    if (device->spoil) {
        device->spoil(b, 10);
        CHECK_OK(device->download(out, b, N));
        CHECK(out[0] == 0xff && out[9] == 0xff && out[10] == mark(10, 5));
    }
    device->release(a);
    device->release(b);
    device->release_host(host);
}

static unsigned char *fetched_from;

static void *fetch_elsewhere(void *to) {
    return (void *)(intptr_t)device->fetch(to, fetched_from, 1000);
}

static void test_fetch(void) {
    unsigned char out[1000] = {0}, in[1000];
    for (size_t i = 0; i < sizeof in; i++) {
        in[i] = mark(i, 9);
    }
    fetched_from = device->allocate(sizeof in);
    CHECK_OK(device->upload(fetched_from, in, sizeof in));
    CHECK_OK(device->finish());
    pthread_t thread;
    void *code = (void *)1;
    CHECK(pthread_create(&thread, NULL, fetch_elsewhere, out) == 0);
    CHECK(pthread_join(thread, &code) == 0 && code == NULL);
    CHECK(has_marks(out, sizeof out, 9));
    device->release(fetched_from);
}

// ---- recordings

typedef struct numbers {
    float *x, *staged, *sum;  // [4] each, of the device
} numbers;

// sum += staged, which an upload fills.
static ts_recording *record(const ts_kernels *kernels, const numbers *n) {
    const float first[4] = {1, 2, 3, 4};
    ts_recording *recording = NULL;
    CHECK_OK(device->record_begin());
    CHECK_OK(device->upload(n->staged, first, sizeof first));
    CHECK_OK(kernels->add_rows(n->sum, n->staged, n->sum, 1, 1, 4));
    float out[4];
    CHECK_FAILS(device->download(out, n->sum, sizeof out), TS_EUSAGE, "cannot be recorded");
    CHECK_FAILS(device->finish(), TS_EUSAGE, "cannot be recorded");
    CHECK_OK(device->record_end(&recording));
    CHECK(recording != NULL);
    return recording;
}

static void check_sum(const numbers *n, float first, float last) {
    float out[4];
    CHECK_OK(device->download(out, n->sum, sizeof out));
    CHECK(out[0] == first && out[3] == last);
}

static void test_recording(const ts_kernels *kernels) {
    if (!device->record_begin || !kernels->add_rows) {
        return;
    }
    numbers n = {device->allocate(16), device->allocate(16), device->allocate(16)};
    CHECK_OK(device->zero(n.sum, 16));
    CHECK_OK(kernels->add_rows(n.sum, n.sum, n.sum, 1, 1, 4));
    ts_recording *recording = record(kernels, &n);
    check_sum(&n, 0, 0);  // nothing was done yet
    CHECK_OK(device->recording_run(recording));
    CHECK_OK(device->recording_run(recording));
    check_sum(&n, 2, 8);
    // Each run has its own numbers, though nothing waits between them.
    for (int i = 1; i <= 10; i++) {
        const float next[4] = {(float)i, 0, 0, (float)(10 * i)};
        CHECK_OK(device->recording_restage(recording, 0, next, sizeof next));
        CHECK_OK(device->recording_run(recording));
    }
    check_sum(&n, 2 + 55, 8 + 550);
    CHECK_FAILS(device->recording_restage(recording, 1, &n, 16), TS_EUSAGE, "it has 1 uploads");
    CHECK_FAILS(device->recording_restage(recording, 0, &n, 8), TS_EUSAGE, "of 16 bytes");
    device->recording_close(&recording);
    CHECK(recording == NULL);
    device->recording_close(&recording);
    CHECK_FAILS(device->record_end(&recording), TS_EUSAGE, "did not begin");
    device->release(n.x);
    device->release(n.staged);
    device->release(n.sum);
}

int main(void) {
    const ts_kernels *kernels = NULL;
    const int status = ts_kernels_open(&kernels, ts_test_backend(), 0);
    if (status == TS_EPEER) {
        ts_test_skip(ts_error_text());
    }
    CHECK_OK(status);
    device = kernels->device;
    test_memory();
    test_exhausted();
    test_upload(1);
    test_upload(100000);
    test_upload(((size_t)40 << 20) + 17);
    test_many_uploads();
    test_copies();
    test_fetch();
    test_recording(kernels);
    CHECK_OK(device->finish());
    return ts_test_end();
}
