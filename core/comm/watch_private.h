// SPDX-License-Identifier: Apache-2.0
// Inside core/comm only: what a rank publishes of its calls, the messages that carry it, and the judge of them.
#ifndef TS_COMM_WATCH_PRIVATE_H
#define TS_COMM_WATCH_PRIVATE_H

#include <netinet/in.h>
#include <stdatomic.h>

#include "core/comm/watch.h"

// Calls on a communicator that are no transport's.
enum { TS_WATCH_AGREE = TS_COLLECTIVE_COUNT, TS_WATCH_END, TS_WATCH_KINDS };

enum {
    TS_WATCH_RECENT = 8,  // calls of a communicator that are kept one by one
    TS_WATCH_MARKS = 4,   // and the sparse ones: every 64th, 1024th, 16384th, 262144th
    TS_WATCH_LINES = 16,  // communicators of a rank that are watched, the oldest ones
    TS_WATCH_NAME_BYTES = 16,
    TS_WATCH_NOTE_BYTES = 48,
    TS_WATCH_HOST_BYTES = 64
};

// ---- what a rank publishes: written by the thread that makes the calls, read by the heartbeat thread

// The calls on one communicator; part of its ts_comm. The first four fields never change once it is registered.
typedef struct ts_watch_track {
    uint64_t id;  // the same on all ranks of the communicator, and of no other; 0 when not watched
    int size;
    char name[TS_WATCH_NAME_BYTES];
    struct ts_watch_track *next;
    _Atomic uint64_t sequence;  // of the last call; the first is 1
    struct {
        _Atomic uint64_t hash, bytes, form;  // form: kind and dtype
    } recent[TS_WATCH_RECENT];               // [sequence % TS_WATCH_RECENT]
    _Atomic uint64_t mark[TS_WATCH_MARKS];   // the hash at the last multiple of 64 * 16^i
} ts_watch_track;

typedef struct ts_watch_call {
    uint64_t hash;  // of this call and all before it on the communicator, as far as they must agree between ranks
    int64_t bytes;  // of data, on this rank
    int32_t kind, dtype;
} ts_watch_call;

// A call that was started and is waited for later.
typedef struct ts_watch_ticket {
    const ts_watch_track *track;
    uint64_t sequence;
    ts_watch_call call;
} ts_watch_ticket;

// Collective over `comm`. Its calls are watched from now on, under this name.
int ts_watch_register(ts_comm *comm, const char *name);
void ts_watch_forget(ts_watch_track *track);
// Before and after every blocking call. `counts` as for ts_comm_bytes; `detail` is the operation or the root. Returns
// the time, which callers measure from.
double ts_watch_begin(ts_comm *comm, int kind, const int64_t *counts, ts_dtype dtype, int detail);
void ts_watch_end(void);
// Of all calls on `comm` so far: equal on its ranks, unless they make different ones.
uint32_t ts_watch_fingerprint(const ts_comm *comm);
// Of the last call begun on `comm`; for ts_watch_resume before waiting for it, which ts_watch_end follows.
ts_watch_ticket ts_watch_get_ticket(const ts_comm *comm);
double ts_watch_resume(const ts_watch_ticket *ticket);
// Outside of calls: this rank waits for its device, whose last call was this one, until ts_watch_end. False, and
// nothing is to be ended, inside a call.
bool ts_watch_begin_device(const ts_watch_ticket *last);
// A rank that ends the job by itself: the thread kills the process when it still lives some seconds later. With `ask`
// it first waits a moment for rank 0's judgement, which may know better what is wrong and then ends the process.
void ts_watch_abort(int exit_code, bool ask);

// ---- messages

typedef struct ts_watch_line {
    uint64_t id, sequence;
    char name[TS_WATCH_NAME_BYTES];
    int64_t size;
    ts_watch_call recent[TS_WATCH_RECENT];
    uint64_t mark[TS_WATCH_MARKS];
} ts_watch_line;

