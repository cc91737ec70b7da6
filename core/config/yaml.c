// SPDX-License-Identifier: Apache-2.0
// YAML in, by libyaml's events: nothing is built but the values, and every node passes the checks of next_event.
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "core/base/file.h"
#include "core/base/status.h"
#include "core/config/option.h"
#include "core/config/value.h"

enum { MAX_BYTES = 4 << 20, MAX_DEPTH = 16, MAX_NODES = 100000, NAME_BYTES = 256, PLACE_BYTES = 512 };

// A key that was met, for the refusal of duplicates. Unknown keys fail at once, so the list is as short as the table.
typedef struct met_key {
    const char *name;  // full dotted name
    size_t line;
    struct met_key *next;
} met_key;

// The table whose keys are being met, and the struct they go to: the file's or, within a list, an entry's.
typedef struct scope {
    const ts_option *table;
    void *target;
    met_key *met;
} scope;

typedef struct reader {
    yaml_parser_t parser;
    scope at;
    ts_arena *arena;
    const char *path;
    char entry[NAME_BYTES];  // "track[2].boxes[0]", or empty outside of lists
    int depth, nodes;
} reader;

static const char *place_of(const reader *r, size_t line, char out[PLACE_BYTES]) {
    snprintf(out, PLACE_BYTES, "%s:%zu%s%s", r->path, line + 1, *r->entry ? ": " : "", r->entry);
    return out;
}

#define FAIL_AT(r, line, ...) fail_at((r), (line), __LINE__, __VA_ARGS__)
static int __attribute__((format(printf, 4, 5)))
fail_at(const reader *r, size_t line, int source_line, const char *format, ...) {
    char text[1024], place[PLACE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return ts_fail(TS_EUSAGE, __FILE__, source_line, "%s: %s", place_of(r, line, place), text);
}

static int fail_parser(const reader *r) {
    const yaml_parser_t *p = &r->parser;
    switch (p->error) {
    case YAML_MEMORY_ERROR:
        return TS_FAIL(TS_ERESOURCE, "%s: out of memory", r->path);
    case YAML_READER_ERROR:
        return TS_FAIL(TS_EUSAGE, "%s: not UTF-8 text at byte %zu: %s", r->path, p->problem_offset, p->problem);
    default:
        return FAIL_AT(r, p->problem_mark.line, "not valid YAML: %s%s%s", p->problem, p->context ? " " : "",
                       p->context ? p->context : "");
    }
}

static int check_event(reader *r, const yaml_event_t *event) {
    const size_t line = event->start_mark.line;
    const yaml_char_t *anchor = NULL, *tag = NULL;
    bool opens = false;
    switch (event->type) {
    case YAML_ALIAS_EVENT:
        return FAIL_AT(r, line, "aliases (*%.40s) are refused; write the value out", event->data.alias.anchor);
    case YAML_SCALAR_EVENT:
        anchor = event->data.scalar.anchor;
        tag = event->data.scalar.tag;
        break;
    case YAML_SEQUENCE_START_EVENT:
        anchor = event->data.sequence_start.anchor;
        tag = event->data.sequence_start.tag;
        opens = true;
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = event->data.mapping_start.anchor;
        tag = event->data.mapping_start.tag;
        opens = true;
        break;
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        r->depth--;
        return TS_OK;
    default:
        return TS_OK;
    }
    if (anchor) {
        return FAIL_AT(r, line, "anchors (&%.40s) are refused; write the value out", anchor);
    }
    if (tag) {
        return FAIL_AT(r, line, "tags (%.40s) are refused; write the plain value", tag);
    }
    if (++r->nodes > MAX_NODES) {
        return FAIL_AT(r, line, "more than %d values; a configuration is smaller", MAX_NODES);
    }
    r->depth += opens;
    if (r->depth > MAX_DEPTH) {
        return FAIL_AT(r, line, "nested deeper than %d levels", MAX_DEPTH);
    }
    return TS_OK;
}

// The caller deletes *event when this succeeds.
static int next_event(reader *r, yaml_event_t *event) {
    if (!yaml_parser_parse(&r->parser, event)) {
        return fail_parser(r);
    }
    const int status = check_event(r, event);
    if (status) {
        yaml_event_delete(event);
    }
    return status;
}

static bool is_null(const yaml_event_t *event) {
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    if (event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) {
        return false;
    }
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcmp((const char *)event->data.scalar.value, words[i]) == 0) {
            return true;
        }
    }
    return false;
}

