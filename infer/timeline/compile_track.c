// SPDX-License-Identifier: Apache-2.0
// The track: entry by entry, what stands in which latent frames, with which weight and how far it may change.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/status.h"
#include "infer/timeline/compile_private.h"

// ---- ramps

enum { MAX_CURVE_BYTES = 1 << 20 };
// Of the sigmoid ramp over its whole length: 1.7 times the linear one's in the middle.
static const double STEEPNESS = 6;

// From 0 at 0 to 1 at 1, smoothly.
static double sigmoid_ramp(double at) {
    const double low = 1 / (1 + exp(STEEPNESS / 2)), high = 1 - low;
    return (1 / (1 + exp(-STEEPNESS * (at - 0.5))) - low) / (high - low);
}

// A text file's numbers, one a line; blank lines are passed over.
static int parse_curve(char *text, const char *path, double *value, int64_t *count) {
    *count = 0;
    int64_t line = 1;
    for (char *rest = text, *next; rest; rest = next, line++) {
        next = strchr(rest, '\n');
        if (next) {
            *next++ = '\0';
        }
        rest += strspn(rest, " \t\r");
        if (!*rest) {
            continue;
        }
        char *end;
        const double number = strtod(rest, &end);
        if (end == rest || end[strspn(end, " \t\r")] || !(number >= 0 && number <= 1)) {
            return TS_FAIL(TS_EINPUT,
                           "%s:%lld: '%.40s' is no number 0..1; give one a line, from 0 at the span's beginning", path,
                           (long long)line, rest);
        }
        value[(*count)++] = number;
    }
    return *count ? TS_OK : TS_FAIL(TS_EINPUT, "%s: no number in it; give one a line, 0..1", path);
}

static int read_curve(const char *path, double **value, int64_t *count) {
    char *text;
    size_t bytes;
    TS_TRY(ts_file_read(path, MAX_CURVE_BYTES, &text, &bytes));
    if (memchr(text, '\0', bytes)) {
        free(text);
        return TS_FAIL(TS_EINPUT, "%s: holds zero bytes; give a text file with one number a line", path);
    }
    *value = ts_malloc((bytes / 2 + 1) * sizeof **value);  // a digit and the end of a line, at least
    const int status = *value ? parse_curve(text, path, *value, count) : TS_ERESOURCE;
    free(text);
    return status;
}

static double curve_ramp(const double *value, int64_t count, double at) {
    const double place = at * (double)(count - 1);
    const int64_t below = count > 1 ? (int64_t)fmin(floor(place), (double)(count - 2)) : 0;
    const int64_t above = count > 1 ? below + 1 : 0;
    return value[below] + (place - (double)below) * (value[above] - value[below]);
}

// Where pixel frame p lies between the last one of the span's first latent frame, 0, and the first one of its last
// latent frame, 1. So those two are of one weight each, and the steps between all frames are alike.
static double place_in_span(const ts_track_job *job, int64_t p) {
    const ts_latent_span span = job->span;
    const int64_t first = ts_compile_pixel_frame(job->canvas, job->time_factor, span.first + 1) - 1;
    const int64_t last = ts_compile_pixel_frame(job->canvas, job->time_factor, span.end - 1);
    return last <= first ? 0.5 : fmin(fmax((double)(p - first) / (double)(last - first), 0), 1);
}

static float *weight_of(const ts_track_job *job, int64_t t) {
    return job->weight + (t - job->span.first) * job->time_factor;
}

// Weights over the span, from pixel frame to pixel frame.
static int compile_ramp(ts_track_job *job) {
    const ts_timeline_track *entry = job->entry;
    const double first = entry->weight, last = isnan(entry->weight_end) ? first : entry->weight_end;
    const bool linear = !entry->ramp || strcmp(entry->ramp, "linear") == 0;
    const bool sigmoid = !linear && strcmp(entry->ramp, "sigmoid") == 0;
    double *curve = NULL;
    int64_t count = 0;
    const int status = linear || sigmoid ? TS_OK : read_curve(entry->ramp, &curve, &count);
    for (int64_t t = job->span.first; t < job->span.end && !status; t++) {
        const int64_t begin = ts_compile_pixel_frame(job->canvas, job->time_factor, t);
        const int64_t end = ts_compile_pixel_frame(job->canvas, job->time_factor, t + 1);
        float *weight = weight_of(job, t);
        for (int64_t k = 0; k < job->time_factor; k++) {
            const double at = place_in_span(job, begin + k < end ? begin + k : end - 1);
            const double ramp = linear ? at : sigmoid ? sigmoid_ramp(at) : curve_ramp(curve, count, at);
            weight[k] = (float)(first + (last - first) * ramp);
        }
    }
    free(curve);
    return status;
}

// ---- one entry

static const float *share_of(const ts_track_job *job, int64_t t) {
    return job->share + (t - job->span.first) * job->canvas->rows * job->canvas->columns;
}

