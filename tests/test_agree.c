// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,4 timeout=180
// One rank's error becomes everyone's; a rank that fails alone ends the job with its exit code and one line.
#include "core/comm/comm.h"

#include <sys/wait.h>
#include <unistd.h>

#include "tests/ts_test.h"

static ts_comm *world;
static int rank, size;

static void test_agree(void) {
    CHECK(ts_agree(world, TS_OK) == TS_OK);
    for (int failing = 0; failing < size; failing++) {
        const int own = rank == failing ? TS_FAIL(TS_EINPUT, "clip %d.mp4: damaged", failing) : TS_OK;
        CHECK(ts_agree(world, own) == TS_EINPUT);
        char expected[64], speaker[32] = "";
        if (size > 1) {
            snprintf(speaker, sizeof speaker, "rank %d: ", failing);
        }
        snprintf(expected, sizeof expected, "%sclip %d.mp4: damaged", speaker, failing);
        CHECK(strcmp(ts_error_text(), expected) == 0);
        CHECK(strncmp(ts_error_place(), "tests/test_agree.c:", 19) == 0);
        CHECK(ts_agree(world, TS_EINPUT) == TS_EINPUT && strcmp(ts_error_text(), expected) == 0);  // once more
    }
    // Several fail: the lowest speaks.
    const int own = rank > 0 || size == 1 ? TS_FAIL(rank == 1 ? TS_ERESOURCE : TS_EINPUT, "of %d", rank) : TS_OK;
    CHECK(ts_agree(world, own) == (size > 1 ? TS_ERESOURCE : TS_EINPUT));
    CHECK(strcmp(ts_error_text(), size > 1 ? "rank 1: of 1" : "of 0") == 0);
}

static void test_agree_any(void) {
    CHECK(!ts_agree_any(world, false));
    CHECK(ts_agree_any(world, rank == size - 1));
    CHECK(ts_agree_any(world, true));
}

// Runs this program again under mpirun, in `mode`; its exit code, and its output in text.
static int run_again(const char *program, const char *mode, char *text, size_t bytes) {
    char command[512];
    snprintf(command, sizeof command,
             "mpirun --allow-run-as-root --oversubscribe --bind-to none -n 2 '%s' %s 2>&1 </dev/null", program, mode);
    FILE *pipe = popen(command, "r");
    const size_t got = fread(text, 1, bytes - 1, pipe);
    text[got] = '\0';
    return WEXITSTATUS(pclose(pipe));
}

static int count_of(const char *text, const char *part) {
    int count = 0;
    for (; (text = strstr(text, part)); text++) {
        count++;
    }
    return count;
}

static void test_endings(const char *program) {
    char text[8192];
    CHECK(run_again(program, "alone", text, sizeof text) == 3);
    CHECK(count_of(text, "the only failure") == 1 && strstr(text, "[rank 1/2 "));
    CHECK(run_again(program, "all", text, sizeof text) == 4);
    CHECK(count_of(text, "everyone fails") == 1 && strstr(text, "error: rank 0: everyone fails"));
    CHECK(run_again(program, "stopped", text, sizeof text) == 75);
    CHECK(count_of(text, "error:") == 0);
}

static int ending(const char *mode) {
    int status = TS_OK;
    if (strcmp(mode, "alone") == 0) {
        if (rank == 0) {
            ts_barrier(world);  // never met
        }
        status = TS_FAIL(TS_EINPUT, "the only failure");
    } else if (strcmp(mode, "all") == 0) {
        status = ts_agree(world, TS_FAIL(TS_ERESOURCE, "everyone fails"));
    } else {
        status = TS_ESTOPPED;
    }
    ts_world_close(&world, status);
    return ts_exit_code(status);
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    rank = ts_comm_rank(world);
    size = ts_comm_size(world);
    if (argc > 1) {
        return ending(argv[1]);
    }
    test_agree();
    test_agree_any();
    if (size == 1) {
        test_endings(argv[0]);
    }
    ts_world_close(&world, TS_OK);
    return ts_test_end();
}
