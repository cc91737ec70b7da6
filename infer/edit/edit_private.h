// SPDX-License-Identifier: Apache-2.0
// Inside infer/edit/edit*.c only: videos under work, and what is written of them.
#ifndef TS_INFER_EDIT_PRIVATE_H
#define TS_INFER_EDIT_PRIVATE_H

#include "core/base/file.h"
#include "core/base/split.h"
#include "infer/edit/edit.h"
#include "infer/edit/film.h"
#include "infer/sampler/denoise.h"
#include "infer/steer/control.h"
#include "infer/timeline/compile.h"

enum { TS_EDIT_SHEET_ROWS = 32 };

// As many videos as the ranks of the data axis take at once; they have one size and length.
typedef struct ts_edit_round {
    ts_session *session;
    const ts_edit_options *options;
    const ts_edit_list *list;
    double fps;
    int64_t first, count;                              // its videos, by their numbers
    ts_part own;                                       // those of this rank, counted from `first`
    ts_compiled *compiled;                             // [own.count] of which the canvases are taken out:
    ts_canvas *canvas;                                 // [own.count] changed by steering
    const char **title;                                // [own.count] the first prompt of each, or ""
    ts_denoiser *denoiser;                             // NULL of a rank without a video
    float *latents;                                    // [own.count, T, H, W, C] when they are done
    int64_t frames, height, width, channels, numbers;  // latent, of each
    bool loop;
} ts_edit_round;

// The first videos of all rounds, on rank 0, for the contact sheet.
typedef struct ts_edit_sheet {
    int64_t count;
    float *latents;  // [count, T, H, W, C]
} ts_edit_sheet;

// One video's steering (infer/edit/edit_steer.c).
typedef struct ts_edit_steer {
    ts_control *control;         // or NULL
    int64_t save_step;           // the state is saved before this one; == steps: at the end; < 0: never
    char parent[TS_PATH_BYTES];  // STORE/NAME of the state before, or ""
    char *change;                // what was changed since, or NULL
    uint64_t fingerprint;        // of the model, when a state was saved; rank 0's
    int failed;                  // why the state of the command line was not saved,
    char problem[512];           // and in words
} ts_edit_steer;

// Opens the socket and goes on from the list's state, where these were asked for. To be closed whatever the status.
// Collective over the world.
int ts_edit_steer_open(ts_edit_steer *steer, const ts_edit_round *round, int64_t first, int64_t steps);
void ts_edit_steer_close(ts_edit_steer *steer);  // of zeros: nothing
// Before step `step`, and at the end, where it is the number of steps: obeys the clients and saves the state.
// TS_ESTOPPED when one cancels. Collective over the world.
// A state of the command line that cannot be saved is told of at the end: the video is made all the same.
int ts_edit_steer_before(ts_edit_steer *steer, const ts_edit_round *round, int64_t step);
// What there was to tell.
int ts_edit_steer_end(const ts_edit_steer *steer);

ts_film ts_edit_film(const ts_edit_round *round, const float *latents, const char *title);

// A contact sheet of what the last step foretold of the first video. Rank 0 alone.
int ts_edit_write_preview(const ts_edit_round *round, const char *path);
// Makes the folder that was asked for: last, so that a failed start leaves nothing behind. Rank 0 alone.
int ts_edit_prepare_output(const ts_edit_options *options);
// The round's videos as files, and its latents where they are asked for. Collective.
int ts_edit_write_round(const ts_edit_round *round);
// Keeps what a contact sheet shows of a round. Collective.
int ts_edit_sheet_add(ts_edit_sheet *sheet, const ts_edit_round *round);
// What is about all videos: the contact sheet and their list. Rank 0 alone; `last` is the last round.
int ts_edit_write_summary(const ts_edit_round *last, const ts_edit_sheet *sheet);

#endif
