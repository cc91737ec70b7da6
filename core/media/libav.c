// SPDX-License-Identifier: Apache-2.0
#include "core/media/libav.h"

#include <errno.h>
#include <libavutil/error.h>
#include <libavutil/log.h>
#include <libavutil/mem.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/status.h"

// No single block of libav* may be larger: a file's header can claim 16384 x 16384 pixels before any check of ours.
// A frame of 4096 x 4096 in 16-bit 4:4:4 needs 96 MiB.
enum { LARGEST_BLOCK = 512 << 20 };

static void log_line(void *context, int level, const char *format, va_list arguments) {
    if (level > AV_LOG_WARNING) {
        return;
    }
    char line[512];
    int print_prefix = 1;
    av_log_format_line2(context, level, format, arguments, line, sizeof line, &print_prefix);
    line[strcspn(line, "\n")] = '\0';
    TS_DEBUG("libav: %s", line);
}

static void init_once(void) {
    av_log_set_callback(log_line);
    av_max_alloc(LARGEST_BLOCK);
}

void ts_libav_init(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_once);
}

int ts_libav_fail(int code, int error, const char *path, const char *what, const char *remedy) {
    char words[AV_ERROR_MAX_STRING_SIZE];
    av_strerror(error, words, sizeof words);
    // A damaged header can ask for more than LARGEST_BLOCK: while reading, that is the file's fault.
    const bool exhausted = error == AVERROR(ENOSPC) || error == AVERROR(EDQUOT) || error == AVERROR(EFBIG) ||
                           error == AVERROR(EMFILE) || error == AVERROR(ENFILE) ||
                           (error == AVERROR(ENOMEM) && code != TS_EINPUT);
    return TS_FAIL(exhausted ? TS_ERESOURCE : code, "%s: %s: %s%s%s", path, what, words, remedy ? "; " : "",
                   remedy ? remedy : "");
}

int ts_libav_url(char *out, size_t out_bytes, const char *path) {
    const int n = snprintf(out, out_bytes, "file:%s", path);
    if (n < 0 || (size_t)n >= out_bytes) {
        return TS_FAIL(TS_EINPUT, "%.60s...: the path is longer than %zu bytes; use a shorter one", path,
                       out_bytes - 6);
    }
    return TS_OK;
}
