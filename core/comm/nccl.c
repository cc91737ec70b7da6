// SPDX-License-Identifier: Apache-2.0
// The transport of device memory over NCCL: one NCCL communicator for each of ours, opened at its first call.
//
// Part of the CUDA backend (core/kernels/cuda), which programs are linked with or not. All calls go to the
// communication stream, between a fork from the stream of the kernels and a join into it, at once or in ts_wait: the
// host waits for none of them. One stream for all communicators keeps their calls in one order on every rank, as NCCL
// wants it.
//
// What NCCL sends is what the formulas of comm.h count: even parts by its own collectives, uneven ones as messages
// between pairs of ranks or, across hosts, as one broadcast or reduction for each part; padding would send more.
//
// Sums "in order" are made here: parts travel to the rank that owns their sum, and a kernel adds them up in the order
// of the ranks. NCCL's own sums depend on its rings, and round bf16 at every hop.
#include <nccl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/base/split.h"
#include "core/comm/request.h"
#include "core/kernels/cuda/recording.h"

enum {
    SMALL_BYTES = 256 * 1024,  // of all ranks together: gathered whole by each of them, in fewer messages
    WINDOW_BYTES = 64 << 20,   // of parts that wait for their sum
    PATIENT_LOOKS = 200        // at a call of NCCL that goes on, before sleeping between them
};
static const double patience = 10;  // seconds that closing waits for what is under way

// What goes to one rank, and comes from it.
typedef struct message {
    const char *out;
    char *in;
    size_t out_bytes, in_bytes;
} message;

typedef struct registration {
    const void *memory;
    void *handle;
    struct registration *next;
} registration;

struct ts_nccl {
    ncclComm_t comm;
    bool ordered;       // F32, F64 and whole numbers are summed here, as BF16 always is
    message *messages;  // [size] of the call under way
    registration *registered;
    char name[TS_WATCH_NAME_BYTES];
    ts_nccl *next;
};

// Open communicators, which the watch's thread looks at.
static struct {
    pthread_mutex_t lock;
    ts_nccl *first;
} open_ones = {.lock = PTHREAD_MUTEX_INITIALIZER};

// ---- errors

static int fail(const ts_nccl *n, ncclResult_t code, const char *call) {
    return TS_FAIL(TS_EPEER, "%.*s on the %s axis: %s: %.300s; NCCL_DEBUG=WARN tells more", (int)strcspn(call, "("),
                   call, n->name, ncclGetErrorString(code), n->comm ? ncclGetLastError(n->comm) : "");
}

// Waits until NCCL has taken the call in. Other ranks' messages are moved on meanwhile: one of them may have to go on
// before it can come here.
static int check(const ts_nccl *n, ncclResult_t code, const char *call) {
    for (int looks = 0; code == ncclInProgress; looks++) {
        TS_TRY(ts_request_progress());
        if (looks > PATIENT_LOOKS) {
            usleep(50);
        }
        const ncclResult_t asked = ncclCommGetAsyncError(n->comm, &code);
        code = asked == ncclSuccess ? code : asked;
    }
    return code == ncclSuccess ? TS_OK : fail(n, code, call);
}

#define NCCL(n, call) TS_TRY(check((n), (call), #call))

// ---- registered memory

// Only when asked for: nobody has measured it here.
static int register_block(ts_nccl *n, const void *buffer) {
    size_t bytes;
    const void *const memory = ts_device_block(buffer, &bytes);
    if (!memory) {
        return TS_OK;
    }
    for (const registration *r = n->registered; r; r = r->next) {
        if (r->memory == memory) {
            return TS_OK;
        }
    }
    registration *r = ts_calloc(1, sizeof *r);
    if (!r) {
        return TS_ERESOURCE;
    }
    r->memory = memory;
    r->next = n->registered;
    n->registered = r;
    NCCL(n, ncclCommRegister(n->comm, (void *)(uintptr_t)memory, bytes, &r->handle));
    return TS_OK;
}

static int register_buffers(const ts_comm *comm, const void *a, const void *b) {
    if (!ts_nccl_registers || ts_cuda_is_recording()) {
        return TS_OK;
    }
    TS_TRY(register_block(comm->nccl, a));
    return register_block(comm->nccl, b);
}

