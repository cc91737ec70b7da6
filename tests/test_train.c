// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=240
// Training on any mesh: the same losses as one rank, which fall; no allocation inside a step.
#include <sys/mman.h>

#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/comm/mesh.h"
#include "tests/tiny_config.h"
#include "tests/tiny_dataset.h"
#include "tests/ts_test.h"
#include "train/plan_step.h"
#include "train/trainer.h"

enum { STEPS = 50 };

// The first STEPS losses, and the validation before and after.
typedef struct losses {
    double step[STEPS];
    ts_validation_result before, after;
    double level[2][8];
} losses;

static void keep_levels(ts_validation_result *result, double *level) {
    memcpy(level, result->level_loss, (size_t)result->levels * sizeof *level);
    result->level_loss = level;
}

static int64_t tokens_per_sample(const ts_step_result *result) {
    return result->tokens / result->samples;
}

static void run(const ts_train_config *config, ts_comm *comm, losses *out) {
    ts_trainer *trainer = NULL;
    CHECK_OK(ts_trainer_open(&trainer, config, comm));
    if (!trainer) {
        return;
    }
    CHECK_OK(ts_trainer_validate(trainer, false, &out->before));
    keep_levels(&out->before, out->level[0]);
    const uint64_t system_calls = ts_tape_system_calls(trainer->tape);
    for (int i = 0; i < STEPS; i++) {
        ts_step_result result;
        CHECK_OK(ts_trainer_step(trainer, TS_STOP_NONE, &result));
        out->step[i] = result.loss;
        CHECK(result.finite && result.grad_norm > 0 && result.samples == config->train.batch);
        CHECK(result.stop == TS_STOP_NONE);
        CHECK(tokens_per_sample(&result) == 12 || tokens_per_sample(&result) == 8);
    }
    CHECK(trainer->step == STEPS && trainer->cursor.samples == STEPS * config->train.batch);
    CHECK_OK(ts_trainer_validate(trainer, true, &out->after));
    keep_levels(&out->after, out->level[1]);
    // What was counted before is all that steps and validation take.
    CHECK(ts_tape_system_calls(trainer->tape) == system_calls);
    const ts_tape_room room = ts_tape_get_room(trainer->tape), *planned = &trainer->memory.room;
    CHECK(room.values <= planned->values && room.kept <= planned->kept && room.gradients <= planned->gradients);
    CHECK(10 * room.values > 9 * planned->values);
    ts_trainer_close(&trainer);
}

static double mean(const double *x, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        sum += x[i] / n;
    }
    return sum;
}

// Every pattern with a weight is measured, and no other; looking at them leaves the rest as it is.
static void check_patterns(const losses *l) {
    static const double weight[TS_PATTERN_COUNT] = {0.5, 0.2, 0, 0.1, 0.1, 0.1};  // of tiny_config
    for (int p = 0; p < TS_PATTERN_COUNT; p++) {
        const ts_pattern_loss *before = &l->before.pattern[p], *after = &l->after.pattern[p];
        CHECK(before->measured == (p == TS_PATTERN_ALL) && after->measured == (p != TS_PATTERN_SUFFIX));
        CHECK_NEAR(after->weight, weight[p], 1e-12);
        CHECK(after->measured ? after->loss > 0 && after->loss < 0.9 * l->before.loss : after->loss == 0);
        CHECK_NEAR(after->share, after->loss / l->after.constant, 1e-12);
    }
    CHECK(l->after.pattern[TS_PATTERN_ALL].loss == l->after.loss);
}

static void check_learning(const losses *l) {
    CHECK(mean(l->step + STEPS - 10, 10) < 0.9 * mean(l->step, 10));
    CHECK(l->after.loss < 0.9 * l->before.loss);
    CHECK(l->after.constant > 1 && l->after.constant == l->before.constant);
    CHECK_NEAR(l->after.share, l->after.loss / l->after.constant, 1e-12);
    CHECK_NEAR(mean(l->after.level_loss, 4), l->after.loss, 1e-12);
    check_patterns(l);
    // A fresh model predicts about nothing, which is about the constant prediction.
    CHECK_NEAR(l->before.share, 1, 0.25);
}

