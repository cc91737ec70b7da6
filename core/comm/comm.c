// SPDX-License-Identifier: Apache-2.0
// The collectives as callers see them: a lone rank is served here, everything else is timed, counted and passed on.
#include "core/comm/comm.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/base/status.h"
#include "core/comm/reduce.h"
#include "core/comm/request.h"

ts_transport_choice ts_transport_wanted = TS_TRANSPORT_AUTO;

// TESSERA_TRANSPORT, read when the world is opened.
static int read_environment(void) {
    static const char *const names[] = {
        [TS_TRANSPORT_AUTO] = "auto", [TS_TRANSPORT_MPI] = "mpi", [TS_TRANSPORT_SHARED] = "shared"};
    const char *const text = getenv("TESSERA_TRANSPORT");
    if (!text) {
        return TS_OK;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!strcmp(text, names[i])) {
            ts_transport_wanted = (ts_transport_choice)i;
            return TS_OK;
        }
    }
    return TS_FAIL(TS_EUSAGE, "TESSERA_TRANSPORT=%.40s: use auto, mpi or shared", text);
}

int ts_comm_new(ts_comm **out, MPI_Comm mpi) {
    *out = NULL;
    if (mpi == MPI_COMM_WORLD) {
        TS_TRY(read_environment());
        TS_TRY(ts_device_read_environment());
    }
    ts_comm *comm = ts_calloc(1, sizeof *comm);
    if (!comm) {
        return TS_ERESOURCE;
    }
    *comm = (ts_comm){.rank = 0, .size = 1, .transport = &ts_mpi_transport, .mpi = mpi};
    if (mpi != MPI_COMM_NULL) {
        MPI_Comm_rank(mpi, &comm->rank);
        MPI_Comm_size(mpi, &comm->size);
        if (comm->size > 1 && ts_transport_wanted != TS_TRANSPORT_MPI && ts_shared_possible(mpi)) {
            comm->transport = &ts_shared_transport;
        }
    }
    comm->counts = ts_malloc(2 * (size_t)comm->size * sizeof *comm->counts);
    comm->parts = ts_malloc((size_t)comm->size * sizeof *comm->parts);
    if (!comm->counts || !comm->parts) {
        ts_comm_delete(&comm);
        return TS_ERESOURCE;
    }
    *out = comm;
    return TS_OK;
}

int ts_comm_imagine(ts_comm **out, int rank, int size) {
    TS_TRY(ts_comm_new(out, MPI_COMM_NULL));
    (*out)->rank = rank;
    (*out)->size = size;
    (*out)->transport = NULL;
    return TS_OK;
}

void ts_comm_delete(ts_comm **comm) {
    if (!*comm) {
        return;
    }
    ts_device_close(*comm);
    if ((*comm)->mpi != MPI_COMM_NULL && (*comm)->mpi != MPI_COMM_WORLD) {
        MPI_Comm_free(&(*comm)->mpi);
    }
    ts_watch_forget(&(*comm)->watch);
    ts_request_delete_all(*comm);
    ts_shared_close(*comm);
    free((*comm)->counts);
    free((*comm)->parts);
    free(*comm);
    *comm = NULL;
}

int ts_comm_rank(const ts_comm *comm) {
    return comm ? comm->rank : 0;
}

int ts_comm_size(const ts_comm *comm) {
    return comm ? comm->size : 1;
}

int ts_comm_local_rank(const ts_comm *world) {
    return world ? world->local_rank : 0;
}

bool ts_comm_is_imagined(const ts_comm *comm) {
    return comm && !comm->transport && comm->size > 1;
}

// ---- counters

ts_comm_counters ts_comm_get_counters(const ts_comm *comm, ts_collective kind) {
    return comm->counters[kind];
}

