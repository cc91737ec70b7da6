// SPDX-License-Identifier: Apache-2.0
// Communicators of NCCL for the memory of GPUs: one for each of ours, opened at its first call. nccl_calls.c has the
// calls.
//
// Part of the CUDA backend (core/kernels/cuda), which programs are linked with or not. All calls go to the
// communication stream, between a fork from the stream of the kernels and a join into it, at once or in ts_wait: the
// host waits for none of them. One stream for all communicators keeps their calls in one order on every rank, as NCCL
// wants it.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/comm/nccl_private.h"

enum { PATIENT_LOOKS = 200 };       // at a call of NCCL that goes on, before sleeping between them
static const double patience = 10;  // seconds that closing waits for what is under way

typedef struct ts_nccl_registration {
    const void *memory;
    void *handle;
    struct ts_nccl_registration *next;
} registration;

// Open communicators, which the watch's thread looks at.
static struct {
    pthread_mutex_t lock;
    ts_nccl *first;
} open_ones = {.lock = PTHREAD_MUTEX_INITIALIZER};

// ---- errors

static int fail(const ts_nccl *n, ncclResult_t code, const char *call) {
    return TS_FAIL(TS_EPEER, "%.*s on the %s axis: %s: %.300s; NCCL_DEBUG=WARN tells more", (int)strcspn(call, "("),
                   call, n->name, ncclGetErrorString(code), ncclGetLastError(n->comm));
}

// Waits until NCCL has taken the call in. Other ranks' messages are moved on meanwhile: one of them may have to go on
// before it can come here.
int ts_nccl_check(const ts_nccl *n, ncclResult_t code, const char *call) {
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

// ---- registered memory

// Only when asked for: nobody has measured it here.
static int register_block(ts_nccl *n, const void *buffer) {
    size_t bytes;
    const void *const memory = ts_device_block(buffer, &bytes);
    if (!memory) {
        return TS_OK;
    }
    for (const registration *r = n->blocks; r; r = r->next) {
        if (r->memory == memory) {
            return TS_OK;
        }
    }
    registration *r = ts_calloc(1, sizeof *r);
    if (!r) {
        return TS_ERESOURCE;
    }
    r->memory = memory;
    r->next = n->blocks;
    n->blocks = r;
    TS_NCCL(n, ncclCommRegister(n->comm, (void *)(uintptr_t)memory, bytes, &r->handle));
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
    for (registration **at = &n->blocks; *at;) {
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

// ---- waiting for the device

// The latest call of any communicator: what the device is busy with, as far as other ranks are concerned.
static ts_watch_ticket latest;

bool ts_nccl_begin_wait(void) {
    return latest.track && ts_watch_begin_device(&latest);
}

void ts_nccl_end_wait(bool began) {
    if (began) {
        ts_watch_end();
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
    TS_NCCL(n, ncclCommInitRankConfig(&n->comm, comm->size, id, comm->rank, &config));
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
    if (latest.track == &comm->watch) {
        latest.track = NULL;
    }
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

int ts_nccl_enter(const ts_comm *comm, const void *a, const void *b) {
    ncclResult_t code = ncclSuccess;
    TS_NCCL(comm->nccl, ncclCommGetAsyncError(comm->nccl->comm, &code));
    TS_TRY(ts_nccl_check(comm->nccl, code, "an earlier call"));
    TS_TRY(register_buffers(comm, a, b));
    latest = ts_watch_get_ticket(comm);
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

int ts_nccl_leave_started(ts_comm *comm, ts_collective kind, ts_request **out) {
    landing *l;
    TS_TRY(take_landing(&l));
    TS_CUDA(cudaEventRecord(l->done, ts_cuda_communication_stream()));
    TS_TRY(ts_request_take(out, comm, kind, 0, 0));
    ts_request_then(*out, land, l);
    return TS_OK;
}

// ---- what core/comm/device.c finds

const ts_nccl_entries ts_nccl_backend = {
    .device = &ts_cuda_device,
    .transport = &ts_nccl_transport,
    .version = version,
    .name_gpu = name_gpu,
    .shares_gpus = shares_gpus,
    .open = open_nccl,
    .close = close_nccl,
    .abort_all = abort_all,
    .find_error = find_error,
};
