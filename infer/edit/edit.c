// SPDX-License-Identifier: Apache-2.0
#include "infer/edit/edit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/signal.h"
#include "core/base/status.h"
#include "core/comm/threads.h"
#include "infer/edit/edit_private.h"
#include "infer/edit/output.h"

typedef struct work {
    ts_edit_round round;
    ts_edit_sheet sheet;
    ts_comm *world;
    bool is_root;
    int64_t first, steps;  // of the video's; first: that of the state it goes on from
    int64_t neighbours;    // ranks of this machine
    bool made_folder;      // --out was not there
    ts_edit_steer steer;
    ts_progress progress;
} work;

// ---- between two steps

// A signal may reach the ranks at different times.
static int stop_when_asked(const work *w, int64_t step) {
    if (!ts_agree_any(w->world, ts_signal_pending() != NULL)) {
        return TS_OK;
    }
    TS_INFO("stopped by a signal before step %lld; nothing was written%s", (long long)step,
            w->round.first ? " but the videos before" : "");
    return TS_FAIL(TS_ESTOPPED, "stopped by a signal before step %lld", (long long)step);
}

// The timelines' own events.
static int apply_changes(const ts_edit_round *r, int64_t step) {
    for (int64_t i = 0; i < r->own.count; i++) {
        const ts_compiled *c = &r->compiled[i];
        for (int64_t k = 0; k < c->changes; k++) {
            if (c->change[k].step == step) {
                TS_TRY(ts_denoiser_set_prompt(r->denoiser, i, c->change[k].first, c->change[k].prompt));
            }
        }
    }
    return TS_OK;
}

// ---- the steps

static const char *preview_path(const ts_edit_options *o, char path[TS_PATH_BYTES]) {
    snprintf(path, TS_PATH_BYTES, "%.*s.preview.png", (int)(strlen(o->out) - strlen(".mp4")), o->out);
    return path;
}

static int preview(const work *w, int64_t step) {
    char path[TS_PATH_BYTES];
    const ts_edit_options *o = w->round.options;
    const bool due = o->preview_every && (step + 1) % o->preview_every == 0;
    return due && w->is_root ? ts_edit_write_preview(&w->round, preview_path(o, path)) : TS_OK;
}

// No preview is left, nor, of a job that failed before it wrote anything, its folder.
static void clean_up(const work *w, int status) {
    char path[TS_PATH_BYTES];
    if (w->round.options->preview_every && w->is_root) {
        unlink(preview_path(w->round.options, path));
    }
    if (status && w->made_folder) {
        rmdir(w->round.options->out);  // fails where something is in it
    }
}

static int take_step(work *w, int64_t step) {
    ts_denoiser *denoiser = w->round.denoiser;
    if (denoiser && step >= ts_denoiser_first_step(denoiser)) {
        TS_TRY(ts_denoiser_step(denoiser, step));
        TS_TRY(w->round.session->kernels->device->finish());  // what is told is done
    }
    ts_progress_update(&w->progress, w->progress.done + w->round.own.count, NULL);
    return TS_OK;
}

// Of several videos each has ranks of its own, which may fail alone; the steering of one is the same on all.
static int run_steps(work *w) {
    for (int64_t step = w->first; step < w->steps; step++) {
        TS_TRY(stop_when_asked(w, step));
        int status = apply_changes(&w->round, step);
        status = status ? status : ts_edit_steer_before(&w->steer, &w->round, step);
        status = status ? status : take_step(w, step);
        TS_TRY(ts_agree(w->world, status ? status : preview(w, step)));
    }
    return w->steer.save_step == w->steps ? ts_edit_steer_before(&w->steer, &w->round, w->steps) : TS_OK;
}

// ---- a round

static void measure(ts_edit_round *r, const ts_canvas *canvas) {
    r->frames = canvas->frames;
    r->height = canvas->height;
    r->width = canvas->width;
    r->channels = canvas->channels;
    r->numbers = ts_canvas_numbers(canvas);
    r->loop = canvas->loop;
}

static int open_round(work *w) {
    ts_edit_round *r = &w->round;
    const int64_t own = r->own.count;
    const size_t room = (size_t)own + 1;
    r->compiled = ts_calloc(room, sizeof *r->compiled);
    r->canvas = ts_calloc(room, sizeof *r->canvas);
    r->title = ts_calloc(room, sizeof *r->title);
    return ts_agree(w->world, r->compiled && r->canvas && r->title ? TS_OK : TS_ERESOURCE);
}

