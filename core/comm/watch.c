// SPDX-License-Identifier: Apache-2.0
// The threads of the watch: rank 0's hears all ranks and judges; the others' tell it what their rank does and listen
// for its own heart.
#include "core/comm/watch.h"

#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/base/signal.h"
#include "core/base/status.h"
#include "core/comm/transport.h"

static const double abort_seconds = 5;  // that MPI gets to end the job before the thread ends the process

static struct {
    int rank, size, wake, listening[2];
    double timeout, interval;
    uint64_t token;
    char host[TS_WATCH_HOST_BYTES];
    pthread_t thread;
    bool running;
    atomic_bool stop;
    atomic_int abort_code;
    _Atomic double abort_at;  // 0: it is not asked for

    // The thread's own from its start to its end. Rank 0 knows all ranks; the others know rank 0.
    ts_watch_pulse own;
    ts_watch_peer *peers;    // [size], of which the others use the first
    double *heard;           // [size] when a peer last gave a sign, or when its connection broke
    ts_watch_wire **wires;   // [wire_count], of wire_room
    ts_watch_wire **chosen;  // [size] the one of wires that a rank uses; NULL before its first pulse and when it broke
    struct pollfd *polled;   // [3 + wire_room]: wake, listening, wires
    int wire_count, wire_room, missing;
    ts_watch_entry *entries;
    bool *stuck, *held;
    double last_round, awake;  // awake: when this thread last went on after a stop
    double failing;            // when NCCL was first found to have failed; 0: it has not
} watch = {.wake = -1, .listening = {-1, -1}};

// ---- the end of the job

// One write, so that no other line cuts it in two; a reader that has stopped reading does not hold the end up.
static void print_line(const char *text) {
    char line[1024];
    const int length = snprintf(line, sizeof line, "%.1000s\n", text);
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (poll(&out, 1, 1000) == 1) {
        (void)!write(STDERR_FILENO, line, (size_t)length);
    }
}

// Whether the process that started this one is a launcher of Open MPI.
static bool is_launcher(pid_t parent) {
    static const char *const names[] = {"mpirun", "mpiexec", "orterun", "orted", "prterun", "prted"};
    char path[64], name[32] = "";
    snprintf(path, sizeof path, "/proc/%ld/comm", (long)parent);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const ssize_t length = fd < 0 ? 0 : read(fd, name, sizeof name - 1);
    close(fd);
    name[length > 0 ? length - 1 : 0] = '\0';  // without the newline
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!strcmp(name, names[i])) {
            return true;
        }
    }
    return false;
}

// A launcher that has lost a host waits for its answer as long as TCP lets it. A process of its own gives it the time
// to end a job that can be ended, then ends it. Between fork and _exit there are system calls only.
static void end_launcher_in_time(void) {
    const pid_t launcher = getppid();
    if (!is_launcher(launcher) || fork() != 0) {
        return;
    }
    setsid();
    close_range(0, ~0u, 0);  // it reads the ranks' output to its end
    for (int i = 0; i < 60; i++) {
        if (kill(launcher, 0)) {
            _exit(0);
        }
        usleep(50000);
    }
    kill(launcher, SIGKILL);
    _exit(0);
}

static bool is_elsewhere(const ts_watch_peer *peer) {
    return peer->present && peer->silent > watch.timeout / 2 && strcmp(peer->host, watch.host) != 0;
}

_Noreturn static void leave_at_once(int code) {
    ts_signal_remove_guarded();
    _exit(code);
}

// The launcher ends the ranks of a job of which one fails; for a launcher that does not, they are told. _exit leaves
// out what CUDA and NCCL do at the end of a program, which would wait for kernels that wait for a rank that is gone;
// the driver ends those with the process.
_Noreturn static void end_job(const char *text) {
    bool host_lost = false;
    for (int rank = 0; rank < watch.size; rank++) {
        host_lost = host_lost || is_elsewhere(&watch.peers[rank]);
    }
    if (host_lost) {
        end_launcher_in_time();
    }
    print_line(text);
    for (int i = 0; i < watch.wire_count; i++) {
        ts_watch_send(watch.wires[i], TS_WATCH_OVER, NULL, 0);
    }
    leave_at_once(ts_exit_code(TS_EPEER));
}

