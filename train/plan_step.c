// SPDX-License-Identifier: Apache-2.0
#include "train/plan_step.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/rng.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "core/nn/loss.h"
#include "train/memory.h"
#include "train/optimizer.h"

// ---- the model, on an imagined mesh

typedef struct model {
    ts_mesh mesh;
    ts_params *params;
    ts_dit *dit;
    ts_text *text;
    ts_tape *tape;
} model;

static int open_model(model *m, const ts_plan_run *run, const ts_degrees *degree, int64_t layers,
                      const ts_kernels *kernels) {
    ts_dit_config dit = run->dit;
    dit.layers = layers;
    *m = (model){0};
    TS_TRY(ts_mesh_imagine(&m->mesh, degree, 0));
    TS_TRY(ts_params_open(&m->params));
    m->params->mesh = &m->mesh;
    m->params->kernels = kernels;
    TS_TRY(ts_dit_open(&m->dit, &dit, m->params, "transformer."));
    TS_TRY(ts_text_open(&m->text, &run->text, m->params, "text_encoder."));
    return ts_tape_open(&m->tape, kernels, kernels ? TS_TAPE_RECORD : TS_TAPE_COUNT,
                        ts_train_config_operands(run->config));
}

static void close_model(model *m) {
    ts_tape_close(&m->tape);
    ts_text_close(&m->text);
    ts_dit_close(&m->dit);
    ts_params_close(&m->params);
    ts_mesh_close(&m->mesh);
}

// ---- a pass forward and backward

// Noise levels: one a sample where only the pattern `all` is drawn, else one a frame.
static float *make_levels(model *m, const ts_plan_run *run, int64_t n, int64_t frames) {
    const ts_train_config *c = run->config;
    const bool one = c->patterns.prefix + c->patterns.suffix + c->patterns.both_ends + c->patterns.scattered +
                         c->patterns.independent <=
                     0;
    float *level = ts_tape_object(m->tape, (size_t)(n * frames) * sizeof *level);
    for (int64_t i = 0; level && i < n * frames; i++) {
        level[i] = (float)(1 + (one ? i / frames : i) % 1000);
    }
    return level;
}

static float *make_numbers(model *m, int64_t count, uint64_t index) {
    float *out = ts_arena_alloc(ts_tape_arena(m->tape), (size_t)count * sizeof *out);
    if (out && !ts_arena_counting(ts_tape_arena(m->tape))) {
        ts_rng_normal_fill(out, count, 1, TS_RNG_TEST, index, 0);
    }
    return out;
}

// Of n samples.
static int pass(model *m, const ts_plan_run *run, ts_recompute recompute, int64_t n) {
    const ts_shape l = run->latent, shape = TS_SHAPE(n, l.dim[0], l.dim[1], l.dim[2], l.dim[3]);
    ts_tape_reset(m->tape);
    float *x = make_numbers(m, ts_shape_count(shape), 1);
    float *target = make_numbers(m, ts_shape_count(shape), 2);
    const ts_dit_input input = {
        .latent = ts_tape_input(m->tape, (ts_tensor){TS_F32, shape, x}, false),
        .context = ts_text_forward_full(m->tape, m->text, n, run->dit.text_rows),
        .timestep = make_levels(m, run, n, l.dim[0]),
        .timesteps_per_sample = l.dim[0],
        .recompute = recompute,
    };
    TS_TRY(ts_tape_status(m->tape));
    double loss = 0;
    ts_var *velocity = ts_dit_forward_tokens(m->tape, m->dit, &input);
    const ts_velocity_loss mse = {
        .target = target, .rows = ts_dit_tokens(m->dit, shape).rows.count, .scale = 1e-6, .loss = &loss};
    TS_TRY(ts_nn_velocity_loss(m->tape, velocity, &mse));
    return ts_tape_backward(m->tape, velocity, NULL);
}

// ---- sums of calls

bool ts_plan_same_call(const ts_cost *a, const ts_cost *b) {
    return a->dtype == b->dtype && !memcmp(a->dim, b->dim, sizeof a->dim) && !strcmp(a->entry, b->entry) &&
           a->flops == b->flops && a->bytes == b->bytes;
}

static double times_of(const ts_plan_step *step, const ts_cost *cost) {
    for (int64_t i = 0; i < step->calls; i++) {
        if (ts_plan_same_call(&step->call[i].cost, cost)) {
            return step->call[i].times;
        }
    }
    return 0;
}

