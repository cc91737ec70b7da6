// SPDX-License-Identifier: Apache-2.0
#include "core/store/slice.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/status.h"
#include "core/store/element_sum.h"

enum {
    BLOCK = 1 << 16,     // elements that are summed, looked over and copied by the kernel while they stay in the cache
    CROSSING = 1 << 20,  // elements that cross between a device and the host at a time
};

int ts_slice_open(const char *path, int64_t bytes, int *fd) {
    struct stat about = {0};
    *fd = open(path, O_RDWR | O_CLOEXEC);
    if (*fd < 0 && errno != ENOENT) {
        return TS_FILE_FAIL(path, "open");
    }
    if (*fd < 0 || fstat(*fd, &about) || about.st_size != bytes) {
        return TS_FAIL(
            TS_EUSAGE,
            "%s: was made by rank 0 and is not seen here; several hosts need a folder that all of them share", path);
    }
    return TS_OK;
}

int64_t ts_slice_count(const ts_slice *slice) {
    int64_t count = 0;
    for (int i = 0; i < slice->pieces; i++) {
        count += slice->piece[i].runs * slice->piece[i].length;
    }
    return count;
}

static int64_t place_of(const ts_slice_file *file, int64_t element) {
    return file->offset + element * (int64_t)sizeof(float);
}

// ---- where the numbers live

// A slice's numbers in their order: the host's own memory, or a window through which those of a device pass.
typedef struct window {
    const ts_device *device;
    float *place;   // on a device: where what passes next lives ..
    int64_t left;   // .. how many have not passed ..
    float *copy;    // .. and the window [CROSSING], or NULL
    float *at;      // the next of them that the host sees
    int64_t ready;  // how many it sees from there on
} window;

static int open_window(window *w, const ts_slice *slice) {
    const int64_t count = ts_slice_count(slice);
    *w = (window){.device = ts_device_of(slice->data)};
    if (w->device->is_host) {
        w->at = slice->data;
        w->ready = count;
        return TS_OK;
    }
    w->place = slice->data;
    w->left = count;
    w->copy = ts_malloc(CROSSING * sizeof *w->copy);
    return w->copy ? TS_OK : TS_ERESOURCE;
}