static void check_equal(const losses *one, const losses *many, double tolerance) {
    for (int i = 0; i < STEPS; i++) {
        CHECK_NEAR(many->step[i] / one->step[i], 1, tolerance);
    }
    CHECK_NEAR(many->after.loss / one->after.loss, 1, tolerance);
    CHECK_NEAR(many->after.constant / one->after.constant, 1, 1e-9);
    for (int p = 0; p < TS_PATTERN_COUNT; p++) {
        CHECK(many->after.pattern[p].measured == one->after.pattern[p].measured);
        CHECK_NEAR(many->after.pattern[p].loss, one->after.pattern[p].loss, tolerance * one->after.loss);
    }
}

// One rank that wants to stop is heard by all, in the same step.
static void check_stop(const ts_train_config *config, ts_comm *world) {
    ts_trainer *trainer = NULL;
    ts_step_result result;
    const bool last = ts_comm_rank(world) == ts_comm_size(world) - 1;
    CHECK_OK(ts_trainer_open(&trainer, config, world));
    CHECK_OK(ts_trainer_step(trainer, last ? TS_STOP_TIME : TS_STOP_NONE, &result));
    CHECK(result.stop == TS_STOP_TIME);
    CHECK_OK(ts_trainer_step(trainer, last ? TS_STOP_SIGNAL : TS_STOP_TIME, &result));
    CHECK(result.stop == TS_STOP_SIGNAL);
    ts_trainer_close(&trainer);
}

// Gradients that are not numbers leave the weights as they were.
static void check_not_finite(ts_train_config config, ts_comm *world) {
    ts_trainer *trainer = NULL;
    ts_step_result result;
    CHECK_OK(ts_trainer_open(&trainer, &config, world));
    ts_param *bias = ts_params_find(trainer->model->params, "transformer.proj_out.bias");
    CHECK(bias);
    bias->value[0] = NAN;
    const float kept = trainer->model->params->item[0]->value[0];
    CHECK_OK(ts_trainer_step(trainer, TS_STOP_NONE, &result));
    CHECK(!result.finite && trainer->step == 0 && trainer->model->params->item[0]->value[0] == kept);
    ts_trainer_close(&trainer);
}

// The parts of a micro-batch add up to the same step.
static void check_parts_add_up(ts_train_config config, ts_comm *world) {
    static losses whole, parts;
    run(&config, world, &whole);
    config.train.micro_batch = 2;
    run(&config, world, &parts);
    check_equal(&whole, &parts, 1e-5);
}

// ---- meshes

static const char *const MESHES[5][6] = {
    [1] = {"", NULL},
    [2] = {"data=2", "tensor=2", "ulysses=2", "ring=2", NULL},
    [3] = {"data=3", "tensor=3", "ulysses=3", "ring=3", NULL},
    [4] = {"data=2,tensor=2", "tensor=2,ulysses=2", "tensor=2,ring=2", "data=2,ring=2", "ulysses=2,ring=2", NULL},
};

static void set_mesh(ts_train_config *config, const char *text) {
    ts_degrees degree;
    int sequence;
    CHECK_OK(ts_degrees_parse(&degree, &sequence, text));
    config->mesh.data = degree.data;
    config->mesh.tensor = degree.tensor;
    config->mesh.ulysses = degree.ulysses;
    config->mesh.ring = degree.ring;
}

// The curve of one rank, and that of every mesh; clipping acts in every step.
static void check_meshes(ts_train_config config, ts_comm *world, ts_comm *solo, ts_optimizer_kind optimizer) {
    static losses one, many;
    config.train.optimizer = (int)optimizer;
    config.train.clip = 0.05;
    if (ts_comm_rank(world) == 0) {
        set_mesh(&config, "");
        run(&config, solo, &one);
        check_learning(&one);
    }
    for (int i = 0; MESHES[ts_comm_size(world)][i]; i++) {
        set_mesh(&config, MESHES[ts_comm_size(world)][i]);
        run(&config, world, &many);
        if (ts_comm_rank(world) == 0) {
            const int before = ts_test_failures;
            check_equal(&one, &many, 1e-5);
            if (ts_test_failures > before) {
                fprintf(stderr, "on mesh %s\n", MESHES[ts_comm_size(world)][i]);
            }
        }
    }
}

