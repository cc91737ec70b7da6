// SPDX-License-Identifier: Apache-2.0
// Objects: files that are named by what is in them, written once, verified whenever they are read.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/status.h"
#include "infer/steer/state_private.h"

// A latent frame has no more numbers than a canvas may have.
static const size_t MAX_OBJECT_BYTES = (size_t)8 << 30;
static const double patience = 600;  // seconds that another writer may take
// The one object that is being written. No folder for such files: what stands in a folder that the store shares with
// others is theirs, whatever its name.
static const char *const unfinished = "objects/unfinished";

static int store_path(char out[TS_PATH_BYTES], const char *store, const char *name) {
    return ts_path_join(out, TS_PATH_BYTES, store, name);
}

int ts_store_object_path(char path[TS_PATH_BYTES], const char *store, const char *name) {
    char within[64];
    snprintf(within, sizeof within, "objects/%.2s/%.30s", name, name + 2);
    return store_path(path, store, within);
}

static void name_of(const void *data, size_t bytes, char name[TS_OBJECT_NAME_BYTES]) {
    const XXH128_hash_t sum = XXH3_128bits(data, bytes);
    snprintf(name, TS_OBJECT_NAME_BYTES, "%016llx%016llx", (unsigned long long)sum.high64,
             (unsigned long long)sum.low64);
}

// ---- what may be one

// Whether a folder has all that a store has, or nothing else: what stands beside it is left alone, and the making of
// one may have been cut short.
static int looks_like_store(const char *path, bool *is_store) {
    char **names;
    int64_t count, own = 0;
    TS_TRY(ts_folder_list(path, &names, &count));
    for (int64_t i = 0; i < count; i++) {
        own += strcmp(names[i], "objects") == 0 || strcmp(names[i], "states") == 0;
    }
    *is_store = own == 2 || own == count;
    ts_folder_list_free(names, count);
    return TS_OK;
}

// The folder itself, or the nearest one above that is there.
static void standing_folder(const char *path, char out[TS_PATH_BYTES]) {
    snprintf(out, TS_PATH_BYTES, "%s", path);
    while (!ts_path_exists(out)) {
        char *end = strrchr(out, '/');
        if (!end) {
            strcpy(out, ".");
        } else {
            end[end == out] = '\0';  // "/" stays
        }
    }
}

int ts_state_check_store(const char *option, const char *path) {
    char folder[TS_PATH_BYTES];
    bool is_store = true;
    if (!*path || strlen(path) >= TS_PATH_BYTES - 64) {
        return TS_FAIL(TS_EUSAGE, "%s %.80s: is no path of a folder, or too long a one", option, path);
    }
    standing_folder(path, folder);
    if (!ts_path_is_folder(folder)) {
        return TS_FAIL(TS_EINPUT, "%s: %s is a file, and states need a folder; give another one", option, folder);
    }
    if (access(folder, W_OK | X_OK)) {
        return TS_FILE_FAIL(folder, "write states there");
    }
    TS_TRY(strcmp(folder, path) == 0 ? looks_like_store(path, &is_store) : TS_OK);
    return is_store ? TS_OK
                    : TS_FAIL(TS_EINPUT, "%s: %s holds other things and is no store of states; give a new folder",
                              option, path);
}

int ts_state_check_place(const char *option, const char *path) {
    char store[TS_PATH_BYTES];
    const char *name;
    TS_TRY(ts_state_check_path(option, path));
    TS_TRY(ts_state_split(path, store, &name));
    return ts_state_check_store(option, store);
}

// ---- opening for writing

int ts_store_open(ts_store *s, const char *path) {
    char folder[TS_PATH_BYTES];
    *s = (ts_store){.lock = -1};
    TS_TRY(ts_state_check_store("state", path));
    strcpy(s->path, path);
    TS_TRY(store_path(folder, path, "objects"));
    TS_TRY(ts_folder_make(folder));
    TS_TRY(store_path(folder, path, "states"));
    TS_TRY(ts_folder_make(folder));
    TS_TRY(ts_folder_lock(path, patience, &s->lock));
    s->made = json_array();
    TS_TRY(store_path(folder, path, unfinished));
    return unlink(folder) && errno != ENOENT ? TS_FILE_FAIL(folder, "remove") : TS_OK;  // nobody else writes it now
}

// One call for all of them, where a sync of each file and folder takes a turn of the disk each; and it reaches what a
// killed writer has put and not synced.
int ts_store_sync(ts_store *s) {
    return syncfs(s->lock) ? TS_FILE_FAIL(s->path, "sync") : TS_OK;
}

void ts_store_take_back(ts_store *s) {
    char path[TS_PATH_BYTES];
    size_t i;
    json_t *name;
    json_array_foreach(s->made, i, name) {
        if (!ts_store_object_path(path, s->path, json_string_value(name))) {
            unlink(path);
            path[ts_path_base(path) - path - 1] = '\0';
            rmdir(path);  // if it was the only one there
        }
    }
}

void ts_store_close(ts_store *s) {
    json_decref(s->made);
    s->made = NULL;
    if (s->lock >= 0) {
        close(s->lock);
    }
    s->lock = -1;
}

// ---- objects

