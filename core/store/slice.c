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

// A block is summed, looked over and copied by the kernel while it stays in the cache.
enum { BLOCK = 1 << 16 };  // elements

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
static int write_run(const ts_slice_file *file, const float *data, int64_t first, int64_t n, uint64_t *sum,
                     int64_t *wrong) {
    while (n > 0) {
        const int64_t block = n < BLOCK ? n : BLOCK;
        *sum += ts_element_sum(data, block, first);
        const int64_t found = ts_find_not_finite(data, block);
        if (found >= 0) {
            *wrong = first + found;
            return TS_FAIL(TS_EINPUT, "%s: element %lld of a tensor is not finite", file->path, (long long)*wrong);
        }
        TS_TRY(write_all(file, data, first, block));
        data += block;
        first += block;
        n -= block;
    }
    return TS_OK;
}

int ts_slice_write(const ts_slice_file *file, const ts_slice *slice, uint64_t *sum, int64_t *wrong) {
    const float *data = slice->data;
    *wrong = -1;
    for (int i = 0; i < slice->pieces; i++) {
        const ts_piece *piece = &slice->piece[i];
        for (int64_t run = 0; run < piece->runs; run++, data += piece->length) {
            TS_TRY(write_run(file, data, piece->first + run * piece->stride, piece->length, sum, wrong));
        }
    }
    return TS_OK;
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

static int read_run(const ts_slice_file *file, float *data, int64_t first, int64_t n, uint64_t *sum) {
    while (n > 0) {
        const int64_t block = n < BLOCK ? n : BLOCK;
        TS_TRY(read_all(file, data, first, block));
        *sum += ts_element_sum(data, block, first);
        data += block;
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

static int sieve(const ts_slice_file *file, const ts_piece *piece, float *data, float *block, uint64_t *sum) {
    const int64_t at_once = 1 + (BLOCK - piece->length) / piece->stride;
    for (int64_t run = 0; run < piece->runs; run += at_once) {
        const int64_t runs = piece->runs - run < at_once ? piece->runs - run : at_once;
        const int64_t first = piece->first + run * piece->stride;
        TS_TRY(read_all(file, block, first, (runs - 1) * piece->stride + piece->length));
        for (int64_t i = 0; i < runs; i++, data += piece->length) {
            memcpy(data, block + i * piece->stride, (size_t)piece->length * sizeof *data);
            *sum += ts_element_sum(data, piece->length, first + i * piece->stride);
        }
    }
    return TS_OK;
}

static int read_piece(const ts_slice_file *file, const ts_piece *piece, float *data, float *block, uint64_t *sum) {
    if (worth_sieving(piece)) {
        return sieve(file, piece, data, block, sum);
    }
    for (int64_t run = 0; run < piece->runs; run++, data += piece->length) {
        TS_TRY(read_run(file, data, piece->first + run * piece->stride, piece->length, sum));
    }
    return TS_OK;
}

int ts_slice_read(const ts_slice_file *file, const ts_slice *slice, uint64_t *sum) {
    float *data = slice->data, *block = NULL;
    int status = TS_OK;
    for (int i = 0; i < slice->pieces && !status; i++) {
        const ts_piece *piece = &slice->piece[i];
        if (worth_sieving(piece) && !block) {
            block = ts_malloc(BLOCK * sizeof *block);
        }
        status = worth_sieving(piece) && !block ? TS_ERESOURCE : read_piece(file, piece, data, block, sum);
        data += piece->runs * piece->length;
    }
    free(block);
    return status;
}
