// SPDX-License-Identifier: Apache-2.0
// Option tables: one table describes a struct's fields, and YAML, --key=value, --help, checks and the saved
// configuration are all read off it.
//
// A table is an array of ts_option ended by {0}. Names may be dotted ("train.steps"): in YAML that is a nested map, on
// the command line --train.steps=100. Dashes and underscores are the same.
//
// A list of records is a YAML sequence of maps, each read by a table of its own into one struct of an array:
//   typedef struct card { int64_t line; const char *text; double weight; } card;
//   typedef struct board { struct { int64_t count; card *item; } cards; } board;
//   static const ts_option card_options[] = {{"text", TS_OPTION_STRING, offsetof(card, text), ...}, ..., {0}};
//   static const ts_record card_record = {card_options, sizeof(card), offsetof(card, line)};
//   ... {"cards", TS_OPTION_RECORDS, offsetof(board, cards), NULL, "what is shown", 0, 0, &card_record, false},
#ifndef TS_CONFIG_OPTION_H
#define TS_CONFIG_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "core/base/arena.h"

typedef enum {
    TS_OPTION_INT,          // int64_t; min..max; accepts 10_000
    TS_OPTION_REAL,         // double; min..max
    TS_OPTION_REAL_OR_NAN,  // the same, but NAN when unset: for a number whose 0 means something
    TS_OPTION_BOOL,         // bool; true/false/yes/no/on/off, a bare --flag is true
    TS_OPTION_STRING,       // const char *; NULL when unset
    TS_OPTION_CHOICE,       // int: index into `choices`
    TS_OPTION_SIZE,         // ts_size2: "WxH"; min..max for each side
    TS_OPTION_LIST,         // ts_string_list: YAML sequence of scalars, or a,b,c
    TS_OPTION_RECORDS       // struct { int64_t count; ENTRY *item; }: YAML sequence of maps; not on the command line
} ts_option_type;

typedef struct ts_size2 {
    int64_t width, height;
} ts_size2;
typedef struct ts_string_list {
    int64_t count;
    const char *const *items;
} ts_string_list;

typedef struct ts_option {
    const char *name;  // "train.steps"
    ts_option_type type;
    size_t offset;          // offsetof(struct, field)
    const char *otherwise;  // default as text; NULL = unset (0, false, NULL, empty)
    const char *help;       // one sentence, with the unit
    double min, max;        // both 0: unbounded; -INFINITY or INFINITY: open on that side
    const void *of;         // TS_OPTION_CHOICE: const char *const [], NULL-terminated; TS_OPTION_RECORDS: ts_record
    bool required;
} ts_option;

// One entry of a list of records. `line` is offsetof an int64_t that gets the entry's line in its file, for messages to
// come, or TS_RECORD_NO_LINE.
enum { TS_RECORD_NO_LINE = -1 };
typedef struct ts_record {
    const ts_option *table;  // of its keys; may hold records again
    size_t bytes;            // of its struct
    ptrdiff_t line;
} ts_record;

// Fills `target` with the defaults. Strings are allocated in `arena`.
int ts_options_default(const ts_option *table, void *target, ts_arena *arena);

// Reads a YAML file over `target`. Errors are "file:line: reason; remedy": unknown key (with the nearest known
// name), duplicate key, alias, anchor, tag, directive, wrong type, out of range; inside a record the place is
// "file:line: cards[2]", counted from 0, and what the record requires must be there. Limits: 4 MiB, depth 16, 100,000
// nodes. null unsets what can be unset. A missing file is TS_EINPUT, a wrong one TS_EUSAGE.
int ts_options_read_yaml(const ts_option *table, void *target, ts_arena *arena, const char *path);
// The same, and lines[i] becomes the line on which option i of the table was met, or 0: for messages to come.
int ts_options_read_yaml_lines(const ts_option *table, void *target, ts_arena *arena, const char *path, int64_t *lines);

// Reads --key=value, --key value and --flag over `target`, from argv[1] on. What is not an option is collected into
// `rest` (room for *rest_count on entry, their number on return); "--" ends the options. "--help" or "-h" sets *help.
// A list that is given several times is all of its items. Strings must be UTF-8 (TS_EINPUT otherwise); all other
// mistakes are TS_EUSAGE.
int ts_options_read_args(const ts_option *table, void *target, ts_arena *arena, int argc, char **argv,
                         const char **rest, int *rest_count, bool *help);

// Fails when a required option is unset: NULL, NAN, an empty list, or 0 for other numbers and sizes.
int ts_options_check(const ts_option *table, const void *target);

// The options with defaults, ranges and help, aligned for a terminal of 100 columns.
void ts_options_print_help(const ts_option *table, FILE *out);
// The same for a file that is not given as options: its keys, those of records indented below them.
void ts_options_print_keys(const ts_option *table, FILE *out);
// The resolved values as nested YAML that ts_options_read_yaml reads back to equal values. Records are written with
// what differs from their defaults.
int ts_options_write_yaml(const ts_option *table, const void *target, FILE *out);
// The same, but all of it with only what differs from the defaults.
int ts_options_write_changed(const ts_option *table, const void *target, FILE *out);
// Same as one JSON object text in `arena` (nested, sorted keys, compact), for fingerprints and manifests; NULL with the
// error text on failure.
const char *ts_options_to_json(const ts_option *table, const void *target, ts_arena *arena);

// Nearest name by edit distance among NULL-terminated `names`, or NULL when none is near.
const char *ts_nearest_name(const char *name, const char *const *names);

#endif
