// SPDX-License-Identifier: Apache-2.0
#include "train/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "core/comm/threads.h"
#include "core/nn/layer.h"
#include "train/objective.h"
#include "train/optimizer.h"
#include "train/token_loss.h"
#include "train/validate.h"

// Pages of the program and its libraries, their own tables and compiled kernels, that a run comes to use after the plan
// is made: measured on x86-64 with the libraries of Debian 12.
enum { TOUCHED_LATER = 8 << 20 };

// The model, declared and not allocated.
typedef struct declared {
    ts_params *params;
    ts_dit *dit;
    ts_text *text;
} declared;

static int declare_model(declared *d, const ts_memory_run *run) {
    *d = (declared){0};
    TS_TRY(ts_params_open(&d->params));
    d->params->mesh = run->mesh;
    TS_TRY(ts_dit_open(&d->dit, &run->dit, d->params, "transformer."));
    return ts_text_open(&d->text, &run->text, d->params, "text_encoder.");
}

static void close_model(declared *d) {
    ts_text_close(&d->text);
    ts_dit_close(&d->dit);
    ts_params_close(&d->params);
}

// Where to count what the host holds: with the rest, or apart from what a GPU holds.
static int64_t *on_host(ts_memory_plan *out, const ts_memory_run *run, ts_memory_part part) {
    return run->on_device ? &out->host : &out->bytes[part];
}

// What an allocation of `bytes` takes: large ones are whole huge pages (ts_aligned_alloc).
static int64_t pages(int64_t bytes) {
    const int64_t page = 2 << 20;
    return bytes >= 2 * page ? (bytes + page - 1) / page * page : bytes;
}

// ---- activations

static int64_t tokens_of(const ts_memory_run *run, const ts_shape *latent) {
    const int64_t *patch = run->dit.patch, *dim = latent->dim;
    return dim[0] / patch[0] * (dim[1] / patch[1]) * (dim[2] / patch[2]);
}

enum { DEVICE_TOKENS = 1 << 14 };  // computed at once

int64_t ts_micro_batch(const ts_train_config *config, const ts_mesh *mesh, bool on_device, int64_t samples,
                       int64_t tokens) {
    enum { TOKENS = 384 };
    if (config->train.micro_batch) {
        return config->train.micro_batch < samples ? config->train.micro_batch : samples;
    }
    const int64_t most = (on_device ? DEVICE_TOKENS : TOKENS) * ts_comm_size(ts_mesh_axis(mesh, TS_AXIS_SEQUENCE));
    const int64_t parts = (samples * tokens + most - 1) / most;
    return parts ? (samples + parts - 1) / parts : 0;
}

int64_t ts_validation_batch(const ts_train_config *config, const ts_mesh *mesh, bool on_device, int64_t tokens) {
    enum { MOST = 64, USUAL = 16, TOKENS = 2048 };
    if (config->train.micro_batch) {
        return config->train.micro_batch < MOST ? config->train.micro_batch : MOST;
    }
    const int64_t ranks = ts_comm_size(ts_mesh_axis(mesh, TS_AXIS_SEQUENCE)), most = on_device ? MOST : USUAL;
    const int64_t fitting = (on_device ? DEVICE_TOKENS : TOKENS) * ranks / tokens;
    return fitting < 1 ? 1 : fitting < most ? fitting : most;
}

static int no_mark(void *user, int group) {
    (void)user, (void)group;
    return 0;
}

// Forward pass and loss of n samples x [n, T, H, W, C], and the backward pass of a recorded step.
static int count_model(ts_tape *tape, const ts_memory_run *run, const declared *model, ts_shape latent, int64_t n,
                       float *x, ts_token_target target, ts_recompute recompute) {
    const ts_shape shape = TS_SHAPE(n, latent.dim[0], latent.dim[1], latent.dim[2], latent.dim[3]);
    const ts_dit_input input = {
        .latent = ts_tape_input(tape, (ts_tensor){TS_F32, shape, x}, false),
        .context = ts_text_forward_full(tape, model->text, n, run->dit.text_rows),
        .timesteps_per_sample = latent.dim[0],
        .recompute = recompute,
        .grad_ready = no_mark,
    };
    ts_var *velocity;
    TS_TRY(ts_token_loss(tape, model->dit, &input, &target, &velocity));
    return ts_tape_keeps(tape) ? ts_tape_backward(tape, velocity, NULL) : TS_OK;
}

