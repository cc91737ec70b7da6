// SPDX-License-Identifier: Apache-2.0
// The command line, and the help text read off the same table.
#include <string.h>

#include "core/base/status.h"
#include "core/config/option.h"
#include "core/config/value.h"

enum { HELP_COLUMN = 34, HELP_WIDTH = 100, NAME_BYTES = 128, MAX_OPTIONS = 512 };

static const char place[] = "command line";

// One reading of the command line.
typedef struct reader {
    const ts_option *table;
    void *target;
    ts_arena *arena;
    int argc;
    char **argv;
    bool given[MAX_OPTIONS];  // of the table's options, those that have come by
} reader;

// Sets an option; a list that is given again grows.
static int set_option(reader *r, const ts_option *option, const char *text) {
    const ptrdiff_t index = option - r->table;
    TS_ASSERT(index < MAX_OPTIONS);
    const bool again = r->given[index] && option->type == TS_OPTION_LIST;
    const ts_string_list before = again ? *TS_FIELD(ts_string_list, option, r->target) : (ts_string_list){0};
    r->given[index] = true;
    TS_TRY(ts_option_set(option, r->target, r->arena, text, place));
    return again ? ts_option_prepend(option, r->target, r->arena, before) : TS_OK;
}

// Sets the option of argv[*at]; advances *at over a value that stands apart.
static int read_option(reader *r, int *at) {
    const ts_option *table = r->table;
    char **argv = r->argv;
    const char *argument = argv[*at] + 2, *equals = strchr(argument, '=');
    const size_t length = equals ? (size_t)(equals - argument) : strlen(argument);
    char name[NAME_BYTES];
    if (length >= sizeof name) {
        return TS_FAIL(TS_EUSAGE, "%s: unknown option \"--%.80s...\"; --help lists the known ones", place, argument);
    }
    memcpy(name, argument, length);
    name[length] = '\0';
    const ts_option *option = ts_option_find(table, name);
    if (!option) {
        return ts_option_fail_unknown(table, place, "option", "", name);
    }
    if (equals) {
        return set_option(r, option, equals + 1);
    }
    if (option->type == TS_OPTION_BOOL) {
        return set_option(r, option, "true");
    }
    if (*at + 1 >= r->argc || strncmp(argv[*at + 1], "--", 2) == 0) {
        return TS_FAIL(TS_EUSAGE, "%s: --%s needs a value; write --%s=VALUE", place, name, name);
    }
    return set_option(r, option, argv[++*at]);
}

int ts_options_read_args(const ts_option *table, void *target, ts_arena *arena, int argc, char **argv,
                         const char **rest, int *rest_count, bool *help) {
    const int room = *rest_count;
    bool options_ended = false;
    reader r = {.table = table, .target = target, .arena = arena, .argc = argc, .argv = argv};
    *rest_count = 0;
    *help = false;
    for (int at = 1; at < argc; at++) {
        const char *argument = argv[at];
        if (options_ended || argument[0] != '-' || argument[1] == '\0') {
            if (*rest_count == room) {
                return TS_FAIL(TS_EUSAGE, "%s: \"%.80s\" is one argument too many; options are written --key=value",
                               place, argument);
            }
            rest[(*rest_count)++] = argument;
        } else if (strcmp(argument, "--") == 0) {
            options_ended = true;
        } else if (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0) {
            *help = true;
        } else if (argument[1] != '-') {
            return TS_FAIL(TS_EUSAGE, "%s: \"%.80s\" is not an option; options are written --key=value", place,
                           argument);
        } else {
            TS_TRY(read_option(&r, &at));
        }
    }
    return TS_OK;
}

// ---- help

// How the options of a table are shown.
typedef struct help_page {
    FILE *out;
    const char *dashes;  // before a name: "--", or "" for the keys of a file
    int indent;
} help_page;

