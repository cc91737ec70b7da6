// SPDX-License-Identifier: Apache-2.0
#include "train/report.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/status.h"
#include "core/media/image.h"
#include "train/tfevents.h"

// Sums since the last logged line.
typedef struct window {
    int64_t steps;
    double loss, seconds, wait, tokens, flops;
} window;

struct ts_report {
    ts_report_params params;
    FILE *metrics;
    char path[4096];
    ts_tfevents *events;
    window since_line;
    double step_seconds;    // smoothed
    double trained, drawn;  // seconds in steps; when the line was last drawn
    bool terminal;
};

// ---- metrics.jsonl

// Keeps the lines of steps 0..last. A line cut by a kill does not parse and goes too.
static int cut_metrics(const char *path, int64_t last) {
    char *text = NULL;
    size_t bytes = 0, kept = 0;
    if (!ts_path_exists(path)) {
        return TS_OK;
    }
    TS_TRY(ts_file_read(path, (size_t)1 << 30, &text, &bytes));
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        const size_t length = (size_t)(end + 1 - line);
        json_t *value = json_loadb(line, length, 0, NULL);
        const json_t *step = json_object_get(value, "step");
        if (json_is_integer(step) && json_integer_value(step) <= last) {
            memmove(text + kept, line, length);
            kept += length;
        }
        json_decref(value);
    }
    const int status = kept == bytes ? TS_OK : ts_file_write_atomic(path, text, kept);
    free(text);
    return status;
}

// Writes one line and releases `value`.
static int write_metrics(ts_report *r, json_t *value) {
    char *text = value ? json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(value);
    if (!text) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory for a line", r->path);
    }
    const bool failed = fprintf(r->metrics, "%s\n", text) < 0 || fflush(r->metrics);
    free(text);
    return failed ? TS_FAIL(TS_ERESOURCE, "%s: %s; free disk space", r->path, strerror(errno)) : TS_OK;
}

int ts_report_open(ts_report **out, const ts_report_params *params) {
    ts_report *r = ts_calloc(1, sizeof *r);
    if (!r) {
        return TS_ERESOURCE;
    }
    r->params = *params;
    r->terminal = isatty(STDERR_FILENO);
    int status = TS_OK;
    TS_TRY_GOTO(status, ts_path_join(r->path, sizeof r->path, params->folder, "metrics.jsonl"), failed);
    TS_TRY_GOTO(status, cut_metrics(r->path, params->done), failed);
    r->metrics = fopen(r->path, "a");
    if (!r->metrics) {
        status = TS_FAIL(TS_ERESOURCE, "%s: cannot write: %s", r->path, strerror(errno));
        goto failed;
    }
    TS_TRY_GOTO(status, ts_tfevents_open(&r->events, params->folder), failed);
    *out = r;
    return TS_OK;
failed:
    ts_report_close(&r);
    return status;
}

void ts_report_close(ts_report **report) {
    ts_report *r = *report;
    if (r) {
        if (r->metrics) {
            fclose(r->metrics);
        }
        ts_tfevents_close(&r->events);
        free(r);
        *report = NULL;
    }
}

// ---- the progress line

static double seconds_left(const ts_report *r, int64_t step) {
    const double by_steps = (double)(r->params.steps - step) * r->step_seconds;
    if (r->params.minutes_left <= 0) {
        return by_steps;
    }
    const double by_clock = 60.0 * r->params.minutes_left - r->trained;
    return by_clock < by_steps ? by_clock : by_steps;
}

static void progress_line(const ts_report *r, int64_t step, const ts_step_result *result, const window *w, char *line,
                          size_t bytes) {
    char left[32], share[32] = "";
    const double left_seconds = seconds_left(r, step);
    ts_clock_format(left_seconds > 0 ? left_seconds : 0, left, sizeof left);
    if (r->params.peak > 0) {
        snprintf(share, sizeof share, " (%.0f%% of peak)", 100.0 * w->flops / w->seconds / r->params.peak);
    }
    snprintf(line, bytes,
             "step %" PRId64 "/%" PRId64 "  loss %.4f  lr %.2e  %.0f tokens/s  %.1f GFLOP/s%s  loader wait %.1f%%  "
             "%s left",
             step, r->params.steps, w->loss / (double)w->steps, result->lr, w->tokens / w->seconds,
             1e-9 * w->flops / w->seconds, share, 100.0 * w->wait / w->seconds, left);
}

static int log_step(ts_report *r, int64_t step, const ts_step_result *result) {
    const window *w = &r->since_line;
    json_t *line =
        json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "step", (json_int_t)step, "loss",
                  w->loss / (double)w->steps, "lr", result->lr, "grad_norm", result->grad_norm, "seconds_per_step",
                  w->seconds / (double)w->steps, "tokens_per_second", w->tokens / w->seconds, "gflops",
                  1e-9 * w->flops / w->seconds, "loader_wait_share", w->wait / w->seconds);
    if (line && r->params.peak > 0) {
        json_object_set_new(line, "peak_share", json_real(w->flops / w->seconds / r->params.peak));
    }
    TS_TRY(write_metrics(r, line));
    TS_TRY(ts_tfevents_scalar(r->events, step, "train/loss", w->loss / (double)w->steps));
    TS_TRY(ts_tfevents_scalar(r->events, step, "train/lr", result->lr));
    TS_TRY(ts_tfevents_scalar(r->events, step, "train/grad_norm", result->grad_norm));
    TS_TRY(ts_tfevents_scalar(r->events, step, "speed/tokens_per_second", w->tokens / w->seconds));
    TS_TRY(ts_tfevents_scalar(r->events, step, "speed/gflops", 1e-9 * w->flops / w->seconds));
    return ts_tfevents_flush(r->events);
}

