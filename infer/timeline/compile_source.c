// SPDX-License-Identifier: Apache-2.0
// The latents of a track entry. Footage is read forward, a latent frame's pixel frames at a time, and encoded as the
// codec encodes a whole clip: canvas frame 0 as a first frame, all others as groups. Saved latents are taken as they
// are.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/store/safetensors.h"
#include "infer/timeline/compile_private.h"
#include "infer/timeline/source.h"

struct ts_track_source {
    ts_track_job *job;
    int64_t done;    // latent frames that have come
    float *latent;   // [H, W, C] of the last one
    bool backward;   // played backwards: the file's first frames are the span's last
    bool ended;      // the file has
    int64_t wanted;  // pixel frames of the span, from its beginning, that do not lie before the file's
    ts_source *footage;
    int64_t height, width;  // pixels
    uint8_t *pixels;        // [time_factor, height, width, 3]
    ts_safetensors *saved;  // of latents
    const ts_safetensors_entry *numbers;
    int64_t first, frames;  // of the saved latents: that of the span's beginning, and how many there are
    float *group;           // [H, W, C]
    bool head;              // canvas frame 0 is made of the last pixel frame of a group
};

// ---- footage

static int64_t pixel_frame(const ts_track_source *s, int64_t t) {
    return ts_compile_pixel_frame(s->job->canvas, s->job->time_factor, t);
}

// What a reader should know of how the file was fitted.
static void note_fit(const ts_track_source *s, const ts_source_info *info) {
    ts_track_job *job = s->job;
    if (info->fps > 0 && fabs(info->fps / job->timeline->fps - 1) > 0.005) {
        ts_note_add(&job->note, "%.4g frames a second are taken at %.4g", info->fps, job->timeline->fps);
    }
    ts_note_crop(&job->note, "", info, s->width, s->height);
}

// Seconds into the file at which the span begins; backwards: at which the frame before its first one ends.
static int parse_from(const ts_track_source *s, const ts_source_info *info, double *from) {
    const ts_track_job *job = s->job;
    const double fps = info->fps > 0 ? info->fps : job->timeline->fps;
    const int64_t frames = info->frames > 0 ? info->frames : llround(fmin(info->duration * fps, 1e12));
    double frame = 0;
    if (job->entry->from) {
        TS_TRY(ts_time_parse(&frame, job->entry->from, fps, frames, "from"));
    }
    *from = frame / fps;
    return *from >= 0
               ? TS_OK
               : TS_FAIL(TS_EUSAGE, "from %s lies before the beginning of %s", job->entry->from, job->entry->file);
}

static int open_times(ts_track_source *s, const ts_source_info *info) {
    static const double ROUNDING = 1e-6;
    const ts_track_job *job = s->job;
    double from;
    TS_TRY(parse_from(s, info, &from));
    const double step = fabs(job->entry->speed) / job->timeline->fps;
    const int64_t frames = pixel_frame(s, job->span.end) - pixel_frame(s, job->span.first);
    double earliest = from;
    s->backward = job->entry->speed < 0 && !info->picture;
    s->wanted = frames;
    if (s->backward) {
        const double whole = floor((from + ROUNDING) / step);  // frames between the file's beginning and `from`
        s->wanted = whole < (double)frames ? (int64_t)whole : frames;
        earliest = fmax(from - (double)s->wanted * step, 0);
    }
    return ts_source_open(&s->footage, job->entry->file, earliest, step, s->height, s->width, 3);
}

static int open_footage(ts_track_source *s) {
    const ts_track_job *job = s->job;
    ts_source_info info;
    TS_TRY(ts_source_describe(&info, job->entry->file));
    if (job->entry->source == TS_SOURCE_IMAGE && !info.picture) {
        return TS_FAIL(TS_EINPUT, "%s: is a video; say source: video", job->entry->file);
    }
    s->height = job->canvas->height * job->space_factor;
    s->width = job->canvas->width * job->space_factor;
    s->pixels = ts_malloc((size_t)(job->time_factor * s->height * s->width * 3));
    if (!s->pixels) {
        return TS_ERESOURCE;
    }
    note_fit(s, &info);
    return open_times(s, &info);
}