static void advance(window *w, int64_t n) {
    w->at += n;
    w->ready -= n;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// The next numbers of a device, once those before are written.
static int fetch(window *w) {
    const int64_t n = least(w->left, CROSSING);
    TS_TRY(w->device->fetch(w->copy, w->place, (size_t)n * sizeof *w->copy));
    w->at = w->copy;
    w->ready = n;
    w->place += n;
    w->left -= n;
    return TS_OK;
}

// Numbers that were read go to the device, and there is room for the next ones.
static int send_off(window *w) {
    const int64_t n = w->at ? w->at - w->copy : 0;
    TS_TRY(w->device->upload(w->place, w->copy, (size_t)n * sizeof *w->copy));
    w->place += n;
    w->left -= n;
    w->at = w->copy;
    w->ready = least(w->left, CROSSING);
    return TS_OK;
}

// ---- writing

static int write_all(const ts_slice_file *file, const float *data, int64_t first, int64_t n) {
    const char *from = (const char *)data;
    size_t left = (size_t)n * sizeof(float);
    for (int64_t place = place_of(file, first); left;) {
        const ssize_t put = pwrite(file->fd, from, left, place);
        if (put < 0 && errno != EINTR) {
            return TS_FILE_FAIL(file->path, "write");
        }
        if (put > 0) {
            from += put;
            place += put;
            left -= (size_t)put;
        }
    }
    return TS_OK;
}

// Elements [first, first + n) of the tensor. Short runs are short writes: reading what lies between and writing it back
// would undo what another rank writes there.
static int write_run(const ts_slice_file *file, window *w, int64_t first, int64_t n, uint64_t *sum, int64_t *wrong) {
    while (n > 0) {
        TS_TRY(w->ready ? TS_OK : fetch(w));
        const int64_t block = least(least(n, BLOCK), w->ready);
        *sum += ts_element_sum(w->at, block, first);
        const int64_t found = ts_find_not_finite(w->at, block);
        if (found >= 0) {
            *wrong = first + found;
            return TS_FAIL(TS_EINPUT, "%s: element %lld of a tensor is not finite", file->path, (long long)*wrong);
        }
        TS_TRY(write_all(file, w->at, first, block));
        advance(w, block);
        first += block;
        n -= block;
    }
    return TS_OK;
}

int ts_slice_write(const ts_slice_file *file, const ts_slice *slice, uint64_t *sum, int64_t *wrong) {
    window w;
    *wrong = -1;
    int status = open_window(&w, slice);
    for (int i = 0; i < slice->pieces; i++) {
        const ts_piece *piece = &slice->piece[i];
        for (int64_t run = 0; run < piece->runs && !status; run++) {
            status = write_run(file, &w, piece->first + run * piece->stride, piece->length, sum, wrong);
        }
    }
    free(w.copy);
    return status;
}

// ---- reading

static int read_all(const ts_slice_file *file, float *data, int64_t first, int64_t n) {
    char *to = (char *)data;
    size_t left = (size_t)n * sizeof(float);
    for (int64_t place = place_of(file, first); left;) {
        const ssize_t got = pread(file->fd, to, left, place);
        if (got == 0 || (got < 0 && errno == EIO)) {
            return TS_FAIL(TS_EINPUT, "%s: cannot be read at byte %lld: %s", file->path, (long long)place,
                           got ? strerror(errno) : "it is truncated");
        }
        if (got < 0 && errno != EINTR) {
            return TS_FILE_FAIL(file->path, "read");
        }
        if (got > 0) {
            to += got;
            place += got;
            left -= (size_t)got;
        }
    }
    return TS_OK;
}

static int read_run(const ts_slice_file *file, window *w, int64_t first, int64_t n, uint64_t *sum) {
    while (n > 0) {
        TS_TRY(w->ready ? TS_OK : send_off(w));
        const int64_t block = least(least(n, BLOCK), w->ready);
        TS_TRY(read_all(file, w->at, first, block));
        *sum += ts_element_sum(w->at, block, first);
        advance(w, block);
        first += block;
        n -= block;
    }
    return TS_OK;
}

// Runs a page apart or less are picked out of a block that covers many of them: reading what lies between costs less
// than a call to the system for each.
static bool worth_sieving(const ts_piece *piece) {
    enum { NEAR = 1024 };  // elements
    return piece->runs > 1 && piece->stride <= NEAR;
}

static int put(window *w, const float *data, int64_t n) {
    while (n > 0) {
        TS_TRY(w->ready ? TS_OK : send_off(w));
        const int64_t part = least(n, w->ready);
        memcpy(w->at, data, (size_t)part * sizeof *data);
        advance(w, part);
        data += part;
        n -= part;
    }
    return TS_OK;
}

static int sieve(const ts_slice_file *file, const ts_piece *piece, window *w, float *block, uint64_t *sum) {
    const int64_t at_once = 1 + (BLOCK - piece->length) / piece->stride;
    for (int64_t run = 0; run < piece->runs; run += at_once) {
        const int64_t runs = least(piece->runs - run, at_once);
        const int64_t first = piece->first + run * piece->stride;
        TS_TRY(read_all(file, block, first, (runs - 1) * piece->stride + piece->length));
        for (int64_t i = 0; i < runs; i++) {
            const float *from = block + i * piece->stride;
            *sum += ts_element_sum(from, piece->length, first + i * piece->stride);
            TS_TRY(put(w, from, piece->length));
        }
    }
    return TS_OK;
}

static int read_piece(const ts_slice_file *file, const ts_piece *piece, window *w, float *block, uint64_t *sum) {
    if (worth_sieving(piece)) {
        return sieve(file, piece, w, block, sum);
    }
    for (int64_t run = 0; run < piece->runs; run++) {
        TS_TRY(read_run(file, w, piece->first + run * piece->stride, piece->length, sum));
    }
    return TS_OK;
}

int ts_slice_read(const ts_slice_file *file, const ts_slice *slice, uint64_t *sum) {
    float *block = NULL;
    window w;
    int status = open_window(&w, slice);
    for (int i = 0; i < slice->pieces && !status; i++) {
        const ts_piece *piece = &slice->piece[i];
        if (worth_sieving(piece) && !block) {
            block = ts_malloc(BLOCK * sizeof *block);
        }
        status = worth_sieving(piece) && !block ? TS_ERESOURCE : read_piece(file, piece, &w, block, sum);
    }
    if (!status && w.copy) {
        status = send_off(&w);
    }
    free(w.copy);
    free(block);
    return status;
}
