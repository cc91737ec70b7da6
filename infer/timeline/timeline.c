// SPDX-License-Identifier: Apache-2.0
// The timeline's file: its keys, what they are when nothing is said, reading and writing.
#include "infer/timeline/timeline.h"

#include <math.h>
#include <stddef.h>

#include "core/base/status.h"

const char *const ts_source_names[] = {"none", "video", "image", "latent", NULL};

// ---- keys

// clang-format off
#define FIELD(name) offsetof(ts_timeline_box, name)
static const ts_option box_options[] = {
    {"box", TS_OPTION_STRING, FIELD(box), NULL, "x,y,width,height in pixels of the result", 0, 0, NULL, true},
    {"span", TS_OPTION_STRING, FIELD(span), NULL, "when; absent: the whole span of the entry", 0, 0, NULL, false},
    {0},
};
static const ts_record box_record = {box_options, sizeof(ts_timeline_box), FIELD(line)};
#undef FIELD

#define FIELD(name) offsetof(ts_timeline_track, name)
static const ts_option track_options[] = {
    {"span", TS_OPTION_STRING, FIELD(span), NULL, "where in the result: A..B, B not included, or all; times are 1.5s, 0:01.5, 12f, 12 (frames), start or end", 0, 0, NULL, true},
    {"source", TS_OPTION_CHOICE, FIELD(source), "none", "what stands there; none: what others put there is made free", 0, 0, ts_source_names, false},
    {"file", TS_OPTION_STRING, FIELD(file), NULL, "the video, the picture, or the latents (a file of --save-latents)", 0, 0, NULL, false},
    {"from", TS_OPTION_STRING, FIELD(from), NULL, "time in the source at which the span begins; absent: its start", 0, 0, NULL, false},
    {"speed", TS_OPTION_REAL, FIELD(speed), "1", "source seconds per second of the result; below 0: backwards", -64, 64, NULL, false},
    {"strength", TS_OPTION_REAL, FIELD(strength), "0", "how far it may change: 0, held, is returned untouched; 1 is only a place in the video", 0, 1, NULL, false},
    {"weight", TS_OPTION_REAL, FIELD(weight), "1", "against other sources in the same place", 0, 1e6, NULL, false},
    {"weight_end", TS_OPTION_REAL_OR_NAN, FIELD(weight_end), NULL, "weight at the end of the span; absent: the same", 0, 1e6, NULL, false},
    {"ramp", TS_OPTION_STRING, FIELD(ramp), NULL, "how weight goes to weight_end: linear, sigmoid, or a text file with one number from 0 to 1 a line; absent: linear", 0, 0, NULL, false},
    {"mask", TS_OPTION_STRING, FIELD(mask), NULL, "PNG, or video of the span: white is as strength says, black is held", 0, 0, NULL, false},
    {"invert", TS_OPTION_BOOL, FIELD(invert), "false", "black and white of mask and boxes change places", 0, 0, NULL, false},
    {"feather", TS_OPTION_REAL, FIELD(feather), "0", "pixels over which the edge of mask and boxes is softened", 0, 4096, NULL, false},
    {"boxes", TS_OPTION_RECORDS, FIELD(boxes), NULL, "white rectangles, instead of a mask or on top of it", 0, 0, &box_record, false},
    {0},
};
static const ts_record track_record = {track_options, sizeof(ts_timeline_track), FIELD(line)};
#undef FIELD

#define FIELD(name) offsetof(ts_timeline_prompt, name)
static const ts_option prompt_options[] = {
    {"span", TS_OPTION_STRING, FIELD(span), "all", "which frames it is for", 0, 0, NULL, false},
    {"text", TS_OPTION_STRING, FIELD(text), NULL, "what they show", 0, 0, NULL, true},
    {"weight", TS_OPTION_REAL, FIELD(weight), "1", "against other prompts of the same frame", 0, 1e6, NULL, false},
    {"guidance", TS_OPTION_REAL_OR_NAN, FIELD(guidance), NULL, "classifier-free guidance, 1 is none; absent: the model's", 0, 100, NULL, false},
    {0},
};
static const ts_record prompt_record = {prompt_options, sizeof(ts_timeline_prompt), FIELD(line)};
#undef FIELD

