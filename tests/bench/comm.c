// SPDX-License-Identifier: Apache-2.0
// bench comm: every collective against MPI's own call, in one run, turn about; and the line that predicts its time.
// With
// --device cuda our calls are on the memory of GPUs, whose work is waited for; MPI's stay on the host's.
//
// Sizes are those of nccl-tests: the data of an all-reduce or a broadcast, all parts of an all-gather or a
// reduce-scatter together, what a rank gives to an all-to-all or to its neighbour. So are the factors of the bus
// bandwidth, which tells how well the wires are used whatever the number of ranks.
#include <math.h>
#include <mpi.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "core/comm/threads.h"
#include "tests/bench/bench.h"
#include "train/plan_hardware.h"

enum { LEAST_BYTES = 1024, REWRITE_BYTES = 16 * 1024, MAX_SIZES = 16, MAX_RUNS = 1000 };

// One size of one collective: buffers of `count` floats, in parts when it has parts.
typedef struct task {
    ts_comm *world;
    const ts_device *device;
    int rank, size;
    float *send, *receive;          // of the device
    float *mpi_send, *mpi_receive;  // the same where it is the host
    int64_t count;
    int64_t *counts;   // [size]
    int *mpi_counts;   // [size]
    int *mpi_offsets;  // [size]
} task;

// ---- the calls, ours and MPI's