// The scalar's text, which must not hide a NUL.
static int scalar_text(const reader *r, const yaml_event_t *event, const char **out) {
    *out = (const char *)event->data.scalar.value;
    if (strlen(*out) != event->data.scalar.length) {
        return FAIL_AT(r, event->start_mark.line, "a text must not hold a zero byte");
    }
    return TS_OK;
}

// ---- lists

// An array that grows. What it outgrows stays in the arena: less, in all, than the array takes itself.
typedef struct growing {
    void *items;
    int64_t count, room;
} growing;

// A place for one more item, or NULL.
static void *grow(ts_arena *arena, growing *list, size_t bytes) {
    if (list->count == list->room) {
        const int64_t room = list->room ? 2 * list->room : 8;
        void *items = ts_arena_alloc(arena, (size_t)room * bytes);
        if (!items) {
            return NULL;
        }
        if (list->count) {
            memcpy(items, list->items, (size_t)list->count * bytes);
        }
        list->items = items;
        list->room = room;
    }
    return (char *)list->items + (size_t)list->count++ * bytes;
}

// The items of a sequence whose start has been read.
static int read_list(reader *r, const ts_option *option, size_t line) {
    growing list = {0};
    for (;;) {
        yaml_event_t event;
        TS_TRY(next_event(r, &event));
        int status = TS_OK;
        const bool ended = event.type == YAML_SEQUENCE_END_EVENT;
        if (!ended && event.type != YAML_SCALAR_EVENT) {
            status = FAIL_AT(r, event.start_mark.line, "\"%s\" must be a list of plain values", option->name);
        } else if (!ended) {
            const char *text, **item = grow(r->arena, &list, sizeof *item);
            status = item ? scalar_text(r, &event, &text) : TS_ERESOURCE;
            if (!status) {
                *item = ts_arena_strdup(r->arena, text);
                status = *item ? TS_OK : TS_ERESOURCE;
            }
        }
        yaml_event_delete(&event);
        TS_TRY(status);
        if (ended) {
            char place[PLACE_BYTES];
            return ts_option_set_list(option, r->at.target, r->arena, list.items, list.count, place_of(r, line, place));
        }
    }
}

static int read_map(reader *r, const char *section);

// One entry, whose map's start has been read, into a struct.
static int read_record(reader *r, const ts_option *option, int64_t index, size_t line, void *item) {
    const ts_record *record = ts_option_record(option);
    const scope outer = r->at;
    const size_t outer_length = strlen(r->entry);
    snprintf(r->entry + outer_length, sizeof r->entry - outer_length, "%s%s[%lld]", outer_length ? "." : "",
             option->name, (long long)index);
    r->at = (scope){.table = record->table, .target = item};
    memset(item, 0, record->bytes);
    if (record->line != TS_RECORD_NO_LINE) {
        const int64_t number = (int64_t)line + 1;
        memcpy((char *)item + record->line, &number, sizeof number);
    }
    TS_TRY(ts_options_default(record->table, item, r->arena));
    TS_TRY(read_map(r, ""));
    const ts_option *missing = ts_option_missing(record->table, item);
    if (missing) {
        return FAIL_AT(r, line, "\"%s\" is missing; add \"%s: ...\" (%s)", missing->name, missing->name,
                       missing->help ? missing->help : "required");
    }
    r->at = outer;
    r->entry[outer_length] = '\0';
    return TS_OK;
}

// The entries of a sequence whose start has been read.
static int read_records(reader *r, const ts_option *option) {
    growing list = {0};
    for (;;) {
        yaml_event_t event;
        TS_TRY(next_event(r, &event));
        const yaml_event_type_t type = event.type;
        const size_t line = event.start_mark.line;
        yaml_event_delete(&event);
        if (type == YAML_SEQUENCE_END_EVENT) {
            ts_option_set_records(option, r->at.target, (ts_records){.count = list.count, .items = list.items});
            return TS_OK;
        }
        if (type != YAML_MAPPING_START_EVENT) {
            return FAIL_AT(r, line, "each entry of \"%s\" must hold lines of the form \"key: value\"", option->name);
        }
        void *item = grow(r->arena, &list, ts_option_record(option)->bytes);
        if (!item) {
            return TS_ERESOURCE;
        }
        TS_TRY(read_record(r, option, list.count - 1, line, item));
    }
}

