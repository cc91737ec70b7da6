// SPDX-License-Identifier: Apache-2.0
// The timeline: what every way of making and editing a video comes down to. A YAML file names spans of time, what
// stands in them and how far it may change; the verbs (remix, recut, loop, blend, extend, storyboard) only write one.
//
//   size: 64x64            # pixels; absent: the model's
//   frames: 33             # pixel frames, 1 + 4k; a loop has 4k; absent: as long as the spans
//   fps: 8
//   loop: false            # circular time: the last frame is followed by the first
//   mix: 0.8               # strength where two sources meet half and half; see below
//   window: 17             # pixel frames that the transformer sees at once; absent: what the model was trained on
//   overlap: 8             # pixel frames that neighbouring windows share
//   context: 12            # pixel frames of held video that a window keeps beside what is free
//   track:
//     - span: 0s..2s       # where in the result: A..B, B not included; "all"
//       source: video      # none, video, image, latent (a file of --save-latents)
//       file: cup.mp4      # as seen from where the command is run
//       from: 0:01.5       # where in the source the span begins; frames are the source's
//       speed: 1           # source seconds per second of the result; below 0: backwards
//       strength: 0        # 0 held: returned untouched; 1 free: only a place in the video; between: remixed
//       weight: 1          # against other sources in the same place
//       weight_end: 0      # at the end of the span; absent: the same
//       ramp: linear       # linear, sigmoid, or a text file with one number 0..1 a line: how weight goes to weight_end
//       mask: hand.png     # white: as `strength` says; black: held; a PNG or a video of the span
//       invert: false
//       feather: 4         # pixels over which the edge of mask and boxes is softened
//       boxes:             # instead of a mask, or on top of it: rectangles in pixels of the result
//         - box: 8,8,32,32 # x, y, width, height
//           span: 0s..1s   # in the time of the result; absent: the whole span of the entry
//   prompts:
//     - span: all
//       text: a red circle moves left on a black background
//       weight: 1          # against other prompts of the same frame
//       guidance: 3        # absent: the model's
//   events:                # changes while the video is being made
//     - at: 40%            # of the steps, or a step number: before that step
//       text: a blue circle moves left on a black background
//       from: 1s           # frames from here on; absent: all
//
// Where no track entry stands, tokens are free. Where several stand with weights, the start latent is their weighted
// mean, weights normalised, and the strength is the weighted mean of theirs, but at least
//   mix * 2 (1 - largest normalised weight), at most mix:
// a mixture of two videos is not a video, so what is mixed must be free enough to become one. A mask counts in the
// weights, too: where it is black for one entry and not for another, only the other stands; so an object is put into
// other footage by a mask, and by the same mask inverted for the footage. An entry without a source puts nothing there:
// what others put there is as free as its strength says, at least.
#ifndef TS_INFER_TIMELINE_H
#define TS_INFER_TIMELINE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "core/base/arena.h"
#include "core/config/option.h"

typedef enum { TS_SOURCE_NONE, TS_SOURCE_VIDEO, TS_SOURCE_IMAGE, TS_SOURCE_LATENT } ts_source_kind;
extern const char *const ts_source_names[];

// Texts of times stay texts until the rate is known (ts_time_parse); strings live in the arena of the reader, or are
// the caller's where a verb fills the struct. `line` is the entry's in its file, 0 when there is none. Fields that are
// absent: NULL, or what ts_timeline_default and its like give.
typedef struct ts_timeline_box {
    int64_t line;
    const char *box, *span;
} ts_timeline_box;

typedef struct ts_timeline_track {
    int64_t line;
    const char *span, *file, *from, *ramp, *mask;
    int source;                                           // ts_source_kind
    double speed, strength, weight, weight_end, feather;  // weight_end NAN: the same as weight
    bool invert;
    struct {
        int64_t count;
        ts_timeline_box *item;
    } boxes;
} ts_timeline_track;

typedef struct ts_timeline_prompt {
    int64_t line;
    const char *span, *text;
    double weight, guidance;  // guidance NAN: the model's
} ts_timeline_prompt;

typedef struct ts_timeline_event {
    int64_t line;
    const char *at, *text, *from;
} ts_timeline_event;

