// SPDX-License-Identifier: Apache-2.0
// The transport between ranks of one host: through a segment of memory that all of them map.
//
// Asynchronous forms go over MPI: their messages move while others are waited for.
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/log.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "core/comm/reduce.h"
#include "core/comm/request.h"
#include "core/comm/shared.h"

enum {
    LOOKS = 300,            // at a mark before the processor is offered to other ranks
    YIELDS = 50,            // such offers before going to sleep
    BUSY_NAP = 100 * 1000,  // ns of sleep while messages are under way, which somebody must move on
    IDLE_NAP = 100 * 1000 * 1000
};

bool ts_shared_may_read = true;
static int ranks_of_host;  // of the world

// ---- the segment

static size_t marks_bytes(int size) {
    return ((size_t)size * sizeof(ts_shared_mark) + 4095) / 4096 * 4096;
}

ts_shared_mark *ts_shared_mark_of(const ts_comm *comm, int rank) {
    return (ts_shared_mark *)(void *)comm->shared->base + rank;
}

// The buffer of a rank in the step under way.
char *ts_shared_buffer(const ts_comm *comm, int rank) {
    const size_t index = 2 * (size_t)rank + comm->shared->step % 2;
    return comm->shared->base + marks_bytes(comm->size) + index * TS_SHARED_BUFFER;
}

// Memory is reserved here, each rank's near to it, so that the lack of it is an error and not a signal later.
static int map_segment(ts_comm *comm, int file) {
    ts_shared *s = comm->shared;
    const size_t own = marks_bytes(comm->size) + 2 * (size_t)comm->rank * TS_SHARED_BUFFER;
    const int code = posix_fallocate(file, comm->rank ? (off_t)own : 0,
                                     (off_t)(comm->rank ? 2 * TS_SHARED_BUFFER : own + 2 * TS_SHARED_BUFFER));
    if (code) {
        return TS_FAIL(TS_ERESOURCE, "cannot reserve %zu bytes of shared memory: %s", s->bytes, strerror(code));
    }
    void *const base = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (base == MAP_FAILED) {
        return TS_FAIL(TS_ERESOURCE, "cannot map %zu bytes of shared memory: %s", s->bytes, strerror(errno));
    }
    s->base = base;
    return TS_OK;
}

// What finds rank 0's memory again: its place among that process's open files, and what it must be there, since the
// same process number may mean another process in another name space.
typedef struct segment_place {
    char path[64];
    dev_t device;
    ino_t number;
} segment_place;

// Memory without a name: nobody else comes upon it, and nothing of it is left when the job is killed.
static int make_file(const ts_comm *comm, int *file, segment_place *place) {
    struct stat about;
    *file = memfd_create("tessera", MFD_CLOEXEC);
    if (*file < 0 || ftruncate(*file, (off_t)comm->shared->bytes) || fstat(*file, &about)) {
        return TS_FAIL(TS_ERESOURCE, "cannot make shared memory: %s", strerror(errno));
    }
    snprintf(place->path, sizeof place->path, "/proc/%d/fd/%d", (int)getpid(), *file);
    place->device = about.st_dev;
    place->number = about.st_ino;
    return TS_OK;
}

static int open_file(const segment_place *place, int *file) {
    struct stat about;
    if (stat(place->path, &about) || about.st_dev != place->device || about.st_ino != place->number) {
        return TS_FAIL(TS_ERESOURCE, "cannot find the shared memory of the first rank at %s", place->path);
    }
    *file = open(place->path, O_RDWR | O_CLOEXEC);
    return *file < 0 ? TS_FAIL(TS_ERESOURCE, "cannot open shared memory %s: %s", place->path, strerror(errno)) : TS_OK;
}

// Same answer on all ranks: that of the lowest which failed, else 0.
static int agree(const ts_comm *comm, int status) {
    const int own = status;
    TS_TRY(ts_mpi_check(MPI_Allreduce(MPI_IN_PLACE, &status, 1, MPI_INT, MPI_MIN, comm->mpi), "MPI_Allreduce"));
    return own || !status ? status : TS_FAIL(status, "another rank cannot open shared memory");
}

