// SPDX-License-Identifier: Apache-2.0
// TEST: timeout=60
// The planner: hardware files, times by the formulas, counted steps against known values, plans and refusals.
#include "train/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/nn/tape.h"
#include "tests/ts_test.h"
#include "train/memory.h"

static ts_arena *arena;
static char folder[64];

static const char *write_file(const char *name, const char *text) {
    const char *path = ts_arena_printf(arena, "%s/%s", folder, name);
    CHECK_OK(ts_file_write_atomic(path, text, strlen(text)));
    return path;
}

// ---- hardware

static const char *const HARDWARE = "name: four a host\n"
                                    "devices_per_host: 4\n"
                                    "memory_gib: 1\n"
                                    "bf16_gflops: 1000\n"
                                    "f32_gflops: 100\n"
                                    "bf16_attention_gflops: 500\n"
                                    "memory_gb_per_s: 10\n"
                                    "overhead_us: 2\n"
                                    "wait_share: 0.5\n"
                                    "hidden_share: 0.25\n"
                                    "comm:\n"
                                    "  ranks: 3\n"
                                    "  all_gather: {latency_us: 8, gb_per_s: 2}\n"
                                    "link: {latency_us: 1, gb_per_s: 4}\n"
                                    "network: {latency_us: 10, gb_per_s: 1}\n"
                                    "measured:\n"
                                    "  - gemm BF16 100x100x100 2000000 50\n"
                                    "  - gemm BF16 400x100x100 8000000 100\n"
                                    "  - layer_norm_forward BF16 64x128 49152 7\n";

static void read_hardware(ts_hardware *out) {
    CHECK_OK(ts_hardware_read(out, arena, write_file("hardware.yaml", HARDWARE)));
}

static double call_us(const ts_hardware *h, ts_cost cost) {
    double seconds = -1;
    CHECK_OK(ts_hardware_call(h, &cost, &seconds));
    return 1e6 * seconds;
}

static ts_cost gemm(ts_dtype dtype, int64_t m, int64_t n, int64_t k) {
    return ts_cost_gemm(&(ts_gemm){.m = m, .n = n, .k = k, .dtype_ab = dtype, .dtype_c = TS_F32});
}

static void test_calls(void) {
    ts_hardware h;
    read_hardware(&h);
    CHECK(h.measured_count == 3 && h.measured[1].dim[0] == 400 && h.measured[2].dim[2] == 0);
    // Measured ones as they are, others from the nearest one by work; every call has its overhead.
    CHECK_NEAR(call_us(&h, gemm(TS_BF16, 100, 100, 100)), 52, 1e-9);
    CHECK_NEAR(call_us(&h, gemm(TS_BF16, 400, 100, 100)), 102, 1e-9);
    CHECK_NEAR(call_us(&h, gemm(TS_BF16, 90, 100, 100)), 2 + 0.9 * 50, 1e-9);
    CHECK_NEAR(call_us(&h, gemm(TS_BF16, 800, 100, 100)), 2 + 2 * 100, 1e-9);
    CHECK_NEAR(call_us(&h, gemm(TS_BF16, 0, 100, 100)), 2, 1e-9);
    // None measured: rate or bandwidth, whichever takes longer.
    CHECK_NEAR(call_us(&h, gemm(TS_F32, 1000, 1000, 1000)), 2 + 2e9 / 100e9 * 1e6, 1e-6);
    CHECK_NEAR(call_us(&h, gemm(TS_F32, 1000, 1000, 1)), 2 + 4.0 * (2000 + 1e6) / 10e9 * 1e6, 1e-6);
    const ts_attention attention = {
        .batch = 1, .heads = 2, .head_dim = 64, .queries = 512, .keys = 512, .dtype = TS_BF16};
    CHECK_NEAR(call_us(&h, ts_cost_attention_forward(&attention)), 2 + 4.0 * 2 * 64 * 512 * 512 / 500e9 * 1e6, 1e-6);
    CHECK_NEAR(call_us(&h, ts_cost_stream("axpy", TS_F32, 1, 1000, 12)), 2 + 12e3 / 10e9 * 1e6, 1e-9);
}

static double message_us(const ts_hardware *h, ts_line_kind kind, int size, int stride, double calls, double bytes) {
    double seconds = -1;
    CHECK_OK(ts_hardware_message(h, kind, (ts_placement){size, stride}, calls, bytes, &seconds));
    return 1e6 * seconds;
}