// Memory that is given up, or all of it for NULL.
static void forget_blocks(ts_nccl *n, const void *memory) {
    for (registration **at = &n->registered; *at;) {
        registration *const r = *at;
        if (memory && r->memory != memory) {
            at = &r->next;
            continue;
        }
        if (r->handle) {
            (void)ncclCommDeregister(n->comm, r->handle);
        }
        *at = r->next;
        free(r);
    }
}

void ts_nccl_forget(const void *memory) {
    for (ts_nccl *n = open_ones.first; n; n = n->next) {
        forget_blocks(n, memory);
    }
}

// ---- opening and closing

static int version(void) {
    int code = 0;
    return ncclGetVersion(&code) == ncclSuccess ? code : 0;
}

static int name_gpu(char *out, int room) {
    int device;
    TS_CUDA(cudaGetDevice(&device));
    TS_CUDA(cudaDeviceGetPCIBusId(out, room, device));
    return TS_OK;
}

static bool shares_gpus(void) {
    const char *const allowed = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    return version() >= 23000 && allowed && !strcmp(allowed, "1");
}

static void add(ts_nccl *n) {
    pthread_mutex_lock(&open_ones.lock);
    n->next = open_ones.first;
    open_ones.first = n;
    pthread_mutex_unlock(&open_ones.lock);
}

static void take_out(ts_nccl *n) {
    pthread_mutex_lock(&open_ones.lock);
    ts_nccl **at = &open_ones.first;
    while (*at && *at != n) {
        at = &(*at)->next;
    }
    if (*at) {
        *at = n->next;
    }
    pthread_mutex_unlock(&open_ones.lock);
}

// Rank 0's, for all: how they find each other.
static int share_id(const ts_comm *comm, ncclUniqueId *id) {
    struct {
        ncclResult_t code;
        ncclUniqueId id;
    } first = {.code = ncclSuccess};
    if (comm->rank == 0) {
        first.code = ncclGetUniqueId(&first.id);
    }
    TS_TRY(ts_mpi_check(MPI_Bcast(&first, (int)sizeof first, MPI_BYTE, 0, comm->mpi), "MPI_Bcast"));
    *id = first.id;
    return first.code == ncclSuccess ? TS_OK : fail(comm->nccl, first.code, "ncclGetUniqueId");
}

static int open_nccl(ts_comm *comm) {
    if (ts_cuda_is_recording()) {
        return TS_FAIL(TS_EUSAGE, "the first call on the %s axis cannot be recorded: make it once before",
                       comm->watch.name);
    }
    ts_nccl *const n = comm->nccl = ts_calloc(1, sizeof *n);
    if (!n) {
        return TS_ERESOURCE;
    }
    n->messages = ts_calloc((size_t)comm->size, sizeof *n->messages);
    if (!n->messages) {
        return TS_ERESOURCE;
    }
    n->ordered = ts_nccl_sums == TS_NCCL_SUMS_ORDERED || (ts_nccl_sums == TS_NCCL_SUMS_AUTO && comm->one_host);
    snprintf(n->name, sizeof n->name, "%s", comm->watch.name);
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;  // a rank that never comes must not hold the others inside NCCL
    config.commName = n->name;
    TS_TRY(share_id(comm, &id));
    NCCL(n, ncclCommInitRankConfig(&n->comm, comm->size, id, comm->rank, &config));
    add(n);
    return TS_OK;
}

// Whether all that was given to the communication stream is done, within our patience.
static bool drained(const ts_nccl *n, double end) {
    ncclResult_t code = ncclSuccess;
    while (cudaStreamQuery(ts_cuda_communication_stream()) == cudaErrorNotReady) {
        if (ncclCommGetAsyncError(n->comm, &code) != ncclSuccess || code != ncclSuccess || ts_clock_seconds() > end) {
            return false;
        }
        usleep(50);
    }
    return true;
}

static bool finalized(const ts_nccl *n, double end) {
    ncclResult_t code = ncclCommFinalize(n->comm);
    while (code == ncclInProgress && ts_clock_seconds() < end) {
        usleep(50);
        if (ncclCommGetAsyncError(n->comm, &code) != ncclSuccess) {
            return false;
        }
    }
    return code == ncclSuccess;
}

