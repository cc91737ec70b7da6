// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/step.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/rng.h"
#include "core/base/status.h"
#include "core/comm/traffic.h"
#include "core/config/option.h"
#include "core/model/dit.h"
#include "infer/sampler/sample.h"
#include "infer/sampler/velocity.h"
#include "train/optimizer.h"
#include "train/token_loss.h"

typedef struct bench_shape {
    int64_t heads, head_dim, ffn_dim, layers, freq_dim, channels, frames, height, width, text_rows, text_dim, batch;
    int recompute;  // ts_recompute
    int gradients;  // place in GRADIENTS
} bench_shape;

static const char *const RECOMPUTES[] = {"none", "elementwise", "block", NULL};
static const char *const GRADIENTS[] = {"f32", "bf16", NULL};

#define FIELD(name) offsetof(bench_shape, name)
// clang-format off
static const ts_option shape_options[] = {
    {"heads", TS_OPTION_INT, FIELD(heads), "6", "attention heads", 1, 512, NULL, false},
    {"head_dim", TS_OPTION_INT, FIELD(head_dim), "64", "width of a head", 8, 512, NULL, false},
    {"ffn_dim", TS_OPTION_INT, FIELD(ffn_dim), "1536", "width of the feed-forward", 1, 1 << 20, NULL, false},
    {"layers", TS_OPTION_INT, FIELD(layers), "6", "transformer blocks", 1, 1000, NULL, false},
    {"freq_dim", TS_OPTION_INT, FIELD(freq_dim), "256", "width of the sinusoid of the noise level", 2, 4096, NULL, false},
    {"channels", TS_OPTION_INT, FIELD(channels), "16", "latent channels", 1, 1024, NULL, false},
    {"frames", TS_OPTION_INT, FIELD(frames), "4", "latent frames", 1, 1024, NULL, false},
    {"height", TS_OPTION_INT, FIELD(height), "32", "latent height, even", 2, 1024, NULL, false},
    {"width", TS_OPTION_INT, FIELD(width), "32", "latent width, even", 2, 1024, NULL, false},
    {"text_rows", TS_OPTION_INT, FIELD(text_rows), "64", "rows of the text context", 1, 4096, NULL, false},
    {"text_dim", TS_OPTION_INT, FIELD(text_dim), "512", "width of the text context", 1, 16384, NULL, false},
    {"batch", TS_OPTION_INT, FIELD(batch), "1", "samples of a step", 1, 4096, NULL, false},
    {"recompute", TS_OPTION_CHOICE, FIELD(recompute), "none", "what a training step computes twice", 0, 0, RECOMPUTES, false},
    {"gradients", TS_OPTION_CHOICE, FIELD(gradients), "f32", "what gradients are kept and sent in by a step in bf16", 0, 0, GRADIENTS, false},
    {0},
};
// clang-format on
#undef FIELD

typedef enum bench_work { TRAIN, INFER, GUIDE } bench_work;  // a training step, a forward pass, a guided denoising step
static const char *const WORKS[] = {"train", "infer", "guide"};

typedef struct bench {
    const ts_kernels *kernels;
    bench_work work;
    const ts_mesh *mesh;    // or NULL
    ts_velocity *velocity;  // GUIDE
    ts_recompute recompute;
    ts_shape latent_shape, context_shape;
    ts_params *params;
    ts_dit *dit;
    ts_tape *tape;
    ts_optimizer *optimizer;
    float *latent, *context, *target;  // these on the device
    double *sums;                      // .. and the loss and the squares of the gradients
    float *timestep;
    int64_t steps;  // optimizer steps taken
} bench;

