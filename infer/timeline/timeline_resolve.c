// SPDX-License-Identifier: Apache-2.0
// A timeline resolved against a model: what it leaves open is filled, all else is checked.
#include <math.h>
#include <string.h>

#include "core/base/status.h"
#include "infer/timeline/prompts.h"
#include "infer/timeline/timeline.h"

// Weights of prompts, one a latent frame and prompt: beyond this they would take more memory than the latents. An event
// brings a prompt, too, and all ranks wait for it to be encoded.
enum { MAX_PROMPT_WEIGHTS = 1 << 26, MAX_EVENTS = 1 << 12 };
// Stands for the end of a video whose length is not known yet: later than any time that can be written.
static const int64_t OPEN_END = INT64_C(1) << 60;

// Where a message is about: "cup.yaml:12: track[2]: span".
typedef struct place {
    char text[640];
} place;

static place place_of(const ts_timeline *timeline, int64_t line, const char *list, int64_t index, const char *key) {
    place p;
    char at[32] = "";
    if (line > 0) {
        snprintf(at, sizeof at, ":%lld", (long long)line);
    }
    snprintf(p.text, sizeof p.text, "%.480s%s: %s[%lld]%s%s", timeline->path, at, list, (long long)index,
             *key ? ": " : "", key);
    return p;
}

// The same for a key of the whole: "cup.yaml:3: frames".
static place place_of_key(const ts_timeline *timeline, const char *key) {
    place p;
    char at[32] = "";
    for (int64_t i = 0; timeline->lines && ts_timeline_options[i].name; i++) {
        if (timeline->lines[i] > 0 && strcmp(ts_timeline_options[i].name, key) == 0) {
            snprintf(at, sizeof at, ":%lld", (long long)timeline->lines[i]);
        }
    }
    snprintf(p.text, sizeof p.text, "%.480s%s: %s", timeline->path, at, key);
    return p;
}

// ---- length

// The last end of the spans, and whether one is open: then the video must end somewhere, too.
typedef struct length {
    double end;
    bool open;
} length;

static int add_span(length *l, const char *text, double fps, const char *where) {
    ts_frame_span span;
    TS_TRY(ts_span_parse(&span, text, fps, OPEN_END, where));
    if (span.end >= (double)OPEN_END) {
        l->open = true;
    } else {
        l->end = fmax(l->end, span.end);
    }
    return TS_OK;
}

// As long as the spans; open ones reach as far as the model's own videos do at least.
static int fill_frames(ts_timeline *timeline, const ts_timeline_model *model) {
    length l = {0};
    for (int64_t i = 0; i < timeline->track.count; i++) {
        const ts_timeline_track *track = &timeline->track.item[i];
        const place where = place_of(timeline, track->line, "track", i, "span");
        TS_TRY(add_span(&l, track->span ? track->span : "", timeline->fps, where.text));
    }
    for (int64_t i = 0; i < timeline->prompts.count; i++) {
        const ts_timeline_prompt *prompt = &timeline->prompts.item[i];
        const place where = place_of(timeline, prompt->line, "prompts", i, "span");
        TS_TRY(add_span(&l, prompt->span ? prompt->span : "", timeline->fps, where.text));
    }
    const int64_t factor = model->time_factor;
    int64_t latent = ts_latent_frames((int64_t)ceil(l.end), factor, timeline->loop);
    if (l.open || l.end == 0) {
        const int64_t own = timeline->loop ? model->frames / factor : ts_latent_frames(model->frames, factor, false);
        latent = latent > own ? latent : own;
    }
    timeline->frames = ts_pixel_frame(latent, factor, timeline->loop);
    return TS_OK;
}

static int check_frames(const ts_timeline *timeline, const ts_timeline_model *model) {
    const int64_t factor = model->time_factor, frames = timeline->frames;
    const int64_t latent = ts_latent_frames(frames, factor, timeline->loop);
    const int64_t above = ts_pixel_frame(latent, factor, timeline->loop), below = above - factor;
    const place where = place_of_key(timeline, "frames");
    if (frames != above) {
        return TS_FAIL(TS_EUSAGE, "%s is %lld; %s has %s%lldk: make it %lld or %lld", where.text, (long long)frames,
                       timeline->loop ? "a loop" : "a video", timeline->loop ? "" : "1 + ", (long long)factor,
                       (long long)(below > 0 ? below : above), (long long)(below > 0 ? above : above + factor));
    }
    if (latent > model->max_frames) {
        return TS_FAIL(TS_EUSAGE, "%s is %lld; at most %lld can be made: shorten the video", where.text,
                       (long long)frames, (long long)ts_pixel_frame(model->max_frames, factor, timeline->loop));
    }
    return TS_OK;
}

