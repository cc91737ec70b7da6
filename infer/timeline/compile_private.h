// SPDX-License-Identifier: Apache-2.0
// Inside the compiler of timelines: what its stages share.
#ifndef TS_INFER_COMPILE_PRIVATE_H
#define TS_INFER_COMPILE_PRIVATE_H

#include "infer/timeline/compile.h"
#include "infer/timeline/source.h"

// ---- where messages say that something is (compile.c)

enum { TS_PLACE_BYTES = 512, TS_NOTE_BYTES = 1024 };

// "edit.yaml:12: track[1]", or "remix: track[1]" of a timeline that no file holds. Errors within an entry get it in
// front where they leave the entry.
typedef struct ts_place {
    char text[TS_PLACE_BYTES];
} ts_place;
ts_place ts_compile_place(const ts_timeline *timeline, int64_t line, const char *list, int64_t index);

// What is to be told of an entry, in one line.
typedef struct ts_note {
    char text[TS_NOTE_BYTES];
} ts_note;
void ts_note_add(ts_note *note, const char *format, ...) __attribute__((format(printf, 2, 3)));
// "edit.yaml:12: track[1] (cup.mp4): ..."; `path` may be NULL. Nothing of an empty note.
// That a file, `what` of an entry, is cropped to width x height pixels of another shape, where it is.
void ts_note_crop(ts_note *note, const char *what, const ts_source_info *info, int64_t width, int64_t height);
void ts_note_tell(const ts_note *note, const ts_place *place, const char *path);

// ---- time (compile.c)

// The pixel frame at which latent frame t begins; of t = T the number of pixel frames.
int64_t ts_compile_pixel_frame(const ts_canvas *canvas, int64_t time_factor, int64_t t);
// The latent frames of a span, with a note when its ends moved.
int ts_compile_span(ts_latent_span *out, const ts_timeline *timeline, const ts_canvas *canvas, int64_t time_factor,
                    const char *span, ts_note *note);

// ---- entries that stand in the same tokens (compile_mixture.c)

typedef struct ts_mixture {
    ts_canvas *canvas;  // source and strength are means of what was added so far
    const ts_codec *codec;
    int64_t time_factor;
    float *total;     // [T, rows, columns] sum of the weights of the entries in a token, means over time; 0: none
    float *by_frame;  // [T, rows, columns, time_factor] the same by pixel frame
    float *among;     // [time_factor] what the entry at hand is of them
    float *largest;   // [T, rows, columns] the largest of the weights
    float *loose;     // strength that entries without a source ask for at least
    bool *black;      // whether only masked entries stand there, with the black of their masks
} ts_mixture;

int ts_mixture_open(ts_mixture *out, ts_canvas *canvas, const ts_codec *codec);  // TS_ERESOURCE
void ts_mixture_close(ts_mixture *mixture);
// An entry in latent frame t: latent [H, W, C], weight [time_factor] of its pixel frames (of a first frame one number
// throughout), share [rows, columns] of its mask. Where nothing but black stands, the entry holds; else its share is a
// matter of weight, too: black gives way to the others.
void ts_mixture_add(ts_mixture *mixture, int64_t t, const float *latent, const float *weight, double strength,
                    const float *share);
// An entry without a source: what stands there may change at least so far.
void ts_mixture_loosen(ts_mixture *mixture, int64_t t, double strength, const float *share);
// Makes sure that what is mixed is free enough (see infer/timeline/timeline.h).
void ts_mixture_finish(ts_mixture *mixture, double mix);

// ---- one entry of the track (compile_track.c), its mask (compile_mask.c) and its source (compile_source.c)

typedef struct ts_track_job {
    const ts_timeline *timeline;
    const ts_timeline_track *entry;
    const ts_codec *codec;
    const ts_canvas *canvas;
    int64_t time_factor, space_factor;
    ts_latent_span span;
    ts_note note;
    float *share;   // [span, rows, columns] of the mask; 1 without
    float *weight;  // [span, time_factor] of pixel frames
} ts_track_job;

// Reads mask and boxes into job->share. TS_EUSAGE, TS_EINPUT.
int ts_compile_mask(ts_track_job *job);

// Latents of an entry, one frame at a time and in an order of its own. latent [H, W, C] is latent frame *t of the
// canvas, or NULL where the source has nothing. TS_EOF when all of the span has come.
typedef struct ts_track_source ts_track_source;
int ts_track_source_open(ts_track_source **out, ts_track_job *job);
int ts_track_source_next(ts_track_source *source, int64_t *t, const float **latent);
void ts_track_source_close(ts_track_source **source);

int ts_compile_track(ts_canvas *canvas, const ts_timeline *timeline, const ts_codec *codec);

// ---- prompts and guidance of frames (compile_prompts.c)

// Room for `count` prompts in the canvas, weights zero.
int ts_compile_room(ts_canvas *canvas, int64_t count);
int ts_compile_prompts(ts_canvas *canvas, const ts_timeline *timeline, int64_t time_factor, double guidance);

#endif