// In bf16, with gradients kept in bf16 and no average, a mesh learns what one rank learns with f32 gradients.
static void check_narrow(ts_train_config config, ts_comm *world, ts_comm *solo, const char *mesh) {
    static losses wide, narrow;
    config.precision = TS_PRECISION_BF16;
    config.train.ema_decay = 0;
    if (ts_comm_rank(world) == 0) {
        run(&config, solo, &wide);
    }
    config.train.gradients = TS_GRADIENTS_BF16;
    config.train.micro_batch = 2;
    set_mesh(&config, mesh);
    run(&config, world, &narrow);
    if (ts_comm_rank(world) == 0) {
        check_equal(&wide, &narrow, 0.02);
    }
}

// With copies rounded by chance a mesh rounds as one rank does, and learns what it learns.
static void check_stochastic(ts_train_config config, ts_comm *world, ts_comm *solo) {
    static losses one, many;
    config.precision = TS_PRECISION_BF16;
    config.train.rounding = TS_ROUND_STOCHASTIC;
    if (ts_comm_rank(world) == 0) {
        set_mesh(&config, "");
        run(&config, solo, &one);
        check_learning(&one);
    }
    set_mesh(&config, MESHES[ts_comm_size(world)][0]);
    run(&config, world, &many);
    if (ts_comm_rank(world) == 0) {
        check_equal(&one, &many, 0.02);
    }
}

// ---- what a step sends

// A step's shape of latents, by its tokens.
static ts_shape latent_of(const ts_trainer *trainer, const ts_step_result *result) {
    const int64_t *patch = ts_dit_get_config(trainer->model->dit)->patch;
    for (int b = 0; b < ts_dataset_buckets(trainer->dataset); b++) {
        const ts_shape shape = ts_dataset_bucket_shape(trainer->dataset, b);
        const int64_t *dim = shape.dim;
        if (dim[0] / patch[0] * (dim[1] / patch[1]) * (dim[2] / patch[2]) == tokens_per_sample(result)) {
            return shape;
        }
    }
    CHECK(false);
    return ts_dataset_bucket_shape(trainer->dataset, 0);
}

// The bytes that tessera plan foretells for rank 0 are those that it sends, on every axis and in every collective.
static void check_foretold(ts_train_config config, ts_comm *world, const char *mesh) {
    ts_trainer *trainer = NULL;
    ts_step_result result;
    ts_plan_step step;
    set_mesh(&config, mesh);
    CHECK_OK(ts_trainer_open(&trainer, &config, world));
    for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
        ts_comm_reset_counters(trainer->mesh.axis[axis]);
    }
    CHECK_OK(ts_trainer_step(trainer, TS_STOP_NONE, &result));
    const ts_plan_run run = {.config = &config,
                             .dit = *ts_dit_get_config(trainer->model->dit),
                             .text = *ts_text_get_config(trainer->model->text),
                             .latent = latent_of(trainer, &result)};
    CHECK_OK(ts_plan_step_count(&step, &run, &trainer->mesh.degree, trainer->memory.recompute));
    for (int axis = 0; axis < TS_AXIS_COUNT && ts_comm_rank(world) == 0; axis++) {
        for (int kind = 0; kind < TS_COLLECTIVE_COUNT; kind++) {
            const ts_comm_counters sent = ts_comm_get_counters(trainer->mesh.axis[axis], (ts_collective)kind);
            CHECK(step.message[axis][kind].bytes == (double)sent.bytes_sent);
            CHECK(step.message[axis][kind].calls == (double)sent.calls);
        }
    }
    ts_plan_step_free(&step);
    ts_trainer_close(&trainer);
}