static int our_all_reduce(const task *t) {
    return ts_all_reduce(t->world, t->receive, t->count, TS_F32, TS_SUM);
}
static int mpi_all_reduce(const task *t) {
    return MPI_Allreduce(MPI_IN_PLACE, t->mpi_receive, (int)t->count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}
static int our_reduce_scatter(const task *t) {
    return ts_reduce_scatter_v(t->world, t->send, t->receive, t->counts, TS_F32);
}
static int our_reduce_scatter_start(const task *t) {
    ts_request *request;
    TS_TRY(ts_reduce_scatter_v_start(t->world, t->send, t->receive, t->counts, TS_F32, &request));
    return ts_wait(&request);
}
static int mpi_reduce_scatter(const task *t) {
    return MPI_Reduce_scatter(t->mpi_send, t->mpi_receive, t->mpi_counts, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}
static int our_all_gather(const task *t) {
    return ts_all_gather_v(t->world, t->send, t->receive, t->counts, TS_F32);
}
static int our_all_gather_start(const task *t) {
    ts_request *request;
    TS_TRY(ts_all_gather_v_start(t->world, t->send, t->receive, t->counts, TS_F32, &request));
    return ts_wait(&request);
}
static int mpi_all_gather(const task *t) {
    return MPI_Allgatherv(t->mpi_send, t->mpi_counts[t->rank], MPI_FLOAT, t->mpi_receive, t->mpi_counts, t->mpi_offsets,
                          MPI_FLOAT, MPI_COMM_WORLD);
}
static int our_all_to_all(const task *t) {
    return ts_all_to_all_v(t->world, t->send, t->counts, t->receive, t->counts, TS_F32);
}
static int mpi_all_to_all(const task *t) {
    return MPI_Alltoallv(t->mpi_send, t->mpi_counts, t->mpi_offsets, MPI_FLOAT, t->mpi_receive, t->mpi_counts,
                         t->mpi_offsets, MPI_FLOAT, MPI_COMM_WORLD);
}
static int our_broadcast(const task *t) {
    return ts_broadcast(t->world, t->receive, t->count * 4, 0);
}
static int mpi_broadcast(const task *t) {
    return MPI_Bcast(t->mpi_receive, (int)t->count, MPI_FLOAT, 0, MPI_COMM_WORLD);
}
static int our_ring(const task *t) {
    ts_request *request;
    TS_TRY(ts_ring_start(t->world, t->send, t->count, t->receive, t->count, TS_F32, &request));
    return ts_wait(&request);
}
static int mpi_ring(const task *t) {
    return MPI_Sendrecv(t->mpi_send, (int)t->count, MPI_FLOAT, (t->rank + 1) % t->size, 0, t->mpi_receive,
                        (int)t->count, MPI_FLOAT, (t->rank + t->size - 1) % t->size, 0, MPI_COMM_WORLD,
                        MPI_STATUS_IGNORE);
}
static int our_barrier(const task *t) {
    return ts_barrier(t->world);
}
static int mpi_barrier(const task *t) {
    (void)t;
    return MPI_Barrier(MPI_COMM_WORLD);
}

typedef struct item {
    const char *name;
    ts_line_kind line;
    ts_collective kind;
    int (*ours)(const task *t);
    int (*mpi)(const task *t);
} item;

static const item ITEMS[] = {
    {"all-reduce", TS_LINE_ALL_REDUCE, TS_ALL_REDUCE, our_all_reduce, mpi_all_reduce},
    {"reduce-scatter", TS_LINE_REDUCE_SCATTER, TS_REDUCE_SCATTER, our_reduce_scatter, mpi_reduce_scatter},
    {"  started", TS_LINE_REDUCE_SCATTER_STARTED, TS_REDUCE_SCATTER, our_reduce_scatter_start, mpi_reduce_scatter},
    {"all-gather", TS_LINE_ALL_GATHER, TS_ALL_GATHER, our_all_gather, mpi_all_gather},
    {"  started", TS_LINE_ALL_GATHER_STARTED, TS_ALL_GATHER, our_all_gather_start, mpi_all_gather},
    {"all-to-all", TS_LINE_ALL_TO_ALL, TS_ALL_TO_ALL, our_all_to_all, mpi_all_to_all},
    {"ring", TS_LINE_RING, TS_RING, our_ring, mpi_ring},
    {"broadcast", TS_LINE_BROADCAST, TS_BROADCAST, our_broadcast, mpi_broadcast},
    {"barrier", TS_LINE_BARRIER, TS_BARRIER, our_barrier, mpi_barrier},
};
enum { ITEM_COUNT = sizeof ITEMS / sizeof *ITEMS };

// ---- measuring

// Seconds of one call, of the slowest rank; bytes by the formulas of comm.h.
typedef struct result {
    double bytes, bytes_sent;
    ts_bench_time ours, mpi;
} result;

// Sums of zeros stay finite, however often.
static int rewrite_buffers(const task *t, size_t bytes) {
    memset(t->mpi_send, 0, bytes);
    memset(t->mpi_receive, 0, bytes);
    if (t->device->is_host) {
        return TS_OK;
    }
    TS_TRY(t->device->zero(t->send, bytes));
    TS_TRY(t->device->zero(t->receive, bytes));
    return t->device->finish();
}

// What is sent has just been written, as in a real step: a rank that finds the last call's data in its own cache
// measures nothing. Small data is not rewritten, and called for several times, to keep the clock out of it.
static int time_calls(int (*call)(const task *t), const task *t, int64_t calls, double *seconds) {
    const bool rewrite = t->count >= REWRITE_BYTES / (int64_t)sizeof(float);
    const int64_t turns = rewrite ? calls : 1, calls_of_turn = rewrite ? 1 : calls;
    double sum = 0;
    for (int64_t turn = 0; turn < turns; turn++) {
        if (rewrite) {
            TS_TRY(rewrite_buffers(t, (size_t)t->count * sizeof *t->send));
        }
        MPI_Barrier(MPI_COMM_WORLD);
        const double begin = ts_bench_seconds();
        for (int64_t i = 0; i < calls_of_turn; i++) {
            TS_TRY(call(t));
        }
        TS_TRY(t->device->finish());
        sum += ts_bench_seconds() - begin;
    }
    *seconds = sum / (double)calls;
    return TS_OK;
}

// Calls of a sample, the same on all ranks: as many as take half a millisecond. Short samples, and four for each run:
// some of them go undisturbed on a machine that others use, too.
static int count_calls(const item *it, const task *t, int64_t *calls) {
    double ours, mpi;
    TS_TRY(time_calls(it->ours, t, 3, &ours));
    TS_TRY(time_calls(it->mpi, t, 3, &mpi));
    double longest = ours > mpi ? ours : mpi;
    TS_TRY(ts_all_reduce(t->world, &longest, 1, TS_F64, TS_MAX));
    *calls = 1 + (int64_t)(5e-4 / longest);
    return TS_OK;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int summarise(const task *t, double *sample, int64_t runs, ts_bench_time *out) {
    TS_TRY(ts_all_reduce(t->world, sample, runs, TS_F64, TS_MAX));
    qsort(sample, (size_t)runs, sizeof *sample, compare);
    *out = (ts_bench_time){sample[runs / 2], sample[0]};
    return TS_OK;
}

static int measure(const item *it, const task *t, int64_t runs, result *out) {
    double ours[4 * MAX_RUNS], mpi[4 * MAX_RUNS];
    const int64_t samples = 4 * runs;
    int64_t calls;
    TS_TRY(count_calls(it, t, &calls));
    for (int64_t i = 0; i < samples; i++) {
        TS_TRY(time_calls(it->ours, t, calls, &ours[i]));
        TS_TRY(time_calls(it->mpi, t, calls, &mpi[i]));
    }
    TS_TRY(summarise(t, ours, samples, &out->ours));
    return summarise(t, mpi, samples, &out->mpi);
}

static bool has_parts(ts_collective kind) {
    return kind == TS_REDUCE_SCATTER || kind == TS_ALL_GATHER || kind == TS_ALL_TO_ALL;
}

// Equal parts, so that what a rank sends to another is what that one expects.
static void set_size(task *t, const item *it, int64_t bytes, result *out) {
    const int64_t each = bytes / (int64_t)sizeof(float) / t->size;
    t->count = it->kind == TS_BARRIER ? 0 : each * t->size;
    for (int rank = 0; rank < t->size; rank++) {
        t->counts[rank] = each;
        t->mpi_counts[rank] = (int)each;
        t->mpi_offsets[rank] = (int)each * rank;
    }
    const bool broadcast = it->kind == TS_BROADCAST;
    const int64_t whole = broadcast ? t->count * 4 : t->count;
    out->bytes = (double)t->count * sizeof(float);
    out->bytes_sent =
        (double)ts_comm_bytes(t->world, it->kind, has_parts(it->kind) ? t->counts : &whole, broadcast ? TS_U8 : TS_F32);
}

// ---- the line: seconds = latency + bytes sent / bandwidth

typedef struct line {
    double latency, per_byte, worst;  // s, s/byte, largest relative error
} line;

// Least squares of the relative errors, neither term below 0.
static line fit(const result *r, int n) {
    double w = 0, wx = 0, wxx = 0, wt = 0, wxt = 0;
    for (int i = 0; i < n; i++) {
        const double t = r[i].ours.least, x = r[i].bytes_sent;
        w += 1 / (t * t), wx += x / (t * t), wxx += x * x / (t * t), wt += 1 / t, wxt += x / t;
    }
    const double det = w * wxx - wx * wx;
    line l = {.latency = wt / w};
    if (wxx > 0) {
        l.latency = det > 1e-12 * w * wxx ? (wt * wxx - wxt * wx) / det : 0;
        l.latency = l.latency > 0 ? l.latency : 0;
        l.per_byte = (wxt - l.latency * wx) / wxx;
        l.per_byte = l.per_byte > 0 ? l.per_byte : 0;
    }
    for (int i = 0; i < n; i++) {
        const double error = fabs((l.latency + l.per_byte * r[i].bytes_sent) / r[i].ours.least - 1);
        l.worst = error > l.worst ? error : l.worst;
    }
    return l;
}

// ---- telling

// Of nccl-tests: bus bandwidth = factor * bytes / seconds.
static double bus_factor(ts_collective kind, int n) {
    return kind == TS_ALL_REDUCE ? 2.0 * (n - 1) / n : has_parts(kind) ? (double)(n - 1) / n : 1.0;
}

static void report_result(const ts_bench_params *params, const task *t, const item *it, const result *r, json_t *rows) {
    const double bus = 1e-9 * bus_factor(it->kind, t->size) * r->bytes;
    if (params->prints) {
        printf("%-15s %10.0f %12.2f %12.2f %8.2f %8.2f %6.2f\n", it->name, r->bytes, 1e6 * r->ours.least,
               1e6 * r->mpi.least, bus / r->ours.least, bus / r->mpi.least, r->mpi.least / r->ours.least);
    }
    json_array_append_new(rows, json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "collective",
                                          ts_line_name(it->line), "bytes", r->bytes, "bytes_sent", r->bytes_sent,
                                          "median_us", 1e6 * r->ours.median, "least_us", 1e6 * r->ours.least,
                                          "mpi_median_us", 1e6 * r->mpi.median, "mpi_least_us", 1e6 * r->mpi.least,
                                          "bus_gb_per_s", bus / r->ours.least, "mpi_bus_gb_per_s", bus / r->mpi.least,
                                          "times_faster", r->mpi.least / r->ours.least));
}

static void report_lines(const ts_bench_params *params, const task *t, const line *lines, json_t *report) {
    json_t *fits = json_object();
    if (params->prints) {
        printf("\nSeconds of a call = latency + bytes a rank sends / bandwidth, with %d ranks:\n", t->size);
    }
    for (int i = 0; i < ITEM_COUNT; i++) {
        const double bandwidth = lines[i].per_byte > 0 ? 1e-9 / lines[i].per_byte : 0;
        if (lines[i].worst < 0) {
            continue;  // filtered out
        }
        if (params->prints) {
            printf("%-23s %10.2f us %9.2f GB/s   at most %.0f %% off\n", ts_line_name(ITEMS[i].line),
                   1e6 * lines[i].latency, bandwidth, 100 * lines[i].worst);
        }
        json_object_set_new(fits, ts_line_name(ITEMS[i].line),
                            json_pack("{s:f, s:f, s:f}", "latency_us", 1e6 * lines[i].latency, "gb_per_s", bandwidth,
                                      "worst_relative_error", lines[i].worst));
    }
    json_object_set_new(report, "ranks", json_integer(t->size));
    json_object_set_new(report, "fit", fits);
}

// The `comm` map of a hardware file; what else is in it stays, but for lines of other numbers of ranks.
static int write_hardware(const char *path, ts_arena *arena, const task *t, int64_t on_host, const line *lines) {
    ts_hardware hardware = {0};
    char comment[160];
    TS_TRY(ts_path_exists(path) ? ts_hardware_read(&hardware, arena, path)
                                : ts_options_default(ts_hardware_options, &hardware, arena));
    if (hardware.comm_ranks != t->size) {
        memset(hardware.comm, 0, sizeof hardware.comm);
    }
    hardware.comm_ranks = t->size;
    hardware.devices_per_host = hardware.devices_per_host ? hardware.devices_per_host : on_host;
    for (int i = 0; i < ITEM_COUNT; i++) {
        if (lines[i].worst >= 0) {
            hardware.comm[ITEMS[i].line] = (ts_hardware_line){
                .latency_us = 1e6 * lines[i].latency, .gb_per_s = lines[i].per_byte > 0 ? 1e-9 / lines[i].per_byte : 0};
        }
    }
    snprintf(
        comment, sizeof comment,
        "# Seconds of a call = latency + bytes a rank sends / bandwidth; `comm` by tessera bench comm, %d ranks.\n",
        t->size);
    return ts_hardware_write(&hardware, comment, path);
}

// ---- the target

static int run_item(const ts_bench_params *params, task *t, const item *it, json_t *rows, line *out) {
    result results[MAX_SIZES];
    int n = 0;
    *out = (line){.worst = -1};
    if (params->filter && !strstr(ts_line_name(it->line), params->filter)) {
        return TS_OK;
    }
    for (int64_t bytes = LEAST_BYTES; bytes <= params->max_bytes && n < MAX_SIZES; bytes *= 4, n++) {
        set_size(t, it, bytes, &results[n]);
        TS_TRY(measure(it, t, params->runs, &results[n]));
        report_result(params, t, it, &results[n], rows);
        if (it->kind == TS_BARRIER) {
            n = 1;
            break;
        }
    }
    *out = fit(results, n);
    return TS_OK;
}

static int open_task(task *t, ts_comm *world, const ts_device *device, int64_t bytes) {
    *t = (task){.world = world, .device = device, .rank = ts_comm_rank(world), .size = ts_comm_size(world)};
    t->send = device->allocate((size_t)bytes);
    t->receive = device->allocate((size_t)bytes);
    t->mpi_send = device->is_host ? t->send : ts_aligned_alloc((size_t)bytes);
    t->mpi_receive = device->is_host ? t->receive : ts_aligned_alloc((size_t)bytes);
    t->counts = ts_calloc((size_t)t->size, sizeof *t->counts);
    t->mpi_counts = ts_calloc((size_t)t->size, sizeof *t->mpi_counts);
    t->mpi_offsets = ts_calloc((size_t)t->size, sizeof *t->mpi_offsets);
    if (!t->send || !t->receive || !t->mpi_send || !t->mpi_receive || !t->counts || !t->mpi_counts || !t->mpi_offsets) {
        return TS_ERESOURCE;
    }
    return rewrite_buffers(t, (size_t)bytes);
}

static void close_task(task *t) {
    if (!t->device->is_host) {
        free(t->mpi_send);
        free(t->mpi_receive);
    }
    t->device->release(t->send);
    t->device->release(t->receive);
    free(t->counts);
    free(t->mpi_counts);
    free(t->mpi_offsets);
}

int ts_bench_comm(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, json_t *report) {
    (void)peak;
    task t;
    line lines[ITEM_COUNT];
    ts_arena *arena = NULL;
    int64_t on_host = 1;
    json_t *rows = json_array();
    json_object_set_new(report, "collectives", rows);
    if (ts_comm_size(world) == 1) {
        return TS_FAIL(TS_EUSAGE, "bench comm: nothing to measure with one rank; start it with mpirun -n 2 or more");
    }
    int status = ts_arena_open(&arena, "bench comm", 1 << 16, false);
    const int opened = open_task(&t, world, params->kernels->device, params->max_bytes);
    status = ts_agree(world, status ? status : opened);
    if (!status && params->prints) {
        printf("%-15s %10s %12s %12s %8s %8s %6s\n", "", "", "us a call", "us a call", "bus GB/s", "bus GB/s", "times");
        printf("%-15s %10s %12s %12s %8s %8s %6s\n", "collective", "bytes", "ours", "MPI", "ours", "MPI", "faster");
    }
    status = status ? status : ts_ranks_on_host(world, &on_host);
    for (int i = 0; i < ITEM_COUNT && !status; i++) {
        status = run_item(params, &t, &ITEMS[i], rows, &lines[i]);
    }
    if (!status) {
        report_lines(params, &t, lines, report);
    }
    if (!status && params->write_hardware && t.rank == 0) {
        status = write_hardware(params->write_hardware, arena, &t, on_host, lines);
    }
    ts_arena_close(&arena);
    close_task(&t);
    return status;
}
