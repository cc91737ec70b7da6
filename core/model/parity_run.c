// SPDX-License-Identifier: Apache-2.0
// Parity: running the transformer or the text encoder on reference inputs.
#include <stdlib.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status.h"
#include "core/model/dit.h"
#include "core/model/parity_private.h"
#include "core/model/text.h"
#include "core/model/weights.h"
#include "core/nn/loss.h"

enum { MAX_CONFIG_BYTES = 1 << 20 };

// ---- transformer

typedef struct transformer_io {
    ts_shape latent_shape;  // ours: [B, T, H, W, C]
    ts_shape target_shape;
    float *latent, *target;  // channels last; target NULL when there is none
    ts_shape context_shape, image_shape;
    float *context, *image;  // image NULL without the branch
    float *timestep;
    int64_t timesteps_per_sample;
} transformer_io;

// Reads a video [B, C, T, H, W] as [B, T, H, W, C].
static int read_video(ts_parity *p, const char *name, ts_shape *shape, float **out) {
    void *raw = NULL;
    ts_shape s;
    TS_TRY(ts_parity_read(p, name, 5, TS_F32, &s, &raw));
    const int64_t n = ts_shape_count(s);
    *out = ts_malloc((size_t)(n > 0 ? n : 1) * sizeof **out);
    if (*out && n > 0) {
        ts_channels_last(raw, *out, s.dim[0], s.dim[1], n / (s.dim[0] * s.dim[1]));
    }
    free(raw);
    *shape = TS_SHAPE(s.dim[0], s.dim[2], s.dim[3], s.dim[4], s.dim[1]);
    if (n == 0) {
        return TS_FAIL(TS_EINPUT, "%s: tensor '%s' is empty", p->io_path, name);
    }
    return *out ? 0 : TS_ERESOURCE;
}

static int read_transformer_io(ts_parity *p, const ts_dit_config *config, transformer_io *io) {
    TS_TRY(read_video(p, "hidden_states", &io->latent_shape, &io->latent));
    const int64_t batch = io->latent_shape.dim[0];
    const ts_comm *axis = ts_mesh_axis(&p->mesh, TS_AXIS_DATA);
    p->batch = batch;
    p->samples = ts_split(batch, ts_comm_size(axis), ts_comm_rank(axis));
    void *data = NULL;
    ts_shape shape;
    TS_TRY(ts_parity_read(p, "encoder_hidden_states", 3, TS_F32, &io->context_shape, &data));
    io->context = data;
    TS_TRY(ts_parity_read(p, "timestep", 0, TS_F32, &shape, &data));
    io->timestep = data;
    const int64_t count = ts_shape_count(shape);
    if (count < batch || count % batch) {
        return TS_FAIL(TS_EINPUT, "%s: %lld timesteps for %lld samples", p->io_path, (long long)count,
                       (long long)batch);
    }
    io->timesteps_per_sample = count / batch;
    if (config->image_dim) {
        TS_TRY(ts_parity_read(p, "encoder_hidden_states_image", 3, TS_F32, &shape, &data));
        io->image = data;
        // First and last image come as two items of one sample.
        io->image_shape = TS_SHAPE(batch, shape.dim[0] * shape.dim[1] / batch, shape.dim[2]);
    }
    if (ts_safetensors_find(p->io, "target")) {
        TS_TRY(read_video(p, "target", &io->target_shape, &io->target));
    }
    return 0;
}

static void free_transformer_io(transformer_io *io) {
    free(io->latent);
    free(io->target);
    free(io->context);
    free(io->image);
    free(io->timestep);
}

static int compare_parameter_gradient(ts_parity *p, const ts_param *param) {
    float *whole = NULL;
    int status = ts_parity_whole_gradient(p, param, &whole);
    if (!status) {
        status = ts_parity_gradient(p, param->name, whole, param->whole);
    }
    free(whole);
    return status;
}

static int compare_parameter_gradients(ts_parity *p, const ts_params *params) {
    for (int64_t i = 0; i < ts_safetensors_count(p->grads); i++) {
        const char *name = ts_safetensors_at(p->grads, i)->name;
        const ts_param *param = ts_params_find(params, name);
        if (param) {
            TS_TRY(compare_parameter_gradient(p, param));
        } else if (strncmp(name, "__input.", 8) != 0) {
            return TS_FAIL(TS_EINPUT, "%s: '%s' is no parameter of this model", p->grads_path, name);
        }
    }
    return 0;
}