ts_comm_counters ts_comm_total(const ts_comm *comm) {
    ts_comm_counters total = {0};
    for (int kind = 0; kind < TS_COLLECTIVE_COUNT; kind++) {
        total.calls += comm->counters[kind].calls;
        total.bytes_sent += comm->counters[kind].bytes_sent;
        total.seconds += comm->counters[kind].seconds;
    }
    return total;
}

void ts_comm_reset_counters(ts_comm *comm) {
    memset(comm->counters, 0, sizeof comm->counters);
}

const char *ts_collective_name(ts_collective kind) {
    static const char *const names[TS_COLLECTIVE_COUNT] = {
        [TS_ALL_REDUCE] = "all-reduce", [TS_BROADCAST] = "broadcast",
        [TS_ALL_GATHER] = "all-gather", [TS_REDUCE_SCATTER] = "reduce-scatter",
        [TS_ALL_TO_ALL] = "all-to-all", [TS_RING] = "ring",
        [TS_BARRIER] = "barrier"};
    return names[kind];
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

int64_t ts_comm_bytes(const ts_comm *comm, ts_collective kind, const int64_t *counts, ts_dtype dtype) {
    const int64_t element = (int64_t)ts_dtype_bytes(dtype);
    if (ts_comm_size(comm) == 1) {
        return 0;
    }
    switch (kind) {
    case TS_ALL_REDUCE:
        return 2 * share(comm, counts[0] * element);
    case TS_BROADCAST:
        return share(comm, counts[0] * element);
    case TS_ALL_GATHER:
        return counts[comm->rank] * element * (comm->size - 1);
    case TS_REDUCE_SCATTER:
    case TS_ALL_TO_ALL:
        return sum_of_others(comm, counts) * element;
    case TS_RING:
        return counts[0] * element;
    default:
        return 0;
    }
}

void ts_comm_count(ts_comm *comm, ts_collective kind, const int64_t *counts, ts_dtype dtype) {
    if (ts_comm_size(comm) > 1) {
        comm->counters[kind].calls++;
        comm->counters[kind].bytes_sent += (uint64_t)ts_comm_bytes(comm, kind, counts, dtype);
    }
}

// ---- entering and leaving

// Without shared memory there still is MPI, unless it was asked for. One line says so, not one for each axis and rank.
static int open_shared(ts_comm *comm) {
    static bool told;
    const int status = ts_shared_open(comm);
    if (status && ts_transport_wanted == TS_TRANSPORT_SHARED) {
        return status;
    }
    if (status) {
        if (comm->rank == 0 && !told) {
            TS_WARN("%s; going on over MPI", ts_error_text());
        }
        told = true;
        comm->transport = &ts_mpi_transport;
    }
    return TS_OK;
}

// Whose memory a call is about: that of both buffers. An empty one may be anywhere, or NULL.
static const ts_device *owner_of(const void *a, int64_t a_count, const void *b, int64_t b_count) {
    const ts_device *const a_device = ts_device_of(a), *const b_device = ts_device_of(b);
    const ts_device *const device = a_device->is_host ? b_device : a_device;
    TS_ASSERT((a_device == device || a_count == 0) && (b_device == device || b_count == 0));
    return device;
}

static int64_t sum_of(const ts_comm *comm, const int64_t *counts) {
    int64_t sum = 0;
    for (int rank = 0; rank < ts_comm_size(comm); rank++) {
        sum += counts[rank];
    }
    return sum;
}

// What every collective is on its way in.
typedef struct call {
    ts_collective kind;
    const int64_t *counts;  // as for ts_comm_bytes
    ts_dtype dtype;
    int detail;  // the operation or the root
    const ts_device *device;
} call;

// Every collective goes through here on its way in: it is published and the clock starts, what is under way moves on,
// and its transport is found.
static int begin(ts_comm *comm, const call *c, const ts_transport **transport) {
    *transport = comm->transport;
    if (!comm->transport) {
        return TS_FAIL(TS_EINTERNAL, "%s over %d imagined ranks: they serve for counting only",
                       ts_collective_name(c->kind), comm->size);
    }
    comm->entered = ts_watch_begin(comm, (int)c->kind, c->counts, c->dtype, c->detail);
    if (!c->device->is_host && !comm->device) {
        TS_TRY(ts_device_open(comm, c->device));
    }
    TS_ASSERT(c->device->is_host || c->device == comm->device);
    const bool by_host = c->device->is_host || comm->device_transport == &ts_staged_transport;
    if (by_host && comm->transport == &ts_shared_transport && !comm->shared) {
        TS_TRY(open_shared(comm));
    }
    if (!c->device->is_host) {
        *transport = comm->device_transport;
    }
    return ts_request_progress();
}

// And through here on its way out, with its status: adds `calls` and what was sent and spent to the counters.
static int account(ts_comm *comm, ts_collective kind, int calls, int64_t bytes_sent, int status) {
    ts_comm_counters *counters = &comm->counters[kind];
    counters->calls += (uint64_t)calls;
    counters->bytes_sent += (uint64_t)bytes_sent;
    counters->seconds += ts_clock_seconds() - comm->entered;
    ts_watch_end();
    return status;
}

// ---- collectives

int ts_all_reduce(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const ts_transport *t;
    TS_TRY(ts_reduce_check(dtype, false));
    if (ts_comm_size(comm) == 1) {
        return TS_OK;
    }
    TS_TRY(begin(comm, &(call){TS_ALL_REDUCE, &count, dtype, (int)op, ts_device_of(data)}, &t));
    return account(comm, TS_ALL_REDUCE, 1, ts_comm_bytes(comm, TS_ALL_REDUCE, &count, dtype),
                   t->all_reduce(comm, data, count, dtype, op));
}

int ts_broadcast(ts_comm *comm, void *data, int64_t bytes, int root) {
    const ts_transport *t;
    if (ts_comm_size(comm) == 1) {
        return TS_OK;
    }
    TS_TRY(begin(comm, &(call){TS_BROADCAST, &bytes, TS_U8, root, ts_device_of(data)}, &t));
    return account(comm, TS_BROADCAST, 1, share(comm, bytes), t->broadcast(comm, data, bytes, root));
}

// The one part there is, moved unless it lies in place.
static int copy_own(const void *send, void *receive, int64_t count, ts_dtype dtype) {
    if (send == receive || count == 0) {
        return TS_OK;
    }
    return owner_of(send, count, receive, count)->copy(receive, send, (size_t)count * ts_dtype_bytes(dtype));
}

// How parts of these counts are gathered (TS_ALL_GATHER) or summed (TS_REDUCE_SCATTER).
static call call_on_parts(const ts_comm *comm, ts_collective kind, const void *part, const void *whole,
                          const int64_t *counts, ts_dtype dtype) {
    return (call){kind, counts, dtype, 0, owner_of(part, counts[comm->rank], whole, sum_of(comm, counts))};
}

int ts_all_gather_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const ts_transport *t;
    if (ts_comm_size(comm) == 1) {
        return copy_own(send, receive, counts[0], dtype);
    }
    const call c = call_on_parts(comm, TS_ALL_GATHER, send, receive, counts, dtype);
    TS_TRY(begin(comm, &c, &t));
    return account(comm, TS_ALL_GATHER, 1, ts_comm_bytes(comm, TS_ALL_GATHER, counts, dtype),
                   t->all_gather_v(comm, send, receive, counts, dtype));
}

