// SPDX-License-Identifier: Apache-2.0
// Saving a checkpoint beside the training that goes on.
//
// A save goes through three phases. In each, every rank's thread does its work and touches no communicator; when all
// threads are done, which the ranks find out together, the next phase begins.
//
//   write    each rank writes its numbers into files that the first rank has made, and sums them; then syncs
//   verify   each rank reads back a share of all bytes; the sums must be those of the memory
//   commit   the first rank writes the manifest, renames the folder, opens it once more, and drops old checkpoints
//
// The trainer may change the numbers as soon as the first phase has read them.
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/log.h"
#include "core/base/status.h"
#include "core/store/checkpoint_private.h"

typedef enum { WRITE, VERIFY, COMMIT } phase;

// A group's file while it is written.
typedef struct group_file {
    ts_safetensors_plan plan;
    char *path;
    int fd;
    int64_t first;  // of its tensors
} group_file;

struct ts_checkpoint_save {
    ts_checkpoint_params params;
    ts_checkpoint_content content;
    ts_arena *arena;
    char path[TS_PATH_BYTES], temporary[TS_PATH_BYTES];
    group_file *file;          // [content.groups]
    ts_stored_tensor *tensor;  // [tensors] of all groups, in the order of the items
    int64_t tensors;
    uint64_t *sum;  // [2 * tensors] element sums, then counts: added up together
    bool made;      // the temporary folder, by this rank

    phase phase;
    bool running;  // there is a thread to join
    pthread_t thread;
    sem_t read;  // posted when this rank's numbers have been read
    bool settled;
    atomic_bool idle;  // the thread has nothing left to do
    int status;        // of the thread, with its error
    char error[2048], place[256];
};

// ---- what the threads do

static int describe_wrong(const ts_checkpoint_save *s, const ts_checkpoint_part *part, int64_t wrong) {
    const ts_checkpoint_group *group = &s->content.group[part->group];
    return TS_FAIL(TS_EINPUT,
                   "checkpoint: %s \"%s\": element %" PRId64
                   " is not finite; training has diverged: go on from an earlier checkpoint with a lower learning rate",
                   group->name, group->items[part->item].name, wrong);
}

static int write_parts(ts_checkpoint_save *s) {
    for (int64_t p = 0; p < s->content.parts; p++) {
        const ts_checkpoint_part *part = &s->content.part[p];
        const int64_t t = s->file[part->group].first + part->item;
        int64_t wrong;
        const int status = ts_slice_write(&s->tensor[t].file, &part->slice, &s->sum[t], &wrong);
        if (status) {
            return wrong >= 0 ? describe_wrong(s, part, wrong) : status;
        }
        s->sum[s->tensors + t] += (uint64_t)ts_slice_count(&part->slice);
    }
    return TS_OK;
}

static int sync_files(const ts_checkpoint_save *s) {
    for (int g = 0; g < s->content.groups; g++) {
        if (fsync(s->file[g].fd)) {
            return TS_FILE_FAIL(s->file[g].path, "sync");
        }
    }
    return TS_OK;
}

static int write_phase(ts_checkpoint_save *s) {
    const int status = write_parts(s);
    sem_post(&s->read);
    return status ? status : sync_files(s);
}

static int verify_phase(ts_checkpoint_save *s) {
    memset(s->sum, 0, (size_t)s->tensors * sizeof *s->sum);
    return ts_stored_sum_share(s->tensor, s->tensors, ts_comm_rank(s->params.world), ts_comm_size(s->params.world),
                               s->sum);
}

// The name of a checkpoint is taken: a damaged one gives way; a whole one stays, and is as good when it is the same.
static int settle_existing(const ts_checkpoint_save *s, bool *same) {
    const int found = ts_checkpoint_verify(s->path, NULL, NULL);
    if (found == TS_EINPUT) {
        TS_WARN("%s; it is replaced", ts_error_text());
        return ts_folder_remove(s->path);
    }
    TS_TRY(found);
    TS_TRY(ts_checkpoint_same_files(s->path, s->temporary, same));
    return *same ? ts_folder_remove(s->temporary)
                 : TS_FAIL(TS_EUSAGE,
                           "%s: exists and holds other weights; remove it, or let this run write to another folder",
                           s->path);
}

