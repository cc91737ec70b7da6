// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2 timeout=60
// Saved states: equal frames are stored once, what is loaded is what was saved, and what is damaged is refused by name.
#include "infer/steer/state.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/rng.h"
#include "tests/ts_test.h"

enum { T = 6, H = 4, W = 4, C = 3, N = T * H * W * C, FRAME = H * W * C };

static ts_comm *world;
static bool is_root;
static char folder[] = "/tmp/test_state_XXXXXX";
static ts_arena *arena;

static const char *in_folder(const char *name) {
    static char path[64][TS_PATH_BYTES];
    static int next;
    next = (next + 1) % 64;
    snprintf(path[next], TS_PATH_BYTES, "%s/%s", folder, name);
    return path[next];
}

// ---- a state of random numbers, whose frames below `shared` are those of seed 0

static float memory[TS_DENOISER_ARRAYS][N];
static ts_change change = {.step = 7, .first = 2, .prompt = "a blue circle"};

static ts_state make(uint64_t seed, int64_t shared, int arrays, bool held) {
    ts_state s = {.parent = "root",
                  .change = "\"it\" rains",
                  .timeline = "fps: 8\n",
                  .model = "a/model",
                  .fingerprint = 0xfedcba9876543210u,
                  .step = arrays > 1 ? 5 : 20,
                  .steps = 20,
                  .seed = 9,
                  .frames = 21,
                  .grid = TS_GRID_WAN,
                  .solver = TS_SOLVER_UNIPC,
                  .shift = 3.1,
                  .fps = 23.976,
                  .negative = "rain",
                  .arrays = arrays};
    ts_canvas *c = &s.compiled.canvas;
    CHECK_OK(ts_canvas_open(c, T, H, W, C, 2, 2, "a red circle", 3.7));
    c->window = 4;
    c->overlap = 2;
    c->index = 5;
    CHECK_OK(ts_canvas_set_prompt(c, 3, "caf\xc3\xa9"));
    c->guidance[2] = 0.1f;
    c->late[4] = 0.7f;
    if (held) {
        CHECK_OK(ts_canvas_add_source(c));
        memset(c->strength, 0, (size_t)(2 * c->rows * c->columns) * sizeof(float));
        ts_rng_normal_fill(c->source, N, seed, TS_RNG_SAMPLE, 99, 0);
    }
    s.compiled.changes = 1;
    s.compiled.change = &change;
    for (int i = 0; i < arrays; i++) {
        ts_rng_normal_fill(memory[i], N, 0, TS_RNG_SAMPLE, (uint64_t)i, 0);
        ts_rng_normal_fill(memory[i] + shared * FRAME, N - shared * FRAME, seed, TS_RNG_SAMPLE, (uint64_t)i, 0);
        s.array[i] = memory[i];
    }
    return s;
}

static bool same_text(const char *a, const char *b) {
    return a && b ? strcmp(a, b) == 0 : a == b;
}

static void check_equal(const ts_state *a, const ts_state *b) {
    const ts_canvas *x = &a->compiled.canvas, *y = &b->compiled.canvas;
    CHECK(same_text(a->parent, b->parent) && same_text(a->change, b->change) && same_text(a->negative, b->negative));
    CHECK(same_text(a->timeline, b->timeline) && same_text(a->model, b->model) && a->fingerprint == b->fingerprint);
    CHECK(a->step == b->step && a->steps == b->steps && a->seed == b->seed && a->frames == b->frames &&
          a->grid == b->grid);
    CHECK(a->solver == b->solver && a->shift == b->shift && a->fps == b->fps && a->arrays == b->arrays);
    CHECK(x->frames == y->frames && x->height == y->height && x->width == y->width && x->channels == y->channels);
    CHECK(x->rows == y->rows && x->columns == y->columns && x->loop == y->loop && x->window == y->window);
    CHECK(x->overlap == y->overlap && x->context == y->context && x->index == y->index && x->prompts == y->prompts);
    for (int64_t i = 0; i < x->prompts; i++) {
        CHECK(same_text(x->prompt[i], y->prompt[i]));
    }
    CHECK(memcmp(x->weight, y->weight, (size_t)(T * x->prompts) * sizeof(float)) == 0);
    CHECK(memcmp(x->guidance, y->guidance, T * sizeof(float)) == 0);
    CHECK(memcmp(x->late, y->late, T * sizeof(float)) == 0);
    CHECK(!x->strength == !y->strength);
    if (x->strength && y->strength) {
        CHECK(memcmp(x->strength, y->strength, (size_t)(T * x->rows * x->columns) * sizeof(float)) == 0);
        CHECK(memcmp(x->source, y->source, N * sizeof(float)) == 0);
    }
    CHECK(b->compiled.changes == 1 && b->compiled.change[0].step == 7 && b->compiled.change[0].first == 2);
    CHECK(same_text(b->compiled.change[0].prompt, change.prompt));
    for (int i = 0; i < a->arrays; i++) {
        CHECK(memcmp(a->array[i], b->array[i], N * sizeof(float)) == 0);
    }
}