// Pixel frame i of the span; *there is whether the file has it. To be called in the order of the file.
static int fetch(ts_track_source *s, int64_t i, uint8_t *pixels, bool *there) {
    *there = false;
    if (i >= s->wanted || s->ended) {
        return TS_OK;
    }
    const int status = ts_source_next(s->footage, pixels);
    s->ended = status == TS_EOF;
    *there = !status;
    return s->ended ? TS_OK : status;
}

// Pixels of latent frame t. *there: whether the file has half of its frames at least; those that are missing are then
// what is next to them.
static int fetch_group(ts_track_source *s, int64_t t, bool *there) {
    const int64_t first = pixel_frame(s, t), count = pixel_frame(s, t + 1) - first;
    const int64_t bytes = s->height * s->width * 3;
    int64_t low = count, high = 0;  // what there is
    for (int64_t k = 0; k < count; k++) {
        const int64_t i = s->backward ? count - 1 - k : k;
        bool had;
        TS_TRY(fetch(s, first - pixel_frame(s, s->job->span.first) + i, s->pixels + i * bytes, &had));
        low = had && i < low ? i : low;
        high = had && i >= high ? i + 1 : high;
    }
    *there = (high - low) * 2 >= count;
    for (int64_t i = 0; i < count && *there; i++) {
        const int64_t nearest = i < low ? low : i >= high ? high - 1 : i;
        if (nearest != i) {
            memcpy(s->pixels + i * bytes, s->pixels + nearest * bytes, (size_t)bytes);
        }
    }
    if (*there && high - low < count) {
        const int64_t lacking = count - (high - low);
        ts_note_add(&s->job->note, "%lld frame%s short: the nearest one stays", (long long)lacking,
                    lacking > 1 ? "s" : "");
    }
    return TS_OK;
}

static int next_footage(ts_track_source *s, int64_t t, const float **latent) {
    bool there;
    TS_TRY(fetch_group(s, t, &there));
    if (!there) {
        return TS_OK;
    }
    const ts_track_job *job = s->job;
    *latent = s->latent;
    return t == 0 && !job->canvas->loop
               ? ts_codec_encode(job->codec, s->pixels, 1, s->height, s->width, s->latent)
               : ts_codec_encode_groups(job->codec, s->pixels, 1, s->height, s->width, s->latent);
}

// ---- saved latents

static int check_saved(const ts_track_source *s) {
    const ts_canvas *c = s->job->canvas;
    const char *path = s->job->entry->file;
    if (!s->numbers || s->numbers->shape.ndim != 4) {
        return TS_FAIL(TS_EINPUT,
                       "%s: no tensor 'latents' [frames, height, width, channels]; give a file of "
                       "--save-latents",
                       path);
    }
    const int64_t *dim = s->numbers->shape.dim;
    if (dim[1] != c->height || dim[2] != c->width || dim[3] != c->channels) {
        return TS_FAIL(TS_EINPUT,
                       "%s: latents of %lldx%lld with %lld channels, wanted %lldx%lld with %lld; make both of one size "
                       "and model",
                       path, (long long)dim[2], (long long)dim[1], (long long)dim[3], (long long)c->width,
                       (long long)c->height, (long long)c->channels);
    }
    return TS_OK;
}

// Latents mean nothing to another codec than the one that made them; a file need not say which that was.
static int check_codec(const ts_track_source *s) {
    const char *made = ts_safetensors_metadata(s->saved, "codec");
    char own[20];
    snprintf(own, sizeof own, "%016llx", (unsigned long long)ts_codec_get_info(s->job->codec).fingerprint);
    return !made || strcmp(made, own) == 0
               ? TS_OK
               : TS_FAIL(TS_EINPUT,
                         "%s: latents of codec %.20s, and the model's is %s; make them with this model, or "
                         "give the video",
                         s->job->entry->file, made, own);
}

