// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "core/comm/backend.h"
#include "train/token_loss.h"

// ---- opening

static int open_mesh(ts_trainer *t) {
    ts_degrees degree;
    TS_TRY(ts_train_config_degrees(t->config, ts_comm_size(t->world), &degree));
    TS_TRY(ts_mesh_open(&t->mesh, t->world, &degree));
    t->data = t->mesh.axis[TS_AXIS_DATA];
    return TS_OK;
}

static int check_buckets(const ts_trainer *t, const ts_dit_config *dit) {
    const int64_t *patch = dit->patch, positions = dit->rope_max_positions, channels = dit->in_channels;
    if (patch[0] != 1) {
        return TS_FAIL(TS_EUSAGE,
                       "model.patch %lldx%lldx%lld: the first number must be 1: every latent frame has its own noise "
                       "level",
                       (long long)patch[0], (long long)patch[1], (long long)patch[2]);
    }
    for (int b = 0; b < ts_dataset_buckets(t->dataset); b++) {
        const ts_shape shape = ts_dataset_bucket_shape(t->dataset, b);
        char text[80];
        ts_shape_text(shape, text, sizeof text);
        if (shape.dim[3] != channels) {
            return TS_FAIL(TS_EINPUT, "%s: latents %s, but the model's codec has %lld channels; ingest again",
                           t->config->data, text, (long long)channels);
        }
        if (shape.dim[1] % patch[1] || shape.dim[2] % patch[2]) {
            return TS_FAIL(TS_EUSAGE,
                           "%s: latents %s do not divide by model.patch %lldx%lldx%lld; choose another patch",
                           t->config->data, text, (long long)patch[0], (long long)patch[1], (long long)patch[2]);
        }
        if (shape.dim[0] > positions || shape.dim[1] / patch[1] > positions || shape.dim[2] / patch[2] > positions) {
            return TS_FAIL(TS_EUSAGE,
                           "%s: latents %s make more tokens along an axis than model.rope_max_positions=%lld; raise it",
                           t->config->data, text, (long long)positions);
        }
        if (shape.dim[0] > TS_OBJECTIVE_MAX_FRAMES) {
            return TS_FAIL(TS_EINPUT, "%s: latents %s; at most %d latent frames can be trained", t->config->data, text,
                           TS_OBJECTIVE_MAX_FRAMES);
        }
    }
    return TS_OK;
}

// The largest need of any rank decides: that of rank 0, whose parts are never smaller than another's, in the process
// that is the largest already. So all recompute alike, and send alike; then each counts its own.
static int plan_memory(ts_trainer *t, const ts_dit_config *dit, const ts_text_config *text) {
    const int buckets = ts_dataset_buckets(t->dataset);
    ts_shape *latent = ts_calloc((size_t)buckets, sizeof *latent);
    ts_mesh first = {0};
    int status = latent ? ts_mesh_imagine(&first, &t->mesh.degree, 0) : TS_ERESOURCE;
    for (int b = 0; latent && b < buckets; b++) {
        latent[b] = ts_dataset_bucket_shape(t->dataset, b);
    }
    ts_memory_run run = {.config = t->config,
                         .dit = *dit,
                         .text = *text,
                         .mesh = &first,
                         .kernels = t->kernels,
                         .on_device = !t->kernels->device->is_host,
                         .latent = latent,
                         .latents = buckets,
                         .clips = ts_dataset_clips(t->dataset),
                         .process = t->limit.process};
    if (!status) {
        status = ts_memory_plan_make(&t->memory, &run, t->limit.available);
    }
    if (!status) {
        run.mesh = &t->mesh;
        run.process = ts_memory_resident();
        status = ts_memory_count(&t->memory, &run, t->memory.recompute);
    }
    ts_mesh_close(&first);
    free(latent);
    return status;
}

