// SPDX-License-Identifier: Apache-2.0
// What is done to a video between two steps: its clients are obeyed, its state is saved, or it goes on from one.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/status.h"
#include "core/comm/watch.h"
#include "infer/edit/edit_private.h"
#include "infer/edit/output.h"

// ---- states

// The timeline as YAML, new text that the caller frees; NULL of a video that has none.
static int timeline_text(const ts_edit_round *r, char **text) {
    size_t bytes = 0;
    *text = NULL;
    if (r->list->from) {
        return TS_OK;  // its canvas is no timeline's any more
    }
    FILE *out = open_memstream(text, &bytes);
    const int status = out ? ts_timeline_write(&r->list->item[r->first], out) : TS_ERESOURCE;
    return !out || fclose(out) ? TS_FAIL(TS_ERESOURCE, "out of memory for a timeline") : status;
}

// The state that this one goes on from, when it lies in the same store.
static const char *parent_of(const ts_edit_steer *s, const char *path) {
    const char *own = ts_path_base(path), *last = ts_path_base(s->parent);
    const bool same = own - path == last - s->parent && strncmp(path, s->parent, (size_t)(own - path)) == 0;
    return *s->parent && same && strcmp(own, last) != 0 ? last : NULL;
}

// Rank 0's. `memory` has room for all arrays.
static int write_state(ts_edit_steer *s, const ts_edit_round *r, const char *path, int64_t step, float *memory) {
    const ts_sample_params *p = &r->session->sample;
    ts_state state = {.parent = parent_of(s, path),
                      .change = s->change,
                      .model = r->options->session.model,
                      .step = step,
                      .steps = p->steps,
                      .seed = (int64_t)p->seed,
                      .grid = (int)p->grid,
                      .solver = (int)p->solver,
                      .shift = p->shift,
                      .fps = r->fps,
                      .negative = p->negative,
                      .compiled = {.canvas = r->canvas[0]}};
    const ts_film film = ts_edit_film(r, NULL, NULL);
    char *timeline = NULL;
    state.frames = ts_film_pixel_frames(r->session->model->codec, &film);
    state.compiled.change = r->compiled[0].change;
    state.compiled.changes = r->compiled[0].changes;
    for (; state.compiled.changes && state.compiled.change->step <= step; state.compiled.changes--) {
        state.compiled.change++;  // it has been made
    }
    for (int i = 0; i < TS_DENOISER_ARRAYS; i++) {
        state.array[i] = memory + i * r->numbers;
    }
    if (step == p->steps) {
        state.arrays = 1;
        TS_TRY(ts_denoiser_latents(r->denoiser, 0, state.array[0]));
    } else if (step > ts_denoiser_first_step(r->denoiser)) {
        TS_TRY(ts_denoiser_save(r->denoiser, 0, state.array, &state.arrays));
    }
    TS_TRY(s->fingerprint ? TS_OK : ts_state_fingerprint(state.model, &s->fingerprint));
    state.fingerprint = s->fingerprint;
    TS_TRY(timeline_text(r, &timeline));
    state.timeline = timeline;
    const int status = ts_state_save(&state, path);
    free(timeline);
    return status;
}

// The video as it stands before step `step`, or at its end. Rank 0 writes. Collective.
static int save_state(ts_edit_steer *s, const ts_edit_round *r, const char *path, int64_t step) {
    ts_comm *world = r->session->mesh.world;
    int status = TS_OK;
    if (ts_comm_rank(world) == 0) {
        float *memory = ts_malloc((size_t)(TS_DENOISER_ARRAYS * r->numbers) * sizeof *memory);
        ts_watch_note("saving a state");
        status = memory ? write_state(s, r, path, step, memory) : TS_ERESOURCE;
        ts_watch_note(NULL);
        free(memory);
    }
    TS_TRY(ts_agree(world, status));
    snprintf(s->parent, sizeof s->parent, "%s", path);
    free(s->change);
    s->change = NULL;
    return TS_OK;
}

// Goes on where a state was left. What has not moved yet starts anew, with the same noise.
static int restore(const ts_edit_round *r) {
    const ts_state *from = r->list->from;
    if (!from || from->step <= ts_denoiser_first_step(r->denoiser)) {
        return TS_OK;
    }
    return ts_denoiser_restore(r->denoiser, 0, from->step, (const float *const *)from->array, from->arrays);
}

// ---- clients

// What is told of a state: the prompts since the one before it.
static int note_change(ts_edit_steer *s, const char *prompt) {
    char *text = NULL;
    if (asprintf(&text, "%s%s%s", s->change ? s->change : "", s->change ? "; then " : "", prompt) < 0) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for a prompt");
    }
    free(s->change);
    s->change = text;
    return TS_OK;
}

