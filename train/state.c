// SPDX-License-Identifier: Apache-2.0
#include "train/state.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/status.h"
#include "core/store/checkpoint.h"

enum { GROUPS = 4 };
static const char *const GROUP_NAMES[GROUPS] = {"weights", "ema", "moment1", "moment2"};

// Full arrays of all groups, of weights->total numbers each.
static int make_arrays(const ts_trainer *t, float *array[GROUPS]) {
    int status = TS_OK;
    for (int g = 0; g < GROUPS; g++) {
        array[g] = ts_malloc((size_t)t->model->params->total * sizeof *array[g]);
        status = array[g] ? status : TS_ERESOURCE;
    }
    return ts_agree(t->world, status);
}

static void free_arrays(float *array[GROUPS]) {
    for (int g = 0; g < GROUPS; g++) {
        free(array[g]);
    }
}

static int collect(const ts_trainer *t, float *array[GROUPS]) {
    static const ts_state_kind kinds[GROUPS] = {TS_STATE_WEIGHT, TS_STATE_AVERAGE, TS_STATE_MOMENT1, TS_STATE_MOMENT2};
    for (int g = 0; g < GROUPS; g++) {
        TS_TRY(ts_optimizer_collect(t->optimizer, kinds[g], array[g]));
    }
    return TS_OK;
}

// This rank's parts of what was read.
static void take_parts(const ts_trainer *t, float *const array[GROUPS]) {
    int64_t parts;
    const ts_state_part *part = ts_optimizer_parts(t->optimizer, &parts);
    for (int64_t i = 0; i < parts; i++) {
        float *const to[GROUPS] = {part[i].weight, part[i].average, part[i].moment1, part[i].moment2};
        for (int g = 0; g < GROUPS; g++) {
            if (to[g]) {
                memcpy(to[g], array[g] + part[i].param->offset + part[i].first, (size_t)part[i].count * sizeof(float));
            }
        }
    }
}

// ---- saving

static json_t *state_to_json(const ts_trainer *t, const char *config_json) {
    char fingerprint[32];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, ts_dataset_fingerprint(t->dataset));
    return json_pack("{s:I, s:{s:I, s:I, s:I}, s:I, s:f, s:s, s:i, s:s}", "step", (json_int_t)t->step, "cursor",
                     "epoch", (json_int_t)t->cursor.epoch, "batch", (json_int_t)t->cursor.batch, "samples",
                     (json_int_t)t->cursor.samples, "seed", (json_int_t)t->config->seed, "seconds", t->seconds,
                     "data_fingerprint", fingerprint, "ranks", ts_comm_size(t->data), "config", config_json);
}

static int save_arrays(const ts_trainer *t, const char *folder, const char *config_json, int64_t keep,
                       float *const array[GROUPS]) {
    const ts_params *params = t->model->params;
    ts_checkpoint_group group[GROUPS];
    ts_safetensors_item *item = ts_calloc((size_t)(GROUPS * params->count), sizeof *item);
    json_t *state = state_to_json(t, config_json);
    int status = ts_agree(t->world, item && state ? TS_OK : TS_FAIL(TS_ERESOURCE, "no memory for a checkpoint"));
    for (int g = 0; !status && g < GROUPS; g++) {
        ts_safetensors_item *first = item + g * params->count;
        group[g] = (ts_checkpoint_group){GROUP_NAMES[g], first, params->count};
        for (int64_t i = 0; i < params->count; i++) {
            const ts_param *param = params->item[i];
            first[i] = (ts_safetensors_item){param->name, TS_F32, param->shape, array[g] + param->offset};
        }
    }
    if (!status) {
        status = ts_checkpoint_save(folder, t->step, state, group, GROUPS, keep, t->world);
    }
    free(item);
    json_decref(state);
    return status;
}

int ts_state_save(const ts_trainer *t, const char *folder, const char *config_json, int64_t keep) {
    float *array[GROUPS] = {0};
    int status = make_arrays(t, array);
    status = status ? status : collect(t, array);
    status = status ? status : save_arrays(t, folder, config_json, keep, array);
    free_arrays(array);
    return status;
}

// ---- restoring

