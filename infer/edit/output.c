// SPDX-License-Identifier: Apache-2.0
#include "infer/edit/output.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/status.h"

bool ts_ends_with(const char *text, const char *end) {
    const size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

int ts_output_check_end(const char *option, const char *path, const char *end) {
    return path && !ts_ends_with(path, end)
               ? TS_FAIL(TS_EUSAGE, "%s %s: give a name that ends in %s", option, path, end)
               : TS_OK;
}

static int check_writable(const char *option, const char *path, const char *folder) {
    return access(folder, W_OK) ? TS_FAIL(TS_EINPUT, "%s %s: cannot write to %s: %s; give another place", option, path,
                                          folder, strerror(errno))
                                : TS_OK;
}

int ts_output_check_file(const char *option, const char *path) {
    char folder[TS_PATH_BYTES];
    const size_t length = (size_t)(ts_path_base(path) - path);
    if (length >= sizeof folder) {
        return TS_FAIL(TS_EINPUT, "%s %.80s...: the path is longer than %zu bytes", option, path, sizeof folder);
    }
    memcpy(folder, path, length);
    folder[length] = '\0';
    if (length && !ts_path_is_folder(folder)) {
        return TS_FAIL(TS_EINPUT, "%s %s: there is no folder %s; make it first", option, path, folder);
    }
    struct stat about;
    if (!stat(path, &about) && !S_ISREG(about.st_mode)) {
        return TS_FAIL(TS_EINPUT, "%s %s: exists and is no regular file; give another name", option, path);
    }
    return check_writable(option, path, length ? folder : ".");
}

int ts_output_make_folder(const char *option, const char *path) {
    TS_TRY(ts_folder_make(path));
    return check_writable(option, path, path);
}

void ts_output_name(char *out, size_t out_bytes, int64_t number, const char *prompt) {
    int at = snprintf(out, out_bytes, "%05lld-", (long long)number);
    bool dash = true;
    for (const char *c = prompt; *c && at < 64; c++) {
        if (isalnum((unsigned char)*c)) {
            out[at++] = (char)tolower((unsigned char)*c);
            dash = false;
        } else if (!dash) {
            out[at++] = '-';
            dash = true;
        }
    }
    snprintf(out + at - (dash ? 1 : 0), out_bytes - (size_t)at, ".mp4");
}

int ts_output_write_metadata(const char *folder, const json_t *lines) {
    char path[TS_PATH_BYTES];
    TS_TRY(ts_path_join(path, sizeof path, folder, "metadata.jsonl"));
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out) {
        return TS_FAIL(TS_ERESOURCE, "%s: out of memory", path);
    }
    bool failed = !lines;
    for (size_t i = 0; i < json_array_size(lines) && !failed; i++) {
        failed =
            json_dumpf(json_array_get(lines, i), out, JSON_COMPACT | JSON_PRESERVE_ORDER) || fputc('\n', out) == EOF;
    }
    failed = fclose(out) || failed;
    const int status =
        failed ? TS_FAIL(TS_ERESOURCE, "%s: out of memory", path) : ts_file_write_atomic(path, text, bytes);
    free(text);
    return status;
}