// `name` in a folder: of a path all but its last part, or the whole of it.
static int place(char out[TS_PATH_BYTES], const char *path, bool is_folder, const char *name) {
    const size_t bytes = is_folder ? strlen(path) : (size_t)(ts_path_base(path) - path);
    return snprintf(out, TS_PATH_BYTES, "%.*s%s%s", (int)bytes, path, is_folder ? "/" : "", name) < TS_PATH_BYTES
               ? TS_OK
               : TS_FAIL(TS_EINPUT, "%.80s...: the path is longer than %d bytes", path, TS_PATH_BYTES);
}

static int save_branch(ts_edit_steer *s, const ts_edit_round *r, const char *name, int64_t step) {
    char path[TS_PATH_BYTES];
    const char *store = r->options->store;
    const char *state = r->options->save_state ? r->options->save_state : r->list->from_path;
    if (!store && !state) {
        return TS_FAIL(TS_EUSAGE, "seed-branch: the job knows no folder for states; start it with --store FOLDER");
    }
    TS_TRY(place(path, store ? store : state, store != NULL, name));
    return save_state(s, r, path, step);
}

// Rank 0's.
static int write_preview(const ts_edit_round *r, const char *name) {
    char path[TS_PATH_BYTES];
    const char *out = r->options->out;
    TS_TRY(place(path, out, !ts_ends_with(out, ".mp4"), name));
    return ts_edit_write_preview(r, path);
}

static int obey_event(ts_edit_steer *s, const ts_edit_round *r, const ts_control_event *event, int64_t step) {
    switch (event->kind) {
    case TS_CONTROL_PROMPT:
        TS_TRY(ts_agree(r->session->mesh.world, note_change(s, event->text)));
        return ts_denoiser_set_prompt(r->denoiser, 0, event->first, event->text);
    case TS_CONTROL_PREVIEW:
        return ts_comm_rank(r->session->mesh.world) == 0 ? write_preview(r, event->text) : TS_OK;
    case TS_CONTROL_BRANCH:
        return save_branch(s, r, event->text, step);
    case TS_CONTROL_CANCEL:
        break;
    }
    return TS_OK;
}

// They are told what became of it; the video goes on all the same.
static int obey(ts_edit_steer *s, const ts_edit_round *r, int64_t step) {
    const ts_control_event *event;
    int count;
    do {
        TS_TRY(ts_control_poll(s->control, step, &event, &count));
        for (int i = 0; i < count; i++) {
            ts_control_answer(s->control, i, obey_event(s, r, &event[i], step));
            if (event[i].kind == TS_CONTROL_CANCEL) {
                TS_INFO("cancelled before step %lld; nothing was written", (long long)step);
                return TS_FAIL(TS_ESTOPPED, "cancelled before step %lld", (long long)step);
            }
        }
    } while (count);
    return TS_OK;
}

// ---- a video's steering from its first step to its last

static int find_save_step(ts_edit_steer *s, const ts_edit_round *r, int64_t first, int64_t steps) {
    const char *at = r->options->save_at ? r->options->save_at : "end";
    s->save_step = strcmp(at, "end") == 0 ? steps : strcmp(at, "start") == 0 ? first : -1;
    TS_TRY(s->save_step < 0 ? ts_step_parse(&s->save_step, at, steps, "--save-at") : TS_OK);
    return s->save_step >= first
               ? TS_OK
               : TS_FAIL(TS_EUSAGE, "--save-at %s: the video goes on from step %lld", at, (long long)first);
}

int ts_edit_steer_open(ts_edit_steer *s, const ts_edit_round *r, int64_t first, int64_t steps) {
    const ts_codec_info codec = ts_codec_get_info(r->session->model->codec);
    const ts_film film = ts_edit_film(r, NULL, NULL);
    const ts_control_video video = {ts_film_pixel_frames(r->session->model->codec, &film), codec.time_factor, r->loop};
    *s = (ts_edit_steer){.save_step = -1};
    if (r->list->from) {
        snprintf(s->parent, sizeof s->parent, "%s", r->list->from_path);
        int status = r->list->change ? note_change(s, r->list->change) : TS_OK;
        status = status ? status : restore(r);
        TS_TRY(ts_agree(r->session->mesh.world, status));
    }
    TS_TRY(r->options->save_state ? find_save_step(s, r, first, steps) : TS_OK);
    return r->options->control ? ts_control_open(&s->control, r->session->mesh.world, r->options->control, &video)
                               : TS_OK;
}

void ts_edit_steer_close(ts_edit_steer *s) {
    ts_control_close(&s->control);
    free(s->change);
    s->change = NULL;
}

int ts_edit_steer_before(ts_edit_steer *s, const ts_edit_round *r, int64_t step) {
    TS_TRY(s->control && step < r->session->sample.steps ? obey(s, r, step) : TS_OK);
    if (s->save_step == step) {
        s->failed = save_state(s, r, r->options->save_state, step);
        snprintf(s->problem, sizeof s->problem, "%s", s->failed ? ts_error_text() : "");
    }
    return TS_OK;
}

int ts_edit_steer_end(const ts_edit_steer *s) {
    return s->failed ? TS_FAIL(s->failed, "the state was not saved: %s", s->problem) : TS_OK;
}
