// SPDX-License-Identifier: Apache-2.0
#include "core/model/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/store/safetensors.h"

// The rest of the name, or NULL when it does not start with the prefix.
static const char *without_prefix(const char *name, const char *prefix) {
    const size_t n = strlen(prefix);
    return strncmp(name, prefix, n) == 0 ? name + n : NULL;
}

// Tensors that published checkpoints carry although nothing reads them, or that repeat another: the tied input
// embedding of T5, and a query norm of the image branch.
static bool is_surplus(const char *name) {
    return strcmp(name, "encoder.embed_tokens.weight") == 0 || strstr(name, ".norm_added_q.");
}

// Where a parameter's values are: under its own name, or for the embedding of T5 under that of its tied twin.
static const char *stored_name(const ts_safetensors *file, const char *name) {
    if (strcmp(name, "shared.weight") == 0 && !ts_safetensors_find(file, name)) {
        return "encoder.embed_tokens.weight";
    }
    return name;
}

static int refuse_unknown(const ts_params *params, const char *prefix, const ts_safetensors *file, const char *path) {
    for (int64_t i = 0; i < ts_safetensors_count(file); i++) {
        const char *name = ts_safetensors_at(file, i)->name;
        char full[512];
        const int n = snprintf(full, sizeof full, "%s%s", prefix, name);
        const bool known = n < (int)sizeof full && ts_params_find(params, full);
        if (!known && !is_surplus(name)) {
            return TS_FAIL(TS_EINPUT, "%s: tensor '%.200s' belongs to no part of the model that config.json describes",
                           path, name);
        }
    }
    return 0;
}

static int check_all(const ts_params *params, const char *prefix, const ts_safetensors *file, const char *path) {
    for (int64_t i = 0; i < params->count; i++) {
        const ts_param *param = params->item[i];
        const char *name = without_prefix(param->name, prefix);
        if (name) {
            TS_TRY(ts_safetensors_check(file, stored_name(file, name), param->whole));
        }
    }
    return refuse_unknown(params, prefix, file, path);
}

int ts_weights_check(ts_params *params, const char *prefix, const char *path) {
    ts_safetensors *file = NULL;
    TS_TRY(ts_safetensors_open(&file, path));
    const int status = check_all(params, prefix, file, path);
    ts_safetensors_close(&file);
    return status;
}

// This rank's part of a parameter.
static int load_part(const ts_param *param, const ts_safetensors *file, const char *name, const char *path) {
    ts_piece piece[TS_MAX_PIECES];
    float *value = param->value;
    TS_TRY(ts_safetensors_check(file, name, param->whole));
    const ts_safetensors_entry *entry = ts_safetensors_find(file, name);
    const int pieces = ts_param_pieces(param, 0, param->count, piece);
    for (int i = 0; i < pieces; i++) {
        for (int64_t run = 0; run < piece[i].runs; run++, value += piece[i].length) {
            TS_TRY(ts_safetensors_read(file, entry, piece[i].first + run * piece[i].stride, piece[i].length, value,
                                       TS_F32));
        }
    }
    for (int64_t i = 0; i < param->count; i++) {
        if (!isfinite(param->value[i])) {
            return TS_FAIL(TS_EINPUT, "%s: tensor '%s' holds a number that is not finite; take another copy", path,
                           name);
        }
    }
    return 0;
}

static int load_all(ts_params *params, const char *prefix, const ts_safetensors *file, const char *path) {
    for (int64_t i = 0; i < params->count; i++) {
        const ts_param *param = params->item[i];
        const char *name = without_prefix(param->name, prefix);
        if (name) {
            TS_TRY(param->cut < 0 ? ts_safetensors_read_f32(file, stored_name(file, name), param->whole, param->value)
                                  : load_part(param, file, stored_name(file, name), path));
        }
    }
    return refuse_unknown(params, prefix, file, path);
}

int ts_weights_load(ts_params *params, const char *prefix, const char *path) {
    ts_safetensors *file = NULL;
    TS_TRY(ts_safetensors_open(&file, path));
    const int status = load_all(params, prefix, file, path);
    ts_safetensors_close(&file);
    return status;
}

int ts_weights_save(const ts_params *params, const float *values, const char *prefix, const char *path) {
    ts_safetensors_item *items = ts_calloc((size_t)params->count + 1, sizeof *items);
    if (!items) {
        return TS_ERESOURCE;
    }
    int64_t count = 0;
    for (int64_t i = 0; i < params->count; i++) {
        const ts_param *param = params->item[i];
        const char *name = without_prefix(param->name, prefix);
        if (name) {
            items[count++] = (ts_safetensors_item){name, TS_F32, param->shape, values + param->offset};
        }
    }
    const char *const metadata[] = {"format", "pt", NULL};
    const int status = ts_safetensors_write(path, items, count, metadata);
    free(items);
    return status;
}
