// SPDX-License-Identifier: Apache-2.0
#include "core/base/json.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/status.h"

int ts_json_parse(const char *text, size_t bytes, const char *name, json_t **out) {
    json_error_t error;
    *out = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (!*out) {
        const int code = json_error_code(&error) == json_error_out_of_memory ? TS_ERESOURCE : TS_EINPUT;
        return TS_FAIL(code, "%s: not valid JSON at line %d, column %d: %s", name, error.line, error.column,
                       error.text);
    }
    return TS_OK;
}

int ts_json_read(const char *path, size_t max_bytes, json_t **out) {
    *out = NULL;
    char *text;
    size_t bytes;
    TS_TRY(ts_file_read(path, max_bytes, &text, &bytes));
    const int status = ts_json_parse(text, bytes, path, out);
    free(text);
    return status;
}

int ts_json_write_atomic(const char *path, const json_t *value) {
    char *text = json_dumps(value, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_ENCODE_ANY);
    if (!text) {
        return TS_FAIL(TS_ERESOURCE, "%s: out of memory for its JSON text", path);
    }
    const size_t length = strlen(text);
    text[length] = '\n';  // in place of the terminator: the length is known
    const int status = ts_file_write_atomic(path, text, length + 1);
    free(text);
    return status;
}

// ---- members

static const char *type_name(const json_t *value) {
    static const char *const names[] = {"an object", "an array", "a string", "a whole number",
                                        "a number",  "true",     "false",    "null"};
    return value ? names[json_typeof(value)] : "absent";
}

// The member, or NULL when absent or null.
static const json_t *member(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static int fail_type(const char *name, const char *key, const char *wanted, const json_t *value) {
    return TS_FAIL(TS_EINPUT, "%s: \"%s\" must be %s, and is %s", name, key, wanted, type_name(value));
}

int ts_json_int(const json_t *object, const char *key, const char *name, int64_t min, int64_t max, int64_t *out) {
    const json_t *value = member(object, key);
    if (!json_is_integer(value)) {
        return fail_type(name, key, "a whole number", value);
    }
    const int64_t number = json_integer_value(value);
    if (number < min || number > max) {
        return TS_FAIL(TS_EINPUT, "%s: \"%s\" is %lld; it must be %lld to %lld", name, key, (long long)number,
                       (long long)min, (long long)max);
    }
    *out = number;
    return TS_OK;
}

int ts_json_int_or(const json_t *object, const char *key, const char *name, int64_t min, int64_t max, int64_t otherwise,
                   int64_t *out) {
    if (!member(object, key)) {
        *out = otherwise;
        return TS_OK;
    }
    return ts_json_int(object, key, name, min, max, out);
}

int ts_json_real_or(const json_t *object, const char *key, const char *name, double otherwise, double *out) {
    const json_t *value = member(object, key);
    if (value && !json_is_number(value)) {
        return fail_type(name, key, "a number", value);
    }
    *out = value ? json_number_value(value) : otherwise;
    return TS_OK;
}

int ts_json_bool_or(const json_t *object, const char *key, const char *name, bool otherwise, bool *out) {
    const json_t *value = member(object, key);
    if (value && !json_is_boolean(value)) {
        return fail_type(name, key, "true or false", value);
    }
    *out = value ? json_is_true(value) : otherwise;
    return TS_OK;
}

int ts_json_string(const json_t *object, const char *key, const char *name, const char **out) {
    const json_t *value = member(object, key);
    if (!json_is_string(value)) {
        return fail_type(name, key, "a string", value);
    }
    *out = json_string_value(value);
    return TS_OK;
}

int ts_json_string_or(const json_t *object, const char *key, const char *name, const char *otherwise,
                      const char **out) {
    if (!member(object, key)) {
        *out = otherwise;
        return TS_OK;
    }
    return ts_json_string(object, key, name, out);
}

int ts_json_object(const json_t *object, const char *key, const char *name, const json_t **out) {
    const json_t *value = member(object, key);
    if (!json_is_object(value)) {
        return fail_type(name, key, "an object", value);
    }
    *out = value;
    return TS_OK;
}

int ts_json_array(const json_t *object, const char *key, const char *name, const json_t **out) {
    const json_t *value = member(object, key);
    if (!json_is_array(value)) {
        return fail_type(name, key, "an array", value);
    }
    *out = value;
    return TS_OK;
}
