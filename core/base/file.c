// SPDX-License-Identifier: Apache-2.0
#include "core/base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/base/status.h"

enum { HASH_BLOCK = 1 << 20, WALK_HANDLES = 32 };

int ts_file_fail(const char *path, const char *what, const char *file, int line) {
    const int error = errno;
    const char *remedy = "";
    int code = TS_EINPUT;
    switch (error) {
    case ENOSPC:
    case EDQUOT:
        remedy = "; free some space and run again";
        code = TS_ERESOURCE;
        break;
    case EMFILE:
    case ENFILE:
        remedy = "; raise the limit of open files (ulimit -n)";
        code = TS_ERESOURCE;
        break;
    case EFBIG:
        remedy = "; raise the limit of file sizes (ulimit -f)";
        code = TS_ERESOURCE;
        break;
    case ENOMEM:
    case EIO:
        code = TS_ERESOURCE;
        break;
    default:
        break;
    }
    return ts_fail(code, file, line, "%s: cannot %s: %s%s", path, what, strerror(error), remedy);
}

// ---- reading

static int read_open_file(int fd, const char *path, size_t max_bytes, char **out, size_t *out_bytes) {
    struct stat about;
    if (fstat(fd, &about)) {
        return TS_FILE_FAIL(path, "stat");
    }
    if (!S_ISREG(about.st_mode)) {
        return TS_FAIL(TS_EINPUT, "%s: is not a regular file", path);
    }
    const size_t bytes = (size_t)about.st_size;
    if (bytes > max_bytes) {
        return TS_FAIL(TS_EINPUT, "%s: has %zu bytes, more than the %zu that such a file may have", path, bytes,
                       max_bytes);
    }
    char *text = ts_malloc(bytes + 1);
    if (!text) {
        return TS_ERESOURCE;
    }
    const int status = ts_file_pread_all(fd, text, bytes, 0, path);
    if (status) {
        free(text);
        return status;
    }
    text[bytes] = '\0';
    *out = text;
    *out_bytes = bytes;
    return TS_OK;
}

int ts_file_read(const char *path, size_t max_bytes, char **out, size_t *out_bytes) {
    *out = NULL;
    *out_bytes = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // never hangs on a named pipe
    if (fd < 0) {
        return TS_FILE_FAIL(path, "open");
    }
    const int status = read_open_file(fd, path, max_bytes, out, out_bytes);
    close(fd);
    return status;
}

int ts_file_pread_all(int fd, void *data, size_t bytes, int64_t offset, const char *path) {
    char *to = data;
    size_t done = 0;
    while (done < bytes) {
        const ssize_t got = pread(fd, to + done, bytes - done, offset + (int64_t)done);
        if (got < 0 && errno != EINTR) {
            return TS_FILE_FAIL(path, "read");
        }
        if (got == 0) {
            return TS_FAIL(TS_EINPUT, "%s: ends at byte %lld, %zu bytes short; the file is truncated", path,
                           (long long)(offset + (int64_t)done), bytes - done);
        }
        done += got > 0 ? (size_t)got : 0;
    }
    return TS_OK;
}

static int hash_stream(int fd, const char *path, XXH3_state_t *state, char *block) {
    for (;;) {
        const ssize_t got = read(fd, block, HASH_BLOCK);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return TS_FILE_FAIL(path, "read");
        }
        if (got == 0) {
            return TS_OK;
        }
        XXH3_64bits_update(state, block, (size_t)got);
    }
}

int ts_file_hash(const char *path, uint64_t *out) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return TS_FILE_FAIL(path, "open");
    }
    int status = TS_ERESOURCE;
    XXH3_state_t *state = XXH3_createState();
    char *block = ts_malloc(HASH_BLOCK);
    if (!state) {
        status = TS_FAIL(TS_ERESOURCE, "%s: out of memory for the checksum", path);
    } else if (block) {
        XXH3_64bits_reset(state);
        status = hash_stream(fd, path, state, block);
        *out = XXH3_64bits_digest(state);
    }
    free(block);
    XXH3_freeState(state);
    close(fd);
    return status;
}

// ---- writing

int ts_file_write_all(int fd, const void *data, size_t bytes, const char *path) {
    const char *from = data;
    while (bytes) {
        const ssize_t put = write(fd, from, bytes);
        if (put < 0 && errno != EINTR) {
            return TS_FILE_FAIL(path, "write");
        }
        if (put > 0) {
            from += put;
            bytes -= (size_t)put;
        }
    }
    return TS_OK;
}

