// SPDX-License-Identifier: Apache-2.0
// `tessera branch`: a state, something else said of it, and on. One that is under work goes on from its step; one that
// is done is held up to some frame and made anew from there on, or made longer.
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/status.h"
#include "core/comm/threads.h"
#include "infer/edit/edit.h"
#include "infer/steer/state_private.h"
#include "infer/timeline/prompts.h"

typedef struct options {
    ts_edit_options edit;
    const char *state, *prompt, *from, *extend, *save;
} options;

#define FIELD(name) offsetof(options, name)
// clang-format off
static const ts_option table[] = {
    {"state", TS_OPTION_STRING, FIELD(state), NULL, "the state to go on from, STORE/NAME", 0, 0, NULL, true},
    {"prompt", TS_OPTION_STRING, FIELD(prompt), NULL, "what the video shows from now on; absent: what it was to show", 0, 0, NULL, false},
    {"from", TS_OPTION_STRING, FIELD(from), NULL, "time (1.5s, 0:01.5 or a frame) from which on the prompt counts; of a video that is done, what is before it is held and the rest made anew; absent: the start, or the end of a video that is done", 0, 0, NULL, false},
    {"extend", TS_OPTION_STRING, FIELD(extend), NULL, "time by which a video that is done is made longer", 0, 0, NULL, false},
    {"save", TS_OPTION_STRING, FIELD(save), NULL, "name of the branch's own state in the same store", 0, 0, NULL, false},
    {"model", TS_OPTION_STRING, offsetof(options, edit.session.model), NULL, "folder of the model that made the state; absent: where it was then", 0, 0, NULL, false},
    {"seed", TS_OPTION_INT, offsetof(options, edit.session.seed), "-1", "of what a video that is done has made anew; -1: the state's", -1, 9.0e15, NULL, false},
    {"guidance", TS_OPTION_REAL, offsetof(options, edit.session.guidance), "-1", "classifier-free guidance from now on, 1 is none; -1: as it was", -1, 100, NULL, false},
    TS_EDIT_OUTPUT_OPTIONS(options, edit),
    TS_SESSION_PLACE_OPTIONS(options, edit.session),
    {0},
};
// clang-format on
#undef FIELD

typedef struct branch {
    options *o;
    ts_arena *arena;
    ts_state state;           // what it goes on from, changed into what it is to be
    ts_timeline_model model;  // for the grid of times
    bool done;                // the state was
    int64_t first, added;     // latent frames: changed from here on, longer by so many
    const char *save_path;    // or NULL
    const char *change;       // in words
} branch;

// ---- what is asked for: rank 0 reads, all ranks think it through

static int read_state(branch *b) {
    const options *o = b->o;
    uint64_t fingerprint;
    TS_TRY(o->prompt ? ts_prompt_check(o->prompt, "--prompt") : TS_OK);
    TS_TRY(ts_state_check_path("branch", o->state));
    TS_TRY(o->edit.out || o->save ? TS_OK : TS_FAIL(TS_EUSAGE, "give --out FILE.mp4, --save NAME, or both"));
    TS_TRY(o->edit.out ? ts_edit_check(&o->edit, 1) : TS_OK);
    TS_TRY(o->save ? ts_state_check_place("--save", o->state) : TS_OK);
    TS_TRY(ts_state_load(&b->state, o->state, b->arena));
    const char *model = o->edit.session.model ? o->edit.session.model : b->state.model;
    if (!ts_path_is_folder(model)) {
        return TS_FAIL(TS_EINPUT, "%s: its model %s is not here; say where it is with --model", o->state, model);
    }
    TS_TRY(ts_state_fingerprint(model, &fingerprint));
    return fingerprint == b->state.fingerprint
               ? TS_OK
               : TS_FAIL(TS_EINPUT, "%s: was made by another model than what is in %s now; give its own with --model",
                         o->state, model);
}

// A time of the command line as a number of pixel frames.
static int read_time(const branch *b, const char *option, const char *text, double *frames) {
    return ts_time_parse(frames, text, b->state.fps, b->state.frames, option);
}