// ---- what both kinds of threads do

// Sleeps until a socket has something to say or the time has come; true when this rank is in a hurry.
static bool rest(double until, int sockets) {
    const double seconds = until - ts_clock_seconds();
    if (poll(watch.polled, (nfds_t)sockets, seconds > 0 ? (int)(seconds * 1000) + 1 : 0) < 0) {
        return false;  // a shorter sleep
    }
    uint64_t ignored;
    return watch.polled[0].revents && read(watch.wake, &ignored, sizeof ignored) > 0;
}

// Called once a beat. A thread that was itself stopped, with the whole job or its machine, must not take that for the
// silence of others, nor for a wait of theirs.
static void begin_beat(double now) {
    const double slept = now - watch.last_round - watch.interval;
    for (int i = 0; i < watch.size && slept > 3 * watch.interval; i++) {
        watch.heard[i] += slept;
    }
    watch.awake = slept > watch.timeout / 2 ? now : watch.awake;
    watch.last_round = now;
    const double at = atomic_load(&watch.abort_at);
    if (at > 0 && now > at) {
        leave_at_once(atomic_load(&watch.abort_code));
    }
    ts_watch_take_pulse(&watch.own, watch.rank);
}

// Ranks that wait for the device come upon what fails there only when their wait ends, and with another rank gone it
// never does. Why NCCL failed rank 0 may find out meanwhile, and is given the time to say it.
static void check_device(double now, double turn) {
    char what[512], text[900];
    if (!ts_nccl_is_there() || !ts_nccl_backend.find_error(what, sizeof what)) {
        return;
    }
    watch.failing = watch.failing > 0 ? watch.failing : now;
    if (now - watch.failing > TS_WATCH_LOSS_SECONDS + turn) {
        ts_watch_peer own = {.pulse = watch.own};
        snprintf(own.host, sizeof own.host, "%s", watch.host);
        ts_watch_describe_error(&own, watch.rank, watch.size, what, text, sizeof text);
        end_job(text);
    }
}

// From now on a peer owes signs of life.
static void expect(int rank, const char *host) {
    ts_watch_peer *const peer = &watch.peers[rank];
    *peer = (ts_watch_peer){.present = true, .pulse = {.rank = rank, .step = -1, .inside = -1}};
    snprintf(peer->host, sizeof peer->host, "%s", host);
    watch.heard[rank] = ts_clock_seconds();
}

static void note_pulse(int rank, const ts_watch_pulse *pulse, double now) {
    memcpy(&watch.peers[rank].pulse, pulse, ts_watch_pulse_bytes(pulse));
    watch.heard[rank] = now;
}

static void note_break(int rank, double now) {
    watch.chosen[rank] = NULL;
    watch.heard[rank] = now;
    watch.peers[rank].gone = true;
}

static void note_leave(int rank) {
    watch.chosen[rank] = NULL;
    watch.peers[rank].present = false;
}

static void leave(void) {
    for (int i = 0; i < watch.wire_count; i++) {
        ts_watch_send(watch.wires[i], TS_WATCH_LEAVE, NULL, 0);
        (void)shutdown(watch.wires[i]->fd, SHUT_WR);
    }
}

// ---- rank 0

