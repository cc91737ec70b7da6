// SPDX-License-Identifier: Apache-2.0
// JSON through jansson, with errors that name file and key. Duplicate keys are refused.
#ifndef TS_BASE_JSON_H
#define TS_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Parses; the caller owns *out (json_decref). `name` (file, or file:line) goes into messages.
int ts_json_parse(const char *text, size_t bytes, const char *name, json_t **out);
int ts_json_read(const char *path, size_t max_bytes, json_t **out);
int ts_json_write_atomic(const char *path, const json_t *value);  // indented, sorted keys, newline at end

// Members of an object. The plain form fails when absent or of another type; the _or form returns the default when the
// key is absent or null and fails only on a wrong type. Strings are borrowed from `object`.
int ts_json_int(const json_t *object, const char *key, const char *name, int64_t min, int64_t max, int64_t *out);
int ts_json_int_or(const json_t *object, const char *key, const char *name, int64_t min, int64_t max, int64_t otherwise,
                   int64_t *out);
int ts_json_real_or(const json_t *object, const char *key, const char *name, double otherwise, double *out);
int ts_json_bool_or(const json_t *object, const char *key, const char *name, bool otherwise, bool *out);
int ts_json_string(const json_t *object, const char *key, const char *name, const char **out);
int ts_json_string_or(const json_t *object, const char *key, const char *name, const char *otherwise, const char **out);
int ts_json_object(const json_t *object, const char *key, const char *name, const json_t **out);
int ts_json_array(const json_t *object, const char *key, const char *name, const json_t **out);

#endif
