// SPDX-License-Identifier: Apache-2.0
// Timelines made into videos. Every command that samples goes through here: the verbs (infer/edit/verbs.h) fill
// timelines, and so does `tessera generate`, whose timelines hold nothing but a prompt.
#ifndef TS_INFER_EDIT_H
#define TS_INFER_EDIT_H

#include "core/base/json.h"
#include "core/config/command.h"
#include "infer/edit/session.h"
#include "infer/steer/state.h"
#include "infer/timeline/timeline.h"

// What all these commands can be told.
typedef struct ts_edit_options {
    ts_session_options session;
    const char *out, *sheet, *save_latents, *save_state, *save_at, *control, *store;
    int64_t preview_every;
    bool print_timeline, check;
} ts_edit_options;

// The rows of these options, as those of a session's: what is made beside the video, and how it is steered; and what
// has to do with timelines.
// clang-format off
#define TS_EDIT_OUTPUT_OPTIONS(type, field) \
    {"out", TS_OPTION_STRING, offsetof(type, field.out), NULL, "FILE.mp4 for one video, else a folder", 0, 0, NULL, false}, \
    {"sheet", TS_OPTION_STRING, offsetof(type, field.sheet), NULL, "also write a contact sheet, FILE.png", 0, 0, NULL, false}, \
    {"control", TS_OPTION_STRING, offsetof(type, field.control), NULL, "Unix socket to make, for steering while the video is made: tessera steer", 0, 0, NULL, false}, \
    {"store", TS_OPTION_STRING, offsetof(type, field.store), NULL, "folder where tessera steer --seed-branch NAME saves states; absent: that of the state that is saved or gone on from", 0, 0, NULL, false}, \
    {"preview-every", TS_OPTION_INT, offsetof(type, field.preview_every), "0", "steps between previews, a contact sheet beside --out that is gone when the video is there; 0: none", 0, TS_MAX_STEPS, NULL, false}, \
    {"save-latents", TS_OPTION_STRING, offsetof(type, field.save_latents), NULL, "also write the latents, FILE.safetensors, for timelines with source: latent", 0, 0, NULL, false}, \
    {"save-at", TS_OPTION_STRING, offsetof(type, field.save_at), NULL, "when the state is saved: start, end, a share of the steps such as 40%, or before a step, counted from 0; absent: end, and of a branch of a video under work start", 0, 0, NULL, false}
#define TS_EDIT_OPTIONS(type, field) \
    TS_EDIT_OUTPUT_OPTIONS(type, field), \
    {"save-state", TS_OPTION_STRING, offsetof(type, field.save_state), NULL, "also save the state, STORE/NAME, for tessera branch", 0, 0, NULL, false}, \
    {"print-timeline", TS_OPTION_BOOL, offsetof(type, field.print_timeline), "false", "only print the timeline, as tessera edit reads it", 0, 0, NULL, false}, \
    {"check", TS_OPTION_BOOL, offsetof(type, field.check), "false", "only check what was asked for", 0, 0, NULL, false}
// clang-format on

// What is to be made: videos of one size and length. On rank 0; the others know the count.
typedef struct ts_edit_list {
    int64_t count;
    ts_timeline *item;  // [count]
    json_t *about;      // array [count] of objects for metadata.jsonl, or NULL
    // Or one video that goes on from a state, on all ranks: its canvas is taken out and made from its step on. Of the
    // item only the rate and the first prompt count.
    ts_state *from;
    const char *from_path;  // STORE/NAME
    const char *change;     // what is other than it was, in words
} ts_edit_list;

// Fills `list`, whose memory lies in `arena`, from a command's options; `about` is the list's own and is dropped with
// it. Called on rank 0 alone, before any weight is read. Timelines are not resolved yet.
typedef int (*ts_edit_fill_fn)(const void *options, const ts_timeline_model *model, ts_arena *arena,
                               ts_edit_list *list);

// A command: reads its options, of which `edit` are a part, has the timelines filled, checks them and what is to be
// written, prints them or makes the videos. Collective over `world`.
typedef struct ts_edit_command {
    ts_command command;
    size_t options_bytes;  // of the target of command.table, whose first member is a ts_edit_options
    ts_edit_fill_fn fill;
} ts_edit_command;
// What can be refused of the output before anything is read. Not collective.
int ts_edit_check(const ts_edit_options *options, int64_t count);
int ts_edit_run(const ts_edit_command *command, ts_comm *world, int argc, char **argv);

// Compiles resolved timelines on rank 0, samples them, decodes and writes. Several videos are shared out over the data
// axis; of one, the windows are. A signal to stop, or a client's cancel, ends it within a step with TS_ESTOPPED and
// nothing written but rounds of videos that were done. Collective over the session's world, the same status on all ranks.
int ts_edit(ts_session *session, const ts_edit_options *options, const ts_edit_list *list);

#endif
