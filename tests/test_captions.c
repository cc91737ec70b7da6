// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=30
// The three ways to caption a folder, and what is refused or passed over.
#include <limits.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "data/captions.h"
#include "tests/ts_test.h"

static char folder[64];
static ts_arena *arena;

static void write_bytes(const char *name, const char *text, size_t bytes) {
    char path[PATH_MAX];
    CHECK_OK(ts_path_join(path, sizeof path, folder, name));
    CHECK_OK(ts_file_write_atomic(path, text, bytes));
}

static void write_text(const char *name, const char *text) {
    write_bytes(name, text, strlen(text));
}

// A fresh folder with three files that count as videos.
static void begin(void) {
    CHECK_OK(ts_folder_remove(folder));
    char sub[PATH_MAX];
    CHECK_OK(ts_path_join(sub, sizeof sub, folder, "sub"));
    CHECK_OK(ts_folder_make(sub));
    write_text("a.mp4", "video");
    write_text("b.mkv", "video");
    write_text("sub/c.avi", "video");
}

static int read_all(ts_captions *out) {
    return ts_captions_read(out, folder, arena);
}

static bool has(const ts_captions *c, int64_t i, const char *path, const char *caption) {
    return i < c->count && strcmp(c->file[i].path, path) == 0 && strcmp(c->file[i].caption, caption) == 0;
}

static bool skipped(const ts_captions *c, int64_t i, const char *path, const char *kind) {
    return i < c->skipped_count && strcmp(c->skipped[i].path, path) == 0 && strcmp(c->skipped[i].kind, kind) == 0;
}

