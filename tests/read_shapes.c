// SPDX-License-Identifier: Apache-2.0
// read-shapes FOLDER [--colour SHARE] [--direction SHARE] [--shape SHARE] [--list]
//
// Reads every clip of a folder in the videofolder form (metadata.jsonl: file_name, text) and compares what is seen with
// what the caption says. Prints the share of right colours, shapes, directions and backgrounds; exits 3 when a share is
// below the one asked for.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status.h"
#include "data/shapes_reader.h"

typedef struct tally {
    int64_t clips, found, colour, shape, direction, background;
} tally;

static int judge(const char *folder, const char *line, const char *where, bool list, tally *t) {
    json_t *record = NULL;
    TS_TRY(ts_json_parse(line, strlen(line), where, &record));
    const char *file = NULL, *text = NULL;
    char path[4096];
    ts_shapes_factors said;
    ts_shapes_reading seen;
    int status = ts_json_string(record, "file_name", where, &file);
    status = status ? status : ts_json_string(record, "text", where, &text);
    status = status ? status : ts_path_join(path, sizeof path, folder, file);
    if (!status && !ts_shapes_parse_caption(text, &said)) {
        status = TS_FAIL(TS_EINPUT, "%s: \"%s\" is not a caption of the shapes world", where, text);
    }
    status = status ? status : ts_shapes_read_file(path, &seen);
    if (!status) {
        const bool colour = seen.found && seen.colour == said.colour, shape = seen.found && seen.shape == said.shape;
        const bool direction = seen.found && seen.direction == said.direction;
        t->clips++;
        t->found += seen.found;
        t->colour += colour;
        t->shape += shape;
        t->direction += direction;
        t->background += seen.background == said.background;
        if (list) {
            printf("%-44s %s%s%s%s speed %+.2f %+.2f fit %.2f %.2f %.2f  %s\n", file, colour ? "c" : "-",
                   shape ? "s" : "-", direction ? "d" : "-", seen.found ? "" : " nothing found", seen.vx, seen.vy,
                   seen.fit[0], seen.fit[1], seen.fit[2], text);
        }
    }
    json_decref(record);
    return status;
}

static int judge_folder(const char *folder, bool list, tally *t) {
    char path[4096], *text = NULL;
    size_t bytes = 0;
    TS_TRY(ts_path_join(path, sizeof path, folder, "metadata.jsonl"));
    TS_TRY(ts_file_read(path, (size_t)64 << 20, &text, &bytes));
    int status = TS_OK, number = 0;
    for (char *line = strtok(text, "\n"); line && !status; line = strtok(NULL, "\n")) {
        char where[4200];
        snprintf(where, sizeof where, "%s:%d", path, ++number);
        status = judge(folder, line, where, list, t);
    }
    free(text);
    return status;
}

// Prints one share; true when it is at least what was asked.
static bool report(const char *name, int64_t right, int64_t clips, double wanted) {
    const double share = (double)right / (double)clips;
    printf("%-10s %6.2f %%  (%lld of %lld)", name, 100.0 * share, (long long)right, (long long)clips);
    if (wanted > 0.0) {
        printf("  wanted %.2f %%: %s", 100.0 * wanted, share >= wanted ? "yes" : "NO");
    }
    printf("\n");
    return share >= wanted;
}

int main(int argc, char **argv) {
    double colour = 0.0, direction = 0.0, shape = 0.0;
    const char *folder = NULL;
    bool list = false;
    for (int i = 1; i < argc; i++) {
        double *share = !strcmp(argv[i], "--colour")      ? &colour
                        : !strcmp(argv[i], "--direction") ? &direction
                        : !strcmp(argv[i], "--shape")     ? &shape
                                                          : NULL;
        if (share && i + 1 < argc) {
            *share = strtod(argv[++i], NULL);
        } else if (!strcmp(argv[i], "--list")) {
            list = true;
        } else {
            folder = argv[i];
        }
    }
    tally t = {0};
    if (!folder) {
        fprintf(stderr, "usage: read-shapes FOLDER [--colour SHARE] [--direction SHARE] [--shape SHARE] [--list]\n");
        return 2;
    }
    const int status = judge_folder(folder, list, &t);
    if (status || !t.clips) {
        fprintf(stderr, "read-shapes: %s\n", status ? ts_error_text() : "no clips");
        return ts_exit_code(status ? status : TS_EINPUT);
    }
    const bool a = report("colour", t.colour, t.clips, colour),
               b = report("direction", t.direction, t.clips, direction);
    const bool c = report("shape", t.shape, t.clips, shape);
    report("background", t.background, t.clips, 0.0);
    return a && b && c ? 0 : 3;
}