// What generation starts from: the first bucket's size.
static ts_model_defaults model_defaults(const ts_trainer *t, const ts_codec *codec) {
    const ts_codec_info info = ts_codec_get_info(codec);
    const ts_shape shape = ts_dataset_bucket_shape(t->dataset, 0);
    return (ts_model_defaults){
        .width = shape.dim[2] * info.space_factor,
        .height = shape.dim[1] * info.space_factor,
        .frames = 1 + (shape.dim[0] - 1) * info.time_factor,
        .fps = ts_dataset_fps(t->dataset, 0),
        .flow_shift = t->config->sample.shift,
        .guidance = t->config->sample.guidance,
        .steps = t->config->sample.steps,
    };
}

// A model must read the latents and words of this data set as they were written.
static bool reads_data_set(const ts_trainer *t) {
    const ts_manifest *manifest = ts_dataset_manifest(t->dataset);
    return ts_codec_get_info(t->model->codec).fingerprint == manifest->codec_fingerprint &&
           ts_tokenizer_fingerprint(t->model->tokenizer) == manifest->tokenizer_fingerprint;
}

static int new_model(ts_trainer *t) {
    ts_tokenizer *tokenizer = NULL;
    ts_codec *codec = NULL;
    char path[4096];
    int status = TS_OK;
    TS_TRY_GOTO(status, ts_path_join(path, sizeof path, t->config->data, "tokenizer"), failed);
    TS_TRY_GOTO(status, ts_tokenizer_load(&tokenizer, path), failed);
    TS_TRY_GOTO(status, ts_path_join(path, sizeof path, t->config->data, "codec"), failed);
    TS_TRY_GOTO(status, ts_codec_load(&codec, path), failed);
    const ts_model_params params = {
        .dit = ts_train_config_dit(t->config, ts_codec_get_info(codec).channels),
        .text = ts_train_config_text(t->config, ts_tokenizer_vocabulary(tokenizer)),
        .defaults = model_defaults(t, codec),
        .mesh = &t->mesh,
        .kernels = t->kernels,
        .operand_dtype = ts_train_config_operands(t->config),
        .seed = (uint64_t)t->config->seed,
    };
    TS_TRY_GOTO(status, check_buckets(t, &params.dit), failed);
    TS_TRY_GOTO(status, plan_memory(t, &params.dit, &params.text), failed);
    TS_TRY_GOTO(status, ts_model_new(&t->model, &params, tokenizer, codec), failed);
    if (!reads_data_set(t)) {
        return TS_FAIL(TS_EINPUT, "%s: its codec or tokenizer is not the one that its manifest names; ingest again",
                       t->config->data);
    }
    return TS_OK;
failed:
    ts_tokenizer_close(&tokenizer);
    ts_codec_close(&codec);
    return status;
}

static int load_model(ts_trainer *t) {
    ts_model_params params = {0};
    TS_TRY(ts_model_describe(&params, t->config->init));
    TS_TRY(check_buckets(t, &params.dit));
    TS_TRY(plan_memory(t, &params.dit, &params.text));
    TS_TRY(ts_model_load(&t->model, t->config->init, t->kernels, &t->mesh, ts_train_config_operands(t->config), true));
    if (!reads_data_set(t)) {
        return TS_FAIL(TS_EINPUT, "%s: its codec or tokenizer is not the one of %s; ingest the corpus with the model's",
                       t->config->init, t->config->data);
    }
    t->model->defaults = model_defaults(t, t->model->codec);
    return TS_OK;
}

static int open_model(ts_trainer *t) {
    TS_TRY(t->config->init ? load_model(t) : new_model(t));
    for (int64_t i = 0; i < t->model->params->count; i++) {
        ts_param *param = t->model->params->item[i];
        if (!strncmp(param->name, "text_encoder.", 13)) {
            param->lr_scale *= (float)t->config->train.lr_text;
        }
    }
    return ts_params_refresh_operands(t->model->params);
}

static int open_loader(ts_trainer *t) {
    const ts_train_config *c = t->config;
    const int status = ts_loader_open(&t->loader, t->dataset,
                                      &(ts_loader_params){.batch = c->train.batch,
                                                          .seed = (uint64_t)c->seed,
                                                          .rank = ts_comm_rank(t->data),
                                                          .size = ts_comm_size(t->data),
                                                          .held_out = c->validate.clips,
                                                          .device = t->kernels->device});
    return status ? ts_fail_context(status, "%s", c->data) : TS_OK;
}