static int bench_open(bench *b, const bench_shape *s, const ts_kernels *kernels, ts_dtype dtype, bench_work work,
                      const ts_mesh *mesh) {
    const ts_dit_config config = {
        .patch = {1, 2, 2},
        .heads = s->heads,
        .head_dim = s->head_dim,
        .in_channels = s->channels,
        .out_channels = s->channels,
        .text_dim = s->text_dim,
        .freq_dim = s->freq_dim,
        .ffn_dim = s->ffn_dim,
        .layers = s->layers,
        .rope_max_positions = 1024,
        .text_rows = s->text_rows,
        .eps = 1e-6,
        .cross_attention_norm = true,
    };
    const ts_optimizer_params adamw = {
        .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .average = true};
    const bool train = work == TRAIN;
    *b = (bench){.kernels = kernels, .work = work, .mesh = mesh, .recompute = (ts_recompute)s->recompute};
    b->latent_shape = TS_SHAPE(s->batch, s->frames, s->height, s->width, s->channels);
    b->context_shape = TS_SHAPE(s->batch, s->text_rows, s->text_dim);
    TS_TRY(ts_params_open(&b->params));
    b->params->mesh = mesh;
    b->params->kernels = kernels;
    TS_TRY(ts_dit_open(&b->dit, &config, b->params, ""));
    TS_TRY(ts_params_allocate(b->params, dtype, false));
    TS_TRY(ts_dit_init(b->dit, 1));
    TS_TRY(ts_params_refresh_operands(b->params));
    TS_TRY(ts_tape_open(&b->tape, kernels, train ? TS_TAPE_RECORD : TS_TAPE_RUN, dtype));
    if (work == GUIDE) {
        const ts_velocity_params velocity = {
            .dit = b->dit, .tape = b->tape, .cfg = ts_mesh_axis(mesh, TS_AXIS_CFG), .guided = true};
        TS_TRY(ts_velocity_open(&b->velocity, &velocity));
    }
    if (train) {
        TS_TRY(ts_optimizer_open(&b->optimizer, b->params, kernels, &adamw));
        TS_TRY(ts_params_allocate_grad(b->params, s->gradients && dtype == TS_BF16 ? TS_BF16 : TS_F32));
    }
    b->latent = ts_bench_numbers(kernels, ts_shape_count(b->latent_shape), 1);
    b->target = ts_bench_numbers(kernels, ts_shape_count(b->latent_shape), 2);
    b->context = ts_bench_numbers(kernels, ts_shape_count(b->context_shape), 3);
    b->sums = kernels->device->allocate(2 * sizeof *b->sums);
    b->timestep = ts_calloc((size_t)s->batch, sizeof *b->timestep);
    if (!b->latent || !b->target || !b->context || !b->sums || !b->timestep) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < s->batch; i++) {
        b->timestep[i] = 500.0f;
    }
    return TS_OK;
}

static void bench_close(bench *b) {
    ts_optimizer_close(&b->optimizer);
    ts_velocity_close(&b->velocity);
    ts_tape_close(&b->tape);
    ts_dit_close(&b->dit);
    ts_params_close(&b->params);
    const ts_device *device = b->kernels->device;
    device->release(b->latent);
    device->release(b->target);
    device->release(b->context);
    device->release(b->sums);
    free(b->timestep);
}

// One step of Euler with both branches; the latents stay as they are.
static int guided_step(bench *b) {
    const int64_t *dim = b->latent_shape.dim, numbers = ts_shape_count(b->latent_shape);
    const ts_device *device = b->kernels->device;
    ts_velocity_batch batch = {
        .n = dim[0], .frames = dim[1], .height = dim[2], .width = dim[3], .levels = 1, .contexts = 1};
    const float *velocity;
    TS_TRY(ts_velocity_begin(b->velocity, &batch));
    TS_TRY(device->copy(batch.latent, b->latent, (size_t)numbers * sizeof *b->latent));
    for (int i = 0; i < TS_BRANCHES; i++) {
        const size_t bytes = batch.context[i] ? (size_t)ts_shape_count(b->context_shape) * sizeof *b->context : 0;
        TS_TRY(device->copy(batch.context[i], b->context, bytes));
    }
    memcpy(batch.timestep, b->timestep, (size_t)dim[0] * sizeof *b->timestep);
    for (int64_t i = 0; i < dim[0] * dim[1]; i++) {
        batch.guidance[i] = 3.0f;
    }
    TS_TRY(ts_velocity_take(b->velocity, &batch, &velocity));
    const ts_combine euler = {.n = numbers, .terms = 2, .c = {1.0, -0.5}, .x = {b->latent, velocity}, .out = b->target};
    return b->kernels->combine(&euler);
}

