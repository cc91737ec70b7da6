// SPDX-License-Identifier: Apache-2.0
// Inside core/config only: one option's value, from and to text.
#ifndef TS_CONFIG_VALUE_H
#define TS_CONFIG_VALUE_H

#include "core/config/option.h"

// Two names are equal when they differ only in '-' and '_'.
bool ts_option_same_name(const char *a, const char *b, size_t length);
// The option called `name`, or NULL.
const ts_option *ts_option_find(const ts_option *table, const char *name);
// Whether some option's name is `name` followed by a dot.
bool ts_option_is_section(const ts_option *table, const char *name);

// Parses `text` into the option's field and checks its range. `place` ("file:line" or "command line") opens messages.
int ts_option_set(const ts_option *option, void *target, ts_arena *arena, const char *text, const char *place);
int ts_option_set_list(const ts_option *option, void *target, ts_arena *arena, const char *const *items, int64_t count,
                       const char *place);
// Puts the items of `before` in front of a list option's own.
int ts_option_prepend(const ts_option *option, void *target, ts_arena *arena, ts_string_list before);
// The value YAML's null stands for: the type's zero, or NAN, which is "unset".
void ts_option_clear(const ts_option *option, void *target);
bool ts_option_is_unset(const ts_option *option, const void *target);
// Whether the type has a value of its own for "unset", so that null can stand for it.
bool ts_option_may_be_unset(const ts_option *option);
// The first required option that is unset, or NULL.
const ts_option *ts_option_missing(const ts_option *table, const void *target);
// Equal values; lists of records only when both are empty.
bool ts_option_equal(const ts_option *option, const void *target, const void *other);
size_t ts_option_bytes(ts_option_type type);  // of a field
// Bytes of a struct that reach to the end of the table's last field.
size_t ts_option_extent(const ts_option *table);

// "1 to 1000", "at least 1"... of a bounded option into out; returns false when unbounded.
bool ts_option_range_text(const ts_option *option, char *out, size_t out_bytes);
// Shortest decimal text that reads back as the same double.
const char *ts_option_real_text(double value, char *out, size_t out_bytes);

// Fails with: PLACE: unknown WHAT "KEY"; did you mean "OTHER"?   `section` is "" or "train.", where the key was met.
int ts_option_fail_unknown(const ts_option *table, const char *place, const char *what, const char *section,
                           const char *key);

// A list of records as every such field is laid out; copied in and out, for each is of another type.
typedef struct ts_records {
    int64_t count;
    void *items;
} ts_records;
ts_records ts_option_records(const ts_option *option, const void *target);
void ts_option_set_records(const ts_option *option, void *target, ts_records records);

static inline const char *const *ts_option_choices(const ts_option *option) {
    return option->of;
}
static inline const ts_record *ts_option_record(const ts_option *option) {
    return option->of;
}

// Typed access to an option's field.
#define TS_FIELD(type, option, target)       ((type *)(void *)((char *)(target) + (option)->offset))
#define TS_CONST_FIELD(type, option, target) ((const type *)(const void *)((const char *)(target) + (option)->offset))

#endif
