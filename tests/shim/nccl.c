// SPDX-License-Identifier: Apache-2.0
// NCCL, imitated over MPI.
//
// Like NCCL with non-blocking communicators, a call only begins: whoever asks ncclCommGetAsyncError again and again
// comes to its end. The stream's work before the call is done then and its data is sent at once, but what arrives is
// put in place as late as the stream's other work; until then the place holds 0xff. So the ranks of a program need no
// thread to meet, and a missing wait shows all the same. A call that is captured runs whole when its graph does.
//
// Strict where NCCL may be lenient: buffers must be device memory, two ranks must not share a GPU, and nothing may be
// called while the call before goes on.
//
// TESSERA_SHIM_NCCL_FAIL=RANK:CALLS lets calls of this rank of the world hang after that many, as they do when another
// rank's host is lost; ncclCommGetAsyncError then tells ncclRemoteError.
#include <mpi.h>
#include <nccl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/shim/shim.h"

enum { BUS_BYTES = 32, FIRST_TAG = 1 << 16 };

typedef enum { SEND, RECEIVE, BROADCAST, REDUCE, ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER } kind;

typedef struct call {
    kind kind;
    const void *send;
    void *receive;
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t op;
    int peer;        // or the root
    char *out, *in;  // owned: of the host, of out_bytes and in_bytes
    size_t out_bytes, in_bytes;
} call;

// The calls of a group, and their messages.
typedef struct batch {
    ncclComm_t comm;
    cudaStream_t stream;
    call *calls;            // owned
    MPI_Request *messages;  // owned: [count]
    int count;
} batch;

struct ncclComm {
    MPI_Comm mpi;
    int rank, size, looks;
    ncclUniqueId id;
    pthread_t owner;
    bool ready, posted;
    batch *pending;
    _Atomic int error;
    atomic_bool aborted;
    struct ncclComm *next;  // of those that were aborted
    char text[256];
};

static struct {
    int depth;
    batch *batch;
} group;

static char last_text[256];

static ncclResult_t refuse(ncclComm_t comm, ncclResult_t code, const char *text) {
    snprintf(last_text, sizeof last_text, "%s", text);
    if (comm) {
        snprintf(comm->text, sizeof comm->text, "%s", text);
    }
    return code;
}

// ---- calls as messages

static size_t bytes_of(ncclDataType_t type) {
    switch (type) {
    case ncclInt8:
        return 1;
    case ncclBfloat16:
        return 2;
    case ncclInt32:
    case ncclFloat32:
        return 4;
    default:
        return 8;
    }
}

static MPI_Datatype mpi_type(ncclDataType_t type) {
    switch (type) {
    case ncclInt32:
        return MPI_INT32_T;
    case ncclInt64:
        return MPI_INT64_T;
    case ncclFloat32:
        return MPI_FLOAT;
    case ncclFloat64:
        return MPI_DOUBLE;
    default:
        return MPI_BYTE;
    }
}

static MPI_Op mpi_op(ncclRedOp_t op) {
    return op == ncclSum ? MPI_SUM : op == ncclMax ? MPI_MAX : MPI_MIN;
}

// How many elements a call reads and writes on this rank.
static void size_call(const struct ncclComm *comm, call *c) {
    const size_t part = c->count * bytes_of(c->type), whole = part * (size_t)comm->size;
    const bool root = c->peer == comm->rank;
    switch (c->kind) {
    case SEND:
        c->out_bytes = part;
        break;
    case RECEIVE:
        c->in_bytes = part;
        break;
    case BROADCAST:
        c->out_bytes = root ? part : 0;
        c->in_bytes = part;
        break;
    case REDUCE:
        c->out_bytes = part;
        c->in_bytes = root ? part : 0;
        break;
    case ALL_REDUCE:
        c->out_bytes = c->in_bytes = part;
        break;
    case REDUCE_SCATTER:
        c->out_bytes = whole;
        c->in_bytes = part;
        break;
    case ALL_GATHER:
        c->out_bytes = part;
        c->in_bytes = whole;
        break;
    }
}

