// SPDX-License-Identifier: Apache-2.0
#include "infer/timeline/compile.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/base/status.h"
#include "infer/timeline/compile_private.h"

// Latent frames of a canvas: hours of video. And positions that the transformer sees at once: beyond this a single
// machine cannot hold the activations.
enum { MAX_FRAMES = 1 << 16, MAX_WINDOW = 1 << 20 };

ts_timeline_model ts_timeline_model_from(const ts_model_defaults *defaults, const ts_codec_info *codec,
                                         const ts_dit_config *dit) {
    return (ts_timeline_model){.width = defaults->width,
                               .height = defaults->height,
                               .frames = defaults->frames,
                               .fps = defaults->fps,
                               .guidance = defaults->guidance,
                               .time_factor = codec->time_factor,
                               .space_factor = codec->space_factor,
                               .patch_h = dit->patch[1],
                               .patch_w = dit->patch[2],
                               .max_frames = MAX_FRAMES};
}

ts_timeline_model ts_timeline_model_of(const ts_model *model) {
    const ts_codec_info codec = ts_codec_get_info(model->codec);
    return ts_timeline_model_from(&model->defaults, &codec, ts_dit_get_config(model->dit));
}

// ---- places and notes

ts_place ts_compile_place(const ts_timeline *timeline, int64_t line, const char *list, int64_t index) {
    ts_place place;
    char at[32] = "", item[32] = "";
    if (line > 0) {
        snprintf(at, sizeof at, ":%lld", (long long)line);
    }
    if (index >= 0) {
        snprintf(item, sizeof item, "[%lld]", (long long)index);
    }
    snprintf(place.text, sizeof place.text, "%s%s: %s%s", timeline->path, at, list, item);
    return place;
}

void ts_note_add(ts_note *note, const char *format, ...) {
    const size_t length = strlen(note->text);
    const int separator = snprintf(note->text + length, sizeof note->text - length, "%s", length ? "; " : "");
    const size_t used = length + (size_t)separator < sizeof note->text ? length + (size_t)separator : length;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(note->text + used, sizeof note->text - used, format, arguments);
    va_end(arguments);
}

void ts_note_crop(ts_note *note, const char *what, const ts_source_info *info, int64_t width, int64_t height) {
    const double shape = (double)info->width / (double)info->height, wanted = (double)width / (double)height;
    if (fabs(shape / wanted - 1) > 0.01) {
        ts_note_add(note, "%scropped from %lldx%lld to the shape of %lldx%lld", what, (long long)info->width,
                    (long long)info->height, (long long)width, (long long)height);
    }
}

void ts_note_tell(const ts_note *note, const ts_place *place, const char *path) {
    if (!*note->text) {
        return;
    }
    if (path) {
        TS_INFO("%s (%s): %s", place->text, ts_path_base(path), note->text);
    } else {
        TS_INFO("%s: %s", place->text, note->text);
    }
}

// ---- time

int64_t ts_compile_pixel_frame(const ts_canvas *canvas, int64_t time_factor, int64_t t) {
    return ts_pixel_frame(t, time_factor, canvas->loop);
}

int ts_compile_span(ts_latent_span *out, const ts_timeline *timeline, const ts_canvas *canvas, int64_t time_factor,
                    const char *span, ts_note *note) {
    const int64_t frames = ts_compile_pixel_frame(canvas, time_factor, canvas->frames);
    ts_frame_span asked;
    TS_TRY(ts_span_parse(&asked, span, timeline->fps, frames, "span"));
    bool moved;
    *out = ts_span_snap(asked, time_factor, canvas->frames, canvas->loop, &moved);
    if (moved) {
        ts_note_add(note, "span %s moved to frames %lld..%lld: latent frames are %lld frames", span,
                    (long long)ts_compile_pixel_frame(canvas, time_factor, out->first),
                    (long long)ts_compile_pixel_frame(canvas, time_factor, out->end), (long long)time_factor);
    }
    return TS_OK;
}

// One entry's span, told of where it moves.
static int tell_span(const ts_timeline *timeline, const ts_canvas *sides, int64_t time_factor, const char *list,
                     int64_t index, int64_t line, const char *span) {
    ts_note note = {0};
    ts_latent_span moved;
    const ts_place place = ts_compile_place(timeline, line, list, index);
    const int status = ts_compile_span(&moved, timeline, sides, time_factor, span, &note);
    ts_note_tell(&note, &place, NULL);
    return status ? ts_fail_context(status, "%s", place.text) : TS_OK;
}

int ts_timeline_tell_spans(const ts_timeline *timeline, const ts_timeline_model *model) {
    const ts_canvas sides = {.frames = ts_latent_frames(timeline->frames, model->time_factor, timeline->loop),
                             .loop = timeline->loop};
    for (int64_t i = 0; i < timeline->track.count; i++) {
        const ts_timeline_track *entry = &timeline->track.item[i];
        TS_TRY(tell_span(timeline, &sides, model->time_factor, "track", i, entry->line, entry->span));
    }
    for (int64_t i = 0; i < timeline->prompts.count; i++) {
        const ts_timeline_prompt *prompt = &timeline->prompts.item[i];
        TS_TRY(tell_span(timeline, &sides, model->time_factor, "prompts", i, prompt->line, prompt->span));
    }
    return TS_OK;
}

// ---- size

