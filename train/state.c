// SPDX-License-Identifier: Apache-2.0
#include "train/state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/json.h"
#include "core/base/status.h"

enum { GROUPS = 4 };
static const char *const GROUP_NAMES[GROUPS] = {"weights", "ema", "moment1", "moment2"};

// ---- what a checkpoint holds

typedef struct contents {
    ts_arena *arena;  // owns all that follows
    ts_checkpoint_content content;
    ts_checkpoint_group group[GROUPS];
} contents;

// Parts come in the order of the parameters, or nearly so.
static int64_t index_of(const ts_params *params, const ts_param *param, int64_t near) {
    while (params->item[near] != param) {
        near = (near + 1) % params->count;
    }
    return near;
}

static void part_arrays(const ts_state_part *part, float *array[GROUPS]) {
    array[0] = part->weight;
    array[1] = part->average;
    array[2] = part->moment1;
    array[3] = part->moment2;
}

// Which tensors each group has: held [GROUPS * params->count]. Each rank knows of its own parts only.
static int find_held(const ts_trainer *t, const ts_state_part *part, int64_t parts, int32_t *held) {
    const ts_params *params = t->model->params;
    int64_t index = 0;
    for (int64_t p = 0; p < parts; p++) {
        float *array[GROUPS];
        part_arrays(&part[p], array);
        index = index_of(params, part[p].param, index);
        for (int g = 0; g < GROUPS; g++) {
            held[g * params->count + index] |= array[g] != NULL;
        }
    }
    return ts_all_reduce(t->world, held, GROUPS * params->count, TS_I32, TS_MAX);
}

// Turns `held` into the number of each tensor within its group. Groups without tensors are left out: *number_of tells
// which number a group gets, or -1.
static void list_groups(contents *c, const ts_params *params, ts_safetensors_item *item, int32_t *held,
                        int number_of[GROUPS]) {
    for (int g = 0; g < GROUPS; g++) {
        ts_checkpoint_group group = {GROUP_NAMES[g], item, 0};
        for (int64_t i = 0; i < params->count; i++) {
            int32_t *const here = &held[g * params->count + i];
            if (*here) {
                *item++ = (ts_safetensors_item){params->item[i]->name, TS_F32, params->item[i]->whole, NULL};
                *here = (int32_t)group.count++;
            }
        }
        number_of[g] = group.count ? c->content.groups : -1;
        if (group.count) {
            c->group[c->content.groups++] = group;
        }
    }
}

static void list_parts(contents *c, const ts_params *params, const ts_state_part *part, int64_t parts,
                       const int32_t *number, const int number_of[GROUPS], ts_checkpoint_part *out) {
    c->content.part = out;
    int64_t index = 0;
    for (int64_t p = 0; p < parts; p++) {
        float *array[GROUPS];
        ts_slice slice;
        part_arrays(&part[p], array);
        index = index_of(params, part[p].param, index);
        slice.pieces = ts_param_pieces(part[p].param, part[p].first, part[p].count, slice.piece);
        for (int g = 0; g < GROUPS; g++) {
            if (array[g]) {
                slice.data = array[g];
                out[c->content.parts++] = (ts_checkpoint_part){number_of[g], number[g * params->count + index], slice};
            }
        }
    }
}

static int fill_contents(contents *c, const ts_trainer *t) {
    const ts_params *params = t->model->params;
    int64_t parts;
    int number_of[GROUPS];
    const ts_state_part *part = ts_optimizer_parts(t->optimizer, &parts);
    const size_t tensors = (size_t)(GROUPS * params->count);
    int status = ts_arena_open(&c->arena, "checkpoint contents", 1 << 16, false);
    ts_safetensors_item *item = status ? NULL : ts_arena_alloc(c->arena, tensors * sizeof *item);
    int32_t *held = item ? ts_arena_zalloc(c->arena, tensors * sizeof *held) : NULL;
    ts_checkpoint_part *list = held ? ts_arena_alloc(c->arena, (size_t)(GROUPS * parts + 1) * sizeof *list) : NULL;
    TS_TRY(ts_agree(t->world, list ? TS_OK : TS_ERESOURCE));
    TS_TRY(find_held(t, part, parts, held));
    list_groups(c, params, item, held, number_of);
    list_parts(c, params, part, parts, held, number_of, list);
    return TS_OK;
}