void ts_report_clear_line(const ts_report *r) {
    if (r && r->terminal) {
        fputs("\r\033[K", stderr);
    }
}

int ts_report_step(ts_report *r, int64_t step, const ts_step_result *result, double seconds, double wait) {
    if (!r) {
        return TS_OK;
    }
    window *w = &r->since_line;
    *w = (window){.steps = w->steps + 1,
                  .loss = w->loss + result->loss,
                  .seconds = w->seconds + seconds,
                  .wait = w->wait + wait,
                  .tokens = w->tokens + (double)result->tokens,
                  .flops = w->flops + result->flops};
    r->trained += seconds;
    r->step_seconds = r->step_seconds > 0 ? 0.95 * r->step_seconds + 0.05 * seconds : seconds;
    const bool due = step % r->params.every == 0 || step == r->params.steps;
    const double now = ts_clock_seconds();
    if (r->terminal ? due || now - r->drawn > 0.2 : due) {
        char line[256];
        progress_line(r, step, result, w, line, sizeof line);
        if (r->terminal) {
            fprintf(stderr, "\r\033[K%s", line);
            fflush(stderr);
            r->drawn = now;
        } else {
            TS_INFO("%s", line);
        }
    }
    if (due) {
        TS_TRY(log_step(r, step, result));
        *w = (window){0};
    }
    return TS_OK;
}

static bool has_patterns(const ts_validation_result *result) {
    bool any = false;
    for (int p = TS_PATTERN_ALL + 1; p < TS_PATTERN_COUNT; p++) {
        any = any || result->pattern[p].measured;
    }
    return any;
}

static void print_patterns(const ts_validation_result *result) {
    TS_INFO("  %-14s %12s %17s %25s", "noise pattern", "of training", "validation loss", "of the best constant's");
    for (int p = 0; p < TS_PATTERN_COUNT; p++) {
        const ts_pattern_loss *one = &result->pattern[p];
        if (one->measured) {
            TS_INFO("  %-14s %10.1f %% %17.4f %23.1f %%", ts_pattern_names[p], 100.0 * one->weight, one->loss,
                    100.0 * one->share);
        }
    }
}

static json_t *patterns_as_json(const ts_validation_result *result) {
    json_t *patterns = json_object();
    for (int p = 0; p < TS_PATTERN_COUNT; p++) {
        const ts_pattern_loss *one = &result->pattern[p];
        if (one->measured) {
            json_object_set_new(patterns, ts_pattern_names[p],
                                json_pack("{s:f, s:f}", "loss", one->loss, "share", one->share));
        }
    }
    return patterns;
}

static json_t *validation_as_json(const ts_validation_result *result) {
    json_t *levels = json_array();
    for (int64_t i = 0; i < result->levels; i++) {
        json_array_append_new(levels, json_real(result->level_loss[i]));
    }
    json_t *out = json_pack("{s:f, s:f, s:f, s:o}", "loss", result->loss, "constant", result->constant, "share",
                            result->share, "levels", levels);
    if (out && has_patterns(result)) {
        json_object_set_new(out, "patterns", patterns_as_json(result));
    }
    return out;
}

static int pattern_curves(ts_report *r, int64_t step, const ts_validation_result *result) {
    for (int p = TS_PATTERN_ALL + 1; p < TS_PATTERN_COUNT; p++) {
        if (result->pattern[p].measured) {
            char tag[64];
            snprintf(tag, sizeof tag, "validation/loss_%s", ts_pattern_names[p]);
            TS_TRY(ts_tfevents_scalar(r->events, step, tag, result->pattern[p].loss));
        }
    }
    return TS_OK;
}

int ts_report_validation(ts_report *r, int64_t step, const ts_validation_result *result) {
    if (!r) {
        return TS_OK;
    }
    ts_report_clear_line(r);
    TS_INFO("step %" PRId64 "  validation loss %.4f, %.1f%% of the best constant prediction's", step, result->loss,
            100.0 * result->share);
    if (has_patterns(result)) {
        print_patterns(result);
    }
    TS_TRY(
        write_metrics(r, json_pack("{s:I, s:o}", "step", (json_int_t)step, "validation", validation_as_json(result))));
    TS_TRY(ts_tfevents_scalar(r->events, step, "validation/loss", result->loss));
    TS_TRY(ts_tfevents_scalar(r->events, step, "validation/share_of_constant", result->share));
    TS_TRY(pattern_curves(r, step, result));
    return ts_tfevents_flush(r->events);
}

int ts_report_checkpoint(ts_report *r, int64_t step, const ts_saving *cost) {
    if (!r) {
        return TS_OK;
    }
    TS_TRY(write_metrics(r, json_pack("{s:I, s:{s:I, s:f, s:f, s:f}}", "step", (json_int_t)step, "checkpoint", "bytes",
                                      (json_int_t)cost->bytes, "seconds", cost->seconds, "stall_seconds", cost->stall,
                                      "stall_share_of_step", cost->stall_share)));
    TS_TRY(ts_tfevents_scalar(r->events, step, "checkpoint/stall_share_of_step", cost->stall_share));
    return ts_tfevents_flush(r->events);
}

int ts_report_image(ts_report *r, int64_t step, const char *tag, const uint8_t *rgb, int64_t height, int64_t width) {
    if (!r) {
        return TS_OK;
    }
    uint8_t *png = NULL;
    size_t bytes = 0;
    TS_TRY(ts_image_encode_png(rgb, height, width, &png, &bytes));
    int status = ts_tfevents_png(r->events, step, tag, png, bytes, height, width);
    free(png);
    return status ? status : ts_tfevents_flush(r->events);
}