typedef struct ts_timeline {
    const char *path;      // for messages: the file, or the verb that fills it, as "remix"
    const int64_t *lines;  // of the keys of ts_timeline_options in the file, 0 for those that are absent; or NULL
    ts_size2 size;         // 0x0: the model's
    int64_t frames;        // 0: to the last end of a span; where a span is open, the model's at least
    double fps;            // 0: the model's
    bool loop;
    double mix;
    int64_t window, overlap, context;  // pixel frames; window 0, others -1: by the model
    struct {
        int64_t count;
        ts_timeline_track *item;
    } track;
    struct {
        int64_t count;
        ts_timeline_prompt *item;
    } prompts;
    struct {
        int64_t count;
        ts_timeline_event *item;
    } events;
} ts_timeline;

extern const ts_option ts_timeline_options[];  // of the whole file; for ts_options_print_keys too

// The values of a timeline and of each kind of entry that nothing was said of.
ts_timeline ts_timeline_default(void);
ts_timeline_track ts_timeline_track_default(void);
ts_timeline_prompt ts_timeline_prompt_default(void);

// Reads a file into `arena`. Errors "file:line: reason; remedy": TS_EUSAGE, or TS_EINPUT for a file that is not there.
int ts_timeline_read(ts_timeline *out, const char *path, ts_arena *arena);
// Writes YAML that ts_timeline_read reads back to equal values: what differs from the defaults.
int ts_timeline_write(const ts_timeline *timeline, FILE *out);

// ---- resolved against a model

// What the model brings: for absent fields, and for the grid that times are snapped to.
typedef struct ts_timeline_model {
    int64_t width, height, frames;  // pixels, pixel frames it was trained on
    double fps, guidance;
    int64_t time_factor, space_factor, patch_h, patch_w;  // 4, 8, 2, 2
    int64_t max_frames;                                   // latent frames a canvas may have
} ts_timeline_model;

// Fills absent fields and checks all that can be checked without opening a file but the timeline's own: sides, frame
// count, times within it, spans in order, numbers in their ranges, sources with files, an entry's keys that do not go
// together, prompts (ts_prompt_check). Messages "file:line: track[2]: ..."; TS_EUSAGE, TS_EINPUT for prompts. Then only
// what an entry need not have is absent: file, from, mask, a box's span, an event's from, guidance. What is resolved is
// resolved to itself.
int ts_timeline_resolve(ts_timeline *timeline, const ts_timeline_model *model);

// A time as pixel frames, 0 or more: "1.5s", "0:02", "0:02.5", "1:02:03", "12f", "12" (frames), "start", "end"
// (`frames`). It may lie behind the end. `place` opens messages. TS_EUSAGE when it is no time.
int ts_time_parse(double *out, const char *text, double fps, int64_t frames, const char *place);
// A span of pixel frames [first, end): "A..B", "A.." (to the end), "..B", "all"; A < B, both within 0..frames.
typedef struct ts_frame_span {
    double first, end;
} ts_frame_span;
int ts_span_parse(ts_frame_span *out, const char *text, double fps, int64_t frames, const char *place);

// Latent frames of a span: those whose middle lies within it, the beginning included; but one that the span has a part
// of when there is none. So spans that follow each other share out the latent frames. Latent frame 0 is pixel frame 0
// and latent frame t is pixel frames 4t-3..4t; in a loop latent frame t is pixel frames 4t..4t+3. *moved is whether the
// ends moved by that.
typedef struct ts_latent_span {
    int64_t first, end;
} ts_latent_span;
ts_latent_span ts_span_snap(ts_frame_span span, int64_t time_factor, int64_t latent_frames, bool loop, bool *moved);

// The pixel frame at which latent frame t begins; of t = T how many pixel frames there are.
int64_t ts_pixel_frame(int64_t t, int64_t time_factor, bool loop);
// The least number of latent frames that stand for so many pixel frames; 1 at least.
int64_t ts_latent_frames(int64_t frames, int64_t time_factor, bool loop);

// A step before which something happens: "12", or "40%" of `steps`, rounded down; 0 <= *out < steps.
int ts_step_parse(int64_t *out, const char *text, int64_t steps, const char *place);
// "x,y,width,height" in pixels; x and y may be below 0, width and height are 1 at least.
int ts_box_parse(int64_t out[4], const char *text, const char *place);

#endif