// ---- values and keys

static const char *kind_wanted(const ts_option *option) {
    switch (option->type) {
    case TS_OPTION_LIST:
        return "a list";
    case TS_OPTION_RECORDS:
        return "a list of entries (\"- key: value\")";
    default:
        return "one plain value";
    }
}

static const char *kind_of(const yaml_event_t *event) {
    return event->type == YAML_MAPPING_START_EVENT ? "a map" : event->type == YAML_SCALAR_EVENT ? "a value" : "a list";
}

static int read_value(reader *r, const ts_option *option, const yaml_event_t *event) {
    const size_t line = event->start_mark.line;
    if (event->type == YAML_SEQUENCE_START_EVENT && option->type == TS_OPTION_LIST) {
        return read_list(r, option, line);
    }
    if (event->type == YAML_SEQUENCE_START_EVENT && option->type == TS_OPTION_RECORDS) {
        return read_records(r, option);
    }
    if (event->type == YAML_SCALAR_EVENT && ts_option_may_be_unset(option) && is_null(event)) {
        ts_option_clear(option, r->at.target);
        return TS_OK;
    }
    if (event->type != YAML_SCALAR_EVENT || option->type == TS_OPTION_RECORDS) {
        return FAIL_AT(r, line, "\"%s\" must be %s, and is %s", option->name, kind_wanted(option), kind_of(event));
    }
    const char *text;
    char place[PLACE_BYTES];
    TS_TRY(scalar_text(r, event, &text));
    return ts_option_set(option, r->at.target, r->arena, text, place_of(r, line, place));
}

static int note_key(reader *r, const char *name, size_t line) {
    for (const met_key *key = r->at.met; key; key = key->next) {
        if (ts_option_same_name(key->name, name, SIZE_MAX)) {
            return FAIL_AT(r, line, "key \"%s\" occurs twice; the first is on line %zu", name, key->line + 1);
        }
    }
    met_key *key = ts_arena_alloc(r->arena, sizeof *key);
    if (!key) {
        return TS_ERESOURCE;
    }
    *key = (met_key){.name = ts_arena_strdup(r->arena, name), .line = line, .next = r->at.met};
    r->at.met = key;
    return key->name ? TS_OK : TS_ERESOURCE;
}

// `key` was met inside `section` ("" or "train."); its value follows.
static int read_member(reader *r, const char *section, const char *key, size_t line) {
    char name[NAME_BYTES], inner[NAME_BYTES + 1], place[PLACE_BYTES];
    const bool fits = snprintf(name, sizeof name, "%s%s", section, key) < NAME_BYTES;
    const ts_option *option = fits ? ts_option_find(r->at.table, name) : NULL;
    const bool is_section = fits && !option && ts_option_is_section(r->at.table, name);
    if (!option && !is_section) {
        return ts_option_fail_unknown(r->at.table, place_of(r, line, place), "key", section, key);
    }
    TS_TRY(note_key(r, name, line));
    yaml_event_t event;
    TS_TRY(next_event(r, &event));
    int status = TS_OK;
    if (option) {
        status = read_value(r, option, &event);
    } else if (event.type == YAML_MAPPING_START_EVENT) {
        snprintf(inner, sizeof inner, "%s.", name);
        status = read_map(r, inner);
    } else if (event.type != YAML_SCALAR_EVENT || !is_null(&event)) {  // an empty section is harmless
        status = FAIL_AT(r, line, "\"%s\" is a section; give its keys indented below it", name);
    }
    yaml_event_delete(&event);
    return status;
}