// After a failure other ranks do not come to the end of their calls: then ours are cut off.
static void close_nccl(ts_comm *comm) {
    ts_nccl *const n = comm->nccl;
    const double end = ts_clock_seconds() + patience;
    take_out(n);
    if (n->comm) {
        const bool sound = drained(n, end);
        forget_blocks(n, NULL);
        if (sound && finalized(n, end)) {
            (void)ncclCommDestroy(n->comm);
        } else {
            (void)ncclCommAbort(n->comm);
        }
    }
    free(n->messages);
    free(n);
    comm->nccl = NULL;
}

// The list stays locked: nobody is to use it again.
static void abort_all(void) {
    pthread_mutex_lock(&open_ones.lock);
    for (ts_nccl *n = open_ones.first; n; n = n->next) {
        (void)ncclCommAbort(n->comm);
    }
}

static bool find_error(char *text, size_t bytes) {
    bool found = false;
    if (pthread_mutex_trylock(&open_ones.lock)) {
        return false;
    }
    for (const ts_nccl *n = open_ones.first; n && !found; n = n->next) {
        ncclResult_t code = ncclSuccess;
        const ncclResult_t asked = ncclCommGetAsyncError(n->comm, &code);
        code = asked == ncclSuccess ? code : asked;
        found = code != ncclSuccess && code != ncclInProgress;
        if (found) {
            snprintf(text, bytes, "NCCL on the %s axis: %s: %.300s", n->name, ncclGetErrorString(code),
                     ncclGetLastError(n->comm));
        }
    }
    pthread_mutex_unlock(&open_ones.lock);
    return found;
}

// ---- on the way in and out

static int enter(const ts_comm *comm, const void *a, const void *b) {
    ncclResult_t code = ncclSuccess;
    NCCL(comm->nccl, ncclCommGetAsyncError(comm->nccl->comm, &code));
    TS_TRY(check(comm->nccl, code, "an earlier call"));
    TS_TRY(register_buffers(comm, a, b));
    return ts_cuda_fork();
}

// When a started call is done. Events are used again.
typedef struct landing {
    cudaEvent_t done;
    bool busy;
    struct landing *next;
} landing;

static int take_landing(landing **out) {
    static landing *first;
    landing *l = first;
    while (l && l->busy) {
        l = l->next;
    }
    if (!l) {
        l = ts_calloc(1, sizeof *l);
        if (!l) {
            return TS_ERESOURCE;
        }
        l->next = first;
        first = l;
        TS_CUDA(cudaEventCreateWithFlags(&l->done, cudaEventDisableTiming));
    }
    l->busy = true;
    *out = l;
    return TS_OK;
}

// The kernels to come wait, the host does not.
static int land(void *context) {
    landing *const l = context;
    l->busy = false;
    TS_CUDA(cudaStreamWaitEvent(ts_cuda_stream(), l->done, 0));
    return TS_OK;
}

static int leave_started(ts_comm *comm, ts_collective kind, ts_request **out) {
    landing *l;
    TS_TRY(take_landing(&l));
    TS_CUDA(cudaEventRecord(l->done, ts_cuda_communication_stream()));
    TS_TRY(ts_request_take(out, comm, kind, 0, 0));
    ts_request_then(*out, land, l);
    return TS_OK;
}

// ---- messages

static bool are_even(const int64_t *counts, int n) {
    for (int i = 1; i < n; i++) {
        if (counts[i] != counts[0]) {
            return false;
        }
    }
    return true;
}

static int copy(void *to, const void *from, size_t bytes) {
    if (to != from && bytes > 0) {
        TS_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, ts_cuda_communication_stream()));
    }
    return TS_OK;
}

// One call of NCCL for all messages but the own one.
static int exchange(const ts_comm *comm) {
    const ts_nccl *const n = comm->nccl;
    cudaStream_t const stream = ts_cuda_communication_stream();
    NCCL(n, ncclGroupStart());
    ncclResult_t code = ncclSuccess;
    for (int i = 1; i < comm->size; i++) {
        const int to = (comm->rank + i) % comm->size, from = (comm->rank + comm->size - i) % comm->size;
        const message *const out = &n->messages[to], *const in = &n->messages[from];
        if (out->out_bytes > 0 && code == ncclSuccess) {
            code = ncclSend(out->out, out->out_bytes, ncclInt8, to, n->comm, stream);
        }
        if (in->in_bytes > 0 && code == ncclSuccess) {
            code = ncclRecv(in->in, in->in_bytes, ncclInt8, from, n->comm, stream);
        }
    }
    const ncclResult_t ended = ncclGroupEnd();
    return check(n, code == ncclSuccess ? ended : code, "messages");
}