// Whether the entry has a weight in any pixel frame of latent frame t.
static bool weighs(const ts_track_job *job, int64_t t) {
    const float *weight = weight_of(job, t);
    for (int64_t k = 0; k < job->time_factor; k++) {
        if (weight[k] > 0) {
            return true;
        }
    }
    return false;
}

// Whether the entry would hold any token of latent frame t, as ts_canvas_strength counts.
static bool holds(const ts_track_job *job, int64_t t) {
    for (int64_t i = 0; i < job->canvas->rows * job->canvas->columns; i++) {
        if (lrint(job->entry->strength * share_of(job, t)[i] * TS_STRENGTH_STEPS) == 0) {
            return true;
        }
    }
    return false;
}

// The source has nothing for latent frame t: it is free, unless it should be held.
static int miss(const ts_track_job *job, int64_t t) {
    if (!holds(job, t)) {
        return TS_OK;
    }
    const int64_t first = ts_compile_pixel_frame(job->canvas, job->time_factor, t);
    return TS_FAIL(TS_EINPUT,
                   "%s has nothing for frame %lld (%.3gs) of the result, which is held (strength 0); shorten the "
                   "span, play slower (speed), or begin elsewhere (from)",
                   job->entry->file, (long long)first, (double)first / job->timeline->fps);
}

static int add_source(ts_mixture *mixture, ts_track_job *job) {
    ts_track_source *source;
    TS_TRY(ts_track_source_open(&source, job));
    int64_t t, stands = 0, missing = 0;
    const float *latent;
    int status;
    while (!(status = ts_track_source_next(source, &t, &latent))) {
        const float *weight = weight_of(job, t);
        if (!weighs(job, t)) {
            continue;
        }
        if (!latent) {
            TS_TRY_GOTO(status, miss(job, t), done);
            missing++;
            continue;
        }
        ts_mixture_add(mixture, t, latent, weight, job->entry->strength, share_of(job, t));
        stands++;
    }
    status = status == TS_EOF ? TS_OK : status;
    if (!status && missing && !stands) {
        status = TS_FAIL(TS_EINPUT, "%s has nothing for this span; begin elsewhere (from %s)", job->entry->file,
                         job->entry->from ? job->entry->from : "start");
    } else if (missing) {
        ts_note_add(&job->note, "too short: %lld of %lld latent frames are free", (long long)missing,
                    (long long)(missing + stands));
    }
done:
    ts_track_source_close(&source);
    return status;
}

static int add_entry(ts_mixture *mixture, ts_track_job *job) {
    TS_TRY(ts_compile_mask(job));
    TS_TRY(compile_ramp(job));
    if (job->entry->source != TS_SOURCE_NONE) {
        return add_source(mixture, job);
    }
    for (int64_t t = job->span.first; t < job->span.end; t++) {
        if (weighs(job, t)) {
            ts_mixture_loosen(mixture, t, job->entry->strength, share_of(job, t));
        }
    }
    return TS_OK;
}

static int compile_entry(ts_mixture *mixture, const ts_timeline *timeline, const ts_codec *codec, int64_t index) {
    const ts_codec_info info = ts_codec_get_info(codec);
    ts_track_job job = {.timeline = timeline,
                        .entry = &timeline->track.item[index],
                        .codec = codec,
                        .canvas = mixture->canvas,
                        .time_factor = info.time_factor,
                        .space_factor = info.space_factor};
    const ts_place place = ts_compile_place(timeline, job.entry->line, "track", index);
    int status = ts_compile_span(&job.span, timeline, job.canvas, job.time_factor, job.entry->span, &job.note);
    if (status) {
        return ts_fail_context(status, "%s", place.text);
    }
    const int64_t frames = job.span.end - job.span.first;
    job.share = ts_malloc((size_t)(frames * job.canvas->rows * job.canvas->columns) * sizeof *job.share);
    job.weight = ts_malloc((size_t)(frames * job.time_factor) * sizeof *job.weight);
    status = job.share && job.weight ? add_entry(mixture, &job) : TS_ERESOURCE;
    free(job.share);
    free(job.weight);
    if (status) {
        return ts_fail_context(status, "%s", place.text);
    }
    ts_note_tell(&job.note, &place, job.entry->file);
    return TS_OK;
}

int ts_compile_track(ts_canvas *canvas, const ts_timeline *timeline, const ts_codec *codec) {
    if (!timeline->track.count) {
        return TS_OK;
    }
    TS_TRY(ts_canvas_add_source(canvas));
    ts_mixture mixture;
    TS_TRY(ts_mixture_open(&mixture, canvas, codec));
    int status = TS_OK;
    for (int64_t i = 0; i < timeline->track.count && !status; i++) {
        status = compile_entry(&mixture, timeline, codec, i);
    }
    if (!status) {
        ts_mixture_finish(&mixture, timeline->mix);
    }
    ts_mixture_close(&mixture);
    return status;
}
