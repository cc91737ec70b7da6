// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=30
#include "core/base/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/log.h"
#include "tests/ts_test.h"

static char folder[64];

// "FOLDER/name" in one of four rotating buffers.
static const char *at(const char *name) {
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    CHECK_OK(ts_path_join(path, sizeof paths[0], folder, name));
    return path;
}

static void test_write_and_read(void) {
    char *text = NULL;
    size_t bytes = 0;
    CHECK_OK(ts_file_write_atomic(at("a"), "hello", 5));
    CHECK(ts_path_exists(at("a")) && !ts_path_exists(at("a.tmp")) && ts_path_bytes(at("a")) == 5);
    CHECK_OK(ts_file_read(at("a"), 5, &text, &bytes));
    CHECK(bytes == 5 && strcmp(text, "hello") == 0);
    free(text);
    CHECK_OK(ts_file_write_atomic(at("a"), "", 0));
    CHECK_OK(ts_file_read(at("a"), 0, &text, &bytes));
    CHECK(bytes == 0 && text[0] == '\0');
    free(text);
    CHECK_OK(ts_file_write_atomic(at("a"), "123456", 6));
    CHECK_FAILS(ts_file_read(at("a"), 5, &text, &bytes), TS_EINPUT, "more than the 5");
    CHECK(text == NULL);
    CHECK_FAILS(ts_file_read(at("missing"), 5, &text, &bytes), TS_EINPUT, "missing: cannot open: No such file");
    CHECK_FAILS(ts_file_read(folder, 5, &text, &bytes), TS_EINPUT, "not a regular file");
    CHECK(mkfifo(at("pipe"), 0600) == 0);
    CHECK_FAILS(ts_file_read(at("pipe"), 5, &text, &bytes), TS_EINPUT, "not a regular file");
    CHECK_FAILS(ts_file_write_atomic(at("no/such/folder"), "x", 1), TS_EINPUT, "cannot create");
    CHECK(ts_path_bytes(at("missing")) == -1 && !ts_path_is_folder(at("a")) && ts_path_is_folder(folder));
}

static void test_pread(void) {
    const int fd = open(at("a"), O_RDONLY);
    char part[4] = "";
    CHECK_OK(ts_file_pread_all(fd, part, 3, 2, "a"));
    CHECK(strcmp(part, "345") == 0);
    CHECK_FAILS(ts_file_pread_all(fd, part, 3, 4, "a"), TS_EINPUT, "ends at byte 6, 1 bytes short");
    close(fd);
    CHECK_FAILS(ts_file_pread_all(-1, part, 3, 4, "a"), TS_EINPUT, "cannot read");
}

// A full disk leaves neither a partial file nor a changed one, and says what to do.
static void test_full_disk(void) {
    const int fd = open("/dev/full", O_WRONLY);
    if (fd >= 0) {
        CHECK_FAILS(ts_file_write_all(fd, "x", 1, "disk"), TS_ERESOURCE, "disk: cannot write: No space left");
        close(fd);
    }
    static char large[100000];
    struct rlimit old, tight = {.rlim_cur = 1000, .rlim_max = RLIM_INFINITY};
    CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    tight.rlim_max = old.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &tight) == 0);
    CHECK_FAILS(ts_file_write_atomic(at("a"), large, sizeof large), TS_ERESOURCE, "cannot write");
    CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
    CHECK(ts_path_bytes(at("a")) == 6 && !ts_path_exists(at("a.tmp")));
}

static void test_hash(void) {
    enum { BYTES = 3000001 };  // more than two blocks of the stream
    char *data = malloc(BYTES);
    for (int i = 0; i < BYTES; i++) {
        data[i] = (char)(i * 7 + i / 1000);
    }
    uint64_t hash = 0;
    CHECK_OK(ts_file_write_atomic(at("h"), data, BYTES));
    CHECK_OK(ts_file_hash(at("h"), &hash));
    CHECK(hash == XXH3_64bits(data, BYTES));
    CHECK_FAILS(ts_file_hash(at("missing"), &hash), TS_EINPUT, "missing");
    free(data);
}

static void test_paths(void) {
    char out[8];
    CHECK_OK(ts_path_join(out, sizeof out, "a/", "b"));
    CHECK(strcmp(out, "a/b") == 0);
    CHECK_OK(ts_path_join(out, sizeof out, "abc", "def"));
    CHECK_FAILS(ts_path_join(out, sizeof out, "abcd", "def"), TS_EINPUT, "longer than 8");
    CHECK(strcmp(ts_path_base("a/b/c.mp4"), "c.mp4") == 0 && strcmp(ts_path_base("c"), "c") == 0);
}