static int compare_input_gradient(ts_parity *p, const char *name, const ts_var *input) {
    const size_t bytes = ts_tensor_bytes(&input->value);
    float *whole = NULL, *own = ts_malloc(bytes);
    ts_shape all;
    int status = own ? p->kernels->device->download(own, input->grad, bytes) : TS_ERESOURCE;
    if (!status) {
        status = ts_parity_whole(p, PARITY_PARTIAL, own, input->value.shape, &all, &whole);
    }
    if (!status) {
        status = ts_parity_gradient(p, name, whole, all);
    }
    free(whole);
    free(own);
    return status;
}

static int compare_loss(ts_parity *p, double loss) {
    ts_shape shape;
    void *reference = NULL;
    TS_TRY(ts_all_reduce(p->world, &loss, 1, TS_F64, TS_SUM));
    if (!ts_safetensors_find(p->io, "loss")) {
        return 0;
    }
    TS_TRY(ts_parity_read(p, "loss", 0, TS_F32, &shape, &reference));
    const bool single = ts_shape_count(shape) == 1;
    const float ours = (float)loss;
    if (single) {
        ts_parity_row(p, "loss", &ours, reference, 1, false);
    }
    free(reference);
    return single ? 0 : TS_FAIL(TS_EINPUT, "%s: tensor 'loss' must be a single number", p->io_path);
}

// This rank's samples of a tensor of all, on the device.
static float *own_numbers(const ts_parity *p, ts_tape *tape, const float *data, ts_shape shape) {
    const int64_t size = ts_shape_count(shape) / p->batch;
    return ts_tape_upload(tape, data + p->samples.first * size, (size_t)(p->samples.count * size) * sizeof *data);
}

static ts_var *own_samples(const ts_parity *p, ts_tape *tape, const float *data, ts_shape shape) {
    float *own = own_numbers(p, tape, data, shape);
    shape.dim[0] = p->samples.count;
    return ts_tape_input(tape, (ts_tensor){TS_F32, shape, own}, true);
}

// This rank's part of the loss mean((sample - target)^2), that of its own tokens; sets velocity's gradient.
static int own_loss(ts_parity *p, ts_tape *tape, const ts_dit *dit, const transformer_io *io, ts_shape video,
                    ts_var *velocity, double *loss) {
    const int64_t features = ts_dit_token_features(dit);
    const float *target = own_numbers(p, tape, io->target, io->target_shape);
    float *own = ts_arena_alloc(ts_tape_arena(tape), (size_t)(p->tokens.rows.count * features) * sizeof *own);
    double *sum = ts_arena_alloc(ts_tape_arena(tape), sizeof *sum);
    if (!target || !own || !sum) {
        return TS_ERESOURCE;
    }
    video.dim[4] = io->target_shape.dim[4];
    TS_TRY(ts_dit_take_tokens(tape, dit, video, target, own));
    const ts_velocity_loss mean = {.target = own,
                                   .rows = p->tokens.rows.count,
                                   .scale = 1.0 / (double)ts_shape_count(io->target_shape),
                                   .loss = sum};
    TS_TRY(ts_nn_velocity_loss(tape, velocity, &mean));
    return p->kernels->device->download(loss, sum, sizeof *loss);
}

static int run_transformer(ts_parity *p, ts_tape *tape, const ts_dit *dit, const ts_params *params,
                           const transformer_io *io) {
    ts_var *latent = own_samples(p, tape, io->latent, io->latent_shape);
    ts_var *context = own_samples(p, tape, io->context, io->context_shape);
    const ts_dit_input input = {.latent = latent,
                                .context = context,
                                .image = io->image ? own_samples(p, tape, io->image, io->image_shape) : NULL,
                                .timestep = io->timestep + p->samples.first * io->timesteps_per_sample,
                                .timesteps_per_sample = io->timesteps_per_sample};
    TS_TRY(ts_tape_status(tape));
    const ts_shape video = latent->value.shape;
    double loss;
    p->tokens = ts_dit_tokens(dit, video);
    ts_var *velocity = ts_dit_forward_tokens(tape, dit, &input);
    ts_dit_collect(tape, dit, velocity, video);
    TS_TRY(ts_tape_status(tape));
    TS_TRY(p->status);
    if (io->target) {
        TS_TRY(own_loss(p, tape, dit, io, video, velocity, &loss));
        TS_TRY(compare_loss(p, loss));
    }
    if (!p->grads) {
        return 0;
    }
    TS_TRY(ts_tape_backward(tape, velocity, NULL));
    TS_TRY(compare_input_gradient(p, "__input.hidden_states", latent));
    TS_TRY(compare_input_gradient(p, "__input.encoder_hidden_states", context));
    return compare_parameter_gradients(p, params);
}