static void clear_messages(const ts_comm *comm) {
    memset(comm->nccl->messages, 0, (size_t)comm->size * sizeof *comm->nccl->messages);
}

static int send_all(const ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                    const int64_t *receive_counts, size_t element) {
    const char *out = send;
    char *in = receive;
    for (int rank = 0; rank < comm->size; rank++) {
        const size_t out_bytes = (size_t)send_counts[rank] * element, in_bytes = (size_t)receive_counts[rank] * element;
        comm->nccl->messages[rank] = (message){out, in, out_bytes, in_bytes};
        if (rank == comm->rank) {
            TS_TRY(copy(in, out, in_bytes));
        }
        out += out_bytes;
        in += in_bytes;
    }
    return exchange(comm);
}

// ---- gathering

// A broadcast from each rank: across hosts every part then crosses the network as often as a ring does.
static int gather_by_broadcasts(const ts_comm *comm, const void *send, char *receive, const int64_t *counts,
                                size_t element) {
    const ts_nccl *const n = comm->nccl;
    NCCL(n, ncclGroupStart());
    ncclResult_t code = ncclSuccess;
    for (int rank = 0; rank < comm->size; rank++) {
        const size_t bytes = (size_t)counts[rank] * element;
        if (bytes > 0 && code == ncclSuccess) {
            code = ncclBroadcast(rank == comm->rank ? send : receive, receive, bytes, ncclInt8, rank, n->comm,
                                 ts_cuda_communication_stream());
        }
        receive += bytes;
    }
    const ncclResult_t ended = ncclGroupEnd();
    return check(n, code == ncclSuccess ? ended : code, "ncclBroadcast");
}

static int gather(const ts_comm *comm, const void *send, void *receive, const int64_t *counts, size_t element) {
    const ts_nccl *const n = comm->nccl;
    const size_t own_bytes = (size_t)counts[comm->rank] * element;
    if (are_even(counts, comm->size)) {
        if (own_bytes > 0) {
            NCCL(n, ncclAllGather(send, receive, own_bytes, ncclInt8, n->comm, ts_cuda_communication_stream()));
        }
        return TS_OK;
    }
    if (!comm->one_host) {
        return gather_by_broadcasts(comm, send, receive, counts, element);
    }
    char *in = receive;
    for (int rank = 0; rank < comm->size; rank++) {
        n->messages[rank] = (message){send, in, own_bytes, (size_t)counts[rank] * element};
        if (rank == comm->rank) {
            TS_TRY(copy(in, send, own_bytes));
        }
        in += n->messages[rank].in_bytes;
    }
    return exchange(comm);
}

// ---- sums in the order of the ranks

static void *take_scratch(int64_t elements, size_t element) {
    return ts_cuda_scratch(TS_CUDA_SCRATCH_EXCHANGE, (size_t)elements * element);
}

static int64_t in_round(int64_t count, int64_t first, int64_t chunk) {
    const int64_t left = count - first;
    return left < 0 ? 0 : left < chunk ? left : chunk;
}

// Elements [first, first + chunk) of every part go to the rank that owns it, which sums them.
static int reduce_round(const ts_comm *comm, const char *send, char *receive, const int64_t *counts, int64_t first,
                        const ts_cuda_parts *parts, ts_dtype dtype, ts_reduce_op op) {
    const size_t element = ts_dtype_bytes(dtype);
    const int64_t own = in_round(counts[comm->rank], first, parts->stride);
    ts_cuda_parts p = *parts;
    for (int rank = 0; rank < comm->size; rank++) {
        const char *const out = send + (size_t)first * element;
        char *const in = (char *)(uintptr_t)parts->parts + (size_t)(rank * parts->stride) * element;
        const int64_t theirs = in_round(counts[rank], first, parts->stride);
        comm->nccl->messages[rank] = (message){out, in, (size_t)theirs * element, (size_t)own * element};
        p.own = rank == comm->rank ? out : p.own;
        send += (size_t)counts[rank] * element;
    }
    TS_TRY(exchange(comm));
    p.out = receive + (size_t)first * element;
    p.count = own;
    return ts_cuda_reduce_parts(&p, dtype, op);
}

