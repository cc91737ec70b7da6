// SPDX-License-Identifier: Apache-2.0
// The table itself: finding names, defaults, and the check for what is missing.
#include "core/config/option.h"

#include <ctype.h>
#include <string.h>

#include "core/base/status.h"
#include "core/config/value.h"

enum { NAME_BYTES = 64, MAX_NAMES = 512 };

static char folded(char c) {
    return c == '-' ? '_' : c;
}

bool ts_option_same_name(const char *a, const char *b, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (folded(a[i]) != folded(b[i])) {
            return false;
        }
        if (!a[i]) {
            return true;
        }
    }
    return true;
}

const ts_option *ts_option_find(const ts_option *table, const char *name) {
    for (const ts_option *option = table; option->name; option++) {
        if (ts_option_same_name(option->name, name, SIZE_MAX)) {
            return option;
        }
    }
    return NULL;
}

bool ts_option_is_section(const ts_option *table, const char *name) {
    const size_t length = strlen(name);
    for (const ts_option *option = table; option->name; option++) {
        if (strlen(option->name) > length && ts_option_same_name(option->name, name, length) &&
            option->name[length] == '.') {
            return true;
        }
    }
    return false;
}

int ts_options_default(const ts_option *table, void *target, ts_arena *arena) {
    for (const ts_option *option = table; option->name; option++) {
        if (option->otherwise) {
            TS_TRY(ts_option_set(option, target, arena, option->otherwise, "default value"));
        } else {
            ts_option_clear(option, target);
        }
    }
    return TS_OK;
}

const ts_option *ts_option_missing(const ts_option *table, const void *target) {
    for (const ts_option *option = table; option->name; option++) {
        if (option->required && ts_option_is_unset(option, target)) {
            return option;
        }
    }
    return NULL;
}

int ts_options_check(const ts_option *table, const void *target) {
    const ts_option *missing = ts_option_missing(table, target);
    if (!missing) {
        return TS_OK;
    }
    const char *why = missing->help ? missing->help : "required";
    if (missing->type == TS_OPTION_RECORDS) {
        return TS_FAIL(TS_EUSAGE, "\"%s\" is missing; give its entries in the file (%s)", missing->name, why);
    }
    return TS_FAIL(TS_EUSAGE, "\"%s\" is missing; give --%s=... (%s)", missing->name, missing->name, why);
}

size_t ts_option_extent(const ts_option *table) {
    size_t extent = 0;
    for (const ts_option *option = table; option->name; option++) {
        const size_t end = option->offset + ts_option_bytes(option->type);
        extent = end > extent ? end : extent;
    }
    return extent;
}

// ---- the nearest known name

// Edit distance with swaps of neighbours (optimal string alignment); both names shorter than NAME_BYTES.
static int edit_distance(const char *a, const char *b) {
    const int length_a = (int)strlen(a), length_b = (int)strlen(b);
    int rows[3][NAME_BYTES + 1];  // rows[i % 3][j]: distance of the first i of a to the first j of b
    for (int i = 0; i <= length_a; i++) {
        int *row = rows[i % 3], *before = rows[(i + 2) % 3], *two_before = rows[(i + 1) % 3];
        for (int j = 0; j <= length_b; j++) {
            if (i == 0 || j == 0) {
                row[j] = i + j;
                continue;
            }
            const int differ = tolower((unsigned char)folded(a[i - 1])) != tolower((unsigned char)folded(b[j - 1]));
            int best = before[j - 1] + differ;
            best = before[j] + 1 < best ? before[j] + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && two_before[j - 2] + 1 < best) {
                best = two_before[j - 2] + 1;
            }
            row[j] = best;
        }
    }
    return rows[length_a % 3][length_b];
}

const char *ts_nearest_name(const char *name, const char *const *names) {
    const size_t length = strlen(name);
    if (length == 0 || length >= NAME_BYTES) {
        return NULL;
    }
    const char *nearest = NULL;
    int best = length < 3 ? 2 : (int)length / 3 + 2;  // one letter more than a third may differ
    for (; *names; names++) {
        const int distance = strlen(*names) < NAME_BYTES ? edit_distance(name, *names) : best;
        if (distance < best) {
            best = distance;
            nearest = *names;
        }
    }
    return nearest;
}

// The names that may stand where the key was met: what follows `section`, up to the next dot.
static const char *nearest_sibling(const ts_option *table, const char *section, const char *key,
                                   char names[MAX_NAMES][NAME_BYTES]) {
    const char *list[MAX_NAMES + 1];
    const size_t skip = strlen(section);
    int count = 0;
    for (const ts_option *option = table; option->name && count < MAX_NAMES; option++) {
        if (strlen(option->name) <= skip || !ts_option_same_name(option->name, section, skip)) {
            continue;
        }
        const size_t length = strcspn(option->name + skip, ".");
        if (length < NAME_BYTES) {
            memcpy(names[count], option->name + skip, length);
            names[count][length] = '\0';
            list[count] = names[count];
            count++;
        }
    }
    list[count] = NULL;
    return ts_nearest_name(key, list);
}

// The full name that ends in this key, or else the one nearest to it.
static const char *nearest_anywhere(const ts_option *table, const char *key) {
    const char *list[MAX_NAMES + 1];
    int count = 0;
    for (const ts_option *option = table; option->name && count < MAX_NAMES; option++) {
        const char *dot = strrchr(option->name, '.');
        if (dot && ts_option_same_name(dot + 1, key, SIZE_MAX)) {
            return option->name;
        }
        list[count++] = option->name;
    }
    list[count] = NULL;
    return ts_nearest_name(key, list);
}

int ts_option_fail_unknown(const ts_option *table, const char *place, const char *what, const char *section,
                           const char *key) {
    char names[MAX_NAMES][NAME_BYTES];
    const char *near = nearest_sibling(table, section, key, names);
    if (!near) {
        near = nearest_anywhere(table, key);
    }
    if (near) {
        return TS_FAIL(TS_EUSAGE, "%s: unknown %s \"%.80s\"; did you mean \"%s\"?", place, what, key, near);
    }
    return TS_FAIL(TS_EUSAGE, "%s: unknown %s \"%.80s\"; --help lists the known ones", place, what, key);
}
