// SPDX-License-Identifier: Apache-2.0
// Values from text. Numbers are read strictly: the whole text or nothing.
#include "core/config/value.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utf8proc.h>

#include "core/base/status.h"

enum { NUMBER_BYTES = 64 };

bool ts_option_range_text(const ts_option *option, char *out, size_t out_bytes) {
    if (option->min == 0 && option->max == 0) {
        return false;
    }
    char low[32], high[32];
    ts_option_real_text(option->min, low, sizeof low);
    ts_option_real_text(option->max, high, sizeof high);
    if (isinf(option->max)) {
        snprintf(out, out_bytes, "at least %s", low);
    } else if (isinf(option->min)) {
        snprintf(out, out_bytes, "at most %s", high);
    } else {
        snprintf(out, out_bytes, "%s to %s", low, high);
    }
    return true;
}

const char *ts_option_real_text(double value, char *out, size_t out_bytes) {
    if (fabs(value) < 1e9 && value == floor(value)) {
        snprintf(out, out_bytes, "%.0f", value);
        return out;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(out, out_bytes, "%.*g", digits, value);
        if (strtod(out, NULL) == value) {
            break;
        }
    }
    return out;
}

// ---- numbers

// Skips digits with single underscores between them, copying the digits to *out; false when there are none.
static bool take_digits(const char **text, char **out) {
    if (!isdigit((unsigned char)**text)) {
        return false;
    }
    while (isdigit((unsigned char)**text) || (**text == '_' && isdigit((unsigned char)(*text)[1]))) {
        if (**text != '_') {
            *(*out)++ = **text;
        }
        (*text)++;
    }
    return true;
}

static void take_sign(const char **text, char **out) {
    if (**text == '-' || **text == '+') {
        *(*out)++ = *(*text)++;
    }
}

static bool parse_int(const char *text, int64_t *out) {
    char plain[NUMBER_BYTES], *end = plain;
    if (strlen(text) >= sizeof plain) {
        return false;
    }
    take_sign(&text, &end);
    if (!take_digits(&text, &end) || *text) {
        return false;
    }
    *end = '\0';
    errno = 0;
    *out = strtoll(plain, NULL, 10);
    return errno == 0;
}

// [sign] digits [. digits] [e [sign] digits]; neither hexadecimal nor "inf" nor "nan".
static bool parse_real(const char *text, double *out) {
    char plain[NUMBER_BYTES], *end = plain;
    if (strlen(text) >= sizeof plain) {
        return false;
    }
    take_sign(&text, &end);
    bool digits = take_digits(&text, &end);
    if (*text == '.') {
        *end++ = *text++;
        digits |= take_digits(&text, &end);
    }
    if (!digits) {
        return false;
    }
    if (*text == 'e' || *text == 'E') {
        *end++ = *text++;
        take_sign(&text, &end);
        if (!take_digits(&text, &end)) {
            return false;
        }
    }
    *end = '\0';
    *out = strtod(plain, NULL);
    return *text == '\0' && isfinite(*out);
}

static int fail_type(const ts_option *option, const char *place, const char *wanted, const char *text) {
    return TS_FAIL(TS_EUSAGE, "%s: \"%s\" must be %s, and is \"%.80s\"", place, option->name, wanted, text);
}

static int check_range(const ts_option *option, const char *place, double value, const char *text) {
    char range[96];
    if (ts_option_range_text(option, range, sizeof range) && !(value >= option->min && value <= option->max)) {
        return TS_FAIL(TS_EUSAGE, "%s: \"%s\" is %.80s; it must be %s", place, option->name, text, range);
    }
    return TS_OK;
}

// ---- the other types

static bool parse_bool(const char *text, bool *out) {
    static const char *const words[][2] = {{"false", "true"}, {"no", "yes"}, {"off", "on"}};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        for (int value = 0; value < 2; value++) {
            if (strcasecmp(text, words[i][value]) == 0) {
                *out = value == 1;
                return true;
            }
        }
    }
    return false;
}

