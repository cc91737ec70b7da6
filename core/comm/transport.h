// SPDX-License-Identifier: Apache-2.0
// Inside core/comm only: what a communicator is, and the table a transport fills.
#ifndef TS_COMM_TRANSPORT_H
#define TS_COMM_TRANSPORT_H

#include <mpi.h>

#include "core/comm/mesh.h"
#include "core/comm/watch_private.h"

// Called by comm.c, which has dealt with single ranks, dtypes and counters: size > 1 here.
typedef struct ts_transport {
    int (*all_reduce)(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op);
    int (*broadcast)(ts_comm *comm, void *data, int64_t bytes, int root);
    int (*all_gather_v)(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype);
    int (*reduce_scatter_v)(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype);
    int (*all_to_all_v)(ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                        const int64_t *receive_counts, ts_dtype dtype);
    int (*barrier)(ts_comm *comm);
    int (*reduce_scatter_v_start)(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                                  ts_request **out);
    int (*all_gather_v_start)(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                              ts_request **out);
    int (*ring_start)(ts_comm *comm, const void *send, int64_t send_count, void *receive, int64_t receive_count,
                      ts_dtype dtype, ts_request **out);
    int (*wait)(ts_request *request);
} ts_transport;

typedef struct ts_shared ts_shared;

struct ts_comm {
    int rank, size, local_rank;  // local_rank: of the world alone
    const ts_transport *transport;
    MPI_Comm mpi;          // MPI_COMM_NULL for a program started without a launcher
    int *counts;           // [2 * size] scratch for MPI's int counts and displacements
    int64_t *parts;        // [size] scratch for the parts of an all-reduce
    ts_request *requests;  // owned: idle ones and those under way
    ts_shared *shared;     // owned: NULL for MPI, and until the first call
    uint64_t sequence;     // requests so far: their tags
    double entered;        // when the call under way began
    ts_comm_counters counters[TS_COLLECTIVE_COUNT];
    ts_watch_track watch;  // the calls so far, for other threads to read
};

// A communicator over `mpi`, which it owns unless it is MPI_COMM_WORLD; MPI_COMM_NULL makes a lone rank.
int ts_comm_new(ts_comm **out, MPI_Comm mpi);
// A communicator that only knows its place: transport NULL.
int ts_comm_imagine(ts_comm **out, int rank, int size);
void ts_comm_delete(ts_comm **comm);

// ---- transports

typedef enum { TS_TRANSPORT_AUTO, TS_TRANSPORT_MPI, TS_TRANSPORT_SHARED } ts_transport_choice;
// For communicators to come. Tests change it.
extern ts_transport_choice ts_transport_wanted;

extern const ts_transport ts_mpi_transport;
// The asynchronous forms over MPI, which other transports use, too.
int ts_mpi_reduce_scatter_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                                  ts_request **out);
int ts_mpi_all_gather_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                              ts_request **out);
int ts_mpi_ring_start(ts_comm *comm, const void *send, int64_t send_count, void *receive, int64_t receive_count,
                      ts_dtype dtype, ts_request **out);

extern const ts_transport ts_shared_transport;
// Whether all ranks are on one host. Collective.
bool ts_shared_possible(MPI_Comm mpi);
// The segment of memory, opened by the first call over comm. Collective: all ranks get the same status.
int ts_shared_open(ts_comm *comm);
void ts_shared_close(ts_comm *comm);
// Most bytes of a rank's buffer that a step uses. Tests make it small.
extern int64_t ts_shared_chunk;
// Whether ranks try to read each other's memory. Tests forbid it.
extern bool ts_shared_may_read;
// Most elements in one MPI call, whose counts are ints. Tests make it small to walk the paths of large data.
extern int64_t ts_mpi_chunk;
int ts_mpi_next_chunk(int64_t left);  // elements of the next call when `left` are to go

// An MPI type of the same size, for moving only.
MPI_Datatype ts_mpi_type(ts_dtype dtype);
// TS_EPEER with MPI's own words when `code` is not MPI_SUCCESS.
int ts_mpi_check(int code, const char *call);

#endif
