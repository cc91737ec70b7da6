// SPDX-License-Identifier: Apache-2.0
#include "core/store/checkpoint_check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/status.h"
#include "core/config/option.h"
#include "core/store/checkpoint_private.h"

typedef struct options {
    bool json;
} options;

static const ts_option TABLE[] = {{"json", TS_OPTION_BOOL, offsetof(options, json), "false",
                                   "print one JSON object instead of rows", 0, 0, NULL, false},
                                  {0}};

// ---- what is to be checked

// Which checkpoints `place` means: *only is a step, or -1 for all of `folder`.
static int resolve(const char *place, char folder[TS_PATH_BYTES], int64_t *only) {
    char name[TS_PATH_BYTES];
    size_t length = strlen(place);
    while (length > 1 && place[length - 1] == '/') {
        length--;
    }
    *only = -1;
    if (snprintf(name, sizeof name, "%.*s", (int)length, place) >= TS_PATH_BYTES || !ts_path_is_folder(name)) {
        return TS_FAIL(TS_EINPUT, "%.200s: is not a folder", place);
    }
    TS_TRY(ts_path_join(folder, TS_PATH_BYTES, name, "checkpoints"));
    if (ts_path_is_folder(folder)) {
        return TS_OK;
    }
    strcpy(folder, name);
    *only = ts_checkpoint_parse_name(ts_path_base(name));
    if (*only >= 0) {
        char *const base = folder + (ts_path_base(folder) - folder);
        strcpy(base, base == folder ? "." : "");
        if (base > folder + 1) {
            base[-1] = '\0';
        }
    }
    return TS_OK;
}

// ---- rows

static json_int_t tensors_of(const ts_stored *stored) {
    return (json_int_t)stored->tensors;
}

static json_int_t bytes_of(const ts_stored *stored) {
    json_int_t bytes = 0;
    for (int i = 0; i < stored->files; i++) {
        bytes += (json_int_t)ts_path_bytes(ts_safetensors_path(stored->file[i].content));
    }
    return bytes;
}

// What a checkpoint says of itself, as far as it can be read; takes over `damaged`.
static json_t *describe(const char *path, int64_t step, json_t *damaged) {
    ts_stored *stored = NULL;
    json_t *row = json_pack("{s:I, s:s, s:b, s:o}", "step", (json_int_t)step, "path", path, "whole",
                            json_array_size(damaged) == 0, "damaged", damaged);
    if (row && ts_stored_open(&stored, path) == TS_OK) {
        const json_t *mesh = json_object_get(json_object_get(stored->manifest, "state"), "mesh");
        json_object_set_new(row, "mesh", json_string(json_is_string(mesh) ? json_string_value(mesh) : "unknown"));
        json_object_set_new(row, "tensors", json_integer(tensors_of(stored)));
        json_object_set_new(row, "bytes", json_integer(bytes_of(stored)));
        ts_stored_close(&stored);
    }
    return row;
}

static void print_row(const json_t *row) {
    const json_t *damaged = json_object_get(row, "damaged");
    const char *mesh = json_string_value(json_object_get(row, "mesh"));
    printf("%10lld  %-28s %8lld %12.1f  %s\n", (long long)json_integer_value(json_object_get(row, "step")),
           mesh ? mesh : "-", (long long)json_integer_value(json_object_get(row, "tensors")),
           1e-6 * (double)json_integer_value(json_object_get(row, "bytes")),
           json_array_size(damaged) ? "DAMAGED" : "whole");
    for (size_t i = 0; i < json_array_size(damaged); i++) {
        printf("%12s%s\n", "", json_string_value(json_array_get(damaged, i)));
    }
    fflush(stdout);
}

// Checks one step; on the first rank its row is added to `rows`, and printed unless the rows are for a machine.
static int check_step(const char *folder, int64_t step, ts_comm *world, bool print, json_t *rows, int64_t *wrong) {
    char path[TS_PATH_BYTES];
    TS_TRY(ts_checkpoint_step_path(path, folder, step, ""));
    json_t *damaged = json_array();
    const int status = ts_checkpoint_verify(path, world, damaged);
    if (status && status != TS_EINPUT) {
        json_decref(damaged);
        return status;
    }
    *wrong += status != TS_OK;
    if (ts_comm_rank(world) > 0) {
        json_decref(damaged);
        return TS_OK;
    }
    json_t *row = describe(path, step, damaged);
    if (row && print) {
        print_row(row);
    }
    return json_array_append_new(rows, row) ? TS_FAIL(TS_ERESOURCE, "%s: no memory for its row", path) : TS_OK;
}

static int check_steps(const char *folder, const int64_t *step, int64_t count, ts_comm *world, bool print, json_t *rows,
                       int64_t *wrong) {
    if (print && ts_comm_rank(world) == 0) {
        printf("%10s  %-28s %8s %12s\n", "step", "written by", "tensors", "MB");
    }
    for (int64_t i = 0; i < count; i++) {
        TS_TRY(ts_agree(world, check_step(folder, step[i], world, print, rows, wrong)));
    }
    return TS_OK;
}

// Takes over `rows`.
static int print_json(const char *folder, json_t *rows, int64_t wrong) {
    json_t *report = json_pack("{s:s, s:I, s:O}", "folder", folder, "damaged", (json_int_t)wrong, "checkpoints", rows);
    char *text = report ? json_dumps(report, JSON_INDENT(2)) : NULL;
    json_decref(report);
    if (!text) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory for the report", folder);
    }
    puts(text);
    free(text);
    return TS_OK;
}

static int check_place(const char *place, bool json, ts_comm *world) {
    char folder[TS_PATH_BYTES];
    int64_t only, count, wrong = 0, *steps = NULL;
    TS_TRY(ts_agree(world, resolve(place, folder, &only)));
    TS_TRY(ts_checkpoint_list_all(folder, world, &steps, &count));
    if (only >= 0) {
        steps[0] = only;  // whether it is there is found out by looking into it
        count = 1;
    }
    json_t *rows = json_array();
    int status = count
                     ? check_steps(folder, steps, count, world, !json, rows, &wrong)
                     : TS_FAIL(TS_EINPUT, "%s: holds no checkpoint; name a run, its checkpoints or one of them", place);
    if (!status && json && ts_comm_rank(world) == 0) {
        status = print_json(folder, rows, wrong);
    }
    json_decref(rows);
    free(steps);
    TS_TRY(ts_agree(world, status));
    return wrong ? TS_FAIL(TS_EINPUT, "%s: %" PRId64 " of %" PRId64 " checkpoints %s damaged", folder, wrong, count,
                           wrong == 1 ? "is" : "are")
                 : TS_OK;
}

// ---- the command

int ts_command_check_checkpoint(ts_comm *world, int argc, char **argv) {
    ts_arena *arena = NULL;
    options o = {0};
    const char *place = NULL;
    int places = 1;
    bool help = false;
    TS_TRY(ts_arena_open(&arena, "options", 1 << 14, false));
    int status = ts_options_default(TABLE, &o, arena);
    status = status ? status : ts_options_read_args(TABLE, &o, arena, argc, argv, &place, &places, &help);
    if (!status && help && ts_comm_rank(world) == 0) {
        printf("tessera check checkpoint DIR [--json]\nReads every byte of the checkpoints of a run, of a folder of "
               "checkpoints, or of one step.\n\n");
        ts_options_print_help(TABLE, stdout);
    } else if (!status && !help) {
        status = places ? check_place(place, o.json, world)
                        : TS_FAIL(TS_EUSAGE, "check checkpoint: name a run, its checkpoints or one of them");
    }
    ts_arena_close(&arena);
    return status;
}