static int write_manifest(const ts_checkpoint_save *s) {
    ts_manifest_file *file = ts_calloc((size_t)s->content.groups + 1, sizeof *file);
    if (!file) {
        return TS_ERESOURCE;
    }
    for (int g = 0; g < s->content.groups; g++) {
        const ts_safetensors_plan *plan = &s->file[g].plan;
        file[g] = (ts_manifest_file){.group = s->content.group[g].name,
                                     .bytes = plan->bytes,
                                     .tensors = s->content.group[g].count,
                                     .header_sum = XXH3_64bits(plan->header, (size_t)plan->header_bytes),
                                     .tensor = s->tensor + s->file[g].first};
    }
    const int status =
        ts_checkpoint_write_manifest(s->temporary, s->params.step, s->params.state, file, s->content.groups);
    free(file);
    return status;
}

static int commit_phase(ts_checkpoint_save *s) {
    bool same = false;
    ts_stored *stored = NULL;
    TS_TRY(write_manifest(s));
    if (ts_path_exists(s->path)) {
        TS_TRY(settle_existing(s, &same));
    }
    if (!same) {
        TS_TRY(ts_file_rename(s->temporary, s->path));
    }
    TS_TRY(ts_stored_open(&stored, s->path));
    ts_stored_close(&stored);
    return ts_checkpoint_retain(s->params.folder, s->params.step, s->params.keep, s->params.keep_every);
}

// ---- threads

static void keep_error(ts_checkpoint_save *s, int status) {
    s->status = status;
    snprintf(s->error, sizeof s->error, "%s", ts_error_text());
    snprintf(s->place, sizeof s->place, "%s", ts_error_place());
}

static void *run_phase(void *argument) {
    static int (*const work[])(ts_checkpoint_save *) = {write_phase, verify_phase, commit_phase};
    ts_checkpoint_save *s = argument;
    const int status = work[s->phase](s);
    if (status) {
        keep_error(s, status);
    }
    atomic_store(&s->idle, true);
    return NULL;
}

// The thread takes no signals: they are the main thread's to see. A failure is told when the phase is over.
static void begin_phase(ts_checkpoint_save *s, phase next) {
    s->phase = next;
    s->status = TS_OK;
    if (next == COMMIT && ts_comm_rank(s->params.world) > 0) {
        return;
    }
    sigset_t all, before;
    sigfillset(&all);
    atomic_store(&s->idle, false);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&s->thread, NULL, run_phase, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    s->running = error == 0;
    if (error) {
        keep_error(s, TS_FAIL(TS_ERESOURCE, "checkpoint: cannot start a thread: %s", strerror(error)));
        atomic_store(&s->idle, true);
        sem_post(&s->read);
    }
}

// Waits for the thread; its status becomes this thread's.
static int join(ts_checkpoint_save *s) {
    if (s->running) {
        pthread_join(s->thread, NULL);
        s->running = false;
    }
    if (s->status) {
        ts_error_set(s->status, s->place, s->error);
    }
    return s->status;
}

void ts_checkpoint_save_settle(ts_checkpoint_save *s) {
    while (s && !s->settled) {
        s->settled = sem_wait(&s->read) == 0;
    }
}

// ---- opening

static int copy_content(ts_checkpoint_save *s, const ts_checkpoint_content *content) {
    ts_checkpoint_group *group = ts_arena_alloc(s->arena, (size_t)(content->groups + 1) * sizeof *group);
    ts_checkpoint_part *part = ts_arena_alloc(s->arena, (size_t)(content->parts + 1) * sizeof *part);
    s->file = ts_arena_zalloc(s->arena, (size_t)(content->groups + 1) * sizeof *s->file);
    if (!group || !part || !s->file) {
        return TS_ERESOURCE;
    }
    for (int g = 0; g < content->groups; g++) {
        const size_t bytes = (size_t)(content->group[g].count + 1) * sizeof(ts_safetensors_item);
        ts_safetensors_item *items = ts_arena_zalloc(s->arena, bytes);
        if (!items) {
            return TS_ERESOURCE;
        }
        memcpy(items, content->group[g].items, bytes - sizeof *items);
        group[g] = (ts_checkpoint_group){content->group[g].name, items, content->group[g].count};
        s->file[g].fd = -1;
        s->file[g].first = s->tensors;
        s->tensors += group[g].count;
    }
    if (content->parts) {
        memcpy(part, content->part, (size_t)content->parts * sizeof *part);
    }
    s->content = (ts_checkpoint_content){group, content->groups, part, content->parts};
    return TS_OK;
}

