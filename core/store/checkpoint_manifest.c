// SPDX-License-Identifier: Apache-2.0
// manifest.json of a checkpoint, and opening one by it.
//
//   {"sum": XXH3-64 of this text with zeros for these digits, "version", "step", "state",
//    "files": [{"name", "bytes", "header_sum": XXH3-64, "tensors": {name: element sum}}]}
//
// Sums are 16 hexadecimal digits: JSON numbers are exact only to 53 bits for many readers.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/json.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "core/store/checkpoint_private.h"
#include "core/store/element_sum.h"

enum { VERSION = 2, MAX_MANIFEST_BYTES = 64 << 20, DIGITS = 16 };

// How the text begins; the digits follow.
static const char BEGIN[] = "{\n  \"sum\": \"", ZEROS[] = "0000000000000000";

static json_t *hex(uint64_t value) {
    char text[DIGITS + 1];
    snprintf(text, sizeof text, "%016" PRIx64, value);
    return json_string(text);
}

// ---- writing

static json_t *pack_file(const ts_manifest_file *file) {
    char name[128];
    snprintf(name, sizeof name, "%s.safetensors", file->group);
    json_t *sums = json_object();
    int failed = 0;
    for (int64_t i = 0; i < file->tensors; i++) {
        failed |= json_object_set_new(sums, file->tensor[i].name, hex(file->tensor[i].sum));
    }
    json_t *object = json_pack("{s:s, s:I, s:o, s:o}", "name", name, "bytes", (json_int_t)file->bytes, "header_sum",
                               hex(file->header_sum), "tensors", sums);
    if (failed) {
        json_decref(object);
        return NULL;
    }
    return object;
}

static int write_text(const char *path, char *text) {
    const size_t length = strlen(text);
    char digits[DIGITS + 1];
    TS_ASSERT(!strncmp(text, BEGIN, sizeof BEGIN - 1));
    snprintf(digits, sizeof digits, "%016" PRIx64, (uint64_t)XXH3_64bits(text, length));
    memcpy(text + sizeof BEGIN - 1, digits, DIGITS);
    return ts_file_write_atomic(path, text, length);
}

int ts_checkpoint_write_manifest(const char *folder, int64_t step, json_t *state, const ts_manifest_file *file,
                                 int files) {
    char path[TS_PATH_BYTES];
    TS_TRY(ts_path_join(path, sizeof path, folder, "manifest.json"));
    json_t *list = json_array();
    int failed = 0;
    for (int i = 0; i < files; i++) {
        failed |= json_array_append_new(list, pack_file(&file[i]));
    }
    json_t *root = json_pack("{s:s, s:i, s:I, s:O, s:o}", "sum", ZEROS, "version", VERSION, "step", (json_int_t)step,
                             "state", state, "files", list);
    char *text = root && !failed ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    const int status = text ? write_text(path, text) : TS_FAIL(TS_ERESOURCE, "%s: no memory for it", path);
    free(text);
    return status;
}

// ---- reading

static int check_version(const json_t *root, const char *path) {
    int64_t version;
    TS_TRY(ts_json_int(root, "version", path, INT64_MIN, INT64_MAX, &version));
    if (version != VERSION) {
        return TS_FAIL(TS_EINPUT,
                       "%s: has version %" PRId64
                       ", this program reads version %d; go on with the program that wrote it",
                       path, version, VERSION);
    }
    return TS_OK;
}

// The text is spoilt.
static int check_sum(char *text, size_t bytes, const char *path) {
    char said[DIGITS + 1] = "", found[DIGITS + 1] = "none";
    if (bytes > sizeof BEGIN + DIGITS && !strncmp(text, BEGIN, sizeof BEGIN - 1)) {
        char *digits = text + sizeof BEGIN - 1;
        memcpy(said, digits, DIGITS);
        memcpy(digits, ZEROS, DIGITS);
        snprintf(found, sizeof found, "%016" PRIx64, (uint64_t)XXH3_64bits(text, bytes));
    }
    return strcmp(said, found) == 0
               ? TS_OK
               : TS_FAIL(TS_EINPUT, "%s: its sum is %s, it says \"%.16s\"; the checkpoint is damaged", path, found,
                         said);
}