static int reduce_in_order(const ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                           ts_reduce_op op) {
    const int64_t element = (int64_t)ts_dtype_bytes(dtype);
    int64_t most = 0;
    for (int rank = 0; rank < comm->size; rank++) {
        most = counts[rank] > most ? counts[rank] : most;
    }
    const int64_t room = WINDOW_BYTES / element / comm->size, chunk = most < room ? most : room;
    if (most == 0) {
        return TS_OK;
    }
    const ts_cuda_parts parts = {.parts = take_scratch(chunk * comm->size, (size_t)element),
                                 .stride = chunk,
                                 .rank = comm->rank,
                                 .size = comm->size};
    if (!parts.parts) {
        return TS_ERESOURCE;
    }
    for (int64_t first = 0; first < most; first += chunk) {
        TS_TRY(reduce_round(comm, send, receive, counts, first, &parts, dtype, op));
    }
    return TS_OK;
}

// One exchange instead of two: every rank gathers all data and sums all of it. With two ranks that sends no more.
static int all_reduce_whole(const ts_comm *comm, char *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const ts_nccl *const n = comm->nccl;
    const int64_t element = (int64_t)ts_dtype_bytes(dtype), room = WINDOW_BYTES / element / comm->size;
    const int64_t chunk = count < room ? count : room;
    char *const parts = take_scratch(chunk * comm->size, (size_t)element);
    if (!parts) {
        return TS_ERESOURCE;
    }
    for (int64_t first = 0; first < count; first += chunk) {
        char *const at = data + (size_t)(first * element);
        const int64_t m = in_round(count, first, chunk);
        NCCL(n, ncclAllGather(at, parts, (size_t)(m * element), ncclInt8, n->comm, ts_cuda_communication_stream()));
        const ts_cuda_parts p = {.out = at,
                                 .own = parts + (size_t)(comm->rank * m * element),
                                 .parts = parts,
                                 .stride = m,
                                 .count = m,
                                 .rank = comm->rank,
                                 .size = comm->size};
        TS_TRY(ts_cuda_reduce_parts(&p, dtype, op));
    }
    return TS_OK;
}

static int all_reduce_in_order(const ts_comm *comm, char *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const size_t element = ts_dtype_bytes(dtype);
    if (comm->size == 2 || count * (int64_t)element * comm->size <= SMALL_BYTES) {
        return all_reduce_whole(comm, data, count, dtype, op);
    }
    for (int rank = 0; rank < comm->size; rank++) {
        comm->parts[rank] = ts_split(count, comm->size, rank).count;
    }
    char *const own = data + (size_t)ts_split_first(count, comm->size, comm->rank) * element;
    TS_TRY(reduce_in_order(comm, data, own, comm->parts, dtype, op));
    return gather(comm, own, data, comm->parts, element);
}

// ---- sums that NCCL makes

static ncclDataType_t type_of(ts_dtype dtype) {
    switch (dtype) {
    case TS_F32:
        return ncclFloat32;
    case TS_F64:
        return ncclFloat64;
    case TS_I64:
        return ncclInt64;
    default:
        TS_ASSERT(dtype == TS_I32);
        return ncclInt32;
    }
}

static ncclRedOp_t operation(ts_reduce_op op) {
    return op == TS_SUM ? ncclSum : op == TS_MAX ? ncclMax : ncclMin;
}

static int reduce_by_nccl(const ts_comm *comm, const char *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const ts_nccl *const n = comm->nccl;
    cudaStream_t const stream = ts_cuda_communication_stream();
    if (are_even(counts, comm->size)) {
        if (counts[0] > 0) {
            NCCL(n, ncclReduceScatter(send, receive, (size_t)counts[0], type_of(dtype), ncclSum, n->comm, stream));
        }
        return TS_OK;
    }
    NCCL(n, ncclGroupStart());
    ncclResult_t code = ncclSuccess;
    for (int rank = 0; rank < comm->size; rank++) {
        if (counts[rank] > 0 && code == ncclSuccess) {
            code = ncclReduce(send, rank == comm->rank ? receive : NULL, (size_t)counts[rank], type_of(dtype), ncclSum,
                              rank, n->comm, stream);
        }
        send += (size_t)counts[rank] * ts_dtype_bytes(dtype);
    }
    const ncclResult_t ended = ncclGroupEnd();
    return check(n, code == ncclSuccess ? ended : code, "ncclReduce");
}