// This and the next need no other rank.
static int open_data(ts_trainer *t) {
    TS_TRY(ts_dataset_open(&t->dataset, t->config->data, false));
    if (ts_dataset_clips(t->dataset) == 0) {
        return TS_FAIL(TS_EINPUT, "%s: holds no clips; ingest a corpus first", t->config->data);
    }
    return open_loader(t);
}

// What a step sends to the device and reads from it.
static int open_exchange(ts_trainer *t) {
    const ts_device *device = t->kernels->device;
    const int64_t local = ts_split(t->config->train.batch, ts_comm_size(t->data), ts_comm_rank(t->data)).count;
    const size_t sums = (size_t)(1 + local) * sizeof(double);
    int64_t largest = 0;
    for (int b = 0; b < ts_dataset_buckets(t->dataset); b++) {
        const int64_t elements = ts_shape_count(ts_dataset_bucket_shape(t->dataset, b));
        largest = elements > largest ? elements : largest;
    }
    t->sums = device->allocate(sums);
    t->seen = ts_malloc(sums);
    t->bits = device->is_host ? NULL : device->allocate((size_t)(local * largest) * sizeof *t->bits);
    return t->sums && t->seen && (t->bits || device->is_host) ? TS_OK : TS_ERESOURCE;
}

static int open_parts(ts_trainer *t) {
    const ts_train_config *c = t->config;
    TS_TRY(open_model(t));
    TS_TRY(open_exchange(t));
    const ts_optimizer_params optimizer = ts_train_config_optimizer(c);
    TS_TRY(ts_optimizer_open(&t->optimizer, t->model->params, t->kernels, &optimizer));
    TS_TRY(ts_params_allocate_grad(t->model->params, ts_train_config_gradients(c)));
    TS_TRY(ts_tape_open(&t->tape, t->kernels, TS_TAPE_RECORD, ts_train_config_operands(c)));
    return ts_tape_reserve(t->tape, &t->memory.room);
}

static int64_t tokens_of(const ts_trainer *t, ts_shape latent) {
    const int64_t *patch = ts_dit_get_config(t->model->dit)->patch, *dim = latent.dim;
    return dim[0] / patch[0] * (dim[1] / patch[1]) * (dim[2] / patch[2]);
}

static int open_validation(ts_trainer *t) {
    const ts_train_config *c = t->config;
    int64_t largest = 0;
    for (int i = 0; i < ts_dataset_buckets(t->dataset); i++) {
        const int64_t tokens = tokens_of(t, ts_dataset_bucket_shape(t->dataset, i));
        largest = tokens > largest ? tokens : largest;
    }
    ts_validation_params params = {
        .levels = c->validate.levels,
        .seed = (uint64_t)c->seed,
        .batch = ts_validation_batch(c, &t->mesh, !t->kernels->device->is_host, largest),
    };
    memcpy(params.pattern, t->objective.pattern, sizeof params.pattern);
    params.count = ts_loader_validation(t->loader, &params.clips);
    return params.count ? ts_validation_open(&t->validation, t->dataset, &params, &t->mesh) : TS_OK;
}

int ts_trainer_open(ts_trainer **out, const ts_train_config *config, ts_comm *world) {
    ts_trainer *t = ts_calloc(1, sizeof *t);
    TS_TRY(ts_agree(world, t ? TS_OK : TS_ERESOURCE));
    t->config = config;
    t->world = world;
    t->objective = ts_objective_from_config(config);
    t->schedule = (ts_lr_schedule){.peak = config->train.lr,
                                   .warmup = config->train.warmup,
                                   .steps = config->train.steps,
                                   .final_share = config->train.final_lr_share,
                                   .constant = config->train.schedule == TS_DECAY_CONSTANT};
    int status = TS_OK;
    TS_TRY_GOTO(status, ts_backend_open(&t->kernels, world, ts_device_names[config->device]), failed);
    TS_TRY_GOTO(status, open_mesh(t), failed);
    TS_TRY_GOTO(status, ts_agree(world, open_data(t)), failed);
    TS_TRY_GOTO(status, ts_memory_share(world, config, t->kernels, &t->limit), failed);
    TS_TRY_GOTO(status, ts_agree(world, open_parts(t)), failed);
    TS_TRY_GOTO(status, open_validation(t), failed);
    TS_TRY_GOTO(status, ts_agree(world, ts_trainer_seek(t)), failed);
    *out = t;
    return TS_OK;
failed:
    ts_trainer_close(&t);
    return status;
}

