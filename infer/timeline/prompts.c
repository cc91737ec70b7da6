// SPDX-License-Identifier: Apache-2.0
#include "infer/timeline/prompts.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "core/base/file.h"
#include "core/base/status.h"
#include "core/model/tokenizer.h"

int ts_prompt_check(const char *prompt, const char *where) {
    const size_t bytes = strlen(prompt);
    if (bytes > TS_MAX_PROMPT_BYTES) {
        return TS_FAIL(TS_EINPUT, "%s: a prompt of %zu bytes; shorten it to %d", where, bytes, TS_MAX_PROMPT_BYTES);
    }
    size_t at = 0;
    bool blank = true;
    while (at < bytes) {
        utf8proc_int32_t point;
        const utf8proc_ssize_t length =
            utf8proc_iterate((const utf8proc_uint8_t *)prompt + at, (utf8proc_ssize_t)(bytes - at), &point);
        if (length <= 0) {
            return TS_FAIL(TS_EINPUT, "%s: byte %zu is not UTF-8; save the prompt as UTF-8", where, at + 1);
        }
        blank = blank && (point == ' ' || point == '\t' || point == '\r' || point == 0xA0);
        at += (size_t)length;
    }
    if (blank) {
        return TS_FAIL(TS_EINPUT, "%s: the prompt is empty; say what the video shows", where);
    }
    return TS_OK;
}

void ts_prompts_free(ts_prompts *prompts) {
    free(prompts->text);
    free(prompts->item);
}

int ts_prompts_add(ts_prompts *prompts, const char *prompt, const char *where) {
    TS_TRY(ts_prompt_check(prompt, where));
    const char **item = realloc(prompts->item, (size_t)(prompts->count + 1) * sizeof *item);
    if (!item) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for %lld prompts", (long long)prompts->count + 1);
    }
    item[prompts->count++] = prompt;
    prompts->item = item;
    return TS_OK;
}

int ts_prompts_read(ts_prompts *prompts, const char *path) {
    size_t bytes = 0;
    TS_TRY(ts_file_read(path, (size_t)64 << 20, &prompts->text, &bytes));
    if (memchr(prompts->text, '\0', bytes)) {
        return TS_FAIL(TS_EINPUT, "%s: holds zero bytes; give a text file with one prompt a line", path);
    }
    int64_t number = 0;
    for (char *line = prompts->text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next) {
            *next++ = '\0';
        }
        number++;
        if (line[strspn(line, " \t\r")] == '\0') {
            continue;
        }
        line[strcspn(line, "\r")] = '\0';
        char where[512];
        snprintf(where, sizeof where, "%s:%lld", path, (long long)number);
        TS_TRY(ts_prompts_add(prompts, line, where));
        if (prompts->count > 100000) {
            return TS_FAIL(TS_EINPUT, "%s: more than 100,000 prompts; split the file", path);
        }
    }
    return prompts->count ? TS_OK : TS_FAIL(TS_EINPUT, "%s: no prompt in it; write one a line", path);
}
