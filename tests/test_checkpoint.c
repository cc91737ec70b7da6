// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2 timeout=120
// Checkpoints: bitwise back, damage refused and passed over, nothing acknowledged is ever lost.
#include "core/store/checkpoint.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "ts_test.h"

enum { LENGTH = 3000, KILLS = 20 };

static ts_comm *world;
static char folder[64] = "/tmp/ts-checkpoint-XXXXXX";
static float weight[LENGTH], moment[LENGTH];

static const char *in_folder(const char *name) {
    static char path[4][4096];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

// The state of a run at `step` is a function of the step.
static void make_state(int64_t step) {
    ts_rng_normal_fill(weight, LENGTH, 1, TS_RNG_TEST, (uint64_t)step, 0);
    ts_rng_normal_fill(moment, LENGTH, 2, TS_RNG_TEST, (uint64_t)step, 0);
    weight[5] = -0.0f;
    weight[6] = 1e-42f;  // a subnormal
}

static int save(const char *where, int64_t step, int64_t keep) {
    const ts_safetensors_item weights[] = {{"a", TS_F32, TS_SHAPE(30, 100), weight}};
    const ts_safetensors_item moments[] = {{"a", TS_F32, TS_SHAPE(10, 300), moment},
                                           {"b", TS_F32, TS_SHAPE(5), weight}};
    const ts_checkpoint_group groups[] = {{"weights", weights, 1}, {"moment1", moments, 2}};
    json_t *state = json_pack("{s:I, s:f}", "cursor", (json_int_t)(step * 7), "loss", 0.1 + 0.2);
    const int status = ts_checkpoint_save(where, step, state, groups, 2, keep, world);
    json_decref(state);
    return status;
}

static void check_contents(const char *path, int64_t step) {
    static float back[LENGTH];
    ts_safetensors *file;
    json_t *state;
    make_state(step);
    CHECK_OK(ts_checkpoint_open_group(path, "weights", &file));
    CHECK_OK(ts_safetensors_read_f32(file, "a", TS_SHAPE(30, 100), back));
    CHECK(!memcmp(back, weight, sizeof back));
    ts_safetensors_close(&file);
    CHECK_OK(ts_checkpoint_open_group(path, "moment1", &file));
    CHECK_OK(ts_safetensors_read_f32(file, "a", TS_SHAPE(10, 300), back));
    CHECK(!memcmp(back, moment, sizeof back));
    ts_safetensors_close(&file);
    CHECK_OK(ts_checkpoint_read_state(path, &state));
    CHECK(json_integer_value(json_object_get(state, "cursor")) == step * 7);
    CHECK(json_real_value(json_object_get(state, "loss")) == 0.1 + 0.2);
    json_decref(state);
}

static void expect_newest(int64_t wanted) {
    int64_t step;
    char path[4096];
    CHECK_OK(ts_checkpoint_find(folder, world, &step, path, sizeof path));
    CHECK(step == wanted);
    if (step == wanted && step >= 0) {
        check_contents(path, step);
    }
}

// ---- collective

static void test_save_and_find(void) {
    expect_newest(-1);
    for (int64_t step = 10; step <= 50; step += 10) {
        make_state(step);
        CHECK_OK(save(folder, step, 3));
        expect_newest(step);
    }
    CHECK_OK(ts_barrier(world));
    char **names;
    int64_t count;
    CHECK_OK(ts_folder_list(folder, &names, &count));
    CHECK(count == 3 && !strcmp(names[0], "step-00000030") && !strcmp(names[2], "step-00000050"));
    ts_folder_list_free(names, count);
    CHECK_OK(ts_barrier(world));
    make_state(50);
    CHECK_OK(save(folder, 50, 3));  // the same once more
    CHECK_OK(ts_barrier(world));
    make_state(51);
    CHECK_FAILS(save(folder, 50, 3), TS_EUSAGE, "exists and holds other weights");
    expect_newest(50);
    make_state(60);
    weight[17] = NAN;
    CHECK_FAILS(save(folder, 60, 3), TS_EINPUT, "weights \"a\": element 17 is NaN");
    expect_newest(50);
    CHECK_FAILS(save("/proc/nowhere", 60, 3), TS_EINPUT, "/proc/nowhere");
    CHECK_OK(ts_barrier(world));
}

// ---- damage

static void flip(const char *path, size_t place) {
    char *bytes;
    size_t size;
    CHECK_OK(ts_file_read(path, 1 << 30, &bytes, &size));
    bytes[place % size] = (char)(bytes[place % size] ^ 4);
    CHECK_OK(ts_file_write_atomic(path, bytes, size));
    free(bytes);
}

static void test_damage(void) {  // on one rank: 30, 40 and 50 are there
    const char *data = in_folder("step-00000050/weights.safetensors");
    char keep[4096];
    snprintf(keep, sizeof keep, "%s", data);
    flip(keep, 4000);
    CHECK_FAILS(ts_checkpoint_verify(in_folder("step-00000050")), TS_EINPUT, "weights.safetensors: its sum is");
    expect_newest(40);
    flip(keep, 4000);
    expect_newest(50);
    CHECK(truncate(keep, 100) == 0);
    CHECK_FAILS(ts_checkpoint_verify(in_folder("step-00000050")), TS_EINPUT, "weights.safetensors: has 100 bytes");
    expect_newest(40);
    make_state(50);
    CHECK_OK(save(folder, 50, 3));  // a damaged one gives way
    expect_newest(50);
    CHECK(unlink(keep) == 0);
    expect_newest(40);
    CHECK(unlink(in_folder("step-00000040/manifest.json")) == 0);
    CHECK_FAILS(ts_checkpoint_verify(in_folder("step-00000040")), TS_EINPUT, "manifest.json");
    expect_newest(30);
    CHECK_OK(ts_file_write_atomic(in_folder("step-00000040/manifest.json"), "{\"version\":2}", 13));
    CHECK_FAILS(ts_checkpoint_verify(in_folder("step-00000040")), TS_EINPUT, "has version 2");
    const char *escape =
        "{\"version\":1,\"step\":40,\"state\":{},\"files\":[{\"name\":\"../x\",\"sum\":\"0\",\"bytes\":0,"
        "\"tensors\":0}]}";
    CHECK_OK(ts_file_write_atomic(in_folder("step-00000040/manifest.json"), escape, strlen(escape)));
    CHECK_FAILS(ts_checkpoint_verify(in_folder("step-00000040")), TS_EINPUT, "not the plain name of a file");
    CHECK_OK(ts_folder_make(in_folder("step-00000099.tmp")));  // an interrupted save
    CHECK_OK(ts_folder_make(in_folder("step-nonsense")));
    expect_newest(30);
    make_state(35);
    CHECK_OK(save(folder, 35, 1));  // damaged ones of later steps do not crowd it out
    expect_newest(35);
    make_state(70);
    CHECK_OK(save(folder, 70, 0));
    CHECK(!ts_path_exists(in_folder("step-00000099.tmp")) && ts_path_exists(in_folder("step-nonsense")));
    expect_newest(70);
}

static void test_full_disk(void) {
    struct rlimit old;
    CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    signal(SIGXFSZ, SIG_IGN);
    for (rlim_t limit = 0; limit < 12000; limit += 1500) {  // each group has 12,000 bytes
        const struct rlimit tight = {.rlim_cur = limit, .rlim_max = old.rlim_max};
        make_state(80);
        CHECK(setrlimit(RLIMIT_FSIZE, &tight) == 0);
        const int status = save(folder, 80, 1);
        CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
        CHECK(status == TS_ERESOURCE && strstr(ts_error_text(), "weights.safetensors"));
        CHECK(!ts_path_exists(in_folder("step-00000080")) && !ts_path_exists(in_folder("step-00000080.tmp")));
        expect_newest(70);
    }
}

// ---- kill -9

// Saves one step after the other and tells each acknowledged one, until killed.
_Noreturn static void save_forever(int64_t step, int pipe_end) {
    for (;; step++) {
        make_state(step);
        if (save(folder, step, 2) || write(pipe_end, &step, sizeof step) != sizeof step) {
            _exit(1);
        }
    }
}

static void test_kills(void) {
    int64_t acknowledged = 71, saved = 0;
    make_state(71);
    const double begin = ts_clock_seconds();
    CHECK_OK(save(folder, 71, 2));
    const double one_save = ts_clock_seconds() - begin;  // kills fall within the first six
    for (uint64_t kill_number = 0; kill_number < KILLS; kill_number++) {
        int ends[2];
        CHECK(pipe(ends) == 0);
        const pid_t child = fork();
        if (child == 0) {
            close(ends[0]);
            save_forever(acknowledged + 1, ends[1]);
        }
        close(ends[1]);
        usleep((useconds_t)(6e6 * one_save * (double)ts_rng_uniform(3, TS_RNG_TEST, kill_number, 0)));
        CHECK(child > 0 && kill(child, SIGKILL) == 0);
        int64_t step, newest;
        while (read(ends[0], &step, sizeof step) == sizeof step) {
            acknowledged = step;
            saved++;
        }
        close(ends[0]);
        int how;
        CHECK(waitpid(child, &how, 0) == child && WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
        char path[4096];
        CHECK_OK(ts_checkpoint_find(folder, world, &newest, path, sizeof path));
        CHECK(newest == acknowledged || newest == acknowledged + 1);  // the last may be whole and not yet told
        check_contents(path, newest);
        acknowledged = newest;
    }
    CHECK(saved > 0);
    make_state(acknowledged + 1);
    CHECK_OK(save(folder, acknowledged + 1, 2));
    char **names;
    int64_t count;
    CHECK_OK(ts_folder_list(folder, &names, &count));
    CHECK(count == 3);  // the two newest and step-nonsense: no temporary is left
    ts_folder_list_free(names, count);
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    ts_log_set_level(TS_LOG_ERROR);  // warnings of passed-over checkpoints are part of the plan
    if (ts_comm_rank(world) == 0) {
        CHECK(mkdtemp(folder) != NULL);
    }
    CHECK_OK(ts_broadcast(world, folder, sizeof folder, 0));
    test_save_and_find();
    if (ts_comm_size(world) == 1) {
        test_damage();
        test_full_disk();
        test_kills();
    }
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
    const int failed = ts_test_end();
    ts_world_close(&world, 0);
    return failed;
}
