// SPDX-License-Identifier: Apache-2.0
// A timeline made into a canvas: sources read, retimed, encoded and mixed; masks made into strengths; prompts into
// weights of frames; events into steps.
#ifndef TS_INFER_COMPILE_H
#define TS_INFER_COMPILE_H

#include "core/comm/comm.h"
#include "core/model/model.h"
#include "infer/canvas.h"
#include "infer/timeline.h"

// A change between two steps. `step` counts from 0: before that step is taken.
typedef struct ts_change {
    int64_t step, first;  // latent frames from `first` on
    const char *prompt;   // borrowed from the timeline
} ts_change;

typedef struct ts_compiled {
    ts_canvas canvas;
    int64_t changes;  // in the order of their steps
    ts_change *change;
} ts_compiled;

// What timelines are resolved against.
ts_timeline_model ts_timeline_model_of(const ts_model *model);

// `timeline` is resolved and must outlive the result; `steps` is what percentages are of. Held tokens are, bit for bit,
// ts_codec_encode of the source's frames wherever a whole latent frame of them is asked for at whole frames. A span at
// another rate or speed is sampled at its times, between two source frames by their mean weighted by distance. What was
// snapped, resampled or cut is told in a note, once an entry. TS_EINPUT "file:line: ..." for sources that cannot be
// read or are too short. Not collective: one rank compiles, and ts_compiled_share gives it to the others.
int ts_timeline_compile(ts_compiled *out, const ts_timeline *timeline, const ts_model *model, int64_t steps);
// From rank `root` to all. Collective over comm.
int ts_compiled_share(ts_compiled *compiled, ts_comm *comm, int root);
void ts_compiled_close(ts_compiled *compiled);

#endif