void ts_trainer_close(ts_trainer **trainer) {
    ts_trainer *t = *trainer;
    if (t) {
        ts_checkpoint_save_close(&t->saving);
        if (t->kernels) {
            t->kernels->device->release(t->sums);
            t->kernels->device->release(t->bits);
        }
        free(t->seen);
        ts_validation_close(&t->validation);
        ts_tape_close(&t->tape);
        ts_optimizer_close(&t->optimizer);
        ts_model_close(&t->model);
        ts_loader_close(&t->loader);
        ts_dataset_close(&t->dataset);
        ts_mesh_close(&t->mesh);
        free(t);
        *trainer = NULL;
    }
}

int ts_trainer_seek(ts_trainer *t) {
    return ts_loader_seek(t->loader, t->cursor);
}

// ---- the step

// A block's gradients of one micro-batch are done: with the last one they start to travel.
static int grad_ready(void *user, int group) {
    const ts_trainer *t = user;
    return ts_zero_group_done(t->optimizer->zero, group, t->last_micro_batch);
}

// Items of a batch from number `first` on, where the device has them.
static ts_clean clean_of(const ts_trainer *t, const ts_batch *batch, int64_t first, int64_t count) {
    const int64_t at = first * ts_shape_count(batch->shape);
    return (ts_clean){.count = count,
                      .shape = batch->shape,
                      .latent = t->bits ? (const void *)(t->bits + at) : batch->latent + at,
                      .dtype = t->bits ? TS_BF16 : TS_F32,
                      .caption = batch->caption + first,
                      .first = (uint64_t)(batch->first_sample + first)};
}

// Forward, loss and backward of local items [first, first + count) of a batch. *loss, on the device, is `=`.
static int micro_step(ts_trainer *t, const ts_batch *batch, int64_t first, int64_t count, double scale, double *loss) {
    const int64_t frames = batch->shape.dim[0];
    const ts_clean clean = clean_of(t, batch, first, count);
    ts_noisy noisy;
    ts_tape_reset(t->tape);
    TS_TRY(ts_objective_prepare(&t->objective, t->tape, &clean, &noisy));
    const ts_shape shape = TS_SHAPE(count, frames, batch->shape.dim[1], batch->shape.dim[2], batch->shape.dim[3]);
    const ts_dit_input input = {
        .latent = ts_tape_input(t->tape, (ts_tensor){TS_F32, shape, noisy.x}, false),
        .context = ts_model_encode_text(t->tape, t->model, noisy.prompt, count),
        .timestep = noisy.timestep,
        .timesteps_per_sample = frames,
        .recompute = t->memory.recompute,
        .grad_ready = grad_ready,
        .grad_user = t,
    };
    ts_var *velocity;
    TS_TRY(ts_token_loss(t->tape, t->model->dit, &input,
                         &(ts_token_target){noisy.target, noisy.weight, frames, scale, loss}, &velocity));
    TS_TRY(ts_tape_backward(t->tape, velocity, NULL));
    return ts_zero_group_done(t->optimizer->zero, 0, t->last_micro_batch);
}

// Gradients of this rank's share of the batch, normalised by the elements that carry loss in the whole batch: their
// sum over the world is the gradient of the global mean. The losses go to t->sums; *parts: their number.
static int local_gradients(ts_trainer *t, const ts_batch *batch, int64_t *parts) {
    const int64_t frames = batch->shape.dim[0];
    const int64_t loss_frames =
        ts_objective_loss_frames(&t->objective, (uint64_t)batch->cursor.samples, batch->global_count, frames);
    const double scale = 1.0 / ((double)loss_frames * (double)(ts_shape_count(batch->shape) / frames));
    const int64_t most = ts_micro_batch(t->config, &t->mesh, t->bits != NULL, batch->count, tokens_of(t, batch->shape));
    *parts = 0;
    TS_TRY(ts_zero_begin(t->optimizer->zero));
    for (int64_t first = 0, count; first < batch->count; first += count) {
        count = batch->count - first < most ? batch->count - first : most;
        t->last_micro_batch = first + count == batch->count;
        TS_TRY(micro_step(t, batch, first, count, scale, t->sums + 1 + (*parts)++));
    }
    return TS_OK;
}