static int set_choice(const ts_option *option, int *field, const char *text, const char *place) {
    char known[512] = "";
    size_t used = 0;
    const char *const *choices = ts_option_choices(option);
    for (int i = 0; choices[i]; i++) {
        if (strcmp(choices[i], text) == 0) {
            *field = i;
            return TS_OK;
        }
        if (used < sizeof known) {
            used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", choices[i]);
        }
    }
    const char *near = ts_nearest_name(text, choices);
    return TS_FAIL(TS_EUSAGE, "%s: \"%s\" is \"%.80s\"; it must be one of %s%s%s%s", place, option->name, text, known,
                   near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}

static int set_size(const ts_option *option, ts_size2 *field, const char *text, const char *place) {
    const char *cross = strchr(text, 'x');
    char width[NUMBER_BYTES];
    ts_size2 size;
    if (!cross || cross - text >= NUMBER_BYTES) {
        return fail_type(option, place, "a size such as 64x48 (width x height)", text);
    }
    memcpy(width, text, (size_t)(cross - text));
    width[cross - text] = '\0';
    if (!parse_int(width, &size.width) || !parse_int(cross + 1, &size.height)) {
        return fail_type(option, place, "a size such as 64x48 (width x height)", text);
    }
    TS_TRY(check_range(option, place, (double)size.width, text));
    TS_TRY(check_range(option, place, (double)size.height, text));
    *field = size;
    return TS_OK;
}

// Strings are kept as UTF-8 throughout: YAML and JSON can then hold every one of them.
static int copy_text(const ts_option *option, ts_arena *arena, const char *text, const char *place, const char **out) {
    const utf8proc_uint8_t *at = (const utf8proc_uint8_t *)text;
    while (*at) {
        utf8proc_int32_t code;
        const utf8proc_ssize_t bytes = utf8proc_iterate(at, -1, &code);
        if (bytes < 1) {
            return TS_FAIL(TS_EINPUT, "%s: \"%s\" is not UTF-8 at byte %zu; convert it", place, option->name,
                           (size_t)(at - (const utf8proc_uint8_t *)text));
        }
        at += bytes;
    }
    *out = ts_arena_strdup(arena, text);
    return *out ? TS_OK : TS_ERESOURCE;
}

int ts_option_set_list(const ts_option *option, void *target, ts_arena *arena, const char *const *items, int64_t count,
                       const char *place) {
    const char **copy = ts_arena_alloc(arena, (size_t)count * sizeof *copy);
    if (!copy) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < count; i++) {
        TS_TRY(copy_text(option, arena, items[i], place, &copy[i]));
    }
    *TS_FIELD(ts_string_list, option, target) = (ts_string_list){.count = count, .items = copy};
    return TS_OK;
}

// "a,b,c"; the empty text is the empty list.
static int set_list_text(const ts_option *option, void *target, ts_arena *arena, const char *text, const char *place) {
    char *parts = ts_arena_strdup(arena, text);
    int64_t count = *text != '\0';
    for (const char *c = text; *c; c++) {
        count += *c == ',';
    }
    const char **items = ts_arena_alloc(arena, (size_t)count * sizeof *items);
    if (!parts || !items) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < count; i++) {
        items[i] = strsep(&parts, ",");
    }
    return ts_option_set_list(option, target, arena, items, count, place);
}

int ts_option_prepend(const ts_option *option, void *target, ts_arena *arena, ts_string_list before) {
    ts_string_list *field = TS_FIELD(ts_string_list, option, target);
    const int64_t count = before.count + field->count;
    const char **items = ts_arena_alloc(arena, (size_t)count * sizeof *items);
    if (!items) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < count; i++) {
        items[i] = i < before.count ? before.items[i] : field->items[i - before.count];
    }
    *field = (ts_string_list){.count = count, .items = items};
    return TS_OK;
}

// ---- any option

int ts_option_set(const ts_option *option, void *target, ts_arena *arena, const char *text, const char *place) {
    int64_t whole;
    double real;
    switch (option->type) {
    case TS_OPTION_INT:
        if (!parse_int(text, &whole)) {
            return fail_type(option, place, "a whole number", text);
        }
        TS_TRY(check_range(option, place, (double)whole, text));
        *TS_FIELD(int64_t, option, target) = whole;
        return TS_OK;
    case TS_OPTION_REAL:
    case TS_OPTION_REAL_OR_NAN:
        if (!parse_real(text, &real)) {
            return fail_type(option, place, "a number", text);
        }
        TS_TRY(check_range(option, place, real, text));
        *TS_FIELD(double, option, target) = real;
        return TS_OK;
    case TS_OPTION_BOOL:
        return parse_bool(text, TS_FIELD(bool, option, target)) ? TS_OK
                                                                : fail_type(option, place, "true or false", text);
    case TS_OPTION_STRING:
        return copy_text(option, arena, text, place, TS_FIELD(const char *, option, target));
    case TS_OPTION_CHOICE:
        return set_choice(option, TS_FIELD(int, option, target), text, place);
    case TS_OPTION_SIZE:
        return set_size(option, TS_FIELD(ts_size2, option, target), text, place);
    case TS_OPTION_LIST:
        return set_list_text(option, target, arena, text, place);
    case TS_OPTION_RECORDS:
        return TS_FAIL(TS_EUSAGE, "%s: \"%s\" is a list of entries with keys of their own; give it in a YAML file",
                       place, option->name);
    }
    return TS_FAIL(TS_EINTERNAL, "option \"%s\" has no known type", option->name);
}

