// SPDX-License-Identifier: Apache-2.0
// Saving, finding and verifying checkpoints.
//
//   DIR/step-00001234/manifest.json       version, step, state, and of each file: name, bytes, tensors, XXH3-64
//   DIR/step-00001234/GROUP.safetensors
//
// The sums are those of the bytes in memory, so that verifying also finds what went wrong on the way to the disk.
#include "core/store/checkpoint.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/status.h"

enum { VERSION = 1, MAX_MANIFEST_BYTES = 64 << 20, NAME_BYTES = 128 };

// The step of "step-00001234", or -1 for any other name.
static int64_t parse_name(const char *name) {
    static const char prefix[] = "step-";
    const char *digits = name + sizeof prefix - 1;
    if (strncmp(name, prefix, sizeof prefix - 1) != 0 || strlen(digits) < 8 || strlen(digits) > 18 ||
        strspn(digits, "0123456789") != strlen(digits)) {
        return -1;
    }
    return strtoll(digits, NULL, 10);
}

static int step_path(char *out, const char *folder, int64_t step, const char *ending) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "step-%08" PRId64 "%s", step, ending);
    return ts_path_join(out, TS_PATH_BYTES, folder, name);
}

// ---- writing

static int check_finite(const ts_checkpoint_group *group) {
    for (int64_t t = 0; t < group->count; t++) {
        const ts_safetensors_item *item = &group->items[t];
        const float *x = item->data;
        const int64_t n = ts_shape_count(item->shape);
        if (item->dtype != TS_F32) {
            return TS_FAIL(TS_EINTERNAL, "checkpoint: %s \"%s\" is %s, wanted F32", group->name, item->name,
                           ts_dtype_name(item->dtype));
        }
        for (int64_t i = 0; i < n; i++) {
            if (!isfinite(x[i])) {
                return TS_FAIL(
                    TS_EINPUT,
                    "checkpoint: %s \"%s\": element %lld is %s; training has diverged: go on from an earlier "
                    "checkpoint with a lower learning rate",
                    group->name, item->name, (long long)i, isnan(x[i]) ? "NaN" : "infinite");
            }
        }
    }
    return TS_OK;
}

static int write_group(const char *folder, const ts_checkpoint_group *group, json_t *files) {
    char name[NAME_BYTES], path[TS_PATH_BYTES], hex[17];
    uint64_t sum;
    snprintf(name, sizeof name, "%s.safetensors", group->name);
    TS_TRY(ts_path_join(path, sizeof path, folder, name));
    TS_TRY(ts_safetensors_write_sum(path, group->items, group->count, NULL, &sum));
    snprintf(hex, sizeof hex, "%016" PRIx64, sum);
    json_t *file = json_pack("{s:s, s:I, s:I, s:s}", "name", name, "bytes", (json_int_t)ts_path_bytes(path), "tensors",
                             (json_int_t)group->count, "sum", hex);
    if (json_array_append_new(files, file)) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory for the manifest", path);
    }
    return TS_OK;
}

static int write_files(const char *folder, int64_t step, const json_t *state, const ts_checkpoint_group *groups,
                       int64_t group_count) {
    char path[TS_PATH_BYTES];
    json_t *files = json_array();
    int status = ts_folder_make(folder);
    for (int64_t i = 0; i < group_count && !status; i++) {
        status = write_group(folder, &groups[i], files);
    }
    json_t *root =
        json_pack("{s:i, s:I, s:O, s:o}", "version", VERSION, "step", (json_int_t)step, "state", state, "files", files);
    if (!status) {
        status = ts_path_join(path, sizeof path, folder, "manifest.json");
    }
    if (!status) {
        status = root ? ts_json_write_atomic(path, root) : TS_FAIL(TS_ERESOURCE, "%s: no memory for it", path);
    }
    json_decref(root);
    return status;
}

// ---- housekeeping

static bool is_temporary(const char *name) {
    const size_t length = strlen(name);
    char stem[NAME_BYTES];
    if (length < 4 || length >= sizeof stem || strcmp(name + length - 4, ".tmp") != 0) {
        return false;
    }
    snprintf(stem, sizeof stem, "%.*s", (int)length - 4, name);
    return parse_name(stem) >= 0;
}