// Sums gradients over ranks, and with one message their norm and the loss of all micro-batches, to which each token
// came once; the wishes to stop ride along, and how far a checkpoint is.
static int reduce(ts_trainer *t, ts_stop wish, int64_t parts, ts_step_result *out) {
    double shared[5] = {0, wish == TS_STOP_TIME, wish == TS_STOP_SIGNAL};
    TS_TRY(ts_optimizer_reduce(t->optimizer, t->sums));
    TS_TRY(t->kernels->device->download(t->seen, t->sums, (size_t)(1 + parts) * sizeof *t->sums));
    for (int64_t i = 0; i < parts; i++) {
        shared[0] += t->seen[1 + i];
    }
    shared[3] = t->seen[0];
    shared[4] = t->saving && !ts_checkpoint_save_idle(t->saving);
    TS_TRY(ts_all_reduce(t->world, shared, 5, TS_F64, TS_SUM));
    out->loss = shared[0];
    out->stop = shared[2] > 0 ? TS_STOP_SIGNAL : shared[1] > 0 ? TS_STOP_TIME : TS_STOP_NONE;
    out->grad_norm = sqrt(shared[3]);
    out->saving_idle = t->saving && shared[4] == 0;
    return TS_OK;
}

static int update(ts_trainer *t, int64_t step, ts_step_result *out) {
    out->lr = ts_lr_at(&t->schedule, step);
    out->finite = isfinite(out->loss) && isfinite(out->grad_norm);
    if (!out->finite) {
        return TS_OK;
    }
    const double average_decay = ts_ema_decay_at(t->config->train.ema_decay, t->config->train.ema_warmup, step);
    return ts_optimizer_step(t->optimizer, step, out->lr, ts_clip_scale(out->grad_norm, t->config->train.clip),
                             average_decay);
}

static void count_work(const ts_trainer *t, const ts_batch *batch, ts_step_result *out) {
    const int64_t *dim = batch->shape.dim;
    out->samples = batch->global_count;
    out->tokens = batch->global_count * tokens_of(t, batch->shape);
    // The backward pass of a matrix product is two of them; recomputed work is not counted.
    out->flops =
        3.0 * (double)batch->global_count * ts_dit_flops(ts_dit_get_config(t->model->dit), dim[0], dim[1], dim[2]);
}

int ts_trainer_step(ts_trainer *t, ts_stop wish, ts_step_result *out) {
    ts_batch batch;
    int64_t parts;
    *out = (ts_step_result){0};
    TS_TRY(ts_loader_next(t->loader, &batch));
    count_work(t, &batch, out);
    if (batch.bits) {
        const size_t bytes = (size_t)(batch.count * ts_shape_count(batch.shape)) * sizeof *t->bits;
        TS_TRY(t->kernels->device->upload_held(t->bits, batch.bits, bytes));
    }
    TS_TRY(local_gradients(t, &batch, &parts));
    TS_TRY(reduce(t, wish, parts, out));
    const double before = ts_clock_seconds();
    ts_checkpoint_save_settle(t->saving);
    out->stall = ts_clock_seconds() - before;
    TS_TRY(update(t, t->step + 1, out));
    if (out->finite) {
        t->step++;
        t->cursor = batch.next;
    }
    return TS_OK;
}

int ts_trainer_validate(ts_trainer *t, bool all_patterns, ts_validation_result *out) {
    ts_checkpoint_save_settle(t->saving);
    TS_TRY(ts_optimizer_swap_average(t->optimizer));
    TS_TRY(ts_validation_run(t->validation, t->model, t->tape, all_patterns, out));
    return ts_optimizer_swap_average(t->optimizer);
}