// ---- the whole

static int check_size(const ts_timeline *timeline, const ts_timeline_model *model) {
    const int64_t step_w = model->space_factor * model->patch_w, step_h = model->space_factor * model->patch_h;
    const ts_size2 size = timeline->size;
    if (size.width <= 0 || size.height <= 0 || size.width % step_w || size.height % step_h) {
        return TS_FAIL(TS_EUSAGE,
                       "%s is %lldx%lld; this model wants a width in steps of %lld and a height in steps of %lld",
                       place_of_key(timeline, "size").text, (long long)size.width, (long long)size.height,
                       (long long)step_w, (long long)step_h);
    }
    return TS_OK;
}

// Window, overlap and context: half of a window is shared, and half of one and a group kept beside what is free.
static int resolve_window(ts_timeline *timeline, const ts_timeline_model *model) {
    const int64_t factor = model->time_factor;
    if (timeline->window > 0 && (timeline->window - 1) % factor) {
        const int64_t above = ts_pixel_frame(ts_latent_frames(timeline->window, factor, false), factor, false);
        return TS_FAIL(TS_EUSAGE, "%s is %lld; a window has 1 + %lldk frames: make it %lld or %lld",
                       place_of_key(timeline, "window").text, (long long)timeline->window, (long long)factor,
                       (long long)(above - factor), (long long)above);
    }
    timeline->window = timeline->window > 0 ? timeline->window : model->frames;
    const int64_t groups = (timeline->window - 1) / factor, most = (groups - 1) * factor;
    const bool several = timeline->loop ? timeline->frames >= timeline->window : timeline->frames > timeline->window;
    if (several && groups < 2) {
        return TS_FAIL(TS_EUSAGE,
                       "%s is %lld; the windows of a video of %lld frames must overlap: make it %lld at least",
                       place_of_key(timeline, "window").text, (long long)timeline->window, (long long)timeline->frames,
                       (long long)ts_pixel_frame(3, factor, false));
    }
    timeline->overlap = timeline->overlap >= 0 ? timeline->overlap : groups / 2 * factor;
    timeline->context = timeline->context >= 0 ? timeline->context : (groups + 2) / 2 * factor;
    if (several && timeline->overlap > most) {
        return TS_FAIL(TS_EUSAGE, "%s is %lld; windows of %lld frames can share %lld at most",
                       place_of_key(timeline, "overlap").text, (long long)timeline->overlap,
                       (long long)timeline->window, (long long)most);
    }
    return TS_OK;
}

// `key` may be empty where `where` ends in it.
static int check_number(double value, double low, double high, const char *key, const char *where) {
    if (!(value >= low && value <= high)) {
        return TS_FAIL(TS_EUSAGE, "%s%s%s is %.6g; it must be %.6g to %.6g", where, *key ? ": " : "", key, value, low,
                       high);
    }
    return TS_OK;
}

static int resolve_whole(ts_timeline *timeline, const ts_timeline_model *model) {
    timeline->fps = timeline->fps > 0 ? timeline->fps : model->fps;
    if (!timeline->size.width && !timeline->size.height) {
        timeline->size = (ts_size2){model->width, model->height};
    }
    TS_TRY(check_number(timeline->mix, 0, 1, "", place_of_key(timeline, "mix").text));
    TS_TRY(check_number(timeline->fps, 0.01, 240, "", place_of_key(timeline, "fps").text));
    TS_TRY(check_size(timeline, model));
    if (timeline->frames <= 0) {
        TS_TRY(fill_frames(timeline, model));
    }
    TS_TRY(check_frames(timeline, model));
    return resolve_window(timeline, model);
}

// ---- entries of the track