int ts_reduce_scatter_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const ts_transport *t;
    TS_TRY(ts_reduce_check(dtype, true));
    if (ts_comm_size(comm) == 1) {
        return copy_own(send, receive, counts[0], dtype);
    }
    const call c = call_on_parts(comm, TS_REDUCE_SCATTER, receive, send, counts, dtype);
    TS_TRY(begin(comm, &c, &t));
    return account(comm, TS_REDUCE_SCATTER, 1, ts_comm_bytes(comm, TS_REDUCE_SCATTER, counts, dtype),
                   t->reduce_scatter_v(comm, send, receive, counts, dtype));
}

int ts_all_to_all_v(ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                    const int64_t *receive_counts, ts_dtype dtype) {
    const ts_transport *t;
    TS_ASSERT(send_counts[ts_comm_rank(comm)] == receive_counts[ts_comm_rank(comm)]);
    if (ts_comm_size(comm) == 1) {
        return copy_own(send, receive, send_counts[0], dtype);
    }
    const ts_device *const device = owner_of(send, sum_of(comm, send_counts), receive, sum_of(comm, receive_counts));
    TS_TRY(begin(comm, &(call){TS_ALL_TO_ALL, send_counts, dtype, 0, device}, &t));
    return account(comm, TS_ALL_TO_ALL, 1, ts_comm_bytes(comm, TS_ALL_TO_ALL, send_counts, dtype),
                   t->all_to_all_v(comm, send, send_counts, receive, receive_counts, dtype));
}

