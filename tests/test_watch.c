// SPDX-License-Identifier: Apache-2.0
// TEST: timeout=240
// The watch: the judge's sentences on made-up pulses, and real jobs of four ranks in which one is stopped, skips a
// call or makes another; each ends in time, in one line that names the rank, and leaves no process.
//
// TESSERA_WATCH_TRIALS in the environment: how often a rank is stopped (default 3).
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/comm/mesh.h"
#include "core/comm/watch_private.h"
#include "tests/ts_test.h"

enum { RANKS = 4, STEPS = 60, BAD_STEP = 7 };
static const double TIMEOUT = 2;

// ---- the judge

static ts_watch_peer peers[RANKS];
static ts_watch_entry entries[RANKS * TS_WATCH_LINES];
static bool stuck[RANKS], held[RANKS];
static char text[900];

static bool judge(void) {
    const ts_watch_judge court = {peers, RANKS, 30, entries, stuck, held};
    text[0] = '\0';
    return ts_watch_find_fault(&court, text, sizeof text);
}

static void add_call(ts_watch_line *line, ts_watch_call call) {
    const uint64_t before = line->recent[line->sequence % TS_WATCH_RECENT].hash;
    call.hash = before * 31 + (uint64_t)call.kind * 7 + (uint64_t)call.bytes;
    line->recent[++line->sequence % TS_WATCH_RECENT] = call;
    for (int i = 0; i < TS_WATCH_MARKS; i++) {
        if (line->sequence % ((uint64_t)64 << 4 * i) == 0) {
            line->mark[i] = call.hash;
        }
    }
}

static void enter(int rank, int axis, ts_collective kind, int64_t bytes, double inside) {
    ts_watch_pulse *const pulse = &peers[rank].pulse;
    ts_watch_line *const line = &pulse->line[axis];
    add_call(line, (ts_watch_call){.kind = (int32_t)kind, .bytes = bytes});
    pulse->doing = line->id;
    pulse->sequence = line->sequence;
    pulse->call = line->recent[line->sequence % TS_WATCH_RECENT];
    pulse->inside = inside;
    pulse->calls++;
    memcpy(pulse->name, line->name, sizeof pulse->name);
}

// tensor axes {0, 1} {2, 3}, data axes {0, 2} {1, 3}; all have made `calls` calls on each and are out of them.
static void calm(int calls) {
    memset(peers, 0, sizeof peers);
    for (int rank = 0; rank < RANKS; rank++) {
        peers[rank] = (ts_watch_peer){.present = true, .pulse = {.rank = rank, .lines = 2, .step = 117, .inside = -1}};
        snprintf(peers[rank].host, sizeof peers[rank].host, "host-%c", 'a' + rank / 2);
        peers[rank].pulse.line[0] = (ts_watch_line){.id = (uint64_t)(10 + rank / 2), .name = "tensor", .size = 2};
        peers[rank].pulse.line[1] = (ts_watch_line){.id = (uint64_t)(20 + rank % 2), .name = "data", .size = 2};
        for (int i = 0; i < calls; i++) {
            enter(rank, 0, TS_ALL_GATHER, 1258291, -1);
            enter(rank, 1, TS_ALL_REDUCE, 4096, -1);
        }
    }
}

static void test_silence(void) {
    calm(3);
    CHECK(!judge());
    peers[2].silent = 29;
    CHECK(!judge());
    peers[2].silent = 30.4;
    CHECK(judge());
    CHECK(!strcmp(text, "[rank 2/4 host-b] step 117: silent for 30 s; last seen computing after all-reduce #3 on the "
                        "data axis (4.0 KiB)"));
    enter(2, 0, TS_ALL_GATHER, 1258291, 0.1);
    peers[3].silent = 30;
    CHECK(judge());
    CHECK(!strcmp(text, "[rank 2/4 host-b] step 117: silent for 30 s; last seen in all-gather #4 on the tensor axis "
                        "(1.2 MiB); 1 other rank is silent too"));
    calm(0);
    peers[1].silent = 4;
    peers[1].gone = true;
    snprintf(peers[1].pulse.note, TS_WATCH_NOTE_BYTES, "writing the checkpoint");
    CHECK(judge() &&
          !strcmp(text, "[rank 1/4 host-a] step 117: its process is gone; last seen writing the checkpoint"));
    peers[1].present = false;
    CHECK(!judge());
}