// Keys that say something about a source that the entry does not have, or has in another way.
static int check_source(const ts_timeline_track *track, const char *where) {
    const char *kind = ts_source_names[track->source];
    if (track->source == TS_SOURCE_NONE && track->file) {
        return TS_FAIL(TS_EUSAGE, "%s: a file and source none; write source: video, image or latent", where);
    }
    if (track->source != TS_SOURCE_NONE && !(track->file && *track->file)) {
        return TS_FAIL(TS_EUSAGE, "%s: source %s without a file; add \"file: ...\"", where, kind);
    }
    const bool moves = track->source == TS_SOURCE_VIDEO || track->source == TS_SOURCE_LATENT;
    if (track->from && !moves) {
        return TS_FAIL(TS_EUSAGE, "%s: from means nothing with source %s; leave it out", where, kind);
    }
    if (track->speed != 1 && track->source != TS_SOURCE_VIDEO) {
        return TS_FAIL(TS_EUSAGE, "%s: only a video has a speed, and the source is %s; leave it out", where, kind);
    }
    if (!(fabs(track->speed) >= 1.0 / 64 && fabs(track->speed) <= 64)) {
        return TS_FAIL(TS_EUSAGE,
                       "%s: speed is %.6g; it must be 1/64 to 64, or -64 to -1/64 for backwards; a picture that stands "
                       "still is source: image",
                       where, track->speed);
    }
    return TS_OK;
}

static int resolve_weights(ts_timeline_track *track, const char *where) {
    const bool none = track->source == TS_SOURCE_NONE, same = isnan(track->weight_end);
    track->weight_end = same ? track->weight : track->weight_end;
    if (none && (track->weight != 1 || track->weight_end != 1 || (track->ramp && same))) {
        return TS_FAIL(TS_EUSAGE, "%s: weight, weight_end and ramp mean nothing without a source; leave them out",
                       where);
    }
    TS_TRY(check_number(track->weight, 0, 1e6, "weight", where));
    TS_TRY(check_number(track->weight_end, 0, 1e6, "weight_end", where));
    if (track->weight == 0 && track->weight_end == 0) {
        return TS_FAIL(TS_EUSAGE, "%s: weight is 0 throughout; raise it or remove the entry", where);
    }
    if (track->ramp && same) {
        return TS_FAIL(TS_EUSAGE, "%s: a ramp leads to weight_end; add \"weight_end: ...\"", where);
    }
    if (track->ramp && !*track->ramp) {
        return TS_FAIL(TS_EUSAGE, "%s: ramp is empty; write linear, sigmoid or the name of a file", where);
    }
    track->ramp = track->ramp ? track->ramp : "linear";
    return TS_OK;
}

static int resolve_strength(ts_timeline_track *track, const char *where) {
    const bool none = track->source == TS_SOURCE_NONE;
    TS_TRY(check_number(track->strength, 0, 1, "strength", where));
    if (none && track->strength == 0) {
        return TS_FAIL(TS_EUSAGE, "%s: source none holds nothing; raise strength, to 1 for free, or name a source",
                       where);
    }
    TS_TRY(check_number(track->feather, 0, 4096, "feather", where));
    const bool masked = track->mask || track->boxes.count;
    if (!masked && (track->invert || track->feather > 0)) {
        return TS_FAIL(TS_EUSAGE, "%s: %s is for a mask; add \"mask: ...\" or boxes", where,
                       track->invert ? "invert" : "feather");
    }
    if (track->mask && !*track->mask) {
        return TS_FAIL(TS_EUSAGE, "%s: mask is empty; name a PNG or a video", where);
    }
    return TS_OK;
}

static int check_box(const ts_timeline *timeline, const ts_timeline_box *box, ts_frame_span span, const char *where) {
    int64_t side[4];
    TS_TRY(ts_box_parse(side, box->box ? box->box : "", where));
    if (side[0] >= timeline->size.width || side[1] >= timeline->size.height || side[0] + side[2] <= 0 ||
        side[1] + side[3] <= 0) {
        return TS_FAIL(TS_EUSAGE, "%s: box %s lies outside of the %lldx%lld pixels; move it", where, box->box,
                       (long long)timeline->size.width, (long long)timeline->size.height);
    }
    if (!box->span) {
        return TS_OK;
    }
    ts_frame_span own;
    TS_TRY(ts_span_parse(&own, box->span, timeline->fps, timeline->frames, where));
    if (own.end <= span.first || own.first >= span.end) {
        return TS_FAIL(TS_EUSAGE,
                       "%s: \"%s\" lies outside of the entry's span, frames %.6g to %.6g; times are the result's",
                       where, box->span, span.first, span.end);
    }
    return TS_OK;
}

