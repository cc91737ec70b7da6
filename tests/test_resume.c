// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2 timeout=120
// A run stopped by a signal at a random moment and started again ends bit for bit like one that was never stopped.
#include <signal.h>
#include <sys/time.h>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/base/signal.h"
#include "core/store/checkpoint.h"
#include "tests/same_checkpoint.h"
#include "tests/tiny_config.h"
#include "tests/tiny_dataset.h"
#include "tests/ts_test.h"
#include "train/loop.h"

enum { ROUNDS = 4, STEPS = 40 };

static void forward_signal(int number) {
    (void)number;
    raise(SIGTERM);
}

// SIGTERM reaches this process after `seconds`.
static void arm(double seconds) {
    const long microseconds = seconds > 0 ? (long)(1e6 * seconds) + 1 : 0;
    signal(SIGALRM, forward_signal);
    setitimer(ITIMER_REAL,
              &(struct itimerval){.it_value = {.tv_sec = microseconds / 1000000, .tv_usec = microseconds % 1000000}},
              NULL);
}

static void newest(const char *out, ts_comm *world, char path[4096]) {
    char folder[4096];
    int64_t step = -1;
    CHECK_OK(ts_path_join(folder, sizeof folder, out, "checkpoints"));
    CHECK_OK(ts_checkpoint_find(folder, world, &step, path, 4096));
    CHECK(step == STEPS);
}

static void check_same_state(const char *a, const char *b) {
    check_same_files(a, b);
    json_t *state[2];
    CHECK_OK(ts_checkpoint_read_state(a, &state[0]));
    CHECK_OK(ts_checkpoint_read_state(b, &state[1]));
    CHECK(json_equal(json_object_get(state[0], "cursor"), json_object_get(state[1], "cursor")));
    CHECK(json_integer_value(json_object_get(json_object_get(state[0], "cursor"), "samples")) == STEPS * 7);
    json_decref(state[0]);
    json_decref(state[1]);
}

// Lines of metrics.jsonl that carry a loss, one for each logged step and no step twice.
static void check_metrics(const char *out) {
    char path[4096], *text = NULL;
    size_t bytes = 0;
    int64_t last = 0, lines = 0;
    CHECK_OK(ts_path_join(path, sizeof path, out, "metrics.jsonl"));
    CHECK_OK(ts_file_read(path, 1 << 20, &text, &bytes));
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *value = json_loads(line, 0, NULL);
        const int64_t step = json_integer_value(json_object_get(value, "step"));
        if (json_object_get(value, "loss")) {
            CHECK(step > last);
            last = step;
            lines++;
        }
        json_decref(value);
    }
    CHECK(lines == STEPS / 2 && last == STEPS);
    free(text);
}

static void check_refusals(ts_train_config config, ts_arena *arena, ts_comm *world) {
    config.train.lr *= 2;
    CHECK_FAILS(ts_train_run(&config, arena, world), TS_EUSAGE, "train.lr");
    config.train.lr /= 2;
    config.model.layers++;
    CHECK_FAILS(ts_train_run(&config, arena, world), TS_EUSAGE, "model.layers");
    config.model.layers--;
    // What does not touch the maths may change; the run is complete, so nothing happens.
    config.checkpoint.keep = 7;
    config.train.recompute = true;
    CHECK_OK(ts_train_run(&config, arena, world));
}

int main(int argc, char **argv) {
    ts_comm *world = NULL;
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    ts_log_set_level(TS_LOG_WARN);
    const int degree[TS_AXIS_COUNT] = {
        [TS_AXIS_DATA] = ts_comm_size(world), [TS_AXIS_CFG] = 1, [TS_AXIS_SEQUENCE] = 1, [TS_AXIS_TENSOR] = 1};
    ts_mesh mesh;
    CHECK_OK(ts_mesh_open(&mesh, world, degree));
    char folder[64], reference[4096], resumed[4096];
    CHECK_OK(tiny_dataset_make(folder, world, mesh.axis[TS_AXIS_TENSOR]));
    ts_arena *arena = NULL;
    ts_train_config config;
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 16, false));
    CHECK_OK(tiny_config(&config, arena, folder, "whole"));
    config.train.steps = STEPS;
    config.log.every = 2;
    config.checkpoint.every = 9;
    const double start = ts_clock_seconds();
    CHECK_OK(ts_train_run(&config, arena, world));
    const double whole = ts_clock_seconds() - start;
    newest(config.out, world, reference);
    check_refusals(config, arena, world);

    CHECK_OK(ts_signal_catch());
    const uint64_t seed = (uint64_t)ts_clock_unix_seconds();
    int stops = 0;
    config.name = "stopped";
    config.out = ts_arena_printf(arena, "%s/stopped", folder);
    for (int round = 0; round < ROUNDS; round++) {
        int status = TS_ESTOPPED;
        // Only the last rank gets the signal; the others learn of it.
        for (int start_number = 0; status == TS_ESTOPPED && start_number < 50; start_number++) {
            if (ts_comm_rank(world) == ts_comm_size(world) - 1) {
                arm(whole * (double)ts_rng_uniform(seed, TS_RNG_TEST, (uint64_t)(round * 50 + start_number), 0));
            }
            status = ts_train_run(&config, arena, world);
            arm(0);
            ts_signal_release();
            CHECK_OK(ts_signal_catch());
            stops += status == TS_ESTOPPED;
        }
        CHECK_OK(status);
        newest(config.out, world, resumed);
        check_same_state(reference, resumed);
        check_metrics(config.out);
        CHECK_OK(ts_barrier(world));
        if (ts_comm_rank(world) == 0) {
            CHECK_OK(ts_folder_remove(config.out));
        }
        CHECK_OK(ts_barrier(world));
    }
    CHECK(stops > 0);
    if (ts_comm_rank(world) == 0) {
        printf("seed %llu: %d stops in %d runs\n", (unsigned long long)seed, stops, ROUNDS);
        CHECK_OK(ts_folder_remove(folder));
    }
    ts_arena_close(&arena);
    ts_mesh_close(&mesh);
    ts_world_close(&world, 0);
    return ts_test_end();
}
