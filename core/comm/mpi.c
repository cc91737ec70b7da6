// SPDX-License-Identifier: Apache-2.0
// The transport over MPI, for host memory.
//
// Sums are made here, not by MPI, whose order is its own affair: parts travel to the rank that owns their sum and are
// added there in the order of the ranks. Asynchronous forms are the same messages, waited for later.
#include <stdlib.h>
#include <string.h>

#include "core/base/split.h"
#include "core/base/status.h"
#include "core/comm/reduce.h"
#include "core/comm/request.h"

enum {
    SMALL_BYTES = 32 * 1024,    // of all ranks together: gathered whole by each of them, in fewer messages
    WAITED_WINDOW = 4 << 20,    // under way while somebody waits for them: what a cache holds
    STARTED_WINDOW = 64 << 20,  // under way beside computation
};

int64_t ts_mpi_chunk = (int64_t)1 << 30;

#define TRY_MPI(call) TS_TRY(ts_mpi_check((call), #call))

int ts_mpi_check(int code, const char *call) {
    if (code == MPI_SUCCESS) {
        return TS_OK;
    }
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;
    MPI_Error_string(code, text, &length);
    return TS_FAIL(TS_EPEER, "%.*s failed: %s", (int)strcspn(call, "("), call, text);
}

int ts_mpi_next_chunk(int64_t left) {
    return (int)(left < ts_mpi_chunk ? left : ts_mpi_chunk);
}

MPI_Datatype ts_mpi_type(ts_dtype dtype) {
    switch (ts_dtype_bytes(dtype)) {
    case 1:
        return MPI_UINT8_T;
    case 2:
        return MPI_UINT16_T;
    case 4:
        return MPI_UINT32_T;
    default:
        return MPI_UINT64_T;
    }
}

static int64_t sum_of(const int64_t *counts, int n) {
    int64_t sum = 0;
    for (int i = 0; i < n; i++) {
        sum += counts[i];
    }
    return sum;
}

// Fills comm->counts with MPI's counts and displacements; false when they do not fit into ints.
static bool fill_counts(ts_comm *comm, const int64_t *counts) {
    if (sum_of(counts, comm->size) > ts_mpi_chunk) {
        return false;
    }
    int *const count = comm->counts, *const displacement = comm->counts + comm->size;
    for (int rank = 0, at = 0; rank < comm->size; rank++) {
        count[rank] = (int)counts[rank];
        displacement[rank] = at;
        at += count[rank];
    }
    return true;
}

static int broadcast(ts_comm *comm, void *data, int64_t bytes, int root) {
    char *at = data;
    for (int64_t left = bytes; left > 0;) {
        const int n = ts_mpi_next_chunk(left);
        TRY_MPI(MPI_Bcast(at, n, MPI_BYTE, root, comm->mpi));
        at += n;
        left -= n;
    }
    return TS_OK;
}

// Puts this rank's part into its place among all.
static void place_own(const ts_comm *comm, const void *send, void *receive, const int64_t *counts, size_t element) {
    char *const own = (char *)receive + (size_t)sum_of(counts, comm->rank) * element;
    if (send != own && counts[comm->rank] > 0) {
        memcpy(own, send, (size_t)counts[comm->rank] * element);
    }
}

static int all_gather_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const size_t element = ts_dtype_bytes(dtype);
    place_own(comm, send, receive, counts, element);
    if (fill_counts(comm, counts)) {
        TRY_MPI(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, receive, comm->counts, comm->counts + comm->size,
                               ts_mpi_type(dtype), comm->mpi));
        return TS_OK;
    }
    char *at = receive;
    for (int rank = 0; rank < comm->size; rank++) {
        const int64_t bytes = counts[rank] * (int64_t)element;
        TS_TRY(broadcast(comm, at, bytes, rank));
        at += bytes;
    }
    return TS_OK;
}

static int reduce(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                  ts_reduce_op op) {
    ts_request *request;
    TS_TRY(ts_request_reduce(&request, comm, send, receive, counts, dtype, op, WAITED_WINDOW));
    return ts_request_wait(request);
}

static int reduce_scatter_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    return reduce(comm, send, receive, counts, dtype, TS_SUM);
}

// One exchange instead of two: every rank gathers all data and reduces all of it.
static int all_reduce_small(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    ts_request *request;  // for its memory alone
    const size_t bytes = (size_t)count * ts_dtype_bytes(dtype), parts = (size_t)comm->size * sizeof(void *);
    TS_TRY(ts_request_take(&request, comm, TS_ALL_REDUCE, 0, parts + (size_t)comm->size * bytes));
    const void **const part = ts_request_scratch(request);
    char *const gathered = (char *)(part + comm->size);
    for (int rank = 0; rank < comm->size; rank++) {
        part[rank] = gathered + (size_t)rank * bytes;
    }
    TRY_MPI(MPI_Allgather(data, (int)bytes, MPI_BYTE, gathered, (int)bytes, MPI_BYTE, comm->mpi));
    ts_reduce_parts(data, part, comm->size, count, dtype, op);
    return ts_request_wait(request);
}

