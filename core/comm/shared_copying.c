// SPDX-License-Identifier: Apache-2.0
// Collectives through the buffers of a shared segment: what is sent is written there, and read by those it is for.
#include <string.h>

#include "core/base/split.h"
#include "core/base/status.h"
#include "core/comm/reduce.h"
#include "core/comm/shared.h"

enum {
    LINE = 64,
    DIRECT_BYTES = 4096  // all-reduce: up to here each rank adds everything up by itself
};

int64_t ts_shared_chunk = TS_SHARED_BUFFER;

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
    copy(ts_shared_begin(comm), data, count, ts_dtype_bytes(dtype));
    TS_TRY(ts_shared_meet(comm));
    for (int rank = 0; rank < comm->size; rank++) {
        part[rank] = rank == comm->rank ? data : ts_shared_buffer(comm, rank);
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
    char *const out = ts_shared_begin(comm);
    memcpy(out, data, first);
    memcpy(out + end, data + end, (size_t)count * element - end);
    TS_TRY(ts_shared_meet(comm));
    for (int rank = 0; rank < comm->size; rank++) {
        part[rank] = (rank == comm->rank ? data : ts_shared_buffer(comm, rank)) + first;
    }
    char *const sum = ts_shared_begin(comm);
    ts_reduce_parts(sum, part, comm->size, own.count, dtype, op);
    TS_TRY(ts_shared_meet(comm));
    for (int rank = 0; rank < comm->size; rank++) {
        const ts_part p = ts_split(count, comm->size, rank);
        copy(data + (size_t)p.first * element, ts_shared_buffer(comm, rank), p.count, element);
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
        char *const out = ts_shared_begin(comm), *const at = (char *)data + first;
        const int64_t n = in_step(bytes, first, step);
        if (comm->rank == root) {
            copy(out, at, n, 1);
        }
        TS_TRY(ts_shared_meet(comm));
        if (comm->rank != root) {
            copy(at, ts_shared_buffer(comm, root), n, 1);
        }
    }
    return TS_OK;
}

static int all_gather_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const size_t element = ts_dtype_bytes(dtype);
    const int64_t step = step_count(1, element), most = most_of(counts, comm->size);
    for (int64_t first = 0; first < most; first += step) {
        const size_t at = (size_t)first * element;
        copy(ts_shared_begin(comm), (const char *)send + at, in_step(counts[comm->rank], first, step), element);
        TS_TRY(ts_shared_meet(comm));
        char *part = receive;
        for (int rank = 0; rank < comm->size; rank++) {
            const char *const from = rank == comm->rank ? (const char *)send + at : ts_shared_buffer(comm, rank);
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
    char *const out = ts_shared_begin(comm);
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
    return rank == comm->rank ? own : share_of(ts_shared_buffer(comm, rank), rank, comm->rank, step, element);
}

static int reduce_scatter_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const size_t element = ts_dtype_bytes(dtype);
    const int64_t step = step_count(comm->size - 1, element), most = most_of(counts, comm->size);
    for (int64_t first = 0; first < most; first += step) {
        const char *const own = deal_out(comm, send, counts, first, step, element);
        TS_TRY(ts_shared_meet(comm));
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
        ts_shared_mark_of(comm, comm->rank)->most[comm->shared->step % 2] = most_of(send_counts, comm->size);
        TS_TRY(ts_shared_meet(comm));
        char *to = (char *)receive + (size_t)first * element;
        for (int rank = 0; rank < comm->size; rank++) {
            const int64_t theirs = ts_shared_mark_of(comm, rank)->most[comm->shared->step % 2];
            most = theirs > most ? theirs : most;
            copy(to, dealt_by(comm, rank, own, step, element), in_step(receive_counts[rank], first, step), element);
            to += (size_t)receive_counts[rank] * element;
        }
    }
    return TS_OK;
}

const ts_transport ts_shared_copying = {
    .all_reduce = all_reduce,
    .broadcast = broadcast,
    .all_gather_v = all_gather_v,
    .reduce_scatter_v = reduce_scatter_v,
    .all_to_all_v = all_to_all_v,
};