static void test_messages(void) {
    ts_hardware h;
    read_hardware(&h);
    CHECK(message_us(&h, TS_LINE_ALL_GATHER, 1, 1, 9, 9e9) == 0);
    // A measured line of 3 ranks: half its latency for each of the other ranks.
    CHECK_NEAR(message_us(&h, TS_LINE_ALL_GATHER, 3, 1, 1, 2e6), 8 + 1000, 1e-6);
    CHECK_NEAR(message_us(&h, TS_LINE_ALL_GATHER, 2, 1, 5, 2e6), 5 * 4 + 1000, 1e-6);
    // Without a line, the link.
    CHECK_NEAR(message_us(&h, TS_LINE_ALL_TO_ALL, 4, 1, 1, 4e6), 3 + 1000, 1e-6);
    // Eight ranks side by side: three peers here, four there. Two apart: one here, six there. Four apart: all there.
    CHECK_NEAR(message_us(&h, TS_LINE_ALL_TO_ALL, 8, 1, 1, 7e6), 3 * (1 + 250) + 4 * (10 + 1000), 1e-6);
    CHECK_NEAR(message_us(&h, TS_LINE_ALL_TO_ALL, 8, 2, 1, 7e6), 1 * (1 + 250) + 6 * (10 + 1000), 1e-6);
    CHECK_NEAR(message_us(&h, TS_LINE_ALL_TO_ALL, 8, 4, 1, 7e6), 7 * (10 + 1000), 1e-6);
    // A ring's hop is as slow as the slowest of its links.
    CHECK_NEAR(message_us(&h, TS_LINE_RING, 4, 1, 2, 4e6), 2 + 1000, 1e-6);
    CHECK_NEAR(message_us(&h, TS_LINE_RING, 8, 1, 2, 4e6), 20 + 4000, 1e-6);
}

static void test_bad_hardware(void) {
    ts_hardware h;
    double seconds;
    CHECK_FAILS(ts_hardware_read(&h, arena, "/nowhere/hardware.yaml"), TS_EINPUT, "hardware.yaml");
    CHECK_FAILS(ts_hardware_read(&h, arena, write_file("a.yaml", "devices_per_hosts: 4\n")), TS_EUSAGE,
                "devices_per_host");
    static const char *const wrong[] = {"gemm",
                                        "gemm BF16 1x2x3x4x5 1 1",
                                        "gemm F99 1 1 1",
                                        "gemm BF16 1x 1 1",
                                        "gemm BF16 -1 1 1",
                                        "gemm BF16 1 1 0",
                                        "gemm BF16 1 nan 1",
                                        "gemm BF16 1 1 1 1"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const char *text = ts_arena_printf(arena, "devices_per_host: 1\nmeasured:\n  - %s\n", wrong[i]);
        CHECK_FAILS(ts_hardware_read(&h, arena, write_file("b.yaml", text)), TS_EUSAGE, "entry, dtype, dimensions");
    }
    CHECK_OK(ts_hardware_read(&h, arena, write_file("c.yaml", "name: nothing\n")));
    const ts_cost product = gemm(TS_BF16, 8, 8, 8);
    CHECK_FAILS(ts_hardware_call(&h, &product, &seconds), TS_EUSAGE, "memory_gb_per_s");
    CHECK_FAILS(ts_hardware_message(&h, TS_LINE_RING, (ts_placement){2, 1}, 1, 1, &seconds), TS_EUSAGE,
                "devices_per_host");
    h.devices_per_host = 1;
    h.memory_gb_per_s = 1;
    CHECK_FAILS(ts_hardware_call(&h, &product, &seconds), TS_EUSAGE, "bf16_gflops");
    CHECK_FAILS(ts_hardware_message(&h, TS_LINE_RING, (ts_placement){2, 1}, 1, 1, &seconds), TS_EUSAGE, "network");
    h.devices_per_host = 2;
    CHECK_FAILS(ts_hardware_message(&h, TS_LINE_RING, (ts_placement){2, 1}, 1, 1, &seconds), TS_EUSAGE, "comm.ring");
}

static void test_write_hardware(void) {
    ts_hardware h, again;
    read_hardware(&h);
    const char *path = ts_arena_printf(arena, "%s/written.yaml", folder);
    CHECK_OK(ts_hardware_write(&h, "# a comment\n", path));
    CHECK_OK(ts_hardware_read(&again, arena, path));
    CHECK(!strcmp(again.name, h.name) && again.comm_ranks == 3 && again.measured_count == h.measured_count);
    CHECK(again.comm[TS_LINE_ALL_GATHER].gb_per_s == 2 && again.network.latency_us == 10 && again.wait_share == 0.5);
    for (int64_t i = 0; i < h.measured_count; i++) {
        CHECK(!strcmp(again.measured[i].entry, h.measured[i].entry) && again.measured[i].work == h.measured[i].work);
        CHECK(!memcmp(again.measured[i].dim, h.measured[i].dim, sizeof h.measured[i].dim));
        CHECK_NEAR(again.measured[i].seconds, h.measured[i].seconds, 1e-12);
    }
}