// ---- memory

// The kind of recomputation that all ranks choose under a limit; `plan` is that of this rank.
static ts_recompute choose_alike(ts_train_config config, ts_comm *world, int64_t limit, ts_memory_plan *plan) {
    ts_trainer *trainer = NULL;
    config.train.memory_gib = (double)limit / (1 << 30);
    CHECK_OK(ts_trainer_open(&trainer, &config, world));
    *plan = trainer ? trainer->memory : (ts_memory_plan){.recompute = TS_RECOMPUTE_BLOCK};
    ts_trainer_close(&trainer);
    int64_t least = (int64_t)plan->recompute, most = least;
    CHECK_OK(ts_all_reduce(world, &least, 1, TS_I64, TS_MIN));
    CHECK_OK(ts_all_reduce(world, &most, 1, TS_I64, TS_MAX));
    CHECK(least == most);
    return (ts_recompute)most;
}

// What is recomputed is sent again: ranks whose processes are not of one size must still choose alike.
static void check_recompute_alike(ts_train_config config, ts_comm *world) {
    enum { MIB = 1 << 20, OTHER = 64 * MIB, STEP = 2 * MIB };
    const bool is_last = ts_comm_rank(world) == ts_comm_size(world) - 1;
    ts_memory_plan plan;
    config.model.layers = 64;
    config.model.ffn_dim = 512;
    config.train.micro_batch = config.train.batch;
    CHECK(choose_alike(config, world, (int64_t)64 << 30, &plan) == TS_RECOMPUTE_NONE);
    int64_t need = plan.total;  // of any rank, before one of them is larger than the others
    CHECK_OK(ts_all_reduce(world, &need, 1, TS_I64, TS_MAX));

    // New pages: the heap keeps some of what a trainer gave back, and a plan counts those already.
    char *other = NULL;
    if (is_last) {
        other = mmap(NULL, OTHER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(other != MAP_FAILED);
        memset(other, 1, OTHER);
    }
    int64_t limit = need + 2 * OTHER;
    ts_recompute kind = TS_RECOMPUTE_NONE;
    while (kind == TS_RECOMPUTE_NONE && limit > need) {
        limit -= STEP;
        kind = choose_alike(config, world, limit, &plan);
    }
    CHECK(kind > TS_RECOMPUTE_NONE && limit > need);  // for the sake of the last rank alone
    CHECK(!other || (other[OTHER - 1] == 1 && munmap(other, OTHER) == 0));
}

int main(int argc, char **argv) {
    ts_comm *world = NULL;
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    ts_log_set_level(TS_LOG_WARN);
    ts_mesh mesh;
    CHECK_OK(ts_mesh_open(&mesh, world, &(ts_degrees){ts_comm_size(world), 1, 1, 1, 1}));
    ts_comm *solo = mesh.axis[TS_AXIS_TENSOR];
    char folder[64];
    CHECK_OK(tiny_dataset_make(folder, world, solo));
    ts_arena *arena = NULL;
    ts_train_config config;
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 16, false));
    CHECK_OK(tiny_config(&config, arena, folder, "run"));

    check_meshes(config, world, solo, TS_OPTIMIZER_ADAMW);
    check_meshes(config, world, solo, TS_OPTIMIZER_MUON);
    check_parts_add_up(config, world);
    check_narrow(config, world, solo, MESHES[ts_comm_size(world)][ts_comm_size(world) > 1]);
    if (ts_comm_size(world) == 2) {
        check_stochastic(config, world, solo);
    }
    check_stop(&config, world);
    check_not_finite(config, world);
    for (int i = 0; MESHES[ts_comm_size(world)][i]; i++) {
        check_foretold(config, world, MESHES[ts_comm_size(world)][i]);
    }
    check_recompute_alike(config, world);

    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
    ts_arena_close(&arena);
    ts_mesh_close(&mesh);
    ts_world_close(&world, 0);
    return ts_test_end();
}
