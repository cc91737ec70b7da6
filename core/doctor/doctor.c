// SPDX-License-Identifier: Apache-2.0
#include "core/doctor/doctor.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "core/base/status.h"
#include "core/comm/backend.h"
#include "core/comm/threads.h"
#include "core/config/command.h"
#include "core/doctor/report.h"
#include "core/kernels/kernels.h"

typedef struct doctor_options {
    int device;  // of ts_device_names
    bool json;
} doctor_options;

#define FIELD(name) offsetof(doctor_options, name)
static const ts_option options[] = {
    {.name = "device",
     .type = TS_OPTION_CHOICE,
     .offset = FIELD(device),
     .otherwise = "auto",
     .of = ts_device_names,
     .help = "what the program is to run on: auto, cpu or cuda; when that cannot be used, the exit code is 5"},
    {.name = "json", .type = TS_OPTION_BOOL, .offset = FIELD(json), .help = "print one JSON object instead of lines"},
    {0}};

static const ts_command doctor_command = {
    .usage = "tessera doctor [options]      alone, or under mpirun as a run will be\n"
             "Tells what this program was built with, what this machine has, what stands in the way and what to do.",
    .table = options,
};

// ---- the list

static const char *const VERDICTS[] = {
    [TS_DOCTOR_FINE] = "ok", [TS_DOCTOR_NOTE] = "note", [TS_DOCTOR_PROBLEM] = "problem"};

static void print_fact(ts_doctor_report *report, const char *name, ts_doctor_verdict verdict, const char *value,
                       const char *remedy) {
    if (report->told != report->group) {
        printf("%s%s\n", report->told ? "\n" : "", report->group);
        report->told = report->group;
    }
    printf("  %-8s %-18s %s\n", VERDICTS[verdict], name, value);
    if (verdict != TS_DOCTOR_FINE) {
        printf("  %-8s %-18s -> %s\n", "", "", remedy);
    }
}

void ts_doctor_tell(ts_doctor_report *report, const char *name, ts_doctor_verdict verdict, const char *remedy,
                    const char *value_format, ...) {
    char value[600];
    va_list arguments;
    va_start(arguments, value_format);
    vsnprintf(value, sizeof value, value_format, arguments);
    va_end(arguments);
    ts_make_one_line(value);
    report->notes += verdict == TS_DOCTOR_NOTE;
    report->problems += verdict == TS_DOCTOR_PROBLEM;
    json_t *fact = json_pack("{s:s, s:s, s:s, s:s}", "group", report->group, "name", name, "value", value, "verdict",
                             VERDICTS[verdict]);
    if (verdict != TS_DOCTOR_FINE) {
        json_object_set_new(fact, "remedy", json_string(remedy));
    }
    json_array_append_new(report->facts, fact);
    if (report->prints) {
        print_fact(report, name, verdict, value, remedy);
    }
}

// ---- the command

static void examine(ts_doctor_report *report, ts_comm *world, int64_t ranks) {
    ts_doctor_program(report);
    ts_doctor_host(report);
    ts_doctor_ranks(report, world, ranks);
    ts_doctor_gpus(report, ranks);
}

static int report_all(ts_comm *world, const doctor_options *o) {
    int64_t ranks;
    TS_TRY(ts_ranks_on_host(world, &ranks));
    if (ts_comm_rank(world) == 0) {
        ts_doctor_report report = {.facts = json_array(), .prints = !o->json};
        examine(&report, world, ranks);
        if (o->json) {
            json_t *all =
                json_pack("{s:O, s:i, s:i}", "facts", report.facts, "problems", report.problems, "notes", report.notes);
            json_dumpf(all, stdout, JSON_INDENT(1));
            putchar('\n');
            json_decref(all);
        } else {
            printf("\n%d problem%s, %d note%s\n", report.problems, report.problems == 1 ? "" : "s", report.notes,
                   report.notes == 1 ? "" : "s");
        }
        fflush(stdout);
        json_decref(report.facts);
    }
    const ts_kernels *kernels;
    const char *const device = ts_device_names[o->device];
    return strcmp(device, "auto") == 0 ? TS_OK : ts_backend_open(&kernels, world, device);
}

int ts_command_doctor(ts_comm *world, int argc, char **argv) {
    ts_arena *arena = NULL;
    doctor_options o = {0};
    bool help = false;
    TS_TRY(ts_agree(world, ts_arena_open(&arena, "options", 1 << 14, false)));
    int status = ts_agree(world, ts_command_read(&doctor_command, &o, arena, argc, argv, &help));
    if (!status && !help) {
        status = report_all(world, &o);
    }
    ts_arena_close(&arena);
    return status;
}