static void test_shipped_hardware(void) {
    ts_hardware h;
    CHECK_OK(ts_hardware_read(&h, arena, "configs/hardware/h200.yaml"));
    CHECK(h.devices_per_host == 8 && h.memory_gib > 100 && h.measured_count == 0);
}

// ---- counting

static void make_run(ts_plan_run *run, ts_train_config *config, int64_t layers, int64_t batch) {
    *config = (ts_train_config){0};
    CHECK_OK(ts_options_default(ts_train_options, config, arena));
    config->data = "(latent)";
    config->model.heads = 6;
    config->model.head_dim = 8;
    config->model.ffn_dim = 96;
    config->model.layers = layers;
    config->model.freq_dim = 16;
    config->text.width = 16;
    config->text.heads = 2;
    config->text.head_dim = 8;
    config->text.ffn_dim = 32;
    config->train.batch = batch;
    CHECK_OK(ts_train_config_finish(config, arena));
    CHECK_OK(ts_plan_run_open(run, config, "3x10x10x4", 50));
}

static double bytes_of(const ts_plan_step *step, ts_axis axis, ts_collective kind) {
    return step->message[axis][kind].bytes;
}

// The volumes of core/comm/README.md, of five blocks: 75 tokens, width 48, 6 heads, 2 bytes an operand.
static void test_volumes(void) {
    enum { BLOCKS = 5 };
    ts_train_config config;
    ts_plan_run run;
    ts_plan_step step;
    make_run(&run, &config, BLOCKS, 1);
    CHECK(ts_plan_tokens(&run) == 75);
    CHECK_OK(ts_plan_step_count(&step, &run, &(ts_degrees){1, 1, 1, 1, 2}, TS_RECOMPUTE_NONE));
    const double own = 38, all = 75;  // tensor rank 0 has the larger part
    CHECK(bytes_of(&step, TS_AXIS_TENSOR, TS_ALL_GATHER) == BLOCKS * 2 * 3 * own * 48 * 2);
    CHECK(bytes_of(&step, TS_AXIS_TENSOR, TS_REDUCE_SCATTER) == BLOCKS * 2 * 3 * (all - own) * 48 * 2);
    ts_plan_step_free(&step);
    CHECK_OK(ts_plan_step_count(&step, &run, &(ts_degrees){1, 1, 1, 2, 1}, TS_RECOMPUTE_NONE));
    const double forward = 2 * 8 * (3 * 38 * 3 + 37 * 3), backward = 2 * 8 * (38 * 3 + 3 * 37 * 3);
    CHECK(bytes_of(&step, TS_AXIS_ULYSSES, TS_ALL_TO_ALL) == BLOCKS * (forward + backward));
    CHECK(step.message[TS_AXIS_ULYSSES][TS_ALL_TO_ALL].calls == 4 * BLOCKS);
    ts_plan_step_free(&step);
    CHECK_OK(ts_plan_step_count(&step, &run, &(ts_degrees){1, 1, 2, 1, 1}, TS_RECOMPUTE_NONE));
    CHECK(bytes_of(&step, TS_AXIS_RING, TS_RING) ==
          BLOCKS * (2.0 * 8 * 6 * 2 * (75 - 37) + 2.0 * 8 * 6 * (2 * (75 - 37) + 4 * (75 - 38))));
    ts_plan_step_free(&step);
    // ZeRO-1: f32 gradients and bf16 weights of half of each span, but for what is kept in f32.
    CHECK_OK(ts_plan_step_count(&step, &run, &(ts_degrees){1, 1, 1, 1, 1}, TS_RECOMPUTE_NONE));
    CHECK(bytes_of(&step, TS_AXIS_WORLD, TS_REDUCE_SCATTER) == 0);
    const double parameters = step.parameters;
    ts_plan_step_free(&step);
    make_run(&run, &config, BLOCKS, 2);
    CHECK_OK(ts_plan_step_count(&step, &run, &(ts_degrees){2, 1, 1, 1, 1}, TS_RECOMPUTE_NONE));
    CHECK_NEAR(bytes_of(&step, TS_AXIS_WORLD, TS_REDUCE_SCATTER) / (2 * parameters), 1, 0.02);
    CHECK(bytes_of(&step, TS_AXIS_WORLD, TS_ALL_GATHER) < bytes_of(&step, TS_AXIS_WORLD, TS_REDUCE_SCATTER));
    CHECK(step.samples == 1 && step.micro_batches == 1);
    ts_plan_step_free(&step);
}