#define FIELD(name) offsetof(ts_timeline_event, name)
static const ts_option event_options[] = {
    {"at", TS_OPTION_STRING, FIELD(at), NULL, "before which step: its number from 0 on, or 40%, a share of the steps", 0, 0, NULL, true},
    {"text", TS_OPTION_STRING, FIELD(text), NULL, "what the frames show from that step on", 0, 0, NULL, true},
    {"from", TS_OPTION_STRING, FIELD(from), NULL, "the first of these frames, to the end; absent: all", 0, 0, NULL, false},
    {0},
};
static const ts_record event_record = {event_options, sizeof(ts_timeline_event), FIELD(line)};
#undef FIELD

#define FIELD(name) offsetof(ts_timeline, name)
const ts_option ts_timeline_options[] = {
    {"size", TS_OPTION_SIZE, FIELD(size), NULL, "pixels WxH, to which sources are resized and cropped; absent: the model's", 8, 8192, NULL, false},
    {"frames", TS_OPTION_INT, FIELD(frames), "0", "pixel frames, 1 + 4k, or 4k in a loop; 0: to the last end of a span, and the model's number at least where a span is open", 0, 1e6, NULL, false},
    {"fps", TS_OPTION_REAL, FIELD(fps), "0", "frames a second; 0: the model's", 0, 240, NULL, false},
    {"loop", TS_OPTION_BOOL, FIELD(loop), "false", "time on a circle: the first frame follows the last", 0, 0, NULL, false},
    {"mix", TS_OPTION_REAL, FIELD(mix), "0.8", "least strength where two sources meet half and half", 0, 1, NULL, false},
    {"window", TS_OPTION_INT, FIELD(window), "0", "pixel frames that the model sees at once, 1 + 4k; 0: what it was trained on", 0, 1e6, NULL, false},
    {"overlap", TS_OPTION_INT, FIELD(overlap), "-1", "pixel frames that neighbouring windows share; -1: half of one", -1, 1e6, NULL, false},
    {"context", TS_OPTION_INT, FIELD(context), "-1", "pixel frames of held video that a window keeps beside what is free; -1: half of one and a group", -1, 1e6, NULL, false},
    {"track", TS_OPTION_RECORDS, FIELD(track), NULL, "sources; where none stands, all is free", 0, 0, &track_record, false},
    {"prompts", TS_OPTION_RECORDS, FIELD(prompts), NULL, "what is shown; frames without one show the nearest", 0, 0, &prompt_record, false},
    {"events", TS_OPTION_RECORDS, FIELD(events), NULL, "changes while the video is being made", 0, 0, &event_record, false},
    {0},
};
#undef FIELD
// clang-format on

// ---- what nothing was said of

ts_timeline ts_timeline_default(void) {
    return (ts_timeline){.path = "timeline", .mix = 0.8, .overlap = -1, .context = -1};
}

ts_timeline_track ts_timeline_track_default(void) {
    return (ts_timeline_track){.speed = 1, .weight = 1, .weight_end = NAN};
}

ts_timeline_prompt ts_timeline_prompt_default(void) {
    return (ts_timeline_prompt){.span = "all", .weight = 1, .guidance = NAN};
}

// ---- files

int ts_timeline_read(ts_timeline *out, const char *path, ts_arena *arena) {
    int64_t *lines = ts_arena_alloc(arena, sizeof ts_timeline_options / sizeof *ts_timeline_options * sizeof *lines);
    *out = (ts_timeline){.path = ts_arena_strdup(arena, path), .lines = lines};
    if (!out->path || !lines) {
        return TS_ERESOURCE;
    }
    TS_TRY(ts_options_default(ts_timeline_options, out, arena));
    return ts_options_read_yaml_lines(ts_timeline_options, out, arena, path, lines);
}

int ts_timeline_write(const ts_timeline *timeline, FILE *out) {
    return ts_options_write_changed(ts_timeline_options, timeline, out);
}
