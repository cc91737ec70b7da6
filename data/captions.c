// SPDX-License-Identifier: Apache-2.0
#include "data/captions.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <utf8proc.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status.h"
#include "core/model/tokenizer.h"

enum { MAX_TABLE_BYTES = 1 << 30, MAX_CSV_COLUMNS = 256 };

typedef struct collector {
    const char *folder;
    ts_arena *arena;
    ts_captioned_file *file;  // grown by doubling; copied into the arena at the end
    ts_skipped_file *skipped;
    int64_t count, skipped_count;
} collector;

// Room for one more element when `count` has reached a power of two.
static int grow(void **array, int64_t count, size_t bytes) {
    if (count & (count - 1)) {
        return TS_OK;
    }
    void *larger = realloc(*array, (size_t)(count ? 2 * count : 1) * bytes);
    if (!larger) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for %lld captions", (long long)count);
    }
    *array = larger;
    return TS_OK;
}

static int skip(collector *c, const char *path, const char *kind, const char *reason) {
    TS_TRY(grow((void **)&c->skipped, c->skipped_count, sizeof *c->skipped));
    const ts_skipped_file record = {ts_arena_strdup(c->arena, path), kind, ts_arena_strdup(c->arena, reason)};
    c->skipped[c->skipped_count++] = record;
    return record.path && record.reason ? TS_OK : TS_ERESOURCE;
}

static bool is_utf8(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes;) {
        utf8proc_int32_t code;
        const utf8proc_ssize_t step =
            utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(bytes - i), &code);
        if (step < 1 || code == 0) {
            return false;
        }
        i += (size_t)step;
    }
    return true;
}

// A path must stay inside the folder. `place` is "file:line".
static int check_path(const char *path, const char *place) {
    if (!is_utf8(path, strlen(path))) {
        return TS_FAIL(TS_EINPUT, "%s: the name of a video is not UTF-8; rename it", place);
    }
    bool leaves = *path == '/' || *path == '\0';
    for (const char *part = path; part && !leaves; part = strchr(part, '/')) {
        part += *part == '/';
        leaves = strncmp(part, "..", 2) == 0 && (part[2] == '/' || part[2] == '\0');
    }
    if (leaves) {
        return TS_FAIL(TS_EINPUT, "%s: \"%.200s\" is not a path inside the folder; absolute paths and .. are refused",
                       place, path);
    }
    return TS_OK;
}

// Why the caption cannot be used, or NULL.
static const char *caption_fault(const char *caption, size_t bytes) {
    if (bytes > TS_MAX_PROMPT_BYTES) {
        return "its caption is longer than 8 KiB";
    }
    return is_utf8(caption, bytes) ? NULL : "its caption is not UTF-8 text";
}

static bool is_file(const char *folder, const char *name) {
    char path[PATH_MAX];
    struct stat s;
    return !ts_path_join(path, sizeof path, folder, name) && !stat(path, &s) && S_ISREG(s.st_mode);
}

static int add(collector *c, const char *place, const char *path, const char *caption, size_t bytes) {
    TS_TRY(check_path(path, place));
    const char *fault = caption_fault(caption, bytes);
    if (fault) {
        return skip(c, path, "caption", fault);
    }
    if (!is_file(c->folder, path)) {
        return skip(c, path, "missing", "there is a caption for it but no such file");
    }
    TS_TRY(grow((void **)&c->file, c->count, sizeof *c->file));
    const ts_captioned_file record = {ts_arena_strdup(c->arena, path), ts_arena_strdup(c->arena, caption)};
    c->file[c->count++] = record;
    return record.path && record.caption ? TS_OK : TS_ERESOURCE;
}

// ---- metadata.jsonl

static int add_json_line(collector *c, const char *line, const char *place) {
    json_t *object;
    TS_TRY(ts_json_parse(line, strlen(line), place, &object));
    const char *name, *text;
    int status = json_is_object(object) ? TS_OK
                                        : TS_FAIL(TS_EINPUT,
                                                  "%s: not a JSON object; each line wants "
                                                  "{\"file_name\": ..., \"text\": ...}",
                                                  place);
    status = status ? status : ts_json_string(object, "file_name", place, &name);
    status = status ? status : ts_json_string(object, "text", place, &text);
    status = status ? status : add(c, place, name, text, strlen(text));
    json_decref(object);
    return status;
}

static int read_jsonl(collector *c, char *text, const char *path) {
    for (int64_t number = 1; text; number++) {
        char *line = strsep(&text, "\n"), place[PATH_MAX + 32];
        if (line[strspn(line, " \t\r")]) {
            snprintf(place, sizeof place, "%s:%" PRId64, path, number);
            TS_TRY(add_json_line(c, line, place));
        }
    }
    return TS_OK;
}