// Of all blocks, as a training run counts it.
static void test_memory(void) {
    static const ts_degrees meshes[] = {{1, 1, 1, 1, 1}, {2, 1, 1, 1, 1}, {1, 1, 2, 1, 2}, {1, 1, 1, 3, 2}};
    ts_train_config config;
    ts_plan_run run;
    make_run(&run, &config, 6, 5);
    for (size_t i = 0; i < sizeof meshes / sizeof *meshes; i++) {
        for (int kind = TS_RECOMPUTE_NONE; kind <= TS_RECOMPUTE_BLOCK; kind++) {
            ts_mesh mesh;
            ts_plan_step step;
            ts_memory_plan plan;
            ts_memory_run memory = {.config = &config, .dit = run.dit, .text = run.text, .mesh = &mesh};
            memory.latent = &run.latent;
            memory.latents = 1;
            CHECK_OK(ts_mesh_imagine(&mesh, &meshes[i], 0));
            CHECK_OK(ts_memory_count(&plan, &memory, (ts_recompute)kind));
            CHECK_OK(ts_plan_step_count(&step, &run, &meshes[i], (ts_recompute)kind));
            CHECK(step.memory == (double)plan.total && step.parameters == (double)plan.parameters);
            ts_plan_step_free(&step);
            ts_mesh_close(&mesh);
        }
    }
}

// Memory is that of all layers: at two and three, validation needs more than training here, at forty it does not.
static void test_deep_memory(void) {
    double memory[2][2];
    for (int deep = 0; deep < 2; deep++) {
        for (int validates = 0; validates < 2; validates++) {
            ts_train_config config;
            ts_plan_run run;
            ts_plan_step step;
            make_run(&run, &config, deep ? 40 : 3, 1);
            config.validate.clips = validates ? 64 : 0;
            CHECK_OK(ts_plan_step_count(&step, &run, &(ts_degrees){1, 1, 1, 1, 1}, TS_RECOMPUTE_NONE));
            memory[deep][validates] = step.memory;
            ts_plan_step_free(&step);
        }
    }
    CHECK(memory[0][1] > 1.1 * memory[0][0]);
    CHECK_NEAR(memory[1][1] / memory[1][0], 1, 0.02);
}

// A rehearsed pass of six blocks makes the calls of the counted one, which takes them from models of two and three.
static void count_heard(void *user, const ts_cost *cost) {
    double *heard = user;
    heard[0] += 1;
    heard[1] += cost->flops;
    CHECK(cost->seconds >= 0);
}

static void test_rehearsal(void) {
    static const ts_degrees meshes[] = {{1, 1, 1, 1, 1}, {1, 1, 2, 1, 2}, {1, 1, 1, 3, 2}};
    const ts_kernels *kernels;
    ts_train_config config;
    ts_plan_run run;
    make_run(&run, &config, 6, 1);
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    for (size_t mesh = 0; mesh < sizeof meshes / sizeof *meshes; mesh++) {
        for (int kind = TS_RECOMPUTE_NONE; kind <= TS_RECOMPUTE_BLOCK; kind++) {
            ts_plan_rehearsal *rehearsal;
            ts_plan_step step;
            double heard[2] = {0}, counted = 0;
            CHECK_OK(ts_plan_rehearsal_open(&rehearsal, &run, &meshes[mesh], (ts_recompute)kind, 6, kernels));
            CHECK_OK(ts_plan_rehearse(rehearsal, count_heard, heard));
            ts_plan_rehearsal_close(&rehearsal);
            CHECK_OK(ts_plan_step_count(&step, &run, &meshes[mesh], (ts_recompute)kind));
            for (int64_t i = 0; i < step.calls; i++) {
                const char *entry = step.call[i].cost.entry;
                const bool outside = !strcmp(entry, "adamw") || !strcmp(entry, "sum_squares") ||
                                     !strcmp(entry, "clear") || !strcmp(entry, "noise");
                counted += outside ? 0 : step.call[i].times;
            }
            CHECK_NEAR(heard[0], counted, 1e-9);
            CHECK_NEAR(heard[1], step.flops, 1e-9 * step.flops);
            ts_plan_step_free(&step);
        }
    }
}

// ---- plans