static int read_places(branch *b) {
    const ts_canvas *c = &b->state.compiled.canvas;
    double frames;
    bool moved;
    b->done = b->state.step == b->state.steps;
    b->first = b->done ? c->frames : 0;
    if (b->o->from) {
        TS_TRY(read_time(b, "--from", b->o->from, &frames));
        if (!(frames < (double)b->state.frames)) {
            return TS_FAIL(TS_EUSAGE, "--from %s: the video has %lld frames, from 0 on", b->o->from,
                           (long long)b->state.frames);
        }
        const ts_frame_span span = {frames, (double)b->state.frames};
        b->first = ts_span_snap(span, b->model.time_factor, c->frames, c->loop, &moved).first;
    }
    if (b->o->extend) {
        TS_TRY(read_time(b, "--extend", b->o->extend, &frames));
        if (!(frames > 0)) {
            return TS_FAIL(TS_EUSAGE, "--extend %s: give a time above 0", b->o->extend);
        }
        b->added = (int64_t)fmin(frames / (double)b->model.time_factor + 0.5, (double)b->model.max_frames + 1);
        b->added = b->added < 1 ? 1 : b->added;
    }
    return TS_OK;
}

static int check_places(const branch *b, int64_t neighbours) {
    const char *name = b->o->state;
    const ts_canvas *c = &b->state.compiled.canvas;
    ts_canvas longer = *c;
    longer.frames += b->added;
    if (!b->done && (b->added || b->o->edit.session.seed >= 0)) {
        return TS_FAIL(TS_EUSAGE, "%s is at step %lld of %lld: --%s is for one that is done", name,
                       (long long)b->state.step, (long long)b->state.steps, b->added ? "extend" : "seed");
    }
    const ts_session_options *session = &b->o->edit.session;
    const bool changed = b->o->prompt || b->o->save || session->seed >= 0 || session->guidance >= 0;
    if (b->done && !b->added && b->first == c->frames && changed) {
        return TS_FAIL(TS_EUSAGE,
                       "%s is done: say from which frame on it is to be made anew, --from, or by how much longer, "
                       "--extend",
                       name);
    }
    if (b->added && c->loop) {
        return TS_FAIL(TS_EUSAGE, "%s is a loop, which has no end to go on from", name);
    }
    return longer.frames > b->model.max_frames
               ? TS_FAIL(TS_EUSAGE, "%s would have %lld latent frames; at most %lld are made", name,
                         (long long)longer.frames, (long long)b->model.max_frames)
               : ts_canvas_check_memory(&longer, neighbours, name);
}

// ---- the state that it is to be

// Old frames and, behind them, `added` more like the last one: rows of `width` numbers.
static float *lengthen(const float *old, int64_t frames, int64_t added, int64_t width) {
    float *out = ts_malloc((size_t)((frames + added) * width) * sizeof *out);
    for (int64_t t = 0; out && t < frames + added; t++) {
        memcpy(out + t * width, old + (t < frames ? t : frames - 1) * width, (size_t)width * sizeof *out);
    }
    return out;
}