static int reduce_scatter(const ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    return comm->nccl->ordered || dtype == TS_BF16 ? reduce_in_order(comm, send, receive, counts, dtype, TS_SUM)
                                                   : reduce_by_nccl(comm, send, receive, counts, dtype);
}

// ---- the table

static int all_reduce(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const ts_nccl *const n = comm->nccl;
    if (count == 0) {
        return TS_OK;
    }
    TS_TRY(enter(comm, data, data));
    if (n->ordered) {
        TS_TRY(all_reduce_in_order(comm, data, count, dtype, op));
    } else {
        NCCL(n, ncclAllReduce(data, data, (size_t)count, type_of(dtype), operation(op), n->comm,
                              ts_cuda_communication_stream()));
    }
    return ts_cuda_join();
}

static int broadcast(ts_comm *comm, void *data, int64_t bytes, int root) {
    const ts_nccl *const n = comm->nccl;
    if (bytes == 0) {
        return TS_OK;
    }
    TS_TRY(enter(comm, data, data));
    NCCL(n, ncclBroadcast(data, data, (size_t)bytes, ncclInt8, root, n->comm, ts_cuda_communication_stream()));
    return ts_cuda_join();
}

static int all_gather_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    TS_TRY(enter(comm, send, receive));
    TS_TRY(gather(comm, send, receive, counts, ts_dtype_bytes(dtype)));
    return ts_cuda_join();
}

static int reduce_scatter_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    TS_TRY(enter(comm, send, receive));
    TS_TRY(reduce_scatter(comm, send, receive, counts, dtype));
    return ts_cuda_join();
}

static int all_to_all_v(ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                        const int64_t *receive_counts, ts_dtype dtype) {
    TS_TRY(enter(comm, send, receive));
    TS_TRY(send_all(comm, send, send_counts, receive, receive_counts, ts_dtype_bytes(dtype)));
    return ts_cuda_join();
}

static int reduce_scatter_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                                  ts_request **out) {
    TS_TRY(enter(comm, send, receive));
    TS_TRY(reduce_scatter(comm, send, receive, counts, dtype));
    return leave_started(comm, TS_REDUCE_SCATTER, out);
}

static int all_gather_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                              ts_request **out) {
    TS_TRY(enter(comm, send, receive));
    TS_TRY(gather(comm, send, receive, counts, ts_dtype_bytes(dtype)));
    return leave_started(comm, TS_ALL_GATHER, out);
}

static int ring_start(ts_comm *comm, const void *send, int64_t send_count, void *receive, int64_t receive_count,
                      ts_dtype dtype, ts_request **out) {
    const int next = (comm->rank + 1) % comm->size, previous = (comm->rank + comm->size - 1) % comm->size;
    message *const messages = comm->nccl->messages;
    TS_TRY(enter(comm, send, receive));
    clear_messages(comm);
    messages[next].out = send;
    messages[next].out_bytes = (size_t)send_count * ts_dtype_bytes(dtype);
    messages[previous].in = receive;
    messages[previous].in_bytes = (size_t)receive_count * ts_dtype_bytes(dtype);
    TS_TRY(exchange(comm));
    return leave_started(comm, TS_RING, out);
}

static const ts_transport nccl_transport = {
    .all_reduce = all_reduce,
    .broadcast = broadcast,
    .all_gather_v = all_gather_v,
    .reduce_scatter_v = reduce_scatter_v,
    .all_to_all_v = all_to_all_v,
    .reduce_scatter_v_start = reduce_scatter_v_start,
    .all_gather_v_start = all_gather_v_start,
    .ring_start = ring_start,
};

const ts_nccl_entries ts_nccl_backend = {
    .device = &ts_cuda_device,
    .transport = &nccl_transport,
    .version = version,
    .name_gpu = name_gpu,
    .shares_gpus = shares_gpus,
    .open = open_nccl,
    .close = close_nccl,
    .abort_all = abort_all,
    .find_error = find_error,
};
