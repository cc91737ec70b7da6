// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=4 timeout=180
// Twelve meshes of one to four ranks: what one has saved, each of them loads, saves again in the same bytes, exports in
// the same bytes, and goes on from with the same loss.
#include "core/comm/transport.h"
#include "core/model/model.h"

#include "core/base/clock.h"
#include "core/base/log.h"
#include "tests/tiny_config.h"
#include "tests/tiny_dataset.h"
#include "tests/ts_test.h"
#include "train/state.h"

static const struct mesh {
    int64_t data, ring, ulysses, tensor;
} MESHES[] = {
    {1, 1, 1, 1},                                                          //
    {2, 1, 1, 1}, {1, 2, 1, 1}, {1, 1, 2, 1}, {1, 1, 1, 2},                //
    {3, 1, 1, 1}, {1, 1, 1, 3},                                            //
    {4, 1, 1, 1}, {1, 1, 1, 4}, {2, 1, 1, 2}, {1, 2, 2, 1}, {1, 1, 2, 2},  //
};
enum { COUNT = sizeof MESHES / sizeof *MESHES, STEPS = 2 };

// One mesh and its trainer; ranks beyond the mesh hold none.
typedef struct side {
    ts_comm *world;
    ts_train_config config;
    ts_trainer *trainer;
    double loss;  // of the step after the save
} side;

static ts_comm *everyone;
static side sides[COUNT];
static char folder[64];
static const char *config_json;

static int ranks_of(const struct mesh *m) {
    return (int)(m->data * m->ring * m->ulysses * m->tensor);
}

static void open_side(side *s, const struct mesh *m, ts_arena *arena) {
    const bool member = ts_comm_rank(everyone) < ranks_of(m);
    MPI_Comm mpi;
    MPI_Comm_split(MPI_COMM_WORLD, member ? 0 : MPI_UNDEFINED, 0, &mpi);
    if (!member) {
        return;
    }
    CHECK_OK(ts_comm_new(&s->world, mpi));
    CHECK_OK(tiny_config(&s->config, arena, folder, "run"));
    s->config.model.heads = 3;
    s->config.model.head_dim = 16;
    s->config.model.layers = 2;
    s->config.model.ffn_dim = 50;
    s->config.mesh.data = m->data;
    s->config.mesh.ring = m->ring;
    s->config.mesh.ulysses = m->ulysses;
    s->config.mesh.tensor = m->tensor;
    s->config.checkpoint.keep = 0;
    CHECK_OK(ts_train_config_finish(&s->config, arena));
    config_json = config_json ? config_json : ts_options_to_json(ts_train_options, &s->config, arena);
    CHECK_OK(ts_trainer_open(&s->trainer, &s->config, s->world));
}

static double step(side *s) {
    ts_step_result result = {0};
    CHECK_OK(ts_trainer_step(s->trainer, TS_STOP_NONE, &result));
    CHECK(result.finite);
    return result.loss;
}

static void save(const side *s, const char *where) {
    ts_checkpoint_save *saving = NULL;
    CHECK_OK(ts_state_save_start(&saving, s->trainer, where, config_json));
    CHECK_OK(ts_checkpoint_save_finish(&saving));
}

static void export(const side *s, const char *where) {
    static ts_weights_part part[4096];
    int64_t parts;
    const ts_state_part *state = ts_optimizer_parts(s->trainer->optimizer, &parts);
    CHECK(parts <= 4096);
    for (int64_t i = 0; i < parts; i++) {
        part[i] = (ts_weights_part){state[i].param, state[i].first, state[i].count, state[i].average};
    }
    CHECK_OK(ts_model_save_parts(s->trainer->model, part, parts, where, s->world));
}

static bool same_bytes(const char *a, const char *b, const char *name) {
    char path[2][4096], *bytes[2] = {NULL, NULL};
    size_t size[2] = {0, 1};
    const char *const of[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        CHECK_OK(ts_path_join(path[i], sizeof path[i], of[i], name));
        CHECK_OK(ts_file_read(path[i], 1 << 26, &bytes[i], &size[i]));
    }
    const bool same = size[0] == size[1] && !memcmp(bytes[0], bytes[1], size[0]);
    free(bytes[0]);
    free(bytes[1]);
    return same;
}

