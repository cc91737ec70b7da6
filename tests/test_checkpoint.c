// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=120
// Checkpoints: the same bytes from any number of ranks, read back by any other; saving beside changes; damage found
// wherever it is, named and passed over; nothing acknowledged is ever lost.
#include "core/store/checkpoint.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/base/split.h"
#include "core/store/checkpoint_check.h"
#include "ts_test.h"

enum { ROWS = 30, COLUMNS = 100, LENGTH = ROWS * COLUMNS, SMALL = 5, KILLS = 20, DAMAGES = 200 };

static ts_comm *world;
static char folder[64] = "/tmp/ts-checkpoint-XXXXXX";
static float weight[LENGTH], moment[LENGTH];  // whole, as every rank can make them

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

// ---- this rank's share: a matrix by columns, a matrix by flat ranges, a small tensor on the last rank

typedef struct shares {
    float columns[LENGTH], range[LENGTH], small[SMALL];
    ts_safetensors_item weights[1], moments[2];
    ts_checkpoint_group group[2];
    ts_checkpoint_part part[3];
    ts_checkpoint_content content;
} shares;

static void share_out(shares *s, ts_comm *comm) {
    const int rank = ts_comm_rank(comm), size = ts_comm_size(comm);
    const ts_part columns = ts_split(COLUMNS, size, rank), range = ts_split(LENGTH, size, rank);
    for (int64_t row = 0; row < ROWS; row++) {
        for (int64_t c = 0; c < columns.count; c++) {
            s->columns[row * columns.count + c] = weight[row * COLUMNS + columns.first + c];
        }
    }
    memcpy(s->range, moment + range.first, (size_t)range.count * sizeof *moment);
    memcpy(s->small, weight, sizeof s->small);
    s->weights[0] = (ts_safetensors_item){"a", TS_F32, TS_SHAPE(ROWS, COLUMNS), NULL};
    s->moments[0] = (ts_safetensors_item){"b", TS_F32, TS_SHAPE(SMALL), NULL};
    s->moments[1] = (ts_safetensors_item){"a", TS_F32, TS_SHAPE(10, LENGTH / 10), NULL};
    s->group[0] = (ts_checkpoint_group){"weights", s->weights, 1};
    s->group[1] = (ts_checkpoint_group){"moment1", s->moments, 2};
    s->part[0] = (ts_checkpoint_part){0, 0, {s->columns, 1, {{columns.first, ROWS, columns.count, COLUMNS}}}};
    s->part[1] = (ts_checkpoint_part){1, 1, {s->range, 1, {{range.first, 1, range.count, range.count}}}};
    s->part[2] = (ts_checkpoint_part){1, 0, {s->small, 1, {{0, 1, SMALL, SMALL}}}};
    s->content = (ts_checkpoint_content){s->group, 2, s->part, rank == size - 1 ? 3 : 2};
}

// Whether the shares are those of the whole.
static bool shares_hold(const shares *s, ts_comm *comm) {
    static shares wanted;
    share_out(&wanted, comm);
    return !memcmp(s->columns, wanted.columns, sizeof wanted.columns) &&
           !memcmp(s->range, wanted.range, sizeof wanted.range) &&
           (s->content.parts < 3 || !memcmp(s->small, wanted.small, sizeof wanted.small));
}

static ts_checkpoint_params params_of(const char *where, int64_t step, int64_t keep, ts_comm *comm) {
    return (ts_checkpoint_params){
        .folder = where,
        .step = step,
        .state = json_pack("{s:I, s:f}", "cursor", (json_int_t)(step * 7), "loss", 0.1 + 0.2),
        .keep = keep,
        .world = comm,
    };
}

static int save_on(const char *where, int64_t step, int64_t keep, ts_comm *comm) {
    static shares s;
    share_out(&s, comm);
    const ts_checkpoint_params params = params_of(where, step, keep, comm);
    const int status = ts_checkpoint_save_now(&params, &s.content);
    json_decref(params.state);
    return status;
}

static int save(const char *where, int64_t step, int64_t keep) {
    return save_on(where, step, keep, world);
}

