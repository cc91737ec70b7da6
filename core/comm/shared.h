// SPDX-License-Identifier: Apache-2.0
// Inside core/comm only: ranks of one host that share a segment of memory.
//
// Everything is made of steps. In step t a rank writes into its buffer t % 2, says so, waits until all have said so,
// and reads the buffers t % 2 of the others. Two buffers are enough: who has finished step t - 1 knows that all have
// said t - 1, and they said it after reading what was written in t - 2.
#ifndef TS_COMM_SHARED_H
#define TS_COMM_SHARED_H

#include "core/comm/transport.h"

// What a rank tells the others; one cache line.
typedef struct ts_shared_mark {
    _Alignas(64) _Atomic uint32_t step;  // the last one it has written; wraps round
    _Atomic uint32_t sleepers;           // ranks that wait for it asleep
    int64_t most[2];                     // all-to-all: the largest of its parts, in step t at t % 2
    const void *data[2];                 // where its memory may be read, in step t at t % 2
    uint32_t call[2];                    // what the step belongs to: differs when ranks make different calls
    int pid;
    uint64_t token;  // what reading data[0] gives before the first step
} ts_shared_mark;

struct ts_shared {
    char *base;  // mapped: [size] marks, then [size, 2] buffers
    size_t bytes;
    uint64_t token;
    uint32_t step;      // the one under way
    const void **part;  // [size] scratch
    bool crowded;       // more ranks than processors
    char *scratch;      // [size - 1, TS_SHARED_READ] bytes read, NULL when the system forbids reading
};

enum {
    TS_SHARED_BUFFER = 256 * 1024,  // two of them for each rank: they stay in the second cache
    TS_SHARED_READ = 128 * 1024     // bytes read at a time of what is to be summed
};

// ---- steps
char *ts_shared_begin(const ts_comm *comm);  // the buffer to write into
// Says that this rank has written, and waits until all have. What is under way over MPI moves on meanwhile. TS_EPEER
// when another rank is at this step of another call.
int ts_shared_meet(const ts_comm *comm);
char *ts_shared_buffer(const ts_comm *comm, int rank);  // of the step under way
ts_shared_mark *ts_shared_mark_of(const ts_comm *comm, int rank);

// ---- through the buffers: large data takes several steps
extern const ts_transport ts_shared_copying;

// ---- by reading the memory of the others, each byte once: pays for large data
int ts_shared_read(const ts_comm *comm, int rank, size_t offset, void *to, size_t bytes);
extern const ts_transport ts_shared_reading;

#endif
