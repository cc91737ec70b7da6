// SPDX-License-Identifier: Apache-2.0
// Re-cut: ranges of a video in another order and at other speeds, with time made before, between and behind them.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/status.h"
#include "infer/edit/verbs.h"
#include "infer/edit/verbs_private.h"

// clang-format off
static const ts_option table[] = {
    TS_VERB_VIDEO("the video to cut"),
    {"keep", TS_OPTION_LIST, TS_VERB_FIELD(keep), NULL, "a range to keep, A-B or A-B@SPEEDx, as 0:00-0:02 or 2s-3s@0.5x; several times, in the order of the result", 0, 0, NULL, true},
    {"strength", TS_OPTION_REAL, TS_VERB_FIELD(strength), "0.3", "how far frames may go from the source where a speed puts them between its own: motion is then made, not repeated", 0, 1, NULL, false},
    {"extend-before", TS_OPTION_STRING, TS_VERB_FIELD(before), "0s", "time to make in front of the first range", 0, 0, NULL, false},
    {"extend-after", TS_OPTION_STRING, TS_VERB_FIELD(after), "0s", "time to make behind the last range", 0, 0, NULL, false},
    {"fill-gaps", TS_OPTION_STRING, TS_VERB_FIELD(gaps), "0s", "time to make between two ranges, which leads over from one to the other", 0, 0, NULL, false},
    TS_VERB_PROMPT("what the result shows"),
    TS_VERB_RESULT,
    {0},
};
// clang-format on

// A range of the source, and how long it lasts in the result.
typedef struct range {
    const char *text;
    ts_clip clip;
    double speed;
} range;

// "A-B" or "A-B@SPEEDx".
static int read_range(const ts_draft *d, range *out, const char *text) {
    char *copy = ts_arena_strdup(d->arena, text);
    if (!copy) {
        return TS_ERESOURCE;
    }
    char *speed = strchr(copy, '@'), *end = NULL, *to = strchr(copy, '-');
    *out = (range){.text = text, .speed = 1};
    if (speed) {
        *speed++ = '\0';
        out->speed = strtod(speed, &end);
        end += *end == 'x';
    }
    if (!to || to == copy || !to[1] || (speed && (*end || !(out->speed >= 1.0 / 64 && out->speed <= 64)))) {
        return TS_FAIL(TS_EUSAGE,
                       "--keep %.80s: give a range, A-B, and a speed from 1/64 to 64 if it is not 1: A-B@0.5x", text);
    }
    *to++ = '\0';
    TS_TRY(ts_draft_clip(d, &out->clip, d->o->video, copy, to));
    return TS_OK;
}

// Whether the source has a frame at, or next to, every time of the result, so that there is nothing to make up: at
// speed 1, where whole source frames go by, or so many that it does not matter which of them is shown.
static bool is_shown(const range *r) {
    const double step = r->speed * r->clip.source_frame, first = r->clip.first * r->clip.source_frame;
    return r->speed == 1 || step >= 2 || (fabs(step - round(step)) < 0.05 && fabs(first - round(first)) < 0.05);
}

// Puts a range at frame *at and moves *at behind it.
static int add_range(ts_draft *d, const range *r, int64_t *at) {
    // Frames of the result whose source frames there are.
    const int64_t there = (int64_t)floor((double)(r->clip.rest - 1) / r->speed + 1e-3) + 1;
    const double asked = (double)r->clip.frames / r->speed;
    int64_t frames = ts_draft_whole(d, *at, asked);
    frames = frames <= there ? frames : ts_draft_most(d, *at, there);
    if (frames < 1) {
        return TS_FAIL(TS_EUSAGE, "--keep %s: makes %lld frames, and a latent frame takes %lld; keep more", r->text,
                       (long long)there, (long long)d->group);
    }
    if (fabs((double)frames - asked) >= 1) {
        TS_INFO("--keep %s: %lld frames for %.6g, since latent frames hold %lld", r->text, (long long)frames, asked,
                (long long)d->group);
    }
    ts_timeline_track *track = ts_draft_video(d, *at, *at + frames, &r->clip, 0);
    if (!track) {
        return TS_ERESOURCE;
    }
    track->speed = r->speed;
    track->strength = is_shown(r) ? 0 : d->o->strength;
    *at += frames;
    return ts_draft_say(d, *at - frames, *at, track->strength);
}

// Leaves time open at frame *at and moves *at behind it.
static int add_open(ts_draft *d, double frames, const char *option, int64_t *at) {
    const int64_t first = *at;
    *at += ts_draft_whole_of(d, first, frames, option);
    return ts_draft_say(d, first, *at, 1);
}

static int fill(const void *options, const ts_timeline_model *model, ts_arena *arena, ts_edit_list *list) {
    ts_draft d;
    double before, after, gaps;
    TS_TRY(ts_draft_open(&d, "recut", options, model, arena, list));
    TS_TRY(ts_draft_time(&d, &before, "--extend-before", d.o->before, 0));
    TS_TRY(ts_draft_time(&d, &after, "--extend-after", d.o->after, 0));
    TS_TRY(ts_draft_time(&d, &gaps, "--fill-gaps", d.o->gaps, 0));
    int64_t at = 0;
    TS_TRY(add_open(&d, before, "--extend-before", &at));
    for (int64_t i = 0; i < d.o->keep.count; i++) {
        range r;
        TS_TRY(read_range(&d, &r, d.o->keep.items[i]));
        TS_TRY(add_open(&d, i > 0 ? gaps : 0, "--fill-gaps", &at));
        TS_TRY(add_range(&d, &r, &at));
    }
    TS_TRY(add_open(&d, after, "--extend-after", &at));
    d.timeline->frames = at;
    return TS_OK;
}

static const ts_edit_command recut_command = {
    .command = {.usage = "tessera recut VIDEO --model DIR --keep A-B --keep C-D@0.5x --out FILE.mp4 [options]\n"
                         "Puts ranges of a video in another order and at other speeds, and makes what is missing.",
                .table = table,
                .arguments = (const char *const[]){"video", NULL}},
    .options_bytes = sizeof(ts_verb_options),
    .fill = fill,
};
int ts_command_recut(ts_comm *world, int argc, char **argv) {
    return ts_edit_run(&recut_command, world, argc, argv);
}
