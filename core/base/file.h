// SPDX-License-Identifier: Apache-2.0
// Files and folders: whole reads with a limit, atomic writes, folder walks.
//
// Nothing is ever written in place. A file is written to "NAME.tmp", synced and renamed; a folder likewise.
#ifndef TS_BASE_FILE_H
#define TS_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TS_PATH_BYTES = 4096 };  // room for any path, its terminator included

// Whole file into a new NUL-terminated buffer that the caller frees. TS_EINPUT when missing or larger than max_bytes.
int ts_file_read(const char *path, size_t max_bytes, char **out, size_t *out_bytes);
// Writes path.tmp, fsyncs, renames over path, fsyncs the folder.
int ts_file_write_atomic(const char *path, const void *data, size_t bytes);
// Renames within a folder and fsyncs that folder: how a finished and synced temporary file gets its name.
int ts_file_rename(const char *from, const char *to);
// write(2) / pread(2) until done; TS_ERESOURCE on a full disk, TS_EINPUT on a short file. `path` for the message only.
int ts_file_write_all(int fd, const void *data, size_t bytes, const char *path);
int ts_file_pread_all(int fd, void *data, size_t bytes, int64_t offset, const char *path);
// The status and message of the last failed system call on `path`, from errno: "PATH: cannot WHAT: reason".
// TS_ERESOURCE for what the machine ran out of (space, handles, memory), else TS_EINPUT.
#define TS_FILE_FAIL(path, what) ts_file_fail((path), (what), __FILE__, __LINE__)
int ts_file_fail(const char *path, const char *what, const char *file, int line);
// XXH3-64 of a whole file, streamed.
int ts_file_hash(const char *path, uint64_t *out);

bool ts_path_exists(const char *path);
bool ts_path_is_folder(const char *path);
int64_t ts_path_bytes(const char *path);  // -1 when missing
// "dir/name" into out; TS_EINPUT when it does not fit.
int ts_path_join(char *out, size_t out_bytes, const char *dir, const char *name);
const char *ts_path_base(const char *path);  // after the last '/'

int ts_folder_make(const char *path);    // with parents
int ts_folder_sync(const char *path);    // fsync of the directory itself
int ts_folder_remove(const char *path);  // recursively; missing is success
// The same after a failure, whose error stays the one to tell.
void ts_folder_discard(const char *path);
// Keeps other processes that lock it away from a folder, until this one closes *out or ends. Waits `patience` seconds
// for another to go, then TS_EUSAGE. A file system without locks is warned about.
int ts_folder_lock(const char *path, double patience, int *out);
// fsyncs every file and the folder, then renames tmp to final and fsyncs the parent. `final` must not exist.
int ts_folder_commit(const char *tmp, const char *final_path);
// The same, but `final` may exist: the two trade places at one instant, and what was there goes. A file system that
// cannot do that has the old one step aside as FINAL.old until the new one stands: see ts_folder_standing.
int ts_folder_replace(const char *tmp, const char *final_path);
// `path`, or PATH.old with a warning when a kill left nothing else of a folder that was being replaced.
int ts_folder_standing(const char *path, char out[TS_PATH_BYTES]);
// Names (not paths) of entries, sorted bytewise, "." and ".." left out. Caller frees with ts_folder_list_free.
int ts_folder_list(const char *path, char ***out_names, int64_t *out_count);
void ts_folder_list_free(char **names, int64_t count);

#endif