static void test_round_trip(bool held, int arrays) {
    ts_state s = make(1, 0, arrays, held), got = {0};
    int status = TS_OK;
    if (is_root) {
        CHECK_OK(ts_state_save(&s, in_folder("store/one")));
        status = ts_state_load(&got, in_folder("store/one"), arena);
    }
    CHECK_OK(ts_agree(world, status));
    CHECK_OK(ts_state_share(&got, arena, world, 0));
    CHECK(same_text(got.name, "one"));
    check_equal(&s, &got);
    CHECK_OK(ts_canvas_set_prompt(&got.compiled.canvas, 1, "steered on"));  // the canvas is its own
    ts_state_close(&got);
    ts_canvas_close(&s.compiled.canvas);
}

// ---- the store, on rank 0

static int64_t count_objects(const char *store) {
    char command[2 * TS_PATH_BYTES];
    long long count = -1;
    snprintf(command, sizeof command, "find %s/objects -type f | wc -l", store);
    FILE *out = popen(command, "r");
    CHECK(out && fscanf(out, "%lld", &count) == 1);
    pclose(out);
    return count;
}

static void save(const char *path, uint64_t seed, int64_t shared, int arrays) {
    ts_state s = make(seed, shared, arrays, false);
    CHECK_OK(ts_state_save(&s, path));
    ts_canvas_close(&s.compiled.canvas);
}

static void test_sharing(void) {
    const char *store = in_folder("shared");
    save(in_folder("shared/a"), 1, 0, 1);
    CHECK(count_objects(store) == T);
    save(in_folder("shared/again"), 1, 0, 1);
    CHECK(count_objects(store) == T);
    save(in_folder("shared/b"), 0, 0, 1);
    CHECK(count_objects(store) == 2 * T);
    save(in_folder("shared/c"), 2, 4, 1);  // four frames are those of b
    CHECK(count_objects(store) == 2 * T + 2);
}

// ---- damage

static void write_byte(const char *path, int64_t at, char value) {
    const int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && pwrite(fd, &value, 1, at) == 1);
    close(fd);
}

// The path of some object.
static void find_object(const char *store, char path[TS_PATH_BYTES]) {
    char command[2 * TS_PATH_BYTES];
    snprintf(command, sizeof command, "find %s/objects -type f | sort | tail -1", store);
    FILE *out = popen(command, "r");
    CHECK(out && fscanf(out, "%4095s", path) == 1);
    pclose(out);
}

static void check_refused(const char *path, const char *text) {
    ts_state s;
    CHECK_FAILS(ts_state_load(&s, path, arena), TS_EINPUT, text);
    CHECK(s.compiled.canvas.prompt == NULL);
}

static void test_damage(void) {
    char object[TS_PATH_BYTES];
    const char *path = in_folder("damaged/a");
    ts_state s;
    save(path, 3, 0, 2);
    find_object(in_folder("damaged"), object);
    write_byte(object, 17, 'x');
    check_refused(path, object);
    check_refused(path, "is damaged");
    save(in_folder("damaged/b"), 3, 0, 2);  // whoever has the same frame mends it
    CHECK_OK(ts_state_load(&s, path, arena));
    ts_state_close(&s);
    CHECK(truncate(object, 8) == 0);
    check_refused(path, "has 8 bytes in place of 192");
    CHECK(unlink(object) == 0);
    check_refused(path, "is missing");
    check_refused(in_folder("damaged/none"), "there is no such state");
    check_refused(in_folder("none/none"), "there is no such state");
}

// Every key of the JSON changed to something else: refused, or harmless, never a crash.
static void test_json(void) {
    const char *path = in_folder("json/a"), *place = in_folder("json/states/a.json");
    json_t *good, *value;
    const char *key;
    void *next;
    ts_state made = make(4, 0, 2, true), s;
    CHECK_OK(ts_state_save(&made, path));
    ts_canvas_close(&made.compiled.canvas);
    CHECK_OK(ts_json_read(place, 1 << 20, &good));
    for (int kind = 0; kind < 9; kind++) {
        for (int inner = 0; inner < 3; inner++) {
            json_t *top = inner == 0 ? good : json_object_get(good, inner == 1 ? "canvas" : "objects");
            json_object_foreach_safe(top, next, key, value) {
                char name[64];
                json_t *const odd[] = {json_null(),      json_integer(-1), json_integer(INT64_MAX),
                                       json_string("x"), json_array(),     json_object(),
                                       json_true(),      json_real(1e308), json_pack("[[I]]", (json_int_t)1 << 40)};
                snprintf(name, sizeof name, "%s", key);
                json_incref(value);
                json_object_set(top, name, odd[kind]);
                CHECK_OK(ts_json_write_atomic(place, good));
                const int status = ts_state_load(&s, path, arena);
                CHECK(status == TS_OK || status == TS_EINPUT);
                ts_state_close(&s);
                json_object_set_new(top, name, value);
                for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
                    json_decref(odd[i]);
                }
            }
        }
    }
    json_decref(good);
    CHECK_OK(ts_file_write_atomic(place, "{\"version\": 1", 13));
    check_refused(path, "not valid JSON");
}

