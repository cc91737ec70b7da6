// SPDX-License-Identifier: Apache-2.0
// Values out: nested YAML that reads back to equal values, and one JSON object.
#include <ctype.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utf8proc.h>

#include "core/base/status.h"
#include "core/config/option.h"
#include "core/config/value.h"

enum { NAME_BYTES = 256 };

// Calls back for every option and section below `section` ("" or "train."), in table order, each section once where its
// first option stands.
typedef struct visitor {
    int (*value)(void *context, const ts_option *option, const char *name, int depth);
    int (*open)(void *context, const char *name, int depth);
    void *context;
} visitor;

static int visit(const ts_option *table, const char *section, int depth, const visitor *v) {
    const size_t skip = strlen(section);
    for (const ts_option *option = table; option->name; option++) {
        if (strncmp(option->name, section, skip) != 0) {
            continue;
        }
        const char *name = option->name + skip;
        const size_t length = strcspn(name, ".");
        if (!name[length]) {
            TS_TRY(v->value(v->context, option, name, depth));
            continue;
        }
        char inner[NAME_BYTES];
        TS_ASSERT(skip + length + 1 < sizeof inner);
        memcpy(inner, option->name, skip + length + 1);
        inner[skip + length + 1] = '\0';
        const ts_option *first = table;
        while (strncmp(first->name, inner, skip + length + 1) != 0) {
            first++;
        }
        if (first == option) {
            const char *const own = inner + skip;
            inner[skip + length] = '\0';
            TS_TRY(v->open(v->context, own, depth));
            inner[skip + length] = '.';
            TS_TRY(visit(table, inner, depth + 1, v));
        }
    }
    return TS_OK;
}

// ---- YAML

typedef struct yaml_writer {
    FILE *out;
    const void *target;
    const void *defaults;  // a struct of defaults: values that equal them are left out; or NULL
    int indent;            // columns
    bool starts_entry;     // the next line is the first of a list's entry
} yaml_writer;

// Readable bare: a path or a word that no YAML reader takes for something else.
static bool is_plain(const char *text) {
    static const char *const words[] = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcasecmp(text, words[i]) == 0) {
            return false;
        }
    }
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-";
    return (isalpha((unsigned char)text[0]) || text[0] == '/') && text[strspn(text, safe)] == '\0';
}

static void write_escaped(utf8proc_int32_t code, const utf8proc_uint8_t *bytes, int count, FILE *out) {
    const bool control = code < 0x20 || (code >= 0x7f && code < 0xa0);
    if (code == '"' || code == '\\') {
        fprintf(out, "\\%c", (char)code);
    } else if (control) {
        fprintf(out, "\\x%02X", (unsigned)code);
    } else if (code == 0x2028 || code == 0x2029 || code == 0xfeff || code == 0xfffe || code == 0xffff) {
        fprintf(out, "\\u%04X", (unsigned)code);  // line breaks and code points that a YAML stream must not hold
    } else {
        fwrite(bytes, 1, (size_t)count, out);
    }
}

static int write_text(const char *text, FILE *out) {
    if (is_plain(text)) {
        fputs(text, out);
        return TS_OK;
    }
    fputc('"', out);
    const utf8proc_uint8_t *at = (const utf8proc_uint8_t *)text;
    while (*at) {
        utf8proc_int32_t code;
        const utf8proc_ssize_t bytes = utf8proc_iterate(at, -1, &code);
        if (bytes < 1) {
            return TS_FAIL(TS_EINPUT, "\"%.80s\" is not UTF-8 and cannot be saved as YAML", text);
        }
        write_escaped(code, at, (int)bytes, out);
        at += bytes;
    }
    fputc('"', out);
    return TS_OK;
}

static int write_list(const ts_string_list *list, FILE *out) {
    fputc('[', out);
    for (int64_t i = 0; i < list->count; i++) {
        fputs(i ? ", " : "", out);
        TS_TRY(write_text(list->items[i], out));
    }
    fputc(']', out);
    return TS_OK;
}