static void test_folders(void) {
    CHECK_OK(ts_folder_make(at("x/y/z")));
    CHECK_OK(ts_folder_make(at("x/y/z/")));
    CHECK(ts_path_is_folder(at("x/y/z")));
    CHECK_FAILS(ts_folder_make(at("a/b")), TS_EINPUT, "");
    CHECK_FAILS(ts_folder_make(at("a")), TS_EINPUT, "is a file");
    CHECK_OK(ts_file_write_atomic(at("x/b"), "1", 1));
    CHECK_OK(ts_file_write_atomic(at("x/a"), "1", 1));
    CHECK_OK(ts_file_write_atomic(at("x/B"), "1", 1));
    char **names = NULL;
    int64_t count = 0;
    CHECK_OK(ts_folder_list(at("x"), &names, &count));
    CHECK(count == 4 && strcmp(names[0], "B") == 0 && strcmp(names[1], "a") == 0 && strcmp(names[3], "y") == 0);
    ts_folder_list_free(names, count);
    CHECK_OK(ts_folder_list(at("x/y/z"), &names, &count));
    CHECK(count == 0);
    ts_folder_list_free(names, count);
    CHECK_FAILS(ts_folder_list(at("missing"), &names, &count), TS_EINPUT, "missing");

    CHECK_OK(ts_folder_make(at("there")));
    CHECK_FAILS(ts_folder_commit(at("x"), at("there")), TS_EINPUT, "exists already");
    CHECK_OK(ts_folder_commit(at("x"), at("done")));
    CHECK(!ts_path_exists(at("x")) && ts_path_exists(at("done/y/z")));
    CHECK_FAILS(ts_folder_commit(at("missing"), at("done2")), TS_EINPUT, "missing");

    // Removal does not follow links out of the folder.
    CHECK(symlink(at("there"), at("done/link")) == 0);
    CHECK_OK(ts_file_write_atomic(at("there/kept"), "1", 1));
    CHECK_OK(ts_folder_remove(at("done")));
    CHECK(!ts_path_exists(at("done")) && ts_path_exists(at("there/kept")));
    CHECK_OK(ts_folder_remove(at("done")));
}

// At no instant is there neither the old folder nor the new one.
static void test_replace(void) {
    char path[TS_PATH_BYTES];
    CHECK_OK(ts_folder_make(at("new/part")));
    CHECK_OK(ts_folder_replace(at("new"), at("model")));  // where nothing was
    CHECK(ts_path_is_folder(at("model/part")) && !ts_path_exists(at("new")));
    CHECK_OK(ts_folder_make(at("new/other")));
    CHECK_OK(ts_folder_replace(at("new"), at("model")));
    CHECK(ts_path_is_folder(at("model/other")) && !ts_path_exists(at("model/part")));
    CHECK(!ts_path_exists(at("new")) && !ts_path_exists(at("model.old")));
    CHECK_OK(ts_folder_standing(at("model"), path));
    CHECK(!strcmp(path, at("model")));
    CHECK(rename(at("model"), at("model.old")) == 0);  // a kill between two renames
    ts_log_set_level(TS_LOG_ERROR);
    CHECK_OK(ts_folder_standing(at("model"), path));
    ts_log_set_level(TS_LOG_INFO);
    CHECK(!strcmp(path, at("model.old")));
    CHECK_OK(ts_folder_make(at("new")));
    CHECK_OK(ts_folder_replace(at("new"), at("model")));
    CHECK(ts_path_is_folder(at("model")) && !ts_path_exists(at("model.old")));
    CHECK_FAILS(ts_folder_replace(at("missing"), at("model")), TS_EINPUT, "missing");
    CHECK(ts_path_is_folder(at("model")));
}

static void test_lock(void) {
    int first = -1, second = -1;
    CHECK_OK(ts_folder_make(at("lock")));
    CHECK_OK(ts_folder_lock(at("lock"), 0, &first));
    CHECK_FAILS(ts_folder_lock(at("lock"), 0.05, &second), TS_EUSAGE, "another process is writing there");
    CHECK(first >= 0 && second == -1);
    close(first);
    CHECK_OK(ts_folder_lock(at("lock"), 0, &second));
    close(second);
    CHECK_FAILS(ts_folder_lock(at("missing"), 0, &second), TS_EINPUT, "missing");
}

int main(void) {
    strcpy(folder, "/tmp/tessera-file-XXXXXX");
    CHECK(mkdtemp(folder));
    test_write_and_read();
    test_pread();
    test_full_disk();
    test_hash();
    test_paths();
    test_folders();
    test_replace();
    test_lock();
    CHECK_OK(ts_folder_remove(folder));
    CHECK(!ts_path_exists(folder));
    return ts_test_end();
}