static int parent_folder(const char *path, char out[TS_PATH_BYTES]) {
    const char *slash = strrchr(path, '/');
    const size_t length = slash ? (size_t)(slash - path) : 0;
    if (length >= TS_PATH_BYTES) {
        return TS_FAIL(TS_EINPUT, "%.80s...: the path is longer than %d bytes", path, TS_PATH_BYTES);
    }
    if (!slash) {
        strcpy(out, ".");
    } else if (length == 0) {
        strcpy(out, "/");
    } else {
        memcpy(out, path, length);
        out[length] = '\0';
    }
    return TS_OK;
}

int ts_file_rename(const char *from, const char *to) {
    char parent[TS_PATH_BYTES];
    TS_TRY(parent_folder(to, parent));
    if (rename(from, to)) {
        return TS_FILE_FAIL(to, "rename into place");
    }
    return ts_folder_sync(parent);
}

static int write_and_sync(const char *path, const void *data, size_t bytes) {
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

int ts_file_write_atomic(const char *path, const void *data, size_t bytes) {
    char temporary[TS_PATH_BYTES];
    if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= TS_PATH_BYTES) {
        return TS_FAIL(TS_EINPUT, "%.80s...: the path is longer than %d bytes", path, TS_PATH_BYTES);
    }
    int status = write_and_sync(temporary, data, bytes);
    if (!status) {
        status = ts_file_rename(temporary, path);
    }
    if (status) {
        unlink(temporary);
    }
    return status;
}

// ---- paths

bool ts_path_exists(const char *path) {
    struct stat about;
    return stat(path, &about) == 0;
}

bool ts_path_is_folder(const char *path) {
    struct stat about;
    return stat(path, &about) == 0 && S_ISDIR(about.st_mode);
}

int64_t ts_path_bytes(const char *path) {
    struct stat about;
    return stat(path, &about) ? -1 : (int64_t)about.st_size;
}

int ts_path_join(char *out, size_t out_bytes, const char *dir, const char *name) {
    const size_t length = strlen(dir);
    const char *separator = length && dir[length - 1] != '/' ? "/" : "";
    const int needed = snprintf(out, out_bytes, "%s%s%s", dir, separator, name);
    if (needed < 0 || (size_t)needed >= out_bytes) {
        return TS_FAIL(TS_EINPUT, "%.80s.../%.80s: the path is longer than %zu bytes", dir, name, out_bytes);
    }
    return TS_OK;
}

const char *ts_path_base(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

// ---- folders

int ts_folder_make(const char *path) {
    char partial[TS_PATH_BYTES];
    const size_t length = strlen(path);
    if (length == 0 || length >= TS_PATH_BYTES) {
        return TS_FAIL(TS_EINPUT, "\"%.80s\": a folder's path must have 1 to %d bytes", path, TS_PATH_BYTES - 1);
    }
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0') {
            continue;
        }
        memcpy(partial, path, i);
        partial[i] = '\0';
        if (mkdir(partial, 0777) && errno != EEXIST) {
            return TS_FILE_FAIL(partial, "make the folder");
        }
    }
    if (!ts_path_is_folder(path)) {
        return TS_FAIL(TS_EINPUT, "%s: is a file, and a folder is needed here; move it away", path);
    }
    return TS_OK;
}

static int sync_path(const char *path, int flags) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC | flags);
    if (fd < 0) {
        return TS_FILE_FAIL(path, "open");
    }
    const int failed = fsync(fd);
    const int status = failed ? TS_FILE_FAIL(path, "sync") : TS_OK;
    close(fd);
    return status;
}

int ts_folder_sync(const char *path) {
    return sync_path(path, O_DIRECTORY);
}

int ts_folder_lock(const char *path, double patience, int *out) {
    const double start = ts_clock_seconds();
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return TS_FILE_FAIL(path, "open");
    }
    while (flock(fd, LOCK_EX | LOCK_NB)) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            TS_WARN("%s: cannot be locked (%s); see that no other process writes there", path, strerror(errno));
            break;
        }
        if (ts_clock_seconds() - start > patience) {
            close(fd);
            return TS_FAIL(TS_EUSAGE, "%s: another process is writing there; wait for it, or give another folder",
                           path);
        }
        usleep(20000);
    }
    *out = fd;
    return TS_OK;
}

static int remove_entry(const char *path, const struct stat *about, int kind, struct FTW *where) {
    (void)about, (void)kind, (void)where;
    return remove(path) && errno != ENOENT ? TS_FILE_FAIL(path, "remove") : TS_OK;
}

int ts_folder_remove(const char *path) {
    struct stat about;
    if (lstat(path, &about)) {
        return errno == ENOENT ? TS_OK : TS_FILE_FAIL(path, "remove");
    }
    const int result = nftw(path, remove_entry, WALK_HANDLES, FTW_DEPTH | FTW_PHYS);
    return result == -1 ? TS_FILE_FAIL(path, "walk the folder") : result;
}

