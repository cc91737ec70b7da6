// SPDX-License-Identifier: Apache-2.0
#include "core/model/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/status.h"
#include "core/store/safetensors.h"
#include "core/store/slice.h"

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

// ---- loading

enum { LOAD_CHUNK = 4 << 20 };  // numbers on their way to a device at a time

// A file under way into memory of parameters.
typedef struct loader {
    const ts_safetensors *file;
    const char *path;
    float *buffer;  // [LOAD_CHUNK] on the way to a device; NULL: the numbers go straight where they belong
} loader;

// `count` elements of a tensor from `first` on, as the values of a parameter from element `own` on.
static int load_run(const loader *l, const ts_param *param, const ts_safetensors_entry *entry, int64_t first,
                    int64_t own, int64_t count) {
    const int64_t chunk = l->buffer ? LOAD_CHUNK : count;
    for (int64_t done = 0, n; done < count; done += n) {
        n = count - done < chunk ? count - done : chunk;
        float *to = l->buffer ? l->buffer : param->value + own;
        TS_TRY(ts_safetensors_read(l->file, entry, first + done, n, to, TS_F32));
        for (int64_t i = 0; i < n; i++) {
            if (!isfinite(to[i])) {
                return TS_FAIL(TS_EINPUT, "%s: tensor '%s': element %lld is %s; these weights are damaged", l->path,
                               entry->name, (long long)(first + done + i), isnan(to[i]) ? "NaN" : "infinite");
            }
        }
        TS_TRY(l->buffer ? ts_param_write(param, own + done, n, l->buffer) : 0);
    }
    return 0;
}

// This rank's part of a parameter.
static int load_part(const loader *l, const ts_param *param, const char *name) {
    ts_piece piece[TS_MAX_PIECES];
    int64_t own = 0;
    TS_TRY(ts_safetensors_check(l->file, name, param->whole));
    const ts_safetensors_entry *entry = ts_safetensors_find(l->file, name);
    const int pieces = ts_param_pieces(param, 0, param->count, piece);
    for (int i = 0; i < pieces; i++) {
        for (int64_t run = 0; run < piece[i].runs; run++, own += piece[i].length) {
            TS_TRY(load_run(l, param, entry, piece[i].first + run * piece[i].stride, own, piece[i].length));
        }
    }
    return 0;
}

static int load_all(ts_params *params, const char *prefix, const ts_safetensors *file, const char *path) {
    const bool direct = ts_params_device(params)->is_host;
    const loader l = {file, path, direct ? NULL : ts_malloc(LOAD_CHUNK * sizeof *l.buffer)};
    int status = direct || l.buffer ? 0 : TS_ERESOURCE;
    for (int64_t i = 0; i < params->count && !status; i++) {
        const ts_param *param = params->item[i];
        const char *name = without_prefix(param->name, prefix);
        status = name ? load_part(&l, param, stored_name(file, name)) : 0;
    }
    free(l.buffer);
    return status ? status : refuse_unknown(params, prefix, file, path);
}

int ts_weights_load(ts_params *params, const char *prefix, const char *path) {
    ts_safetensors *file = NULL;
    TS_TRY(ts_safetensors_open(&file, path));
    const int status = load_all(params, prefix, file, path);
    ts_safetensors_close(&file);
    return status;
}

// ---- saving

// The parameters of a prefix as tensors of a file. *of [params->count] is the number of each one there, or -1.
static int list_items(const ts_params *params, const char *prefix, ts_safetensors_item **items, int64_t **of,
                      int64_t *count) {
    *count = 0;
    *items = ts_calloc((size_t)params->count + 1, sizeof **items);
    *of = ts_malloc((size_t)(params->count + 1) * sizeof **of);
    if (!*items || !*of) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < params->count; i++) {
        const ts_param *param = params->item[i];
        const char *name = without_prefix(param->name, prefix);
        (*of)[i] = name ? *count : -1;
        if (name) {
            (*items)[(*count)++] = (ts_safetensors_item){name, TS_F32, param->whole, NULL};
        }
    }
    return 0;
}

static int write_parts(const ts_params *params, const ts_weights_part *part, int64_t parts, const int64_t *of,
                       const ts_safetensors_plan *plan, int fd, const char *path) {
    int64_t index = 0, wrong;
    uint64_t sum = 0;
    for (int64_t p = 0; p < parts; p++) {
        while (params->item[index] != part[p].param) {
            index = (index + 1) % params->count;  // parts come in the order of the parameters, or nearly so
        }
        if (of[index] >= 0) {
            const ts_slice_file file = {fd, path, plan->offset[of[index]]};
            ts_slice slice = {.data = (float *)(uintptr_t)part[p].data};
            slice.pieces = ts_param_pieces(part[p].param, part[p].first, part[p].count, slice.piece);
            const int status = ts_slice_write(&file, &slice, &sum, &wrong);
            if (status) {
                return ts_fail_context(status, "parameter '%s'", part[p].param->name);
            }
        }
    }
    return fsync(fd) ? TS_FILE_FAIL(path, "sync") : 0;
}

int ts_weights_save_parts(const ts_params *params, const ts_weights_part *part, int64_t parts, const char *prefix,
                          const char *path, ts_comm *world) {
    static const char *const metadata[] = {"format", "pt", NULL};
    ts_safetensors_plan plan = {0};
    ts_safetensors_item *items = NULL;
    int64_t *of = NULL, count;
    int fd = -1;
    int status = list_items(params, prefix, &items, &of, &count);
    status = status ? status : ts_safetensors_plan_make(&plan, items, count, metadata, path);
    if (!status && ts_comm_rank(world) == 0) {
        status = ts_safetensors_create(path, &plan);
    }
    TS_TRY_GOTO(status, ts_agree(world, status), done);
    status = ts_slice_open(path, plan.bytes, &fd);
    status = status ? status : write_parts(params, part, parts, of, &plan, fd, path);
    status = ts_agree(world, status);
done:
    if (fd >= 0) {
        close(fd);
    }
    ts_safetensors_plan_free(&plan);
    free(of);
    free(items);
    return status;
}

ts_weights_part *ts_weights_all(const ts_params *params, const float *values) {
    ts_weights_part *part = ts_malloc((size_t)(params->count + 1) * sizeof *part);
    for (int64_t i = 0; part && i < params->count; i++) {
        const ts_param *param = params->item[i];
        part[i] = (ts_weights_part){param, 0, param->count, values + param->offset};
    }
    return part;
}

int ts_weights_save(const ts_params *params, const float *values, const char *prefix, const char *path) {
    ts_weights_part *part = ts_weights_all(params, values);
    if (!part) {
        return TS_ERESOURCE;
    }
    const int status = ts_weights_save_parts(params, part, params->count, prefix, path, NULL);
    free(part);
    return status;
}
