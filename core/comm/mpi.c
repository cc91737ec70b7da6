// SPDX-License-Identifier: Apache-2.0
// The transport over MPI, for host memory.
#include <stdlib.h>
#include <string.h>

#include "core/base/status.h"
#include "core/comm/transport.h"

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

static MPI_Datatype number_type(ts_dtype dtype) {
    switch (dtype) {
    case TS_F32:
        return MPI_FLOAT;
    case TS_F64:
        return MPI_DOUBLE;
    case TS_I64:
        return MPI_INT64_T;
    case TS_I32:
        return MPI_INT32_T;
    default:
        return MPI_DATATYPE_NULL;
    }
}

// For moving only: any type of the same size.
static MPI_Datatype opaque_type(ts_dtype dtype) {
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

static int summable(ts_dtype dtype) {
    if (number_type(dtype) == MPI_DATATYPE_NULL) {
        return TS_FAIL(TS_EINTERNAL, "%s cannot be reduced over MPI; convert to F32 first", ts_dtype_name(dtype));
    }
    return TS_OK;
}

static MPI_Op reduce_op(ts_reduce_op op) {
    return op == TS_SUM ? MPI_SUM : op == TS_MAX ? MPI_MAX : MPI_MIN;
}

// Elements of the next MPI call when `left` are to go.
static int next_chunk(int64_t left) {
    return (int)(left < ts_mpi_chunk ? left : ts_mpi_chunk);
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

// ---- collectives

static int all_reduce(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    TS_TRY(summable(dtype));
    char *at = data;
    for (int64_t left = count; left > 0;) {
        const int n = next_chunk(left);
        TRY_MPI(MPI_Allreduce(MPI_IN_PLACE, at, n, number_type(dtype), reduce_op(op), comm->mpi));
        at += (size_t)n * ts_dtype_bytes(dtype);
        left -= n;
    }
    return TS_OK;
}

static int broadcast(ts_comm *comm, void *data, int64_t bytes, int root) {
    char *at = data;
    for (int64_t left = bytes; left > 0;) {
        const int n = next_chunk(left);
        TRY_MPI(MPI_Bcast(at, n, MPI_BYTE, root, comm->mpi));
        at += n;
        left -= n;
    }
    return TS_OK;
}

static int all_gather_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const size_t element = ts_dtype_bytes(dtype);
    char *const own = (char *)receive + (size_t)sum_of(counts, comm->rank) * element;
    if (send != own && counts[comm->rank] > 0) {
        memcpy(own, send, (size_t)counts[comm->rank] * element);
    }
    if (fill_counts(comm, counts)) {
        TRY_MPI(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, receive, comm->counts, comm->counts + comm->size,
                               opaque_type(dtype), comm->mpi));
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

static int reduce_scatter_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    TS_TRY(summable(dtype));
    if (fill_counts(comm, counts)) {
        TRY_MPI(MPI_Reduce_scatter(send, receive, comm->counts, number_type(dtype), MPI_SUM, comm->mpi));
        return TS_OK;
    }
    const char *from = send;
    for (int rank = 0; rank < comm->size; rank++) {
        char *to = rank == comm->rank ? receive : NULL;
        for (int64_t left = counts[rank]; left > 0;) {
            const int n = next_chunk(left);
            const size_t bytes = (size_t)n * ts_dtype_bytes(dtype);
            TRY_MPI(MPI_Reduce(from, to, n, number_type(dtype), MPI_SUM, rank, comm->mpi));
            from += bytes;
            to = to ? to + bytes : NULL;
            left -= n;
        }
    }
    return TS_OK;
}

// Sends to one rank while receiving from another, in as many chunks as the longer of the two needs.
static int exchange(ts_comm *comm, const char *send, int64_t send_count, int to, char *receive, int64_t receive_count,
                    int from, ts_dtype dtype) {
    const MPI_Datatype type = opaque_type(dtype);
    while (send_count > 0 || receive_count > 0) {
        const int out = next_chunk(send_count), in = next_chunk(receive_count);
        TRY_MPI(MPI_Sendrecv(send, out, type, out ? to : MPI_PROC_NULL, 0, receive, in, type, in ? from : MPI_PROC_NULL,
                             0, comm->mpi, MPI_STATUS_IGNORE));
        send += (size_t)out * ts_dtype_bytes(dtype);
        receive += (size_t)in * ts_dtype_bytes(dtype);
        send_count -= out;
        receive_count -= in;
    }
    return TS_OK;
}

// Pairwise: in step s to the rank s above while from the rank s below. Unlike MPI_Alltoallv, ranks need not agree on
// whether their counts fit into ints.
static int all_to_all_v(ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                        const int64_t *receive_counts, ts_dtype dtype) {
    const size_t element = ts_dtype_bytes(dtype);
    for (int step = 0; step < comm->size; step++) {
        const int to = (comm->rank + step) % comm->size, from = (comm->rank + comm->size - step) % comm->size;
        const char *const out = (const char *)send + (size_t)sum_of(send_counts, to) * element;
        char *const in = (char *)receive + (size_t)sum_of(receive_counts, from) * element;
        if (step > 0) {
            TS_TRY(exchange(comm, out, send_counts[to], to, in, receive_counts[from], from, dtype));
        } else if (send_counts[to] > 0) {
            memcpy(in, out, (size_t)send_counts[to] * element);
        }
    }
    return TS_OK;
}

static int barrier(ts_comm *comm) {
    TRY_MPI(MPI_Barrier(comm->mpi));
    return TS_OK;
}

const ts_transport ts_mpi_transport = {
    .all_reduce = all_reduce,
    .broadcast = broadcast,
    .all_gather_v = all_gather_v,
    .reduce_scatter_v = reduce_scatter_v,
    .all_to_all_v = all_to_all_v,
    .barrier = barrier,
};