static int write_value(const ts_option *option, const void *target, FILE *out) {
    char number[32];
    const char *text;
    const ts_size2 *size;
    switch (option->type) {
    case TS_OPTION_INT:
        fprintf(out, "%lld", (long long)*TS_CONST_FIELD(int64_t, option, target));
        return TS_OK;
    case TS_OPTION_REAL:
        fputs(ts_option_real_text(*TS_CONST_FIELD(double, option, target), number, sizeof number), out);
        return TS_OK;
    case TS_OPTION_REAL_OR_NAN:
        fputs(ts_option_is_unset(option, target)
                  ? "null"
                  : ts_option_real_text(*TS_CONST_FIELD(double, option, target), number, sizeof number),
              out);
        return TS_OK;
    case TS_OPTION_BOOL:
        fputs(*TS_CONST_FIELD(bool, option, target) ? "true" : "false", out);
        return TS_OK;
    case TS_OPTION_STRING:
        text = *TS_CONST_FIELD(char *, option, target);
        if (text) {
            return write_text(text, out);
        }
        fputs("null", out);
        return TS_OK;
    case TS_OPTION_CHOICE:
        return write_text(ts_option_choices(option)[*TS_CONST_FIELD(int, option, target)], out);
    case TS_OPTION_SIZE:
        size = TS_CONST_FIELD(ts_size2, option, target);
        fprintf(out, "%lldx%lld", (long long)size->width, (long long)size->height);
        return TS_OK;
    case TS_OPTION_LIST:
        return write_list(TS_CONST_FIELD(ts_string_list, option, target), out);
    case TS_OPTION_RECORDS:
        break;  // not on one line
    }
    return TS_FAIL(TS_EINTERNAL, "option \"%s\" has no known type", option->name);
}

// "key:" at its place, after the dash where it is the first of an entry.
static void start_line(yaml_writer *w, const char *name, int depth) {
    const int column = w->indent + 2 * depth;
    if (w->starts_entry) {
        fprintf(w->out, "%*s- %s:", column - 2, "", name);
    } else {
        fprintf(w->out, "%*s%s:", column, "", name);
    }
    w->starts_entry = false;
}

// A zeroed struct with the table's defaults.
static void *make_defaults(const ts_option *table, ts_arena *arena) {
    void *defaults = ts_arena_zalloc(arena, ts_option_extent(table));
    return defaults && ts_options_default(table, defaults, arena) == TS_OK ? defaults : NULL;
}

static int write_map(const ts_option *table, yaml_writer *w);

// The entries of a list, below its key at `column`.
static int write_records(const ts_option *option, const yaml_writer *parent, int column) {
    const ts_record *record = ts_option_record(option);
    const ts_records records = ts_option_records(option, parent->target);
    if (records.count == 0) {
        fputs(" []\n", parent->out);
        return TS_OK;
    }
    fputc('\n', parent->out);
    ts_arena *arena = NULL;
    TS_TRY(ts_arena_open(&arena, "defaults of a record", 1 << 10, false));
    const void *defaults = make_defaults(record->table, arena);
    int status = defaults ? TS_OK : TS_ERESOURCE;
    for (int64_t i = 0; i < records.count && !status; i++) {
        yaml_writer w = {.out = parent->out,
                         .target = (const char *)records.items + (size_t)i * record->bytes,
                         .defaults = defaults,
                         .indent = column + 4,
                         .starts_entry = true};
        status = write_map(record->table, &w);
        if (w.starts_entry) {
            fprintf(w.out, "%*s- {}\n", column + 2, "");
        }
    }
    ts_arena_close(&arena);
    return status;
}

static int yaml_value(void *context, const ts_option *option, const char *name, int depth) {
    yaml_writer *w = context;
    if (w->defaults && ts_option_equal(option, w->target, w->defaults)) {
        return TS_OK;
    }
    start_line(w, name, depth);
    if (option->type == TS_OPTION_RECORDS) {
        return write_records(option, w, w->indent + 2 * depth);
    }
    fputc(' ', w->out);
    TS_TRY(write_value(option, w->target, w->out));
    fputc('\n', w->out);
    return TS_OK;
}

static int yaml_open(void *context, const char *name, int depth) {
    yaml_writer *w = context;
    start_line(w, name, depth);
    fputc('\n', w->out);
    return TS_OK;
}

static int write_map(const ts_option *table, yaml_writer *w) {
    const visitor v = {.value = yaml_value, .open = yaml_open, .context = w};
    return visit(table, "", 0, &v);
}

static int finish_file(FILE *out) {
    if (fflush(out) || ferror(out)) {
        return TS_FAIL(TS_ERESOURCE, "cannot write the configuration; is the disk full?");
    }
    return TS_OK;
}

int ts_options_write_yaml(const ts_option *table, const void *target, FILE *out) {
    TS_TRY(write_map(table, &(yaml_writer){.out = out, .target = target}));
    return finish_file(out);
}

