// SPDX-License-Identifier: Apache-2.0
// The command: the data set's folder, the groups shared out over the ranks, the finish.
#include "data/ingest.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/status.h"
#include "core/comm/threads.h"
#include "data/ingest_codec.h"
#include "data/ingest_config.h"
#include "data/ingest_group.h"
#include "data/ingest_manifest.h"

enum { MAX_STATE_BYTES = 1 << 20 };

// ---- the folder

static int remove_temporary(const char *folder) {
    char **names;
    int64_t count;
    TS_TRY(ts_folder_list(folder, &names, &count));
    int status = TS_OK;
    for (int64_t i = 0; i < count && !status; i++) {
        const size_t length = strlen(names[i]);
        char path[PATH_MAX];
        if (length > 4 && strcmp(names[i] + length - 4, ".tmp") == 0) {
            status = ts_path_join(path, sizeof path, folder, names[i]);
            status = status ? status : ts_folder_remove(path);
        }
    }
    ts_folder_list_free(names, count);
    return status;
}

static int is_empty_folder(const char *folder, bool *empty) {
    char **names;
    int64_t count;
    TS_TRY(ts_folder_list(folder, &names, &count));
    ts_folder_list_free(names, count);
    *empty = count == 0;
    return TS_OK;
}

// Begins the data set in a new or empty folder, or finds that one begun with the same options and files goes on.
static int prepare_folder(const ts_ingest_config *config, const json_t *state, int *lock) {
    const double patience = 15;  // the ranks of an ingest that was killed may need a moment to find that out
    char path[PATH_MAX], groups[PATH_MAX];
    if (ts_path_exists(config->out) && !ts_path_is_folder(config->out)) {
        return TS_FAIL(TS_EUSAGE, "%s: is a file; give a folder for out", config->out);
    }
    TS_TRY(ts_folder_make(config->out));
    TS_TRY(ts_folder_lock(config->out, patience, lock));
    TS_TRY(ts_path_join(path, sizeof path, config->out, "ingest.json"));
    TS_TRY(ts_path_join(groups, sizeof groups, config->out, "groups"));
    if (ts_path_exists(path)) {
        json_t *begun;
        TS_TRY(ts_json_read(path, MAX_STATE_BYTES, &begun));
        const int status = ts_ingest_check_state(begun, state, config->out);
        json_decref(begun);
        TS_TRY(status);
    } else {
        bool empty;
        TS_TRY(remove_temporary(config->out));  // ingest.json.tmp of a start that was cut off
        TS_TRY(is_empty_folder(config->out, &empty));
        if (!empty) {
            return TS_FAIL(TS_EUSAGE, "%s: holds files but no data set begun by ingest; give a new or empty folder",
                           config->out);
        }
        TS_TRY(ts_json_write_atomic(path, state));
    }
    TS_TRY(ts_folder_make(groups));
    TS_TRY(remove_temporary(config->out));
    return remove_temporary(groups);
}

// Removes what prepare_folder wrote, when no codec could be fitted and there is nothing to go on with.
static void withdraw_folder(const ts_ingest_config *config) {
    char path[PATH_MAX];
    if (ts_path_join(path, sizeof path, config->out, "codec") || ts_path_exists(path)) {
        return;
    }
    if (!ts_path_join(path, sizeof path, config->out, "ingest.json")) {
        unlink(path);
    }
    if (!ts_path_join(path, sizeof path, config->out, "groups")) {
        rmdir(path);
    }
    rmdir(config->out);
}

// ---- the groups

typedef struct job {
    const ts_ingest_config *config;
    const ts_captions *captions;
    const ts_codec *codec;
    int rank, size;
    int64_t group_size, groups;
    ts_progress progress;
    int64_t files_done, clips_done, clips_new;
    double start;
} job;

static int64_t group_files(const job *j, int64_t group) {
    const int64_t first = group * j->group_size, left = j->captions->count - first;
    return left < j->group_size ? left : j->group_size;
}