static int add_call(ts_plan_step *step, const ts_cost *cost, double times) {
    for (int64_t i = 0; i < step->calls; i++) {
        if (ts_plan_same_call(&step->call[i].cost, cost)) {
            step->call[i].times += times;
            return TS_OK;
        }
    }
    if (step->calls == step->capacity) {
        const int64_t capacity = 2 * step->capacity + 64;
        ts_plan_call *call = realloc(step->call, (size_t)capacity * sizeof *call);
        if (!call) {
            return TS_FAIL(TS_ERESOURCE, "out of memory for %lld kinds of kernel calls", (long long)capacity);
        }
        step->call = call;
        step->capacity = capacity;
    }
    step->call[step->calls++] = (ts_plan_call){*cost, times};
    return TS_OK;
}

// What a tape's meter fills.
typedef struct metered {
    ts_plan_step *step;
    double times;  // every call counts so often
    int status;
} metered;

static void meter(void *user, const ts_cost *cost) {
    metered *m = user;
    m->status = m->status ? m->status : add_call(m->step, cost, m->times);
}

static void add_messages(ts_plan_step *step, const ts_mesh *mesh, double times) {
    for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
        for (int kind = 0; kind < TS_COLLECTIVE_COUNT; kind++) {
            const ts_comm_counters c = ts_comm_get_counters(mesh->axis[axis], (ts_collective)kind);
            step->message[axis][kind].calls += times * (double)c.calls;
            step->message[axis][kind].bytes += times * (double)c.bytes_sent;
        }
        ts_comm_reset_counters(mesh->axis[axis]);
    }
}

// ---- the optimizer

static int add_stream(ts_plan_step *step, const char *entry, int64_t count, double bytes_each) {
    const ts_cost cost = ts_cost_stream(entry, TS_F32, 1, count, bytes_each);
    return count > 0 ? add_call(step, &cost, 1) : TS_OK;
}

static int add_product(ts_plan_step *step, ts_dtype dtype, int64_t m, int64_t n, int64_t k, double times) {
    const ts_gemm gemm = {.m = m, .n = n, .k = k, .dtype_ab = dtype, .dtype_c = TS_F32};
    const ts_cost cost = ts_cost_gemm(&gemm);
    return add_call(step, &cost, times);
}

// Five Newton-Schulz steps of three products (train/muon.h) for each matrix that the rank updates.
static int add_muon(ts_plan_step *step, const ts_params *params, const ts_shard *shard, ts_dtype dtype) {
    enum { STEPS = 5 };
    for (int64_t i = shard->item; i < shard->item_end; i++) {
        const ts_param *param = params->item[i];
        if (param->hidden) {
            const int64_t columns = param->whole.dim[param->whole.ndim - 1];
            const int64_t rows = ts_shape_count(param->whole) / (columns > 0 ? columns : 1);
            const int64_t side = rows < columns ? rows : columns, other = rows < columns ? columns : rows;
            const double times = STEPS * (param->cut >= 0 ? (double)param->count / (double)(rows * columns) : 1);
            TS_TRY(add_product(step, dtype, side, side, other, times));
            TS_TRY(add_product(step, dtype, side, side, side, times));
            TS_TRY(add_product(step, dtype, rows, columns, side, times));
        }
    }
    return TS_OK;
}

// Slices of cut matrices travel to the ranks that make the directions, one matrix after the other, and back
// (train/optimizer_private.h).
static void add_muon_messages(ts_plan_step *step, const ts_params *params, const ts_zero *zero) {
    const ts_comm *tensor = ts_mesh_axis(params->mesh, TS_AXIS_TENSOR);
    const int64_t ranks = ts_comm_size(tensor), rank = ts_comm_rank(tensor);
    ts_plan_message *slices = &step->message[TS_AXIS_TENSOR][TS_ALL_TO_ALL];
    int64_t matrices = 0;
    for (int s = 0; s < params->spans && ranks > 1; s++) {
        for (int64_t i = zero->shard[s].item; i < zero->shard[s].item_end; i++) {
            const ts_param *param = params->item[i];
            if (param->hidden && param->cut >= 0) {
                const bool made_here = matrices++ % ranks == rank;
                const int64_t sent = made_here ? ts_shape_count(param->whole) - param->count : param->count;
                slices->bytes += (double)sent * sizeof(float);
            }
        }
    }
    slices->calls += 2 * (double)((matrices + ranks - 1) / ranks);
}

// Bytes of a parameter that AdamW reads and writes: weight, two moments, gradient, the kernels' copy, the average.
static double update_bytes(const ts_plan_run *run) {
    return 8 + 16 + 4 + (ts_train_config_operands(run->config) == TS_BF16 ? 2 : 0) +
           (run->config->train.ema_decay > 0 ? 8 : 0);
}