static void check_contents(const char *path, int64_t step) {
    static float back[LENGTH];
    ts_safetensors *file;
    json_t *state;
    make_state(step);
    CHECK_OK(ts_checkpoint_open_group(path, "weights", &file));
    CHECK_OK(ts_safetensors_read_f32(file, "a", TS_SHAPE(ROWS, COLUMNS), back));
    CHECK(!memcmp(back, weight, sizeof back));
    ts_safetensors_close(&file);
    CHECK_OK(ts_checkpoint_open_group(path, "moment1", &file));
    CHECK_OK(ts_safetensors_read_f32(file, "a", TS_SHAPE(10, LENGTH / 10), back));
    CHECK(!memcmp(back, moment, sizeof back));
    CHECK_OK(ts_safetensors_read_f32(file, "b", TS_SHAPE(SMALL), back));
    CHECK(!memcmp(back, weight, SMALL * sizeof *back));
    ts_safetensors_close(&file);
    CHECK_OK(ts_checkpoint_read_state(path, &state));
    CHECK(json_integer_value(json_object_get(state, "cursor")) == step * 7);
    CHECK(json_real_value(json_object_get(state, "loss")) == 0.1 + 0.2);
    json_decref(state);
}

static int accept_step(void *context, const json_t *state, const char *path) {
    int64_t *step = context;
    if (*step == -2) {
        return TS_FAIL(TS_EUSAGE, "%s is of another run", path);
    }
    *step = json_integer_value(json_object_get(state, "cursor")) / 7;
    return TS_OK;
}

static void expect_newest(int64_t wanted) {
    int64_t step, accepted = -1;
    char path[4096];
    static shares s;
    CHECK_OK(ts_checkpoint_find(folder, world, &step, path, sizeof path));
    CHECK(step == wanted);
    if (step == wanted && step >= 0) {
        check_contents(path, step);
        make_state(-1);
        share_out(&s, world);  // other numbers, to be replaced
        CHECK_OK(ts_checkpoint_restore(folder, &s.content, accept_step, &accepted, world, &step));
        make_state(wanted);
        CHECK(step == wanted && accepted == wanted && shares_hold(&s, world));
    }
}

// ---- collective

static void check_same_bytes(const char *a, const char *b) {
    char *x, *y;
    size_t n, m;
    CHECK_OK(ts_file_read(a, 1 << 24, &x, &n));
    CHECK_OK(ts_file_read(b, 1 << 24, &y, &m));
    CHECK(n == m && !memcmp(x, y, n));
    free(x);
    free(y);
}

// Every byte of the folder is the one that a single rank writes.
static void test_same_bytes(void) {
    static const char *const names[] = {"weights.safetensors", "moment1.safetensors", "manifest.json"};
    make_state(1);
    CHECK_OK(save(in_folder("many"), 1, 0));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(save_on(in_folder("one"), 1, 0, NULL));
        for (int i = 0; i < 3; i++) {
            char one[64], many[64];
            snprintf(one, sizeof one, "one/step-00000001/%s", names[i]);
            snprintf(many, sizeof many, "many/step-00000001/%s", names[i]);
            check_same_bytes(in_folder(one), in_folder(many));
        }
        check_contents(in_folder("many/step-00000001"), 1);
        CHECK_OK(ts_folder_remove(in_folder("many")));
        CHECK_OK(ts_folder_remove(in_folder("one")));
    }
    CHECK_OK(ts_barrier(world));
}

static void check_listing(const char *wanted) {
    char **names, list[1024] = "";
    int64_t count;
    CHECK_OK(ts_barrier(world));
    CHECK_OK(ts_folder_list(folder, &names, &count));
    for (int64_t i = 0; i < count; i++) {
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s ", names[i]);
    }
    if (strcmp(list, wanted) != 0) {
        fprintf(stderr, "the folder holds %s, wanted %s\n", list, wanted);
        CHECK(false);
    }
    ts_folder_list_free(names, count);
    CHECK_OK(ts_barrier(world));
}