static void accept_all(int listening) {
    for (int fd; (fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0;) {
        ts_watch_wire *wire = watch.wire_count < watch.wire_room ? ts_calloc(1, sizeof *wire) : NULL;
        if (!wire) {
            close(fd);  // the caller reports that it got no answer
            continue;
        }
        wire->fd = fd;
        watch.wires[watch.wire_count++] = wire;
    }
}

static void close_listening(void) {
    for (int i = 0; i < 2; i++) {
        if (watch.listening[i] >= 0) {
            close(watch.listening[i]);
            watch.listening[i] = -1;
        }
    }
}

static bool greet(ts_watch_wire *wire) {
    const ts_watch_frame *const frame = &wire->in;
    const int rank = frame->body.hello.rank;
    if (frame->type != TS_WATCH_HELLO || frame->body.hello.token != watch.token || rank < 1 || rank >= watch.size) {
        return false;
    }
    wire->rank = rank;
    expect(rank, frame->body.hello.host);
    ts_watch_send(wire, TS_WATCH_WELCOME, &watch.token, sizeof watch.token);
    return true;
}

// False when the connection is of no more use. A rank greets at several addresses and goes on at one of them; when
// all have, no more are let in.
static bool take_message(ts_watch_wire *wire, double now) {
    const ts_watch_frame *const frame = &wire->in;
    if (wire->rank == 0) {
        return greet(wire);
    }
    if (frame->type == TS_WATCH_PULSE) {
        const bool first = !watch.chosen[wire->rank];
        watch.chosen[wire->rank] = wire;
        note_pulse(wire->rank, &frame->body.pulse, now);
        watch.missing -= first;
        if (first && watch.missing == 0) {
            close_listening();
        }
        return true;
    }
    if (frame->type == TS_WATCH_OVER) {
        leave_at_once(ts_exit_code(TS_EPEER));  // this rank was silent, goes on, and another has said so
    }
    if (frame->type == TS_WATCH_LEAVE && watch.chosen[wire->rank] == wire) {
        note_leave(wire->rank);
    }
    return false;
}

static bool serve(ts_watch_wire *wire, double now) {
    ts_watch_flush(wire);
    int got;
    while ((got = ts_watch_receive(wire)) > 0) {
        if (!take_message(wire, now)) {
            return false;
        }
    }
    return got == 0;
}

static void hear_all(double now) {
    const int known = watch.wire_count;  // those in the polled list
    int kept = 0;
    for (int i = 0; i < known; i++) {
        ts_watch_wire *const wire = watch.wires[i];
        if (!watch.polled[3 + i].revents || serve(wire, now)) {
            watch.wires[kept++] = wire;
            continue;
        }
        if (wire->rank > 0 && watch.chosen[wire->rank] == wire) {
            note_break(wire->rank, now);
        }
        close(wire->fd);
        free(wire);
    }
    watch.wire_count = kept;
    for (int i = 0; i < 2; i++) {
        if (watch.listening[i] >= 0 && watch.polled[1 + i].revents) {
            accept_all(watch.listening[i]);
        }
    }
}

static void judge(double now) {
    char text[900];
    for (int rank = 0; rank < watch.size; rank++) {
        ts_watch_peer *const peer = &watch.peers[rank];
        peer->silent = rank > 0 ? now - watch.heard[rank] : 0;
        peer->pulse.inside = fmin(peer->pulse.inside, now - watch.awake);
    }
    const ts_watch_judge court = {watch.peers, watch.size, watch.timeout, watch.entries, watch.stuck, watch.held};
    if (ts_watch_find_fault(&court, text, sizeof text)) {
        end_job(text);
    }
}

static void beat_first(double now) {
    begin_beat(now);
    note_pulse(0, &watch.own, now);
    ts_watch_pulse brief = watch.own;
    brief.lines = 0;  // the others do not compare
    for (int i = 0; i < watch.wire_count; i++) {
        if (watch.wires[i]->rank > 0) {
            ts_watch_send(watch.wires[i], TS_WATCH_PULSE, &brief, ts_watch_pulse_bytes(&brief));
        }
    }
    judge(now);
    check_device(now, 0);
}

static void *run_first(void *unused) {
    (void)unused;
    for (double next = ts_clock_seconds(); !atomic_load(&watch.stop);) {
        watch.polled[0] = (struct pollfd){.fd = watch.wake, .events = POLLIN};
        for (int i = 0; i < 2; i++) {
            watch.polled[1 + i] = (struct pollfd){.fd = watch.listening[i], .events = POLLIN};
        }
        for (int i = 0; i < watch.wire_count; i++) {
            const ts_watch_wire *const wire = watch.wires[i];
            watch.polled[3 + i] =
                (struct pollfd){.fd = wire->fd, .events = (short)(POLLIN | (wire->left ? POLLOUT : 0))};
        }
        const bool hurry = rest(next, 3 + watch.wire_count);
        const double now = ts_clock_seconds();
        hear_all(now);
        if (hurry || now >= next) {
            beat_first(now);
            next = now + watch.interval;
        }
    }
    leave();
    return NULL;
}

// ---- the others

// One after the other, so that one alone speaks.
static double turn(void) {
    return 0.5 * (watch.rank < 4 ? watch.rank - 1 : 3);
}

static void hear_first(ts_watch_wire *wire, double now) {
    ts_watch_flush(wire);
    int got;
    while ((got = ts_watch_receive(wire)) > 0) {
        if (wire->in.type == TS_WATCH_OVER) {
            leave_at_once(ts_exit_code(TS_EPEER));
        }
        if (wire->in.type == TS_WATCH_PULSE) {
            note_pulse(0, &wire->in.body.pulse, now);
        } else if (wire->in.type == TS_WATCH_LEAVE) {
            note_leave(0);
        }
    }
    if (got < 0) {
        if (watch.peers[0].present) {
            note_break(0, now);
        }
        shutdown(wire->fd, SHUT_RDWR);
        watch.polled[1].fd = -1;
    }
}

static void beat_other(ts_watch_wire *wire, double now) {
    begin_beat(now);
    ts_watch_send(wire, TS_WATCH_PULSE, &watch.own, ts_watch_pulse_bytes(&watch.own));
    ts_watch_peer *const first = &watch.peers[0];
    first->silent = now - watch.heard[0];
    const double allowed = first->gone ? TS_WATCH_LOSS_SECONDS : watch.timeout;
    if (first->present && first->silent > allowed + turn()) {
        char text[900];
        ts_watch_describe_silence(first, 0, watch.size, text, sizeof text);
        end_job(text);
    }
    check_device(now, turn());
}

static void *run_other(void *unused) {
    (void)unused;
    ts_watch_wire *const wire = watch.wires[0];
    watch.polled[0] = (struct pollfd){.fd = watch.wake, .events = POLLIN};
    watch.polled[1] = (struct pollfd){.fd = wire->fd};
    for (double next = ts_clock_seconds(); !atomic_load(&watch.stop);) {
        watch.polled[1].events = (short)(POLLIN | (wire->left ? POLLOUT : 0));
        const bool hurry = rest(next, 2);
        const double now = ts_clock_seconds();
        if (watch.polled[1].fd >= 0 && watch.polled[1].revents) {
            hear_first(wire, now);
        }
        if (hurry || now >= next) {
            beat_other(wire, now);
            next = now + watch.interval;
        }
    }
    leave();
    return NULL;
}

// ---- opening and closing

static void release(void) {
    close_listening();
    for (int i = 0; i < watch.wire_count; i++) {
        close(watch.wires[i]->fd);
        free(watch.wires[i]);
    }
    if (watch.wake >= 0) {
        close(watch.wake);
    }
    free(watch.peers);
    free(watch.heard);
    free(watch.wires);
    free(watch.chosen);
    free(watch.polled);
    free(watch.entries);
    free(watch.stuck);
    free(watch.held);
    watch.wire_count = watch.wire_room = 0;
    watch.wake = -1;
    watch.peers = NULL;
    watch.heard = NULL;
    watch.wires = watch.chosen = NULL;
    watch.polled = NULL;
    watch.entries = NULL;
    watch.stuck = watch.held = NULL;
}

// A rank tries all addresses at once, so that rank 0 may see that many connections of each for a moment.
static int allocate(int addresses) {
    const size_t size = (size_t)watch.size;
    watch.wire_room = watch.rank == 0 ? addresses * watch.size + 16 : 1;
    watch.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    watch.peers = ts_calloc(size, sizeof *watch.peers);
    watch.heard = ts_calloc(size, sizeof *watch.heard);
    watch.wires = ts_calloc((size_t)watch.wire_room, sizeof(ts_watch_wire *));
    watch.chosen = ts_calloc(size, sizeof(ts_watch_wire *));
    watch.polled = ts_calloc(3 + (size_t)watch.wire_room, sizeof *watch.polled);
    watch.entries = ts_calloc(size * TS_WATCH_LINES, sizeof *watch.entries);
    watch.stuck = ts_calloc(size, sizeof *watch.stuck);
    watch.held = ts_calloc(size, sizeof *watch.held);
    if (!watch.peers || !watch.heard || !watch.wires || !watch.chosen || !watch.polled || !watch.entries ||
        !watch.stuck || !watch.held) {
        return TS_ERESOURCE;
    }
    return watch.wake >= 0 ? TS_OK : TS_FAIL(TS_ERESOURCE, "cannot make an event descriptor; raise ulimit -n");
}

// Each rank takes a descriptor of rank 0, which a limit made for small programs may not leave it.
static void raise_descriptor_limit(int wanted) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < (rlim_t)wanted) {
        limit.rlim_cur = limit.rlim_max < (rlim_t)wanted ? limit.rlim_max : (rlim_t)wanted;
        (void)setrlimit(RLIMIT_NOFILE, &limit);  // a rank that then cannot connect says so
    }
}