// "  --train.steps=N"
static size_t format_left(const help_page *page, const ts_option *option, char *out, size_t bytes) {
    static const char *const value[] = {
        [TS_OPTION_INT] = "=N",    [TS_OPTION_REAL] = "=X",      [TS_OPTION_REAL_OR_NAN] = "=X",
        [TS_OPTION_BOOL] = "",     [TS_OPTION_STRING] = "=TEXT", [TS_OPTION_CHOICE] = "=CHOICE",
        [TS_OPTION_SIZE] = "=WxH", [TS_OPTION_LIST] = "=A,B",    [TS_OPTION_RECORDS] = "",
    };
    static const char *const key[] = {
        [TS_OPTION_INT] = ": N",     [TS_OPTION_REAL] = ": X",      [TS_OPTION_REAL_OR_NAN] = ": X",
        [TS_OPTION_BOOL] = ": BOOL", [TS_OPTION_STRING] = ": TEXT", [TS_OPTION_CHOICE] = ": CHOICE",
        [TS_OPTION_SIZE] = ": WxH",  [TS_OPTION_LIST] = ": [A, B]", [TS_OPTION_RECORDS] = ":",
    };
    const bool in_file = !*page->dashes || option->type == TS_OPTION_RECORDS;
    const int length = snprintf(out, bytes, "%*s%s%s%s", page->indent, "", in_file ? "" : page->dashes, option->name,
                                (in_file ? key : value)[option->type]);
    return (size_t)length < bytes ? (size_t)length : bytes - 1;
}

// "help (red, green or blue; 1 to 10; default 3)"
static void format_right(const ts_option *option, char *out, size_t bytes) {
    char note[768] = "", range[96];
    size_t used = 0;
    if (option->type == TS_OPTION_CHOICE) {
        const char *const *choices = ts_option_choices(option);
        for (int i = 0; choices[i] && used < sizeof note; i++) {
            const char *separator = i == 0 ? "" : choices[i + 1] ? ", " : " or ";
            used += (size_t)snprintf(note + used, sizeof note - used, "%s%s", separator, choices[i]);
        }
    }
    if (used < sizeof note && ts_option_range_text(option, range, sizeof range)) {
        used += (size_t)snprintf(note + used, sizeof note - used, "%s%s", used ? "; " : "", range);
    }
    if (used < sizeof note && (option->otherwise || option->required)) {
        snprintf(note + used, sizeof note - used, "%s%s%s", used ? "; " : "",
                 option->otherwise ? "default " : "required", option->otherwise ? option->otherwise : "");
    }
    snprintf(out, bytes, "%s%s%s%s", option->help ? option->help : "", *note ? " (" : "", note, *note ? ")" : "");
}

// Prints words from column HELP_COLUMN on, breaking lines before HELP_WIDTH.
static void print_wrapped(const char *text, FILE *out) {
    size_t column = HELP_COLUMN;
    while (*text) {
        const size_t length = strcspn(text, " ");
        if (column > HELP_COLUMN && column + 1 + length > HELP_WIDTH) {
            fprintf(out, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        }
        column += (size_t)fprintf(out, "%s%.*s", column > HELP_COLUMN ? " " : "", (int)length, text);
        text += length;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

static void print_options(const help_page *page, const ts_option *table) {
    for (const ts_option *option = table; option->name; option++) {
        char left[NAME_BYTES + 16], right[2048];
        const size_t length = format_left(page, option, left, sizeof left);
        format_right(option, right, sizeof right);
        if (length + 2 > HELP_COLUMN) {
            fprintf(page->out, "%s\n%*s", left, HELP_COLUMN, "");
        } else {
            fprintf(page->out, "%-*s", HELP_COLUMN, left);
        }
        print_wrapped(right, page->out);
        if (option->type == TS_OPTION_RECORDS) {
            const help_page inner = {.out = page->out, .dashes = "", .indent = page->indent + 4};
            print_options(&inner, ts_option_record(option)->table);
        }
    }
}

void ts_options_print_help(const ts_option *table, FILE *out) {
    print_options(&(help_page){.out = out, .dashes = "--", .indent = 2}, table);
    fprintf(out, "%-*s", HELP_COLUMN, "  --help");
    print_wrapped("print this", out);
}

void ts_options_print_keys(const ts_option *table, FILE *out) {
    print_options(&(help_page){.out = out, .dashes = "", .indent = 2}, table);
}