// Rank 0 makes the memory, all map it, then the files are closed: it lasts as long as it is mapped.
static int open_segment(ts_comm *comm) {
    segment_place place = {0};
    int file = -1, status = comm->rank == 0 ? make_file(comm, &file, &place) : TS_OK;
    TS_TRY(ts_mpi_check(MPI_Bcast(&place, (int)sizeof place, MPI_BYTE, 0, comm->mpi), "MPI_Bcast"));
    if (comm->rank != 0) {
        status = open_file(&place, &file);
    }
    if (!status) {
        status = map_segment(comm, file);
    }
    status = agree(comm, status);
    if (file >= 0) {
        close(file);
    }
    return status;
}

// Whether this rank may read the next one's memory, and finds there what no other process holds: the same process
// number may mean another one in another name space.
static bool reads_next(const ts_comm *comm) {
    uint64_t token = 0;
    const int next = (comm->rank + 1) % comm->size;
    return !ts_shared_read(comm, next, 0, &token, sizeof token) && token == ts_shared_mark_of(comm, next)->token;
}

// More ranks than processors: a step costs a change of process, and MPI's messages need fewer of them.
static bool is_crowded(void) {
    return ts_transport_wanted == TS_TRANSPORT_AUTO && ranks_of_host > sysconf(_SC_NPROCESSORS_ONLN);
}

// Makes room for what is read when all ranks may read each other. Collective.
static int allow_reading(ts_comm *comm) {
    ts_shared *s = comm->shared;
    ts_shared_mark *const mark = ts_shared_mark_of(comm, comm->rank);
    const bool random = getrandom(&s->token, sizeof s->token, GRND_NONBLOCK) == sizeof s->token;
    mark->pid = getpid();
    mark->token = s->token;
    mark->data[0] = &s->token;
    TS_TRY(agree(comm, TS_OK));  // all have told
    int all[2] = {ts_shared_may_read && random && reads_next(comm), !is_crowded()};
    TS_TRY(ts_mpi_check(MPI_Allreduce(MPI_IN_PLACE, all, 2, MPI_INT, MPI_MIN, comm->mpi), "MPI_Allreduce"));
    s->crowded = !all[1];
    if (all[0]) {
        s->scratch = ts_aligned_alloc((size_t)(comm->size - 1) * TS_SHARED_READ);
    }
    return agree(comm, all[0] && !s->scratch ? TS_ERESOURCE : TS_OK);
}

void ts_shared_close(ts_comm *comm) {
    ts_shared *s = comm->shared;
    if (s) {
        if (s->base) {
            munmap(s->base, s->bytes);
        }
        free(s->part);
        free(s->scratch);
        free(s);
        comm->shared = NULL;
    }
}

int ts_shared_open(ts_comm *comm) {
    ts_shared *s = comm->shared = ts_calloc(1, sizeof *s);
    if (s) {
        s->bytes = marks_bytes(comm->size) + 2 * (size_t)comm->size * TS_SHARED_BUFFER;
        s->part = ts_malloc((size_t)comm->size * sizeof *s->part);
    }
    int status = agree(comm, s && s->part ? TS_OK : TS_ERESOURCE);
    status = status ? status : open_segment(comm);
    status = status ? status : allow_reading(comm);
    if (status) {
        ts_shared_close(comm);
    }
    return status;
}

bool ts_shared_possible(MPI_Comm mpi) {
    MPI_Comm host;
    int size, here = 0;
    MPI_Comm_size(mpi, &size);
    if (MPI_Comm_split_type(mpi, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host) == MPI_SUCCESS) {
        MPI_Comm_size(host, &here);
        MPI_Comm_free(&host);
    }
    ranks_of_host = here > ranks_of_host ? here : ranks_of_host;
    return here == size;
}

// ---- steps

char *ts_shared_begin(const ts_comm *comm) {
    comm->shared->step++;
    return ts_shared_buffer(comm, comm->rank);
}

static long futex(_Atomic uint32_t *word, int operation, uint32_t value, const struct timespec *patience) {
    return syscall(SYS_futex, word, operation, value, patience, NULL, 0);
}