static int grad_ready(void *user, int group) {
    return ts_zero_group_done(((const bench *)user)->optimizer->zero, group, true);
}

static int training_step(bench *b, ts_dit_input input) {
    ts_var *velocity;
    const double scale = 1.0 / (double)ts_shape_count(b->latent_shape);
    TS_TRY(ts_zero_begin(b->optimizer->zero));
    input.grad_ready = grad_ready;
    input.grad_user = b;
    TS_TRY(ts_token_loss(b->tape, b->dit, &input,
                         &(ts_token_target){b->target, NULL, b->latent_shape.dim[1], scale, b->sums}, &velocity));
    TS_TRY(ts_tape_backward(b->tape, velocity, NULL));
    TS_TRY(ts_optimizer_reduce(b->optimizer, b->sums + 1));
    return ts_optimizer_step(b->optimizer, ++b->steps, 1e-4, 1.0, 0.999);
}

static int one_call(const void *context) {
    bench *b = *(bench *const *)context;
    if (b->work == GUIDE) {
        return guided_step(b);
    }
    ts_tape_reset(b->tape);
    const ts_dit_input input = {
        .latent = ts_tape_input(b->tape, (ts_tensor){TS_F32, b->latent_shape, b->latent}, false),
        .context = ts_tape_input(b->tape, (ts_tensor){TS_F32, b->context_shape, b->context}, false),
        .timestep = b->timestep,
        .timesteps_per_sample = 1,
        .recompute = b->recompute,
    };
    if (b->work == INFER) {
        (void)ts_dit_forward(b->tape, b->dit, &input);
        return ts_tape_status(b->tape);
    }
    return training_step(b, input);
}

// ---- the targets

static const struct {
    const char *name;
    ts_dtype dtype;
} precisions[] = {{"bf16", TS_BF16}, {"f32", TS_F32}};

// What a step sends: one more of them, outside of the timing and its own messages. Collective.
static int count_traffic(bench *b, json_t *item) {
    ts_traffic traffic;
    ts_mesh_reset_counters(b->mesh);
    TS_TRY(one_call(&b));
    TS_TRY(ts_mesh_traffic(b->mesh, &traffic));
    json_object_set_new(item, "traffic_of_a_step", ts_traffic_json(&traffic));
    return TS_OK;
}

static int report_step(const ts_bench_params *params, bench *b, const bench_shape *shape, int precision,
                       ts_bench_time time, double peak, uint64_t growths, json_t *report) {
    const double forward = ts_dit_flops(ts_dit_get_config(b->dit), shape->frames, shape->height, shape->width);
    static const double passes[] = {[TRAIN] = 3.0, [INFER] = 1.0, [GUIDE] = 2.0};
    const double data = b->mesh ? b->mesh->degree.data : 1.0;
    const double rate = passes[b->work] * forward * (double)shape->batch * data / time.median;
    const double tokens = (double)(shape->batch * shape->frames * (shape->height / 2) * (shape->width / 2)) * data;
    char name[16];
    snprintf(name, sizeof name, "%s%s", b->work == GUIDE ? "guided_" : "", precisions[precision].name);
    json_t *item = json_pack("{s:f, s:f, s:f, s:f, s:f, s:I, s:I}", "median_ms", 1e3 * time.median, "least_ms",
                             1e3 * time.least, "tokens_per_second", tokens / time.median, "model_gflops", 1e-9 * rate,
                             "share_of_peak", rate / peak, "memory_requests_in_timed_steps", (json_int_t)growths,
                             "activation_bytes", (json_int_t)ts_tape_get_stats(b->tape).peak_bytes);
    json_object_set_new(report, name, item);
    if (params->prints) {
        printf("%-5s %-4s  %8.2f ms median  %8.2f ms least  %8.0f tokens/s  %7.1f model GFLOP/s  %4.1f %% of peak  "
               "%llu memory requests\n",
               WORKS[b->work], precisions[precision].name, 1e3 * time.median, 1e3 * time.least, tokens / time.median,
               1e-9 * rate, 100.0 * rate / peak, (unsigned long long)growths);
    }
    return b->mesh ? count_traffic(b, item) : TS_OK;
}