static int plan_file(ts_checkpoint_save *s, int g) {
    const ts_checkpoint_group *group = &s->content.group[g];
    group_file *file = &s->file[g];
    file->path = ts_arena_printf(s->arena, "%s/%s.safetensors", s->temporary, group->name);
    if (!file->path) {
        return TS_ERESOURCE;
    }
    TS_TRY(ts_safetensors_plan_make(&file->plan, group->items, group->count, NULL, file->path));
    for (int64_t i = 0; i < group->count; i++) {
        TS_ASSERT(group->items[i].dtype == TS_F32);
        s->tensor[file->first + i] = (ts_stored_tensor){.name = group->items[i].name,
                                                        .file = {-1, file->path, file->plan.offset[i]},
                                                        .count = ts_shape_count(group->items[i].shape)};
    }
    return TS_OK;
}

static int prepare(ts_checkpoint_save *s, const ts_checkpoint_content *content) {
    if (sem_init(&s->read, 0, 0)) {
        return TS_FAIL(TS_ERESOURCE, "checkpoint: no semaphore: %s", strerror(errno));
    }
    atomic_init(&s->idle, true);
    TS_TRY(ts_arena_open(&s->arena, "checkpoint", 1 << 16, false));
    s->params.folder = ts_arena_strdup(s->arena, s->params.folder);
    TS_TRY(s->params.folder ? copy_content(s, content) : TS_ERESOURCE);
    TS_TRY(ts_checkpoint_step_path(s->path, s->params.folder, s->params.step, ""));
    TS_TRY(ts_checkpoint_step_path(s->temporary, s->params.folder, s->params.step, ".tmp"));
    s->tensor = ts_arena_zalloc(s->arena, (size_t)(s->tensors + 1) * sizeof *s->tensor);
    s->sum = ts_arena_zalloc(s->arena, (size_t)(2 * s->tensors + 1) * sizeof *s->sum);
    if (!s->tensor || !s->sum) {
        return TS_ERESOURCE;
    }
    for (int g = 0; g < s->content.groups; g++) {
        TS_TRY(plan_file(s, g));
    }
    return TS_OK;
}

// The first rank makes the files.
static int make_files(ts_checkpoint_save *s) {
    if (!s->params.state) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory for its state", s->path);
    }
    TS_TRY(ts_folder_make(s->params.folder));
    TS_TRY(ts_checkpoint_remove_temporaries(s->params.folder));
    s->made = true;
    TS_TRY(ts_folder_make(s->temporary));
    for (int g = 0; g < s->content.groups; g++) {
        TS_TRY(ts_safetensors_create(s->file[g].path, &s->file[g].plan));
    }
    return TS_OK;
}

static int open_files(ts_checkpoint_save *s) {
    for (int g = 0; g < s->content.groups; g++) {
        group_file *file = &s->file[g];
        TS_TRY(ts_slice_open(file->path, file->plan.bytes, &file->fd));
        for (int64_t i = 0; i < s->content.group[g].count; i++) {
            s->tensor[file->first + i].file.fd = file->fd;
        }
    }
    return TS_OK;
}

static void close_files(ts_checkpoint_save *s) {
    for (int g = 0; s->file && g < s->content.groups; g++) {
        if (s->file[g].fd >= 0) {
            close(s->file[g].fd);
        }
        ts_safetensors_plan_free(&s->file[g].plan);
    }
}

// After a failure whose error is the one to tell.
static void discard(ts_checkpoint_save **save) {
    ts_checkpoint_save *s = *save;
    if (s && s->running) {
        pthread_join(s->thread, NULL);
        s->running = false;
    }
    if (s && s->made) {
        ts_folder_discard(s->temporary);
    }
    ts_checkpoint_save_close(save);
}

