// SPDX-License-Identifier: Apache-2.0
#include "train/state.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/status.h"
#include "core/store/checkpoint.h"

enum { GROUPS = 4 };
static const char *const GROUP_NAMES[GROUPS] = {"weights", "ema", "moment1", "moment2"};

// The flat array behind each group.
static void group_arrays(const ts_trainer *t, float *array[GROUPS]) {
    array[0] = t->model->params->value;
    array[1] = t->optimizer->average;
    array[2] = t->optimizer->moment1;
    array[3] = t->optimizer->moment2;
}

// ---- saving

// Ranks update their copies of the weights by themselves; a broken machine or a bug would let them drift apart unseen.
static int check_ranks_agree(const ts_trainer *t) {
    const uint64_t hash = XXH3_64bits(t->model->params->value, (size_t)t->model->params->total * sizeof(float));
    const int64_t half = (int64_t)(hash >> 1);
    int64_t low = half, high = half;
    TS_TRY(ts_all_reduce(t->data, &low, 1, TS_I64, TS_MIN));
    TS_TRY(ts_all_reduce(t->data, &high, 1, TS_I64, TS_MAX));
    if (low != high) {
        return TS_FAIL(TS_EPEER,
                       "step %" PRId64 ": the ranks hold different weights; no checkpoint is written; "
                       "run again to go on from the last one, and look for a faulty machine",
                       t->step);
    }
    return TS_OK;
}

static json_t *state_to_json(const ts_trainer *t, const char *config_json) {
    char fingerprint[32];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, ts_dataset_fingerprint(t->dataset));
    return json_pack("{s:I, s:{s:I, s:I, s:I}, s:I, s:f, s:s, s:i, s:s}", "step", (json_int_t)t->step, "cursor",
                     "epoch", (json_int_t)t->cursor.epoch, "batch", (json_int_t)t->cursor.batch, "samples",
                     (json_int_t)t->cursor.samples, "seed", (json_int_t)t->config->seed, "seconds", t->seconds,
                     "data_fingerprint", fingerprint, "ranks", ts_comm_size(t->data), "config", config_json);
}

int ts_state_save(const ts_trainer *t, const char *folder, const char *config_json, int64_t keep) {
    TS_TRY(check_ranks_agree(t));
    const ts_params *params = t->model->params;
    float *array[GROUPS];
    ts_checkpoint_group group[GROUPS];
    group_arrays(t, array);
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

static int read_checkpoint(ts_trainer *t, const char *path, const char *config_json) {
    float *array[GROUPS];
    group_arrays(t, array);
    TS_TRY(read_state(t, path, config_json));
    for (int g = 0; g < GROUPS; g++) {
        TS_TRY(read_group(t, path, GROUP_NAMES[g], array[g]));
    }
    ts_params_refresh_operands(t->model->params);
    return ts_trainer_seek(t);
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
    return ts_agree(t->world, *restored ? read_checkpoint(t, path, config_json) : check_none_lost(folder));
}
