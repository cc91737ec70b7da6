// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2 timeout=600 backend=cuda
// Training on a device against the CPU: losses, validation, and checkpoints that go from the one to the other. Where
// the case is for the CPU the device is the CPU's kernels behind memory that the host cannot touch: then every bit is
// the same.
#include <dirent.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/comm/mesh.h"
#include "tests/guarded_kernels.h"
#include "tests/tiny_config.h"
#include "tests/tiny_dataset.h"
#include "tests/ts_test.h"
#include "train/loop.h"
#include "train/state.h"
#include "train/trainer.h"

enum { STEPS = 20, SAVED = 16 };  // a checkpoint is made after so many of them
enum { CPU = 1, CUDA = 2 };       // of ts_device_names

// What "cuda" is in a program without the backend.
__attribute__((weak)) int ts_kernels_cuda(const ts_kernels **out, int local_rank) {
    (void)local_rank;
    return guarded_kernels_open(out);
}
__attribute__((weak)) int ts_kernels_cuda_devices(void) {
    return 1;
}
__attribute__((weak)) const char *ts_kernels_cuda_device(void) {
    return "guarded";
}

static char folder[64];

// Shapes of a run, and how far its losses may be apart, relatively.
typedef struct variant {
    const char *name;
    int precision, optimizer, gradients, recompute;
    double ema_decay;
    int tensor;
    double tolerance;
} variant;

static const variant VARIANTS[] = {
    {"f32", TS_PRECISION_F32, TS_OPTIMIZER_ADAMW, TS_GRADIENTS_F32, TS_RECOMPUTE_NONE, 0, 1, 1e-3},
    {"bf16", TS_PRECISION_BF16, TS_OPTIMIZER_MUON, TS_GRADIENTS_BF16, TS_RECOMPUTE_ELEMENTWISE, 0.9, 1, 5e-2},
    {"cut", TS_PRECISION_F32, TS_OPTIMIZER_MUON, TS_GRADIENTS_F32, TS_RECOMPUTE_BLOCK, 0.9, 2, 1e-3},
};

static ts_train_config make_config(const variant *v, int device, ts_arena *arena) {
    ts_train_config config;
    CHECK_OK(tiny_config(&config, arena, folder, v->name));
    config.device = device;
    config.precision = v->precision;
    config.mesh.tensor = v->tensor;
    config.train.optimizer = v->optimizer;
    config.train.gradients = v->gradients;
    config.train.recompute = v->recompute;
    config.train.ema_decay = v->ema_decay;
    config.train.lr = 0.003;
    config.train.micro_batch = 3;
    return config;
}

// ---- runs

typedef struct losses {
    double step[STEPS], norm[STEPS], validation;
} losses;

static void take_steps(ts_trainer *t, int from, int to, losses *out) {
    const bool counts_waits = t->kernels == &guarded_kernels && ts_comm_size(t->world) == 1;
    for (int i = from; i < to; i++) {
        ts_step_result result;
        const int waits = guarded_waits;
        CHECK_OK(ts_trainer_step(t, TS_STOP_NONE, &result));
        CHECK(!counts_waits || guarded_waits == waits + 1);  // for loss and norm, and messages through the host aside
        CHECK(result.finite);
        out->step[i] = result.loss;
        out->norm[i] = result.grad_norm;
    }
}

static ts_trainer *open_trainer(const ts_train_config *config, ts_comm *world) {
    ts_trainer *t = NULL;
    CHECK_OK(ts_trainer_open(&t, config, world));
    if (!t) {
        exit(1);
    }
    return t;
}

static const char *text_of(const ts_train_config *config, ts_arena *arena) {
    return ts_options_to_json(ts_train_options, config, arena);
}

// STEPS steps; a checkpoint goes to folder/NAME while the last ones run.
static void train(const ts_train_config *config, ts_arena *arena, ts_comm *world, const char *name, losses *out) {
    ts_trainer *t = open_trainer(config, world);
    take_steps(t, 0, SAVED, out);
    CHECK_OK(ts_state_save_start(&t->saving, t, ts_arena_printf(arena, "%s/%s", folder, name), text_of(config, arena)));
    take_steps(t, SAVED, STEPS, out);
    CHECK_OK(ts_checkpoint_save_finish(&t->saving));
    ts_validation_result validation;
    CHECK_OK(ts_trainer_validate(t, true, &validation));
    out->validation = validation.loss;
    ts_trainer_close(&t);
}

// The last steps from the checkpoint in folder/NAME, which is saved again as it was read to folder/NAME-again.
static void resume(const ts_train_config *config, ts_arena *arena, ts_comm *world, const char *name, losses *out) {
    ts_trainer *t = open_trainer(config, world);
    bool restored = false;
    CHECK_OK(ts_state_restore(t, ts_arena_printf(arena, "%s/%s", folder, name), text_of(config, arena), &restored));
    CHECK(restored && t->step == SAVED);
    CHECK_OK(ts_state_save_start(&t->saving, t, ts_arena_printf(arena, "%s/%s-again", folder, name),
                                 text_of(config, arena)));
    CHECK_OK(ts_checkpoint_save_finish(&t->saving));
    take_steps(t, SAVED, STEPS, out);
    ts_trainer_close(&t);
}

// ---- comparing

static bool same_bits;  // as the CPU

static void check_alike(const char *what, double a, double b, double tolerance) {
    if (same_bits ? a != b : !(fabs(a - b) <= tolerance * fabs(b))) {
        fprintf(stderr, "%s: %.9g on the device, %.9g on the CPU\n", what, a, b);
        ts_test_failures++;
    }
}