// Which saved frame the span begins with. Frame 0 of a file that is no loop is a first frame, which stands for one
// pixel frame; it has its place at the beginning of the result alone.
static int place_saved(ts_track_source *s) {
    ts_track_job *job = s->job;
    const int64_t factor = job->time_factor;
    const char *loop = ts_safetensors_metadata(s->saved, "loop");
    const bool circular = loop && strcmp(loop, "true") == 0, begins = job->span.first == 0 && !job->canvas->loop;
    const int64_t early = circular ? 0 : factor - 1;  // pixel frames that frame 0 lacks
    double from = 0;
    if (job->entry->from) {
        TS_TRY(ts_time_parse(&from, job->entry->from, job->timeline->fps, s->frames * factor - early, "from"));
    }
    if (begins && !circular && from < 0.5) {
        return TS_OK;
    }
    s->head = begins;
    // A head is the last pixel frame of its group; otherwise the first one stands where the span begins.
    const double nearest = (from + (double)early - (begins ? (double)(factor - 1) : 0)) / (double)factor;
    s->first = (int64_t)fmin(fmax(round(nearest), circular ? 0 : 1), 1e12);
    const int64_t frame = s->first * factor - early + (begins ? factor - 1 : 0);
    if (fabs(from - (double)frame) > 0.01) {
        ts_note_add(&job->note, "taken from its frame %lld on: groups of %lld stay whole", (long long)frame,
                    (long long)factor);
    }
    return TS_OK;
}

static int open_saved(ts_track_source *s) {
    const ts_track_job *job = s->job;
    TS_TRY(ts_safetensors_open(&s->saved, job->entry->file));
    s->numbers = ts_safetensors_find(s->saved, "latents");
    TS_TRY(check_saved(s));
    TS_TRY(check_codec(s));
    s->frames = s->numbers->shape.dim[0];
    s->group = ts_malloc((size_t)(job->canvas->height * job->canvas->width * job->canvas->channels) * sizeof *s->group);
    return s->group ? place_saved(s) : TS_ERESOURCE;
}

static int read_saved(const ts_track_source *s, int64_t frame, float *out) {
    const ts_canvas *c = s->job->canvas;
    const int64_t count = c->height * c->width * c->channels;
    TS_TRY(ts_safetensors_read(s->saved, s->numbers, frame * count, count, out, TS_F32));
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(out[i])) {
            return TS_FAIL(TS_EINPUT, "%s: latent frame %lld holds numbers that are not finite; make it again",
                           s->job->entry->file, (long long)frame);
        }
    }
    return TS_OK;
}

static int next_saved(ts_track_source *s, int64_t t, const float **latent) {
    const ts_canvas *c = s->job->canvas;
    const int64_t frame = s->first + t - s->job->span.first;
    if (frame >= s->frames) {
        return TS_OK;
    }
    *latent = s->latent;
    if (s->head && t == 0) {
        TS_TRY(read_saved(s, frame, s->group));
        return ts_codec_first_of(s->job->codec, s->group, 1, c->height, c->width, s->latent);
    }
    return read_saved(s, frame, s->latent);
}

// ---- both

int ts_track_source_open(ts_track_source **out, ts_track_job *job) {
    *out = NULL;
    ts_track_source *s = ts_calloc(1, sizeof *s);
    if (!s) {
        return TS_ERESOURCE;
    }
    s->job = job;
    s->latent =
        ts_malloc((size_t)(job->canvas->height * job->canvas->width * job->canvas->channels) * sizeof *s->latent);
    const int status = !s->latent                               ? TS_ERESOURCE
                       : job->entry->source == TS_SOURCE_LATENT ? open_saved(s)
                                                                : open_footage(s);
    if (status) {
        ts_track_source_close(&s);
        return status;
    }
    *out = s;
    return TS_OK;
}

int ts_track_source_next(ts_track_source *s, int64_t *t, const float **latent) {
    const ts_latent_span span = s->job->span;
    if (s->done == span.end - span.first) {
        return TS_EOF;
    }
    *t = s->backward ? span.end - 1 - s->done : span.first + s->done;
    *latent = NULL;
    s->done++;
    return s->footage ? next_footage(s, *t, latent) : next_saved(s, *t, latent);
}

void ts_track_source_close(ts_track_source **source) {
    ts_track_source *s = *source;
    if (!s) {
        return;
    }
    ts_source_close(&s->footage);
    ts_safetensors_close(&s->saved);
    free(s->latent);
    free(s->pixels);
    free(s->group);
    free(s);
    *source = NULL;
}
