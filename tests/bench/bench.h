// SPDX-License-Identifier: Apache-2.0
// tessera bench: how fast this machine is, and what share of that the code reaches.
//
// A target measures and reports: a table on standard output, or members of one JSON object with --json. Every rank
// measures (so that ranks disturb each other as in a real run); rank 0 prints.
#ifndef TS_BENCH_BENCH_H
#define TS_BENCH_BENCH_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/comm/comm.h"
#include "core/kernels/kernels.h"

typedef struct ts_bench_params {
    int64_t runs, threads;  // threads 0: the cores shared out over the ranks
    const char *filter;     // part of the names to run, or NULL
    int device;             // of ts_device_names
    const char *instruction_set;
    const char *config;          // sizes of `train` and `infer`
    const char *mesh;            // of `train` and `infer`; NULL: every rank measures for itself
    bool reproducible;           // that mesh gives the bits of one rank
    int64_t max_bytes;           // largest size of `comm`
    const char *plan;            // training configuration whose kernel calls `kernels` measures, or NULL
    int64_t devices;             // of that plan; 0: the ranks
    const char *latent;          // shape of its latents where no data set is, or NULL
    int64_t vocabulary;          // then
    const char *write_hardware;  // file that `comm` and the plan's `kernels` write, or NULL
    bool json, cpu_time;
    // set by the command
    bool prints;  // this rank writes the table
    const ts_kernels *kernels;
} ts_bench_params;

// FLOP/s and bytes/s of all threads of this process together, or of its GPU; 0 where it lacks the operation.
typedef struct ts_bench_peak {
    double f32;         // fused multiply-adds in registers; a GPU: a large product
    double bf16_dot;    // VDPBF16PS in registers
    double bf16_tiles;  // TDPBF16PS in tiles
    double bf16;        // the greatest of all three; a GPU: a large product of random numbers
    double memory;      // a = b + s c, three streams counted; a GPU: a large copy, read and written
    int64_t edge;       // of the GPU's products in bf16; 0 on the CPU
} ts_bench_peak;

typedef struct ts_bench_target {
    const char *name, *help;
    // Adds its results to `report`. Collective.
    int (*run)(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, json_t *report);
} ts_bench_target;

int ts_command_bench(ts_comm *world, int argc, char **argv);

int ts_bench_peak_measure(ts_bench_peak *out);
int ts_bench_peak_measure_on(const ts_kernels *kernels, ts_bench_peak *out);  // a device other than the host
// `count` normal numbers in memory of the table's device, which its `release` frees, or NULL (error text set).
float *ts_bench_numbers(const ts_kernels *kernels, int64_t count, uint64_t index);
float *ts_bench_squares(const ts_kernels *kernels, int64_t count, uint64_t index);  // of such numbers
int ts_bench_comm(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, json_t *report);
int ts_bench_kernels(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, json_t *report);

// Times `call(context)`: median and least seconds of one call over `runs` runs, each of as many calls as take at least
// 2 ms and the wait for the device after the last of them. The first call is not counted.
typedef struct ts_bench_time {
    double median, least;
} ts_bench_time;
// The clock of all measurements: elapsed seconds, or with --cpu-time those that this process was given, per thread:
// what the machine would do if nobody else used it.
double ts_bench_seconds(void);
int ts_bench_measure(int (*call)(const void *context), const void *context, int64_t runs, ts_bench_time *out);
// The same of calls that the ranks of `comm` make together: as many on each, and the time of the slowest. Collective.
int ts_bench_measure_together(ts_comm *comm, int (*call)(const void *context), const void *context, int64_t runs,
                              ts_bench_time *out);

#endif
