// SPDX-License-Identifier: Apache-2.0
// The transport between ranks of one host: through a segment of memory that all of them map.
//
// Everything is made of steps. In step t a rank writes into its buffer t % 2, says so, waits until all have said so,
// and reads the buffers t % 2 of the others. Two buffers are enough: who has finished step t - 1 knows that all have
// said t - 1, and they said it after reading what was written in t - 2. Large data takes several steps.
//
// Asynchronous forms go over MPI: their messages move while others are waited for.
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/log.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "core/comm/reduce.h"
#include "core/comm/request.h"

enum {
    LINE = 64,
    BUFFER_BYTES = 512 * 1024,  // two of them for each rank: what a core's second cache holds
    DIRECT_BYTES = 4096,        // all-reduce: up to here each rank adds everything up by itself
    PAUSES = 200                // looks at a flag before the processor is offered to other ranks
};

int64_t ts_shared_chunk = BUFFER_BYTES;

// What a rank tells the others; one cache line.
typedef struct mark {
    _Alignas(LINE) _Atomic uint64_t step;  // the last one it has written
    int64_t most[2];                       // all-to-all: the largest of its parts, in step t at t % 2
} mark;

struct ts_shared {
    char *base;  // mapped: [size] marks, then [size, 2, BUFFER_BYTES]
    size_t bytes;
    uint64_t step;      // the one under way
    const void **part;  // [size] scratch
};

// ---- the segment

static size_t marks_bytes(int size) {
    return ((size_t)size * sizeof(mark) + 4095) / 4096 * 4096;
}

static mark *mark_of(const ts_comm *comm, int rank) {
    return (mark *)(void *)comm->shared->base + rank;
}

// The buffer of a rank in the step under way.
static char *buffer_of(const ts_comm *comm, int rank) {
    const size_t index = 2 * (size_t)rank + comm->shared->step % 2;
    return comm->shared->base + marks_bytes(comm->size) + index * BUFFER_BYTES;
}

// Memory is reserved here, each rank's near to it, so that a full file system is an error and not a signal later.
static int map_segment(ts_comm *comm, int file) {
    ts_shared *s = comm->shared;
    const size_t own = marks_bytes(comm->size) + 2 * (size_t)comm->rank * BUFFER_BYTES;
    const int code = posix_fallocate(file, comm->rank ? (off_t)own : 0,
                                     (off_t)(comm->rank ? 2 * BUFFER_BYTES : own + 2 * BUFFER_BYTES));
    if (code) {
        return TS_FAIL(TS_ERESOURCE, "cannot reserve %zu bytes of shared memory: %s", s->bytes, strerror(code));
    }
    void *const base = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (base == MAP_FAILED) {
        return TS_FAIL(TS_ERESOURCE, "cannot map %zu bytes of shared memory: %s", s->bytes, strerror(errno));
    }
    s->base = base;
    return TS_OK;
}

static int open_file(const char *name, int flags, int *file) {
    *file = shm_open(name, flags, 0600);
    return *file < 0 ? TS_FAIL(TS_ERESOURCE, "cannot open shared memory %s: %s", name, strerror(errno)) : TS_OK;
}

// Same answer on all ranks: that of the lowest which failed, else 0.
static int agree(const ts_comm *comm, int status) {
    const int own = status;
    TS_TRY(ts_mpi_check(MPI_Allreduce(MPI_IN_PLACE, &status, 1, MPI_INT, MPI_MIN, comm->mpi), "MPI_Allreduce"));
    return own || !status ? status : TS_FAIL(status, "another rank cannot open shared memory");
}

// Rank 0 makes a file in memory, all map it, and its name is taken away before anything else can happen.
static int open_segment(ts_comm *comm) {
    char name[64];
    int file = -1, status = TS_OK;
    snprintf(name, sizeof name, "/tessera-%d-%llx", (int)getpid(), (unsigned long long)(uintptr_t)comm);
    if (comm->rank == 0) {
        status = open_file(name, O_CREAT | O_EXCL | O_RDWR, &file);
        if (!status && ftruncate(file, (off_t)comm->shared->bytes)) {
            status = TS_FAIL(TS_ERESOURCE, "cannot size shared memory: %s", strerror(errno));
        }
    }
    TS_TRY(ts_mpi_check(MPI_Bcast(name, (int)sizeof name, MPI_CHAR, 0, comm->mpi), "MPI_Bcast"));
    if (comm->rank != 0) {
        status = open_file(name, O_RDWR, &file);
    }
    if (!status) {
        status = map_segment(comm, file);
    }
    if (file >= 0) {
        close(file);
    }
    status = agree(comm, status);
    if (comm->rank == 0) {
        shm_unlink(name);
    }
    return status;
}

void ts_shared_close(ts_comm *comm) {
    ts_shared *s = comm->shared;
    if (s) {
        if (s->base) {
            munmap(s->base, s->bytes);
        }
        free(s->part);
        free(s);
        comm->shared = NULL;
    }
}