// A video that is done becomes the source of the next: held before `first`, free from there on.
static int reopen(branch *b) {
    ts_state *s = &b->state;
    ts_canvas *old = &s->compiled.canvas, c = {0};
    const int64_t tokens = old->rows * old->columns, frame = ts_canvas_frame_numbers(old);
    TS_TRY(ts_canvas_open(&c, old->frames + b->added, old->height, old->width, old->channels, old->height / old->rows,
                          old->width / old->columns, "", 1));
    free(c.prompt);
    free(c.weight);
    free(c.guidance);
    c.prompts = old->prompts;
    c.prompt = ts_malloc((size_t)old->prompts * sizeof *c.prompt);
    c.weight = lengthen(old->weight, old->frames, b->added, old->prompts);
    c.guidance = lengthen(old->guidance, old->frames, b->added, 1);
    int status = c.prompt && c.weight && c.guidance ? ts_canvas_add_source(&c) : TS_ERESOURCE;
    if (!status) {
        memcpy(c.prompt, old->prompt, (size_t)old->prompts * sizeof *c.prompt);  // the arena's
        memcpy(c.source, s->array[0], (size_t)(b->first * frame) * sizeof *c.source);
        memset(c.strength, 0, (size_t)(b->first * tokens) * sizeof *c.strength);
    }
    c.loop = old->loop;
    c.window = old->window;
    c.overlap = old->overlap;
    c.context = old->context;
    c.index = old->index;
    ts_canvas_close(old);
    *old = c;
    s->step = 0;
    s->arrays = 0;
    s->frames += b->added * b->model.time_factor;
    s->seed = b->o->edit.session.seed >= 0 ? b->o->edit.session.seed : s->seed;
    s->compiled.changes = 0;
    return status;
}

// "a blue circle (from frame 9, 16 frames longer)"
static int describe(branch *b) {
    char from[40] = "", longer[40] = "";
    const char *prompt = b->o->prompt;
    const bool loop = b->state.compiled.canvas.loop;
    const int64_t group = b->model.time_factor;
    if (b->o->from) {
        snprintf(from, sizeof from, "from frame %lld", (long long)ts_pixel_frame(b->first, group, loop));
    }
    if (b->added) {
        snprintf(longer, sizeof longer, "%s%lld frames longer", *from ? ", " : "", (long long)(b->added * group));
    }
    const bool both = prompt && (*from || *longer);
    b->change =
        ts_arena_printf(b->arena, "%s%s%s%s%s", prompt ? prompt : "", both ? " (" : "", from, longer, both ? ")" : "");
    return b->change ? TS_OK : TS_ERESOURCE;
}

// The noise level at which it goes on.
static int find_level(const branch *b, double *level) {
    const ts_state *s = &b->state;
    ts_schedule schedule;
    TS_TRY(ts_schedule_make(&schedule, (ts_grid)s->grid, s->steps, s->shift));
    *level = s->arrays ? (double)schedule.sigma[s->step] : 1.0;
    return TS_OK;
}

// Alike on all ranks.
static int change_state(branch *b) {
    ts_canvas *c = &b->state.compiled.canvas;
    double level;
    TS_TRY(describe(b));
    TS_TRY(b->done ? reopen(b) : TS_OK);
    TS_TRY(find_level(b, &level));
    TS_TRY(b->o->prompt ? ts_canvas_steer(c, b->first, b->o->prompt, level) : TS_OK);
    for (int64_t t = b->first; t < c->frames && b->o->edit.session.guidance >= 0; t++) {
        c->guidance[t] = (float)b->o->edit.session.guidance;
    }
    return TS_OK;
}

// ---- where its own state goes

static int prepare_save(branch *b) {
    char store[TS_PATH_BYTES];
    const char *name;
    ts_edit_options *e = &b->o->edit;
    if (!b->o->save) {
        return e->save_at ? TS_FAIL(TS_EUSAGE, "--save-at says when, and nothing is to be saved; give --save NAME")
                          : TS_OK;
    }
    TS_TRY(ts_state_split(b->o->state, store, &name));
    b->save_path = ts_arena_printf(b->arena, "%s/%s", store, b->o->save);
    TS_TRY(b->save_path ? ts_state_check_path("--save", b->save_path) : TS_ERESOURCE);
    if (strchr(b->o->save, '/') || strcmp(name, b->o->save) == 0) {
        return TS_FAIL(TS_EUSAGE, "--save %s: give a new name for the branch, without a folder", b->o->save);
    }
    const char *when = e->save_at ? e->save_at : b->done && e->out ? "end" : "start";
    e->save_at = when;
    e->save_state = strcmp(when, "start") == 0 ? NULL : b->save_path;
    return e->save_state && !e->out
               ? TS_FAIL(TS_EUSAGE, "--save-at %s: without --out no step is taken; only its start can be saved", when)
               : TS_OK;
}

