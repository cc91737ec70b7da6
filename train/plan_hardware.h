// SPDX-License-Identifier: Apache-2.0
// A hardware file: what a device computes, reads and sends in a second, so that the time of a step can be foretold.
//
//   a kernel call   overhead + max(FLOPs / rate, bytes / memory bandwidth), unless such a call was measured: then its
//                   own seconds, or those of the nearest measured one of the same entry and dtype times the ratio of
//                   their work
//   a collective    its peers on the same host and on others each add latency and bytes / bandwidth: of one of n ranks,
//                   m of them on a host, which sends b bytes,
//                     (m-1) L_in + (m-1)/(n-1) b / B_in  +  (n-m) L_out + (n-m)/(n-1) b / B_out
//                   A ring's hop goes to one peer, the furthest: L + b / B of the slower kind that occurs.
//
// The file is YAML: a map `comm` as `tessera bench comm --write-hardware` makes it, `link` and `network` (any
// collective inside a host and between hosts), rates of the device, and a list of measured calls as `tessera bench
// kernels --plan` makes it.
#ifndef TS_TRAIN_PLAN_HARDWARE_H
#define TS_TRAIN_PLAN_HARDWARE_H

#include "core/comm/mesh.h"
#include "core/config/option.h"
#include "core/kernels/cost.h"

// The collectives as bench comm tells them apart.
typedef enum {
    TS_LINE_ALL_REDUCE,
    TS_LINE_REDUCE_SCATTER,
    TS_LINE_REDUCE_SCATTER_STARTED,
    TS_LINE_ALL_GATHER,
    TS_LINE_ALL_GATHER_STARTED,
    TS_LINE_ALL_TO_ALL,
    TS_LINE_RING,
    TS_LINE_BROADCAST,
    TS_LINE_BARRIER,
    TS_LINE_COUNT
} ts_line_kind;

// Microseconds and 1e9 bytes a second; both 0: unsaid.
typedef struct ts_hardware_line {
    double latency_us, gb_per_s;
} ts_hardware_line;

// A measured call. Work is FLOPs, or bytes where the matrix engine has nothing to do.
typedef struct ts_measured {
    char entry[32];
    ts_dtype dtype;
    int64_t dim[4];
    double work, seconds;
} ts_measured;

typedef struct ts_hardware {
    const char *path, *name;
    int64_t devices_per_host;
    double memory_gib;                                   // of a device
    double bf16_gflops, f32_gflops;                      // of matrix products
    double bf16_attention_gflops, f32_attention_gflops;  // of attention; 0: as products
    double memory_gb_per_s;                              // read or written
    double overhead_us;                                  // of a kernel call
    double wait_share;                                   // that kernels take longer since ranks wait for each other
    double hidden_share;                                 // of the gradients' messages, under the backward pass
    int64_t comm_ranks;                                  // that the lines below were measured with, on one host
    ts_hardware_line comm[TS_LINE_COUNT];                // of a collective over comm_ranks ranks
    ts_hardware_line link, network;                      // of a peer: any other collective in a host, and between
    ts_string_list measured_text;                        // the list as it stands in the file
    ts_measured *measured;                               // [measured_count]
    int64_t measured_count;
} ts_hardware;

extern const ts_option ts_hardware_options[];

// Reads and checks a file; strings and arrays live in `arena`. TS_EINPUT or TS_EUSAGE with file and line.
int ts_hardware_read(ts_hardware *out, ts_arena *arena, const char *path);
// Writes what ts_hardware_read reads back, whole or not at all. `comment`, lines that each begin with #, stands first.
int ts_hardware_write(const ts_hardware *hardware, const char *comment, const char *path);

// FLOPs of a call, or its bytes.
double ts_hardware_work(const ts_cost *cost);
// Seconds of a kernel call. TS_EUSAGE, naming what the file lacks, when it cannot be told.
int ts_hardware_call(const ts_hardware *hardware, const ts_cost *cost, double *seconds);

// Where the ranks of a communicator are: `size` of them, `stride` devices apart, the first of them the first of a host.
typedef struct ts_placement {
    int size, stride;
} ts_placement;
// Seconds that `calls` collectives take one rank, which sends `bytes` in all of them.
int ts_hardware_message(const ts_hardware *hardware, ts_line_kind kind, ts_placement placement, double calls,
                        double bytes, double *seconds);
const char *ts_line_name(ts_line_kind kind);  // "all_reduce", ...: its key

#endif
