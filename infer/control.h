// SPDX-License-Identifier: Apache-2.0
// Steering while it runs: rank 0 listens on a Unix socket; JSON lines are applied between two steps, on all ranks at
// the same one, and each is answered by a receipt, a JSON line.
//
//   {"prompt": "a blue circle ..", "from_frame": 9}   -> {"event":"prompt","step":12,"frames":[9,17]}
//   {"pause": true}  {"resume": true}                 while paused nothing is computed; messages are still read
//   {"cancel": true}                                  ends the job within one step; nothing is left behind
//   {"preview": "file.png"}                           a contact sheet of the clean video foretold so far
//   {"seed-branch": "folder"}                         saves the state there (infer/state.h)
// A message that makes no sense gets {"error": "..."}; it never stops or desynchronises the ranks. At most
// TS_CONTROL_LINE_BYTES a line and TS_CONTROL_CLIENTS connections.
#ifndef TS_INFER_CONTROL_H
#define TS_INFER_CONTROL_H

#include "core/comm/comm.h"

enum { TS_CONTROL_LINE_BYTES = 64 * 1024, TS_CONTROL_CLIENTS = 8 };

typedef enum { TS_CONTROL_PROMPT, TS_CONTROL_PREVIEW, TS_CONTROL_BRANCH, TS_CONTROL_CANCEL } ts_control_kind;

// What is to be done before the coming step.
typedef struct ts_control_event {
    ts_control_kind kind;
    int64_t from_frame;  // pixel frame, PROMPT
    const char *text;    // prompt, or path; until the next ts_control_poll
} ts_control_event;

typedef struct ts_control ts_control;

// Rank 0 makes the socket (mode 0600; TS_EINPUT when it exists and someone listens, a stale one is replaced); the
// others only follow. `frames` is how many pixel frames the video has. Collective over world.
int ts_control_open(ts_control **out, ts_comm *world, const char *path, int64_t frames);
// Removes the socket, on every way out. Not collective.
void ts_control_close(ts_control **control);

// Before step `step`: reads what came in, waits while paused, and gives all ranks the same events, [*count]. Sends a
// few bytes when nothing came. Collective.
int ts_control_poll(ts_control *control, int64_t step, const ts_control_event **event, int *count);
// Tells rank 0's client what became of event i of the last poll: `status` 0 or an error whose text is ts_error_text.
void ts_control_answer(ts_control *control, int i, int status);

#endif