static int post(const struct ncclComm *comm, call *c, MPI_Request *message) {
    const int count = (int)c->count, bytes = (int)(c->count * bytes_of(c->type));
    switch (c->kind) {
    case SEND:
        return MPI_Isend(c->out, bytes, MPI_BYTE, c->peer, 0, comm->mpi, message);
    case RECEIVE:
        return MPI_Irecv(c->in, bytes, MPI_BYTE, c->peer, 0, comm->mpi, message);
    case BROADCAST:
        if (c->peer == comm->rank) {
            memcpy(c->in, c->out, c->in_bytes);
        }
        return MPI_Ibcast(c->in, bytes, MPI_BYTE, c->peer, comm->mpi, message);
    case REDUCE:
        return MPI_Ireduce(c->out, c->in, count, mpi_type(c->type), mpi_op(c->op), c->peer, comm->mpi, message);
    case ALL_REDUCE:
        return MPI_Iallreduce(c->out, c->in, count, mpi_type(c->type), mpi_op(c->op), comm->mpi, message);
    case REDUCE_SCATTER:
        return MPI_Ireduce_scatter_block(c->out, c->in, count, mpi_type(c->type), mpi_op(c->op), comm->mpi, message);
    default:
        return MPI_Iallgather(c->out, bytes, MPI_BYTE, c->in, bytes, MPI_BYTE, comm->mpi, message);
    }
}

// Reads what is sent, spoils where something will come, and lets the messages go. Device memory is open.
static bool post_all(batch *b) {
    bool fine = true;
    for (int i = 0; i < b->count; i++) {
        call *const c = &b->calls[i];
        c->out = realloc(c->out, c->out_bytes + 1);
        c->in = realloc(c->in, c->in_bytes + 1);
        if (!c->out || !c->in) {
            ts_shim_die("out of memory for messages");
        }
        if (c->out_bytes > 0) {
            memcpy(c->out, c->send, c->out_bytes);
        }
    }
    for (int i = 0; i < b->count; i++) {
        call *const c = &b->calls[i];
        if (c->in_bytes > 0) {
            memset(c->receive, 0xff, c->in_bytes);
        }
        fine = fine && post(b->comm, c, &b->messages[i]) == MPI_SUCCESS;
    }
    return fine;
}

// What runs in the stream: puts in place what has come.
static void deposit(void *argument) {
    const batch *const b = argument;
    for (int i = 0; i < b->count; i++) {
        if (b->calls[i].in_bytes > 0) {
            memcpy(b->calls[i].receive, b->calls[i].in, b->calls[i].in_bytes);
        }
    }
}

static void run_whole(void *argument) {
    batch *const b = argument;
    if (!post_all(b) || MPI_Waitall(b->count, b->messages, MPI_STATUSES_IGNORE) != MPI_SUCCESS) {
        ts_shim_die("messages of a recorded call failed");
    }
    deposit(b);
}

static void hang(void *argument) {
    const struct ncclComm *const comm = argument;
    while (!atomic_load(&comm->aborted)) {
        usleep(1000);
    }
}

static void release(void *argument) {
    batch *const b = argument;
    for (int i = 0; b && i < b->count; i++) {
        free(b->calls[i].out);
        free(b->calls[i].in);
    }
    if (b) {
        free(b->calls);
        free(b->messages);
        free(b);
    }
}

// ---- going on

static bool fails_now(void) {
    static int calls;
    int rank, failing, after;
    const char *const text = getenv("TESSERA_SHIM_NCCL_FAIL");
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return text && sscanf(text, "%d:%d", &failing, &after) == 2 && rank == failing && calls++ >= after;
}

static ncclResult_t end_pending(ncclComm_t comm, ncclResult_t code) {
    comm->pending = NULL;
    comm->posted = false;
    return code;
}

// The first look at the calls of a group, or a later one.
static ncclResult_t go_on(ncclComm_t comm) {
    batch *const b = comm->pending;
    enum cudaStreamCaptureStatus capture;
    int arrived;
    if (!comm->posted) {
        if (fails_now()) {
            ts_shim_enqueue(b->stream, "NCCL", hang, comm, NULL);
            refuse(comm, ncclRemoteError, "remote process exited or there was a network error");
            atomic_store(&comm->error, ncclRemoteError);
            return end_pending(comm, ncclSuccess);
        }
        cudaStreamIsCapturing(b->stream, &capture);
        if (capture != cudaStreamCaptureStatusNone) {
            ts_shim_enqueue(b->stream, "NCCL", run_whole, b, release);
            return end_pending(comm, ncclSuccess);
        }
        cudaStreamSynchronize(b->stream);
        ts_shim_open_memory();
        const bool fine = post_all(b);
        ts_shim_close_memory();
        comm->posted = true;
        return fine ? ncclInProgress : refuse(comm, ncclInternalError, "MPI refuses the messages");
    }
    if (MPI_Testall(b->count, b->messages, &arrived, MPI_STATUSES_IGNORE) != MPI_SUCCESS) {
        return refuse(comm, ncclInternalError, "messages failed: do the ranks agree about sizes?");
    }
    if (!arrived) {
        return ncclInProgress;
    }
    ts_shim_enqueue(b->stream, "NCCL", deposit, b, release);
    return end_pending(comm, ncclSuccess);
}