static int time_precision(const ts_bench_params *params, const ts_bench_peak *peak, const bench_shape *shape,
                          int precision, bench_work work, const ts_mesh *mesh, json_t *report) {
    ts_comm *world = ts_mesh_axis(mesh, TS_AXIS_WORLD);
    bench b, *context = &b;
    ts_bench_time time;
    int status = bench_open(&b, shape, params->kernels, precisions[precision].dtype, work, mesh);
    status = ts_agree(world, status);
    const bool opened = status == TS_OK;
    for (int warm_up = 0; warm_up < 2 && !status; warm_up++) {  // the second merges what the first allocated
        status = one_call(&context);
    }
    if (!status) {
        const uint64_t before = ts_arena_system_calls(ts_tape_arena(b.tape));
        status = ts_bench_measure_together(world, one_call, &context, params->runs, &time);
        const uint64_t growths = ts_arena_system_calls(ts_tape_arena(b.tape)) - before;
        const double top = (precisions[precision].dtype == TS_BF16 ? peak->bf16 : peak->f32) * ts_comm_size(world);
        status = status ? status : report_step(params, &b, shape, precision, time, top, growths, report);
    }
    if (opened && status && ts_comm_size(world) > 1) {
        ts_comm_abort(world, status);  // the others wait for this rank inside a step
    }
    bench_close(&b);
    return status;
}

// Each kind of work in both precisions.
static int time_works(const ts_bench_params *params, const ts_bench_peak *peak, const bench_shape *shape,
                      bench_work first, bench_work last, const ts_mesh *mesh, json_t *report) {
    for (int precision = 0; precision < 2; precision++) {
        for (int work = (int)first; work <= (int)last; work++) {
            if (!params->filter || strstr(precisions[precision].name, params->filter)) {
                TS_TRY(time_precision(params, peak, shape, precision, (bench_work)work, mesh, report));
            }
        }
    }
    return TS_OK;
}

static int read_shape(const ts_bench_params *params, bench_shape *shape, ts_arena *arena) {
    TS_TRY(ts_options_default(shape_options, shape, arena));
    if (params->config) {
        TS_TRY(ts_options_read_yaml(shape_options, shape, arena, params->config));
    }
    if (shape->head_dim % 2 || shape->freq_dim % 2) {
        return TS_FAIL(TS_EUSAGE, "%s: head_dim and freq_dim must be even: sines and cosines come in pairs",
                       params->config);
    }
    return TS_OK;
}

// The ranks together on the mesh that is asked for.
static int over_mesh(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, const bench_shape *shape,
                     bool train, json_t *report) {
    ts_degrees degree;
    ts_mesh mesh;
    TS_TRY(ts_degrees_read(&degree, params->mesh, shape->heads, ts_comm_size(world)));
    if (train && degree.cfg > 1) {
        return TS_FAIL(TS_EUSAGE, "mesh '%s': training has no branches of guidance to share", params->mesh);
    }
    TS_TRY(ts_sample_check(&degree, 3.0));
    TS_TRY(ts_mesh_open(&mesh, world, &degree));
    mesh.reproducible = params->reproducible;
    const bench_work first = train ? TRAIN : degree.cfg > 1 ? GUIDE : INFER;
    const int status = time_works(params, peak, shape, first, train ? TRAIN : GUIDE, &mesh, report);
    ts_mesh_close(&mesh);
    return status;
}

static int bench_steps(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, bool train,
                       json_t *report) {
    bench_shape shape;
    ts_arena *arena = NULL;
    TS_TRY(ts_arena_open(&arena, "bench shape", 1 << 16, false));
    int status = read_shape(params, &shape, arena);
    if (!status) {
        status = params->mesh
                     ? over_mesh(world, params, peak, &shape, train, report)
                     : time_works(params, peak, &shape, train ? TRAIN : INFER, train ? TRAIN : GUIDE, NULL, report);
    }
    ts_arena_close(&arena);
    return status;
}

int ts_bench_train(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, json_t *report) {
    return bench_steps(world, params, peak, true, report);
}

int ts_bench_infer(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, json_t *report) {
    return bench_steps(world, params, peak, false, report);
}