// What it starts with is its parent's frames and a change: it takes no room but for that. Rank 0 alone.
static int save_start(const branch *b) {
    ts_state s = b->state;
    if (!b->save_path || b->o->edit.save_state) {
        return TS_OK;
    }
    s.parent = b->state.name;
    s.change = b->change;
    s.timeline = NULL;
    TS_TRY(ts_state_save(&s, b->save_path));
    TS_INFO("saved the branch %s as it starts", b->save_path);
    return TS_OK;
}

// ---- the video

static void take_sampling(const branch *b) {
    ts_session_options *o = &b->o->edit.session;
    o->steps = b->state.steps;
    o->seed = b->state.seed;
    o->shift = b->state.shift;
    o->grid = b->state.grid;
    o->solver = b->state.solver;
    o->negative = b->state.negative;
    o->guidance = (double)b->state.compiled.canvas.guidance[b->state.compiled.canvas.frames - 1];
}

// Collective.
static int make_video(branch *b, ts_comm *world) {
    const char *title = b->o->prompt ? b->o->prompt : b->state.compiled.canvas.prompt[0];
    ts_timeline_prompt prompt = {.text = title};
    ts_timeline timeline = {.fps = b->state.fps, .prompts = {1, &prompt}};
    const ts_edit_list list = {
        .count = 1, .item = &timeline, .from = &b->state, .from_path = b->o->state, .change = b->change};
    ts_session session = {.options = &b->o->edit.session};
    take_sampling(b);
    int status = ts_session_open(&session, world, &b->o->edit.session);
    if (!status) {
        status = ts_agree(world, ts_comm_rank(world) == 0 ? ts_session_check_lengths(&session, &title, 1) : TS_OK);
    }
    status = status ? status : ts_edit(&session, &b->o->edit, &list);
    return ts_session_close(&session, status);
}

static int think(branch *b, int64_t neighbours) {
    b->o->edit.session.model = b->o->edit.session.model ? b->o->edit.session.model : b->state.model;
    TS_TRY(ts_session_describe(&b->model, &b->o->edit.session));
    TS_TRY(read_places(b));
    TS_TRY(check_places(b, neighbours));
    TS_TRY(prepare_save(b));
    return change_state(b);
}

static int run(branch *b, ts_comm *world) {
    const bool is_root = ts_comm_rank(world) == 0;
    int64_t neighbours;  // ranks of this machine
    TS_TRY(ts_agree(world, is_root ? read_state(b) : TS_OK));
    TS_TRY(ts_state_share(&b->state, b->arena, world, 0));
    TS_TRY(ts_ranks_on_host(world, &neighbours));
    TS_TRY(ts_agree(world, think(b, neighbours)));
    TS_TRY(ts_agree(world, is_root ? save_start(b) : TS_OK));
    return b->o->edit.out ? make_video(b, world) : TS_OK;
}

int ts_command_branch(ts_comm *world, int argc, char **argv) {
    static const char *const arguments[] = {"state", NULL};
    static const ts_command command = {
        .usage =
            "tessera branch STORE/NAME [--prompt TEXT] [--from TIME] [--extend TIME] [--save NAME] "
            "[--out FILE.mp4] [options]\n"
            "Goes on from a saved state with another prompt, on any mesh; with --save and without --out only notes "
            "the branch. One that is done and not changed is written as it is: with --save-latents FILE as a source of "
            "timelines.",
        .table = table,
        .arguments = arguments,
    };
    ts_arena *arena = NULL;
    options o = {0};
    bool help = false;
    TS_TRY(ts_arena_open(&arena, "branch", 1 << 16, false));
    branch b = {.o = &o, .arena = arena};
    int status = ts_agree(world, ts_command_read(&command, &o, arena, argc, argv, &help));
    if (!status && !help) {
        status = run(&b, world);
    }
    ts_state_close(&b.state);
    ts_arena_close(&arena);
    return status;
}
