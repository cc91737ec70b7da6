// SPDX-License-Identifier: Apache-2.0
#include "core/comm/request.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/comm/reduce.h"

enum {
    TAGS = 1 << 15,  // what every MPI allows
    ALIGN = 64,
    ROUND_BYTES = 1 << 20,   // that a rank receives in one round, from all others together ..
    LEAST_BYTES = 64 * 1024  // .. but a message is not made smaller than this
};

// A reduce-scatter under way. Round k carries elements [k * chunk, (k + 1) * chunk) of every part.
typedef struct reduction {
    const char *send;       // sum(counts) elements
    char *receive;          // counts[rank] elements
    const int64_t *counts;  // [size]
    const void **part;      // [size] where each rank's share of a round lies
    char *scratch;          // [slots, size - 1, chunk] elements received
    ts_dtype dtype;
    ts_reduce_op op;
    int64_t chunk, rounds, posted, done;
    int slots;  // rounds under way at most
} reduction;

struct ts_request {
    ts_comm *comm;
    ts_collective kind;
    ts_watch_ticket ticket;
    ts_request *next;       // of the same communicator
    ts_request *next_busy;  // of all communicators
    bool busy;
    int tag;
    char *memory;  // owned: the messages, then scratch
    size_t bytes;
    MPI_Request *message;  // [messages]; MPI_REQUEST_NULL where none is under way
    int messages, used;
    reduction sum;  // rounds = 0 when the messages are all there is
    int (*after)(void *context);
    void *context;
};

// Under way, of all communicators, latest first: whoever waits for one moves all of them on.
static ts_request *busy;

// ---- taking and giving back

