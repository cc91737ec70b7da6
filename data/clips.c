// SPDX-License-Identifier: Apache-2.0
#include "data/clips.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"

// Containers round time stamps, Matroska to 1 ms: a frame that much late was meant for the sample.
static const double SLACK = 0.0015;
enum { MAX_SIDE = 8192, MAX_FRAMES = 4097 };
static const int64_t MAX_CLIP_BYTES = (int64_t)1 << 32;

// ---- buckets

int ts_bucket_parse(const char *text, ts_bucket *out) {
    char behind;
    const int fields =
        sscanf(text, "%5" SCNd64 "x%5" SCNd64 "x%5" SCNd64 "%c", &out->width, &out->height, &out->frames, &behind);
    if (fields != 3 || out->width < 8 || out->height < 8 || out->width > MAX_SIDE || out->height > MAX_SIDE ||
        out->width % 8 || out->height % 8 || out->frames < 1 || out->frames > MAX_FRAMES || out->frames % 4 != 1) {
        return TS_FAIL(TS_EUSAGE,
                       "bucket \"%.40s\": write WIDTHxHEIGHTxFRAMES with sides that are multiples of 8 and "
                       "1 + 4k frames, as in 64x64x17",
                       text);
    }
    if (out->width * out->height * 3 > MAX_CLIP_BYTES / out->frames) {
        return TS_FAIL(TS_EUSAGE, "bucket \"%s\": a clip's pixels exceed 4 GiB; make it smaller or shorter", text);
    }
    return TS_OK;
}

// The last sample must lie before the end of the last frame.
static bool is_short_enough(const ts_bucket *b, double fps, double duration) {
    return (double)(b->frames - 1) / fps < duration - SLACK || b->frames == 1;
}

// How far apart two aspects are; equal up to the rounding of sides to multiples of 8.
static double aspect_distance(const ts_bucket *b, double aspect) {
    const double distance = fabs(log((double)b->width / (double)b->height / aspect));
    return round(distance * 64) / 64;
}

// Whether `a` suits a source of `area` pixels better than `b`.
static bool is_better(const ts_bucket *a, const ts_bucket *b, double aspect, int64_t area) {
    const double distance_a = aspect_distance(a, aspect), distance_b = aspect_distance(b, aspect);
    if (distance_a != distance_b) {
        return distance_a < distance_b;
    }
    const int64_t area_a = a->width * a->height, area_b = b->width * b->height;
    if (area_a != area_b) {
        const int64_t larger = area_a > area_b ? area_a : area_b;
        return larger <= area ? area_a == larger : area_a != larger;
    }
    return a->frames > b->frames;
}

int ts_bucket_choose(const ts_bucket *buckets, int count, double fps, int64_t width, int64_t height, double duration) {
    int best = -1;
    for (int i = 0; i < count; i++) {
        if (is_short_enough(&buckets[i], fps, duration) &&
            (best < 0 || is_better(&buckets[i], &buckets[best], (double)width / (double)height, width * height))) {
            best = i;
        }
    }
    return best;
}

// ---- the reader

struct ts_clip_reader {
    ts_clip_params params;
    char path[PATH_MAX];
    ts_video_reader *video;
    ts_video_info info;
    int bucket;
    int64_t frames, stride;  // of a clip, and from one clip's start to the next; samples
    size_t frame_bytes;
    uint8_t *window;  // [frames, height, width, 3]: samples [first, first + held)
    int64_t first, held;
    uint8_t *frame, *ahead;  // the frame on show, and the one after it
    double frame_time, ahead_time, frame_length;
    bool ended;  // no frame after the one on show
    int64_t clips, damaged;
};

// Reads the frame after the one ahead. At the end the last frame stays on show for as long as the one before it.
static int read_ahead(ts_clip_reader *r) {
    const int status = ts_video_reader_next(r->video, r->ahead, &r->ahead_time);
    if (status == TS_EOF) {
        r->ended = true;
        return TS_OK;
    }
    if (!status && r->ahead_time > r->frame_time) {
        r->frame_length = r->ahead_time - r->frame_time;
    }
    return status;
}

static int start(ts_clip_reader *r, double duration) {
    const ts_clip_params *p = &r->params;
    TS_TRY(ts_video_reader_open(&r->video, r->path, &p->limits));
    r->info = ts_video_reader_info(r->video);
    r->bucket = ts_bucket_choose(p->buckets, p->bucket_count, p->fps, r->info.width, r->info.height,
                                 duration > 0           ? duration
                                 : r->info.duration > 0 ? r->info.duration
                                                        : INFINITY);
    if (r->bucket < 0) {
        return TS_OK;
    }
    const ts_bucket *b = &p->buckets[r->bucket];
    TS_TRY(ts_video_reader_set_output(r->video, b->width, b->height));
    r->frames = b->frames;
    r->stride = p->stride > 0 ? (int64_t)fmax(1, round(p->stride * p->fps)) : b->frames;
    r->frame_bytes = (size_t)(b->height * b->width * 3);
    r->window = ts_aligned_alloc(r->frame_bytes * (size_t)r->frames);
    r->frame = ts_malloc(r->frame_bytes);
    r->ahead = ts_malloc(r->frame_bytes);
    if (!r->window || !r->frame || !r->ahead) {
        return TS_ERESOURCE;
    }
    // The first frame: shown until the second. A file of one frame shows it for as long as its header says.
    const int status = ts_video_reader_next(r->video, r->frame, &r->frame_time);
    if (status) {
        return status == TS_EOF ? TS_FAIL(TS_EINPUT, "%s: no frame could be decoded", r->path) : status;
    }
    r->frame_length = r->info.fps > 0 ? 1 / r->info.fps : r->info.duration;
    return read_ahead(r);
}