int ts_barrier(ts_comm *comm) {
    const ts_transport *t;
    if (ts_comm_size(comm) == 1) {
        return TS_OK;
    }
    TS_TRY(begin(comm, &(call){TS_BARRIER, NULL, TS_U8, 0, &ts_device_host}, &t));
    return account(comm, TS_BARRIER, 1, 0, t->barrier(comm));
}

// ---- asynchronous forms

int ts_reduce_scatter_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                              ts_request **out) {
    const ts_transport *t;
    *out = NULL;
    TS_TRY(ts_reduce_check(dtype, true));
    if (ts_comm_size(comm) == 1) {
        return copy_own(send, receive, counts[0], dtype);
    }
    const call c = call_on_parts(comm, TS_REDUCE_SCATTER, receive, send, counts, dtype);
    TS_TRY(begin(comm, &c, &t));
    return account(comm, TS_REDUCE_SCATTER, 1, ts_comm_bytes(comm, TS_REDUCE_SCATTER, counts, dtype),
                   t->reduce_scatter_v_start(comm, send, receive, counts, dtype, out));
}

int ts_all_gather_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                          ts_request **out) {
    const ts_transport *t;
    *out = NULL;
    if (ts_comm_size(comm) == 1) {
        return copy_own(send, receive, counts[0], dtype);
    }
    const call c = call_on_parts(comm, TS_ALL_GATHER, send, receive, counts, dtype);
    TS_TRY(begin(comm, &c, &t));
    return account(comm, TS_ALL_GATHER, 1, ts_comm_bytes(comm, TS_ALL_GATHER, counts, dtype),
                   t->all_gather_v_start(comm, send, receive, counts, dtype, out));
}

int ts_ring_start(ts_comm *comm, const void *send, int64_t send_count, void *receive, int64_t receive_count,
                  ts_dtype dtype, ts_request **out) {
    const ts_transport *t;
    *out = NULL;
    if (ts_comm_size(comm) == 1) {
        TS_ASSERT(send_count == receive_count);
        return copy_own(send, receive, send_count, dtype);
    }
    const ts_device *const device = owner_of(send, send_count, receive, receive_count);
    TS_TRY(begin(comm, &(call){TS_RING, &send_count, dtype, 0, device}, &t));
    return account(comm, TS_RING, 1, ts_comm_bytes(comm, TS_RING, &send_count, dtype),
                   t->ring_start(comm, send, send_count, receive, receive_count, dtype, out));
}

int ts_wait(ts_request **request) {
    ts_request *const r = *request;
    *request = NULL;
    if (!r) {
        return TS_OK;
    }
    ts_comm *const comm = ts_request_comm(r);
    const ts_collective kind = ts_request_kind(r);
    comm->entered = ts_watch_resume(ts_request_ticket(r));
    return account(comm, kind, 0, 0, ts_request_wait(r));
}
