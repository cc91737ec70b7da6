// SPDX-License-Identifier: Apache-2.0
// The bench command: options, the table of targets, and the clock.
#include "tests/bench/bench.h"

#include <omp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/clock.h"
#include "core/base/status.h"
#include "core/comm/backend.h"
#include "core/comm/threads.h"
#include "core/config/option.h"
#include "tests/bench/step.h"

static const ts_bench_target targets[] = {
    {"kernels", "every kernel at the shapes of the models, against the machine's peak", ts_bench_kernels},
    {"comm", "every collective between the ranks, against MPI's own calls", ts_bench_comm},
    {"train", "one training step of the transformer of --config", ts_bench_train},
    {"infer", "one forward pass of the transformer of --config", ts_bench_infer},
};
enum { TARGETS = sizeof targets / sizeof *targets, MAX_RUNS = 1000 };

#define FIELD(name) offsetof(ts_bench_params, name)
static const ts_option options[] = {
    {.name = "runs",
     .type = TS_OPTION_INT,
     .offset = FIELD(runs),
     .otherwise = "9",
     .min = 1,
     .max = MAX_RUNS,
     .help = "measurements of each item; the median and the least are reported"},
    {.name = "threads",
     .type = TS_OPTION_INT,
     .offset = FIELD(threads),
     .otherwise = "0",
     .min = 0,
     .max = 4096,
     .help = "threads of each rank; 0: the cores of the machine shared out over its ranks"},
    {.name = "filter", .type = TS_OPTION_STRING, .offset = FIELD(filter), .help = "only names that contain this text"},
    {.name = "config",
     .type = TS_OPTION_STRING,
     .offset = FIELD(config),
     .help = "YAML with the sizes that train and infer time; without it those of configs/bench.yaml"},
    {.name = "mesh",
     .type = TS_OPTION_STRING,
     .offset = FIELD(mesh),
     .help = "ranks along each axis that train and infer time together, as tensor=2,ulysses=2; the ranks that are left "
             "go to data"},
    {.name = "reproducible",
     .type = TS_OPTION_BOOL,
     .offset = FIELD(reproducible),
     .help = "with --mesh: forward passes give the bits of one rank, for more messages"},
    {.name = "max-bytes",
     .type = TS_OPTION_INT,
     .offset = FIELD(max_bytes),
     .otherwise = "67108864",
     .min = 1024,
     .max = 1 << 30,
     .help = "largest size that comm measures; the least is 1 KiB"},
    {.name = "plan",
     .type = TS_OPTION_STRING,
     .offset = FIELD(plan),
     .help = "training configuration: kernels then measures the calls that tessera plan needs to know for it"},
    {.name = "devices",
     .type = TS_OPTION_INT,
     .offset = FIELD(devices),
     .otherwise = "0",
     .min = 0,
     .max = 1 << 16,
     .help = "devices of that plan; 0: as many as ranks run"},
    {.name = "latent",
     .type = TS_OPTION_STRING,
     .offset = FIELD(latent),
     .help = "latent frames x rows x columns x channels of that plan, where its data set is absent"},
    {.name = "vocabulary",
     .type = TS_OPTION_INT,
     .offset = FIELD(vocabulary),
     .otherwise = "1000",
     .min = 1,
     .max = 1 << 24,
     .help = "with latent: words that the text encoder knows"},
    {.name = "write-hardware",
     .type = TS_OPTION_STRING,
     .offset = FIELD(write_hardware),
     .help = "YAML file for tessera plan: comm writes latency and bandwidth of each collective, kernels with --plan "
             "adds the calls"},
    {.name = "device",
     .type = TS_OPTION_CHOICE,
     .offset = FIELD(device),
     .otherwise = "auto",
     .of = ts_device_names,
     .help = "what is measured: cuda, a GPU for each rank of a host in turn; cpu; auto: cuda where there is a GPU"},
    {.name = "instruction-set",
     .type = TS_OPTION_STRING,
     .offset = FIELD(instruction_set),
     .otherwise = "auto",
     .help = "of the CPU: auto, amx, avx512bf16, avx512, avx2 or generic"},
    {.name = "cpu-time",
     .type = TS_OPTION_BOOL,
     .offset = FIELD(cpu_time),
     .help = "count the time this process was given instead of elapsed time: for a machine that others use"},
    {.name = "json", .type = TS_OPTION_BOOL, .offset = FIELD(json), .help = "print one JSON object instead of tables"},
    {0}};