static int count_training(ts_tape *tape, const ts_memory_run *run, const declared *model, ts_recompute recompute,
                          int64_t samples, int64_t *forward_bytes) {
    const ts_objective objective = ts_objective_from_config(run->config);
    for (int i = 0; i < run->latents; i++) {
        const ts_shape latent = run->latent[i];
        const int64_t n = ts_micro_batch(run->config, run->mesh, run->on_device, samples, tokens_of(run, &latent));
        if (n == 0) {
            continue;  // more ranks than samples
        }
        ts_noisy noisy;
        ts_tape_reset(tape);
        const ts_clean clean = {.count = n, .shape = latent, .dtype = run->on_device ? TS_BF16 : TS_F32};
        TS_TRY(ts_objective_prepare(&objective, tape, &clean, &noisy));
        const ts_token_target target = {noisy.target, noisy.weight, latent.dim[0], 1, NULL};
        TS_TRY(count_model(tape, run, model, latent, n, noisy.x, target, recompute));
        const int64_t bytes = (int64_t)ts_tape_get_stats(tape).forward_bytes;
        *forward_bytes = bytes > *forward_bytes ? bytes : *forward_bytes;
    }
    return TS_OK;
}

static int count_validation(ts_tape *tape, const ts_memory_run *run, const declared *model, int64_t clips) {
    int64_t tokens = 0;
    for (int i = 0; i < run->latents; i++) {
        const int64_t count = tokens_of(run, &run->latent[i]);
        tokens = count > tokens ? count : tokens;
    }
    const int64_t most = ts_validation_batch(run->config, run->mesh, run->on_device, tokens),
                  n = clips < most ? clips : most;
    for (int i = 0; i < run->latents && n > 0; i++) {
        ts_validation_arrays arrays;
        ts_tape_reset(tape);
        TS_TRY(ts_validation_allocate(&arrays, tape, n, run->latent[i]));
        const ts_token_target target = {arrays.target, arrays.weight, run->latent[i].dim[0], 1, NULL};
        TS_TRY(count_model(tape, run, model, run->latent[i], n, arrays.x, target, TS_RECOMPUTE_NONE));
    }
    return TS_OK;
}

// Packed operands of matrix products, in blocks of at most 2048 along k (core/kernels/cpu/gemm_amx.c), and what the
// kernels' own growth adds.
static void meter_host(void *user, const ts_cost *cost) {
    enum { BLOCK = 2048 };
    int64_t *most = user;
    if (!strcmp(cost->entry, "gemm")) {
        const int64_t m = cost->dim[0], n = cost->dim[1], k = cost->dim[2];
        const int64_t element = (int64_t)ts_dtype_bytes(cost->dtype), block = k < BLOCK ? k : BLOCK;
        const int64_t sums = k > BLOCK ? m * n * (int64_t)sizeof(float) : 0, bytes = (m + n) * block * element + sums;
        *most = bytes + bytes / 4 > *most ? bytes + bytes / 4 : *most;
    }
}

// What the CUDA backend keeps for its kernels (core/kernels/cuda/cuda.h), from above: cuBLASLt's room and partial sums,
// and f32 sums of attention's backward pass, of which a quarter of the bytes are gradients of queries.
static void meter_device(void *user, const ts_cost *cost) {
    enum { ANY = 128 << 20 };
    int64_t *most = user;
    const int64_t sums = strcmp(cost->entry, "attention_backward") ? 0 : (int64_t)(cost->bytes / 4);
    *most = ANY + sums > *most ? ANY + sums : *most;
}

static int count_activations(ts_memory_plan *out, const ts_memory_run *run, const declared *model, int64_t samples,
                             int64_t clips) {
    ts_tape *tape = NULL;
    int status = TS_OK;
    int64_t forward = 0;
    TS_TRY(ts_tape_open(&tape, run->kernels, TS_TAPE_COUNT, ts_train_config_operands(run->config)));
    ts_tape_set_meter(tape, run->on_device ? meter_device : meter_host, &out->bytes[TS_MEMORY_KERNELS]);
    TS_TRY_GOTO(status, count_training(tape, run, model, out->recompute, samples, &forward), done);
    ts_tape_reset(tape);
    TS_TRY_GOTO(status, ts_tape_set_mode(tape, TS_TAPE_COUNT_RUN), done);
    TS_TRY_GOTO(status, count_validation(tape, run, model, clips), done);
    out->room = ts_tape_get_room(tape);
    out->bytes[TS_MEMORY_ACTIVATIONS] = forward;
    out->bytes[TS_MEMORY_BACKWARD] = pages((int64_t)out->room.values) + pages((int64_t)out->room.kept) +
                                     pages((int64_t)out->room.gradients) - forward;
    *on_host(out, run, TS_MEMORY_BACKWARD) += (int64_t)out->room.objects;
done:
    ts_tape_close(&tape);
    return status;
}

// ---- the rest

