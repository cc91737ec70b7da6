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

// ---- opening for writing

int ts_store_open(ts_store *s, const char *path) {
    char folder[TS_PATH_BYTES];
    *s = (ts_store){.lock = -1};
    if (strlen(path) >= sizeof s->path) {
        return TS_FAIL(TS_EINPUT, "%.80s...: the path is longer than %d bytes", path, TS_PATH_BYTES);
    }
    strcpy(s->path, path);
    TS_TRY(store_path(folder, path, "objects"));
    TS_TRY(ts_folder_make(folder));
    TS_TRY(store_path(folder, path, "states"));
    TS_TRY(ts_folder_make(folder));
    TS_TRY(ts_folder_lock(path, patience, &s->lock));
    TS_TRY(store_path(folder, path, unfinished));
    return unlink(folder) && errno != ENOENT ? TS_FILE_FAIL(folder, "remove") : TS_OK;  // nobody else writes it now
}

int ts_store_sync(ts_store *s) {
    char folder[TS_PATH_BYTES], within[16];
    for (int i = 0; i < 256; i++) {
        if (s->touched[i]) {
            snprintf(within, sizeof within, "objects/%02x", i);
            TS_TRY(store_path(folder, s->path, within));
            TS_TRY(ts_folder_sync(folder));
        }
    }
    memset(s->touched, 0, sizeof s->touched);
    TS_TRY(store_path(folder, s->path, "objects"));
    return ts_folder_sync(folder);
}

void ts_store_close(ts_store *s) {
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

static int write_synced(const char *path, const void *data, size_t bytes) {
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        return TS_FILE_FAIL(path, "create");
    }
    int status = ts_file_write_all(fd, data, bytes, path);
    if (!status && fsync(fd)) {
        status = TS_FILE_FAIL(path, "sync");
    }
    if (close(fd) && !status) {
        status = TS_FILE_FAIL(path, "close");
    }
    return status;
}

int ts_store_put(ts_store *s, const void *data, size_t bytes, char name[TS_OBJECT_NAME_BYTES]) {
    char path[TS_PATH_BYTES], temporary[TS_PATH_BYTES], folder[TS_PATH_BYTES];
    name_of(data, bytes, name);
    TS_TRY(ts_store_object_path(path, s->path, name));
    if (is_there(path, data, bytes)) {
        return TS_OK;
    }
    snprintf(folder, sizeof folder, "%.*s", (int)(ts_path_base(path) - path - 1), path);
    if (mkdir(folder, 0777) && errno != EEXIST) {
        return TS_FILE_FAIL(folder, "make the folder");
    }
    TS_TRY(store_path(temporary, s->path, unfinished));
    int status = write_synced(temporary, data, bytes);
    if (!status && rename(temporary, path)) {
        status = TS_FILE_FAIL(path, "rename into place");
    }
    if (status) {
        unlink(temporary);
        return status;
    }
    s->touched[strtol((char[]){name[0], name[1], '\0'}, NULL, 16)] = true;
    return TS_OK;
}

int ts_store_get(const char *store, const char *name, void *data, size_t bytes) {
    char path[TS_PATH_BYTES], found[TS_OBJECT_NAME_BYTES];
    TS_TRY(ts_store_object_path(path, store, name));
    const int64_t there = ts_path_bytes(path);
    if (there < 0) {
        return TS_FAIL(TS_EINPUT, "%s: is missing; restore the whole store from a copy", path);
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
    if (strcmp(found, name) != 0) {
        return TS_FAIL(TS_EINPUT,
                       "%s: is damaged, its bytes are not those that its name is the sum of; restore it "
                       "from a copy",
                       path);
    }
    return TS_OK;
}