int ts_checkpoint_save_start(ts_checkpoint_save **out, const ts_checkpoint_params *params,
                             const ts_checkpoint_content *content) {
    ts_comm *world = params->world;
    ts_checkpoint_save *s = *out = ts_calloc(1, sizeof *s);
    int status = TS_ERESOURCE;
    if (s) {
        s->params = *params;
        json_incref(params->state);
        status = prepare(s, content);
    }
    if (!status && ts_comm_rank(world) == 0) {
        status = make_files(s);
    }
    TS_TRY_GOTO(status, ts_agree(world, status), failed);
    TS_TRY_GOTO(status, ts_agree(world, open_files(s)), failed);
    begin_phase(s, WRITE);
    return TS_OK;
failed:
    discard(out);
    return status;
}

void ts_checkpoint_save_close(ts_checkpoint_save **save) {
    ts_checkpoint_save *s = *save;
    if (!s) {
        return;
    }
    if (s->running) {
        pthread_join(s->thread, NULL);
    }
    close_files(s);
    json_decref(s->params.state);
    ts_arena_close(&s->arena);
    sem_destroy(&s->read);
    free(s);
    *save = NULL;
}

// ---- from phase to phase

// The sums of what all ranks have written are those of the tensors, if every number was written once.
static int take_sums(ts_checkpoint_save *s) {
    TS_TRY(ts_checkpoint_add_sums(s->sum, 2 * s->tensors, s->params.world));
    for (int64_t i = 0; i < s->tensors; i++) {
        s->tensor[i].sum = s->sum[i];
        if (s->sum[s->tensors + i] != (uint64_t)s->tensor[i].count) {
            return TS_FAIL(TS_EINTERNAL, "%s: \"%s\": the ranks wrote %" PRIu64 " numbers of %" PRId64,
                           s->tensor[i].file.path, s->tensor[i].name, s->sum[s->tensors + i], s->tensor[i].count);
        }
    }
    return TS_OK;
}

static int compare_sums(ts_checkpoint_save *s) {
    TS_TRY(ts_checkpoint_add_sums(s->sum, s->tensors, s->params.world));
    for (int64_t i = 0; i < s->tensors; i++) {
        if (s->sum[i] != s->tensor[i].sum) {
            return TS_FAIL(TS_ERESOURCE,
                           "%s: \"%s\": reads back other numbers than were written; look for a faulty disk",
                           s->tensor[i].file.path, s->tensor[i].name);
        }
    }
    return TS_OK;
}

static int advance(ts_checkpoint_save *s, bool *done) {
    TS_TRY(ts_agree(s->params.world, join(s)));
    *done = s->phase == COMMIT;
    if (s->phase == WRITE) {
        TS_TRY(take_sums(s));
        begin_phase(s, VERIFY);
    } else if (s->phase == VERIFY) {
        TS_TRY(compare_sums(s));
        begin_phase(s, COMMIT);
    }
    return TS_OK;
}

bool ts_checkpoint_save_idle(const ts_checkpoint_save *s) {
    return atomic_load(&s->idle);
}

int ts_checkpoint_save_advance(ts_checkpoint_save **save, bool *done) {
    *done = false;
    const int status = advance(*save, done);
    if (status) {
        discard(save);
    } else if (*done) {
        ts_checkpoint_save_close(save);
    }
    return status;
}

int ts_checkpoint_save_finish(ts_checkpoint_save **save) {
    bool done = false;
    while (!done) {
        TS_TRY(ts_checkpoint_save_advance(save, &done));
    }
    return TS_OK;
}

int ts_checkpoint_save_now(const ts_checkpoint_params *params, const ts_checkpoint_content *content) {
    ts_checkpoint_save *save;
    TS_TRY(ts_checkpoint_save_start(&save, params, content));
    return ts_checkpoint_save_finish(&save);
}

int64_t ts_checkpoint_save_step(const ts_checkpoint_save *s) {
    return s->params.step;
}

int64_t ts_checkpoint_save_bytes(const ts_checkpoint_save *s) {
    int64_t bytes = 0;
    for (int g = 0; g < s->content.groups; g++) {
        bytes += s->file[g].plan.bytes;
    }
    return bytes;
}
