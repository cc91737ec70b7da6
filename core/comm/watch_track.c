// SPDX-License-Identifier: Apache-2.0
// What a rank publishes of its calls. One thread at a time makes calls and writes; the heartbeat thread reads. A
// version number around each write, odd while it lasts, tells the reader to try again.
#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/status.h"
#include "core/comm/transport.h"

#define LOAD(x)         atomic_load_explicit(&(x), memory_order_relaxed)
#define STORE(x, value) atomic_store_explicit(&(x), (value), memory_order_relaxed)

static struct {
    atomic_uint version;
    _Atomic int64_t step;
    _Atomic(const char *) note;
    _Atomic(const ts_watch_track *) doing;  // communicator of the latest call
    _Atomic uint64_t sequence, hash, bytes, form, calls, on_device;
    _Atomic double since;  // when it went in; negative when it is out
    pthread_mutex_t lock;  // on the list of communicators
    ts_watch_track *first;
    int registered;
} state = {.step = -1, .since = -1, .lock = PTHREAD_MUTEX_INITIALIZER};

static void write_begin(void) {
    STORE(state.version, LOAD(state.version) + 1);
    atomic_thread_fence(memory_order_release);
}

static void write_end(void) {
    atomic_store_explicit(&state.version, LOAD(state.version) + 1, memory_order_release);
}

// ---- communicators

// The first rank of a communicator names it: by its own number in the world and a count of its own.
int ts_watch_register(ts_comm *comm, const char *name) {
    ts_watch_track *const track = &comm->watch;
    if (comm->size == 1) {
        return TS_OK;
    }
    int world_rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
    uint64_t id = (uint64_t)world_rank << 32 | (uint64_t)++state.registered;
    TS_TRY(ts_mpi_check(MPI_Bcast(&id, 1, MPI_UINT64_T, 0, comm->mpi), "MPI_Bcast"));
    track->id = id;
    track->size = comm->size;
    snprintf(track->name, sizeof track->name, "%s", name);
    pthread_mutex_lock(&state.lock);
    ts_watch_track **end = &state.first;
    while (*end) {
        end = &(*end)->next;
    }
    *end = track;
    pthread_mutex_unlock(&state.lock);
    return TS_OK;
}

void ts_watch_forget(ts_watch_track *track) {
    pthread_mutex_lock(&state.lock);
    for (ts_watch_track **at = &state.first; *at; at = &(*at)->next) {
        if (*at == track) {
            *at = track->next;
            break;
        }
    }
    if (LOAD(state.doing) == track) {
        STORE(state.doing, NULL);
    }
    pthread_mutex_unlock(&state.lock);
}

// ---- calls

static uint64_t mix(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 29;
}

static int count_counts(const ts_comm *comm, int kind) {
    switch (kind) {
    case TS_ALL_GATHER:
    case TS_REDUCE_SCATTER:
    case TS_ALL_TO_ALL:
        return comm->size;
    case TS_ALL_REDUCE:
    case TS_BROADCAST:
    case TS_RING:
        return 1;
    default:
        return 0;
    }
}

static void set_doing(const ts_watch_ticket *ticket, double now) {
    STORE(state.doing, ticket->track);
    STORE(state.sequence, ticket->sequence);
    STORE(state.hash, ticket->call.hash);
    STORE(state.bytes, (uint64_t)ticket->call.bytes);
    STORE(state.form, (uint64_t)ticket->call.kind | (uint64_t)ticket->call.dtype << 8);
    STORE(state.since, now);
    STORE(state.on_device, 0);
}

double ts_watch_begin(ts_comm *comm, int kind, const int64_t *counts, ts_dtype dtype, int detail) {
    const double now = ts_clock_seconds();
    ts_watch_track *const track = &comm->watch;
    const uint64_t before = LOAD(track->sequence), sequence = before + 1;
    const bool differs = kind == TS_ALL_TO_ALL || kind == TS_RING;  // what a rank sends is its own affair
    uint64_t hash = LOAD(track->recent[before % TS_WATCH_RECENT].hash);
    hash = mix(hash, (uint64_t)kind | (uint64_t)dtype << 8 | (uint64_t)(uint32_t)detail << 16);
    hash = mix(hash, (uint64_t)LOAD(state.step));
    int64_t sum = 0;
    for (int i = 0; i < count_counts(comm, kind); i++) {
        sum += counts[i];
        hash = differs ? hash : mix(hash, (uint64_t)counts[i]);
    }
    const ts_watch_ticket ticket = {
        track,
        sequence,
        {.hash = hash, .bytes = sum * (int64_t)ts_dtype_bytes(dtype), .kind = kind, .dtype = (int32_t)dtype}};
    write_begin();
    set_doing(&ticket, now);
    STORE(state.calls, LOAD(state.calls) + 1);
    STORE(track->sequence, sequence);
    STORE(track->recent[sequence % TS_WATCH_RECENT].hash, hash);
    STORE(track->recent[sequence % TS_WATCH_RECENT].bytes, (uint64_t)ticket.call.bytes);
    STORE(track->recent[sequence % TS_WATCH_RECENT].form, (uint64_t)kind | (uint64_t)dtype << 8);
    for (int i = 0; i < TS_WATCH_MARKS && sequence % ((uint64_t)64 << 4 * i) == 0; i++) {
        STORE(track->mark[i], hash);
    }
    write_end();
    return now;
}