// ---- communicators

// What an id holds: the rank of the world that made it, and how many it had made.
typedef struct place {
    int root, number;
} place;

ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static int made;
    place p = {.number = made++};
    MPI_Comm_rank(MPI_COMM_WORLD, &p.root);
    memset(id, 0, sizeof *id);
    memcpy(id->internal, &p, sizeof p);
    return ncclSuccess;
}

// Rank 0 hears from all who they are in the world, and tells all.
static int meet(const struct ncclComm *comm, int *members) {
    place p;
    int own;
    memcpy(&p, comm->id.internal, sizeof p);
    MPI_Comm_rank(MPI_COMM_WORLD, &own);
    const int tag = FIRST_TAG + p.root * 256 + p.number % 256;
    members[comm->rank] = own;
    for (int i = 1; i < comm->size && comm->rank == 0; i++) {
        int other[2];
        MPI_Recv(other, 2, MPI_INT, MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        members[other[0]] = other[1];
    }
    for (int i = 1; i < comm->size && comm->rank == 0; i++) {
        MPI_Send(members, comm->size, MPI_INT, members[i], tag, MPI_COMM_WORLD);
    }
    if (comm->rank > 0) {
        MPI_Send((int[2]){comm->rank, own}, 2, MPI_INT, p.root, tag, MPI_COMM_WORLD);
        MPI_Recv(members, comm->size, MPI_INT, p.root, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    return tag;
}

static bool share_a_gpu(const struct ncclComm *comm) {
    char(*const bus)[BUS_BYTES] = calloc((size_t)comm->size, sizeof *bus);
    char own[BUS_BYTES] = "";
    int device;
    bool shared = false;
    cudaGetDevice(&device);
    cudaDeviceGetPCIBusId(own, BUS_BYTES, device);
    MPI_Allgather(own, BUS_BYTES, MPI_BYTE, bus, BUS_BYTES, MPI_BYTE, comm->mpi);
    for (int a = 0; a < comm->size; a++) {
        for (int b = 0; b < a; b++) {
            shared = shared || !strcmp(bus[a], bus[b]);
        }
    }
    free(bus);
    return shared;
}

static ncclResult_t initialize(ncclComm_t comm) {
    int *const members = calloc((size_t)comm->size, sizeof *members);
    MPI_Group all, own;
    const int tag = meet(comm, members);
    MPI_Comm_group(MPI_COMM_WORLD, &all);
    MPI_Group_incl(all, comm->size, members, &own);
    MPI_Comm_create_group(MPI_COMM_WORLD, own, tag, &comm->mpi);
    MPI_Group_free(&own);
    MPI_Group_free(&all);
    free(members);
    if (share_a_gpu(comm)) {
        return refuse(comm, ncclInvalidUsage, "Duplicate GPU detected: two ranks are on one CUDA device");
    }
    comm->ready = true;
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config) {
    *comm = NULL;
    if (ranks < 1 || rank < 0 || rank >= ranks || config->size != sizeof *config || config->blocking != 0) {
        return refuse(NULL, ncclInvalidArgument, "the imitation serves non-blocking communicators alone");
    }
    *comm = calloc(1, sizeof **comm);
    if (!*comm) {
        return refuse(NULL, ncclSystemError, "out of memory");
    }
    (*comm)->mpi = MPI_COMM_NULL;
    (*comm)->rank = rank;
    (*comm)->size = ranks;
    (*comm)->id = id;
    (*comm)->owner = pthread_self();
    return ncclInProgress;
}

// Every second look goes on: the first after a call finds it under way.
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
    *error = (ncclResult_t)atomic_load(&comm->error);
    if (*error != ncclSuccess) {
        return ncclSuccess;
    }
    if (!pthread_equal(pthread_self(), comm->owner)) {
        return ncclSuccess;
    }
    if ((!comm->ready || comm->pending) && comm->looks++ == 0) {
        *error = ncclInProgress;
    } else if (!comm->ready) {
        *error = initialize(comm);
    } else if (comm->pending) {
        *error = go_on(comm);
    }
    if (*error != ncclSuccess && *error != ncclInProgress) {
        atomic_store(&comm->error, (int)*error);
    }
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    if (comm->pending || !comm->ready) {
        return refuse(comm, ncclInvalidUsage, "finalized while a call goes on");
    }
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (comm->mpi != MPI_COMM_NULL) {
        MPI_Comm_free(&comm->mpi);
    }
    free(comm);
    return ncclSuccess;
}

// The memory stays: what hangs still looks at it.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
    static ncclComm_t first;
    if (!atomic_exchange(&comm->aborted, true)) {
        comm->next = first;
        first = comm;
    }
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "in progress"};
    return texts[result];
}