int ts_shared_open(ts_comm *comm) {
    ts_shared *s = comm->shared = ts_calloc(1, sizeof *s);
    if (s) {
        s->bytes = marks_bytes(comm->size) + 2 * (size_t)comm->size * BUFFER_BYTES;
        s->part = ts_malloc((size_t)comm->size * sizeof *s->part);
    }
    int status = agree(comm, s && s->part ? TS_OK : TS_ERESOURCE);
    status = status ? status : open_segment(comm);
    if (status) {
        ts_shared_close(comm);
    }
    return status;
}

bool ts_shared_possible(MPI_Comm mpi) {
    MPI_Comm host;
    int size, here = 0;
    MPI_Comm_size(mpi, &size);
    if (MPI_Comm_split_type(mpi, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host) == MPI_SUCCESS) {
        MPI_Comm_size(host, &here);
        MPI_Comm_free(&host);
    }
    return here == size;
}

// ---- steps

static char *begin_step(const ts_comm *comm) {
    comm->shared->step++;
    return buffer_of(comm, comm->rank);
}

// Says that this rank has written, and waits until all have. What is under way over MPI moves on meanwhile.
static int meet(const ts_comm *comm) {
    const uint64_t step = comm->shared->step;
    atomic_store_explicit(&mark_of(comm, comm->rank)->step, step, memory_order_release);
    for (int rank = 0; rank < comm->size; rank++) {
        const mark *other = mark_of(comm, rank);
        for (int looks = 0; atomic_load_explicit(&other->step, memory_order_acquire) < step; looks++) {
            if (looks < PAUSES) {
                _mm_pause();
            } else {
                TS_TRY(ts_request_progress());
                sched_yield();
            }
        }
    }
    return TS_OK;
}

// Elements of a step when a buffer is shared by `parts`.
static int64_t step_count(int64_t parts, size_t element) {
    const int64_t bytes = ts_shared_chunk / parts / LINE * LINE, count = bytes / (int64_t)element;
    return count > 0 ? count : 1;
}

static int64_t most_of(const int64_t *counts, int size) {
    int64_t most = 0;
    for (int rank = 0; rank < size; rank++) {
        most = counts[rank] > most ? counts[rank] : most;
    }
    return most;
}

// Elements of a part of `count` that go into the step which begins at `first`.
static int64_t in_step(int64_t count, int64_t first, int64_t step) {
    const int64_t left = count - first;
    return left < 0 ? 0 : left < step ? left : step;
}

static void copy(void *to, const void *from, int64_t count, size_t element) {
    if (count > 0) {
        memcpy(to, from, (size_t)count * element);
    }
}

// Where a buffer that is dealt out to the others holds the share of rank `to`: `of` itself has none there.
static char *share_of(char *buffer, int of, int to, int64_t count, size_t element) {
    return buffer + (size_t)((to - (to > of)) * count) * element;
}

// ---- collectives

// The chunk whole in every buffer; everybody adds everything.
static int reduce_directly(const ts_comm *comm, char *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const void **const part = comm->shared->part;
    copy(begin_step(comm), data, count, ts_dtype_bytes(dtype));
    TS_TRY(meet(comm));
    for (int rank = 0; rank < comm->size; rank++) {
        part[rank] = rank == comm->rank ? data : buffer_of(comm, rank);
    }
    ts_reduce_parts(data, part, comm->size, count, dtype, op);
    return TS_OK;
}

// Everybody adds its part of the chunk, then shows it to the others.
static int reduce_by_parts(const ts_comm *comm, char *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const void **const part = comm->shared->part;
    const size_t element = ts_dtype_bytes(dtype);
    const ts_part own = ts_split(count, comm->size, comm->rank);
    const size_t first = (size_t)own.first * element, end = first + (size_t)own.count * element;
    char *const out = begin_step(comm);
    memcpy(out, data, first);
    memcpy(out + end, data + end, (size_t)count * element - end);
    TS_TRY(meet(comm));
    for (int rank = 0; rank < comm->size; rank++) {
        part[rank] = (rank == comm->rank ? data : buffer_of(comm, rank)) + first;
    }
    char *const sum = begin_step(comm);
    ts_reduce_parts(sum, part, comm->size, own.count, dtype, op);
    TS_TRY(meet(comm));
    for (int rank = 0; rank < comm->size; rank++) {
        const ts_part p = ts_split(count, comm->size, rank);
        copy(data + (size_t)p.first * element, buffer_of(comm, rank), p.count, element);
    }
    return TS_OK;
}