// ---- CSV

typedef struct csv {
    char *rest;
    const char *path;
    int64_t line;      // of `rest`
    int64_t row_line;  // where the row began
    char *field[MAX_CSV_COLUMNS];
    int fields;
} csv;

// Unquotes the field at csv->rest in place. Returns the character behind it in *end: ',', '\n' or 0.
static int csv_field(csv *t, char *end) {
    char *from = t->rest, *to = from;
    t->field[t->fields++] = to;
    if (*from == '"') {
        for (from++; *from != '"' || *++from == '"'; from++) {
            if (!*from) {
                return TS_FAIL(TS_EINPUT, "%s:%" PRId64 ": a quote is not closed", t->path, t->row_line);
            }
            t->line += *from == '\n';
            *to++ = *from;
        }
    } else {
        while (*from && *from != ',' && *from != '\n' && !(*from == '\r' && from[1] == '\n')) {
            *to++ = *from++;
        }
    }
    from += *from == '\r' && from[1] == '\n';
    *end = *from;
    if (*end && *end != ',' && *end != '\n') {
        return TS_FAIL(TS_EINPUT, "%s:%" PRId64 ": text behind a closing quote; double the quotes inside a field",
                       t->path, t->line);
    }
    t->rest = *end ? from + 1 : from;
    t->line += *end == '\n';
    *to = '\0';
    return TS_OK;
}

// The next row that is not empty; TS_EOF at the end.
static int csv_row(csv *t) {
    do {
        if (!*t->rest) {
            return TS_EOF;
        }
        t->fields = 0;
        t->row_line = t->line;
        for (char end = ','; end == ',';) {
            if (t->fields == MAX_CSV_COLUMNS) {
                return TS_FAIL(TS_EINPUT, "%s:%" PRId64 ": more than %d columns", t->path, t->line, MAX_CSV_COLUMNS);
            }
            TS_TRY(csv_field(t, &end));
        }
    } while (t->fields == 1 && !*t->field[0]);
    return TS_OK;
}

static int csv_column(const csv *t, const char *name) {
    for (int i = 0; i < t->fields; i++) {
        if (strcmp(t->field[i], name) == 0) {
            return i;
        }
    }
    return -1;
}

static int read_csv(collector *c, char *text, const char *path) {
    csv table = {.rest = text, .path = path, .line = 1};
    int status = csv_row(&table);
    const int text_column = csv_column(&table, "text");
    const int path_column =
        csv_column(&table, "path") >= 0 ? csv_column(&table, "path") : csv_column(&table, "file_name");
    if (status == TS_EOF || (!status && (text_column < 0 || path_column < 0))) {
        return TS_FAIL(TS_EINPUT, "%s:1: the header must name the columns path and text", path);
    }
    const int columns = table.fields;
    while (!status && !(status = csv_row(&table))) {
        char place[PATH_MAX + 32];
        snprintf(place, sizeof place, "%s:%" PRId64, path, table.row_line);
        if (table.fields != columns) {
            return TS_FAIL(TS_EINPUT, "%s: %d columns where the header has %d; quote fields that hold commas", place,
                           table.fields, columns);
        }
        const char *caption = table.field[text_column];
        status = add(c, place, table.field[path_column], caption, strlen(caption));
    }
    return status == TS_EOF ? TS_OK : status;
}

// ---- a.mp4 + a.txt

static const char *extension(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot && dot != name ? dot + 1 : "";
}

static bool is_video_name(const char *name) {
    static const char *const known[] = {"mp4", "m4v",  "mov", "mkv", "webm", "avi", "ts", "mts",
                                        "mpg", "mpeg", "flv", "ogv", "3gp",  "y4m", NULL};
    for (int i = 0; known[i]; i++) {
        if (strcasecmp(extension(name), known[i]) == 0) {
            return true;
        }
    }
    return false;
}

static int add_pair(collector *c, const char *video) {
    char name[NAME_MAX + 8], path[PATH_MAX];
    snprintf(name, sizeof name, "%.*s.txt", (int)(strlen(video) - strlen(extension(video)) - 1), video);
    TS_TRY(ts_path_join(path, sizeof path, c->folder, name));
    if (!is_file(c->folder, name)) {
        return skip(c, video, "caption", "there is no text file beside it");
    }
    char *text;
    size_t bytes;
    const int status = ts_file_read(path, 16 * TS_MAX_PROMPT_BYTES, &text, &bytes);
    if (status) {
        return status == TS_EINPUT ? skip(c, video, "caption", ts_error_text()) : status;
    }
    while (bytes && strchr(" \t\r\n", text[bytes - 1]) && text[bytes - 1]) {
        text[--bytes] = '\0';
    }
    const int added = add(c, path, video, text, bytes);
    free(text);
    return added;
}