static void test_meshes(void) {
    ts_train_config config;
    ts_plan_run run;
    make_run(&run, &config, 2, 4);
    int64_t count = 0;
    for (ts_degrees d = {0}; ts_plan_next_mesh(&run, 12, &d); count++) {
        CHECK(d.data * d.ring * d.ulysses * d.tensor == 12 && d.cfg == 1);
        CHECK(d.data <= 4 && d.tensor * d.ulysses <= 6);
    }
    int64_t expected = 0;
    for (int data = 1; data <= 4; data++) {
        for (int ring = 1; ring <= 12; ring++) {
            for (int ulysses = 1; ulysses <= 6; ulysses++) {
                for (int tensor = 1; tensor * ulysses <= 6; tensor++) {
                    expected += data * ring * ulysses * tensor == 12;
                }
            }
        }
    }
    CHECK(count == expected && count > 10);
}

static void test_prediction(void) {
    ts_hardware h;
    ts_train_config config;
    ts_plan_run run;
    ts_plan_step step;
    ts_plan_time time;
    read_hardware(&h);
    make_run(&run, &config, 2, 2);
    CHECK_OK(ts_plan_step_count(&step, &run, &(ts_degrees){2, 1, 1, 1, 1}, TS_RECOMPUTE_NONE));
    CHECK_OK(ts_plan_predict(&time, &h, &step));
    CHECK(time.compute > 0 && time.optimizer > 0);
    CHECK_NEAR(time.waiting, 0.5 * (time.compute + time.optimizer), 1e-12);
    const ts_plan_message sums = step.message[TS_AXIS_WORLD][TS_REDUCE_SCATTER];
    CHECK_NEAR(time.hidden, 0.25 * (1e-6 * sums.calls + sums.bytes / 4e9), 1e-12);
    CHECK_NEAR(time.total, 1.5 * (time.compute + time.optimizer) + time.message[TS_AXIS_WORLD] - time.hidden, 1e-12);
    ts_plan_step_free(&step);
    CHECK_OK(ts_plan_step_count(&step, &run, &(ts_degrees){1, 1, 1, 1, 1}, TS_RECOMPUTE_NONE));
    CHECK_OK(ts_plan_predict(&time, &h, &step));
    CHECK(time.waiting == 0 && time.hidden == 0);
    CHECK_NEAR(time.total, time.compute + time.optimizer, 1e-12);
    ts_plan_step_free(&step);
}

static void test_plan(void) {
    ts_hardware h;
    ts_train_config config;
    ts_plan_run run;
    ts_plan plan;
    read_hardware(&h);
    make_run(&run, &config, 4, 4);
    CHECK_OK(ts_plan_make(&plan, &run, &h, 4));
    CHECK(plan.items > 20 && plan.items % 3 == 0 && plan.fitting == plan.items);
    for (int64_t i = 1; i < plan.items; i++) {
        CHECK(plan.item[i].time.total >= plan.item[i - 1].time.total);
    }
    const double most = plan.item[0].step.memory;
    ts_plan_free(&plan);
    h.memory_gib = 0.9 * most / (1 << 30);  // what was best no longer fits
    CHECK_OK(ts_plan_make(&plan, &run, &h, 4));
    CHECK(plan.fitting > 0 && plan.fitting < plan.items && plan.item[0].fits && !plan.item[plan.items - 1].fits);
    CHECK(plan.item[0].step.memory <= 0.9 * most);
    ts_plan_free(&plan);
}

static void test_bad_latents(void) {
    ts_train_config config;
    ts_plan_run run;
    make_run(&run, &config, 2, 1);
    static const char *const wrong[] = {"", "3x10x10", "0x2x2x4", "3x10x10x4x1", "3x10x10x99999999", "3x-2x10x4"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK_FAILS(ts_plan_run_open(&run, &config, wrong[i], 50), TS_EUSAGE, "latent");
    }
    CHECK_FAILS(ts_plan_run_open(&run, &config, "3x9x10x4", 50), TS_EUSAGE, "model.patch");
    CHECK_FAILS(ts_plan_run_open(&run, &config, NULL, 50), TS_EINPUT, "(latent)");
}

int main(void) {
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 16, false));
    snprintf(folder, sizeof folder, "/tmp/tessera-plan-XXXXXX");
    CHECK(mkdtemp(folder));
    test_calls();
    test_messages();
    test_bad_hardware();
    test_write_hardware();
    test_shipped_hardware();
    test_volumes();
    test_deep_memory();
    test_memory();
    test_rehearsal();
    test_meshes();
    test_prediction();
    test_plan();
    test_bad_latents();
    CHECK_OK(ts_folder_remove(folder));
    ts_arena_close(&arena);
    return ts_test_end();
}