typedef struct ts_watch_pulse {
    int32_t rank, lines;
    int64_t step;                    // -1 when there was none
    uint64_t doing, sequence;        // communicator and number of the latest call; 0 when there was none
    uint64_t calls;                  // of this rank so far, on all communicators
    double inside;                   // seconds since it went in; negative when it is out
    uint64_t on_device;              // 1: inside is a wait for the device, which is in the latest call or before it
    ts_watch_call call;              // the latest one
    char name[TS_WATCH_NAME_BYTES];  // of its communicator
    char note[TS_WATCH_NOTE_BYTES];
    ts_watch_line line[TS_WATCH_LINES];  // the first `lines` of them travel
} ts_watch_pulse;

// Reads what the rank has published; leaves `out` as it was while a write lasts.
void ts_watch_take_pulse(ts_watch_pulse *out, int rank);

// ---- the judge

typedef struct ts_watch_peer {
    bool present;   // has sent a pulse, and has not taken its leave
    bool gone;      // its connection broke
    double silent;  // seconds since its last sign
    char host[TS_WATCH_HOST_BYTES];
    ts_watch_pulse pulse;
} ts_watch_peer;

// One line of one rank: the index by communicator.
typedef struct ts_watch_entry {
    const ts_watch_line *line;
    int rank;
} ts_watch_entry;

typedef struct ts_watch_judge {
    const ts_watch_peer *peers;  // [size]
    int size;
    double timeout;
    ts_watch_entry *entries;  // [size * TS_WATCH_LINES] scratch
    bool *stuck, *held;       // [size] scratch
} ts_watch_judge;

static const double TS_WATCH_LOSS_SECONDS = 3;  // that a launcher gets to notice a lost process by itself

// True when the job must end, with the line to print. Reads the peers, changes the scratch only.
bool ts_watch_find_fault(const ts_watch_judge *judge, char *text, size_t bytes);
// "[rank 2/4 host-b] step 117: silent for 30 s; last seen ..."
void ts_watch_describe_silence(const ts_watch_peer *peer, int rank, int size, char *text, size_t bytes);
// "[rank 2/4 host-b] step 117: " and what has failed
void ts_watch_describe_error(const ts_watch_peer *peer, int rank, int size, const char *what, char *text, size_t bytes);

// ---- sockets

enum { TS_WATCH_ADDRESSES = 16 };
typedef union ts_watch_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} ts_watch_address;

// How to reach rank 0.
typedef struct ts_watch_invitation {
    uint64_t token;  // random: tells this job's sockets from others'
    int32_t count;
    ts_watch_address address[TS_WATCH_ADDRESSES];
} ts_watch_invitation;

typedef enum { TS_WATCH_HELLO = 1, TS_WATCH_WELCOME, TS_WATCH_PULSE, TS_WATCH_LEAVE, TS_WATCH_OVER } ts_watch_type;

typedef struct ts_watch_frame {
    uint32_t type, bytes;  // of the body
    union {
        struct {
            uint64_t token;
            int32_t rank;
            char host[TS_WATCH_HOST_BYTES];
        } hello;
        uint64_t token;
        ts_watch_pulse pulse;
    } body;
} ts_watch_frame;

// A connected socket that never blocks.
typedef struct ts_watch_wire {
    int fd, rank;      // of the peer; 0 before it has said so
    size_t got, left;  // bytes of `in` received, of `out` still to be sent
    size_t out_bytes;
    ts_watch_frame in, out;
} ts_watch_wire;

// Rank 0: opens a listening socket for each family of addresses it has; fds[i] is -1 when there is none.
int ts_watch_listen(int fds[2], ts_watch_invitation *out, const char *network);
// The others: connects within 20 s, whichever address answers first.
int ts_watch_join(ts_watch_wire *out, const ts_watch_invitation *invitation, int rank, const char *host);
// Queues a message, unless the one before is still on its way: then the peer does not read, and is silent anyhow.
void ts_watch_send(ts_watch_wire *wire, ts_watch_type type, const void *body, size_t bytes);
void ts_watch_flush(ts_watch_wire *wire);
// 1: a message is in wire->in, call again; 0: no more for now; negative: the connection is of no more use.
int ts_watch_receive(ts_watch_wire *wire);
size_t ts_watch_pulse_bytes(const ts_watch_pulse *pulse);  // that travel

#endif
