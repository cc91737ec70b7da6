// SPDX-License-Identifier: Apache-2.0
// Inside core/doctor only: the list of facts, and those who add to it.
#ifndef TS_DOCTOR_REPORT_H
#define TS_DOCTOR_REPORT_H

#include <jansson.h>
#include <stdbool.h>

#include "core/comm/comm.h"

typedef enum {
    TS_DOCTOR_FINE,
    TS_DOCTOR_NOTE,    // works, but less well than it could
    TS_DOCTOR_PROBLEM  // something that was built in does not work
} ts_doctor_verdict;

typedef struct ts_doctor_report {
    json_t *facts;      // array of {group, name, value, verdict, remedy}
    bool prints;        // as lines, as they are found
    const char *group;  // of the facts to come
    const char *told;   // the last group that was printed
    int problems, notes;
} ts_doctor_report;

// Adds a fact; `remedy` says what to do, and is printed unless the verdict is fine.
void ts_doctor_tell(ts_doctor_report *report, const char *name, ts_doctor_verdict verdict, const char *remedy,
                    const char *value_format, ...) __attribute__((format(printf, 5, 6)));

void ts_doctor_program(ts_doctor_report *report);
void ts_doctor_host(ts_doctor_report *report);
// `ranks`: of this job on this host.
void ts_doctor_ranks(ts_doctor_report *report, ts_comm *world, int64_t ranks);
void ts_doctor_gpus(ts_doctor_report *report, int64_t ranks);

#endif