int ts_options_write_changed(const ts_option *table, const void *target, FILE *out) {
    ts_arena *arena = NULL;
    TS_TRY(ts_arena_open(&arena, "defaults of options", 1 << 10, false));
    const void *defaults = make_defaults(table, arena);
    const int status =
        defaults ? write_map(table, &(yaml_writer){.out = out, .target = target, .defaults = defaults}) : TS_ERESOURCE;
    ts_arena_close(&arena);
    return status ? status : finish_file(out);
}

// ---- JSON

enum { JSON_LEVELS = 16 };

typedef struct json_writer {
    const void *target;
    json_t *level[JSON_LEVELS];  // level[0] owns all
} json_writer;

static json_t *records_as_json(const ts_option *option, const void *target);

static json_t *value_as_json(const ts_option *option, const void *target) {
    const char *text;
    const ts_size2 *size;
    const ts_string_list *list;
    json_t *array;
    switch (option->type) {
    case TS_OPTION_INT:
        return json_integer(*TS_CONST_FIELD(int64_t, option, target));
    case TS_OPTION_REAL_OR_NAN:
        if (ts_option_is_unset(option, target)) {
            return json_null();
        }
        return json_real(*TS_CONST_FIELD(double, option, target));
    case TS_OPTION_REAL:
        return json_real(*TS_CONST_FIELD(double, option, target));
    case TS_OPTION_BOOL:
        return json_boolean(*TS_CONST_FIELD(bool, option, target));
    case TS_OPTION_STRING:
        text = *TS_CONST_FIELD(char *, option, target);
        return text ? json_string(text) : json_null();
    case TS_OPTION_CHOICE:
        return json_string(ts_option_choices(option)[*TS_CONST_FIELD(int, option, target)]);
    case TS_OPTION_SIZE:
        size = TS_CONST_FIELD(ts_size2, option, target);
        return json_pack("[I, I]", (json_int_t)size->width, (json_int_t)size->height);
    case TS_OPTION_LIST:
        list = TS_CONST_FIELD(ts_string_list, option, target);
        array = json_array();
        for (int64_t i = 0; i < list->count; i++) {
            json_array_append_new(array, json_string(list->items[i]));
        }
        return array;
    case TS_OPTION_RECORDS:
        return records_as_json(option, target);
    }
    return NULL;
}

static int json_value(void *context, const ts_option *option, const char *name, int depth) {
    json_writer *w = context;
    if (json_object_set_new(w->level[depth], name, value_as_json(option, w->target))) {
        return TS_FAIL(TS_EINPUT, "option \"%s\" has no JSON form: not finite, not UTF-8 or out of memory",
                       option->name);
    }
    return TS_OK;
}

static int json_open(void *context, const char *name, int depth) {
    json_writer *w = context;
    TS_ASSERT(depth + 1 < JSON_LEVELS);
    w->level[depth + 1] = json_object();
    if (json_object_set_new(w->level[depth], name, w->level[depth + 1])) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for the configuration's JSON");
    }
    return TS_OK;
}

// One object of all the table's values; NULL with the error text on failure.
static json_t *map_as_json(const ts_option *table, const void *target) {
    json_writer w = {.target = target, .level = {json_object()}};
    const visitor v = {.value = json_value, .open = json_open, .context = &w};
    if (visit(table, "", 0, &v)) {
        json_decref(w.level[0]);
        return NULL;
    }
    return w.level[0];
}

static json_t *records_as_json(const ts_option *option, const void *target) {
    const ts_record *record = ts_option_record(option);
    const ts_records records = ts_option_records(option, target);
    json_t *array = json_array();
    for (int64_t i = 0; i < records.count && array; i++) {
        json_t *entry = map_as_json(record->table, (const char *)records.items + (size_t)i * record->bytes);
        if (json_array_append_new(array, entry)) {
            json_decref(array);
            array = NULL;
        }
    }
    return array;
}

const char *ts_options_to_json(const ts_option *table, const void *target, ts_arena *arena) {
    json_t *all = map_as_json(table, target);
    if (!all) {
        return NULL;
    }
    const char *copy = NULL;
    char *text = json_dumps(all, JSON_COMPACT | JSON_SORT_KEYS);
    if (text) {
        copy = ts_arena_strdup(arena, text);
    } else {
        (void)TS_FAIL(TS_ERESOURCE, "out of memory for the configuration's JSON");
    }
    free(text);
    json_decref(all);
    return copy;
}