static int all_reduce(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const size_t element = ts_dtype_bytes(dtype);
    const int64_t step = step_count(1, element);
    const bool direct = comm->size == 2 || count * (int64_t)element <= DIRECT_BYTES;
    for (int64_t first = 0; first < count; first += step) {
        char *const at = (char *)data + (size_t)first * element;
        TS_TRY((direct ? reduce_directly : reduce_by_parts)(comm, at, in_step(count, first, step), dtype, op));
    }
    return TS_OK;
}

static int broadcast(ts_comm *comm, void *data, int64_t bytes, int root) {
    const int64_t step = step_count(1, 1);
    for (int64_t first = 0; first < bytes; first += step) {
        char *const out = begin_step(comm), *const at = (char *)data + first;
        const int64_t n = in_step(bytes, first, step);
        if (comm->rank == root) {
            copy(out, at, n, 1);
        }
        TS_TRY(meet(comm));
        if (comm->rank != root) {
            copy(at, buffer_of(comm, root), n, 1);
        }
    }
    return TS_OK;
}

static int all_gather_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const size_t element = ts_dtype_bytes(dtype);
    const int64_t step = step_count(1, element), most = most_of(counts, comm->size);
    for (int64_t first = 0; first < most; first += step) {
        const size_t at = (size_t)first * element;
        copy(begin_step(comm), (const char *)send + at, in_step(counts[comm->rank], first, step), element);
        TS_TRY(meet(comm));
        char *part = receive;
        for (int rank = 0; rank < comm->size; rank++) {
            const char *const from = rank == comm->rank ? (const char *)send + at : buffer_of(comm, rank);
            if (from != part + at) {
                copy(part + at, from, in_step(counts[rank], first, step), element);
            }
            part += (size_t)counts[rank] * element;
        }
    }
    return TS_OK;
}

// Writes the step of every other rank's part into its share of this rank's buffer; returns where the own one lies.
static const char *deal_out(const ts_comm *comm, const char *part, const int64_t *counts, int64_t first, int64_t step,
                            size_t element) {
    char *const out = begin_step(comm);
    const char *own = NULL;
    for (int rank = 0; rank < comm->size; rank++) {
        const char *const from = part + (size_t)first * element;
        if (rank == comm->rank) {
            own = from;
        } else {
            copy(share_of(out, comm->rank, rank, step, element), from, in_step(counts[rank], first, step), element);
        }
        part += (size_t)counts[rank] * element;
    }
    return own;
}

// Where `rank` has put what is for this one.
static const char *dealt_by(const ts_comm *comm, int rank, const char *own, int64_t step, size_t element) {
    return rank == comm->rank ? own : share_of(buffer_of(comm, rank), rank, comm->rank, step, element);
}

static int reduce_scatter_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const size_t element = ts_dtype_bytes(dtype);
    const int64_t step = step_count(comm->size - 1, element), most = most_of(counts, comm->size);
    for (int64_t first = 0; first < most; first += step) {
        const char *const own = deal_out(comm, send, counts, first, step, element);
        TS_TRY(meet(comm));
        for (int rank = 0; rank < comm->size; rank++) {
            comm->shared->part[rank] = dealt_by(comm, rank, own, step, element);
        }
        ts_reduce_parts((char *)receive + (size_t)first * element, comm->shared->part, comm->size,
                        in_step(counts[comm->rank], first, step), dtype, TS_SUM);
    }
    return TS_OK;
}

// How many steps it takes only the senders know: the first one tells.
static int all_to_all_v(ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                        const int64_t *receive_counts, ts_dtype dtype) {
    const size_t element = ts_dtype_bytes(dtype);
    const int64_t step = step_count(comm->size - 1, element);
    int64_t most = 1;
    for (int64_t first = 0; first < most; first += step) {
        const char *const own = deal_out(comm, send, send_counts, first, step, element);
        mark_of(comm, comm->rank)->most[comm->shared->step % 2] = most_of(send_counts, comm->size);
        TS_TRY(meet(comm));
        char *to = (char *)receive + (size_t)first * element;
        for (int rank = 0; rank < comm->size; rank++) {
            const int64_t theirs = mark_of(comm, rank)->most[comm->shared->step % 2];
            most = theirs > most ? theirs : most;
            copy(to, dealt_by(comm, rank, own, step, element), in_step(receive_counts[rank], first, step), element);
            to += (size_t)receive_counts[rank] * element;
        }
    }
    return TS_OK;
}

static int barrier(ts_comm *comm) {
    begin_step(comm);
    return meet(comm);
}

const ts_transport ts_shared_transport = {
    .all_reduce = all_reduce,
    .broadcast = broadcast,
    .all_gather_v = all_gather_v,
    .reduce_scatter_v = reduce_scatter_v,
    .all_to_all_v = all_to_all_v,
    .barrier = barrier,
    .reduce_scatter_v_start = ts_mpi_reduce_scatter_v_start,
    .all_gather_v_start = ts_mpi_all_gather_v_start,
    .ring_start = ts_mpi_ring_start,
    .wait = ts_request_wait,
};