static int all_reduce(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const size_t element = ts_dtype_bytes(dtype);
    if (count <= SMALL_BYTES / (int64_t)element / comm->size && count <= ts_mpi_chunk) {
        return all_reduce_small(comm, data, count, dtype, op);
    }
    for (int rank = 0; rank < comm->size; rank++) {
        comm->parts[rank] = ts_split(count, comm->size, rank).count;
    }
    char *const own = (char *)data + (size_t)ts_split_first(count, comm->size, comm->rank) * element;
    TS_TRY(reduce(comm, data, own, comm->parts, dtype, op));
    return all_gather_v(comm, own, data, comm->parts, dtype);
}

static int all_to_all_v(ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                        const int64_t *receive_counts, ts_dtype dtype) {
    const size_t element = ts_dtype_bytes(dtype);
    const char *out = send;
    char *in = receive;
    ts_request *request;
    int64_t messages = 0;
    for (int rank = 0; rank < comm->size; rank++) {
        messages += ts_request_messages(send_counts[rank]) + ts_request_messages(receive_counts[rank]);
    }
    TS_TRY(ts_request_take(&request, comm, TS_ALL_TO_ALL, messages, 0));
    for (int rank = 0; rank < comm->size; rank++) {
        if (rank != comm->rank) {
            TS_TRY(ts_request_receive(request, in, receive_counts[rank], dtype, rank));
            TS_TRY(ts_request_send(request, out, send_counts[rank], dtype, rank));
        } else if (send_counts[rank] > 0) {
            memcpy(in, out, (size_t)send_counts[rank] * element);
        }
        out += (size_t)send_counts[rank] * element;
        in += (size_t)receive_counts[rank] * element;
    }
    return ts_request_wait(request);
}

static int barrier(ts_comm *comm) {
    TRY_MPI(MPI_Barrier(comm->mpi));
    return TS_OK;
}

// ---- asynchronous forms

int ts_mpi_reduce_scatter_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                                  ts_request **out) {
    return ts_request_reduce(out, comm, send, receive, counts, dtype, TS_SUM, STARTED_WINDOW);
}

int ts_mpi_all_gather_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                              ts_request **out) {
    int64_t messages = ts_request_messages(counts[comm->rank]) * (comm->size - 1);
    for (int rank = 0; rank < comm->size; rank++) {
        messages += rank == comm->rank ? 0 : ts_request_messages(counts[rank]);
    }
    TS_TRY(ts_request_take(out, comm, TS_ALL_GATHER, messages, 0));
    place_own(comm, send, receive, counts, ts_dtype_bytes(dtype));
    char *at = receive;
    for (int rank = 0; rank < comm->size; rank++) {
        if (rank != comm->rank) {
            TS_TRY(ts_request_receive(*out, at, counts[rank], dtype, rank));
            TS_TRY(ts_request_send(*out, send, counts[comm->rank], dtype, rank));
        }
        at += (size_t)counts[rank] * ts_dtype_bytes(dtype);
    }
    return TS_OK;
}

int ts_mpi_ring_start(ts_comm *comm, const void *send, int64_t send_count, void *receive, int64_t receive_count,
                      ts_dtype dtype, ts_request **out) {
    const int next = (comm->rank + 1) % comm->size, previous = (comm->rank + comm->size - 1) % comm->size;
    TS_TRY(
        ts_request_take(out, comm, TS_RING, ts_request_messages(send_count) + ts_request_messages(receive_count), 0));
    TS_TRY(ts_request_receive(*out, receive, receive_count, dtype, previous));
    return ts_request_send(*out, send, send_count, dtype, next);
}

int64_t ts_reduce_scatter_scratch(const ts_comm *comm, const int64_t *counts, ts_dtype dtype) {
    return ts_comm_size(comm) == 1 ? 0 : ts_request_scratch_bytes(comm->size, counts, dtype, STARTED_WINDOW);
}

const ts_transport ts_mpi_transport = {
    .all_reduce = all_reduce,
    .broadcast = broadcast,
    .all_gather_v = all_gather_v,
    .reduce_scatter_v = reduce_scatter_v,
    .all_to_all_v = all_to_all_v,
    .barrier = barrier,
    .reduce_scatter_v_start = ts_mpi_reduce_scatter_v_start,
    .all_gather_v_start = ts_mpi_all_gather_v_start,
    .ring_start = ts_mpi_ring_start,
};
