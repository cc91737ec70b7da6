// SPDX-License-Identifier: Apache-2.0
// Communicators and collectives. A ts_comm is an axis of the mesh, a group of axes or the whole world; its table is
// filled by a transport: mpi.c for host memory, shared.c between ranks of one host, nccl.c and staged.c for the memory
// of a device. Every call counts its bytes, the same over all of them. Counts may exceed what MPI's ints hold.
//
// All calls are collective over the communicator and must be made in the same order on every rank of it.
// Errors inside a step abort the job (ts_comm_abort); at the rare collective points ts_agree makes every rank return
// the same error. Calls return TS_EPEER when MPI, another rank's memory or its order of calls fails, TS_ERESOURCE
// without memory for messages, TS_EINTERNAL for a dtype that cannot be reduced and over imagined ranks.
//
// Sums are taken in the order of the ranks, 0 + 1 + 2 .., whatever the transport: the same bits on all of them, and on
// every run. NCCL's own, between hosts, are in another order, the same on every run.
//
// TESSERA_TRANSPORT in the environment, read when the world is opened: auto (shared memory between ranks of one host
// where it is faster, else MPI), mpi, or shared (an error where it cannot be had). TESSERA_DEVICE_TRANSPORT likewise:
// auto (NCCL where each rank of a communicator has a GPU of its own, else through the host), nccl, or staged. README.md
// in this folder says more, and what every scheme of sharding sends.
//
// Buffers are those of the host or of a device (core/base/device.h); all of a call, and on all ranks, of the same kind.
// Whose they are tells a pointer, also to a buffer that is empty this time. Calls on a device's memory take their place
// in the order of its work: they see what was done before them, and what comes later sees theirs; over NCCL the host
// does not wait.
#ifndef TS_COMM_COMM_H
#define TS_COMM_COMM_H

#include <stdbool.h>
#include <stdint.h>

#include "core/tensor/tensor.h"

typedef enum { TS_SUM, TS_MAX, TS_MIN } ts_reduce_op;

typedef struct ts_comm ts_comm;        // NULL is a lone rank: rank 0 of 1
typedef struct ts_request ts_request;  // an operation under way

typedef enum {
    TS_ALL_REDUCE,
    TS_BROADCAST,
    TS_ALL_GATHER,
    TS_REDUCE_SCATTER,
    TS_ALL_TO_ALL,
    TS_RING,
    TS_BARRIER,
    TS_COLLECTIVE_COUNT
} ts_collective;

// Payload bytes that one of n ranks sends, by a formula for each collective that no algorithm enters:
//   all-reduce      2 (n-1)/n of the data       broadcast       (n-1)/n of the data, whoever is root
//   all-gather      (n-1) times its own part    reduce-scatter  the parts of the others
//   all-to-all      what goes to the others     ring            what goes to the next rank
//   barrier         0                           agreements      not counted
// With even parts, all-gather and reduce-scatter are (n-1)/n of the whole.
typedef struct ts_comm_counters {
    uint64_t calls, bytes_sent;
    double seconds;  // spent inside calls and waits
} ts_comm_counters;

// ---- the world
// Initialises MPI (MPI_THREAD_SERIALIZED) when a launcher started the program (mpirun, srun ...; TESSERA_MPI=1 in the
// environment for one that is not recognised), else makes a world of one rank without MPI. Sets the log's rank. Call
// once, first.
int ts_world_open(ts_comm **out, int *argc, char ***argv);
// Closes MPI. With a non-zero status that is not TS_ESTOPPED the last error is printed, once: by the lowest failing
// rank when all ranks come here; a rank that failed alone waits some seconds for the others, then ends the job
// through ts_comm_abort instead of hanging in finalize. The program then exits with ts_exit_code(status).
void ts_world_close(ts_comm **world, int status);