static void test_save_and_find(void) {
    expect_newest(-1);
    for (int64_t step = 10; step <= 50; step += 10) {
        make_state(step);
        CHECK_OK(save(folder, step, 3));
        expect_newest(step);
    }
    check_listing("step-00000030 step-00000040 step-00000050 ");
    make_state(50);
    CHECK_OK(save(folder, 50, 3));  // the same once more
    CHECK_OK(ts_barrier(world));
    make_state(51);
    CHECK_FAILS(save(folder, 50, 3), TS_EUSAGE, "exists and holds other weights");
    expect_newest(50);
    make_state(60);
    weight[117] = NAN;
    CHECK_FAILS(save(folder, 60, 3), TS_EINPUT, "weights \"a\": element 117 is not finite");
    expect_newest(50);
    CHECK_FAILS(save("/proc/nowhere", 60, 3), TS_EINPUT, "/proc/nowhere");
    check_listing("step-00000030 step-00000040 step-00000050 ");
}

// What the numbers are after the save has read them does not matter.
static void test_beside_changes(void) {
    static shares s;
    ts_checkpoint_save *saving;
    bool done = false;
    int polls = 0;
    make_state(55);
    share_out(&s, world);
    const ts_checkpoint_params params = params_of(folder, 55, 3, world);
    CHECK_OK(ts_checkpoint_save_start(&saving, &params, &s.content));
    ts_checkpoint_save_settle(saving);
    ts_checkpoint_save_settle(saving);
    memset(s.columns, 0xff, sizeof s.columns);
    memset(s.range, 0xff, sizeof s.range);
    while (!done && polls < 100000) {
        if (!ts_agree_any(world, !ts_checkpoint_save_idle(saving))) {
            CHECK_OK(ts_checkpoint_save_advance(&saving, &done));
        }
        polls++;
        usleep(100);
    }
    CHECK(done && polls > 2 && !saving);
    expect_newest(55);
    make_state(56);
    share_out(&s, world);
    ts_checkpoint_params next = params_of(folder, 56, 3, world);
    CHECK_OK(ts_checkpoint_save_start(&saving, &next, &s.content));
    CHECK_OK(ts_barrier(world));
    ts_checkpoint_save_close(&saving);  // given up: whatever it has written does not count
    expect_newest(55);
    make_state(60);
    CHECK_OK(save(folder, 60, 2));
    check_listing("step-00000055 step-00000060 ");
    json_decref(params.state);
    json_decref(next.state);
}

// Ranks whose parts overlap or leave something out.
static void test_wrong_parts(void) {
    static shares s;
    const ts_checkpoint_params params = params_of(folder, 61, 3, world);
    make_state(61);
    share_out(&s, world);
    s.content.parts = 2;  // nobody writes "b"
    CHECK_FAILS(ts_checkpoint_save_now(&params, &s.content), TS_EINTERNAL, "\"b\": the ranks wrote 0 numbers of 5");
    if (ts_comm_size(world) > 1) {
        share_out(&s, world);
        s.content.parts = 3;  // everybody does
        CHECK_FAILS(ts_checkpoint_save_now(&params, &s.content), TS_EINTERNAL, "\"b\": the ranks wrote");
    }
    json_decref(params.state);
    expect_newest(60);
    check_listing("step-00000055 step-00000060 ");
}

// A rank that sees another file system, one whose files may not grow: all ranks hear of it.
static void test_lone_failures(void) {
    const int rank = ts_comm_rank(world), last = ts_comm_size(world) - 1;
    char cwd[4096], own[64] = "/tmp/ts-checkpoint-XXXXXX";
    if (last == 0) {
        return;
    }
    CHECK(getcwd(cwd, sizeof cwd) && mkdtemp(own) && chdir(rank == last ? own : folder) == 0);
    CHECK_FAILS(save("unshared", 61, 3), TS_EUSAGE, "several hosts need a folder that all of them share");
    CHECK(chdir(cwd) == 0 && rmdir(own) == 0);
    CHECK_OK(ts_barrier(world));  // the first rank has cleaned up
    CHECK(!ts_path_exists(in_folder("unshared/step-00000061.tmp")));
    CHECK_OK(ts_barrier(world));
    if (rank == 0) {
        CHECK_OK(ts_folder_remove(in_folder("unshared")));
    }
    struct rlimit old;
    CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    signal(SIGXFSZ, SIG_IGN);
    const struct rlimit tight = {.rlim_cur = 4000, .rlim_max = old.rlim_max};
    CHECK(rank != last || setrlimit(RLIMIT_FSIZE, &tight) == 0);
    make_state(61);
    CHECK_FAILS(save(folder, 61, 3), TS_ERESOURCE, ".safetensors: cannot write: ");
    CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
    expect_newest(60);
    check_listing("step-00000055 step-00000060 ");
}

