// SPDX-License-Identifier: Apache-2.0
// What every command that makes videos begins with: a model on a device, spread over a mesh, and how to sample.
#ifndef TS_INFER_SESSION_H
#define TS_INFER_SESSION_H

#include <stddef.h>

#include "core/comm/mesh.h"
#include "core/config/option.h"
#include "core/model/model.h"
#include "infer/sampler/sample.h"
#include "infer/timeline/timeline.h"

typedef struct ts_session_options {
    const char *model, *negative, *mesh, *instruction_set, *watch_network;
    int64_t steps, seed, batch, threads;
    double guidance, shift, watch;
    int device, grid, solver, precision, report;
    bool reproducible;
} ts_session_options;

extern const char *const ts_precision_names[], *const ts_report_names[];

// The rows of these options, to stand in a command's own table, whose target is a `type` with a ts_session_options
// `field`: those that say where and how the work is done, and these with all that say what is sampled.
// clang-format off
#define TS_SESSION_PLACE_OPTIONS(type, field) \
    {"batch", TS_OPTION_INT, offsetof(type, field.batch), "8", "videos, or windows of a long one, sampled together on a rank", 1, 1024, NULL, false}, \
    {"precision", TS_OPTION_CHOICE, offsetof(type, field.precision), "f32", "operands of matrix products and attention", 0, 0, ts_precision_names, false}, \
    {"device", TS_OPTION_CHOICE, offsetof(type, field.device), "auto", "where to sample: cuda, a GPU for each rank of a host in turn; cpu; auto: cuda where there is a GPU. Videos are decoded on the CPU", 0, 0, ts_device_names, false}, \
    {"mesh", TS_OPTION_STRING, offsetof(type, field.mesh), NULL, "ranks along each axis, as cfg=2,ulysses=2: data (videos, or windows of one), cfg (the two branches of guidance), sequence or ring and ulysses (tokens), tensor (layers); the ranks that are left go to data", 0, 0, NULL, false}, \
    {"reproducible", TS_OPTION_BOOL, offsetof(type, field.reproducible), "false", "the same bits on every mesh, as on one rank, for more messages", 0, 0, NULL, false}, \
    {"report", TS_OPTION_CHOICE, offsetof(type, field.report), "none", "what is printed at the end: comm, the calls and bytes of each axis and collective", 0, 0, ts_report_names, false}, \
    {"watch", TS_OPTION_REAL, offsetof(type, field.watch), "300", "seconds after which a rank that gives no sign, or ranks that wait for each other, end the job; 0: never", 0, 1e6, NULL, false}, \
    {"watch-network", TS_OPTION_STRING, offsetof(type, field.watch_network), NULL, "interface or address of rank 0's host that the ranks' signs of life go to; absent: any that they reach", 0, 0, NULL, false}, \
    {"threads", TS_OPTION_INT, offsetof(type, field.threads), "0", "threads of each rank; 0: the cores of the machine shared out over its ranks", 0, 1024, NULL, false}, \
    {"instruction-set", TS_OPTION_STRING, offsetof(type, field.instruction_set), "auto", "cap of the CPU's instruction set: auto, amx, avx512bf16, avx512, avx2, generic", 0, 0, NULL, false}
#define TS_SESSION_OPTIONS(type, field) \
    {"steps", TS_OPTION_INT, offsetof(type, field.steps), "0", "denoising steps; 0: the model's default, twice that for loops and for videos longer than a window", 0, TS_MAX_STEPS, NULL, false}, \
    {"guidance", TS_OPTION_REAL, offsetof(type, field.guidance), "-1", "classifier-free guidance, 1 is none; -1: the model's default, in remix, recut and loop less where less is open", -1, 100, NULL, false}, \
    {"negative", TS_OPTION_STRING, offsetof(type, field.negative), NULL, "what the video should not show; guidance moves away from it", 0, 0, NULL, false}, \
    {"seed", TS_OPTION_INT, offsetof(type, field.seed), "0", "same seed, same video, on any number of ranks", 0, 9.0e15, NULL, false}, \
    {"shift", TS_OPTION_REAL, offsetof(type, field.shift), "0", "shift of the noise levels; 0: the model's default", 0, 1000, NULL, false}, \
    {"grid", TS_OPTION_CHOICE, offsetof(type, field.grid), "unipc", "grid of noise levels", 0, 0, ts_grid_names, false}, \
    {"solver", TS_OPTION_CHOICE, offsetof(type, field.solver), "unipc", "solver of the flow equation; where windows are joined (long videos, loops) unipc takes steps of first order, as euler does", 0, 0, ts_solver_names, false}, \
    TS_SESSION_PLACE_OPTIONS(type, field)
#define TS_MODEL_OPTION(type, field) \
    {"model", TS_OPTION_STRING, offsetof(type, field.model), NULL, "model folder (runs/NAME/model, or the shipped configs/shapes-model)", 0, 0, NULL, true}
// clang-format on

typedef struct ts_session {
    const ts_session_options *options;  // borrowed
    const ts_kernels *kernels;
    ts_mesh mesh;
    ts_model *model;
    ts_sample_params sample;  // as the options say and, where they are silent, the model; no size yet
} ts_session;

// Opens watch, threads, device, mesh and model, in this order; what does not fit is refused before a weight is read.
// Collective over `world`, the same status on all ranks. To be closed whatever the status.
int ts_session_open(ts_session *session, ts_comm *world, const ts_session_options *options);
// Prints the report that was asked for when `status` is good; returns the status. Collective when it is good.
int ts_session_close(ts_session *session, int status);

// What timelines are resolved against, as the model's folder says, without reading a weight; guidance as the options
// say. Not collective.
int ts_session_describe(ts_timeline_model *out, const ts_session_options *options);

// A model reads so many tokens of a prompt: warns, once, of those of `prompt` [count] that are longer. Rank 0's.
int ts_session_check_lengths(const ts_session *session, const char *const *prompt, int64_t count);

#endif
