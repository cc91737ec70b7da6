// SPDX-License-Identifier: Apache-2.0
// Levelled, rank-aware logging to standard error.
//
// error   the command fails because of this
// warn    the command goes on, but the user should look
// info    one line for each stage; must not clutter the output of a large run. Printed by rank 0 only.
// debug   details for whoever looks for a fault; every rank, prefixed [rank/size]
// trace   inside loops
// `warn` and `error` are printed by every rank with a [rank/size] prefix when there is more than one rank.
#ifndef TS_BASE_LOG_H
#define TS_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

typedef enum { TS_LOG_ERROR, TS_LOG_WARN, TS_LOG_INFO, TS_LOG_DEBUG, TS_LOG_TRACE } ts_log_level;

#define TS_ERROR(...) ts_log(TS_LOG_ERROR, __VA_ARGS__)
#define TS_WARN(...)  ts_log(TS_LOG_WARN, __VA_ARGS__)
#define TS_INFO(...)  ts_log(TS_LOG_INFO, __VA_ARGS__)
#define TS_DEBUG(...) ts_log(TS_LOG_DEBUG, __VA_ARGS__)

void ts_log_set_level(ts_log_level level);  // default: info
// Parses "error" .. "trace"; returns TS_EUSAGE for anything else.
int ts_log_parse_level(const char *name, ts_log_level *out);
void ts_log_set_rank(int rank, int size);  // default: 0 of 1
int ts_log_rank(void);
// Duplicates every line into `path` (appended), e.g. runs/NAME/log-0.txt; NULL closes.
int ts_log_set_file(const char *path);
void ts_log(ts_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

// A progress line for long work, on rank 0. On a terminal one line is redrawn (bar, rate, time left);
// elsewhere a plain line is printed at most every `plain_interval` seconds, and the last one always.
typedef struct ts_progress {
    const char *label;  // borrowed
    const char *unit;   // "clips", "steps"; borrowed
    int64_t total;      // 0 when unknown
    int64_t done;
    double start, last_drawn, plain_interval;
    bool terminal;
} ts_progress;

void ts_progress_begin(ts_progress *p, const char *label, const char *unit, int64_t total);
// `detail` is appended to the line and may be NULL.
void ts_progress_update(ts_progress *p, int64_t done, const char *detail);
void ts_progress_end(ts_progress *p, const char *detail);

#endif
