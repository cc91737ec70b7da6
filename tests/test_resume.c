// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2 timeout=120
// A run stopped by a signal at a random moment and started again ends bit for bit like one that was never stopped.
#include <signal.h>
#include <sys/time.h>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/base/signal.h"
#include "core/comm/mesh.h"
#include "core/model/model.h"
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

// The run folder after the last step: sample videos, their sheet, and a model that opens.
static void check_outputs(const char *out) {
    static const char *const files[] = {"config.yaml", "samples/step-00000040-1.mp4", "samples/step-00000040.png"};
    char path[4096];
    for (int i = 0; i < 3; i++) {
        CHECK_OK(ts_path_join(path, sizeof path, out, files[i]));
        CHECK(ts_path_bytes(path) > 100);
    }
    ts_model *model = NULL;
    CHECK_OK(ts_path_join(path, sizeof path, out, "model"));
    CHECK_OK(ts_model_load(&model, path, NULL, NULL, TS_F32, false));
    CHECK(model && model->defaults.frames == TINY_FRAMES && model->defaults.width == TINY_SIDE);
    CHECK(model && model->defaults.fps == 8 && model->defaults.guidance == 3);
    ts_model_close(&model);
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
    config.train.recompute = TS_RECOMPUTE_BLOCK;
    CHECK_OK(ts_train_run(&config, arena, world));
}

// Runs to the end through stops at random moments of a run that takes `whole` seconds; returns how many there were.
static int run_with_stops(const ts_train_config *config, ts_arena *arena, ts_comm *world, double whole, uint64_t seed,
                          int round) {
    enum { MOST = 50 };
    int status = TS_ESTOPPED, stops = -1;
    for (uint32_t start = 0; status == TS_ESTOPPED && start < MOST; start++, stops++) {
        // Only the last rank gets the signal; the others learn of it.
        if (ts_comm_rank(world) == ts_comm_size(world) - 1) {
            arm(0.7 * whole * (double)ts_rng_uniform(seed, TS_RNG_TEST, (uint64_t)round, start));
        }
        status = ts_train_run(config, arena, world);
        arm(0);
        ts_signal_release();
        CHECK_OK(ts_signal_catch());
    }
    CHECK_OK(status);
    return stops;
}

static void remove_folder(const char *folder, ts_comm *world) {
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
    CHECK_OK(ts_barrier(world));
}

static void test(ts_comm *world, ts_comm *solo, ts_arena *arena) {
    char folder[64], reference[4096], resumed[4096];
    ts_train_config config;
    CHECK_OK(tiny_dataset_make(folder, world, solo));
    CHECK_OK(tiny_config(&config, arena, folder, "whole"));
    config.train.steps = STEPS;
    config.log.every = 2;
    config.checkpoint.every = 9;
    config.sample.every = STEPS;
    config.sample.steps = 2;
    const double start = ts_clock_seconds();
    CHECK_OK(ts_train_run(&config, arena, world));
    const double whole = ts_clock_seconds() - start;
    newest(config.out, world, reference);
    check_outputs(config.out);
    config.sample.every = 0;
    check_refusals(config, arena, world);

    const uint64_t seed = (uint64_t)ts_clock_unix_seconds();
    int stops = 0;
    config.out = ts_arena_printf(arena, "%s/stopped", folder);
    CHECK_OK(ts_signal_catch());
    for (int round = 0; round < ROUNDS; round++) {
        stops += run_with_stops(&config, arena, world, whole, seed, round);
        newest(config.out, world, resumed);
        check_same_state(reference, resumed);
        check_metrics(config.out);
        remove_folder(config.out, world);
    }
    CHECK(stops > 0);
    if (ts_comm_rank(world) == 0) {
        printf("seed %llu: %d stops in %d runs\n", (unsigned long long)seed, stops, ROUNDS);
    }
    remove_folder(folder, world);
}

int main(int argc, char **argv) {
    ts_comm *world = NULL;
    ts_mesh mesh;
    ts_arena *arena = NULL;
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 16, false));
    ts_log_set_level(TS_LOG_WARN);
    CHECK_OK(ts_mesh_open(&mesh, world, &(ts_degrees){ts_comm_size(world), 1, 1, 1, 1}));
    test(world, mesh.axis[TS_AXIS_TENSOR], arena);
    ts_arena_close(&arena);
    ts_mesh_close(&mesh);
    ts_world_close(&world, 0);
    return ts_test_end();
}
