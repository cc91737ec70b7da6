// SPDX-License-Identifier: Apache-2.0
// Option tables: one table describes a struct's fields, and YAML, --key=value, --help, checks and the saved
// configuration are all read off it.
//
// A table is an array of ts_option ended by {0}. Names may be dotted ("train.steps"): in YAML that is a nested map, on
// the command line --train.steps=100. Dashes and underscores are the same.
#ifndef TS_CONFIG_OPTION_H
#define TS_CONFIG_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "core/base/arena.h"

typedef enum {
    TS_OPTION_INT,     // int64_t; min..max; accepts 10_000
    TS_OPTION_REAL,    // double; min..max
    TS_OPTION_BOOL,    // bool; true/false/yes/no/on/off, a bare --flag is true
    TS_OPTION_STRING,  // const char *; NULL when unset
    TS_OPTION_CHOICE,  // int: index into `choices`
    TS_OPTION_SIZE,    // ts_size2: "WxH"; min..max for each side
    TS_OPTION_LIST     // ts_string_list: YAML sequence of scalars, or a,b,c
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
    size_t offset;               // offsetof(struct, field)
    const char *otherwise;       // default as text; NULL = unset (0, false, NULL, empty)
    const char *help;            // one sentence, with the unit
    double min, max;             // both 0: unbounded; -INFINITY or INFINITY: open on that side
    const char *const *choices;  // TS_OPTION_CHOICE: NULL-terminated
    bool required;
} ts_option;

// Fills `target` with the defaults. Strings are allocated in `arena`.
int ts_options_default(const ts_option *table, void *target, ts_arena *arena);

// Reads a YAML file over `target`. Errors are "file:line: reason; remedy": unknown key (with the nearest known
// name), duplicate key, alias, anchor, tag, directive, wrong type, out of range. Limits: 1 MiB, depth 16, 10,000 nodes.
// null unsets a string or a list. A missing file is TS_EINPUT, a wrong one TS_EUSAGE.
int ts_options_read_yaml(const ts_option *table, void *target, ts_arena *arena, const char *path);

// Reads --key=value, --key value and --flag over `target`, from argv[1] on. What is not an option is collected into
// `rest` (room for *rest_count on entry, their number on return); "--" ends the options. "--help" or "-h" sets *help.
// A list that is given several times is all of its items. Strings must be UTF-8 (TS_EINPUT otherwise); all other
// mistakes are TS_EUSAGE.
int ts_options_read_args(const ts_option *table, void *target, ts_arena *arena, int argc, char **argv,
                         const char **rest, int *rest_count, bool *help);

// Fails when a required option is unset: NULL, an empty list, or 0 for numbers and sizes.
int ts_options_check(const ts_option *table, const void *target);

// The options with defaults, ranges and help, aligned for a terminal of 100 columns.
void ts_options_print_help(const ts_option *table, FILE *out);
// The resolved values as nested YAML that ts_options_read_yaml reads back to equal values.
int ts_options_write_yaml(const ts_option *table, const void *target, FILE *out);
// Same as one JSON object text in `arena` (nested, sorted keys, compact), for fingerprints and manifests; NULL with the
// error text on failure.
const char *ts_options_to_json(const ts_option *table, const void *target, ts_arena *arena);

// Nearest name by edit distance among NULL-terminated `names`, or NULL when none is near.
const char *ts_nearest_name(const char *name, const char *const *names);

#endif
