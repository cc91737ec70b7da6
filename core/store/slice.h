// SPDX-License-Identifier: Apache-2.0
// A rank's numbers of a tensor that lies whole in a file, streamed to and from it. Many ranks write one file, each its
// own bytes and no other's; nobody needs a copy. Numbers of a device pass through a window of the host's memory.
#ifndef TS_STORE_SLICE_H
#define TS_STORE_SLICE_H

#include <stdint.h>

#include "core/tensor/piece.h"

typedef struct ts_slice {
    // [ts_slice_count] the runs of the first piece one after another, then those of the next; borrowed, of any device
    float *data;
    int pieces;
    ts_piece piece[TS_MAX_PIECES];
} ts_slice;

// Where the tensor's elements begin in an open file.
typedef struct ts_slice_file {
    int fd;
    const char *path;  // for messages
    int64_t offset;    // bytes
} ts_slice_file;

// Opens for reading and writing a file that rank 0 has just made with so many bytes. TS_EUSAGE when it is not seen
// here: hosts that share no folder.
int ts_slice_open(const char *path, int64_t bytes, int *fd);
int64_t ts_slice_count(const ts_slice *slice);
// Adds the element sum of what is written, taken from memory, to *sum. Refuses NaN and infinity (TS_EINPUT) before the
// block that holds one is written: *wrong is then its index in the tensor, else -1. On a device the numbers must be
// done: they are read beside its work. Any thread.
int ts_slice_write(const ts_slice_file *file, const ts_slice *slice, uint64_t *sum, int64_t *wrong);
// Adds the element sum of what is read to *sum. A file that is too short, or that the disk cannot read, is TS_EINPUT.
int ts_slice_read(const ts_slice_file *file, const ts_slice *slice, uint64_t *sum);

#endif
