// SPDX-License-Identifier: Apache-2.0
// Collectives between ranks of one host that read each other's memory: each byte is copied once, by the system, from
// where it is to where it is wanted. A first step tells where the data lies, a last one that nobody reads any more.
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "core/base/split.h"
#include "core/base/status.h"
#include "core/comm/reduce.h"
#include "core/comm/shared.h"

enum { SMALL_BYTES = 8192 };  // all-to-all: parts up to here go through the buffers

int ts_shared_read(const ts_comm *comm, int rank, size_t offset, void *to, size_t bytes) {
    const ts_shared_mark *mark = ts_shared_mark_of(comm, rank);
    const char *from = (const char *)mark->data[comm->shared->step % 2] + offset;
    for (char *at = to; bytes > 0;) {
        const struct iovec local = {at, bytes}, remote = {(void *)(uintptr_t)from, bytes};
        const ssize_t n = process_vm_readv(mark->pid, &local, 1, &remote, 1, 0);
        if (n <= 0) {
            return TS_FAIL(TS_EPEER, "cannot read the memory of rank %d: %s", rank, n ? strerror(errno) : "it ended");
        }
        at += n;
        from += n;
        bytes -= (size_t)n;
    }
    return TS_OK;
}

// Shows `data` to the others; they may read it until the next step is met.
static int show(const ts_comm *comm, const void *data) {
    ts_shared_begin(comm);
    ts_shared_mark_of(comm, comm->rank)->data[comm->shared->step % 2] = data;
    return ts_shared_meet(comm);
}

static size_t bytes_before(const int64_t *counts, int rank, size_t element) {
    int64_t sum = 0;
    for (int r = 0; r < rank; r++) {
        sum += counts[r];
    }
    return (size_t)sum * element;
}

// Sums elements [first, first + count) of what all ranks show, this one's being `own`.
static int reduce(const ts_comm *comm, const char *own, int64_t first, int64_t count, char *out, ts_dtype dtype,
                  ts_reduce_op op) {
    const size_t element = ts_dtype_bytes(dtype);
    const int64_t chunk = TS_SHARED_READ / (int64_t)element;
    for (int64_t done = 0; done < count; done += chunk) {
        const int64_t n = count - done < chunk ? count - done : chunk;
        const size_t offset = (size_t)(first + done) * element;
        char *scratch = comm->shared->scratch;
        for (int rank = 0; rank < comm->size; rank++) {
            comm->shared->part[rank] = own + offset;
            if (rank != comm->rank) {
                TS_TRY(ts_shared_read(comm, rank, offset, scratch, (size_t)n * element));
                comm->shared->part[rank] = scratch;
                scratch += TS_SHARED_READ;
            }
        }
        ts_reduce_parts(out + (size_t)done * element, comm->shared->part, comm->size, n, dtype, op);
    }
    return TS_OK;
}

static int reduce_scatter_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const int64_t first = (int64_t)bytes_before(counts, comm->rank, 1);
    TS_TRY(show(comm, send));
    TS_TRY(reduce(comm, send, first, counts[comm->rank], receive, dtype, TS_SUM));
    return show(comm, NULL);
}

static int all_reduce(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const size_t element = ts_dtype_bytes(dtype);
    const ts_part own = ts_split(count, comm->size, comm->rank);
    TS_TRY(show(comm, data));
    TS_TRY(reduce(comm, data, own.first, own.count, (char *)data + (size_t)own.first * element, dtype, op));
    TS_TRY(show(comm, data));
    for (int step = 1; step < comm->size; step++) {
        const int rank = (comm->rank + step) % comm->size;  // not all from the same one at a time
        const ts_part p = ts_split(count, comm->size, rank);
        const size_t offset = (size_t)p.first * element;
        TS_TRY(ts_shared_read(comm, rank, offset, (char *)data + offset, (size_t)p.count * element));
    }
    return show(comm, NULL);
}

static int all_gather_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const size_t element = ts_dtype_bytes(dtype);
    TS_TRY(show(comm, send));
    for (int step = 0; step < comm->size; step++) {
        const int rank = (comm->rank + step) % comm->size;
        char *const part = (char *)receive + bytes_before(counts, rank, element);
        const size_t bytes = (size_t)counts[rank] * element;
        if (step > 0) {
            TS_TRY(ts_shared_read(comm, rank, 0, part, bytes));
        } else if (part != send && bytes > 0) {
            memcpy(part, send, bytes);
        }
    }
    return show(comm, NULL);
}

// ---- all-to-all: counts are known to the two ranks concerned only

// Each rank tells in its buffer where its parts begin. Parts that are small enough for a place there follow.
static size_t small_bytes(const ts_comm *comm) {
    const size_t room = TS_SHARED_BUFFER / (size_t)comm->size - sizeof(size_t);
    return room < SMALL_BYTES ? room : SMALL_BYTES;
}

static char *small_part(const ts_comm *comm, char *buffer, int to) {
    return buffer + (size_t)comm->size * sizeof(size_t) + (size_t)to * small_bytes(comm);
}

static void offer_parts(const ts_comm *comm, const char *send, const int64_t *counts, size_t element) {
    char *const buffer = ts_shared_begin(comm);
    ts_shared_mark *const mark = ts_shared_mark_of(comm, comm->rank);
    const int parity = (int)(comm->shared->step % 2);
    size_t offset = 0, most = 0;
    for (int rank = 0; rank < comm->size; rank++) {
        const size_t bytes = (size_t)counts[rank] * element;
        memcpy(buffer + (size_t)rank * sizeof offset, &offset, sizeof offset);
        if (bytes > 0 && bytes <= small_bytes(comm) && rank != comm->rank) {
            memcpy(small_part(comm, buffer, rank), send + offset, bytes);
        }
        offset += bytes;
        most = bytes > most ? bytes : most;
    }
    mark->data[parity] = send;
    mark->most[parity] = (int64_t)most;
}

static int take_part(const ts_comm *comm, int rank, char *to, size_t bytes) {
    char *const buffer = ts_shared_buffer(comm, rank);
    if (bytes <= small_bytes(comm)) {
        memcpy(to, small_part(comm, buffer, comm->rank), bytes);
        return TS_OK;
    }
    size_t offset;
    memcpy(&offset, buffer + (size_t)comm->rank * sizeof offset, sizeof offset);
    return ts_shared_read(comm, rank, offset, to, bytes);
}

static int all_to_all_v(ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                        const int64_t *receive_counts, ts_dtype dtype) {
    const size_t element = ts_dtype_bytes(dtype);
    offer_parts(comm, send, send_counts, element);
    TS_TRY(ts_shared_meet(comm));
    const int parity = (int)(comm->shared->step % 2);
    bool small = true;
    for (int step = 0; step < comm->size; step++) {
        const int rank = (comm->rank + step) % comm->size;
        const size_t bytes = (size_t)receive_counts[rank] * element;
        char *const to = (char *)receive + bytes_before(receive_counts, rank, element);
        small = small && ts_shared_mark_of(comm, rank)->most[parity] <= (int64_t)small_bytes(comm);
        if (bytes > 0 && step == 0) {
            memcpy(to, (const char *)send + bytes_before(send_counts, rank, element), bytes);
        } else if (bytes > 0) {
            TS_TRY(take_part(comm, rank, to, bytes));
        }
    }
    return small ? TS_OK : show(comm, NULL);  // nobody reads this rank's memory any more
}

const ts_transport ts_shared_reading = {
    .all_reduce = all_reduce,
    .all_gather_v = all_gather_v,
    .reduce_scatter_v = reduce_scatter_v,
    .all_to_all_v = all_to_all_v,
};