static void close_round(ts_edit_round *r) {
    ts_denoiser_close(&r->denoiser);
    for (int64_t i = 0; r->compiled && r->canvas && i < r->own.count; i++) {
        ts_canvas_close(&r->canvas[i]);
        ts_compiled_close(&r->compiled[i]);
    }
    free(r->compiled);
    free(r->canvas);
    free(r->title);
    free(r->latents);
    r->compiled = NULL;
    r->canvas = NULL;
    r->title = NULL;
    r->latents = NULL;
}

// The one video of a list that goes on from a state.
static int take_state(ts_edit_round *r) {
    ts_compiled *c = &r->list->from->compiled;
    measure(r, &c->canvas);
    r->title[0] = c->canvas.prompt[0];
    r->canvas[0] = c->canvas;
    c->canvas = (ts_canvas){0};
    r->compiled[0] = *c;
    *c = (ts_compiled){0};
    return TS_OK;
}

// Rank 0's. What no prompt gives a guidance has that of the session.
static int compile_video(const work *w, int64_t i, ts_compiled *out) {
    const ts_edit_round *r = &w->round;
    const ts_timeline *timeline = &r->list->item[i];
    TS_TRY(ts_timeline_compile(out, timeline, r->session->model, w->steps, w->neighbours));
    for (int64_t t = 0; t < out->canvas.frames && !timeline->prompts.count; t++) {
        out->canvas.guidance[t] = (float)r->session->sample.guidance;
    }
    return TS_OK;
}

// Rank 0 compiles; each rank keeps its own videos. Collective.
static int compile_round(work *w) {
    ts_edit_round *r = &w->round;
    if (r->list->from) {
        return take_state(r);
    }
    for (int64_t i = 0; i < r->count; i++) {
        const int64_t own = i - r->own.first;
        ts_compiled c = {0};
        TS_TRY(ts_agree(w->world, w->is_root ? compile_video(w, r->first + i, &c) : TS_OK));
        TS_TRY(ts_compiled_share(&c, w->world, 0));
        measure(r, &c.canvas);
        if (own < 0 || own >= r->own.count) {
            ts_compiled_close(&c);
            continue;
        }
        r->title[own] = c.canvas.prompts ? c.canvas.prompt[0] : "";
        r->canvas[own] = c.canvas;
        r->canvas[own].index = (uint64_t)(r->first + i);
        c.canvas = (ts_canvas){0};
        r->compiled[own] = c;
    }
    return TS_OK;
}

static int open_denoiser(ts_edit_round *r) {
    const ts_sample_params *p = &r->session->sample;
    const ts_denoise_params params = {
        .grid = p->grid,
        .steps = p->steps,
        .shift = p->shift,
        .solver = p->solver,
        .seed = p->seed,
        .negative = p->negative,
        .batch = p->batch,
        .share_windows = r->list->count == 1,
    };
    return r->own.count ? ts_denoiser_open(&r->denoiser, r->session->model, r->session->kernels, &params, r->canvas,
                                           r->own.count)
                        : TS_OK;
}

static int fetch_latents(ts_edit_round *r) {
    r->latents = ts_malloc((size_t)(r->own.count * r->numbers + 1) * sizeof *r->latents);
    if (!r->latents) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < r->own.count; i++) {
        TS_TRY(ts_denoiser_latents(r->denoiser, i, r->latents + i * r->numbers));
    }
    return ts_sample_check_finite(&r->session->sample, r->latents, r->own.count, r->numbers, r->first + r->own.first);
}

// Nothing is wrong with what was asked for: now places to write are made, and progress is told. Collective.
static int begin(work *w) {
    const int ranks = ts_comm_size(w->round.session->mesh.axis[TS_AXIS_DATA]);
    const int64_t own = ts_split(w->round.list->count, w->round.list->count > 1 ? ranks : 1, 0).count;
    const char *out = w->round.options->out;
    w->made_folder = w->is_root && !ts_ends_with(out, ".mp4") && !ts_path_is_folder(out);
    TS_TRY(ts_agree(w->world, w->is_root ? ts_edit_prepare_output(w->round.options) : TS_OK));
    ts_progress_begin(&w->progress, "sampling", "video steps", own * (w->steps - w->first));
    return w->round.list->count == 1 ? ts_edit_steer_open(&w->steer, &w->round, w->first, w->steps) : TS_OK;
}