static int read_manifest(const char *folder, json_t **out) {
    char path[TS_PATH_BYTES], *text = NULL;
    size_t bytes;
    *out = NULL;
    TS_TRY(ts_path_join(path, sizeof path, folder, "manifest.json"));
    TS_TRY(ts_file_read(path, MAX_MANIFEST_BYTES, &text, &bytes));
    int status = TS_OK;
    TS_TRY_GOTO(status, ts_json_parse(text, bytes, path, out), done);
    TS_TRY_GOTO(status, check_version(*out, path), done);
    status = check_sum(text, bytes, path);
done:
    free(text);
    if (status) {
        json_decref(*out);
        *out = NULL;
    }
    return status;
}

static int read_hex(const json_t *object, const char *key, const char *place, uint64_t *out) {
    const char *text;
    TS_TRY(ts_json_string(object, key, place, &text));
    if (strlen(text) != DIGITS || strspn(text, "0123456789abcdef") != DIGITS) {
        return TS_FAIL(TS_EINPUT, "%s: \"%s\" must be %d hexadecimal digits", place, key, DIGITS);
    }
    *out = strtoull(text, NULL, 16);
    return TS_OK;
}

// ---- opening

// The numbers' sums of one file, from the manifest to stored->tensor.
static int list_tensors(ts_stored *stored, const ts_stored_file *file, const json_t *sums, const char *path) {
    for (int64_t i = 0; i < ts_safetensors_count(file->content); i++) {
        const ts_safetensors_entry *entry = ts_safetensors_at(file->content, i);
        ts_stored_tensor *tensor = &stored->tensor[file->first + i];
        *tensor = (ts_stored_tensor){
            .name = entry->name,
            .file = {ts_safetensors_handle(file->content), ts_safetensors_path(file->content), entry->offset},
            .count = ts_shape_count(entry->shape)};
        TS_TRY(read_hex(sums, entry->name, path, &tensor->sum));
        if (entry->dtype != TS_F32) {
            return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\" is %s, wanted F32", path, entry->name,
                           ts_dtype_name(entry->dtype));
        }
    }
    return TS_OK;
}

static int open_file(ts_stored *stored, ts_stored_file *file, const char *folder, const json_t *about) {
    char path[TS_PATH_BYTES];
    const char *name;
    const json_t *sums;
    int64_t bytes;
    uint64_t header_sum = 0;
    TS_TRY(ts_json_string(about, "name", folder, &name));
    TS_TRY(ts_json_int(about, "bytes", folder, 0, INT64_MAX, &bytes));
    TS_TRY(read_hex(about, "header_sum", folder, &header_sum));
    TS_TRY(ts_json_object(about, "tensors", folder, &sums));
    if (!*name || *name == '.' || strchr(name, '/') || strlen(name) >= sizeof file->name) {
        return TS_FAIL(TS_EINPUT, "%s: \"%.80s\" is not the plain name of a file", folder, name);
    }
    strcpy(file->name, name);
    TS_TRY(ts_path_join(path, sizeof path, folder, name));
    const int64_t found = ts_path_bytes(path);
    if (found < 0) {
        return TS_FAIL(TS_EINPUT, "%s: is missing; the checkpoint is damaged", path);
    }
    if (found != bytes) {
        return TS_FAIL(TS_EINPUT, "%s: has %lld bytes, the manifest says %lld; the checkpoint is damaged", path,
                       (long long)found, (long long)bytes);
    }
    TS_TRY(ts_safetensors_open(&file->content, path));
    const int64_t tensors = ts_safetensors_count(file->content);
    if (ts_safetensors_header_sum(file->content) != header_sum || (int64_t)json_object_size(sums) != tensors) {
        return TS_FAIL(TS_EINPUT, "%s: its header is not the one that was written; the checkpoint is damaged", path);
    }
    ts_stored_tensor *grown = ts_arena_alloc(stored->arena, (size_t)(stored->tensors + tensors + 1) * sizeof *grown);
    if (!grown) {
        return TS_ERESOURCE;
    }
    if (stored->tensors) {
        memcpy(grown, stored->tensor, (size_t)stored->tensors * sizeof *grown);
    }
    stored->tensor = grown;
    file->first = stored->tensors;
    stored->tensors += tensors;
    return list_tensors(stored, file, sums, path);
}

