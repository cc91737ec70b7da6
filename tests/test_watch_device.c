// SPDX-License-Identifier: Apache-2.0
// TEST: timeout=120 backend=cuda
// The watch of ranks that wait for their device: jobs of two ranks, over NCCL and through the host, in which one is
// stopped, or NCCL fails. Each ends in time, with the watch's exit code and one line, and leaves no process.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/comm/mesh.h"
#include "core/comm/watch.h"
#include "core/kernels/kernels.h"
#include "tests/ts_test.h"

enum { RANKS = 2, COUNT = 4096, BAD_STEP = 4 };
static const double TIMEOUT = 2;

// ---- a job: this program again, under mpirun, with a mode

static int run_steps(ts_comm *world, const char *mode) {
    const ts_kernels *kernels;
    TS_TRY(ts_kernels_open(&kernels, "cuda", ts_comm_local_rank(world)));
    const ts_device *const device = kernels->device;
    float host[COUNT] = {0}, *const data = device->allocate(sizeof host);
    TS_TRY(device->zero(data, sizeof host));
    for (int64_t step = 1;; step++) {
        ts_watch_step(step);
        if (!strcmp(mode, "stop") && step == BAD_STEP && ts_comm_rank(world) == 1) {
            usleep(300000);  // a heartbeat has told of the step
            raise(SIGSTOP);
        }
        TS_TRY(ts_all_reduce(world, data, COUNT, TS_F32, TS_SUM));
        if (strcmp(mode, "rush") != 0) {
            TS_TRY(device->download(host, data, sizeof host));
        }
    }
}

static int play(int argc, char **argv) {
    ts_comm *world;
    int status = ts_world_open(&world, &argc, &argv);
    status = status ? status : ts_watch_open(world, &(ts_watch_params){.timeout = TIMEOUT});
    status = status ? status : run_steps(world, argv[1]);
    if (status == TS_EPEER) {
        ts_comm_abort(world, status);
    }
    ts_world_close(&world, status);
    return ts_exit_code(status);
}

// ---- how it ends

static bool anything_left(void) {
    char command[128];
    snprintf(command, sizeof command, "pgrep -f '(stop|run|rush) watch-%d$' >/dev/null", (int)getpid());
    return system(command) == 0;
}

static void check_ends(const char *program, const char *settings, const char *mode, int rank, const char *words) {
    static char said[16384];
    char command[1024], who[160], host[64] = "";
    snprintf(command, sizeof command,
             "%s mpirun --allow-run-as-root --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -n %d '%s' %s "
             "watch-%d 2>&1 </dev/null",
             settings, RANKS, program, mode, (int)getpid());
    const double start = ts_clock_seconds();
    FILE *const pipe = popen(command, "r");
    CHECK(pipe != NULL);
    said[pipe ? fread(said, 1, sizeof said - 1, pipe) : 0] = '\0';
    const int code = pipe ? WEXITSTATUS(pclose(pipe)) : -1;
    const double seconds = ts_clock_seconds() - start;
    gethostname(host, sizeof host - 1);
    snprintf(who, sizeof who, "[rank %d/%d %s] %s", rank, RANKS, host, words);
    const char *const line = strstr(said, "[rank ");
    printf("%s %s: exit %d after %.1f s: %.*s\n", settings, mode, code, seconds, line ? (int)strcspn(line, "\n") : 0,
           line ? line : "");
    CHECK(code == ts_exit_code(TS_EPEER));
    CHECK(seconds < TIMEOUT + 5 + 3);  // and the start
    CHECK(line && !strncmp(line, who, strlen(who)) && !strstr(line + 1, "[rank "));
    CHECK(!anything_left());
    if (ts_test_failures) {
        fprintf(stderr, "%s", said);
    }
}

int main(int argc, char **argv) {
    if (argc > 1) {
        return play(argc, argv);
    }
    const ts_kernels *kernels;
    if (strcmp(ts_test_backend(), "cpu") == 0) {
        ts_test_skip("needs a device");
    }
    if (ts_kernels_open(&kernels, "cuda", 0) == TS_EPEER) {
        ts_test_skip(ts_error_text());
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    const bool imitated = !strcmp(getenv("TESSERA_BACKEND"), "shim");
    check_ends(argv[0], "TESSERA_DEVICE_TRANSPORT=staged", "stop", 1, "step 4: silent for 2 s; last seen ");
    if (imitated) {
        setenv("TESSERA_SHIM_DEVICES", "2", 1);
        check_ends(argv[0], "TESSERA_DEVICE_TRANSPORT=nccl", "stop", 1, "step 4: silent for 2 s; last seen ");
        check_ends(argv[0], "TESSERA_DEVICE_TRANSPORT=nccl TESSERA_SHIM_NCCL_FAIL=0:3", "run", 0,
                   "step 4: NCCL on the world axis: remote process exited or there was a network error");
        check_ends(argv[0], "TESSERA_DEVICE_TRANSPORT=nccl TESSERA_SHIM_NCCL_FAIL=0:3", "rush", 0,
                   "core/comm/nccl.c:");  // the next call comes upon it
    }
    return ts_test_end();
}