// Signals are the main thread's.
static int start_thread(void *(*run)(void *)) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    const int code = pthread_create(&watch.thread, NULL, run, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    watch.running = code == 0;
    return watch.running ? TS_OK : TS_FAIL(TS_ERESOURCE, "cannot start the watch's thread: %s", strerror(code));
}

static int open_first(const ts_watch_invitation *invitation) {
    TS_TRY(allocate(invitation->count));
    raise_descriptor_limit(2 * watch.size + 256);
    expect(0, watch.host);
    watch.token = invitation->token;
    watch.missing = watch.size - 1;
    return start_thread(run_first);
}

static int open_other(const ts_watch_invitation *invitation, const char *first_host) {
    TS_TRY(allocate(invitation->count));
    watch.wires[0] = ts_calloc(1, sizeof(ts_watch_wire));
    if (!watch.wires[0]) {
        return TS_ERESOURCE;
    }
    const int status = ts_watch_join(watch.wires[0], invitation, watch.rank, watch.host);
    if (status) {
        free(watch.wires[0]);
        return status;
    }
    watch.wire_count = 1;
    expect(0, first_host);
    return start_thread(run_other);
}

int ts_watch_open(ts_comm *world, const ts_watch_params *params) {
    if (params->timeout > 0 && params->timeout < 1) {
        return TS_FAIL(TS_EUSAGE, "a watch of %g s ends sound jobs, too: give 1 s at least, or 0 for none",
                       params->timeout);
    }
    if (world->size == 1 || params->timeout <= 0 || watch.running) {
        return TS_OK;
    }
    struct {
        ts_watch_invitation invitation;
        char host[TS_WATCH_HOST_BYTES];
    } first = {0};
    const double tenth = params->timeout / 10;
    watch.rank = world->rank;
    watch.size = world->size;
    watch.timeout = params->timeout;
    watch.interval = params->interval > 0 ? params->interval : tenth < 1 ? tenth : 1;
    watch.own = (ts_watch_pulse){.rank = watch.rank, .step = -1, .inside = -1};
    watch.last_round = watch.awake = ts_clock_seconds();
    watch.failing = 0;
    atomic_store(&watch.stop, false);
    gethostname(watch.host, sizeof watch.host - 1);
    int status = TS_OK;
    if (world->rank == 0) {
        status = ts_watch_listen(watch.listening, &first.invitation, params->network);
        memcpy(first.host, watch.host, sizeof first.host);
    }
    TS_TRY(ts_agree(world, status));
    TS_TRY(ts_broadcast(world, &first, sizeof first, 0));
    status = world->rank == 0 ? open_first(&first.invitation) : open_other(&first.invitation, first.host);
    status = ts_agree(world, status);
    if (status) {
        ts_watch_close();
    }
    return status;
}

void ts_watch_close(void) {
    if (watch.running) {
        atomic_store(&watch.stop, true);
        const uint64_t one = 1;
        (void)!write(watch.wake, &one, sizeof one);
        pthread_join(watch.thread, NULL);
        watch.running = false;
    }
    release();
}

void ts_watch_abort(int exit_code, bool ask) {
    if (!watch.running) {
        return;
    }
    const double hearing = ask ? fmin(2.5 * watch.interval + 0.3, 3) : 0;
    const uint64_t one = 1;
    atomic_store(&watch.abort_code, exit_code);
    atomic_store(&watch.abort_at, ts_clock_seconds() + hearing + abort_seconds);
    (void)!write(watch.wake, &one, sizeof one);
    usleep((useconds_t)(1e6 * hearing));
}
