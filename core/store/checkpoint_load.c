// SPDX-License-Identifier: Apache-2.0
// Verifying, finding and restoring checkpoints. Reading is the check: each rank sums what it reads, and the ranks' sums
// together must be those of the manifest.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/status.h"
#include "core/store/checkpoint_private.h"

// ---- verifying

static int say_damaged(json_t *damaged, const char *text) {
    return damaged && json_array_append_new(damaged, json_string(text)) ? TS_FAIL(TS_ERESOURCE, "no memory for a list")
                                                                        : TS_OK;
}

// Adds the ranks' sums and compares them; names the first damaged tensor as the error, all of them in `damaged`.
static int compare_sums(const ts_stored *stored, uint64_t *sum, ts_comm *world, json_t *damaged) {
    const ts_stored_tensor *first = NULL;
    int64_t wrong = 0;
    TS_TRY(ts_checkpoint_add_sums(sum, stored->tensors, world));
    for (int64_t i = 0; i < stored->tensors; i++) {
        const ts_stored_tensor *tensor = &stored->tensor[i];
        if (sum[i] != tensor->sum) {
            char text[512];
            snprintf(text, sizeof text, "%s: tensor \"%s\"", ts_path_base(tensor->file.path), tensor->name);
            TS_TRY(say_damaged(damaged, text));
            first = wrong++ ? first : tensor;
        }
    }
    if (!wrong) {
        return TS_OK;
    }
    char more[64] = "";
    if (wrong > 1) {
        snprintf(more, sizeof more, ", and %" PRId64 " more", wrong - 1);
    }
    return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\" is damaged: its numbers are not those that were written%s",
                   first->file.path, first->name, more);
}

static int verify_stored(const ts_stored *stored, ts_comm *world, json_t *damaged) {
    uint64_t *sum = ts_calloc((size_t)stored->tensors + 1, sizeof *sum);
    int status =
        sum ? ts_stored_sum_share(stored->tensor, stored->tensors, ts_comm_rank(world), ts_comm_size(world), sum)
            : TS_ERESOURCE;
    status = ts_agree(world, status);
    status = status ? status : compare_sums(stored, sum, world, damaged);
    free(sum);
    return status;
}

int ts_checkpoint_verify(const char *path, ts_comm *world, json_t *damaged) {
    ts_stored *stored = NULL;
    int status = ts_agree(world, ts_stored_open(&stored, path));
    if (status == TS_EINPUT) {
        TS_TRY(say_damaged(damaged, ts_error_text()));
    }
    status = status ? status : verify_stored(stored, world, damaged);
    ts_stored_close(&stored);
    return status;
}

// ---- the newest that is good

typedef int try_function(void *context, const char *path);

// Tries the folder's checkpoints from the newest until one is not damaged; *step -1 when none is.
static int newest_good(const char *folder, ts_comm *world, try_function *attempt, void *context, int64_t *step,
                       char path[TS_PATH_BYTES], int64_t *count) {
    int64_t *steps;
    *step = -1;
    TS_TRY(ts_checkpoint_list_all(folder, world, &steps, count));
    int status = TS_OK;
    for (int64_t i = *count - 1; i >= 0 && !status && *step < 0; i--) {
        status = ts_agree(world, ts_checkpoint_step_path(path, folder, steps[i], ""));
        status = status ? status : attempt(context, path);
        if (status == TS_EINPUT) {  // damaged; an exhausted machine is another matter
            if (ts_comm_rank(world) == 0) {
                TS_WARN("%s; this checkpoint is passed over", ts_error_text());
            }
            status = TS_OK;
        } else if (!status) {
            *step = steps[i];
        }
    }
    free(steps);
    return status;
}

static int attempt_verify(void *context, const char *path) {
    return ts_checkpoint_verify(path, context, NULL);
}

int ts_checkpoint_find(const char *folder, ts_comm *world, int64_t *step, char *path, size_t path_bytes) {
    char found[TS_PATH_BYTES];
    int64_t count;
    path[0] = '\0';
    TS_TRY(newest_good(folder, world, attempt_verify, world, step, found, &count));
    if (*step >= 0 && strlen(found) >= path_bytes) {
        return TS_FAIL(TS_EINTERNAL, "%s: does not fit in %zu bytes", found, path_bytes);
    }
    if (*step >= 0) {
        strcpy(path, found);
    }
    return TS_OK;
}

// ---- restoring

typedef struct restoring {
    const ts_checkpoint_content *content;
    ts_checkpoint_accept *accept;
    void *context;
    ts_comm *world;
    int refusal;  // of a whole checkpoint: no other is tried
} restoring;