const char *ncclGetLastError(ncclComm_t comm) {
    return comm ? comm->text : last_text;
}

static bool is_device(const void *memory) {
    struct cudaPointerAttributes about;
    return cudaPointerGetAttributes(&about, memory) == cudaSuccess && about.type == cudaMemoryTypeDevice;
}

ncclResult_t ncclCommRegister(ncclComm_t comm, void *memory, size_t bytes, void **handle) {
    *handle = memory;
    return bytes > 0 && is_device(memory) ? ncclSuccess
                                          : refuse(comm, ncclInvalidArgument, "registered what is no device memory");
}

ncclResult_t ncclCommDeregister(ncclComm_t comm, void *handle) {
    return handle ? ncclSuccess : refuse(comm, ncclInvalidArgument, "nothing to deregister");
}

// ---- groups

ncclResult_t ncclGroupStart(void) {
    group.depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    if (group.depth == 0 || --group.depth > 0) {
        return group.depth ? ncclSuccess : refuse(NULL, ncclInvalidUsage, "a group ends that was not begun");
    }
    batch *const b = group.batch;
    group.batch = NULL;
    if (!b) {
        return ncclSuccess;
    }
    b->comm->pending = b;
    b->comm->looks = 0;
    return ncclInProgress;
}

static ncclResult_t add(ncclComm_t comm, cudaStream_t stream, call c) {
    size_call(comm, &c);
    if (!comm->ready || comm->pending ||
        (group.batch && (group.batch->comm != comm || group.batch->stream != stream))) {
        return refuse(comm, ncclInvalidUsage, "called while another call goes on, or in a group of others");
    }
    if ((c.out_bytes && !is_device(c.send)) || (c.in_bytes && !is_device(c.receive))) {
        return refuse(comm, ncclInvalidArgument, "a buffer is no device memory");
    }
    if (c.out_bytes > INT_MAX || c.in_bytes > INT_MAX) {
        return refuse(comm, ncclInvalidArgument, "more than the imitation sends at once");
    }
    if (c.peer < 0 || c.peer >= comm->size || (c.kind <= RECEIVE && c.peer == comm->rank) ||
        (c.type == ncclBfloat16 && c.kind >= REDUCE && c.kind <= REDUCE_SCATTER)) {
        return refuse(comm, ncclInvalidArgument, "a rank, or a sum of bf16, that is not imitated");
    }
    ncclGroupStart();
    batch *b = group.batch ? group.batch : calloc(1, sizeof *b);
    group.batch = b;
    b->comm = comm;
    b->stream = stream;
    b->calls = realloc(b->calls, (size_t)(b->count + 1) * sizeof *b->calls);
    b->messages = realloc(b->messages, (size_t)(b->count + 1) * sizeof(MPI_Request));
    if (!b->calls || !b->messages) {
        ts_shim_die("out of memory for calls of NCCL");
    }
    b->calls[b->count++] = c;
    return ncclGroupEnd();
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return add(comm, stream, (call){.kind = SEND, .send = send, .count = count, .type = type, .peer = peer});
}

ncclResult_t ncclRecv(void *receive, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return add(comm, stream, (call){.kind = RECEIVE, .receive = receive, .count = count, .type = type, .peer = peer});
}

ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
    return add(comm, stream, (call){BROADCAST, send, receive, count, type, ncclSum, root, NULL, NULL, 0, 0});
}

ncclResult_t ncclReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t stream) {
    return add(comm, stream, (call){REDUCE, send, receive, count, type, op, root, NULL, NULL, 0, 0});
}

ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
    return add(comm, stream, (call){ALL_REDUCE, send, receive, count, type, op, 0, NULL, NULL, 0, 0});
}

ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
    return add(comm, stream, (call){REDUCE_SCATTER, send, receive, count, type, op, 0, NULL, NULL, 0, 0});
}

ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
    return add(comm, stream, (call){ALL_GATHER, send, receive, count, type, ncclSum, 0, NULL, NULL, 0, 0});
}