// Sleeps until the word is not `seen` any more, or for a while.
static int sleep_on(ts_shared_mark *other, uint32_t seen) {
    const struct timespec moment = {0, ts_request_busy() ? BUSY_NAP : IDLE_NAP};
    TS_TRY(ts_request_progress());
    atomic_fetch_add(&other->sleepers, 1);
    futex(&other->step, FUTEX_WAIT, seen, &moment);  // returns at once when the word has changed meanwhile
    atomic_fetch_sub(&other->sleepers, 1);
    return TS_OK;
}

int ts_shared_meet(const ts_comm *comm) {
    const uint32_t step = comm->shared->step;
    ts_shared_mark *const own = ts_shared_mark_of(comm, comm->rank);
    own->call[step % 2] = ts_watch_fingerprint(comm);
    atomic_store(&own->step, step);
    if (atomic_load(&own->sleepers) > 0) {
        futex(&own->step, FUTEX_WAKE, INT_MAX, NULL);
    }
    for (int i = 1; i < comm->size; i++) {
        ts_shared_mark *const other = ts_shared_mark_of(comm, (comm->rank + i) % comm->size);
        for (int looks = 0;; looks++) {
            const uint32_t seen = atomic_load_explicit(&other->step, memory_order_acquire);
            if ((int32_t)(seen - step) >= 0) {
                break;
            }
            if (looks < LOOKS) {
                _mm_pause();
            } else if (looks < LOOKS + YIELDS) {
                sched_yield();
            } else {
                TS_TRY(sleep_on(other, seen));
            }
        }
        if (other->call[step % 2] != own->call[step % 2]) {
            return TS_FAIL(TS_EPEER, "rank %d of %d on this host makes another call", (comm->rank + i) % comm->size,
                           comm->size);
        }
    }
    return TS_OK;
}

// ---- the table

// From these sizes on reading beats the buffers: bytes of the whole, or of the largest part.
enum {
    ALL_REDUCE_READS = 128 * 1024,
    REDUCE_SCATTER_READS = 32 * 1024,
    ALL_GATHER_READS = 16 * 1024,
    BROADCAST_SENDS = 16 * 1024  // over MPI, which is as fast
};

static const ts_transport *choose(const ts_comm *comm, int64_t bytes, int64_t reads_from) {
    return comm->shared->scratch && bytes >= reads_from ? &ts_shared_reading : &ts_shared_copying;
}

static int64_t most_bytes(const ts_comm *comm, const int64_t *counts, ts_dtype dtype) {
    int64_t most = 0;
    for (int rank = 0; rank < comm->size; rank++) {
        most = counts[rank] > most ? counts[rank] : most;
    }
    return most * (int64_t)ts_dtype_bytes(dtype);
}

static int all_reduce(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const int64_t bytes = count * (int64_t)ts_dtype_bytes(dtype);
    return choose(comm, bytes, ALL_REDUCE_READS)->all_reduce(comm, data, count, dtype, op);
}

static int broadcast(ts_comm *comm, void *data, int64_t bytes, int root) {
    return (bytes < BROADCAST_SENDS ? &ts_shared_copying : &ts_mpi_transport)->broadcast(comm, data, bytes, root);
}

static int all_gather_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const int64_t bytes = most_bytes(comm, counts, dtype);
    const bool sends = comm->shared->crowded && bytes >= ALL_GATHER_READS;
    const ts_transport *const t = sends ? &ts_mpi_transport : choose(comm, bytes, ALL_GATHER_READS);
    return t->all_gather_v(comm, send, receive, counts, dtype);
}

static int reduce_scatter_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const ts_transport *const t = choose(comm, most_bytes(comm, counts, dtype), REDUCE_SCATTER_READS);
    return t->reduce_scatter_v(comm, send, receive, counts, dtype);
}

static int all_to_all_v(ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                        const int64_t *receive_counts, ts_dtype dtype) {
    const ts_transport *const t = comm->shared->crowded ? &ts_mpi_transport : choose(comm, 0, 0);
    return t->all_to_all_v(comm, send, send_counts, receive, receive_counts, dtype);
}

static int barrier(ts_comm *comm) {
    ts_shared_begin(comm);
    return ts_shared_meet(comm);
}

const ts_transport ts_shared_transport = {
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