static int make_round(work *w) {
    ts_edit_round *r = &w->round;
    TS_TRY(open_round(w));
    TS_TRY(compile_round(w));
    TS_TRY(ts_agree(w->world, open_denoiser(r)));
    int status = r->first ? TS_OK : begin(w);
    status = status ? status : run_steps(w);
    ts_edit_steer_close(&w->steer);
    TS_TRY(status);
    TS_TRY(ts_agree(w->world, fetch_latents(r)));
    TS_TRY(ts_edit_write_round(r));
    return ts_edit_sheet_add(&w->sheet, r);
}

// ---- all of them

// Everything that is rank 0's to know and the others need.
static int share_rate(work *w) {
    ts_edit_round *r = &w->round;
    r->fps = w->is_root ? r->list->item[0].fps : 0;
    return ts_broadcast(w->world, &r->fps, sizeof r->fps, 0);
}

static int make_all(work *w) {
    ts_edit_round *r = &w->round;
    const ts_comm *data = r->session->mesh.axis[TS_AXIS_DATA];
    const int ranks = ts_comm_size(data), rank = ts_comm_rank(data);
    const int64_t total = r->list->count, at_once = r->session->sample.batch * ranks;
    TS_TRY(share_rate(w));
    int status = TS_OK;
    for (r->first = 0; r->first < total && !status; r->first += at_once) {
        r->count = total - r->first < at_once ? total - r->first : at_once;
        r->own = total > 1 ? ts_split(r->count, ranks, rank) : (ts_part){0, 1};
        status = make_round(w);
        close_round(r);
    }
    if (w->progress.total) {
        ts_progress_end(&w->progress, NULL);
    }
    TS_TRY(status);
    return ts_agree(w->world, w->is_root ? ts_edit_write_summary(r, &w->sheet) : TS_OK);
}

static void tell(const ts_edit_round *r, double seconds) {
    const ts_edit_options *o = r->options;
    const ts_codec_info codec = ts_codec_get_info(r->session->model->codec);
    const ts_film film = ts_edit_film(r, NULL, NULL);
    const int64_t n = r->list->count;
    TS_INFO("%lld video%s of %lldx%lldx%lld in %.1f s: %s%s%s", (long long)n, n == 1 ? "" : "s",
            (long long)(r->width * codec.space_factor), (long long)(r->height * codec.space_factor),
            (long long)ts_film_pixel_frames(r->session->model->codec, &film), seconds, o->out,
            o->sheet ? ", contact sheet " : "", o->sheet ? o->sheet : "");
}

// Where windows are joined, noise that is renewed at each step takes more of them to settle: with 50 instead of 25 of
// them, the step from the last frame to the first is within 1.2 x the median in 95 instead of 85 of 100 loops of a
// prompt (tests/shows/loop.sh), and an object keeps its colour in each of 161 frames in 92 instead of 85 of 100 videos
// (tests/shows/length.sh). A loop is joined everywhere. Only rank 0 has the list. Collective.
static int join_slowly(ts_session *session, const ts_edit_list *list) {
    ts_comm *world = session->mesh.world;
    const int64_t twice = 2 * session->sample.steps;
    const ts_timeline *timeline = ts_comm_rank(world) == 0 ? list->item : NULL;
    int64_t joined = timeline && (timeline->loop || timeline->frames > timeline->window);
    TS_TRY(ts_broadcast(world, &joined, sizeof joined, 0));
    if (!session->options->steps && joined) {
        session->sample.steps = twice < TS_MAX_STEPS ? twice : TS_MAX_STEPS;
    }
    return TS_OK;
}

int ts_edit(ts_session *session, const ts_edit_options *options, const ts_edit_list *list) {
    ts_comm *world = session->mesh.world;
    TS_TRY(join_slowly(session, list));
    work w = {
        .round = {.session = session, .options = options, .list = list},
        .world = world,
        .is_root = ts_comm_rank(world) == 0,
        .first = list->from ? list->from->step : 0,
        .steps = session->sample.steps,
        .steer = {.save_step = -1},
    };
    const double start = ts_clock_seconds();
    TS_TRY(ts_ranks_on_host(world, &w.neighbours));
    TS_TRY(ts_agree(world, ts_signal_catch()));
    int status = make_all(&w);
    if (!status) {
        tell(&w.round, ts_clock_seconds() - start);
        status = ts_agree(world, w.is_root ? ts_edit_steer_end(&w.steer) : TS_OK);
    }
    clean_up(&w, status);
    free(w.sheet.latents);
    ts_signal_release();
    return status;
}