static void test_retention(void) {
    const char *where = in_folder("kept");
    char kept[4096];
    snprintf(kept, sizeof kept, "%s", where);
    static shares s;
    for (int64_t step = 1; step <= 9; step++) {
        make_state(step);
        share_out(&s, world);
        ts_checkpoint_params params = params_of(kept, step, 2, world);
        params.keep_every = 4;
        CHECK_OK(ts_checkpoint_save_now(&params, &s.content));
        json_decref(params.state);
    }
    char **names;
    int64_t count;
    CHECK_OK(ts_barrier(world));
    CHECK_OK(ts_folder_list(kept, &names, &count));
    CHECK(count == 3 && !strcmp(names[0], "step-00000004") && !strcmp(names[1], "step-00000008") &&
          !strcmp(names[2], "step-00000009"));
    ts_folder_list_free(names, count);
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(kept));
    }
    CHECK_OK(ts_barrier(world));
}

// A whole checkpoint that this run cannot go on from is an error, not a reason to look at an older one.
static void test_refusals(void) {
    static shares s;
    int64_t step, refuse = -2, accept = -1;
    make_state(60);
    share_out(&s, world);
    CHECK_FAILS(ts_checkpoint_restore(folder, &s.content, accept_step, &refuse, world, &step), TS_EUSAGE,
                "step-00000060 is of another run");
    s.weights[0].shape = TS_SHAPE(COLUMNS, ROWS);
    CHECK_FAILS(ts_checkpoint_restore(folder, &s.content, accept_step, &accept, world, &step), TS_EUSAGE, "shape");
    s.weights[0].name = "z";
    CHECK_FAILS(ts_checkpoint_restore(folder, &s.content, accept_step, &accept, world, &step), TS_EUSAGE, "\"z\"");
    s.content.groups = 1;
    CHECK_FAILS(ts_checkpoint_restore(folder, &s.content, accept_step, &accept, world, &step), TS_EUSAGE, "1 groups");
}

static int check_command(const char *place) {
    char argument[4096], name[] = "checkpoint", json[] = "--json";
    snprintf(argument, sizeof argument, "%s", place);
    return ts_command_check_checkpoint(world, 3, (char *[]){name, argument, json, NULL});
}

static void test_check(void) {
    CHECK_OK(check_command(folder));
    CHECK_OK(check_command(in_folder("step-00000055")));
    CHECK_FAILS(check_command(in_folder("nowhere")), TS_EINPUT, "is not a folder");
    CHECK_FAILS(check_command("/"), TS_EINPUT, "holds no checkpoint");
}

// ---- damage

static void read_bytes(const char *path, char **bytes, size_t *size) {
    CHECK_OK(ts_file_read(path, 1 << 30, bytes, size));
}

// One bit of the file flipped, or its end cut off, or something added.
static void damage(const char *path, uint64_t number) {
    char *bytes;
    size_t size;
    read_bytes(path, &bytes, &size);
    const float u = ts_rng_uniform(5, TS_RNG_TEST, number, 0);
    const size_t place = (size_t)((double)u * (double)size);
    switch (number % 4) {
    case 0:
        size = place;
        break;
    case 1:
        if (size % 2) {
            bytes[size] = ' ';  // ts_file_read leaves room for one
            size++;
            break;
        }  // fall through
    default:
        bytes[place] = (char)(bytes[place] ^ (1 << number % 8));
    }
    CHECK_OK(ts_file_write_atomic(path, bytes, size));
    free(bytes);
}