static void show_progress(job *j) {
    const double seconds = ts_clock_seconds() - j->start;
    char detail[96];
    // Rank 0 speaks for all: the others are about as far.
    snprintf(detail, sizeof detail, "%" PRId64 " clips, %.0f clips/s", j->clips_new * j->size,
             seconds > 0 ? (double)(j->clips_new * j->size) / seconds : 0);
    const int64_t done = j->files_done * j->size;
    ts_progress_update(&j->progress, done < j->captions->count ? done : j->captions->count, detail);
}

static void on_file(void *context, int64_t clips) {
    job *j = context;
    j->files_done++;
    j->clips_new += clips;
    show_progress(j);
}

static int run_group(job *j, int64_t number) {
    if (ts_ingest_record_is_whole(j->config, number)) {
        j->files_done += group_files(j, number);
        show_progress(j);
        return TS_OK;
    }
    char path[PATH_MAX];
    TS_TRY(ts_ingest_record_path(j->config, number, path, sizeof path));
    const ts_ingest_group group = {.config = j->config,
                                   .codec = j->codec,
                                   .number = number,
                                   .file = j->captions->file + number * j->group_size,
                                   .count = group_files(j, number)};
    json_t *record;
    TS_TRY(ts_ingest_group_run(&group, on_file, j, &record));
    const int status = ts_json_write_atomic(path, record);
    json_decref(record);
    return status;
}

static int run_groups(job *j) {
    ts_progress_begin(&j->progress, "ingest", "files", j->captions->count);
    j->start = ts_clock_seconds();
    int status = TS_OK;
    for (int64_t group = j->rank; group < j->groups && !status; group += j->size) {
        status = run_group(j, group);
    }
    ts_progress_end(&j->progress, NULL);
    return status;
}

// ---- the command

static int begin(const ts_ingest_config *config, ts_captions *captions, ts_arena *arena, int rank, int *lock) {
    TS_TRY(ts_captions_read(captions, config->source, arena));
    if (captions->count + captions->skipped_count == 0) {
        return TS_FAIL(TS_EINPUT, "%s: its list of captions is empty; give one line a video", config->source);
    }
    if (captions->count == 0) {
        return TS_FAIL(TS_EINPUT,
                       "%s: nothing could be ingested: %" PRId64 " captions, but none with its video; the "
                       "first: %s: %s",
                       config->source, captions->skipped_count, captions->skipped[0].path, captions->skipped[0].reason);
    }
    if (rank != 0) {
        return TS_OK;
    }
    json_t *state;
    TS_TRY(ts_ingest_state(config, captions, arena, &state));
    const int status = prepare_folder(config, state, lock);
    json_decref(state);
    return status;
}

static int ingest(const ts_ingest_config *config, ts_arena *arena, ts_comm *world) {
    ts_captions captions;
    ts_codec *codec = NULL;
    const int rank = ts_comm_rank(world);
    int lock = -1;
    TS_TRY(ts_threads_set(world, 0));
    int status = ts_agree(world, begin(config, &captions, arena, rank, &lock));
    TS_TRY_GOTO(status, status, done);
    status = ts_ingest_codec(&codec, config, &captions, world);
    if (status == TS_EINPUT && rank == 0) {
        withdraw_folder(config);
    }
    if (!status) {
        const int64_t size = ts_ingest_group_size(config, captions.count);
        job j = {.config = config,
                 .captions = &captions,
                 .codec = codec,
                 .rank = rank,
                 .size = ts_comm_size(world),
                 .group_size = size,
                 .groups = (captions.count + size - 1) / size};
        status = ts_agree(world, run_groups(&j));
        if (!status) {
            status = ts_agree(world, rank == 0 ? ts_ingest_finish(config, &captions, codec, j.groups) : TS_OK);
        }
    }
done:
    ts_codec_close(&codec);
    if (lock >= 0) {
        close(lock);
    }
    return status;
}

int ts_command_ingest(ts_comm *world, int argc, char **argv) {
    ts_arena *arena;
    TS_TRY(ts_arena_open(&arena, "ingest", 1 << 16, false));
    ts_ingest_config config;
    bool help = false;
    int status = ts_agree(world, ts_ingest_config_read(&config, arena, argc, argv, &help));
    if (!status && !help) {
        status = ingest(&config, arena, world);
    }
    ts_arena_close(&arena);
    return status;
}