// The members of a map whose start has been read.
static int read_map(reader *r, const char *section) {
    for (;;) {
        yaml_event_t event;
        TS_TRY(next_event(r, &event));
        int status;
        const bool ended = event.type == YAML_MAPPING_END_EVENT;
        const char *key;
        if (ended) {
            status = TS_OK;
        } else if (event.type != YAML_SCALAR_EVENT) {
            status = FAIL_AT(r, event.start_mark.line, "a key must be a plain name");
        } else {
            status = scalar_text(r, &event, &key);
            if (!status) {
                status = read_member(r, section, key, event.start_mark.line);
            }
        }
        yaml_event_delete(&event);
        if (status || ended) {
            return status;
        }
    }
}

static int expect(reader *r, yaml_event_type_t type, const char *reason) {
    yaml_event_t event;
    TS_TRY(next_event(r, &event));
    const int status = event.type == type ? TS_OK : FAIL_AT(r, event.start_mark.line, "%s", reason);
    yaml_event_delete(&event);
    return status;
}

// One document that is a map, or nothing at all.
static int read_stream(reader *r) {
    TS_TRY(expect(r, YAML_STREAM_START_EVENT, "not a YAML stream"));
    yaml_event_t event;
    TS_TRY(next_event(r, &event));
    const yaml_event_type_t type = event.type;
    yaml_event_delete(&event);
    if (type == YAML_STREAM_END_EVENT) {
        return TS_OK;
    }
    TS_TRY(expect(r, YAML_MAPPING_START_EVENT, "the file must hold lines of the form \"key: value\""));
    TS_TRY(read_map(r, ""));
    TS_TRY(expect(r, YAML_DOCUMENT_END_EVENT, "more than one value; the file must hold one map"));
    return expect(r, YAML_STREAM_END_EVENT, "more than one document; keep one, without \"---\"");
}

// Whether `at` is the first character of a line: YAML 1.1 breaks lines at LF, CR, NEL, LS and PS.
static bool starts_line(const char *text, const char *at) {
    static const char *const breaks[] = {"\n", "\r", "\xc2\x85", "\xe2\x80\xa8", "\xe2\x80\xa9"};
    for (size_t i = 0; i < sizeof breaks / sizeof breaks[0]; i++) {
        const size_t bytes = strlen(breaks[i]);
        if ((size_t)(at - text) >= bytes && memcmp(at - bytes, breaks[i], bytes) == 0) {
            return true;
        }
    }
    return at == text;
}

// libyaml compares each %TAG directive with all before it, inside one call that no limit above would interrupt.
static int refuse_directives(const reader *r, const char *text) {
    for (const char *at = strchr(text, '%'); at; at = strchr(at + 1, '%')) {
        if (starts_line(text, at)) {
            size_t line = 0;
            for (const char *c = text; c < at; c++) {
                line += *c == '\n';
            }
            return FAIL_AT(r, line, "directives (%%) are refused; remove the line");
        }
    }
    return TS_OK;
}

static void note_lines(const reader *r, int64_t *lines) {
    for (int64_t i = 0; r->at.table[i].name; i++) {
        lines[i] = 0;
        for (const met_key *key = r->at.met; key; key = key->next) {
            if (ts_option_same_name(key->name, r->at.table[i].name, SIZE_MAX)) {
                lines[i] = (int64_t)key->line + 1;
            }
        }
    }
}

int ts_options_read_yaml(const ts_option *table, void *target, ts_arena *arena, const char *path) {
    return ts_options_read_yaml_lines(table, target, arena, path, NULL);
}

int ts_options_read_yaml_lines(const ts_option *table, void *target, ts_arena *arena, const char *path,
                               int64_t *lines) {
    char *text;
    size_t bytes;
    TS_TRY(ts_file_read(path, MAX_BYTES, &text, &bytes));
    reader r = {.at = {.table = table, .target = target}, .arena = arena, .path = path};
    int status = refuse_directives(&r, text);
    if (!status && !yaml_parser_initialize(&r.parser)) {
        status = TS_FAIL(TS_ERESOURCE, "%s: out of memory", path);
    }
    if (!status) {
        yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
        yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, bytes);
        status = read_stream(&r);
        yaml_parser_delete(&r.parser);
    }
    if (!status && lines) {
        note_lines(&r, lines);
    }
    free(text);
    return status;
}
