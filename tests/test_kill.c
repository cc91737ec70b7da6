// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=180
// kill -9 at twenty random instants of a run that saves every few steps: no checkpoint that was acknowledged is lost,
// and the run, started again each time, ends bit for bit like one that was never killed.
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/rng.h"
#include "core/store/checkpoint.h"
#include "tests/same_checkpoint.h"
#include "tests/tiny_config.h"
#include "tests/tiny_dataset.h"
#include "tests/ts_test.h"

enum { KILLS = 20, STEPS = 200 };

static int write_yaml(const ts_train_config *config, const char *path) {
    FILE *file = fopen(path, "w");
    const int status = file ? ts_options_write_yaml(ts_train_options, config, file) : TS_ERESOURCE;
    if (file) {
        fclose(file);
    }
    return status;
}

// Starts the program on `yaml` and kills it after `seconds`, 0: lets it end. Returns the wait status.
static int run(const char *yaml, double seconds) {
    const pid_t child = fork();
    if (child == 0) {
        const int quiet = open("/dev/null", O_WRONLY);
        dup2(quiet, STDERR_FILENO);
        execl(getenv("TESSERA"), "tessera", "train", yaml, (char *)NULL);
        _exit(127);
    }
    int status = 0;
    if (seconds > 0) {
        usleep((useconds_t)(1e6 * seconds));
        kill(child, SIGKILL);
    }
    waitpid(child, &status, 0);
    return status;
}

// The step of the last "checkpoint after step N" in the run's log: those were acknowledged.
static int64_t last_acknowledged(const char *out) {
    char path[4096], *text = NULL;
    size_t bytes = 0;
    int64_t step = -1;
    if (ts_path_join(path, sizeof path, out, "log-0.txt") || ts_file_read(path, 1 << 24, &text, &bytes)) {
        return -1;
    }
    for (const char *at = text; (at = strstr(at, "checkpoint after step ")); at++) {
        sscanf(at, "checkpoint after step %" SCNd64, &step);
    }
    free(text);
    return step;
}

static int64_t newest(const char *out, ts_comm *world, char path[4096]) {
    char folder[4096];
    int64_t step = -1;
    CHECK_OK(ts_path_join(folder, sizeof folder, out, "checkpoints"));
    CHECK_OK(ts_checkpoint_find(folder, world, &step, path, 4096));
    return step;
}

int main(int argc, char **argv) {
    if (!getenv("TESSERA")) {
        ts_test_skip("needs the program: set TESSERA to its path");
    }
    ts_comm *world = NULL;
    ts_arena *arena = NULL;
    ts_train_config config;
    char folder[64], yaml[2][96], reference[4096], survived[4096];
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 16, false));
    CHECK_OK(tiny_dataset_make(folder, world, world));
    for (int i = 0; i < 2; i++) {
        CHECK_OK(tiny_config(&config, arena, folder, i ? "killed" : "whole"));
        config.train.steps = STEPS;
        config.checkpoint.every = 4;
        snprintf(yaml[i], sizeof yaml[i], "%s/%d.yaml", folder, i);
        CHECK_OK(write_yaml(&config, yaml[i]));
    }
    const double start = ts_clock_seconds();
    CHECK(run(yaml[0], 0) == 0);
    const double whole = ts_clock_seconds() - start;
    char out[96];
    snprintf(out, sizeof out, "%s/whole", folder);
    CHECK(newest(out, world, reference) == STEPS);

    snprintf(out, sizeof out, "%s/killed", folder);
    const uint64_t seed = (uint64_t)ts_clock_unix_seconds();
    printf("seed %" PRIu64 ", the whole run took %.2f s\n", seed, whole);
    int64_t found = -1, killed = 0;
    for (int i = 0; i < KILLS; i++) {
        // Short lives, so that the run does not end before the twentieth.
        const double life = whole * (0.02 + 0.13 * (double)ts_rng_uniform(seed, TS_RNG_TEST, 0, (uint32_t)i));
        killed += WIFSIGNALED(run(yaml[1], life));
        const int64_t acknowledged = last_acknowledged(out), before = found;
        found = newest(out, world, survived);
        CHECK(found >= acknowledged && found >= before);
    }
    CHECK(killed >= KILLS / 2);
    CHECK(run(yaml[1], 0) == 0);
    CHECK(newest(out, world, survived) == STEPS);
    check_same_files(reference, survived);
    CHECK_OK(ts_folder_remove(folder));
    ts_arena_close(&arena);
    ts_world_close(&world, 0);
    return ts_test_end();
}