static int open_contents(contents *c, const ts_trainer *t) {
    *c = (contents){0};
    const int status = fill_contents(c, t);
    c->content.group = c->group;
    return status;
}

// ---- saving

static json_t *state_to_json(const ts_trainer *t, const char *config_json) {
    char fingerprint[32], mesh[128];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, ts_dataset_fingerprint(t->dataset));
    return json_pack("{s:I, s:{s:I, s:I, s:I}, s:I, s:f, s:s, s:s, s:s}", "step", (json_int_t)t->step, "cursor",
                     "epoch", (json_int_t)t->cursor.epoch, "batch", (json_int_t)t->cursor.batch, "samples",
                     (json_int_t)t->cursor.samples, "seed", (json_int_t)t->config->seed, "seconds", t->seconds,
                     "data_fingerprint", fingerprint, "mesh", ts_degrees_text(&t->mesh.degree, mesh, sizeof mesh),
                     "config", config_json);
}

int ts_state_save_start(ts_checkpoint_save **out, const ts_trainer *t, const char *folder, const char *config_json) {
    contents c;
    *out = NULL;
    // Threads read the numbers beside the device's work, the last update must not be part of that.
    TS_TRY(ts_agree(t->world, t->kernels->device->finish()));
    int status = open_contents(&c, t);
    json_t *state = state_to_json(t, config_json);
    if (!status) {
        const ts_checkpoint_params save = {
            .folder = folder,
            .step = t->step,
            .state = state,
            .keep = t->config->checkpoint.keep,
            .keep_every = t->config->checkpoint.keep_every,
            .world = t->world,
        };
        status = ts_checkpoint_save_start(out, &save, &c.content);
    }
    json_decref(state);
    ts_arena_close(&c.arena);
    return status;
}

// ---- restoring

typedef struct restoring {
    ts_trainer *trainer;
    const char *config_json;
} restoring;

static int take_over(void *context, const json_t *state, const char *path) {
    const restoring *r = context;
    ts_trainer *t = r->trainer;
    const json_t *cursor;
    const char *config, *fingerprint;
    char now[32];
    TS_TRY(ts_json_string(state, "config", path, &config));
    TS_TRY(ts_train_config_same_run(config, r->config_json, path));
    TS_TRY(ts_json_string(state, "data_fingerprint", path, &fingerprint));
    snprintf(now, sizeof now, "%016" PRIx64, ts_dataset_fingerprint(t->dataset));
    if (strcmp(now, fingerprint)) {
        return TS_FAIL(TS_EUSAGE, "%s was trained on other data than %s now holds; choose another name for a new run",
                       path, t->config->data);
    }
    TS_TRY(ts_json_int(state, "step", path, 0, INT64_MAX, &t->step));
    TS_TRY(ts_json_object(state, "cursor", path, &cursor));
    TS_TRY(ts_json_int(cursor, "epoch", path, 0, INT64_MAX, &t->cursor.epoch));
    TS_TRY(ts_json_int(cursor, "batch", path, 0, INT64_MAX, &t->cursor.batch));
    TS_TRY(ts_json_int(cursor, "samples", path, 0, INT64_MAX, &t->cursor.samples));
    return ts_json_real_or(state, "seconds", path, 0, &t->seconds);
}

int ts_state_restore(ts_trainer *t, const char *folder, const char *config_json, bool *restored) {
    restoring r = {t, config_json};
    contents c;
    int64_t step = -1;
    *restored = false;
    int status = open_contents(&c, t);
    if (!status) {
        status = ts_checkpoint_restore(folder, &c.content, take_over, &r, t->world, &step);
    }
    ts_arena_close(&c.arena);
    TS_TRY(status);
    *restored = step >= 0;
    if (*restored) {
        TS_TRY(ts_optimizer_loaded(t->optimizer));
        return ts_agree(t->world, ts_trainer_seek(t));
    }
    return TS_OK;
}