// The target must be a velocity of the latent.
static int check_target(const ts_parity *p, const ts_dit_config *config, const transformer_io *io) {
    ts_shape velocity = io->latent_shape;
    velocity.dim[4] = config->out_channels;
    if (!io->target && p->grads) {
        return TS_FAIL(TS_EINPUT, "%s: has no tensor 'target', without which there is no loss to take gradients of",
                       p->io_path);
    }
    if (io->target && !ts_shape_equal(io->target_shape, velocity)) {
        return TS_FAIL(TS_EINPUT, "%s: tensor 'target' has another shape than the model's output", p->io_path);
    }
    return 0;
}

static int open_mesh(ts_parity *p, int64_t heads) {
    ts_degrees degree;
    TS_TRY(ts_degrees_read(&degree, p->mesh_text, heads, ts_comm_size(p->world)));
    if (degree.cfg > 1) {
        return TS_FAIL(TS_EUSAGE, "--mesh %.80s: there is no guidance to split here; leave cfg at 1", p->mesh_text);
    }
    return ts_mesh_open(&p->mesh, p->world, &degree);
}

static int load_transformer(ts_parity *p, ts_params *params) {
    TS_TRY(ts_weights_check(params, "", p->model));
    TS_TRY(ts_params_allocate(params, p->operand_dtype, p->grads != NULL));
    TS_TRY(ts_weights_load(params, "", p->model));
    return ts_params_refresh_operands(params);
}

// What fails in the middle of a pass may fail on one rank, for which the others would wait.
static void end_alone(const ts_parity *p, int status) {
    if (ts_comm_size(p->world) > 1 && (status == TS_ERESOURCE || status == TS_EPEER || status == TS_EINTERNAL)) {
        ts_comm_abort(p->world, status);
    }
}

static int check_transformer(ts_parity *p, ts_tape *tape, ts_params *params, const json_t *json, const char *name) {
    ts_dit_config config;
    ts_dit *dit = NULL;
    transformer_io io = {0};
    TS_TRY(ts_dit_config_from_json(&config, json, name));
    TS_TRY(open_mesh(p, config.heads));
    params->mesh = &p->mesh;
    TS_TRY(ts_dit_open(&dit, &config, params, ""));
    int status = load_transformer(p, params);
    if (!status) {
        status = read_transformer_io(p, &config, &io);
    }
    if (!status) {
        status = check_target(p, &config, &io);
    }
    status = ts_agree(p->world, status);
    if (!status) {
        status = run_transformer(p, tape, dit, params, &io);
        end_alone(p, status);
    }
    free_transformer_io(&io);
    ts_dit_close(&dit);
    return status;
}

// ---- text encoder

// ids and counts from input_ids and attention_mask [B, rows], whose ones must come first.
static int read_text(ts_parity *p, int64_t *batch, int64_t *rows, int32_t **ids, int32_t **counts) {
    int64_t *wide = NULL, *mask = NULL;
    ts_shape shape, mask_shape;
    int status = ts_parity_read(p, "input_ids", 2, TS_I64, &shape, (void **)&wide);
    if (!status) {
        status = ts_parity_read(p, "attention_mask", 2, TS_I64, &mask_shape, (void **)&mask);
    }
    if (!status && !ts_shape_equal(shape, mask_shape)) {
        status = TS_FAIL(TS_EINPUT, "%s: input_ids and attention_mask differ in shape", p->io_path);
    }
    if (!status) {
        *batch = shape.dim[0];
        *rows = shape.dim[1];
        *ids = ts_calloc((size_t)(*batch * *rows) + 1, sizeof **ids);
        *counts = ts_calloc((size_t)*batch + 1, sizeof **counts);
        status = *ids && *counts ? 0 : TS_ERESOURCE;
    }
    for (int64_t i = 0; !status && i < *batch * *rows; i++) {
        const int64_t b = i / *rows;
        (*ids)[i] = wide[i] >= 0 && wide[i] <= INT32_MAX ? (int32_t)wide[i] : -1;
        if (mask[i] && (*counts)[b]++ != i % *rows) {
            status = TS_FAIL(TS_EINPUT, "%s: the ones of attention_mask must come first", p->io_path);
        }
    }
    free(mask);
    free(wide);
    return status;
}

