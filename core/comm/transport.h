// SPDX-License-Identifier: Apache-2.0
// Inside core/comm only: what a communicator is, and the table a transport fills.
#ifndef TS_COMM_TRANSPORT_H
#define TS_COMM_TRANSPORT_H

#include <mpi.h>

#include "core/base/device.h"
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
} ts_transport;

typedef struct ts_shared ts_shared;
typedef struct ts_nccl ts_nccl;

struct ts_comm {
    int rank, size, local_rank;            // local_rank: of the world alone
    const ts_transport *transport;         // of host memory
    const ts_device *device;               // whose memory the next one moves; NULL before the first such call
    const ts_transport *device_transport;  // of the device's memory
    bool one_host;                         // known when there is a device
    MPI_Comm mpi;                          // MPI_COMM_NULL for a program started without a launcher
    int *counts;                           // [2 * size] scratch for MPI's int counts and displacements
    int64_t *parts;                        // [size] scratch for the parts of an all-reduce
    ts_request *requests;                  // owned: idle ones and those under way
    ts_shared *shared;                     // owned: NULL for MPI, and until the first call
    ts_nccl *nccl;                         // owned: NULL but over NCCL
    uint64_t sequence;                     // requests so far: their tags
    double entered;                        // when the call under way began
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

// ---- device memory

typedef enum { TS_DEVICE_TRANSPORT_AUTO, TS_DEVICE_TRANSPORT_NCCL, TS_DEVICE_TRANSPORT_STAGED } ts_device_choice;
// For communicators to come. Tests change it.
extern ts_device_choice ts_device_wanted;
// Who makes sums over NCCL. In order: we do, as everywhere else. NCCL does it with fewer bytes between hosts, in an
// order of its own. Auto: in order where all ranks of a communicator are on one host.
typedef enum { TS_NCCL_SUMS_AUTO, TS_NCCL_SUMS_ORDERED, TS_NCCL_SUMS_NCCL } ts_nccl_sums_choice;
extern ts_nccl_sums_choice ts_nccl_sums;
extern bool ts_nccl_registers;  // whether buffers are registered with NCCL
extern int64_t ts_nccl_window;  // bytes of parts that wait for their sum on a GPU. Tests make it small.
// TESSERA_DEVICE_TRANSPORT, TESSERA_NCCL_SUMS and TESSERA_NCCL_REGISTER, read when the world is opened.
int ts_device_read_environment(void);
// Keeps NCCL's sums the same on every run; before its first use, which reads this.
void ts_device_fix_order(bool one_host);
// Chooses how memory of `device` travels between the ranks of comm, and opens that. Collective: at the first call with
// such memory.
int ts_device_open(ts_comm *comm, const ts_device *device);
void ts_device_close(ts_comm *comm);

// Through page-locked host memory and the host's transport: any device, any number of ranks on one.
extern const ts_transport ts_staged_transport;
void ts_staged_release(void);  // the memory kept for the next calls
// Most bytes of host memory that a blocking call of the staged transport uses at a time. Tests make it small.
extern int64_t ts_staged_piece;

// What nccl.c brings to programs that are linked with the CUDA backend; a weak symbol, as in core/kernels/open.c.
typedef struct ts_nccl_entries {
    const ts_device *device;
    const ts_transport *transport;
    int (*version)(void);                  // 22809 of 2.28.9: of the library at hand
    int (*name_gpu)(char *out, int room);  // the PCI address of this process's GPU
    bool (*shares_gpus)(void);             // whether several ranks may be on one GPU
    int (*open)(ts_comm *comm);            // collective
    void (*close)(ts_comm *comm);
    void (*abort_all)(void);  // ends what is under way on every communicator, without waiting for other ranks
    // Any thread: true with the text when NCCL has found something wrong since the last call.
    bool (*find_error)(char *text, size_t bytes);
} ts_nccl_entries;
extern const ts_nccl_entries ts_nccl_backend __attribute__((weak));
static inline bool ts_nccl_is_there(void) {
    return &ts_nccl_backend != NULL;
}

// An MPI type of the same size, for moving only.
MPI_Datatype ts_mpi_type(ts_dtype dtype);
// TS_EPEER with MPI's own words when `code` is not MPI_SUCCESS.
int ts_mpi_check(int code, const char *call);

#endif