static bool is_there(const char *path, const void *data, size_t bytes) {
    char *text = NULL;
    size_t length = 0;
    if (ts_path_bytes(path) != (int64_t)bytes || ts_file_read(path, bytes, &text, &length)) {
        return false;
    }
    const bool same = length == bytes && memcmp(text, data, bytes) == 0;
    free(text);
    return same;
}

static int write_file(const char *path, const void *data, size_t bytes) {
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        return TS_FILE_FAIL(path, "create");
    }
    const int status = ts_file_write_all(fd, data, bytes, path);
    return close(fd) && !status ? TS_FILE_FAIL(path, "close") : status;
}

int ts_store_put(ts_store *s, const void *data, size_t bytes, char name[TS_OBJECT_NAME_BYTES]) {
    char path[TS_PATH_BYTES], temporary[TS_PATH_BYTES], folder[TS_PATH_BYTES];
    name_of(data, bytes, name);
    TS_TRY(ts_store_object_path(path, s->path, name));
    if (is_there(path, data, bytes)) {
        return TS_OK;
    }
    const bool is_new = !ts_path_exists(path);
    snprintf(folder, sizeof folder, "%.*s", (int)(ts_path_base(path) - path - 1), path);
    if (mkdir(folder, 0777) && errno != EEXIST) {
        return TS_FILE_FAIL(folder, "make the folder");
    }
    TS_TRY(store_path(temporary, s->path, unfinished));
    int status = write_file(temporary, data, bytes);
    if (!status && rename(temporary, path)) {
        status = TS_FILE_FAIL(path, "rename into place");
    }
    if (status) {
        unlink(temporary);
        rmdir(folder);  // if it was made for nothing
    } else if (is_new && json_array_append_new(s->made, json_string(name))) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for the names of objects");
    }
    return status;
}

static int fail_missing(const char *path) {
    return TS_FAIL(TS_EINPUT, "%s: is missing; restore the whole store from a copy", path);
}

static int fail_damaged(const char *path) {
    return TS_FAIL(TS_EINPUT,
                   "%s: is damaged, its bytes are not those that its name is the sum of; restore it from a copy", path);
}

int ts_store_verify(const char *store, const char *name) {
    char path[TS_PATH_BYTES], found[TS_OBJECT_NAME_BYTES];
    char *data = NULL;
    size_t bytes = 0;
    TS_TRY(ts_store_object_path(path, store, name));
    if (!ts_path_exists(path)) {
        return fail_missing(path);
    }
    TS_TRY(ts_file_read(path, MAX_OBJECT_BYTES, &data, &bytes));
    name_of(data, bytes, found);
    free(data);
    return strcmp(found, name) == 0 ? TS_OK : fail_damaged(path);
}

int ts_store_get(const char *store, const char *name, void *data, size_t bytes) {
    char path[TS_PATH_BYTES], found[TS_OBJECT_NAME_BYTES];
    TS_TRY(ts_store_object_path(path, store, name));
    const int64_t there = ts_path_bytes(path);
    if (there < 0) {
        return fail_missing(path);
    }
    if (there != (int64_t)bytes) {
        return TS_FAIL(TS_EINPUT, "%s: has %lld bytes in place of %zu; restore it from a copy", path, (long long)there,
                       bytes);
    }
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return TS_FILE_FAIL(path, "open");
    }
    const int status = ts_file_pread_all(fd, data, bytes, 0, path);
    close(fd);
    TS_TRY(status);
    name_of(data, bytes, found);
    return strcmp(found, name) == 0 ? TS_OK : fail_damaged(path);
}

// ---- what is there

bool ts_store_is_name(const char *text) {
    return strlen(text) == TS_OBJECT_NAME_BYTES - 1 && strspn(text, "0123456789abcdef") == TS_OBJECT_NAME_BYTES - 1;
}

// Those of one folder, whose name opens theirs.
static int visit_folder(const char *objects, const char *head, int (*visit)(void *, const char *), void *user) {
    char folder[TS_PATH_BYTES], name[TS_OBJECT_NAME_BYTES], **rest;
    int64_t count;
    TS_TRY(ts_path_join(folder, sizeof folder, objects, head));
    TS_TRY(ts_folder_list(folder, &rest, &count));
    int status = TS_OK;
    for (int64_t i = 0; i < count && !status; i++) {
        const int bytes = snprintf(name, sizeof name, "%s%s", head, rest[i]);
        status = bytes < (int)sizeof name && ts_store_is_name(name) ? visit(user, name) : TS_OK;
    }
    ts_folder_list_free(rest, count);
    return status;
}

int ts_store_visit(const char *store, int (*visit)(void *user, const char *name), void *user) {
    char objects[TS_PATH_BYTES], **heads;
    int64_t count;
    TS_TRY(store_path(objects, store, "objects"));
    if (!ts_path_is_folder(objects)) {
        return TS_OK;
    }
    TS_TRY(ts_folder_list(objects, &heads, &count));
    int status = TS_OK;
    for (int64_t i = 0; i < count && !status; i++) {
        const bool is_head = strlen(heads[i]) == 2 && strspn(heads[i], "0123456789abcdef") == 2;
        status = is_head ? visit_folder(objects, heads[i], visit, user) : TS_OK;
    }
    ts_folder_list_free(heads, count);
    return status;
}
