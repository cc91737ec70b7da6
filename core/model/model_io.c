// SPDX-License-Identifier: Apache-2.0
// A model folder: reading and writing.
#include <stdio.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status.h"
#include "core/model/model_private.h"
#include "core/model/weights.h"

enum { MAX_CONFIG_BYTES = 1 << 20 };

static const char *TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors", *TEXT_FILE = "model.safetensors";

// ---- reading

static int read_json(const char *folder, const char *name, char path[TS_PATH_BYTES], json_t **out) {
    TS_TRY(ts_path_join(path, TS_PATH_BYTES, folder, name));
    return ts_json_read(path, MAX_CONFIG_BYTES, out);
}

static int read_configs(const char *folder, ts_dit_config *dit, ts_text_config *text) {
    char path[TS_PATH_BYTES];
    json_t *json = NULL;
    TS_TRY(read_json(folder, "transformer/config.json", path, &json));
    int status = ts_dit_config_from_json(dit, json, path);
    json_decref(json);
    TS_TRY(status);
    TS_TRY(read_json(folder, "text_encoder/config.json", path, &json));
    status = ts_text_config_from_json(text, json, path);
    json_decref(json);
    return status;
}

static int defaults_from_json(ts_model_defaults *out, const json_t *index, const char *name) {
    const json_t *object;
    TS_TRY(ts_json_object(index, "tessera", name, &object));
    TS_TRY(ts_json_int(object, "width", name, 1, 1 << 16, &out->width));
    TS_TRY(ts_json_int(object, "height", name, 1, 1 << 16, &out->height));
    TS_TRY(ts_json_int(object, "frames", name, 1, 1 << 20, &out->frames));
    TS_TRY(ts_json_int_or(object, "steps", name, 1, 10000, 25, &out->steps));
    TS_TRY(ts_json_real_or(object, "fps", name, 8.0, &out->fps));
    TS_TRY(ts_json_real_or(object, "guidance", name, 1.0, &out->guidance));
    if (!(out->fps > 0 && out->fps <= 1000 && out->guidance >= 0 && out->guidance <= 1000)) {
        return TS_FAIL(TS_EINPUT, "%s: fps must be above 0 and at most 1000, guidance from 0 to 1000", name);
    }
    return 0;
}

static int read_defaults(const char *folder, ts_model_defaults *out) {
    char path[TS_PATH_BYTES];
    json_t *json = NULL;
    TS_TRY(read_json(folder, "model_index.json", path, &json));
    int status = defaults_from_json(out, json, path);
    json_decref(json);
    TS_TRY(status);
    TS_TRY(read_json(folder, "scheduler/scheduler_config.json", path, &json));
    status = ts_json_real_or(json, "flow_shift", path, 1.0, &out->flow_shift);
    json_decref(json);
    TS_TRY(status);
    if (!(out->flow_shift > 0 && out->flow_shift <= 1000)) {
        return TS_FAIL(TS_EINPUT, "%s: flow_shift must be above 0 and at most 1000", path);
    }
    return 0;
}

typedef int (*weights_function)(ts_params *params, const char *prefix, const char *path);

// Calls `function` for the weights of both parts.
static int with_weights(ts_params *params, const char *folder, weights_function function) {
    char path[TS_PATH_BYTES];
    TS_TRY(ts_path_join(path, sizeof path, folder, "transformer"));
    TS_TRY(function(params, TS_MODEL_TRANSFORMER, path));
    TS_TRY(ts_path_join(path, sizeof path, folder, "text_encoder"));
    return function(params, TS_MODEL_TEXT, path);
}

int ts_model_check_weights(ts_params *params, const char *folder) {
    return with_weights(params, folder, ts_weights_check);
}

static int load_parts(ts_tokenizer **tokenizer, ts_codec **codec, const char *folder) {
    char path[TS_PATH_BYTES];
    TS_TRY(ts_path_join(path, sizeof path, folder, "tokenizer"));
    TS_TRY(ts_tokenizer_load(tokenizer, path));
    TS_TRY(ts_path_join(path, sizeof path, folder, "codec"));
    return ts_codec_load(codec, path);
}

static int describe(ts_model_params *out, const char *folder) {
    if (!ts_path_is_folder(folder)) {
        return TS_FAIL(TS_EINPUT, "%s: not a model folder", folder);
    }
    TS_TRY(read_defaults(folder, &out->defaults));
    return read_configs(folder, &out->dit, &out->text);
}

int ts_model_describe(ts_model_params *out, const char *folder) {
    char standing[TS_PATH_BYTES];
    TS_TRY(ts_folder_standing(folder, standing));
    return describe(out, standing);
}

int ts_model_load(ts_model **out, const char *named, const ts_kernels *kernels, const ts_mesh *mesh,
                  ts_dtype operand_dtype, bool for_training) {
    char folder[TS_PATH_BYTES];
    ts_model_params params = {.mesh = mesh, .kernels = kernels, .operand_dtype = operand_dtype};
    ts_tokenizer *tokenizer = NULL;
    ts_codec *codec = NULL;
    ts_model *model = NULL;
    int status;
    TS_TRY(ts_folder_standing(named, folder));
    TS_TRY(describe(&params, folder));
    TS_TRY_GOTO(status, load_parts(&tokenizer, &codec, folder), failed);
    TS_TRY_GOTO(status, ts_model_assemble(&model, &params, tokenizer, codec, folder), failed);
    status = with_weights(model->params, folder, ts_weights_load);
    status = status ? status : ts_params_refresh_operands(model->params);
    status = status || for_training ? status : ts_params_settle(model->params);
    if (status) {
        ts_model_close(&model);  // with tokenizer and codec
        return status;
    }
    *out = model;
    return 0;
failed:
    ts_codec_close(&codec);
    ts_tokenizer_close(&tokenizer);
    return status;
}