// ---- the clock

static bool counts_cpu_time;
static const ts_device *timed_device = &ts_device_host;

double ts_bench_seconds(void) {
    if (!counts_cpu_time) {
        return ts_clock_seconds();
    }
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return ((double)now.tv_sec + 1e-9 * (double)now.tv_nsec) / omp_get_max_threads();
}

static int time_calls(int (*call)(const void *context), const void *context, int64_t calls, double *seconds) {
    const double begin = ts_bench_seconds();
    for (int64_t i = 0; i < calls; i++) {
        TS_TRY(call(context));
    }
    TS_TRY(timed_device->finish());
    *seconds = ts_bench_seconds() - begin;
    return 0;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int ts_bench_measure(int (*call)(const void *context), const void *context, int64_t runs, ts_bench_time *out) {
    return ts_bench_measure_together(NULL, call, context, runs, out);
}

int ts_bench_measure_together(ts_comm *comm, int (*call)(const void *context), const void *context, int64_t runs,
                              ts_bench_time *out) {
    const double enough = 2e-3;
    double seconds, sample[MAX_RUNS];
    TS_TRY(time_calls(call, context, 1, &seconds));
    int64_t calls = 1;
    for (;; calls *= 2) {
        TS_TRY(time_calls(call, context, calls, &seconds));
        TS_TRY(ts_all_reduce(comm, &seconds, 1, TS_F64, TS_MAX));
        if (seconds >= enough) {
            break;
        }
    }
    for (int64_t run = 0; run < runs; run++) {
        TS_TRY(time_calls(call, context, calls, &sample[run]));
    }
    TS_TRY(ts_all_reduce(comm, sample, runs, TS_F64, TS_MAX));
    qsort(sample, (size_t)runs, sizeof *sample, compare);
    *out = (ts_bench_time){sample[runs / 2] / (double)calls, sample[0] / (double)calls};
    return 0;
}

// ---- the command

static json_t *peak_report(const ts_bench_params *params, const ts_bench_peak *peak) {
    if (!params->kernels->device->is_host) {
        return json_pack("{s:s, s:I, s:f, s:f, s:f}", "device", params->kernels->name, "edge", (json_int_t)peak->edge,
                         "f32_gflops", peak->f32 * 1e-9, "bf16_gflops", peak->bf16 * 1e-9, "copy_gb_per_s",
                         peak->memory * 1e-9);
    }
    return json_pack("{s:s, s:i, s:f, s:f, s:f, s:f, s:f}", "instruction_set", ts_kernels_cpu_instruction_set(),
                     "threads", omp_get_max_threads(), "f32_gflops", peak->f32 * 1e-9, "bf16_dot_gflops",
                     peak->bf16_dot * 1e-9, "bf16_tiles_gflops", peak->bf16_tiles * 1e-9, "bf16_gflops",
                     peak->bf16 * 1e-9, "triad_gb_per_s", peak->memory * 1e-9);
}

static void print_peak(const ts_bench_params *params, const ts_bench_peak *peak) {
    if (!params->kernels->device->is_host) {
        printf("Products of %lld on %s, GFLOP/s: bf16 %.0f, f32 %.0f. Copies: %.1f GB/s read and written.\n",
               (long long)peak->edge, params->kernels->name, peak->bf16 * 1e-9, peak->f32 * 1e-9, peak->memory * 1e-9);
        return;
    }
    printf("Peak of %d thread%s with %s, GFLOP/s: f32 %.0f, bf16 dot products %.0f, bf16 tiles %.0f. "
           "Memory: %.1f GB/s.\n",
           omp_get_max_threads(), omp_get_max_threads() == 1 ? "" : "s", ts_kernels_cpu_instruction_set(),
           peak->f32 * 1e-9, peak->bf16_dot * 1e-9, peak->bf16_tiles * 1e-9, peak->memory * 1e-9);
}

// --instruction-set speaks of the CPU; a device of another kind is opened as every command does.
static int open_kernels(ts_comm *world, ts_bench_params *params) {
    TS_TRY(ts_backend_open(&params->kernels, world, ts_device_names[params->device]));
    if (params->kernels->device->is_host) {
        TS_TRY(ts_kernels_cpu(&params->kernels, params->instruction_set));
    }
    timed_device = params->kernels->device;
    return 0;
}

static int measure_peak(const ts_kernels *kernels, ts_bench_peak *peak) {
    return kernels->device->is_host ? ts_bench_peak_measure(peak) : ts_bench_peak_measure_on(kernels, peak);
}

static int run_target(ts_comm *world, const ts_bench_target *target, ts_bench_params *params) {
    TS_TRY(ts_threads_set(world, params->threads));
    int status = ts_agree(world, open_kernels(world, params));
    counts_cpu_time = params->cpu_time;
    params->prints = !params->json && ts_comm_rank(world) == 0;
    ts_bench_peak peak;
    status = status ? status : measure_peak(params->kernels, &peak);
    TS_TRY(ts_agree(world, status));
    if (params->prints) {
        print_peak(params, &peak);
    }
    json_t *report = json_object();
    json_object_set_new(report, "peak", peak_report(params, &peak));
    status = ts_agree(world, target->run(world, params, &peak, report));
    if (!status && params->json && ts_comm_rank(world) == 0) {
        json_dumpf(report, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(5));
        putchar('\n');
    }
    json_decref(report);
    return status;
}

static int find_target(const char *name, const ts_bench_target **out) {
    if (!name) {
        return TS_FAIL(TS_EUSAGE, "bench: say what to measure, as in tessera bench kernels; see tessera bench --help");
    }
    for (int i = 0; i < TARGETS; i++) {
        if (strcmp(targets[i].name, name) == 0) {
            *out = &targets[i];
            return 0;
        }
    }
    return TS_FAIL(TS_EUSAGE, "bench: \"%.40s\" is not a target; see tessera bench --help", name);
}

static void print_help(void) {
    puts("tessera bench TARGET [options]\n");
    for (int i = 0; i < TARGETS; i++) {
        printf("  %-10s %s\n", targets[i].name, targets[i].help);
    }
    putchar('\n');
    ts_options_print_help(options, stdout);
}

static int read_params(ts_bench_params *params, const ts_bench_target **target, ts_arena *arena, int argc, char **argv,
                       bool *help) {
    const char *rest[1] = {NULL};
    int rest_count = 1;
    TS_TRY(ts_options_default(options, params, arena));
    TS_TRY(ts_options_read_args(options, params, arena, argc, argv, rest, &rest_count, help));
    return *help ? 0 : find_target(rest[0], target);
}

int ts_command_bench(ts_comm *world, int argc, char **argv) {
    ts_arena *arena;
    TS_TRY(ts_arena_open(&arena, "bench", 1 << 16, false));
    ts_bench_params params = {0};
    const ts_bench_target *target = NULL;
    bool help = false;
    int status = ts_agree(world, read_params(&params, &target, arena, argc, argv, &help));
    if (!status && help && ts_comm_rank(world) == 0) {
        print_help();
    } else if (!status && !help) {
        status = run_target(world, target, &params);
    }
    ts_arena_close(&arena);
    return status;
}