static void stop(ts_clip_reader *r) {
    if (r->video) {
        r->damaged = ts_video_reader_damaged(r->video);
    }
    ts_video_reader_close(&r->video);
    free(r->window);
    free(r->frame);
    free(r->ahead);
    r->window = r->frame = r->ahead = NULL;
    r->first = r->held = 0;
    r->ended = false;
}

int ts_clip_reader_open(ts_clip_reader **out, const char *path, const ts_clip_params *params) {
    *out = NULL;
    ts_clip_reader *r = ts_calloc(1, sizeof *r);
    if (!r) {
        return TS_ERESOURCE;
    }
    r->params = *params;
    snprintf(r->path, sizeof r->path, "%s", path);
    const int status =
        strlen(path) < sizeof r->path ? start(r, 0) : TS_FAIL(TS_EINPUT, "%.60s...: the path is too long", path);
    if (status) {
        ts_clip_reader_close(&r);
        return status;
    }
    *out = r;
    return TS_OK;
}

void ts_clip_reader_close(ts_clip_reader **reader) {
    if (*reader) {
        stop(*reader);
        free(*reader);
        *reader = NULL;
    }
}

// Puts sample `n` on show. TS_EOF when the video is over by then.
static int show(ts_clip_reader *r, int64_t n) {
    const double time = (double)n / r->params.fps;
    while (!r->ended && r->ahead_time <= time + SLACK) {
        uint8_t *shown = r->frame;
        r->frame = r->ahead;
        r->ahead = shown;
        r->frame_time = r->ahead_time;
        TS_TRY(read_ahead(r));
    }
    if (n >= r->params.limits.max_frames) {
        return TS_FAIL(TS_EINPUT, "%s: more than %" PRId64 " samples at %g a second; cut the file", r->path,
                       r->params.limits.max_frames, r->params.fps);
    }
    return r->ended && time > r->frame_time + r->frame_length - SLACK ? TS_EOF : TS_OK;
}

// Fills the window with the samples of the next clip.
static int fill_window(ts_clip_reader *r) {
    if (r->clips > 0) {  // move on by one stride; what is still of use stays
        const int64_t kept = r->stride < r->frames ? r->frames - r->stride : 0;
        memmove(r->window, r->window + (size_t)(r->frames - kept) * r->frame_bytes, (size_t)kept * r->frame_bytes);
        r->first += r->stride;
        r->held = kept;
    }
    for (; r->held < r->frames; r->held++) {
        TS_TRY(show(r, r->first + r->held));
        memcpy(r->window + (size_t)r->held * r->frame_bytes, r->frame, r->frame_bytes);
    }
    return TS_OK;
}

int ts_clip_reader_next(ts_clip_reader *r, ts_clip *out) {
    if (r->bucket < 0) {
        return TS_EOF;
    }
    int status = fill_window(r);
    if (status == TS_EOF && r->clips == 0) {
        // The header promised more than there is: choose again by what was seen. The end comes earlier each time.
        const double seen = r->frame_time + r->frame_length;
        const int64_t wanted = r->frames;
        stop(r);
        TS_TRY(start(r, seen));
        if (r->bucket < 0 || r->frames >= wanted) {
            r->bucket = -1;
            return TS_EOF;
        }
        return ts_clip_reader_next(r, out);
    }
    TS_TRY(status);
    *out = (ts_clip){.index = r->clips++,
                     .start = (double)r->first / r->params.fps,
                     .end = (double)(r->first + r->frames) / r->params.fps,
                     .pixels = r->window};
    return TS_OK;
}

int ts_clip_reader_bucket(const ts_clip_reader *reader) {
    return reader->bucket;
}

int64_t ts_clip_reader_clips(const ts_clip_reader *r) {
    const double samples = r->info.duration * r->params.fps;
    if (r->bucket < 0 || samples < (double)r->frames) {
        return r->bucket >= 0;
    }
    return 1 + (int64_t)fmin((samples - (double)r->frames) / (double)r->stride, 1e9);
}

int64_t ts_clip_reader_damaged(const ts_clip_reader *r) {
    return r->video ? ts_video_reader_damaged(r->video) : r->damaged;
}
