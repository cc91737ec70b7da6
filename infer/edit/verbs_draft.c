// SPDX-License-Identifier: Apache-2.0
// How verbs fill a timeline.
#include <math.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/status.h"
#include "infer/edit/verbs_private.h"

int ts_draft_open(ts_draft *draft, const char *verb, const void *options, const ts_timeline_model *model,
                  ts_arena *arena, ts_edit_list *list) {
    const ts_verb_options *o = options;
    ts_timeline *t = ts_arena_alloc(arena, sizeof *t);
    if (!t) {
        return TS_ERESOURCE;
    }
    *t = ts_timeline_default();
    t->path = verb;
    t->size = o->size.width ? o->size : (ts_size2){model->width, model->height};
    t->fps = o->fps > 0 ? o->fps : model->fps;
    *list = (ts_edit_list){.count = 1, .item = t};
    *draft = (ts_draft){
        .o = o, .arena = arena, .timeline = t, .fps = t->fps, .guidance = model->guidance, .group = model->time_factor};
    return TS_OK;
}

const char *ts_draft_span(ts_draft *draft, int64_t first, int64_t end) {
    return ts_arena_printf(draft->arena, "%lldf..%lldf", (long long)first, (long long)end);
}

const char *ts_draft_seconds(ts_draft *draft, double frames) {
    return ts_arena_printf(draft->arena, "%.12gs", frames / draft->fps);
}

// Makes room for one more entry behind `count` of `bytes` each.
static void *grow(ts_arena *arena, const void *items, int64_t count, size_t bytes) {
    void *longer = ts_arena_alloc(arena, (size_t)(count + 1) * bytes);
    if (longer && count) {
        memcpy(longer, items, (size_t)count * bytes);
    }
    return longer;
}

ts_timeline_track *ts_draft_track(ts_draft *draft, int64_t first, int64_t end, ts_source_kind source) {
    ts_timeline *t = draft->timeline;
    const char *span = ts_draft_span(draft, first, end);
    ts_timeline_track *items = grow(draft->arena, t->track.item, t->track.count, sizeof *items);
    if (!span || !items) {
        return NULL;
    }
    t->track.item = items;
    ts_timeline_track *track = &items[t->track.count++];
    *track = ts_timeline_track_default();
    track->span = span;
    track->source = (int)source;
    return track;
}

ts_timeline_prompt *ts_draft_prompt(ts_draft *draft, int64_t first, int64_t end, const char *text) {
    ts_timeline *t = draft->timeline;
    const char *span = ts_draft_span(draft, first, end);
    ts_timeline_prompt *items = grow(draft->arena, t->prompts.item, t->prompts.count, sizeof *items);
    if (!span || !items) {
        return NULL;
    }
    t->prompts.item = items;
    ts_timeline_prompt *prompt = &items[t->prompts.count++];
    *prompt = ts_timeline_prompt_default();
    prompt->span = span;
    prompt->text = text;
    return prompt;
}

int ts_draft_say(ts_draft *draft, int64_t first, int64_t end, double open) {
    if (!draft->o->prompt || first == end) {
        return TS_OK;
    }
    ts_timeline_prompt *prompt = ts_draft_prompt(draft, first, end, draft->o->prompt);
    if (prompt && draft->o->edit.session.guidance < 0) {
        prompt->guidance = 1 + (draft->guidance - 1) * open;
    }
    return prompt ? TS_OK : TS_ERESOURCE;
}

int ts_draft_time(const ts_draft *draft, double *out, const char *option, const char *text, int64_t frames) {
    TS_TRY(ts_time_parse(out, text, draft->fps, frames, option));
    return *out >= 0 ? TS_OK : TS_FAIL(TS_EUSAGE, "%s %.80s: give a time from 0 on", option, text);
}

// ---- clips

int ts_draft_clip(const ts_draft *draft, ts_clip *out, const char *path, const char *from, const char *to) {
    ts_source_info info;
    double end;
    TS_TRY(ts_source_describe(&info, path));
    const double seconds = info.fps > 0 && info.frames > 0 ? (double)(info.frames - 1) / info.fps : info.duration;
    const int64_t whole = (int64_t)floor(seconds * draft->fps + 1e-3) + 1;  // the first frame is at 0
    *out = (ts_clip){.path = path, .source_frame = info.fps / draft->fps};
    TS_TRY(ts_draft_time(draft, &out->first, "--from", from, whole));
    TS_TRY(ts_draft_time(draft, &end, "--to", to, whole));
    if (end >= (double)whole + 1 && out->first < (double)whole) {
        TS_INFO("%s: lasts %.6g s only, and is shown that far, not to %s", path, (double)whole / draft->fps, to);
    }
    end = end < (double)whole ? end : (double)whole;
    out->rest = (int64_t)floor((double)whole - out->first + 1e-3);
    out->frames = (int64_t)floor(end - out->first + 1e-3);
    return out->frames >= 1 ? TS_OK
                            : TS_FAIL(TS_EUSAGE, "%s: no frame of it lies from %s to %s; it lasts %.6g s", path, from,
                                      to, (double)whole / draft->fps);
}

ts_timeline_track *ts_draft_video(ts_draft *draft, int64_t first, int64_t end, const ts_clip *clip, double skip) {
    ts_timeline_track *track = ts_draft_track(draft, first, end, TS_SOURCE_VIDEO);
    if (track) {
        track->file = clip->path;
        track->from = ts_draft_seconds(draft, clip->first + skip);
        track->strength = 0;
    }
    return track;
}

// ---- lengths

// The one pixel frame that the first latent frame stands for.
static int64_t lone_frame(const ts_draft *draft, int64_t at) {
    return at == 0 && !draft->timeline->loop;
}

int64_t ts_draft_whole(const ts_draft *draft, int64_t at, double frames) {
    const int64_t lone = lone_frame(draft, at);
    const int64_t groups = (int64_t)floor((frames - (double)lone) / (double)draft->group + 0.5);
    return lone + draft->group * (groups > 1 ? groups : lone ? groups > 0 : 1);
}

int64_t ts_draft_whole_of(const ts_draft *draft, int64_t at, double frames, const char *option) {
    if (frames <= 0) {
        return 0;
    }
    const int64_t whole = ts_draft_whole(draft, at, frames);
    if (fabs((double)whole - frames) >= 0.5) {
        TS_INFO("%s: %lld frames instead of %.6g, since latent frames hold %lld", option, (long long)whole, frames,
                (long long)draft->group);
    }
    return whole;
}

int64_t ts_draft_most(const ts_draft *draft, int64_t at, int64_t frames) {
    const int64_t lone = lone_frame(draft, at);
    return frames < lone ? 0 : lone + (frames - lone) / draft->group * draft->group;
}