// Two checkpoints; the newer one is damaged in one place at a time.
static void test_damages(void) {
    static const char *const names[] = {"weights.safetensors", "moment1.safetensors", "manifest.json"};
    int64_t step;
    char found[4096];
    for (uint64_t number = 0; number < DAMAGES; number++) {
        char name[64], file[4096], *bytes;
        size_t size;
        snprintf(name, sizeof name, "step-00000060/%s", names[number / 4 % 3]);
        snprintf(file, sizeof file, "%s", in_folder(name));
        read_bytes(file, &bytes, &size);
        damage(file, number);
        const int status = ts_checkpoint_verify(in_folder("step-00000060"), world, NULL);
        if (status != TS_EINPUT || !strstr(ts_error_text(), names[number / 4 % 3])) {
            fprintf(stderr, "damage %d of %s gave %d: %s\n", (int)number, file, status, ts_error_text());
            CHECK(false);
        }
        CHECK_OK(ts_checkpoint_find(folder, world, &step, found, sizeof found));
        CHECK(step == 55);
        CHECK_OK(ts_file_write_atomic(file, bytes, size));
        free(bytes);
    }
    expect_newest(60);
}

static void write_manifest(const char *path, char *text) {
    const uint64_t sum = XXH3_64bits(text, strlen(text));
    char digits[17];
    snprintf(digits, sizeof digits, "%016llx", (unsigned long long)sum);
    memcpy(text + 12, digits, 16);
    CHECK_OK(ts_file_write_atomic(path, text, strlen(text)));
}

static void test_damage(void) {  // on one rank: 55 and 60 are there
    char data[4096], manifest[4096];
    snprintf(data, sizeof data, "%s", in_folder("step-00000060/moment1.safetensors"));
    snprintf(manifest, sizeof manifest, "%s", in_folder("step-00000055/manifest.json"));
    json_t *list = json_array();
    char *bytes;
    size_t size;
    read_bytes(data, &bytes, &size);
    bytes[size - 1] ^= 1;
    bytes[size - SMALL * 4 - 1] ^= 1;
    CHECK_OK(ts_file_write_atomic(data, bytes, size));
    free(bytes);
    CHECK_FAILS(ts_checkpoint_verify(in_folder("step-00000060"), world, list), TS_EINPUT,
                "moment1.safetensors: tensor \"a\" is damaged");
    CHECK(strstr(ts_error_text(), "and 1 more") && json_array_size(list) == 2);
    CHECK(!strcmp(json_string_value(json_array_get(list, 1)), "moment1.safetensors: tensor \"b\""));
    json_decref(list);
    CHECK_FAILS(check_command(folder), TS_EINPUT, "1 of 2 checkpoints is damaged");
    CHECK_FAILS(check_command(in_folder("step-00000060/")), TS_EINPUT, "1 of 1 checkpoints is damaged");
    expect_newest(55);
    make_state(60);
    CHECK_OK(save(folder, 60, 3));  // a damaged one gives way
    expect_newest(60);
    CHECK(unlink(data) == 0);
    expect_newest(55);
    CHECK_OK(ts_file_write_atomic(manifest, "{\"version\":1}", 13));
    CHECK_FAILS(ts_checkpoint_verify(in_folder("step-00000055"), world, NULL), TS_EINPUT, "has version 1");
    char escape[] = "{\n  \"sum\": \"0000000000000000\", \"version\": 2, \"step\": 55, \"state\": {}, \"files\": "
                    "[{\"name\": \"../x\", \"header_sum\": \"0000000000000000\", \"bytes\": 0, \"tensors\": {}}]}";
    write_manifest(manifest, escape);
    CHECK_FAILS(ts_checkpoint_verify(in_folder("step-00000055"), world, NULL), TS_EINPUT, "not the plain name");
    int64_t step, accepted = -1;
    static shares s;
    share_out(&s, world);
    CHECK_FAILS(ts_checkpoint_restore(folder, &s.content, accept_step, &accepted, world, &step), TS_EINPUT,
                "none of its 2 checkpoints is whole");
    CHECK_OK(ts_folder_make(in_folder("step-00000099.tmp")));  // an interrupted save
    CHECK_OK(ts_folder_make(in_folder("step-nonsense")));
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
    test_same_bytes();
    test_save_and_find();
    test_beside_changes();
    test_wrong_parts();
    test_lone_failures();
    test_retention();
    test_refusals();
    test_check();
    if (ts_comm_size(world) == 1) {
        test_damages();
        test_damage();
        test_full_disk();
        test_kills();
    }
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
    const int failed = ts_test_end();
    ts_world_close(&world, 0);
    return failed;
}