// What interrupted saves and removals left behind.
static int remove_temporaries(const char *folder) {
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

static int by_step(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

// Steps that have a folder, rising. The caller frees *out. A missing folder has none.
static int list_steps(const char *folder, int64_t **out, int64_t *out_count) {
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
        const int64_t step = parse_name(names[i]);
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

// A checkpoint is renamed before it is removed: half of one must never look like a damaged one.
static int remove_step(const char *folder, int64_t step) {
    char path[TS_PATH_BYTES], temporary[TS_PATH_BYTES];
    TS_TRY(step_path(path, folder, step, ""));
    TS_TRY(step_path(temporary, folder, step, ".tmp"));
    TS_TRY(ts_file_rename(path, temporary));
    return ts_folder_remove(temporary);
}

// Keeps `keep` checkpoints up to `newest`, the one just saved. Later ones are damaged, or of another course of the run:
// they must not crowd it out.
static int keep_newest(const char *folder, int64_t newest, int64_t keep) {
    int64_t *steps, count;
    TS_TRY(list_steps(folder, &steps, &count));
    while (count && steps[count - 1] > newest) {
        count--;
    }
    int status = TS_OK;
    for (int64_t i = 0; i < count - keep && !status; i++) {
        status = remove_step(folder, steps[i]);
    }
    free(steps);
    return status;
}

static int read_manifest(const char *path, json_t **out) {
    char file[TS_PATH_BYTES];
    int64_t version;
    TS_TRY(ts_path_join(file, sizeof file, path, "manifest.json"));
    TS_TRY(ts_json_read(file, MAX_MANIFEST_BYTES, out));
    int status = ts_json_int(*out, "version", file, INT64_MIN, INT64_MAX, &version);
    if (!status && version != VERSION) {
        status =
            TS_FAIL(TS_EINPUT, "%s: has version %" PRId64 ", this program reads version %d", file, version, VERSION);
    }
    if (status) {
        json_decref(*out);
        *out = NULL;
    }
    return status;
}

// ---- saving

// Whether two checkpoints hold the same files; what their states say may differ in a clock.
static int compare_files(const char *path, const char *other, bool *same) {
    json_t *mine, *theirs;
    TS_TRY(read_manifest(path, &mine));
    const int status = read_manifest(other, &theirs);
    if (!status) {
        *same = json_equal(json_object_get(mine, "files"), json_object_get(theirs, "files"));
        json_decref(theirs);
    }
    json_decref(mine);
    return status;
}

// The name of a checkpoint is taken: a damaged one gives way; a whole one stays, and is as good when it is the same.
static int settle_existing(const char *path, const char *temporary, bool *same) {
    const int found = ts_checkpoint_verify(path);
    if (found == TS_EINPUT) {
        TS_WARN("%s; it is replaced", ts_error_text());
        return ts_folder_remove(path);
    }
    TS_TRY(found);
    TS_TRY(compare_files(path, temporary, same));
    return *same ? ts_folder_remove(temporary)
                 : TS_FAIL(TS_EUSAGE,
                           "%s: exists and holds other weights; remove it, or let this run write to another folder",
                           path);
}

static int save(const char *folder, int64_t step, const json_t *state, const ts_checkpoint_group *groups,
                int64_t group_count, int64_t keep) {
    char path[TS_PATH_BYTES], temporary[TS_PATH_BYTES];
    bool same = false;
    TS_TRY(step_path(path, folder, step, ""));
    TS_TRY(step_path(temporary, folder, step, ".tmp"));
    for (int64_t i = 0; i < group_count; i++) {
        TS_TRY(check_finite(&groups[i]));
    }
    TS_TRY(ts_folder_make(folder));
    TS_TRY(remove_temporaries(folder));
    int status = write_files(temporary, step, state, groups, group_count);
    if (!status && ts_path_exists(path)) {
        status = settle_existing(path, temporary, &same);
    }
    if (!status && !same) {
        status = ts_folder_commit(temporary, path);
    }
    if (status) {
        ts_folder_discard(temporary);
        return status;
    }
    TS_TRY(ts_checkpoint_verify(path));
    return keep > 0 ? keep_newest(folder, step, keep) : TS_OK;
}

int ts_checkpoint_save(const char *folder, int64_t step, const json_t *state, const ts_checkpoint_group *groups,
                       int64_t group_count, int64_t keep, ts_comm *world) {
    const int status = ts_comm_rank(world) == 0 ? save(folder, step, state, groups, group_count, keep) : TS_OK;
    return ts_agree(world, status);
}

// ---- verifying and reading

static int verify_file(const char *path, const json_t *about) {
    char file[TS_PATH_BYTES], hex[17];
    const char *name, *claimed;
    int64_t bytes, tensors;
    uint64_t sum;
    TS_TRY(ts_json_string(about, "name", path, &name));
    TS_TRY(ts_json_string(about, "sum", path, &claimed));
    TS_TRY(ts_json_int(about, "bytes", path, 0, INT64_MAX, &bytes));
    TS_TRY(ts_json_int(about, "tensors", path, 0, INT64_MAX, &tensors));
    if (!*name || *name == '.' || strchr(name, '/')) {
        return TS_FAIL(TS_EINPUT, "%s: \"%.80s\" is not the plain name of a file", path, name);
    }
    TS_TRY(ts_path_join(file, sizeof file, path, name));
    if (ts_path_bytes(file) != bytes) {
        return TS_FAIL(TS_EINPUT, "%s: has %lld bytes, the manifest says %lld; the checkpoint is damaged", file,
                       (long long)ts_path_bytes(file), (long long)bytes);
    }
    TS_TRY(ts_file_hash(file, &sum));
    snprintf(hex, sizeof hex, "%016" PRIx64, sum);
    if (strcmp(hex, claimed) != 0) {
        return TS_FAIL(TS_EINPUT, "%s: its sum is %s, the manifest says %.16s; the checkpoint is damaged", file, hex,
                       claimed);
    }
    ts_safetensors *opened;
    TS_TRY(ts_safetensors_open(&opened, file));
    const int64_t found = ts_safetensors_count(opened);
    ts_safetensors_close(&opened);
    return found == tensors
               ? TS_OK
               : TS_FAIL(TS_EINPUT, "%s: has %lld tensors, the manifest says %lld; the checkpoint is damaged", file,
                         (long long)found, (long long)tensors);
}

int ts_checkpoint_verify(const char *path) {
    json_t *root;
    const json_t *files, *state;
    TS_TRY(read_manifest(path, &root));
    int status = ts_json_object(root, "state", path, &state);
    if (!status) {
        status = ts_json_array(root, "files", path, &files);
    }
    for (size_t i = 0; !status && i < json_array_size(files); i++) {
        status = verify_file(path, json_array_get(files, i));
    }
    json_decref(root);
    return status;
}

int ts_checkpoint_read_state(const char *path, json_t **state) {
    json_t *root;
    const json_t *found;
    *state = NULL;
    TS_TRY(read_manifest(path, &root));
    const int status = ts_json_object(root, "state", path, &found);
    if (!status) {
        *state = json_incref((json_t *)(uintptr_t)found);
    }
    json_decref(root);
    return status;
}

int ts_checkpoint_open_group(const char *path, const char *group, ts_safetensors **out) {
    char name[NAME_BYTES], file[TS_PATH_BYTES];
    snprintf(name, sizeof name, "%s.safetensors", group);
    TS_TRY(ts_path_join(file, sizeof file, path, name));
    return ts_safetensors_open(out, file);
}

// ---- finding

static int find(const char *folder, int64_t *step, char path[TS_PATH_BYTES]) {
    int64_t *steps, count;
    *step = -1;
    path[0] = '\0';
    TS_TRY(list_steps(folder, &steps, &count));
    int status = TS_OK;
    for (int64_t i = count - 1; i >= 0 && !status && *step < 0; i--) {
        status = step_path(path, folder, steps[i], "");
        status = status ? status : ts_checkpoint_verify(path);
        if (status == TS_EINPUT) {  // damaged; an exhausted machine is another matter
            TS_WARN("%s; this checkpoint is passed over", ts_error_text());
            status = TS_OK;
        } else if (!status) {
            *step = steps[i];
        }
    }
    free(steps);
    return status;
}

int ts_checkpoint_find(const char *folder, ts_comm *world, int64_t *step, char *path, size_t path_bytes) {
    char found[TS_PATH_BYTES] = "";
    *step = -1;
    const int status = ts_comm_rank(world) == 0 ? find(folder, step, found) : TS_OK;
    TS_TRY(ts_agree(world, status));
    TS_TRY(ts_broadcast(world, step, sizeof *step, 0));
    TS_TRY(ts_broadcast(world, found, sizeof found, 0));
    if (*step < 0) {
        found[0] = '\0';
    }
    if (strlen(found) >= path_bytes) {
        return TS_FAIL(TS_EINTERNAL, "%s: does not fit in %zu bytes", found, path_bytes);
    }
    strcpy(path, found);
    return TS_OK;
}