void ts_watch_end(void) {
    STORE(state.since, -1.0);  // alone, and so without a version
}

uint32_t ts_watch_fingerprint(const ts_comm *comm) {
    return (uint32_t)LOAD(comm->watch.recent[LOAD(comm->watch.sequence) % TS_WATCH_RECENT].hash);
}

ts_watch_ticket ts_watch_get_ticket(const ts_comm *comm) {
    const ts_watch_track *const track = &comm->watch;
    const uint64_t sequence = LOAD(track->sequence), form = LOAD(track->recent[sequence % TS_WATCH_RECENT].form);
    return (ts_watch_ticket){track,
                             sequence,
                             {.hash = LOAD(track->recent[sequence % TS_WATCH_RECENT].hash),
                              .bytes = (int64_t)LOAD(track->recent[sequence % TS_WATCH_RECENT].bytes),
                              .kind = (int32_t)(form & 0xff),
                              .dtype = (int32_t)(form >> 8)}};
}

double ts_watch_resume(const ts_watch_ticket *ticket) {
    const double now = ts_clock_seconds();
    write_begin();
    set_doing(ticket, now);
    write_end();
    return now;
}

bool ts_watch_begin_device(const ts_watch_ticket *last) {
    if (LOAD(state.since) >= 0) {
        return false;
    }
    write_begin();
    set_doing(last, ts_clock_seconds());
    STORE(state.on_device, 1);
    write_end();
    return true;
}

void ts_watch_step(int64_t step) {
    STORE(state.step, step);
}

void ts_watch_note(const char *what) {
    STORE(state.note, what);
}

// ---- reading

static void read_line(ts_watch_line *out, const ts_watch_track *track) {
    *out = (ts_watch_line){.id = track->id, .sequence = LOAD(track->sequence), .size = track->size};
    memcpy(out->name, track->name, sizeof out->name);
    for (int i = 0; i < TS_WATCH_RECENT; i++) {
        const uint64_t form = LOAD(track->recent[i].form);
        out->recent[i] = (ts_watch_call){.hash = LOAD(track->recent[i].hash),
                                         .bytes = (int64_t)LOAD(track->recent[i].bytes),
                                         .kind = (int32_t)(form & 0xff),
                                         .dtype = (int32_t)(form >> 8)};
    }
    for (int i = 0; i < TS_WATCH_MARKS; i++) {
        out->mark[i] = LOAD(track->mark[i]);
    }
}

static void read_all(ts_watch_pulse *out) {
    const double now = ts_clock_seconds(), since = LOAD(state.since);
    const ts_watch_track *const doing = LOAD(state.doing);
    const uint64_t form = LOAD(state.form);
    const char *const note = LOAD(state.note);
    out->step = LOAD(state.step);
    out->doing = doing ? doing->id : 0;
    out->sequence = doing ? LOAD(state.sequence) : 0;
    out->calls = LOAD(state.calls);
    out->on_device = LOAD(state.on_device);
    out->inside = since < 0 ? -1 : now > since ? now - since : 0;
    out->call = (ts_watch_call){.hash = LOAD(state.hash),
                                .bytes = (int64_t)LOAD(state.bytes),
                                .kind = (int32_t)(form & 0xff),
                                .dtype = (int32_t)(form >> 8)};
    snprintf(out->name, sizeof out->name, "%s", doing ? doing->name : "");
    snprintf(out->note, sizeof out->note, "%s", note ? note : "");
    out->lines = 0;
    for (const ts_watch_track *track = state.first; track && out->lines < TS_WATCH_LINES; track = track->next) {
        read_line(&out->line[out->lines++], track);
    }
}

// A writer that was interrupted in the middle of a write holds the reader up; one that stays so leaves `out` as it was.
void ts_watch_take_pulse(ts_watch_pulse *out, int rank) {
    ts_watch_pulse pulse = {.rank = rank};
    bool whole = false;
    pthread_mutex_lock(&state.lock);
    for (int attempt = 0; attempt < 1000 && !whole; attempt++) {
        const unsigned before = atomic_load_explicit(&state.version, memory_order_acquire);
        if (before % 2 == 0) {
            read_all(&pulse);
            atomic_thread_fence(memory_order_acquire);
        }
        whole = before % 2 == 0 && before == LOAD(state.version);
        if (!whole) {
            sched_yield();
        }
    }
    pthread_mutex_unlock(&state.lock);
    if (whole) {
        *out = pulse;
    }
}