static int read_state(ts_trainer *t, const char *path, const char *config_json) {
    json_t *state = NULL;
    const json_t *cursor = NULL;
    const char *config = NULL, *fingerprint = NULL;
    char now[32];
    int status = TS_OK;
    TS_TRY_GOTO(status, ts_checkpoint_read_state(path, &state), done);
    TS_TRY_GOTO(status, ts_json_string(state, "config", path, &config), done);
    TS_TRY_GOTO(status, ts_train_config_same_run(config, config_json, path), done);
    TS_TRY_GOTO(status, ts_json_string(state, "data_fingerprint", path, &fingerprint), done);
    snprintf(now, sizeof now, "%016" PRIx64, ts_dataset_fingerprint(t->dataset));
    if (strcmp(now, fingerprint)) {
        status = TS_FAIL(TS_EUSAGE, "%s was trained on other data than %s now holds; choose another name for a new run",
                         path, t->config->data);
        goto done;
    }
    TS_TRY_GOTO(status, ts_json_int(state, "step", path, 0, INT64_MAX, &t->step), done);
    TS_TRY_GOTO(status, ts_json_object(state, "cursor", path, &cursor), done);
    TS_TRY_GOTO(status, ts_json_int(cursor, "epoch", path, 0, INT64_MAX, &t->cursor.epoch), done);
    TS_TRY_GOTO(status, ts_json_int(cursor, "batch", path, 0, INT64_MAX, &t->cursor.batch), done);
    TS_TRY_GOTO(status, ts_json_int(cursor, "samples", path, 0, INT64_MAX, &t->cursor.samples), done);
    status = ts_json_real_or(state, "seconds", path, 0, &t->seconds);
done:
    json_decref(state);
    return status;
}

static int read_group(const ts_trainer *t, const char *path, const char *name, float *array) {
    const ts_params *params = t->model->params;
    ts_safetensors *file = NULL;
    TS_TRY(ts_checkpoint_open_group(path, name, &file));
    int status = TS_OK;
    if (ts_safetensors_count(file) != params->count) {
        status = TS_FAIL(TS_EINPUT, "%s: group '%s' has %" PRId64 " tensors, the model %" PRId64, path, name,
                         ts_safetensors_count(file), params->count);
    }
    for (int64_t i = 0; !status && i < params->count; i++) {
        const ts_param *param = params->item[i];
        status = ts_safetensors_read_f32(file, param->name, param->shape, array + param->offset);
    }
    ts_safetensors_close(&file);
    return status;
}

static int read_groups(ts_trainer *t, const char *path, const char *config_json, float *const array[GROUPS]) {
    TS_TRY(read_state(t, path, config_json));
    for (int g = 0; g < GROUPS; g++) {
        TS_TRY(read_group(t, path, GROUP_NAMES[g], array[g]));
    }
    return ts_trainer_seek(t);
}

static int read_checkpoint(ts_trainer *t, const char *path, const char *config_json) {
    float *array[GROUPS] = {0};
    int status = make_arrays(t, array);
    status = status ? status : ts_agree(t->world, read_groups(t, path, config_json, array));
    if (!status) {
        take_parts(t, array);
        status = ts_optimizer_loaded(t->optimizer);
    }
    free_arrays(array);
    return status;
}

// Starting over beside damaged checkpoints would overwrite what might still be saved by hand.
static int check_none_lost(const char *folder) {
    char **names = NULL;
    int64_t count = 0, checkpoints = 0;
    if (!ts_path_is_folder(folder)) {
        return TS_OK;
    }
    TS_TRY(ts_folder_list(folder, &names, &count));
    for (int64_t i = 0; i < count; i++) {
        checkpoints += !strncmp(names[i], "step-", 5) && !strstr(names[i], ".tmp");
    }
    ts_folder_list_free(names, count);
    if (checkpoints) {
        return TS_FAIL(TS_EINPUT,
                       "%s: none of its %" PRId64 " checkpoints is whole; move the folder away to start over", folder,
                       checkpoints);
    }
    return TS_OK;
}

int ts_state_restore(ts_trainer *t, const char *folder, const char *config_json, bool *restored) {
    char path[4096];
    int64_t step = -1;
    TS_TRY(ts_checkpoint_find(folder, t->world, &step, path, sizeof path));
    *restored = step >= 0;
    return *restored ? read_checkpoint(t, path, config_json) : ts_agree(t->world, check_none_lost(folder));
}