static int count_state(ts_memory_plan *out, const ts_memory_run *run, const declared *model) {
    ts_zero *zero = NULL;
    ts_state_bytes state;
    const ts_dtype gradients = ts_train_config_gradients(run->config);
    const ts_optimizer_params optimizer = ts_train_config_optimizer(run->config);
    TS_TRY(ts_params_place(model->params));
    TS_TRY(ts_optimizer_count(model->params, ts_train_config_operands(run->config), gradients, &optimizer,
                              !run->on_device, &state));
    TS_TRY(ts_zero_open(&zero, model->params, optimizer.muon));
    *on_host(out, run, TS_MEMORY_EXCHANGE) += ts_zero_exchange_bytes(zero, gradients);
    ts_zero_close(&zero);
    out->parameters = model->params->total;
    out->bytes[TS_MEMORY_WEIGHTS] = pages(state.weights);
    out->bytes[TS_MEMORY_MASTERS] = pages(state.masters);
    out->bytes[TS_MEMORY_GRADIENTS] = pages(state.gradients);
    out->bytes[TS_MEMORY_MOMENTS] = 2 * pages(state.moments / 2);
    out->bytes[TS_MEMORY_AVERAGE] = pages(state.average);
    out->bytes[TS_MEMORY_UPDATE] = pages(state.buffers);
    return TS_OK;
}

static void count_data(ts_memory_plan *out, const ts_memory_run *run, int64_t samples, int64_t clips) {
    enum { SLOTS = 2, NUMBERS_OF_A_CLIP = 3 };
    int64_t largest = 0, tables = 0;
    for (int i = 0; i < run->latents; i++) {
        const int64_t elements = ts_shape_count(run->latent[i]);
        largest = elements > largest ? elements : largest;
        tables += tokens_of(run, &run->latent[i]) * run->dit.head_dim * (int64_t)sizeof(float);
    }
    const int64_t f32 = (int64_t)sizeof(float), stored = (int64_t)sizeof(uint16_t);
    out->bytes[TS_MEMORY_DATA] = tables + (run->on_device ? samples * largest * stored : 0);
    *on_host(out, run, TS_MEMORY_DATA) += SLOTS * samples * largest * (run->on_device ? stored : f32) +
                                          (clips + 1) * largest * stored +
                                          NUMBERS_OF_A_CLIP * run->clips * (int64_t)sizeof(int64_t);
}

// While a run opens there are f32 values of all weights, which the optimizer then takes over, and no gradients or
// activations yet.
static void count_opening(ts_memory_plan *out) {
    int64_t opening = out->parameters * (int64_t)sizeof(float);
    for (int part = 0; part < TS_MEMORY_PARTS; part++) {
        const bool later = part == TS_MEMORY_GRADIENTS || (part >= TS_MEMORY_UPDATE && part < TS_MEMORY_DATA);
        opening += later ? 0 : out->bytes[part];
    }
    if (out->bytes[TS_MEMORY_MASTERS] && opening > out->total) {
        out->bytes[TS_MEMORY_OPENING] = opening - out->total;
        out->total = opening;
    }
}

int ts_memory_count(ts_memory_plan *out, const ts_memory_run *run, ts_recompute recompute) {
    const ts_comm *data = ts_mesh_axis(run->mesh, TS_AXIS_DATA);
    const int ranks = ts_comm_size(data), rank = ts_comm_rank(data);
    const int64_t samples = ts_split(run->config->train.batch, ranks, rank).count;
    const int64_t clips = ts_split(run->config->validate.clips, ranks, rank).count;
    *out = (ts_memory_plan){.recompute = recompute};
    declared model;
    int status = declare_model(&model, run);
    status = status ? status : count_state(out, run, &model);
    status = status ? status : count_activations(out, run, &model, samples, clips);
    close_model(&model);
    count_data(out, run, samples, clips);
    *on_host(out, run, TS_MEMORY_PROCESS) += run->process + TOUCHED_LATER;
    for (int i = 0; i < TS_MEMORY_PARTS; i++) {
        out->total += out->bytes[i];
    }
    count_opening(out);
    return status;
}

// ---- the decision

static double gib(int64_t bytes) {
    return (double)bytes / (1 << 30);
}

// `plan` is that of the kind that was asked for, or of the last that was tried.
static int refuse(const ts_memory_plan *plan, const ts_memory_run *run, int64_t available) {
    char others[128] = "";
    size_t used = 0;
    for (ts_recompute kind = plan->recompute + 1; kind <= TS_RECOMPUTE_BLOCK; kind++) {
        ts_memory_plan other;
        TS_TRY(ts_memory_count(&other, run, kind));
        used += (size_t)snprintf(others + used, sizeof others - used, "train.recompute=%s (%.2f GiB), ",
                                 ts_recompute_names[kind], gib(other.total));
    }
    const int64_t *bytes = plan->bytes;
    int64_t state = 0;
    for (int part = TS_MEMORY_WEIGHTS; part <= TS_MEMORY_UPDATE; part++) {
        state += bytes[part];
    }
    const int64_t activations = bytes[TS_MEMORY_ACTIVATIONS] + bytes[TS_MEMORY_BACKWARD];
    return TS_FAIL(
        TS_ERESOURCE,
        "a rank needs %.2f GiB (weights and optimizer %.2f, activations %.2f, other %.2f) and may have %.2f; "
        "try %sa smaller train.micro_batch, or more ranks: mesh.data for the optimizer, mesh.tensor and "
        "mesh.sequence for activations",
        gib(plan->total), gib(state), gib(activations), gib(plan->total - state - activations), gib(available), others);
}