static int resolve_track(ts_timeline *timeline, int64_t i) {
    ts_timeline_track *track = &timeline->track.item[i];
    const place where = place_of(timeline, track->line, "track", i, "");
    const place in_span = place_of(timeline, track->line, "track", i, "span");
    const place in_from = place_of(timeline, track->line, "track", i, "from");
    ts_frame_span span;
    double from;
    TS_TRY(ts_span_parse(&span, track->span ? track->span : "", timeline->fps, timeline->frames, in_span.text));
    TS_TRY(check_source(track, where.text));
    TS_TRY(track->from ? ts_time_parse(&from, track->from, timeline->fps, OPEN_END, in_from.text) : TS_OK);
    TS_TRY(resolve_weights(track, where.text));
    TS_TRY(resolve_strength(track, where.text));
    for (int64_t b = 0; b < track->boxes.count; b++) {
        char key[48];
        snprintf(key, sizeof key, "boxes[%lld]", (long long)b);
        const ts_timeline_box *box = &track->boxes.item[b];
        const place in_box = place_of(timeline, box->line ? box->line : track->line, "track", i, key);
        TS_TRY(check_box(timeline, box, span, in_box.text));
    }
    return TS_OK;
}

// ---- prompts and events

static int check_prompt(const ts_timeline *timeline, int64_t i) {
    const ts_timeline_prompt *prompt = &timeline->prompts.item[i];
    const place where = place_of(timeline, prompt->line, "prompts", i, "");
    const place in_span = place_of(timeline, prompt->line, "prompts", i, "span");
    ts_frame_span span;
    TS_TRY(ts_span_parse(&span, prompt->span ? prompt->span : "", timeline->fps, timeline->frames, in_span.text));
    TS_TRY(ts_prompt_check(prompt->text ? prompt->text : "", where.text));
    TS_TRY(check_number(prompt->weight, 0, 1e6, "weight", where.text));
    return isnan(prompt->guidance) ? TS_OK : check_number(prompt->guidance, 0, 100, "guidance", where.text);
}

static int check_counts(const ts_timeline *timeline, const ts_timeline_model *model) {
    const int64_t latent = ts_latent_frames(timeline->frames, model->time_factor, timeline->loop);
    const int64_t prompts = timeline->prompts.count, events = timeline->events.count;
    if (events > MAX_EVENTS) {
        return TS_FAIL(TS_EUSAGE, "%s is a list of %lld; at most %d are possible: use fewer",
                       place_of_key(timeline, "events").text, (long long)events, MAX_EVENTS);
    }
    if (prompts + events > MAX_PROMPT_WEIGHTS / latent) {
        return TS_FAIL(TS_EUSAGE,
                       "%s: %lld prompts and %lld events for %lld latent frames; at most %lld are possible: use fewer",
                       timeline->path, (long long)prompts, (long long)events, (long long)latent,
                       (long long)(MAX_PROMPT_WEIGHTS / latent));
    }
    return TS_OK;
}

static int check_prompts(const ts_timeline *timeline) {
    double weight = timeline->prompts.count == 0;
    for (int64_t i = 0; i < timeline->prompts.count; i++) {
        TS_TRY(check_prompt(timeline, i));
        weight += timeline->prompts.item[i].weight;
    }
    return weight > 0 ? TS_OK : TS_FAIL(TS_EUSAGE, "%s: all prompts have weight 0; raise one", timeline->path);
}

static int check_event(const ts_timeline *timeline, int64_t i) {
    const ts_timeline_event *event = &timeline->events.item[i];
    const place where = place_of(timeline, event->line, "events", i, "");
    const place in_at = place_of(timeline, event->line, "events", i, "at");
    const place in_from = place_of(timeline, event->line, "events", i, "from");
    int64_t step;
    TS_TRY(ts_step_parse(&step, event->at ? event->at : "", OPEN_END, in_at.text));
    TS_TRY(ts_prompt_check(event->text ? event->text : "", where.text));
    if (!event->from) {
        return TS_OK;
    }
    double from;
    TS_TRY(ts_time_parse(&from, event->from, timeline->fps, timeline->frames, in_from.text));
    if (from >= (double)timeline->frames) {
        return TS_FAIL(TS_EUSAGE, "%s: \"%s\" is frame %.6g, and the video has %lld; name an earlier one", in_from.text,
                       event->from, from, (long long)timeline->frames);
    }
    return TS_OK;
}

int ts_timeline_resolve(ts_timeline *timeline, const ts_timeline_model *model) {
    TS_TRY(resolve_whole(timeline, model));
    for (int64_t i = 0; i < timeline->track.count; i++) {
        TS_TRY(resolve_track(timeline, i));
    }
    TS_TRY(check_counts(timeline, model));
    TS_TRY(check_prompts(timeline));
    for (int64_t i = 0; i < timeline->events.count; i++) {
        TS_TRY(check_event(timeline, i));
    }
    return TS_OK;
}