static void check_same_state(const char *a, const char *b) {
    static const char *const names[] = {"weights.safetensors", "ema.safetensors", "moment1.safetensors",
                                        "moment2.safetensors"};
    for (int i = 0; i < 4; i++) {
        CHECK(same_bytes(a, b, names[i]));
    }
}

static const char *in_folder(ts_arena *arena, const char *name, int number) {
    return ts_arena_printf(arena, "%s/%s-%d", folder, name, number);
}

// Save here, load there.
static double move(int here, int there, ts_arena *arena) {
    side *s = &sides[there];
    bool restored = false;
    const char *from = in_folder(arena, "saved", here), *to = in_folder(arena, "again", there);
    const char *model = in_folder(arena, "model", there);
    CHECK_OK(ts_state_restore(s->trainer, from, config_json, &restored));
    CHECK(restored && s->trainer->step == STEPS);
    save(s, to);
    if (here == 0) {
        export(s, model);
    }
    const double loss = step(s), difference = fabs(loss - sides[here].loss) / fabs(sides[here].loss);
    if (ts_comm_rank(s->world) == 0) {
        check_same_state(ts_arena_printf(arena, "%s/step-%08d", from, STEPS),
                         ts_arena_printf(arena, "%s/step-%08d", to, STEPS));
        if (here == 0) {
            const char *first = in_folder(arena, "model", 0);
            CHECK(same_bytes(first, model, "transformer/diffusion_pytorch_model.safetensors"));
            CHECK(same_bytes(first, model, "text_encoder/model.safetensors"));
        }
        CHECK_OK(ts_folder_remove(to));
    }
    if (!(difference <= 1e-6)) {
        fprintf(stderr, "saved on mesh %d, loaded on mesh %d: loss %.9g, there %.9g\n", here, there, sides[here].loss,
                loss);
        CHECK(false);
    }
    return difference;
}

static void test(ts_arena *arena) {
    double largest = 0;
    const double begin = ts_clock_seconds();
    for (int i = 0; i < COUNT; i++) {
        side *s = &sides[i];
        open_side(s, &MESHES[i], arena);
        if (s->trainer) {
            for (int64_t n = 0; n < STEPS; n++) {
                step(s);
            }
            save(s, in_folder(arena, "saved", i));
            s->loss = step(s);
        }
        CHECK_OK(ts_broadcast(everyone, &s->loss, sizeof s->loss, 0));
    }
    for (int here = 0; here < COUNT; here++) {
        for (int there = 0; there < COUNT; there++) {
            if (sides[there].trainer) {
                const double difference = move(here, there, arena);
                largest = difference > largest ? difference : largest;
            }
        }
        CHECK_OK(ts_barrier(everyone));
    }
    if (ts_comm_rank(everyone) == 0) {
        printf("%d moves between %d meshes in %.1f s, largest relative difference of the next loss %.1e\n",
               COUNT * COUNT, COUNT, ts_clock_seconds() - begin, largest);
    }
}

int main(int argc, char **argv) {
    ts_arena *arena = NULL;
    CHECK_OK(ts_world_open(&everyone, &argc, &argv));
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 16, false));
    ts_log_set_level(TS_LOG_WARN);
    CHECK_OK(tiny_dataset_make(folder, everyone, NULL));
    test(arena);
    for (int i = 0; i < COUNT; i++) {
        ts_trainer_close(&sides[i].trainer);
        if (sides[i].world) {
            ts_comm_delete(&sides[i].world);
        }
    }
    CHECK_OK(ts_barrier(everyone));
    if (ts_comm_rank(everyone) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
    ts_arena_close(&arena);
    const int failed = ts_test_end();
    ts_world_close(&everyone, 0);
    return failed;
}