int ts_memory_plan_make(ts_memory_plan *out, const ts_memory_run *run, int64_t available) {
    const bool chooses = run->config->train.recompute == TS_RECOMPUTE_AUTO;
    const ts_recompute first = chooses ? TS_RECOMPUTE_NONE : (ts_recompute)run->config->train.recompute;
    const ts_recompute last = chooses ? TS_RECOMPUTE_BLOCK : first;
    for (ts_recompute kind = first; kind <= last; kind++) {
        TS_TRY(ts_memory_count(out, run, kind));
        if (out->total <= available) {
            return TS_OK;
        }
    }
    return refuse(out, run, available);
}

// Free bytes of this rank's share of the host, with those that the process has; INT64_MAX when the system does not
// tell.
static int64_t host_share(int64_t ranks, int64_t process) {
    const int64_t free_bytes = ts_memory_available();
    return free_bytes < 0 ? INT64_MAX : free_bytes / ranks + (process > 0 ? process : 0);
}

// The same of the GPU, which ranks of a host share in turn.
static int device_share(const ts_device *device, int64_t ranks, int64_t *out) {
    const int64_t devices = ts_kernels_gpus(), sharing = devices > 0 ? (ranks + devices - 1) / devices : ranks;
    size_t free_bytes, total;
    TS_TRY(device->memory(&free_bytes, &total));
    *out = (int64_t)free_bytes / sharing;
    return TS_OK;
}

int ts_memory_share(ts_comm *world, const ts_train_config *config, const ts_kernels *kernels, ts_memory_limit *out) {
    const bool is_host = kernels->device->is_host;
    int64_t ranks = 1;
    TS_TRY(ts_ranks_on_host(world, &ranks));
    *out = (ts_memory_limit){.process = ts_memory_resident()};
    TS_TRY(ts_agree(world, is_host ? TS_OK : device_share(kernels->device, ranks, &out->device)));
    out->available = config->train.memory_gib > 0 ? (int64_t)(config->train.memory_gib * (1 << 30))
                     : is_host                    ? host_share(ranks, out->process)
                                                  : out->device;
    TS_TRY(ts_all_reduce(world, &out->process, 1, TS_I64, TS_MAX));
    TS_TRY(ts_all_reduce(world, &out->device, 1, TS_I64, TS_MIN));
    return ts_all_reduce(world, &out->available, 1, TS_I64, TS_MIN);
}

void ts_memory_print(const ts_memory_plan *plan, int64_t available) {
    static const char *const NAMES[TS_MEMORY_PARTS] = {
        "weights",  "master weights", "gradients", "moments", "moving average", "update", "activations",
        "backward", "exchange",       "kernels",   "data",    "program",        "opening"};
    TS_INFO("memory of a rank, recompute %s:", ts_recompute_names[plan->recompute]);
    for (int i = 0; i < TS_MEMORY_PARTS; i++) {
        if (plan->bytes[i]) {
            TS_INFO("  %-16s %10.1f MiB", NAMES[i], (double)plan->bytes[i] / (1 << 20));
        }
    }
    if (plan->host) {
        TS_INFO("  %-16s %10.1f MiB", "beside, of host", (double)plan->host / (1 << 20));
    }
    TS_INFO("  %-16s %10.1f MiB of %.1f", "in all", (double)plan->total / (1 << 20), (double)available / (1 << 20));
}

int ts_memory_report(ts_comm *world, const ts_memory_plan *plan, const ts_kernels *kernels,
                     const ts_memory_limit *limit) {
    const bool is_host = kernels->device->is_host;
    int64_t most[2] = {plan->total, ts_memory_peak()}, ranks = 1, left = 0;
    TS_TRY(ts_ranks_on_host(world, &ranks));
    TS_TRY(ts_agree(world, is_host ? TS_OK : device_share(kernels->device, ranks, &left)));
    if (!is_host) {
        most[1] = limit->device > left ? limit->device - left : 0;
    }
    TS_TRY(ts_all_reduce(world, most, 2, TS_I64, TS_MAX));
    TS_INFO("memory of the largest rank: %.1f MiB planned, %.1f MiB %s", (double)most[0] / (1 << 20),
            (double)most[1] / (1 << 20), is_host ? "at the peak" : "of the GPU taken");
    return TS_OK;
}
