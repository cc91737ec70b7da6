// SPDX-License-Identifier: Apache-2.0
#include "core/model/parity.h"

#include <stdio.h>
#include <stdlib.h>

#include "core/base/log.h"
#include "core/base/status.h"
#include "core/comm/backend.h"
#include "core/comm/mesh.h"
#include "core/config/command.h"
#include "core/model/parity_private.h"
#include "core/store/checkpoint_check.h"

// ---- options

typedef struct parity_options {
    const char *model, *config, *io, *grads, *mesh;
    int dtype, device;
    double tolerance;
} parity_options;

static const char *const DTYPES[] = {"f32", "bf16", NULL};

static const ts_option OPTIONS[] = {
    {"model", TS_OPTION_STRING, offsetof(parity_options, model), NULL,
     "folder of the component: config.json and safetensors", 0, 0, NULL, true},
    {"io", TS_OPTION_STRING, offsetof(parity_options, io), NULL,
     "safetensors file with the reference's inputs, outputs and intermediates", 0, 0, NULL, true},
    {"grads", TS_OPTION_STRING, offsetof(parity_options, grads), NULL,
     "safetensors file with the reference's gradients of mean((sample - target)^2)", 0, 0, NULL, false},
    {"config", TS_OPTION_STRING, offsetof(parity_options, config), NULL,
     "config.json to use when the model folder has none", 0, 0, NULL, false},
    {"dtype", TS_OPTION_CHOICE, offsetof(parity_options, dtype), "f32", "operands of matrix products and attention", 0,
     0, DTYPES, false},
    {"device", TS_OPTION_CHOICE, offsetof(parity_options, device), "auto",
     "where to compute: cuda, a GPU for each rank of a host in turn; cpu; auto: cuda where there is a GPU", 0, 0,
     ts_device_names, false},
    {"tolerance", TS_OPTION_REAL, offsetof(parity_options, tolerance), "1e-4",
     "largest difference of an output, and of a gradient relative to its largest value", 0, 1e6, NULL, false},
    {"mesh", TS_OPTION_STRING, offsetof(parity_options, mesh), NULL,
     "ranks along each axis, as tensor=2,ulysses=2: data (samples), sequence or ring and ulysses (tokens), tensor "
     "(layers); the ranks that are left go to data",
     0, 0, NULL, false},
    {0}};

// ---- the check

// The same on all ranks, which compared the same numbers; rank 0 prints.
static int conclude(const ts_parity *p) {
    const bool prints = ts_comm_rank(p->world) == 0;
    for (int64_t i = 0; i < ts_safetensors_count(p->io); i++) {
        if (!p->seen[i] && prints) {
            printf("%-60s not compared: the model has no such value\n", ts_safetensors_at(p->io, i)->name);
        }
    }
    if (!p->compared) {
        return TS_FAIL(TS_EINPUT, "%s: holds no output, intermediate or gradient that this model makes", p->io_path);
    }
    if (prints) {
        printf("%d tensors compared, %d exceed the tolerance of %g\n", p->compared, p->exceeded, p->tolerance);
    }
    if (p->exceeded) {
        return TS_FAIL(TS_EINPUT, "%s: %d of %d tensors differ from %s by more than %g", p->model, p->exceeded,
                       p->compared, p->io_path, p->tolerance);
    }
    return 0;
}

static int open_files(ts_parity *p) {
    TS_TRY(ts_safetensors_open(&p->io, p->io_path));
    p->seen = ts_calloc((size_t)ts_safetensors_count(p->io) + 1, sizeof *p->seen);
    if (!p->seen) {
        return TS_ERESOURCE;
    }
    return p->grads_path ? ts_safetensors_open(&p->grads, p->grads_path) : 0;
}

static int check_parity(ts_comm *world, const parity_options *options) {
    ts_parity p = {.world = world,
                   .mesh_text = options->mesh ? options->mesh : "",
                   .model = options->model,
                   .config = options->config,
                   .io_path = options->io,
                   .grads_path = options->grads,
                   .operand_dtype = options->dtype ? TS_BF16 : TS_F32,
                   .tolerance = options->tolerance};
    char text[160];
    int status = ts_backend_open(&p.kernels, world, ts_device_names[options->device]);
    if (!status) {
        TS_INFO("on %s", ts_kernels_describe(p.kernels, text, sizeof text));
        status = ts_agree(world, open_files(&p));
    }
    if (!status) {
        status = ts_agree(world, ts_parity_run(&p));
    }
    if (!status) {
        status = conclude(&p);
    }
    ts_mesh_close(&p.mesh);
    free(p.level);
    free(p.seen);
    ts_safetensors_close(&p.grads);
    ts_safetensors_close(&p.io);
    return status;
}

static int read_options(parity_options *options, ts_arena *arena, int argc, char **argv, bool *help) {
    static const ts_command command = {
        .usage = "tessera check parity --model DIR --io FILE [options]\n"
                 "Compares a component with tensors of its reference.",
        .table = OPTIONS,
    };
    ts_degrees degree;
    int sequence;
    TS_TRY(ts_command_read(&command, options, arena, argc, argv, help));
    return *help || !options->mesh ? 0 : ts_degrees_parse(&degree, &sequence, options->mesh);
}

static int command_parity(ts_comm *world, int argc, char **argv) {
    ts_arena *arena = NULL;
    parity_options options = {0};
    bool help = false;
    TS_TRY(ts_arena_open(&arena, "options", 1 << 14, false));
    int status = read_options(&options, arena, argc, argv, &help);
    if (!status && !help) {
        status = check_parity(world, &options);
    }
    ts_arena_close(&arena);
    return status;
}

// ---- tessera check

static const struct {
    const char *name;
    int (*run)(ts_comm *world, int argc, char **argv);
    const char *help;
} CHECKS[] = {
    {"parity", command_parity, "a component against tensors of its reference"},
    {"checkpoint", ts_command_check_checkpoint, "every byte of a run's checkpoints against their sums"},
};

enum { CHECK_COUNT = sizeof CHECKS / sizeof *CHECKS };

int ts_command_check(ts_comm *world, int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "--help";
    for (int i = 0; i < CHECK_COUNT; i++) {
        if (strcmp(name, CHECKS[i].name) == 0) {
            return CHECKS[i].run(world, argc - 1, argv + 1);
        }
    }
    if (argc > 1 && strcmp(name, "--help") != 0 && strcmp(name, "-h") != 0) {
        return TS_FAIL(TS_EUSAGE, "check: '%.40s' is not known; see tessera check --help", name);
    }
    for (int i = 0; i < CHECK_COUNT && ts_comm_rank(world) == 0; i++) {
        printf("tessera check %-12s %s (--help for its options)\n", CHECKS[i].name, CHECKS[i].help);
    }
    return argc > 1 ? 0 : TS_FAIL(TS_EUSAGE, "check: say what to check, as in: tessera check parity --help");
}