// ---- fields of any type

size_t ts_option_bytes(ts_option_type type) {
    static const size_t bytes[] = {
        [TS_OPTION_INT] = sizeof(int64_t),         [TS_OPTION_REAL] = sizeof(double),
        [TS_OPTION_REAL_OR_NAN] = sizeof(double),  [TS_OPTION_BOOL] = sizeof(bool),
        [TS_OPTION_STRING] = sizeof(const char *), [TS_OPTION_CHOICE] = sizeof(int),
        [TS_OPTION_SIZE] = sizeof(ts_size2),       [TS_OPTION_LIST] = sizeof(ts_string_list),
        [TS_OPTION_RECORDS] = sizeof(ts_records),
    };
    return bytes[type];
}

ts_records ts_option_records(const ts_option *option, const void *target) {
    ts_records records;
    memcpy(&records, (const char *)target + option->offset, sizeof records);
    return records;
}

void ts_option_set_records(const ts_option *option, void *target, ts_records records) {
    memcpy((char *)target + option->offset, &records, sizeof records);
}

void ts_option_clear(const ts_option *option, void *target) {
    memset((char *)target + option->offset, 0, ts_option_bytes(option->type));
    if (option->type == TS_OPTION_REAL_OR_NAN) {
        *TS_FIELD(double, option, target) = NAN;
    }
}

bool ts_option_may_be_unset(const ts_option *option) {
    return option->type == TS_OPTION_STRING || option->type == TS_OPTION_LIST ||
           option->type == TS_OPTION_REAL_OR_NAN || option->type == TS_OPTION_RECORDS;
}

bool ts_option_is_unset(const ts_option *option, const void *target) {
    switch (option->type) {
    case TS_OPTION_INT:
        return *TS_CONST_FIELD(int64_t, option, target) == 0;
    case TS_OPTION_REAL:
        return *TS_CONST_FIELD(double, option, target) == 0;
    case TS_OPTION_REAL_OR_NAN:
        return isnan(*TS_CONST_FIELD(double, option, target));
    case TS_OPTION_STRING: {
        const char *text = *TS_CONST_FIELD(char *, option, target);
        return !text || !*text;
    }
    case TS_OPTION_SIZE:
        return TS_CONST_FIELD(ts_size2, option, target)->width == 0;
    case TS_OPTION_LIST:
        return TS_CONST_FIELD(ts_string_list, option, target)->count == 0;
    case TS_OPTION_RECORDS:
        return ts_option_records(option, target).count == 0;
    case TS_OPTION_BOOL:
    case TS_OPTION_CHOICE:
        return false;
    }
    return false;
}

static bool equal_text(const char *a, const char *b) {
    return a && b ? strcmp(a, b) == 0 : a == b;
}

static bool equal_lists(const ts_string_list *a, const ts_string_list *b) {
    bool equal = a->count == b->count;
    for (int64_t i = 0; equal && i < a->count; i++) {
        equal = strcmp(a->items[i], b->items[i]) == 0;
    }
    return equal;
}

bool ts_option_equal(const ts_option *option, const void *target, const void *other) {
    switch (option->type) {
    case TS_OPTION_REAL:
    case TS_OPTION_REAL_OR_NAN: {
        const double a = *TS_CONST_FIELD(double, option, target), b = *TS_CONST_FIELD(double, option, other);
        return a == b || (isnan(a) && isnan(b));
    }
    case TS_OPTION_STRING:
        return equal_text(*TS_CONST_FIELD(char *, option, target), *TS_CONST_FIELD(char *, option, other));
    case TS_OPTION_LIST:
        return equal_lists(TS_CONST_FIELD(ts_string_list, option, target),
                           TS_CONST_FIELD(ts_string_list, option, other));
    case TS_OPTION_RECORDS:
        return ts_option_records(option, target).count == 0 && ts_option_records(option, other).count == 0;
    case TS_OPTION_INT:
    case TS_OPTION_BOOL:
    case TS_OPTION_CHOICE:
    case TS_OPTION_SIZE:
        break;
    }
    return memcmp((const char *)target + option->offset, (const char *)other + option->offset,
                  ts_option_bytes(option->type)) == 0;
}