static void test_mismatch(void) {
    calm(5);
    enter(2, 0, TS_ALL_GATHER, 100, 0.1);
    CHECK(!judge());
    enter(3, 0, TS_ALL_GATHER, 2048, 0.1);
    CHECK(judge() &&
          !strcmp(text, "[rank 3/4 host-b] step 117: in all-gather #6 on the tensor axis (2.0 KiB), where rank "
                        "2 on host-b has 100 B"));
    for (int i = 0; i < 5; i++) {  // rank 2 has gone on; the first difference is named still
        enter(2, 0, TS_BARRIER, 0, 0.1);
    }
    CHECK(judge() &&
          strstr(text, "[rank 3/4 host-b] step 117: in all-gather #6 on the tensor axis (2.0 KiB), where rank"));
    calm(5);
    enter(0, 1, TS_BROADCAST, 0, 0.1);
    enter(2, 1, TS_BARRIER, 0, 0.1);
    CHECK(judge() &&
          strstr(text, "[rank 2/4 host-b] step 117: in barrier #6 on the data axis, where rank 0 on host-a is "
                       "in broadcast #6 on the data axis"));
    calm(5);
    enter(1, 0, TS_ALL_GATHER, 100, -1);  // long ago
    enter(0, 0, TS_ALL_GATHER, 200, -1);
    for (int i = 6; i < 2000; i++) {
        enter(0, 0, TS_RING, 1, -1);
        if (i < 1500) {
            enter(1, 0, TS_RING, 1, -1);
        }
    }
    CHECK(judge() &&
          strstr(text, "[rank 1/4 host-a] step 117: its calls on the tensor axis up to #1024 are not those of "
                       "rank 0"));
}

static void test_majority(void) {
    calm(2);
    for (int rank = 0; rank < RANKS; rank++) {
        peers[rank].pulse.line[0].id = 1;  // one axis of four
        enter(rank, 0, TS_ALL_REDUCE, rank == 0 ? 8 : 16, 0.1);
    }
    CHECK(judge() &&
          strstr(text, "[rank 0/4 host-a] step 117: in all-reduce #3 on the tensor axis (8 B), where rank 1 on "
                       "host-a has 16 B"));
}

static void test_deadlock(void) {
    calm(4);
    enter(0, 0, TS_ALL_GATHER, 64, 31);
    CHECK(!judge());  // rank 1 may come yet
    enter(1, 1, TS_ALL_REDUCE, 64, 29);
    CHECK(!judge());
    peers[1].pulse.inside = 30.5;
    CHECK(!judge());  // it waits for rank 3
    enter(3, 0, TS_ALL_GATHER, 64, 40);
    CHECK(!judge());  // which waits for rank 2
    enter(2, 1, TS_ALL_REDUCE, 64, 31);
    CHECK(judge());  // which waits for rank 0
    CHECK(strstr(text, "[rank ") == text && strstr(text, "has waited") && strstr(text, "for it in"));
    calm(4);
    enter(2, 0, TS_ALL_GATHER, 64, 31);
    enter(3, 0, TS_ALL_GATHER, 64, 3);
    CHECK(!judge());
    peers[3].pulse.inside = 30;
    CHECK(judge() && strstr(text, "[rank 2/4 host-b] step 117: for 31 s in all-gather #5 on the tensor axis (64 B), as "
                                  "are all its ranks; is the network between them cut?"));
}

// Rank 1 has left out a call, rank 0 waits for it there, and it waits for rank 0 in the next. That rank 1 is at fault
// shows in the others: they have made one call more before the one it is in.
static void test_left_out(void) {
    calm(4);
    for (int rank = 0; rank < RANKS; rank++) {
        ts_watch_line *const line = &peers[rank].pulse.line[1];
        line->id = 1;
        snprintf(line->name, sizeof line->name, "world");
        if (rank != 1) {
            enter(rank, 0, TS_ALL_GATHER, 64, 31);
        }
        if (rank != 0) {
            enter(rank, 1, TS_ALL_REDUCE, 64, rank == 1 ? 31 : 29);
        }
    }
    CHECK(judge() &&
          !strcmp(text, "[rank 1/4 host-a] step 117: in all-reduce #5 on the world axis (64 B), while rank 0 "
                        "on host-a has waited 31 s for it in all-gather #5 on the tensor axis (64 B)"));
}