static int check_text(ts_parity *p, ts_tape *tape, ts_params *params, const json_t *json, const char *name) {
    ts_text_config config;
    ts_text *text = NULL;
    int32_t *ids = NULL, *counts = NULL;
    int64_t batch = 0, rows = 0;
    if (p->grads) {
        return TS_FAIL(TS_EUSAGE, "--grads is for transformers; the text encoder is compared by its outputs");
    }
    ts_degrees degree;
    TS_TRY(ts_degrees_read(&degree, p->mesh_text, 1, ts_comm_size(p->world)));
    if (ts_comm_size(p->world) > 1) {
        return TS_FAIL(TS_EUSAGE, "the text encoder is not sharded: check it on one rank, not %d",
                       ts_comm_size(p->world));
    }
    TS_TRY(ts_text_config_from_json(&config, json, name));
    TS_TRY(ts_text_open(&text, &config, params, ""));
    int status = ts_weights_check(params, "", p->model);
    if (!status) {
        status = ts_params_allocate(params, p->operand_dtype, false);
    }
    if (!status) {
        status = ts_weights_load(params, "", p->model);
    }
    if (!status) {
        status = ts_params_refresh_operands(params);
    }
    if (!status) {
        status = read_text(p, &batch, &rows, &ids, &counts);
    }
    if (!status) {
        ts_text_forward(tape, text, ids, counts, batch, rows, false);
        status = ts_tape_status(tape) ? ts_tape_status(tape) : p->status;
    }
    free(counts);
    free(ids);
    ts_text_close(&text);
    return status;
}

// ---- which

static int check_component(ts_parity *p, ts_tape *tape, ts_params *params, const json_t *json, const char *name) {
    const char *kind = json_string_value(json_object_get(json, "_class_name"));
    if (!kind) {
        kind = json_string_value(json_array_get(json_object_get(json, "architectures"), 0));
    }
    if (kind && strcmp(kind, "WanTransformer3DModel") == 0) {
        return check_transformer(p, tape, params, json, name);
    }
    if (kind && strcmp(kind, "UMT5EncoderModel") == 0) {
        return check_text(p, tape, params, json, name);
    }
    return TS_FAIL(TS_EINPUT, "%s: names the model '%.60s'; WanTransformer3DModel and UMT5EncoderModel can be checked",
                   name, kind ? kind : "(none)");
}

static int open_and_check(ts_parity *p, ts_tape **tape, ts_params **params, const json_t *json, const char *name) {
    TS_TRY(ts_tape_open(tape, p->kernels, p->grads ? TS_TAPE_RECORD : TS_TAPE_RUN, p->operand_dtype));
    TS_TRY(ts_params_open(params));
    (*params)->kernels = p->kernels;
    ts_tape_set_probe(*tape, ts_parity_probe, p);
    return check_component(p, *tape, *params, json, name);
}

int ts_parity_run(ts_parity *p) {
    char path[TS_PATH_BYTES];
    TS_TRY(ts_path_join(path, sizeof path, p->config ? "" : p->model, p->config ? p->config : "config.json"));
    json_t *json = NULL;
    ts_tape *tape = NULL;
    ts_params *params = NULL;
    TS_TRY(ts_agree(p->world, ts_json_read(path, MAX_CONFIG_BYTES, &json)));
    const int status = open_and_check(p, &tape, &params, json, path);
    ts_params_close(&params);
    ts_tape_close(&tape);
    json_decref(json);
    return status;
}
