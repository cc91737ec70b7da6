// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// The memory plan, counted: activations of a layer by the formula, optimizer state over data ranks, meshes that are
// only imagined, the choice of recomputation, refusal. tests/test_memory.sh compares plans with what processes take.
#include "train/memory.h"

#include "core/base/log.h"
#include "tests/ts_test.h"

enum { FRAMES = 4, SIDE = 64, CHANNELS = 16, TEXT_ROWS = 8 };  // 4 x 32 x 32 tokens

static ts_arena *arena;
static const ts_shape latent = {.ndim = 4, .dim = {FRAMES, SIDE, SIDE, CHANNELS}};
static const int64_t TOKENS = FRAMES * (SIDE / 2) * (SIDE / 2);

static ts_train_config make_config(int64_t heads, int64_t head_dim, int64_t layers) {
    ts_train_config config = {0};
    CHECK_OK(ts_options_default(ts_train_options, &config, arena));
    config.data = "none";
    config.model.heads = heads;
    config.model.head_dim = head_dim;
    config.model.layers = layers;
    config.model.ffn_dim = 4 * heads * head_dim;
    config.model.text_rows = TEXT_ROWS;
    config.train.batch = 64;
    config.train.micro_batch = 1;
    CHECK_OK(ts_train_config_finish(&config, arena));
    return config;
}

static ts_memory_run make_run(const ts_train_config *config, const ts_mesh *mesh) {
    return (ts_memory_run){.config = config,
                           .dit = ts_train_config_dit(config, CHANNELS),
                           .text = ts_train_config_text(config, 100),
                           .mesh = mesh,
                           .latent = &latent,
                           .latents = 1,
                           .clips = 1000,
                           .process = 40 << 20};
}

// Bytes x tokens x width that one more layer keeps.
static double kept_of_a_layer(int precision, ts_recompute recompute, int64_t head_dim) {
    ts_memory_plan plan[2];
    for (int i = 0; i < 2; i++) {
        ts_train_config config = make_config(8, head_dim, 4 + 4 * i);
        config.precision = precision;
        const ts_memory_run run = make_run(&config, NULL);
        CHECK_OK(ts_memory_count(&plan[i], &run, recompute));
    }
    const double more = (double)(plan[1].bytes[TS_MEMORY_ACTIVATIONS] - plan[0].bytes[TS_MEMORY_ACTIVATIONS]);
    // What the backward pass takes besides does not grow with depth, but for names of variables.
    const double extra = (double)(plan[1].bytes[TS_MEMORY_BACKWARD] - plan[0].bytes[TS_MEMORY_BACKWARD]);
    CHECK(extra < 0.01 * more + (double)(16 << 20));
    return more / 4 / ((double)TOKENS * 8 * (double)head_dim);
}

static void test_activations(void) {
    // x 4, attention 2 and a statistic of 4 bytes a head, to_out 2, before GELU 8, feed-forward 2
    CHECK_NEAR(kept_of_a_layer(TS_PRECISION_BF16, TS_RECOMPUTE_ELEMENTWISE, 64), 18 + 4.0 / 64, 0.05);
    CHECK_NEAR(kept_of_a_layer(TS_PRECISION_BF16, TS_RECOMPUTE_ELEMENTWISE, 128), 18 + 4.0 / 128, 0.05);
    CHECK_NEAR(kept_of_a_layer(TS_PRECISION_F32, TS_RECOMPUTE_ELEMENTWISE, 128), 32 + 4.0 / 128, 0.05);
    CHECK_NEAR(kept_of_a_layer(TS_PRECISION_BF16, TS_RECOMPUTE_BLOCK, 64), 4, 0.05);
    CHECK(kept_of_a_layer(TS_PRECISION_BF16, TS_RECOMPUTE_NONE, 64) > 55);
}

// Bytes of state for each parameter on the first of `ranks` data ranks.
static double state_of_a_parameter(int ranks) {
    ts_train_config config = make_config(16, 128, 16);
    config.train.gradients = TS_GRADIENTS_BF16;
    config.train.ema_decay = 0;
    ts_mesh mesh;
    ts_memory_plan plan;
    CHECK_OK(ts_mesh_imagine(&mesh, &(ts_degrees){ranks, 1, 1, 1, 1}, 0));
    const ts_memory_run run = make_run(&config, &mesh);
    CHECK_OK(ts_memory_count(&plan, &run, TS_RECOMPUTE_ELEMENTWISE));
    ts_mesh_close(&mesh);
    int64_t bytes = 0;
    for (int part = TS_MEMORY_WEIGHTS; part <= TS_MEMORY_AVERAGE; part++) {
        bytes += plan.bytes[part];
    }
    return (double)bytes / (double)plan.parameters;
}

static void test_state(void) {
    for (int ranks = 1; ranks <= 64; ranks *= 4) {
        const double theory = 4 + 12.0 / ranks, found = state_of_a_parameter(ranks);
        CHECK(found <= 1.02 * theory && found >= 0.98 * theory);
    }
}