// Refuses, before anything is allocated, canvases that the model cannot see or memory cannot hold.
static int check_size(const ts_timeline *timeline, const ts_dit_config *dit, const ts_canvas *c, int64_t holders) {
    const int64_t most = c->frames + timeline->loop;  // a window on a circle begins with a head
    const int64_t seen = c->window < most ? c->window : most;
    const bool too_long = seen > dit->rope_max_positions * dit->patch[0] ||
                          c->height > dit->rope_max_positions * dit->patch[1] ||
                          c->width > dit->rope_max_positions * dit->patch[2];
    if (too_long || seen * c->height * c->width > MAX_WINDOW) {
        return TS_FAIL(TS_EUSAGE,
                       "%s: the model would see %lldx%lldx%lld latent positions at once, at most %d in all and %lld "
                       "tokens along an axis; make the video smaller or its window shorter",
                       timeline->path, (long long)seen, (long long)c->height, (long long)c->width, MAX_WINDOW,
                       (long long)dit->rope_max_positions);
    }
    return ts_canvas_check_memory(c, holders, timeline->path);
}

static int64_t groups_of(int64_t frames, int64_t time_factor) {
    return (frames + time_factor - 1) / time_factor;
}

static int open_canvas(ts_canvas *out, const ts_timeline *timeline, const ts_model *model, int64_t holders) {
    const ts_timeline_model m = ts_timeline_model_of(model);
    const int64_t overlap = groups_of(timeline->overlap, m.time_factor);
    const int64_t context = groups_of(timeline->context, m.time_factor);
    const ts_canvas c = {.frames = ts_latent_frames(timeline->frames, m.time_factor, timeline->loop),
                         .height = timeline->size.height / m.space_factor,
                         .width = timeline->size.width / m.space_factor,
                         .channels = ts_codec_get_info(model->codec).channels,
                         .window = ts_latent_frames(timeline->window, m.time_factor, false)};
    TS_TRY(check_size(timeline, ts_dit_get_config(model->dit), &c, holders));
    TS_TRY(ts_canvas_open(out, c.frames, c.height, c.width, c.channels, m.patch_h, m.patch_w, "", m.guidance));
    out->loop = timeline->loop;
    out->window = c.window;
    out->overlap = overlap > 1 ? overlap : 1;  // without a shared frame nothing joins two windows
    out->context = context < 1 ? 1 : context > c.frames ? c.frames : context;
    return TS_OK;
}

// ---- events

static int compile_event(ts_change *out, const ts_timeline *timeline, const ts_canvas *canvas, int64_t time_factor,
                         const ts_timeline_event *event, int64_t steps) {
    const int64_t frames = ts_compile_pixel_frame(canvas, time_factor, canvas->frames);
    TS_TRY(ts_step_parse(&out->step, event->at, steps, "at"));
    double from = 0;
    if (event->from) {
        TS_TRY(ts_time_parse(&from, event->from, timeline->fps, frames, "from"));
    }
    bool moved;
    const ts_frame_span rest = {from, (double)frames};
    out->first = ts_span_snap(rest, time_factor, canvas->frames, canvas->loop, &moved).first;
    out->prompt = event->text;
    return TS_OK;
}

// In the order of their steps; those of one step as they were given.
static void sort_changes(ts_change *change, int64_t count) {
    for (int64_t i = 1; i < count; i++) {
        const ts_change moved = change[i];
        int64_t j = i;
        for (; j > 0 && change[j - 1].step > moved.step; j--) {
            change[j] = change[j - 1];
        }
        change[j] = moved;
    }
}

static int compile_events(ts_compiled *out, const ts_timeline *timeline, int64_t time_factor, int64_t steps) {
    const int64_t count = timeline->events.count;
    out->change = ts_calloc((size_t)count + 1, sizeof *out->change);
    if (!out->change) {
        return TS_ERESOURCE;
    }
    out->changes = count;
    for (int64_t i = 0; i < count; i++) {
        const ts_timeline_event *event = &timeline->events.item[i];
        const int status = compile_event(&out->change[i], timeline, &out->canvas, time_factor, event, steps);
        if (status) {
            const ts_place place = ts_compile_place(timeline, event->line, "events", i);
            return ts_fail_context(status, "%s", place.text);
        }
    }
    sort_changes(out->change, count);
    return TS_OK;
}

// ---- the whole

static int compile(ts_compiled *out, const ts_timeline *timeline, const ts_model *model, int64_t steps,
                   int64_t holders) {
    const int64_t time_factor = ts_codec_get_info(model->codec).time_factor;
    TS_TRY(open_canvas(&out->canvas, timeline, model, holders));
    TS_TRY(ts_compile_prompts(&out->canvas, timeline, time_factor, model->defaults.guidance));
    TS_TRY(compile_events(out, timeline, time_factor, steps));
    return ts_compile_track(&out->canvas, timeline, model->codec);  // last: it reads files
}

int ts_timeline_compile(ts_compiled *out, const ts_timeline *timeline, const ts_model *model, int64_t steps,
                        int64_t holders) {
    *out = (ts_compiled){0};
    const int status = compile(out, timeline, model, steps, holders);
    if (status) {
        ts_compiled_close(out);
    }
    return status;
}

void ts_compiled_close(ts_compiled *compiled) {
    ts_canvas_close(&compiled->canvas);
    free(compiled->change);
    free(compiled->text);
    *compiled = (ts_compiled){0};
}