static int find_group(const ts_stored *stored, const ts_checkpoint_group *group, const char *path,
                      const ts_stored_file **out) {
    char name[sizeof stored->file->name];
    snprintf(name, sizeof name, "%s.safetensors", group->name);
    for (int i = 0; i < stored->files; i++) {
        if (strcmp(stored->file[i].name, name) == 0) {
            *out = &stored->file[i];
            const int64_t found = ts_safetensors_count((*out)->content);
            return found == group->count
                       ? TS_OK
                       : TS_FAIL(TS_EUSAGE,
                                 "%s/%s: has %" PRId64 " tensors, the model %" PRId64 "; it is another run's", path,
                                 name, found, group->count);
        }
    }
    return TS_FAIL(TS_EUSAGE, "%s: has no %s; it is another run's", path, name);
}

// Which stored tensor each item of the content is: *out is [items of all groups].
static int match(const ts_stored *stored, const ts_checkpoint_content *content, const char *path, int64_t *out) {
    if (stored->files != content->groups) {
        return TS_FAIL(TS_EUSAGE, "%s: has %d files, this run %d groups; it is another run's", path, stored->files,
                       content->groups);
    }
    for (int g = 0; g < content->groups; g++) {
        const ts_checkpoint_group *group = &content->group[g];
        const ts_stored_file *file = NULL;
        TS_TRY(find_group(stored, group, path, &file));
        for (int64_t i = 0; i < group->count; i++) {
            if (ts_safetensors_check(file->content, group->items[i].name, group->items[i].shape)) {
                return ts_fail_context(TS_EUSAGE, "another run's");
            }
            const ts_safetensors_entry *entry = ts_safetensors_find(file->content, group->items[i].name);
            *out++ = file->first + (entry - ts_safetensors_at(file->content, 0));
        }
    }
    return TS_OK;
}

static int read_parts(const ts_stored *stored, const ts_checkpoint_content *content, const int64_t *tensor_of,
                      uint64_t *sum) {
    for (int64_t p = 0; p < content->parts; p++) {
        const ts_checkpoint_part *part = &content->part[p];
        int64_t item = part->item;
        for (int g = 0; g < part->group; g++) {
            item += content->group[g].count;
        }
        const int64_t t = tensor_of[item];
        TS_TRY(ts_slice_read(&stored->tensor[t].file, &part->slice, &sum[t]));
    }
    return TS_OK;
}

static int fill(const restoring *r, const ts_stored *stored, const int64_t *tensor_of) {
    uint64_t *sum = ts_calloc((size_t)stored->tensors + 1, sizeof *sum);
    int status = sum ? read_parts(stored, r->content, tensor_of, sum) : TS_ERESOURCE;
    status = ts_agree(r->world, status);
    status = status ? status : compare_sums(stored, sum, r->world, NULL);
    free(sum);
    return status;
}

static int accept_stored(const restoring *r, const ts_stored *stored, const char *path, int64_t *tensor_of) {
    const json_t *state;
    TS_TRY(ts_json_object(stored->manifest, "state", path, &state));
    TS_TRY(r->accept(r->context, state, path));
    return match(stored, r->content, path, tensor_of);
}

static int attempt_restore(void *context, const char *path) {
    restoring *r = context;
    ts_stored *stored = NULL;
    int status = ts_agree(r->world, ts_stored_open(&stored, path));
    if (status) {
        ts_stored_close(&stored);
        return status;
    }
    int64_t *tensor_of = ts_malloc((size_t)(stored->tensors + 1) * sizeof *tensor_of);
    status = ts_agree(r->world, tensor_of ? accept_stored(r, stored, path, tensor_of) : TS_ERESOURCE);
    if (status) {
        r->refusal = status;
        status = TS_EUSAGE;  // whatever it is, it is not damage
    } else {
        status = fill(r, stored, tensor_of);
    }
    free(tensor_of);
    ts_stored_close(&stored);
    return status;
}

int ts_checkpoint_restore(const char *folder, const ts_checkpoint_content *content, ts_checkpoint_accept *accept,
                          void *context, ts_comm *world, int64_t *step) {
    restoring r = {content, accept, context, world, TS_OK};
    char path[TS_PATH_BYTES];
    int64_t count;
    const int status = newest_good(folder, world, attempt_restore, &r, step, path, &count);
    if (status) {
        return r.refusal ? r.refusal : status;
    }
    // Starting over beside damaged checkpoints would overwrite what might still be saved by hand.
    return *step < 0 && count > 0
               ? TS_FAIL(TS_EINPUT,
                         "%s: none of its %" PRId64 " checkpoints is whole; move the folder away to start over", folder,
                         count)
               : TS_OK;
}