static size_t aligned(size_t bytes) {
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

// Whether a serves a need of `bytes` better than b: the smallest that is large enough, else the largest.
static bool serves_better(const ts_request *a, const ts_request *b, size_t bytes) {
    const bool a_fits = a->bytes >= bytes, b_fits = b->bytes >= bytes;
    return a_fits != b_fits ? a_fits : a_fits ? a->bytes < b->bytes : a->bytes > b->bytes;
}

static ts_request *find_idle(const ts_comm *comm, size_t bytes) {
    ts_request *best = NULL;
    for (ts_request *r = comm->requests; r; r = r->next) {
        best = !r->busy && (!best || serves_better(r, best, bytes)) ? r : best;
    }
    return best;
}

int ts_request_take(ts_request **out, ts_comm *comm, ts_collective kind, int64_t messages, size_t scratch) {
    *out = NULL;
    const size_t head = aligned((size_t)messages * sizeof(MPI_Request)), bytes = head + scratch;
    ts_request *r = find_idle(comm, bytes);
    if (!r) {
        r = ts_calloc(1, sizeof *r);
        if (!r) {
            return TS_ERESOURCE;
        }
        r->comm = comm;
        r->next = comm->requests;
        comm->requests = r;
    }
    if (r->bytes < bytes) {
        free(r->memory);
        r->bytes = 0;
        r->memory = ts_aligned_alloc(aligned(bytes));
        if (!r->memory) {
            return TS_ERESOURCE;
        }
        r->bytes = bytes;
    }
    r->kind = kind;
    r->ticket = ts_watch_get_ticket(comm);
    r->tag = (int)(comm->sequence++ % TAGS);
    r->message = (MPI_Request *)(void *)r->memory;
    r->messages = (int)messages;
    r->used = 0;
    r->after = NULL;
    r->sum = (reduction){.scratch = r->memory + head};
    for (int64_t i = 0; i < messages; i++) {
        r->message[i] = MPI_REQUEST_NULL;
    }
    r->busy = true;
    r->next_busy = busy;
    busy = r;
    *out = r;
    return TS_OK;
}

void ts_request_then(ts_request *request, int (*after)(void *context), void *context) {
    request->after = after;
    request->context = context;
}

void *ts_request_scratch(ts_request *request) {
    return request->sum.scratch;
}

ts_comm *ts_request_comm(const ts_request *request) {
    return request->comm;
}

ts_collective ts_request_kind(const ts_request *request) {
    return request->kind;
}

const ts_watch_ticket *ts_request_ticket(const ts_request *request) {
    return &request->ticket;
}

static void give_back(ts_request *request) {
    ts_request **at = &busy;
    while (*at != request) {
        at = &(*at)->next_busy;
    }
    *at = request->next_busy;
    request->busy = false;
}

size_t ts_request_memory(const ts_comm *comm) {
    size_t bytes = 0;
    for (const ts_request *r = comm->requests; r; r = r->next) {
        bytes += r->bytes;
    }
    return bytes;
}

void ts_request_delete_all(ts_comm *comm) {
    for (ts_request *r = comm->requests, *next; r; r = next) {
        next = r->next;
        if (r->busy) {
            give_back(r);  // after an error: MPI may still write into its memory, which is left alone
        } else {
            free(r->memory);
        }
        free(r);
    }
    comm->requests = NULL;
}

// ---- messages

int64_t ts_request_messages(int64_t count) {
    return (count + ts_mpi_chunk - 1) / ts_mpi_chunk;
}

int ts_request_send(ts_request *r, const void *data, int64_t count, ts_dtype dtype, int to) {
    const char *at = data;
    while (count > 0) {
        const int n = ts_mpi_next_chunk(count);
        TS_ASSERT(r->used < r->messages);
        TS_TRY(ts_mpi_check(MPI_Isend(at, n, ts_mpi_type(dtype), to, r->tag, r->comm->mpi, &r->message[r->used++]),
                            "MPI_Isend"));
        at += (size_t)n * ts_dtype_bytes(dtype);
        count -= n;
    }
    return TS_OK;
}

int ts_request_receive(ts_request *r, void *data, int64_t count, ts_dtype dtype, int from) {
    char *at = data;
    while (count > 0) {
        const int n = ts_mpi_next_chunk(count);
        TS_ASSERT(r->used < r->messages);
        TS_TRY(ts_mpi_check(MPI_Irecv(at, n, ts_mpi_type(dtype), from, r->tag, r->comm->mpi, &r->message[r->used++]),
                            "MPI_Irecv"));
        at += (size_t)n * ts_dtype_bytes(dtype);
        count -= n;
    }
    return TS_OK;
}

// ---- sums that arrive in rounds

static int64_t in_round(const reduction *sum, int64_t round, int64_t count) {
    const int64_t left = count - round * sum->chunk;
    return left < 0 ? 0 : left < sum->chunk ? left : sum->chunk;
}

// Where the share of `rank` in a round is received; the own rank has no place there.
static char *slot_of(const ts_request *r, int64_t round, int rank) {
    const int others = r->comm->size - 1, place = rank - (rank > r->comm->rank);
    const int64_t element = ((round % r->sum.slots) * others + place) * r->sum.chunk;
    return r->sum.scratch + (size_t)element * ts_dtype_bytes(r->sum.dtype);
}

static int post_round(ts_request *r, int64_t round) {
    const reduction *sum = &r->sum;
    const ts_comm *comm = r->comm;
    const size_t element = ts_dtype_bytes(sum->dtype);
    const int64_t own = in_round(sum, round, sum->counts[comm->rank]);
    const char *part = sum->send;
    r->used = (int)(round % sum->slots) * 2 * (comm->size - 1);
    for (int rank = 0; rank < comm->size; rank++) {
        if (rank != comm->rank) {
            TS_TRY(ts_request_receive(r, slot_of(r, round, rank), own, sum->dtype, rank));
            TS_TRY(ts_request_send(r, part + (size_t)(round * sum->chunk) * element,
                                   in_round(sum, round, sum->counts[rank]), sum->dtype, rank));
        }
        part += (size_t)sum->counts[rank] * element;
    }
    return TS_OK;
}

static void sum_round(ts_request *r, int64_t round) {
    const reduction *sum = &r->sum;
    const size_t element = ts_dtype_bytes(sum->dtype), at = (size_t)(round * sum->chunk) * element;
    const char *part = sum->send;
    for (int rank = 0; rank < r->comm->size; rank++) {
        sum->part[rank] = rank == r->comm->rank ? part + at : slot_of(r, round, rank);
        part += (size_t)sum->counts[rank] * element;
    }
    ts_reduce_parts(sum->receive + at, sum->part, r->comm->size, in_round(sum, round, sum->counts[r->comm->rank]),
                    sum->dtype, sum->op);
}

// Fills in how a sum of `counts` travels between `size` ranks.
static void plan_rounds(reduction *sum, int size, const int64_t *counts, ts_dtype dtype, int64_t window) {
    const int64_t element = (int64_t)ts_dtype_bytes(dtype), others = size - 1;
    int64_t most = 1;
    for (int rank = 0; rank < size; rank++) {
        most = counts[rank] > most ? counts[rank] : most;
    }
    const int64_t bytes = ROUND_BYTES / others > LEAST_BYTES ? ROUND_BYTES / others : LEAST_BYTES;
    int64_t chunk = bytes / element < ts_mpi_chunk ? bytes / element : ts_mpi_chunk;
    chunk = chunk < most ? chunk : most;
    const int64_t rounds = (most + chunk - 1) / chunk;
    int64_t slots = window / (chunk * element * others);
    slots = slots < 2 ? 2 : slots;
    *sum = (reduction){.counts = counts, .dtype = dtype, .chunk = chunk, .rounds = rounds};
    sum->slots = (int)(slots < rounds ? slots : rounds);
}

// Bytes of a request beside its messages: where the parts of a round lie, and the rounds.
static size_t parts_bytes(int size) {
    return aligned((size_t)size * sizeof(void *));
}

static size_t scratch_bytes(const reduction *sum, int size) {
    return parts_bytes(size) + (size_t)(sum->slots * (size - 1) * sum->chunk) * ts_dtype_bytes(sum->dtype);
}

int64_t ts_request_scratch_bytes(int size, const int64_t *counts, ts_dtype dtype, int64_t window) {
    reduction sum;
    plan_rounds(&sum, size, counts, dtype, window);
    return (int64_t)scratch_bytes(&sum, size);
}

int ts_request_reduce(ts_request **out, ts_comm *comm, const void *send, void *receive, const int64_t *counts,
                      ts_dtype dtype, ts_reduce_op op, int64_t window) {
    reduction sum;
    plan_rounds(&sum, comm->size, counts, dtype, window);
    TS_TRY(ts_request_take(out, comm, TS_REDUCE_SCATTER, sum.slots * 2 * (comm->size - 1),
                           scratch_bytes(&sum, comm->size)));
    ts_request *r = *out;
    sum.send = send;
    sum.receive = receive;
    sum.op = op;
    sum.part = (const void **)(void *)r->sum.scratch;
    sum.scratch = r->sum.scratch + parts_bytes(comm->size);
    r->sum = sum;
    for (; r->sum.posted < sum.slots; r->sum.posted++) {
        TS_TRY(post_round(r, r->sum.posted));
    }
    return TS_OK;
}

// ---- waiting

// Sees whether messages [first, first + n) have arrived, or waits until they have.
static int look(ts_request *r, int first, int n, bool wait, bool *arrived) {
    int flag = 1;
    TS_TRY(wait ? ts_mpi_check(MPI_Waitall(n, r->message + first, MPI_STATUSES_IGNORE), "MPI_Waitall")
                : ts_mpi_check(MPI_Testall(n, r->message + first, &flag, MPI_STATUSES_IGNORE), "MPI_Testall"));
    *arrived = flag;
    return TS_OK;
}

// Goes as far as it can, or to the end when it is to wait.
static int move_on(ts_request *r, bool wait, bool *finished) {
    reduction *sum = &r->sum;
    *finished = false;
    if (sum->rounds == 0) {
        return look(r, 0, r->used, wait, finished);
    }
    const int per_round = 2 * (r->comm->size - 1);
    while (sum->done < sum->rounds) {
        bool arrived;
        TS_TRY(look(r, (int)(sum->done % sum->slots) * per_round, per_round, wait, &arrived));
        if (!arrived) {
            return TS_OK;
        }
        sum_round(r, sum->done++);
        if (sum->posted < sum->rounds) {
            TS_TRY(post_round(r, sum->posted++));
        }
    }
    *finished = true;
    return TS_OK;
}

bool ts_request_busy(void) {
    return busy != NULL;
}

int ts_request_progress(void) {
    bool finished;
    for (ts_request *r = busy; r; r = r->next_busy) {
        TS_TRY(move_on(r, false, &finished));
    }
    return TS_OK;
}

// While others are under way, too, all are looked at in turn: another rank may wait for one of those first.
int ts_request_wait(ts_request *request) {
    bool finished = false;
    while (!finished) {
        const bool alone = busy == request && !request->next_busy;
        TS_TRY(move_on(request, alone, &finished));
        if (!finished) {
            TS_TRY(ts_request_progress());
            sched_yield();
        }
    }
    give_back(request);
    return request->after ? request->after(request->context) : TS_OK;
}