static void add_shard_messages(ts_plan_step *step, const ts_plan_run *run, const ts_shard *shard) {
    const ts_axis axis = shard->span->cut ? TS_AXIS_REPLICA : TS_AXIS_WORLD;
    const ts_dtype weight =
        ts_train_config_operands(run->config) == TS_BF16 && shard->span->is_operand ? TS_BF16 : TS_F32;
    if (ts_comm_size(shard->comm) == 1 || shard->span->count == 0) {
        return;
    }
    ts_plan_message *sums = &step->message[axis][TS_REDUCE_SCATTER], *parts = &step->message[axis][TS_ALL_GATHER];
    sums->calls += 1, parts->calls += 1;
    sums->bytes +=
        (double)ts_comm_bytes(shard->comm, TS_REDUCE_SCATTER, shard->counts, ts_train_config_gradients(run->config));
    parts->bytes += (double)ts_comm_bytes(shard->comm, TS_ALL_GATHER, shard->counts, weight);
}

// Gradients are cleared, summed over the ranks and measured, the own part is updated and given to all.
static int count_optimizer(ts_plan_step *step, const ts_plan_run *run, model *m) {
    const bool muon = run->config->train.optimizer == TS_OPTIMIZER_MUON;
    ts_zero *zero = NULL;
    TS_TRY(ts_zero_open(&zero, m->params, muon));
    int status =
        add_stream(step, "clear", m->params->total, (double)ts_dtype_bytes(ts_train_config_gradients(run->config)));
    for (int s = 0; s < m->params->spans && !status; s++) {
        const ts_shard *shard = &zero->shard[s];
        add_shard_messages(step, run, shard);
        status = add_stream(step, "sum_squares", shard->count, 4);
        status = status ? status : add_stream(step, "adamw", shard->count, update_bytes(run));
        status = status || !muon ? status : add_muon(step, m->params, shard, ts_train_config_operands(run->config));
    }
    if (!status && muon) {
        add_muon_messages(step, m->params, zero);
    }
    ts_zero_close(&zero);
    // Norm, loss, two wishes to stop and how far a checkpoint is (train/trainer.c).
    ts_comm *world = m->mesh.axis[TS_AXIS_WORLD];
    ts_comm_count(world, TS_ALL_REDUCE, (const int64_t[]){5}, TS_F64);
    add_messages(step, &m->mesh, 1);
    return status;
}

// What the rank holds, and what it needs besides (train/memory.h); without the program itself. Of all layers: training
// and validation share memory, and the larger of two lines is no line.
static int count_memory(ts_plan_step *step, const ts_plan_run *run) {
    ts_memory_plan plan;
    ts_mesh mesh;
    const ts_memory_run memory = {.config = run->config,
                                  .dit = run->dit,
                                  .text = run->text,
                                  .mesh = &mesh,
                                  .on_device = run->on_device,
                                  .latent = &run->latent,
                                  .latents = 1};
    TS_TRY(ts_mesh_imagine(&mesh, &step->degree, 0));
    const int status = ts_memory_count(&plan, &memory, step->recompute);
    ts_mesh_close(&mesh);
    if (!status) {
        step->memory = (double)plan.total;
        step->parameters = (double)plan.parameters;
    }
    return status;
}

// ---- the step

int64_t ts_plan_tokens(const ts_plan_run *run) {
    const int64_t *patch = run->dit.patch, *dim = run->latent.dim;
    return dim[0] / patch[0] * (dim[1] / patch[1]) * (dim[2] / patch[2]);
}

// The rank's share of the batch in micro-batches: as many full ones as there are, and the rest.
static int count_passes(ts_plan_step *step, const ts_plan_run *run, model *m) {
    const int64_t n = step->micro_batch, full = n ? step->samples / n : 0, rest = n ? step->samples % n : 0;
    metered counted = {.step = step, .times = (double)full};
    ts_tape_set_meter(m->tape, meter, &counted);
    if (full) {
        TS_TRY(pass(m, run, step->recompute, n));
        add_messages(step, &m->mesh, (double)full);
    }
    if (rest) {
        counted.times = 1;
        TS_TRY(pass(m, run, step->recompute, rest));
        add_messages(step, &m->mesh, 1);
    }
    return counted.status;
}

static int count_noise(ts_plan_step *step, const ts_plan_run *run) {
    const int64_t numbers = ts_shape_count(run->latent);
    const ts_cost noise = ts_cost_stream("noise", TS_F32, 1, numbers, 4);
    return step->samples ? add_call(step, &noise, (double)step->samples) : TS_OK;
}

