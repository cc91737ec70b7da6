// SPDX-License-Identifier: Apache-2.0
// Steering while it runs: rank 0 listens on a Unix socket; JSON lines are applied between two steps, on all ranks at
// the same one, and each is answered by a receipt, a JSON line.
//
//   {"prompt": "a blue circle ..", "from_frame": 9}   -> {"event": "prompt", "step": 12, "frames": [9, 17]}
//   {"pause": true}  {"resume": true}                 while paused nothing is computed; messages are still obeyed
//   {"cancel": true}                                  ends the job within one step; nothing is left behind
//   {"preview": "file.png"}                           a contact sheet of the clean video foretold so far
//   {"seed-branch": "name"}                           saves the state of that name (infer/steer/state.h)
// Names are letters, digits and . _ -: a client names files, and the job knows the folders they go to.
// "step" is the step before which it was applied, "frames" the pixel frames [first, end) that it changes: from_frame is
// moved to where a latent frame begins. An "id" is given back. Receipts of "pause" and "resume" come at once, the
// others when all is done; one that could not be obeyed, or makes no sense, is answered {"error": "..."}. No message
// ever stops or desynchronises the ranks. At most TS_CONTROL_LINE_BYTES a line and TS_CONTROL_CLIENTS connections; a
// client that does not read its receipts is cut off, and when all places are taken and another one comes, that which
// never said anything or was heard of longest ago.
#ifndef TS_INFER_CONTROL_H
#define TS_INFER_CONTROL_H

#include "core/comm/comm.h"

enum { TS_CONTROL_LINE_BYTES = 64 * 1024, TS_CONTROL_CLIENTS = 8 };

typedef enum { TS_CONTROL_PROMPT, TS_CONTROL_PREVIEW, TS_CONTROL_BRANCH, TS_CONTROL_CANCEL } ts_control_kind;

// What is to be done before the coming step.
typedef struct ts_control_event {
    ts_control_kind kind;
    int64_t first;     // PROMPT: from this latent frame on
    const char *text;  // prompt, or name; until the next ts_control_poll
} ts_control_event;

// The video that is made, for what receipts say of frames.
typedef struct ts_control_video {
    int64_t frames;       // pixel frames
    int64_t time_factor;  // of a latent frame
    bool loop;            // every latent frame is a group; else the first stands for one pixel frame
} ts_control_video;

typedef struct ts_control ts_control;

// TS_EINPUT for a path that is longer than a socket's may be.
int ts_control_check_path(const char *path);
// Rank 0 makes the socket, which only its user may open; the others follow. TS_EINPUT when there is something at `path`
// already (but for the socket of a job that is gone, which is replaced), and when no socket can be made there.
// Collective over world, the same status on all ranks.
int ts_control_open(ts_control **out, ts_comm *world, const char *path, const ts_control_video *video);
// Removes the socket; messages that came too late are told so. Not collective. A job that ends in another way removes
// it too (core/base/signal.h), but for SIGKILL.
void ts_control_close(ts_control **control);

// Before step `step`, again and again until it gives none: reads what came in and gives all ranks the same events,
// [*count]. With a video that is paused it returns when there is an event, or when it goes on; TS_ESTOPPED, on all
// ranks, when a signal to stop reaches any of them meanwhile. Sends three numbers a rank when nothing came, or nothing
// at all when it is asked again at the same step. Collective.
int ts_control_poll(ts_control *control, int64_t step, const ts_control_event **event, int *count);
// Tells the client what became of event i of the last poll: `status` 0, or an error whose text is ts_error_text. Does
// nothing on other ranks than 0.
void ts_control_answer(ts_control *control, int i, int status);

// tessera steer SOCKET '{"prompt": ..}': sends one message and prints its receipt.
int ts_command_steer(ts_comm *world, int argc, char **argv);

#endif
