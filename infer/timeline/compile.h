// SPDX-License-Identifier: Apache-2.0
// A timeline made into a canvas: sources read, retimed, encoded and mixed; masks made into strengths; prompts into
// weights of frames; events into steps.
#ifndef TS_INFER_COMPILE_H
#define TS_INFER_COMPILE_H

#include "core/comm/comm.h"
#include "core/model/model.h"
#include "infer/sampler/canvas.h"
#include "infer/timeline/timeline.h"

// A change between two steps. `step` counts from 0: before that step is taken.
typedef struct ts_change {
    int64_t step, first;  // latent frames from `first` on
    const char *prompt;   // borrowed from the timeline, or from ts_compiled
} ts_change;

typedef struct ts_compiled {
    ts_canvas canvas;
    int64_t changes;  // in the order of their steps
    ts_change *change;
    char *text;  // the strings, where they came from another rank; else NULL
} ts_compiled;

// What timelines are resolved against.
ts_timeline_model ts_timeline_model_of(const ts_model *model);
ts_timeline_model ts_timeline_model_from(const ts_model_defaults *defaults, const ts_codec_info *codec,
                                         const ts_dit_config *dit);

// Tells, in notes as compiling does, which spans of a resolved timeline move to whole latent frames, without reading a
// file. TS_EUSAGE.
int ts_timeline_tell_spans(const ts_timeline *timeline, const ts_timeline_model *model);

// `timeline` is resolved and must outlive the result; `steps` is what percentages are of; `holders` are the processes
// of this machine that will hold the canvas. The canvas has a source when the track has entries.
//
// Held tokens are, bit for bit, ts_codec_encode of the source's frames wherever a whole latent frame of them is asked
// for: canvas frame 0 as a first frame, all others as groups. What infer/timeline/source.h says of rates and speeds
// holds; a span of speed below 0 plays the file backwards, from the frame before `from` on. A span that was moved to
// whole latent frames still begins at `from`. Where a source has ended, tokens are free; those that should be held are
// an error. Saved latents (safetensors "latents" [T, H, W, C]; metadata "loop": "true" when all are groups on a circle,
// "codec": the fingerprint of the codec) are taken as they are, a group of them as a first frame where the result
// begins with it. What was snapped, resampled, cropped or cut is told in a note, once an entry.
//
// TS_EUSAGE for what the timeline asks wrongly, TS_EINPUT for sources that cannot be read or are too short, both
// "file:line: track[n]: ..."; TS_ERESOURCE, before anything is allocated, for canvases that memory cannot hold.
// Memory beside the canvas: nine numbers a token, and a few frames. Not collective: one rank compiles, and
// ts_compiled_share gives it to the others.
int ts_timeline_compile(ts_compiled *out, const ts_timeline *timeline, const ts_model *model, int64_t steps,
                        int64_t holders);
// From rank `root`, where it was compiled, to all others, whose *compiled is written. Collective over comm, the same
// status on all ranks. On failure it is closed on all of them, `root` too.
int ts_compiled_share(ts_compiled *compiled, ts_comm *comm, int root);
void ts_compiled_close(ts_compiled *compiled);

#endif