// Whether a video lies beside text file `at`. The names are sorted, so all that share its stem are its neighbours.
static bool has_video(char *const *names, int64_t count, int64_t at) {
    const size_t stem = strlen(names[at]) - 3;  // with the dot
    int64_t first = at;
    while (first > 0 && strncmp(names[first - 1], names[at], stem) == 0) {
        first--;
    }
    for (int64_t i = first; i < count && strncmp(names[i], names[at], stem) == 0; i++) {
        if (is_video_name(names[i]) && !strchr(names[i] + stem, '.')) {
            return true;
        }
    }
    return false;
}

static int read_pairs(collector *c, char *const *names, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const bool video = is_video_name(names[i]);
        if (!video && strcmp(extension(names[i]), "txt") != 0) {
            continue;
        }
        TS_TRY(check_path(names[i], c->folder));
        if (video) {
            TS_TRY(add_pair(c, names[i]));
        } else if (!has_video(names, count, i)) {
            TS_TRY(skip(c, names[i], "missing", "there is no video beside this text file"));
        }
    }
    return TS_OK;
}

// ---- the folder

static int read_table(collector *c, const char *name, int (*read)(collector *, char *, const char *)) {
    char path[PATH_MAX], *text;
    size_t bytes;
    TS_TRY(ts_path_join(path, sizeof path, c->folder, name));
    TS_TRY(ts_file_read(path, MAX_TABLE_BYTES, &text, &bytes));
    const size_t mark = bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;  // spreadsheets write one
    const int status = strlen(text) == bytes ? read(c, text + mark, path)
                                             : TS_FAIL(TS_EINPUT, "%s: holds a NUL byte; give a text file", path);
    free(text);
    return status;
}

static int read_folder(collector *c, char *const *names, int64_t count) {
    const char *csv_name = NULL;
    bool texts = false;
    for (int64_t i = 0; i < count; i++) {
        if (strcmp(names[i], "metadata.jsonl") == 0) {
            return read_table(c, names[i], read_jsonl);
        }
        texts = texts || strcmp(extension(names[i]), "txt") == 0;
    }
    for (int64_t i = 0; i < count; i++) {
        if (strcasecmp(extension(names[i]), "csv") == 0) {
            if (csv_name) {
                return TS_FAIL(TS_EINPUT, "%s: holds both %s and %s; leave the one with the captions", c->folder,
                               csv_name, names[i]);
            }
            csv_name = names[i];
        }
    }
    if (csv_name) {
        return read_table(c, csv_name, read_csv);
    }
    if (!texts) {
        return TS_FAIL(TS_EINPUT,
                       "%s: holds no captions; it wants metadata.jsonl, a .csv file, or a .txt beside each "
                       "video",
                       c->folder);
    }
    return read_pairs(c, names, count);
}

static int compare_records(const void *a, const void *b) {
    const ts_captioned_file *x = a, *y = b;
    const int order = strcmp(x->path, y->path);
    return order ? order : strcmp(x->caption, y->caption);  // so that duplicates come out the same everywhere
}

// Sorts, and takes out what names a video a second time.
static int sort_unique(collector *c) {
    if (c->count) {
        qsort(c->file, (size_t)c->count, sizeof *c->file, compare_records);
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < c->count; i++) {
        if (kept && strcmp(c->file[kept - 1].path, c->file[i].path) == 0) {
            TS_TRY(skip(c, c->file[i].path, "duplicate", "it is named twice; one caption is kept"));
        } else {
            c->file[kept++] = c->file[i];
        }
    }
    c->count = kept;
    return TS_OK;
}

static void *keep(ts_arena *arena, const void *array, int64_t count, size_t bytes) {
    void *kept = ts_arena_alloc(arena, (size_t)(count ? count : 1) * bytes);
    return kept && count ? memcpy(kept, array, (size_t)count * bytes) : kept;
}

int ts_captions_read(ts_captions *out, const char *folder, ts_arena *arena) {
    *out = (ts_captions){0};
    char **names;
    int64_t count;
    TS_TRY(ts_folder_list(folder, &names, &count));
    collector c = {.folder = folder, .arena = arena};
    int status = read_folder(&c, names, count);
    ts_folder_list_free(names, count);
    status = status ? status : sort_unique(&c);
    if (!status) {
        *out = (ts_captions){.count = c.count,
                             .file = keep(arena, c.file, c.count, sizeof *c.file),
                             .skipped_count = c.skipped_count,
                             .skipped = keep(arena, c.skipped, c.skipped_count, sizeof *c.skipped)};
        status = out->file && out->skipped ? TS_OK : TS_ERESOURCE;
    }
    free(c.file);
    free(c.skipped);
    return status;
}
