// SPDX-License-Identifier: Apache-2.0
// The collectives as callers see them: a lone rank is served here, everything else is timed, counted and passed on.
#include "core/comm/comm.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/base/status.h"
#include "core/comm/transport.h"

int ts_comm_new(ts_comm **out, MPI_Comm mpi) {
    *out = NULL;
    ts_comm *comm = ts_calloc(1, sizeof *comm);
    if (!comm) {
        return TS_ERESOURCE;
    }
    *comm = (ts_comm){.rank = 0, .size = 1, .transport = &ts_mpi_transport, .mpi = mpi};
    if (mpi != MPI_COMM_NULL) {
        MPI_Comm_rank(mpi, &comm->rank);
        MPI_Comm_size(mpi, &comm->size);
    }
    comm->counts = ts_malloc(2 * (size_t)comm->size * sizeof *comm->counts);
    if (!comm->counts) {
        free(comm);
        return TS_ERESOURCE;
    }
    *out = comm;
    return TS_OK;
}

void ts_comm_delete(ts_comm **comm) {
    if (!*comm) {
        return;
    }
    for (ts_request *request = (*comm)->free_requests; request;) {
        ts_request *next = request->next_free;
        free(request->parts);
        free(request);
        request = next;
    }
    if ((*comm)->mpi != MPI_COMM_NULL && (*comm)->mpi != MPI_COMM_WORLD) {
        MPI_Comm_free(&(*comm)->mpi);
    }
    free((*comm)->counts);
    free(*comm);
    *comm = NULL;
}

int ts_comm_rank(const ts_comm *comm) {
    return comm->rank;
}

int ts_comm_size(const ts_comm *comm) {
    return comm->size;
}

ts_comm_counters ts_comm_get_counters(const ts_comm *comm) {
    return comm->counters;
}

// Adds a finished call to the counters; returns its status.
static int account(ts_comm *comm, double start, int64_t bytes_sent, int status) {
    comm->counters.calls++;
    comm->counters.bytes_sent += (uint64_t)bytes_sent;
    comm->counters.seconds += ts_clock_seconds() - start;
    return status;
}

// What one rank sends when each of n holds `bytes` and they are reduced or passed round once.
static int64_t share(const ts_comm *comm, int64_t bytes) {
    return bytes / comm->size * (comm->size - 1) + bytes % comm->size * (comm->size - 1) / comm->size;
}

static int64_t sum_of_others(const ts_comm *comm, const int64_t *counts) {
    int64_t sum = 0;
    for (int rank = 0; rank < comm->size; rank++) {
        sum += rank == comm->rank ? 0 : counts[rank];
    }
    return sum;
}

// ---- collectives

int ts_all_reduce(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    if (comm->size == 1) {
        return TS_OK;
    }
    const double start = ts_clock_seconds();
    const int64_t sent = 2 * share(comm, count * (int64_t)ts_dtype_bytes(dtype));
    return account(comm, start, sent, comm->transport->all_reduce(comm, data, count, dtype, op));
}

int ts_broadcast(ts_comm *comm, void *data, int64_t bytes, int root) {
    if (comm->size == 1) {
        return TS_OK;
    }
    const double start = ts_clock_seconds();
    return account(comm, start, share(comm, bytes), comm->transport->broadcast(comm, data, bytes, root));
}

// The one part there is, moved unless it lies in place.
static int copy_own(const void *send, void *receive, int64_t count, ts_dtype dtype) {
    if (send != receive && count > 0) {
        memcpy(receive, send, (size_t)count * ts_dtype_bytes(dtype));
    }
    return TS_OK;
}

int ts_all_gather_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    if (comm->size == 1) {
        return copy_own(send, receive, counts[0], dtype);
    }
    const double start = ts_clock_seconds();
    const int64_t sent = counts[comm->rank] * (int64_t)ts_dtype_bytes(dtype) * (comm->size - 1);
    return account(comm, start, sent, comm->transport->all_gather_v(comm, send, receive, counts, dtype));
}

int ts_reduce_scatter_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    if (comm->size == 1) {
        return copy_own(send, receive, counts[0], dtype);
    }
    const double start = ts_clock_seconds();
    const int64_t sent = sum_of_others(comm, counts) * (int64_t)ts_dtype_bytes(dtype);
    return account(comm, start, sent, comm->transport->reduce_scatter_v(comm, send, receive, counts, dtype));
}

int ts_all_to_all_v(ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                    const int64_t *receive_counts, ts_dtype dtype) {
    TS_ASSERT(send_counts[comm->rank] == receive_counts[comm->rank]);
    if (comm->size == 1) {
        return copy_own(send, receive, send_counts[0], dtype);
    }
    const double start = ts_clock_seconds();
    const int64_t sent = sum_of_others(comm, send_counts) * (int64_t)ts_dtype_bytes(dtype);
    return account(comm, start, sent,
                   comm->transport->all_to_all_v(comm, send, send_counts, receive, receive_counts, dtype));
}

int ts_barrier(ts_comm *comm) {
    if (comm->size == 1) {
        return TS_OK;
    }
    const double start = ts_clock_seconds();
    return account(comm, start, 0, comm->transport->barrier(comm));
}

// ---- under way

static ts_request *take_request(ts_comm *comm) {
    ts_request *request = comm->free_requests;
    if (request) {
        comm->free_requests = request->next_free;
        return request;
    }
    request = ts_calloc(1, sizeof *request);
    if (request) {
        request->comm = comm;
    }
    return request;
}

int ts_all_reduce_start(ts_comm *comm, float *data, int64_t count, ts_request **out) {
    *out = NULL;
    const double start = ts_clock_seconds();
    ts_request *request = take_request(comm);
    if (!request) {
        return TS_ERESOURCE;
    }
    *out = request;
    if (comm->size == 1) {
        return TS_OK;
    }
    const int64_t sent = 2 * share(comm, count * (int64_t)sizeof *data);
    return account(comm, start, sent, comm->transport->all_reduce_start(request, data, count));
}

int ts_wait(ts_request **request) {
    if (!*request) {
        return TS_OK;
    }
    ts_comm *comm = (*request)->comm;
    const double start = ts_clock_seconds();
    const int status = comm->size == 1 ? TS_OK : comm->transport->wait(*request);
    comm->counters.seconds += ts_clock_seconds() - start;
    (*request)->next_free = comm->free_requests;
    comm->free_requests = *request;
    *request = NULL;
    return status;
}
