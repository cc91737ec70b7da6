// SPDX-License-Identifier: Apache-2.0
#include "core/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_BYTES = 2048, PLACE_BYTES = 256 };

static _Thread_local char error_text[TEXT_BYTES];
static _Thread_local char error_place[PLACE_BYTES];

void ts_make_one_line(char *text) {
    for (char *c = text; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            *c = ' ';
        }
    }
}

int ts_fail(int code, const char *file, int line, const char *format, ...) {
    char text[TEXT_BYTES];  // the arguments may point into error_text
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    ts_make_one_line(text);
    memcpy(error_text, text, sizeof text);
    snprintf(error_place, sizeof error_place, "%s:%d", file, line);
    return code;
}

int ts_fail_context(int code, const char *format, ...) {
    char text[TEXT_BYTES];
    va_list arguments;
    va_start(arguments, format);
    const int prefix = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (prefix >= 0 && prefix < TEXT_BYTES) {
        const size_t room = sizeof text - (size_t)prefix;
        snprintf(text + prefix, room, ": %.*s", (int)room, error_text);
    }
    ts_make_one_line(text);
    memcpy(error_text, text, sizeof text);
    return code;
}

const char *ts_error_text(void) {
    return error_text;
}

const char *ts_error_place(void) {
    return error_place;
}

void ts_error_set(int code, const char *place, const char *text) {
    (void)code;  // callers return it; kept in the signature so that text and code always travel together
    char copy[TEXT_BYTES];
    snprintf(copy, sizeof copy, "%s", text);
    ts_make_one_line(copy);
    memcpy(error_text, copy, sizeof copy);
    char where[PLACE_BYTES];
    snprintf(where, sizeof where, "%s", place);
    memcpy(error_place, where, sizeof where);
}

int ts_exit_code(int status) {
    switch (status) {
    case TS_OK:
    case TS_EUSAGE:
    case TS_EINPUT:
    case TS_ERESOURCE:
    case TS_EPEER:
    case TS_EINTERNAL:
    case TS_ESTOPPED:
        return -status;
    default:
        return -TS_EINTERNAL;
    }
}

_Noreturn void ts_assert_failed(const char *condition, const char *file, int line) {
    fprintf(stderr, "tessera: %s:%d: internal error: '%s' does not hold; please report this with the command line\n",
            file, line, condition);
    abort();
}
