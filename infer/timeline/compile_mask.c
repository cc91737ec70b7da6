// SPDX-License-Identifier: Apache-2.0
// The mask of a track entry: a picture or a video, and boxes, one latent frame after the other.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "infer/timeline/compile_private.h"
#include "infer/timeline/mask.h"
#include "infer/timeline/source.h"

// A box over pixel frames first .. end-1.
typedef struct box {
    int64_t side[4];  // x, y, width, height
    int64_t first, end;
} box;

typedef struct mask_job {
    ts_track_job *track;
    int64_t height, width;  // pixels
    int64_t token_height, token_width;
    ts_source *file;  // NULL: there is none
    uint8_t *grey;    // [height, width] of its last frame
    bool ended;
    float *mask;  // [time_factor, height, width]
    box *boxes;
} mask_job;

// ---- boxes

static int parse_box(const ts_track_job *track, const ts_timeline_box *from, box *out) {
    TS_TRY(ts_box_parse(out->side, from->box, "boxes"));
    const int64_t frames = ts_compile_pixel_frame(track->canvas, track->time_factor, track->canvas->frames);
    ts_frame_span span = {0, (double)frames};
    if (from->span) {
        TS_TRY(ts_span_parse(&span, from->span, track->timeline->fps, frames, "boxes"));
    }
    out->first = llround(span.first);
    out->end = llround(span.end) > out->first ? llround(span.end) : out->first + 1;
    return TS_OK;
}

// ---- frames

// The next frame of the file; its last one for as long as it takes.
static int add_file(mask_job *job, float *mask) {
    if (!job->ended) {
        const int status = ts_source_next(job->file, job->grey);
        if (status && status != TS_EOF) {
            return status;
        }
        job->ended = status == TS_EOF;
        if (job->ended) {
            ts_note_add(&job->track->note, "the mask ends early: its last frame stays");
        }
    }
    ts_mask_add_grey(mask, job->height, job->width, job->grey);
    return TS_OK;
}

// Pixel frames first .. first+frames-1 of the canvas, as mask [frames, height, width].
static int fill_mask(mask_job *job, int64_t first, int64_t frames) {
    const ts_timeline_track *entry = job->track->entry;
    memset(job->mask, 0, (size_t)(frames * job->height * job->width) * sizeof *job->mask);
    for (int64_t i = 0; i < frames; i++) {
        float *mask = job->mask + i * job->height * job->width;
        if (job->file) {
            TS_TRY(add_file(job, mask));
        }
        for (int64_t b = 0; b < entry->boxes.count; b++) {
            if (job->boxes[b].first <= first + i && first + i < job->boxes[b].end) {
                ts_mask_add_box(mask, job->height, job->width, job->boxes[b].side);
            }
        }
    }
    if (entry->invert) {
        ts_mask_invert(job->mask, frames, job->height, job->width);
    }
    ts_mask_feather(job->mask, frames, job->height, job->width, entry->feather);
    return TS_OK;
}

// ---- the whole span

static int mask_open(mask_job *job) {
    const ts_timeline_track *entry = job->track->entry;
    const size_t pixels = (size_t)(job->height * job->width);
    job->grey = ts_calloc(pixels, 1);
    job->mask = ts_malloc(pixels * (size_t)job->track->time_factor * sizeof *job->mask);
    job->boxes = ts_calloc((size_t)entry->boxes.count + 1, sizeof *job->boxes);
    if (!job->grey || !job->mask || !job->boxes) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < entry->boxes.count; i++) {
        TS_TRY(parse_box(job->track, &entry->boxes.item[i], &job->boxes[i]));
    }
    if (entry->mask) {
        ts_source_info info;
        TS_TRY(ts_source_describe(&info, entry->mask));
        ts_note_crop(&job->track->note, "the mask is ", &info, job->width, job->height);
        const double step = 1 / job->track->timeline->fps;
        return ts_source_open(&job->file, entry->mask, 0, step, job->height, job->width, 1);
    }
    return TS_OK;
}

static int fill_shares(mask_job *job) {
    const ts_track_job *track = job->track;
    const ts_canvas *canvas = track->canvas;
    for (int64_t t = track->span.first; t < track->span.end; t++) {
        const int64_t first = ts_compile_pixel_frame(canvas, track->time_factor, t);
        const int64_t frames = ts_compile_pixel_frame(canvas, track->time_factor, t + 1) - first;
        TS_TRY(fill_mask(job, first, frames));
        ts_mask_tokens(job->mask, frames, job->height, job->width, job->token_height, job->token_width,
                       track->share + (t - track->span.first) * canvas->rows * canvas->columns);
    }
    return TS_OK;
}

int ts_compile_mask(ts_track_job *track) {
    const ts_canvas *canvas = track->canvas;
    const int64_t shares = (track->span.end - track->span.first) * canvas->rows * canvas->columns;
    if (!track->entry->mask && !track->entry->boxes.count) {
        for (int64_t i = 0; i < shares; i++) {
            track->share[i] = 1;
        }
        return TS_OK;
    }
    mask_job job = {.track = track,
                    .height = canvas->height * track->space_factor,
                    .width = canvas->width * track->space_factor,
                    .token_height = canvas->height / canvas->rows * track->space_factor,
                    .token_width = canvas->width / canvas->columns * track->space_factor};
    int status = mask_open(&job);
    status = status ? status : fill_shares(&job);
    ts_source_close(&job.file);
    free(job.grey);
    free(job.mask);
    free(job.boxes);
    return status;
}