// A model of 14 thousand million parameters on 64 ranks takes no more than a moment to count, and its parts add up.
static void test_imagined(void) {
    const ts_degrees degree[] = {{64, 1, 1, 1, 1}, {8, 1, 1, 8, 1}, {4, 1, 2, 4, 2}, {8, 1, 1, 1, 8}, {1, 1, 8, 8, 1}};
    ts_train_config config = make_config(40, 128, 40);
    ts_memory_plan plan[sizeof degree / sizeof *degree];
    for (size_t i = 0; i < sizeof degree / sizeof *degree; i++) {
        ts_mesh mesh;
        CHECK_OK(ts_mesh_imagine(&mesh, &degree[i], 0));
        const ts_memory_run run = make_run(&config, &mesh);
        CHECK_OK(ts_memory_count(&plan[i], &run, TS_RECOMPUTE_ELEMENTWISE));
        ts_mesh_close(&mesh);
        int64_t total = 0;
        for (int part = 0; part < TS_MEMORY_PARTS; part++) {
            CHECK(plan[i].bytes[part] >= 0);
            total += plan[i].bytes[part];
        }
        CHECK(total == plan[i].total);
    }
    CHECK(plan[0].parameters > 14000000000 && plan[3].parameters < plan[0].parameters / 7);
    // Activations shrink with the ranks that share the tokens.
    for (int i = 1; i <= 4; i++) {
        const double share = i == 4 ? 64 : i == 2 ? 16 : 8;
        const double whole = (double)plan[0].bytes[TS_MEMORY_ACTIVATIONS];
        const double part = (double)plan[i].bytes[TS_MEMORY_ACTIVATIONS];
        CHECK(part > 0.95 * whole / share && part < 2.5 * whole / share);
    }
}

// Long videos are validated one by one, however many short ones go together.
static void test_validation_batch(void) {
    ts_train_config config = make_config(16, 128, 16);
    config.train.micro_batch = 0;
    CHECK(ts_validation_batch(&config, NULL, false, 80) == 16);
    CHECK(ts_validation_batch(&config, NULL, false, 512) == 4);
    CHECK(ts_validation_batch(&config, NULL, false, 32760) == 1);
    CHECK(ts_validation_batch(&config, NULL, true, 80) == 64 && ts_validation_batch(&config, NULL, true, 2048) == 8);
    config.train.micro_batch = 3;
    CHECK(ts_validation_batch(&config, NULL, false, 32760) == 3);
}

// A GPU holds what the host does otherwise, but for the process, what is read ahead and what the tape notes.
static void test_device(void) {
    ts_train_config config = make_config(8, 64, 8);
    ts_memory_run run = make_run(&config, NULL);
    ts_memory_plan host, device;
    CHECK_OK(ts_memory_count(&host, &run, TS_RECOMPUTE_NONE));
    run.on_device = true;
    CHECK_OK(ts_memory_count(&device, &run, TS_RECOMPUTE_NONE));
    for (int part = TS_MEMORY_WEIGHTS; part <= TS_MEMORY_AVERAGE; part++) {
        CHECK(device.bytes[part] == host.bytes[part]);
    }
    CHECK(device.bytes[TS_MEMORY_ACTIVATIONS] == host.bytes[TS_MEMORY_ACTIVATIONS]);
    CHECK(device.bytes[TS_MEMORY_PROCESS] == 0 && device.bytes[TS_MEMORY_DATA] < host.bytes[TS_MEMORY_DATA]);
    CHECK(host.host == 0 && device.host > run.process && device.total < host.total + (1 << 28));
}

static void test_choice(void) {
    ts_train_config config = make_config(8, 64, 8);
    const ts_memory_run run = make_run(&config, NULL);
    ts_memory_plan plan[3], chosen;
    for (ts_recompute kind = TS_RECOMPUTE_NONE; kind <= TS_RECOMPUTE_BLOCK; kind++) {
        CHECK_OK(ts_memory_count(&plan[kind], &run, kind));
        CHECK(kind == TS_RECOMPUTE_NONE || plan[kind].total < plan[kind - 1].total);
    }
    for (ts_recompute kind = TS_RECOMPUTE_NONE; kind <= TS_RECOMPUTE_BLOCK; kind++) {
        CHECK_OK(ts_memory_plan_make(&chosen, &run, plan[kind].total));
        CHECK(chosen.recompute == kind && chosen.total == plan[kind].total);
    }
    CHECK_FAILS(ts_memory_plan_make(&chosen, &run, plan[TS_RECOMPUTE_BLOCK].total - 1), TS_ERESOURCE, "a rank needs");
    config.train.recompute = TS_RECOMPUTE_NONE;
    CHECK_FAILS(ts_memory_plan_make(&chosen, &run, plan[TS_RECOMPUTE_ELEMENTWISE].total), TS_ERESOURCE,
                "try train.recompute=elementwise");
}

int main(void) {
    ts_log_set_level(TS_LOG_WARN);
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 16, false));
    test_activations();
    test_state();
    test_imagined();
    test_validation_batch();
    test_device();
    test_choice();
    ts_arena_close(&arena);
    return ts_test_end();
}