// The host of a rank has left its calls, the device has not: it waits for members that have not begun one, and else
// computes.
static void test_device(void) {
    calm(4);
    for (int rank = 0; rank < RANKS; rank++) {
        enter(rank, 0, TS_ALL_GATHER, 64, 300);
        peers[rank].pulse.on_device = 1;
    }
    CHECK(!judge());  // a long step
    peers[0].silent = 31;
    CHECK(judge() && strstr(text, "; last seen in its device's work up to all-gather #5 on the tensor axis (64 B)"));
    calm(4);
    for (int rank = 0; rank < RANKS; rank++) {  // rank 1 leaves out the all-gather, on whose sums rank 0 waits
        ts_watch_line *const line = &peers[rank].pulse.line[1];
        line->id = 1;
        snprintf(line->name, sizeof line->name, "world");
        if (rank != 1) {
            enter(rank, 0, TS_ALL_GATHER, 64, 31);
            peers[rank].pulse.on_device = rank == 0;
        }
        if (rank > 1) {
            enter(rank, 1, TS_ALL_REDUCE, 64, 29);
        }
    }
    CHECK(!judge());  // it computes, and may come yet
    peers[1].pulse.inside = 31;
    peers[1].pulse.on_device = 1;
    CHECK(!judge());  // so does its device
    peers[1].pulse.on_device = 0;
    enter(1, 1, TS_ALL_REDUCE, 64, 31);
    CHECK(judge() &&
          !strcmp(text, "[rank 1/4 host-a] step 117: in all-reduce #5 on the world axis (64 B), while rank 0 "
                        "on host-a has waited 31 s for it in its device's work up to all-gather #5 on the "
                        "tensor axis (64 B)"));
}

// ---- messages

static int feed(ts_watch_wire *wire, int to, const void *data, size_t bytes) {
    CHECK(write(to, data, bytes) == (ssize_t)bytes);
    return ts_watch_receive(wire);
}

static void test_messages(void) {
    int ends[2];
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    ts_watch_wire *out = calloc(1, sizeof *out), *in = calloc(1, sizeof *in);
    out->fd = ends[0];
    in->fd = ends[1];
    calm(3);
    const ts_watch_pulse *const pulse = &peers[3].pulse;
    ts_watch_send(out, TS_WATCH_PULSE, pulse, ts_watch_pulse_bytes(pulse));
    ts_watch_send(out, TS_WATCH_LEAVE, NULL, 0);
    CHECK(ts_watch_receive(in) == 1 && in->in.type == TS_WATCH_PULSE);
    CHECK(!memcmp(&in->in.body.pulse, pulse, ts_watch_pulse_bytes(pulse)));
    CHECK(ts_watch_receive(in) == 1 && in->in.type == TS_WATCH_LEAVE);
    CHECK(ts_watch_receive(in) == 0);
    const uint32_t head[2] = {TS_WATCH_WELCOME, sizeof(uint64_t)};
    const uint64_t token = 77;
    CHECK(feed(in, ends[0], head, 3) == 0 && feed(in, ends[0], (const char *)head + 3, 5) == 0);
    CHECK(feed(in, ends[0], &token, sizeof token) == 1 && in->in.body.token == 77);
    ts_watch_frame bad = {.type = TS_WATCH_PULSE, .bytes = sizeof bad.body.pulse, .body.pulse.lines = 1 << 30};
    CHECK(feed(in, ends[0], &bad, 8 + bad.bytes) == -1);
    in->got = 0;
    CHECK(feed(in, ends[0], &(uint32_t[2]){TS_WATCH_PULSE, UINT32_MAX}, 8) == -1);
    in->got = 0;
    CHECK(feed(in, ends[0], &(uint32_t[2]){99, 0}, 8) == -1);
    close(ends[0]);
    CHECK(ts_watch_receive(in) == -1);
    close(ends[1]);
    free(out);
    free(in);
}

// ---- jobs: this program again, under mpirun, with a mode

typedef struct job {
    const char *mode;
    int victim;
    ts_comm *world;
    ts_mesh mesh;
} job;

static void stop_myself(int number) {
    (void)number;
    raise(SIGSTOP);
}

static bool is_bad(const job *j, const char *mode, int64_t step) {
    return !strcmp(j->mode, mode) && ts_comm_rank(j->world) == j->victim && step == BAD_STEP;
}

static int one_step(const job *j, int64_t step) {
    float data[64] = {0}, all[128];
    int64_t counts[2] = {64, 64};
    const int64_t count = is_bad(j, "size", step) ? 32 : 64;
    if (is_bad(j, "slow", step)) {
        usleep((useconds_t)(2.5e6 * TIMEOUT));
    }
    TS_TRY(ts_all_reduce(j->mesh.axis[TS_AXIS_DATA], data, count, TS_F32, TS_SUM));
    if (!is_bad(j, "skip", step)) {
        TS_TRY(ts_all_gather_v(j->mesh.axis[TS_AXIS_TENSOR], data, all, counts, TS_F32));
    }
    if (is_bad(j, "kind", step)) {
        TS_TRY(ts_barrier(j->world));
    }
    usleep(2000);
    return ts_agree(j->world, TS_OK);
}

static void stop_soon(const job *j) {
    const double now =
        ts_clock_seconds();  // its fraction is as good as random; a heartbeat has told of the step by then
    const struct itimerval soon = {.it_value.tv_usec = 250000 + (suseconds_t)(3e5 * (now - floor(now)))};
    if (ts_comm_rank(j->world) == j->victim) {
        signal(SIGALRM, stop_myself);
        setitimer(ITIMER_REAL, &soon, NULL);
    }
}