int ts_comm_rank(const ts_comm *comm);
int ts_comm_size(const ts_comm *comm);
// Whether calls on device memory may be recorded (core/base/device.h): so over NCCL, once the first one has been made,
// and for a lone rank; not through the host. What is run again is counted by ts_comm_count alone.
bool ts_comm_records(const ts_comm *comm);
int ts_comm_local_rank(const ts_comm *world);   // among the ranks on the same host: which of its devices is this rank's
bool ts_comm_is_imagined(const ts_comm *comm);  // has others, but none to send to (ts_mesh_imagine)
ts_comm_counters ts_comm_get_counters(const ts_comm *comm, ts_collective kind);
ts_comm_counters ts_comm_total(const ts_comm *comm);  // of all kinds
void ts_comm_reset_counters(ts_comm *comm);
const char *ts_collective_name(ts_collective kind);  // "all-reduce", ...

// What this rank sends in one call, by the formulas above: what the counters add, and what planning adds without a
// call. counts: all-reduce, broadcast and ring [1], the elements of the call; all-gather and reduce-scatter [size], the
// part of each rank; all-to-all [size], what this rank sends to each.
int64_t ts_comm_bytes(const ts_comm *comm, ts_collective kind, const int64_t *counts, ts_dtype dtype);
// Adds to the counters what such a call would, without making it.
void ts_comm_count(ts_comm *comm, ts_collective kind, const int64_t *counts, ts_dtype dtype);

// ---- collectives; blocking unless said
// In place; F32 F64 I64 I32.
int ts_all_reduce(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op);
int ts_broadcast(ts_comm *comm, void *data, int64_t bytes, int root);
// Every rank gives counts[rank] elements at `send`; all get all of them, in rank order, at `receive`.
// `send` may be this rank's own part of `receive`; otherwise they must not overlap.
int ts_all_gather_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype);
// data holds sum(counts) elements; rank r receives the sum of part r. F32 F64 I64 I32, and BF16, which is summed in f32
// and rounded once. `receive` may be this rank's part of `send`; otherwise they must not overlap.
int ts_reduce_scatter_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype);
// send_counts[r] elements to rank r from consecutive parts of `send`; likewise received.
int ts_all_to_all_v(ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                    const int64_t *receive_counts, ts_dtype dtype);
int ts_barrier(ts_comm *comm);

// ---- asynchronous forms: the buffers, and the counts' arrays, must not be touched until ts_wait
// Any number may be under way. Waits may come in any order among themselves, and in another one on each rank; waits and
// blocking calls keep one order on all ranks. Messages move, and sums are made, inside the calls of this file; those of
// a device's memory over NCCL in the device's own time, for which calls start in one order on all ranks, too. A
// reduce-scatter under way holds (size - 1) times its own part in scratch, at most 64 MiB or, where that is more, 128
// KiB for each other rank; the memory of requests is kept for the next ones: a step of training allocates nothing after
// the first.
int ts_reduce_scatter_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                              ts_request **out);
int ts_all_gather_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                          ts_request **out);
// send_count elements to the next rank (rank + 1, the last one to 0) while receive_count come from the one before.
// Counts may be 0. The buffers must not overlap.
int ts_ring_start(ts_comm *comm, const void *send, int64_t send_count, void *receive, int64_t receive_count,
                  ts_dtype dtype, ts_request **out);
int ts_wait(ts_request **request);  // of NULL: nothing to wait for

// Most bytes that such a reduce-scatter holds in scratch while it is under way: for memory plans, without a call.
int64_t ts_reduce_scatter_scratch(const ts_comm *comm, const int64_t *counts, ts_dtype dtype);

// ---- errors across ranks

// Collective. When any rank gives a non-zero status, all ranks return the status of the lowest failing rank with its
// text ("rank 3: ...") as last error. Returns 0 when all are 0. TS_EINTERNAL over imagined ranks, as all collectives.
int ts_agree(ts_comm *comm, int status);
// Collective. True on all ranks when true on one: for a signal that may reach ranks at different times.
bool ts_agree_any(ts_comm *comm, bool flag);
// Prints "[rank 3/16 host] file:line text" and ends the whole job with the exit code of `status`.
_Noreturn void ts_comm_abort(ts_comm *comm, int status);

#endif
