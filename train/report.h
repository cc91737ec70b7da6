// SPDX-License-Identifier: Apache-2.0
// What a run tells: metrics.jsonl, TensorBoard events and one progress line. Only rank 0 holds a report; every function
// accepts NULL and then does nothing, so that callers need not ask who they are.
#ifndef TS_TRAIN_REPORT_H
#define TS_TRAIN_REPORT_H

#include <stdint.h>

#include "train/trainer.h"

typedef struct ts_report ts_report;

typedef struct ts_report_params {
    const char *folder;   // of the run
    int64_t steps, done;  // of the whole run; before this start
    int64_t every;        // steps between logged lines
    double peak;          // FLOP/s of all ranks together; 0 when unknown
    double minutes_left;  // of training time before train.minutes ends the run; 0: no limit
} ts_report_params;

// Appends to metrics.jsonl; lines of steps after `done`, left by a run that was killed, are taken out.
int ts_report_open(ts_report **out, const ts_report_params *params);
void ts_report_close(ts_report **report);

// Wipes the redrawn progress line, so that a log line can take its place.
void ts_report_clear_line(const ts_report *report);

// After every step: its result, its duration and the seconds this rank waited for data.
int ts_report_step(ts_report *report, int64_t step, const ts_step_result *result, double seconds, double wait);
// The noise patterns, where they were measured, as a table.
int ts_report_validation(ts_report *report, int64_t step, const ts_validation_result *result);
// A checkpoint that is acknowledged, and what it cost.
typedef struct ts_saving {
    int64_t bytes;
    double seconds;      // from its beginning, while training went on
    double stall;        // seconds that training stood still for it
    double stall_share;  // of a step
} ts_saving;
int ts_report_checkpoint(ts_report *report, int64_t step, const ts_saving *cost);
// rgb [height, width, 3]
int ts_report_image(ts_report *report, int64_t step, const char *tag, const uint8_t *rgb, int64_t height,
                    int64_t width);

#endif