static int open_stored(ts_stored *stored, const char *path) {
    enum { MOST = 64 };
    const json_t *files, *state;
    TS_TRY(read_manifest(path, &stored->manifest));
    TS_TRY(ts_json_object(stored->manifest, "state", path, &state));
    TS_TRY(ts_json_array(stored->manifest, "files", path, &files));
    if (json_array_size(files) > MOST) {
        return TS_FAIL(TS_EINPUT, "%s: its manifest lists %zu files, at most %d are read", path, json_array_size(files),
                       MOST);
    }
    TS_TRY(ts_arena_open(&stored->arena, "checkpoint", 1 << 16, false));
    stored->file = ts_arena_zalloc(stored->arena, (json_array_size(files) + 1) * sizeof *stored->file);
    if (!stored->file) {
        return TS_ERESOURCE;
    }
    for (size_t i = 0; i < json_array_size(files); i++) {
        TS_TRY(open_file(stored, &stored->file[stored->files++], path, json_array_get(files, i)));
    }
    return TS_OK;
}

int ts_stored_open(ts_stored **out, const char *path) {
    *out = ts_calloc(1, sizeof **out);
    if (!*out) {
        return TS_ERESOURCE;
    }
    const int status = open_stored(*out, path);
    if (status) {
        ts_stored_close(out);
    }
    return status;
}

void ts_stored_close(ts_stored **stored) {
    if (*stored) {
        for (int i = 0; i < (*stored)->files; i++) {
            ts_safetensors_close(&(*stored)->file[i].content);
        }
        json_decref((*stored)->manifest);
        ts_arena_close(&(*stored)->arena);
        free(*stored);
        *stored = NULL;
    }
}

int ts_stored_sum_share(const ts_stored_tensor *tensor, int64_t tensors, int part, int parts, uint64_t *sum) {
    enum { BLOCK = 1 << 16 };
    int64_t total = 0, before = 0;
    for (int64_t i = 0; i < tensors; i++) {
        total += tensor[i].count;
    }
    const ts_part share = ts_split(total, parts, part);
    float *block = ts_malloc(BLOCK * sizeof *block);
    int status = block ? TS_OK : TS_ERESOURCE;
    for (int64_t i = 0; i < tensors && !status; before += tensor[i].count, i++) {
        const int64_t from = share.first > before ? share.first - before : 0;
        const int64_t end = share.first + share.count - before;
        const int64_t to = end < tensor[i].count ? end : tensor[i].count;
        for (int64_t first = from; first < to && !status; first += BLOCK) {
            const int64_t n = to - first < BLOCK ? to - first : BLOCK;
            const ts_slice slice = {.data = block, .pieces = 1, .piece = {{first, 1, n, n}}};
            status = ts_slice_read(&tensor[i].file, &slice, &sum[i]);
        }
    }
    free(block);
    return status;
}

// In halves, whose sums over any number of ranks fit into signed integers.
int ts_checkpoint_add_sums(uint64_t *sum, int64_t count, ts_comm *world) {
    enum { AT_ONCE = 4096 };
    int64_t half[2 * AT_ONCE];
    for (int64_t done = 0; done < count; done += AT_ONCE) {
        uint64_t *const part = sum + done;
        const int64_t n = count - done < AT_ONCE ? count - done : AT_ONCE;
        for (int64_t i = 0; i < n; i++) {
            half[2 * i] = (int64_t)(part[i] & UINT32_MAX);
            half[2 * i + 1] = (int64_t)(part[i] >> 32);
        }
        TS_TRY(ts_all_reduce(world, half, 2 * n, TS_I64, TS_SUM));
        for (int64_t i = 0; i < n; i++) {
            part[i] = (uint64_t)half[2 * i] + ((uint64_t)half[2 * i + 1] << 32);
        }
    }
    return TS_OK;
}

int ts_checkpoint_same_files(const char *path, const char *other, bool *same) {
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
    char name[128], file[TS_PATH_BYTES];
    snprintf(name, sizeof name, "%s.safetensors", group);
    TS_TRY(ts_path_join(file, sizeof file, path, name));
    return ts_safetensors_open(out, file);
}