void ts_folder_discard(const char *path) {
    char text[2048], place[256];
    snprintf(text, sizeof text, "%s", ts_error_text());
    snprintf(place, sizeof place, "%s", ts_error_place());
    const int status = ts_folder_remove(path);
    if (status) {
        ts_error_set(status, place, text);
    }
}

static int sync_entry(const char *path, const struct stat *about, int kind, struct FTW *where) {
    (void)about, (void)where;
    return kind == FTW_F || kind == FTW_DP ? sync_path(path, 0) : TS_OK;
}

static int sync_folder(const char *path) {
    const int result = nftw(path, sync_entry, WALK_HANDLES, FTW_DEPTH | FTW_PHYS);
    return result == -1 ? TS_FILE_FAIL(path, "walk the folder") : result;
}

int ts_folder_commit(const char *tmp, const char *final_path) {
    struct stat about;
    if (lstat(final_path, &about) == 0) {
        return TS_FAIL(TS_EINPUT, "%s: exists already; remove it or choose another name", final_path);
    }
    TS_TRY(sync_folder(tmp));
    return ts_file_rename(tmp, final_path);
}

static int aside_path(const char *path, char out[TS_PATH_BYTES]) {
    return snprintf(out, TS_PATH_BYTES, "%s.old", path) < TS_PATH_BYTES
               ? TS_OK
               : TS_FAIL(TS_EINPUT, "%.80s...: the path is longer than %d bytes", path, TS_PATH_BYTES);
}

// Where two folders cannot trade places.
static int step_aside(const char *tmp, const char *final_path, const char *old) {
    if (rename(final_path, old)) {
        return TS_FILE_FAIL(final_path, "make room for the new one");
    }
    const int status = ts_file_rename(tmp, final_path);
    if (status) {
        (void)rename(old, final_path);  // the first error is the one to tell
        return status;
    }
    return ts_folder_remove(old);
}

int ts_folder_replace(const char *tmp, const char *final_path) {
    char old[TS_PATH_BYTES], parent[TS_PATH_BYTES];
    TS_TRY(aside_path(final_path, old));
    TS_TRY(parent_folder(final_path, parent));
    TS_TRY(sync_folder(tmp));
    if (!ts_path_exists(final_path)) {
        TS_TRY(ts_file_rename(tmp, final_path));
        return ts_folder_remove(old);
    }
    TS_TRY(ts_folder_remove(old));
    if (renameat2(AT_FDCWD, tmp, AT_FDCWD, final_path, RENAME_EXCHANGE)) {
        return step_aside(tmp, final_path, old);
    }
    TS_TRY(ts_folder_sync(parent));
    return ts_folder_remove(tmp);
}

int ts_folder_standing(const char *path, char out[TS_PATH_BYTES]) {
    TS_TRY(aside_path(path, out));
    if (!ts_path_exists(path) && ts_path_is_folder(out)) {
        TS_WARN("%s: is missing; %s, which it was about to replace, is read", path, out);
        return TS_OK;
    }
    strcpy(out, path);
    return TS_OK;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int collect_names(DIR *folder, const char *path, char ***names, int64_t *count) {
    int64_t room = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(folder);
        if (!entry) {
            return errno ? TS_FILE_FAIL(path, "read the folder") : TS_OK;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
            continue;
        }
        if (*count == room) {
            room = room ? 2 * room : 64;
            char **grown = realloc(*names, (size_t)room * sizeof **names);
            if (!grown) {
                return TS_FAIL(TS_ERESOURCE, "%s: out of memory for %lld names", path, (long long)room);
            }
            *names = grown;
        }
        char *name = strdup(entry->d_name);
        if (!name) {
            return TS_FAIL(TS_ERESOURCE, "%s: out of memory for the names", path);
        }
        (*names)[(*count)++] = name;
    }
}

int ts_folder_list(const char *path, char ***out_names, int64_t *out_count) {
    *out_names = NULL;
    *out_count = 0;
    DIR *folder = opendir(path);
    if (!folder) {
        return TS_FILE_FAIL(path, "open the folder");
    }
    const int status = collect_names(folder, path, out_names, out_count);
    closedir(folder);
    if (status) {
        ts_folder_list_free(*out_names, *out_count);
        *out_names = NULL;
        *out_count = 0;
    } else if (*out_count) {
        qsort(*out_names, (size_t)*out_count, sizeof **out_names, compare_names);
    }
    return status;
}

void ts_folder_list_free(char **names, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        free(names[i]);
    }
    free(names);
}
