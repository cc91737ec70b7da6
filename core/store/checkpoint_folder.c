// SPDX-License-Identifier: Apache-2.0
// A folder of checkpoints: names, listing, and what is kept.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/status.h"
#include "core/store/checkpoint_private.h"

enum { NAME_BYTES = 128 };

int64_t ts_checkpoint_parse_name(const char *name) {
    static const char prefix[] = "step-";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) {
        return -1;
    }
    const char *digits = name + sizeof prefix - 1;
    const size_t length = strlen(digits);
    return length < 8 || length > 18 || strspn(digits, "0123456789") != length ? -1 : strtoll(digits, NULL, 10);
}

int ts_checkpoint_step_path(char out[TS_PATH_BYTES], const char *folder, int64_t step, const char *ending) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "step-%08" PRId64 "%s", step, ending);
    return ts_path_join(out, TS_PATH_BYTES, folder, name);
}

// ---- listing

static int by_step(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int ts_checkpoint_list(const char *folder, int64_t **out, int64_t *out_count) {
    char **names;
    int64_t count;
    *out = NULL;
    *out_count = 0;
    if (!ts_path_is_folder(folder)) {
        return TS_OK;
    }
    TS_TRY(ts_folder_list(folder, &names, &count));
    *out = ts_malloc((size_t)(count + 1) * sizeof **out);
    for (int64_t i = 0; i < count && *out; i++) {
        const int64_t step = ts_checkpoint_parse_name(names[i]);
        if (step >= 0) {
            (*out)[(*out_count)++] = step;
        }
    }
    ts_folder_list_free(names, count);
    if (!*out) {
        return TS_ERESOURCE;
    }
    qsort(*out, (size_t)*out_count, sizeof **out, by_step);
    return TS_OK;
}

int ts_checkpoint_list_all(const char *folder, ts_comm *world, int64_t **out, int64_t *count) {
    const bool first = ts_comm_rank(world) == 0;
    *out = NULL;
    *count = 0;
    int status = ts_agree(world, first ? ts_checkpoint_list(folder, out, count) : TS_OK);
    TS_TRY_GOTO(status, status, failed);
    TS_TRY_GOTO(status, ts_broadcast(world, count, sizeof *count, 0), failed);
    if (!*out) {
        *out = ts_malloc((size_t)(*count + 1) * sizeof **out);
    }
    TS_TRY_GOTO(status, ts_agree(world, *out ? TS_OK : TS_ERESOURCE), failed);
    TS_TRY_GOTO(status, ts_broadcast(world, *out, *count * (int64_t)sizeof **out, 0), failed);
    return TS_OK;
failed:
    free(*out);
    *out = NULL;
    return status;
}

// ---- what is kept

static bool is_temporary(const char *name) {
    const size_t length = strlen(name);
    char stem[NAME_BYTES];
    if (length < 4 || length >= sizeof stem || strcmp(name + length - 4, ".tmp") != 0) {
        return false;
    }
    snprintf(stem, sizeof stem, "%.*s", (int)length - 4, name);
    return ts_checkpoint_parse_name(stem) >= 0;
}

int ts_checkpoint_remove_temporaries(const char *folder) {
    char **names, path[TS_PATH_BYTES];
    int64_t count;
    TS_TRY(ts_folder_list(folder, &names, &count));
    int status = TS_OK;
    for (int64_t i = 0; i < count && !status; i++) {
        if (is_temporary(names[i])) {
            status = ts_path_join(path, sizeof path, folder, names[i]);
            status = status ? status : ts_folder_remove(path);
        }
    }
    ts_folder_list_free(names, count);
    return status;
}

// A checkpoint is renamed before it is removed: half of one must never look like a damaged one.
static int remove_step(const char *folder, int64_t step) {
    char path[TS_PATH_BYTES], temporary[TS_PATH_BYTES];
    TS_TRY(ts_checkpoint_step_path(path, folder, step, ""));
    TS_TRY(ts_checkpoint_step_path(temporary, folder, step, ".tmp"));
    TS_TRY(ts_file_rename(path, temporary));
    return ts_folder_remove(temporary);
}

// `newest` was just saved and verified, and is among those that stay. Later ones are damaged, or of another course of
// the run: they must not crowd it out.
int ts_checkpoint_retain(const char *folder, int64_t newest, int64_t keep, int64_t keep_every) {
    int64_t *steps, count;
    if (keep <= 0) {
        return TS_OK;
    }
    TS_TRY(ts_checkpoint_list(folder, &steps, &count));
    while (count && steps[count - 1] > newest) {
        count--;
    }
    int status = TS_OK;
    for (int64_t i = 0; i < count - keep && !status; i++) {
        const bool stays = keep_every > 0 && steps[i] % keep_every == 0;
        status = stays ? TS_OK : remove_step(folder, steps[i]);
    }
    free(steps);
    return status;
}