static void check_losses(const variant *v, const losses *device, const losses *cpu, int from) {
    char what[80];
    for (int i = from; i < STEPS; i++) {
        snprintf(what, sizeof what, "%s, loss of step %d", v->name, i + 1);
        check_alike(what, device->step[i], cpu->step[i], v->tolerance);
    }
    snprintf(what, sizeof what, "%s, gradient norm of step %d", v->name, from + 1);
    check_alike(what, device->norm[from], cpu->norm[from], 10 * v->tolerance);
}

static void check_same_file(const char *a, const char *b) {
    char *bytes[2] = {NULL, NULL};
    size_t count[2] = {0, 0};
    CHECK_OK(ts_file_read(a, (size_t)1 << 30, &bytes[0], &count[0]));
    CHECK_OK(ts_file_read(b, (size_t)1 << 30, &bytes[1], &count[1]));
    if (bytes[0] && bytes[1] && (count[0] != count[1] || memcmp(bytes[0], bytes[1], count[0]) != 0)) {
        fprintf(stderr, "%s and %s differ\n", a, b);
        ts_test_failures++;
    }
    free(bytes[0]);
    free(bytes[1]);
}

// Every tensor file of a checkpoint, and at least the weights and a moment.
static void check_same_checkpoint(ts_arena *arena, const char *a, const char *b) {
    const char *path = ts_arena_printf(arena, "%s/%s/step-%08d", folder, a, SAVED);
    int files = 0;
    DIR *listing = opendir(path);
    CHECK(listing);
    for (const struct dirent *entry; listing && (entry = readdir(listing));) {
        if (strstr(entry->d_name, ".safetensors")) {
            files++;
            check_same_file(ts_arena_printf(arena, "%s/%s", path, entry->d_name),
                            ts_arena_printf(arena, "%s/%s/step-%08d/%s", folder, b, SAVED, entry->d_name));
        }
    }
    CHECK(files >= 2);
    if (listing) {
        closedir(listing);
    }
}

static void check_variant(const variant *v, ts_arena *arena, ts_comm *world) {
    const ts_train_config cpu = make_config(v, CPU, arena), device = make_config(v, CUDA, arena);
    const char *from_cpu = ts_arena_printf(arena, "%s-cpu", v->name);
    const char *from_device = ts_arena_printf(arena, "%s-device", v->name);
    static losses on_cpu, on_device, went_on;
    train(&cpu, arena, world, from_cpu, &on_cpu);
    train(&device, arena, world, from_device, &on_device);
    check_losses(v, &on_device, &on_cpu, 0);
    check_alike("validation", on_device.validation, on_cpu.validation, v->tolerance);
    CHECK(on_cpu.step[STEPS - 1] < on_cpu.step[0]);
    // From the one to the other: what was read is what was written, and the losses go on as they did.
    resume(&cpu, arena, world, from_device, &went_on);
    check_losses(v, &on_device, &went_on, SAVED);
    resume(&device, arena, world, from_cpu, &went_on);
    check_losses(v, &went_on, &on_cpu, SAVED);
    if (ts_comm_rank(world) == 0) {
        check_same_checkpoint(arena, from_device, ts_arena_printf(arena, "%s-again", from_device));
        check_same_checkpoint(arena, from_cpu, ts_arena_printf(arena, "%s-again", from_cpu));
    }
}

// The whole loop with samples, a checkpoint beside the steps, and the model it leaves, which the CPU reads.
static void check_run(ts_arena *arena, ts_comm *world) {
    ts_train_config config = make_config(&VARIANTS[1], CUDA, arena);
    ts_model *model = NULL;
    config.name = "run";
    config.out = ts_arena_printf(arena, "%s/run", folder);
    config.train.steps = 4;
    config.checkpoint.every = 2;
    config.sample.every = 4;
    config.sample.steps = 2;
    CHECK_OK(ts_train_run(&config, arena, world));
    CHECK_OK(ts_model_load(&model, ts_arena_printf(arena, "%s/model", config.out), NULL, NULL, TS_F32, false));
    ts_model_close(&model);
}

int main(int argc, char **argv) {
    ts_comm *world = NULL;
    ts_mesh mesh;
    ts_arena *arena = NULL;
    const ts_kernels *kernels = NULL;
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    ts_log_set_level(TS_LOG_WARN);
    same_bits = strcmp(ts_test_backend(), "cpu") == 0;
    if (ts_kernels_open(&kernels, "cuda", ts_comm_local_rank(world)) == TS_EPEER) {
        ts_world_close(&world, TS_OK);
        ts_test_skip(ts_error_text());
    }
    CHECK_OK(ts_mesh_open(&mesh, world, &(ts_degrees){ts_comm_size(world), 1, 1, 1, 1}));
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 16, false));
    CHECK_OK(tiny_dataset_make(folder, world, mesh.axis[TS_AXIS_MODEL]));
    for (size_t i = 0; i < sizeof VARIANTS / sizeof *VARIANTS; i++) {
        if (VARIANTS[i].tensor <= ts_comm_size(world)) {
            check_variant(&VARIANTS[i], arena, world);
        }
    }
    if (ts_comm_size(world) == 1) {
        check_run(arena, world);
    }
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
    ts_arena_close(&arena);
    ts_mesh_close(&mesh);
    ts_world_close(&world, ts_test_failures ? TS_EINTERNAL : TS_OK);
    return ts_test_end();
}
