// SPDX-License-Identifier: Apache-2.0
#include "core/base/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/status.h"

enum { LINE_BYTES = 4096, BAR_CELLS = 24 };

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};

// One log for the process; worker threads (loader, writer) may use it too.
static struct {
    pthread_mutex_t lock;
    ts_log_level level;
    int rank, size;
    FILE *file;          // copy of every line, or NULL
    bool bar_on_screen;  // a progress bar occupies the terminal's last line
} state = {.lock = PTHREAD_MUTEX_INITIALIZER, .level = TS_LOG_INFO, .rank = 0, .size = 1};

void ts_log_set_level(ts_log_level level) {
    state.level = level;
}

int ts_log_parse_level(const char *name, ts_log_level *out) {
    for (int level = TS_LOG_ERROR; level <= TS_LOG_TRACE; level++) {
        if (strcmp(name, level_names[level]) == 0) {
            *out = (ts_log_level)level;
            return TS_OK;
        }
    }
    return TS_FAIL(TS_EUSAGE, "log level \"%s\" is unknown; use error, warn, info, debug or trace", name);
}

void ts_log_set_rank(int rank, int size) {
    state.rank = rank;
    state.size = size;
}

int ts_log_rank(void) {
    return state.rank;
}

int ts_log_set_file(const char *path) {
    FILE *file = NULL;
    if (path) {
        file = fopen(path, "ae");
        if (!file) {
            return TS_FAIL(TS_EINPUT, "%s: cannot open the log file: %s", path, strerror(errno));
        }
        setvbuf(file, NULL, _IOLBF, 0);
    }
    pthread_mutex_lock(&state.lock);
    if (state.file) {
        fclose(state.file);
    }
    state.file = file;
    pthread_mutex_unlock(&state.lock);
    return TS_OK;
}

// One write for a whole line, so that the lines of many ranks do not interleave.
static void print_line(const char *line) {
    pthread_mutex_lock(&state.lock);
    if (state.bar_on_screen) {
        fputs("\r\033[K", stderr);
        state.bar_on_screen = false;
    }
    fputs(line, stderr);
    if (state.file) {
        fputs(line, state.file);
    }
    pthread_mutex_unlock(&state.lock);
}

void ts_log(ts_log_level level, const char *format, ...) {
    if (level > state.level || (level == TS_LOG_INFO && state.rank != 0)) {
        return;
    }
    char line[LINE_BYTES];
    int used = 0;
    if (state.size > 1 && level != TS_LOG_INFO) {
        used += snprintf(line, sizeof line, "[%d/%d] ", state.rank, state.size);
    }
    if (level != TS_LOG_INFO) {
        used += snprintf(line + used, sizeof line - (size_t)used, "%s: ", level_names[level]);
    }
    va_list arguments;
    va_start(arguments, format);
    const int text = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, arguments);
    va_end(arguments);
    used += text < 0 ? 0 : text;
    if (used > LINE_BYTES - 2) {
        used = LINE_BYTES - 2;  // a longer line was cut
    }
    line[used] = '\0';
    ts_make_one_line(line);
    line[used] = '\n';
    line[used + 1] = '\0';
    print_line(line);
}

// ---- progress

void ts_progress_begin(ts_progress *p, const char *label, const char *unit, int64_t total) {
    const double now = ts_clock_seconds();
    *p = (ts_progress){.label = label,
                       .unit = unit,
                       .total = total,
                       .start = now,
                       .last_drawn = now,
                       .plain_interval = 10,
                       .terminal = isatty(STDERR_FILENO) == 1};
}

static int format_bar(const ts_progress *p, char *out, size_t bytes) {
    if (p->total <= 0 || !p->terminal) {
        return 0;
    }
    const int64_t done = p->done < p->total ? p->done : p->total;
    const int filled = (int)((double)done / (double)p->total * BAR_CELLS);
    char bar[BAR_CELLS + 1];
    memset(bar, '#', (size_t)filled);
    memset(bar + filled, '.', (size_t)(BAR_CELLS - filled));
    bar[BAR_CELLS] = '\0';
    return snprintf(out, bytes, "[%s] ", bar);
}

static void format_progress(const ts_progress *p, double now, const char *detail, char *out, size_t bytes) {
    const double seconds = now - p->start, rate = seconds > 0 ? (double)p->done / seconds : 0;
    char bar[BAR_CELLS + 8] = "", time[32], count[64];
    format_bar(p, bar, sizeof bar);
    if (p->total > 0) {
        snprintf(count, sizeof count, "%lld/%lld", (long long)p->done, (long long)p->total);
        const bool finished = p->done >= p->total;
        const double left = finished ? seconds : rate > 0 ? (double)(p->total - p->done) / rate : -1;
        char clock[24];
        snprintf(time, sizeof time, "%s %s", ts_clock_format(left, clock, sizeof clock), finished ? "in all" : "left");
    } else {
        snprintf(count, sizeof count, "%lld", (long long)p->done);
        ts_clock_format(seconds, time, sizeof time);
    }
    snprintf(out, bytes, "%s %s%s %s  %.3g/s  %s%s%s", p->label, bar, count, p->unit, rate, time, detail ? "  " : "",
             detail ? detail : "");
}

static void draw(ts_progress *p, double now, const char *detail, bool last) {
    p->last_drawn = now;
    char line[512];
    format_progress(p, now, detail, line, sizeof line);
    if (!p->terminal || last) {
        ts_log(TS_LOG_INFO, "%s", line);
        return;
    }
    pthread_mutex_lock(&state.lock);
    fprintf(stderr, "\r\033[K%s", line);
    state.bar_on_screen = true;
    pthread_mutex_unlock(&state.lock);
}

void ts_progress_update(ts_progress *p, int64_t done, const char *detail) {
    p->done = done;
    if (state.rank != 0 || state.level < TS_LOG_INFO || (p->total > 0 && done >= p->total)) {
        return;  // the last line is that of ts_progress_end
    }
    const double now = ts_clock_seconds();
    if (now - p->last_drawn >= (p->terminal ? 0.1 : p->plain_interval)) {
        draw(p, now, detail, false);
    }
}

void ts_progress_end(ts_progress *p, const char *detail) {
    if (state.rank == 0 && state.level >= TS_LOG_INFO) {
        draw(p, ts_clock_seconds(), detail, true);
    }
}