// ---- writing

// Takes over `value`.
static int write_json(const char *folder, const char *name, json_t *value) {
    char path[TS_PATH_BYTES];
    int status = value ? ts_path_join(path, sizeof path, folder, name)
                       : TS_FAIL(TS_ERESOURCE, "%s/%s: no memory for its JSON", folder, name);
    if (!status) {
        status = ts_json_write_atomic(path, value);
    }
    json_decref(value);
    return status;
}

static json_t *index_json(const ts_model_defaults *d) {
    return json_pack("{s:s, s:[s,s], s:[s,s], s:[s,s], s:[s,s], s:[s,s], s:{s:I, s:I, s:I, s:f, s:f, s:I}}",  //
                     "_class_name", "TesseraPipeline",                                                        //
                     "transformer", "diffusers", "WanTransformer3DModel",                                     //
                     "text_encoder", "transformers", "UMT5EncoderModel",                                      //
                     "tokenizer", "tessera", "Tokenizer", "codec", "tessera", "Codec",                        //
                     "scheduler", "diffusers", "UniPCMultistepScheduler", "tessera",                          //
                     "width", (json_int_t)d->width, "height", (json_int_t)d->height,                          //
                     "frames", (json_int_t)d->frames, "fps", d->fps, "guidance", d->guidance,                 //
                     "steps", (json_int_t)d->steps);
}

static json_t *scheduler_json(const ts_model_defaults *d) {
    return json_pack("{s:s, s:f, s:b, s:s, s:i, s:s, s:i}", "_class_name", "UniPCMultistepScheduler",  //
                     "flow_shift", d->flow_shift, "use_flow_sigmas", 1,                                //
                     "prediction_type", "flow_prediction", "solver_order", 2, "solver_type", "bh2",    //
                     "num_train_timesteps", 1000);
}

static int make_folders(const char *folder) {
    static const char *const parts[] = {"transformer", "text_encoder", "tokenizer", "codec", "scheduler"};
    char path[TS_PATH_BYTES];
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        TS_TRY(ts_path_join(path, sizeof path, folder, parts[i]));
        TS_TRY(ts_folder_make(path));
    }
    return 0;
}

// Everything but the weights: the first rank's work.
static int save_rest(const ts_model *model, const char *folder) {
    char path[TS_PATH_BYTES];
    TS_TRY(ts_folder_remove(folder));
    TS_TRY(make_folders(folder));
    TS_TRY(write_json(folder, "model_index.json", index_json(&model->defaults)));
    TS_TRY(write_json(folder, "scheduler/scheduler_config.json", scheduler_json(&model->defaults)));
    TS_TRY(write_json(folder, "transformer/config.json", ts_dit_config_to_json(ts_dit_get_config(model->dit))));
    TS_TRY(write_json(folder, "text_encoder/config.json", ts_text_config_to_json(ts_text_get_config(model->text))));
    TS_TRY(ts_path_join(path, sizeof path, folder, "tokenizer"));
    TS_TRY(ts_tokenizer_save(model->tokenizer, path));
    TS_TRY(ts_path_join(path, sizeof path, folder, "codec"));
    return ts_codec_save(model->codec, path);
}

static int save_weights(const ts_model *model, const ts_weights_part *part, int64_t parts, const char *folder,
                        ts_comm *world) {
    char name[TS_PATH_BYTES], path[TS_PATH_BYTES], text_path[TS_PATH_BYTES];
    snprintf(name, sizeof name, "transformer/%s", TRANSFORMER_FILE);
    TS_TRY(ts_path_join(path, sizeof path, folder, name));
    snprintf(name, sizeof name, "text_encoder/%s", TEXT_FILE);
    TS_TRY(ts_path_join(text_path, sizeof text_path, folder, name));
    TS_TRY(ts_weights_save_parts(model->params, part, parts, TS_MODEL_TRANSFORMER, path, world));
    return ts_weights_save_parts(model->params, part, parts, TS_MODEL_TEXT, text_path, world);
}

int ts_model_save_parts(const ts_model *model, const ts_weights_part *part, int64_t parts, const char *folder,
                        ts_comm *world) {
    const bool first = ts_comm_rank(world) == 0;
    char tmp[TS_PATH_BYTES];
    if (snprintf(tmp, sizeof tmp, "%s.tmp", folder) >= TS_PATH_BYTES) {
        return TS_FAIL(TS_EINPUT, "%s: the path is too long", folder);
    }
    int status = ts_agree(world, first ? save_rest(model, tmp) : TS_OK);
    status = status ? status : save_weights(model, part, parts, tmp, world);
    status = status ? status : ts_agree(world, first ? ts_folder_replace(tmp, folder) : TS_OK);
    if (status && first) {
        ts_folder_discard(tmp);
    }
    return status;
}

int ts_model_save(const ts_model *model, const float *values, const char *folder) {
    const ts_params *params = model->params;
    ts_weights_part *part = ts_weights_all(params, values);
    if (!part) {
        return TS_ERESOURCE;
    }
    const int status = ts_model_save_parts(model, part, params->count, folder, NULL);
    free(part);
    return status;
}