static void test_jsonl(void) {
    ts_captions c;
    begin();
    write_text("metadata.jsonl", "{\"file_name\": \"sub/c.avi\", \"text\": \"third\", \"score\": 1}\n\n"
                                 "{\"file_name\": \"a.mp4\", \"text\": \"caf\\u00e9 \\\"x\\\"\"}\r\n"
                                 "{\"file_name\": \"gone.mp4\", \"text\": \"x\"}\n"
                                 "{\"file_name\": \"a.mp4\", \"text\": \"zzz\"}");
    CHECK_OK(read_all(&c));
    CHECK(c.count == 2 && has(&c, 0, "a.mp4", "caf\xc3\xa9 \"x\"") && has(&c, 1, "sub/c.avi", "third"));
    CHECK(c.skipped_count == 2 && skipped(&c, 0, "gone.mp4", "missing") && skipped(&c, 1, "a.mp4", "duplicate"));

    static const struct {
        const char *line, *message;
    } bad[] = {{"{\"file_name\": \"/etc/passwd\", \"text\": \"x\"}", "metadata.jsonl:2: \"/etc/passwd\" is not"},
               {"{\"file_name\": \"../a.mp4\", \"text\": \"x\"}", "metadata.jsonl:2: "},
               {"{\"file_name\": \"sub/../../a.mp4\", \"text\": \"x\"}", "metadata.jsonl:2: "},
               {"{\"file_name\": \"sub/..\", \"text\": \"x\"}", "metadata.jsonl:2: "},
               {"{\"file_name\": \"\", \"text\": \"x\"}", "metadata.jsonl:2: "},
               {"{\"file_name\": \"a.mp4\"}", "metadata.jsonl:2: \"text\""},
               {"{\"file_name\": 3, \"text\": \"x\"}", "metadata.jsonl:2: \"file_name\""},
               {"{\"file_name\": \"a.mp4\", \"text\": \"x\", \"text\": \"y\"}", "metadata.jsonl:2"},
               {"{\"file_name\": \"a.mp4\", \"text\": \"\xff\xfe\"}", "metadata.jsonl:2"},
               {"{\"file_name\": \"a.mp4\", \"text\": \"\\u0000\"}", "metadata.jsonl:2"},
               {"[1, 2]", "metadata.jsonl:2: not a JSON object"},
               {"a.mp4,text", "metadata.jsonl:2"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[512];
        snprintf(text, sizeof text, "{\"file_name\": \"a.mp4\", \"text\": \"x\"}\n%s\n", bad[i].line);
        write_text("metadata.jsonl", text);
        CHECK_FAILS(read_all(&c), TS_EINPUT, bad[i].message);
    }
    write_text("metadata.jsonl", "{\"file_name\": \"..a.mp4\", \"text\": \"two dots are not a parent\"}");
    CHECK_OK(read_all(&c));
    CHECK(c.count == 0 && skipped(&c, 0, "..a.mp4", "missing"));
    write_bytes("metadata.jsonl", "{}\0{}", 5);
    CHECK_FAILS(read_all(&c), TS_EINPUT, "NUL");
}

static void test_csv(void) {
    ts_captions c;
    begin();
    write_text("videos.csv", "\xef\xbb\xbfscore,text,path\r\n"
                             "1,\"comma, \"\"quote\"\" and\nnew line\",a.mp4\r\n"
                             "\r\n"
                             ",plain,sub/c.avi\n"
                             "2,\xff\xfe,b.mkv\n"
                             "3,,gone.mp4");
    CHECK_OK(read_all(&c));
    CHECK(c.count == 2 && has(&c, 0, "a.mp4", "comma, \"quote\" and\nnew line") && has(&c, 1, "sub/c.avi", "plain"));
    CHECK(c.skipped_count == 2 && skipped(&c, 0, "b.mkv", "caption") && skipped(&c, 1, "gone.mp4", "missing"));

    static const struct {
        const char *text, *message;
    } bad[] = {{"", "videos.csv:1: the header"},
               {"\n\n", "videos.csv:1: the header"},
               {"path,caption\na.mp4,x\n", "videos.csv:1: the header"},
               {"path,text\na.mp4,x,y\n", "videos.csv:2: 3 columns"},
               {"path,text\na.mp4,x\nb.mkv\n", "videos.csv:3: 1 columns"},
               {"path,text\na.mp4,\"x\n\n", "videos.csv:2: a quote is not closed"},
               {"path,text\na.mp4,\"x\" y\n", "videos.csv:2: text behind"},
               {"path,text\na\xff.mp4,x\n", "videos.csv:2: the name of a video is not UTF-8"},
               {"path,text\n\"a.mp4\",\"x\ny\"\n../b.mkv,x\n", "videos.csv:4: \"../b.mkv\""}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_text("videos.csv", bad[i].text);
        CHECK_FAILS(read_all(&c), TS_EINPUT, bad[i].message);
    }
    write_text("file.csv", "path,text\n");
    CHECK_FAILS(read_all(&c), TS_EINPUT, "both file.csv and videos.csv");
}

static void test_pairs(void) {
    ts_captions c;
    begin();
    CHECK_FAILS(read_all(&c), TS_EINPUT, "holds no captions");
    write_text("a.txt", "  a caption\nof two lines \r\n\n");
    write_text("ab.txt", "no video");
    CHECK_OK(read_all(&c));
    CHECK(c.count == 1 && has(&c, 0, "a.mp4", "  a caption\nof two lines"));
    CHECK(c.skipped_count == 2 && skipped(&c, 0, "ab.txt", "missing") && skipped(&c, 1, "b.mkv", "caption"));
    char *longer = malloc(200000);
    memset(longer, 'x', 200000);
    write_bytes("a.txt", longer, 8192);
    write_bytes("b.txt", longer, 8193);
    CHECK_OK(read_all(&c));
    CHECK(c.count == 1 && strlen(c.file[0].caption) == 8192 && skipped(&c, 1, "b.mkv", "caption"));
    write_bytes("b.txt", longer, 200000);
    write_bytes("a.txt", "x\0y", 3);
    CHECK_OK(read_all(&c));
    CHECK(c.count == 0 && skipped(&c, 0, "a.mp4", "caption") && skipped(&c, 2, "b.mkv", "caption"));
    free(longer);
}

// Many records: the arrays grow, the order is by path.
static void test_many(void) {
    ts_captions c;
    begin();
    char *text = malloc(1 << 20), *to = text;
    for (int i = 0; i < 3000; i++) {
        to += sprintf(to, "{\"file_name\": \"%s\", \"text\": \"%d\"}\n", i % 1000 == 7 ? "a.mp4" : "none.mp4", i);
    }
    write_text("metadata.jsonl", text);
    CHECK_OK(read_all(&c));
    CHECK(c.count == 1 && has(&c, 0, "a.mp4", "1007") && c.skipped_count == 2999);
    free(text);
}

int main(void) {
    CHECK_OK(ts_arena_open(&arena, "test", 1 << 16, false));
    strcpy(folder, "/tmp/tessera-captions-XXXXXX");
    CHECK(mkdtemp(folder) != NULL);
    test_jsonl();
    test_csv();
    test_pairs();
    test_many();
    ts_captions c;
    CHECK_OK(ts_folder_remove(folder));
    CHECK_FAILS(ts_captions_read(&c, folder, arena), TS_EINPUT, folder);
    ts_arena_close(&arena);
    return ts_test_end();
}