// ---- several writers, and killed ones

static void test_writers(void) {
    pid_t child[4];
    int status;
    for (int i = 0; i < 4; i++) {
        child[i] = fork();
        if (child[i] == 0) {
            for (uint64_t k = 0; k < 5; k++) {
                save(in_folder("many/a"), k, 2, 2);
                save(in_folder(i % 2 ? "many/odd" : "many/even"), k, 3, 1);
            }
            _exit(ts_test_failures ? 1 : 0);
        }
    }
    for (int i = 0; i < 4; i++) {
        CHECK(waitpid(child[i], &status, 0) == child[i] && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    ts_state s;
    CHECK_OK(ts_state_load(&s, in_folder("many/a"), arena));
    ts_state_close(&s);
    CHECK_OK(ts_state_load(&s, in_folder("many/even"), arena));
    ts_state_close(&s);
}

static void test_killed(void) {
    ts_state s;
    for (int trial = 0; trial < 20; trial++) {
        const pid_t child = fork();
        if (child == 0) {
            for (uint64_t k = 0;; k++) {
                save(in_folder("killed/a"), 100 * (uint64_t)trial + k, 0, 2);
            }
        }
        usleep((useconds_t)(3000 + 2711 * trial % 20000));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        if (ts_path_exists(in_folder("killed/states/a.json"))) {
            CHECK_OK(ts_state_load(&s, in_folder("killed/a"), arena));
            ts_state_close(&s);
        }
    }
    save(in_folder("killed/last"), 5, 0, 1);
    CHECK(!ts_path_exists(in_folder("killed/objects/unfinished")));
}

// A folder that has other things is no store; files that come to a store later are left alone.
static void test_neighbours(void) {
    ts_state s = make(5, 0, 1, false);
    CHECK_OK(ts_folder_make(in_folder("home/tmp")));
    CHECK_OK(ts_file_write_atomic(in_folder("home/tmp/notes"), "mine", 4));
    CHECK_FAILS(ts_state_save(&s, in_folder("home/a")), TS_EINPUT, "is no store of states");
    CHECK(!ts_path_exists(in_folder("home/objects")) && !ts_path_exists(in_folder("home/states")));
    CHECK_OK(ts_folder_make(in_folder("home/tmp/objects")));  // as a repository has
    CHECK_FAILS(ts_state_save(&s, in_folder("home/tmp/a")), TS_EINPUT, "is no store of states");
    CHECK_FAILS(ts_state_save(&s, in_folder("home/tmp/notes/a")), TS_EINPUT, "is a file");
    CHECK_OK(ts_folder_make(in_folder("begun/objects")));  // by a process that was killed
    CHECK_OK(ts_state_save(&s, in_folder("begun/a")));
    CHECK_OK(ts_file_write_atomic(in_folder("begun/notes"), "mine", 4));
    CHECK_OK(ts_state_save(&s, in_folder("begun/a")));
    CHECK(ts_path_bytes(in_folder("begun/notes")) == 4);
    CHECK_OK(ts_folder_make(in_folder("empty")));
    CHECK_OK(ts_state_save(&s, in_folder("empty/a")));
    CHECK_OK(ts_state_save(&s, in_folder("new/one/of/many/a")));
    ts_canvas_close(&s.compiled.canvas);
}

static void test_names(void) {
    static const char *const wrong[] = {"", "a", "store/", "store/.hidden", "store/a b", "store/..", "s/\xc3\xa9"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK_FAILS(ts_state_check_path("--save-state", wrong[i]), TS_EUSAGE, "give STORE/NAME");
    }
    CHECK_OK(ts_state_check_path("--save-state", "/store/a-1.b_2"));
    CHECK_FAILS(ts_state_check_name("seed-branch", "store/a"), TS_EUSAGE, "without a folder");
    CHECK_FAILS(ts_state_check_name("seed-branch", ".."), TS_EUSAGE, "without a folder");
    CHECK_OK(ts_state_check_name("seed-branch", "a-1.b_2"));
    uint64_t first = 0, second = 1;
    CHECK_OK(ts_state_fingerprint("configs/shapes-model", &first));
    CHECK_OK(ts_state_fingerprint("configs/shapes-model/", &second));
    CHECK(first == second && first != 0);
    CHECK_FAILS(ts_state_fingerprint("configs", &first), TS_EINPUT, "codec");
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 16, false));
    is_root = ts_comm_rank(world) == 0;
    if (is_root) {
        CHECK(mkdtemp(folder));
    }
    test_round_trip(false, 1);
    test_round_trip(true, TS_DENOISER_ARRAYS);
    if (is_root && ts_comm_size(world) == 1) {  // forks, and nothing that other ranks are needed for
        test_sharing();
        test_damage();
        test_json();
        test_writers();
        test_killed();
        test_neighbours();
        test_names();
    }
    if (is_root) {
        CHECK_OK(ts_folder_remove(folder));
    }
    ts_arena_close(&arena);
    ts_world_close(&world, TS_OK);
    return ts_test_end();
}
