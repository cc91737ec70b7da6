// SPDX-License-Identifier: Apache-2.0
// Inside infer/edit/verbs*.c only: the options of all verbs, and how a timeline is filled.
#ifndef TS_INFER_VERBS_PRIVATE_H
#define TS_INFER_VERBS_PRIVATE_H

#include "infer/edit/edit.h"
#include "infer/timeline/source.h"

// Every verb's table names those that it knows.
typedef struct ts_verb_options {
    ts_edit_options edit;  // the first member: ts_edit_run
    const char *video, *a, *b, *file, *prompt, *mask, *box, *ramp;
    const char *from, *to, *before, *after, *gaps, *seam;  // times
    ts_string_list keep, words;
    int64_t frames, count;
    double strength, feather, fps;
    ts_size2 size;
    bool style;
} ts_verb_options;

// clang-format off
#define TS_VERB_FIELD(name) offsetof(ts_verb_options, name)
// What the result is: rows of all verbs.
#define TS_VERB_RESULT \
    {"size", TS_OPTION_SIZE, TS_VERB_FIELD(size), NULL, "pixels WxH of the result, to which sources are resized and cropped; absent: the model's", 16, 8192, NULL, false}, \
    {"fps", TS_OPTION_REAL, TS_VERB_FIELD(fps), "0", "frames a second of the result; 0: the model's", 0, 240, NULL, false}, \
    TS_EDIT_OPTIONS(ts_verb_options, edit), \
    TS_SESSION_OPTIONS(ts_verb_options, edit.session)
// A source, and the part of it that is used.
#define TS_VERB_VIDEO(what) \
    TS_MODEL_OPTION(ts_verb_options, edit.session), \
    {"video", TS_OPTION_STRING, TS_VERB_FIELD(video), NULL, what, 0, 0, NULL, true}
#define TS_VERB_PART \
    {"from", TS_OPTION_STRING, TS_VERB_FIELD(from), "start", "where the part of the video that is used begins: 1.5s, 0:01.5 or frames, 12f", 0, 0, NULL, false}, \
    {"to", TS_OPTION_STRING, TS_VERB_FIELD(to), "end", "where it ends", 0, 0, NULL, false}
#define TS_VERB_PROMPT(what) \
    {"prompt", TS_OPTION_STRING, TS_VERB_FIELD(prompt), NULL, what, 0, 0, NULL, false}
// clang-format on

// A timeline being filled; entries are made in the order of time.
typedef struct ts_draft {
    const ts_verb_options *o;
    ts_arena *arena;
    ts_timeline *timeline;
    double fps, guidance;  // guidance: the model's, or as it was asked for
    int64_t group;         // pixel frames of a latent frame
} ts_draft;

// The list of one timeline, named `verb` in messages.
int ts_draft_open(ts_draft *draft, const char *verb, const void *options, const ts_timeline_model *model,
                  ts_arena *arena, ts_edit_list *list);
// An entry of frames [first, end) of the result. NULL without memory.
ts_timeline_track *ts_draft_track(ts_draft *draft, int64_t first, int64_t end, ts_source_kind source);
ts_timeline_prompt *ts_draft_prompt(ts_draft *draft, int64_t first, int64_t end, const char *text);
// The command's --prompt over frames [first, end), if it has one: what is open in a video is filled in without, too, by
// what is held beside it. `open` is how much that is, a source's strength, or 1. Where little is open guidance has
// little to say, 1 + (guidance - 1) open, unless --guidance was given: more of it pulls what is nearly settled away
// from where the source has it. TS_ERESOURCE.
int ts_draft_say(ts_draft *draft, int64_t first, int64_t end, double open);
const char *ts_draft_span(ts_draft *draft, int64_t first, int64_t end);
const char *ts_draft_seconds(ts_draft *draft, double frames);

// A time of the command line in frames, real, from 0 on; `frames` is where "end" lies.
int ts_draft_time(const ts_draft *draft, double *out, const char *option, const char *text, int64_t frames);

// A part of a video file, in frames of the result.
typedef struct ts_clip {
    const char *path;
    double first;         // where it begins
    int64_t frames;       // whole frames from there on, at least 1
    int64_t rest;         // of these and those of the file behind them
    double source_frame;  // frames of the file per frame of the result
} ts_clip;
int ts_draft_clip(const ts_draft *draft, ts_clip *out, const char *path, const char *from, const char *to);
// An entry that shows a clip from its frame `skip` on, held unless it is told otherwise.
ts_timeline_track *ts_draft_video(ts_draft *draft, int64_t first, int64_t end, const ts_clip *clip, double skip);

// Lengths that fit latent frames. A stretch that begins the video has 1 + 4k frames, any other 4k, k from 1 on.
int64_t ts_draft_whole(const ts_draft *draft, int64_t at, double frames);  // the nearest
// The same of the time that an option asks for, 0 for none, with a note where it is another.
int64_t ts_draft_whole_of(const ts_draft *draft, int64_t at, double frames, const char *option);
int64_t ts_draft_most(const ts_draft *draft, int64_t at, int64_t frames);  // the most that is in so many frames; or 0

#endif