static int run_job(const job *j) {
    const bool endless = !strcmp(j->mode, "stop");
    for (int64_t step = 1; endless || step <= STEPS; step++) {
        ts_watch_step(step);
        if (endless && step == BAD_STEP) {
            stop_soon(j);
        }
        if (is_bad(j, "leave", step)) {
            return TS_OK;
        }
        TS_TRY(one_step(j, step));
    }
    return TS_OK;
}

static int play(int argc, char **argv) {
    job j = {.mode = argv[1], .victim = atoi(argv[2])};
    int status = ts_world_open(&j.world, &argc, &argv);
    status = status ? status : ts_mesh_open(&j.mesh, j.world, &(ts_degrees){2, 1, 1, 1, 2});
    status = status ? status : ts_watch_open(j.world, &(ts_watch_params){.timeout = TIMEOUT});
    status = status ? status : run_job(&j);
    if (status == TS_EPEER) {
        ts_comm_abort(j.world, status);  // as a step of training does
    }
    ts_mesh_close(&j.mesh);
    ts_world_close(&j.world, status);
    return ts_exit_code(status);
}

typedef struct ending {
    int code;
    double seconds;
    char said[16384];
} ending;

static ending run_under_mpi(const char *program, const char *mode, int victim) {
    ending e = {.code = -1};
    char command[1024];
    snprintf(command, sizeof command,
             "mpirun --allow-run-as-root --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -n %d '%s' %s %d "
             "watch-%d 2>&1 </dev/null",
             RANKS, program, mode, victim, (int)getpid());
    const double start = ts_clock_seconds();
    FILE *pipe = popen(command, "r");
    if (pipe) {
        e.said[fread(e.said, 1, sizeof e.said - 1, pipe)] = '\0';
        e.code = WEXITSTATUS(pclose(pipe));
    }
    e.seconds = ts_clock_seconds() - start;
    return e;
}

static int count_of(const char *in, const char *part) {
    int count = 0;
    for (; (in = strstr(in, part)); in++) {
        count++;
    }
    return count;
}

static bool anything_left(void) {
    char command[128];
    snprintf(command, sizeof command, "pgrep -f 'test_watch [a-z]+ [0-9] watch-%d$' >/dev/null", (int)getpid());
    return system(command) == 0;
}

// The job ends in time, with the watch's exit code and one line that begins with the rank and holds `words`.
static void check_ends(const char *program, const char *mode, int victim, const char *words) {
    const ending e = run_under_mpi(program, mode, victim);
    char host[64] = "", who[160];
    gethostname(host, sizeof host - 1);
    snprintf(who, sizeof who, "[rank %d/%d %s] step ", victim, RANKS, host);
    const char *const line = strstr(e.said, "[rank ");
    printf("%s %d: exit %d after %.1f s: %.*s\n", mode, victim, e.code, e.seconds, line ? (int)strcspn(line, "\n") : 0,
           line ? line : "");
    CHECK(e.code == ts_exit_code(TS_EPEER));
    CHECK(e.seconds < TIMEOUT + 5 + 2);  // and the start
    CHECK(count_of(e.said, "[rank ") == 1 && line && !strncmp(line, who, strlen(who)) && strstr(line, words));
    CHECK(!anything_left());
    if (ts_test_failures) {
        fprintf(stderr, "%s", e.said);
    }
}

static void test_jobs(const char *program) {
    const char *const wanted = getenv("TESSERA_WATCH_TRIALS");
    const int trials = wanted ? atoi(wanted) : 3;
    for (int trial = 0; trial < trials; trial++) {
        check_ends(program, "stop", (trial + 2) % RANKS, "silent for 2 s; last seen ");
    }
    check_ends(program, "stop", 0, "silent for 2 s; last seen ");
    check_ends(program, "skip", 1, "in agreement #10 on the world axis, while rank 0 on ");
    check_ends(program, "size", 3, "in all-reduce #7 on the data axis (128 B), where rank 1 on ");
    check_ends(program, "kind", 2, "in barrier #10 on the world axis, where rank 0 on ");
    check_ends(program, "leave", 1, "at the end of the program, while rank 0 on ");
    const ending e = run_under_mpi(program, "slow", 1);
    CHECK(e.code == 0 && !strstr(e.said, "[rank ") && e.seconds > 2 * TIMEOUT);
    CHECK(!anything_left());
}

int main(int argc, char **argv) {
    if (argc > 1) {
        return play(argc, argv);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_silence();
    test_mismatch();
    test_majority();
    test_deadlock();
    test_left_out();
    test_device();
    test_messages();
    test_jobs(argv[0]);
    return ts_test_end();
}