static int count_layers(ts_plan_step *out, const ts_plan_run *run, const ts_plan_step *like, int64_t layers) {
    model m;
    *out = *like;
    int status = open_model(&m, run, &like->degree, layers, NULL);
    status = status ? status : ts_params_place(m.params);
    if (!status) {
        out->micro_batch = ts_micro_batch(run->config, &m.mesh, run->on_device, out->samples, ts_plan_tokens(run));
        status = count_passes(out, run, &m);
    }
    status = status ? status : count_noise(out, run);
    status = status ? status : count_optimizer(out, run, &m);
    close_model(&m);
    return status;
}

static double further(double two, double three, int64_t layers) {
    return two + (three - two) * (double)(layers - 2);
}

// step becomes that of `layers` blocks, given those of two (step) and of three.
static int extend(ts_plan_step *step, const ts_plan_step *three, int64_t layers) {
    for (int64_t i = 0; i < three->calls; i++) {
        const ts_plan_call *call = &three->call[i];
        const double more = (call->times - times_of(step, &call->cost)) * (double)(layers - 2);
        TS_TRY(more != 0 ? add_call(step, &call->cost, more) : TS_OK);
    }
    for (int i = 0; i < TS_AXIS_COUNT * TS_COLLECTIVE_COUNT; i++) {
        ts_plan_message *a = &step->message[0][0] + i;
        const ts_plan_message *b = &three->message[0][0] + i;
        *a = (ts_plan_message){further(a->calls, b->calls, layers), further(a->bytes, b->bytes, layers)};
    }
    return TS_OK;
}

int ts_plan_step_count(ts_plan_step *out, const ts_plan_run *run, const ts_degrees *degree, ts_recompute recompute) {
    const int64_t layers = run->dit.layers, samples = ts_split(run->config->train.batch, degree->data, 0).count;
    const ts_plan_step like = {.degree = *degree, .recompute = recompute, .samples = samples};
    ts_plan_step three = {0};
    int status = count_layers(out, run, &like, layers < 4 ? layers : 2);
    if (!status && layers >= 4) {
        status = count_layers(&three, run, &like, 3);
        status = status ? status : extend(out, &three, layers);
    }
    ts_plan_step_free(&three);
    status = status ? status : count_memory(out, run);
    if (status) {
        ts_plan_step_free(out);
        return status;
    }
    const int64_t n = out->micro_batch;
    out->micro_batches = n ? (samples + n - 1) / n : 0;
    for (int64_t i = 0; i < out->calls; i++) {
        out->flops += out->call[i].times * out->call[i].cost.flops;
    }
    return TS_OK;
}

void ts_plan_step_free(ts_plan_step *step) {
    free(step->call);
    step->call = NULL;
    step->calls = step->capacity = 0;
}

// ---- rehearsing

struct ts_plan_rehearsal {
    const ts_plan_run *run;
    model model;
    ts_recompute recompute;
    int64_t samples;
};

int ts_plan_rehearsal_open(ts_plan_rehearsal **out, const ts_plan_run *run, const ts_degrees *degree,
                           ts_recompute recompute, int64_t layers, const ts_kernels *kernels) {
    const int64_t samples = ts_split(run->config->train.batch, degree->data, 0).count;
    ts_plan_rehearsal *r = ts_calloc(1, sizeof *r);
    if (!r) {
        return TS_ERESOURCE;
    }
    r->run = run;
    r->recompute = recompute;
    int status = open_model(&r->model, run, degree, layers < run->dit.layers ? layers : run->dit.layers, kernels);
    status = status ? status : ts_params_allocate(r->model.params, ts_train_config_operands(run->config), true);
    status = status ? status : ts_dit_init(r->model.dit, 1);
    status = status ? status : ts_text_init(r->model.text, 1);
    status = status ? status : ts_params_refresh_operands(r->model.params);
    if (status) {
        ts_plan_rehearsal_close(&r);
        return status;
    }
    r->samples = ts_micro_batch(run->config, &r->model.mesh, run->on_device, samples, ts_plan_tokens(run));
    *out = r;
    return TS_OK;
}

void ts_plan_rehearsal_close(ts_plan_rehearsal **rehearsal) {
    if (*rehearsal) {
        close_model(&(*rehearsal)->model);
        free(*rehearsal);
        *rehearsal = NULL;
    }
}

int ts_plan_rehearse(ts_plan_rehearsal *r, ts_tape_meter_fn hears, void *user) {
    ts_tape_set_meter(r->model.tape, hears, user);
    return r->samples ? pass(&r->model, r->run, r->recompute, r->samples) : TS_OK;
}

const ts_params *ts_plan_rehearsal_params(const ts_plan_rehearsal *r) {
    return r->model.params;
}
