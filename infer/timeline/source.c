// SPDX-License-Identifier: Apache-2.0
#include "infer/timeline/source.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/media/image.h"
#include "core/media/resize.h"
#include "core/media/video.h"

// Shares of a frame of the file: nearer than this is the frame itself; files whose time stamps are milliseconds are off
// by less. And how far before the end of the last frame it has ended.
static const double SAME = 0.05, END = 1e-3;

struct ts_source {
    ts_video_reader *reader;  // NULL: a picture
    int64_t height, width;
    int channels;
    double first_time, step_time;
    int64_t next;                                // number of the next frame
    uint8_t *shown;                              // RGB of the frame at shown_time; of a picture with its channels
    uint8_t *following;                          // of the one after it
    uint8_t *mixed;                              // a mean of both
    double shown_time, following_time, spacing;  // seconds; spacing: to the following frame
    bool last;                                   // there is no following one
};

// ---- pictures

// A file that is not there, or no file, is left to the reader of videos, which says so.
static bool is_picture(const char *path) {
    struct stat about;
    uint8_t head[4] = {0};
    if (stat(path, &about) || !S_ISREG(about.st_mode)) {
        return false;
    }
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    const bool whole = read(fd, head, sizeof head) == (ssize_t)sizeof head;
    close(fd);
    return whole && (memcmp(head, "\x89PNG", 4) == 0 || memcmp(head, "\xff\xd8\xff", 3) == 0);
}

static int read_picture(const char *path, int channels, uint8_t **pixels, int64_t *height, int64_t *width) {
    return channels == 1 ? ts_image_read_grey(path, pixels, height, width) : ts_image_read(path, pixels, height, width);
}

static int open_picture(ts_source *s, const char *path) {
    uint8_t *pixels;
    int64_t height, width;
    TS_TRY(read_picture(path, s->channels, &pixels, &height, &width));
    const int status = ts_resize_cover(pixels, height, width, s->channels, s->shown, s->height, s->width);
    free(pixels);
    return status;
}

// ---- videos

// Decodes the frame after the one that is shown.
static int look_ahead(ts_source *s) {
    const int status = ts_video_reader_next(s->reader, s->following, &s->following_time);
    s->last = status == TS_EOF;
    if (!status) {
        s->spacing = s->following_time - s->shown_time;
    }
    return s->last ? TS_OK : status;
}

static int open_video(ts_source *s, const char *path) {
    TS_TRY(ts_video_reader_open(&s->reader, path, NULL));
    TS_TRY(ts_video_reader_set_output(s->reader, s->width, s->height));
    TS_TRY(ts_video_reader_next(s->reader, s->shown, &s->shown_time));
    const double fps = ts_video_reader_info(s->reader).fps;
    s->spacing = fps > 0 ? 1 / fps : 0;
    TS_TRY(look_ahead(s));
    return TS_OK;
}

static int advance(ts_source *s, double time) {
    while (!s->last && s->following_time <= time) {
        uint8_t *old = s->shown;
        s->shown = s->following;
        s->shown_time = s->following_time;
        s->following = old;
        TS_TRY(look_ahead(s));
    }
    return TS_OK;
}

// The share of the following frame in what is seen at `time`.
static double following_share(const ts_source *s, double time) {
    if (s->last || time <= s->shown_time) {
        return 0;
    }
    const double share = (time - s->shown_time) / s->spacing;
    if (s->spacing <= s->step_time * (1 + END)) {
        return share < 0.5 ? 0 : 1;
    }
    return share < SAME ? 0 : share > 1 - SAME ? 1 : share;
}

static void mean_frame(const ts_source *s, double share, uint8_t *rgb) {
    for (int64_t i = 0; i < s->height * s->width * 3; i++) {
        rgb[i] = (uint8_t)lround((1 - share) * s->shown[i] + share * s->following[i]);
    }
}

static void brightness_frame(const uint8_t *rgb, int64_t count, uint8_t *grey) {
    for (int64_t i = 0; i < count; i++) {
        grey[i] = ts_image_brightness(rgb + i * 3);
    }
}

// pixels [height, width, channels].
static void write_frame(const ts_source *s, double share, uint8_t *pixels) {
    const int64_t count = s->height * s->width;
    const uint8_t *rgb = share > 0.5 ? s->following : s->shown;
    if (share > 0 && share < 1) {
        mean_frame(s, share, s->mixed);
        rgb = s->mixed;
    }
    if (s->channels == 1) {
        brightness_frame(rgb, count, pixels);
    } else {
        memcpy(pixels, rgb, (size_t)(count * 3));
    }
}

static int next_of_video(ts_source *s, uint8_t *pixels) {
    const double time = s->first_time + (double)s->next * s->step_time;
    TS_TRY(advance(s, time));
    if (s->last && time >= s->shown_time + s->spacing * (1 - END) && time > s->shown_time) {
        return TS_EOF;
    }
    write_frame(s, following_share(s, time), pixels);
    s->next++;
    return TS_OK;
}

// ---- both

int ts_source_open(ts_source **out, const char *path, double first_time, double step_time, int64_t height,
                   int64_t width, int channels) {
    *out = NULL;
    TS_ASSERT(first_time >= 0 && step_time >= 0 && (channels == 1 || channels == 3));
    ts_source *s = ts_calloc(1, sizeof *s);
    if (!s) {
        return TS_ERESOURCE;
    }
    s->height = height;
    s->width = width;
    s->channels = channels;
    s->first_time = first_time;
    s->step_time = step_time;
    const size_t bytes = (size_t)(height * width * 3);
    s->shown = ts_malloc(bytes);
    s->following = ts_malloc(bytes);
    s->mixed = ts_malloc(bytes);
    const int status = !s->shown || !s->following || !s->mixed ? TS_ERESOURCE
                       : is_picture(path)                      ? open_picture(s, path)
                                                               : open_video(s, path);
    if (status) {
        ts_source_close(&s);
        return status;
    }
    *out = s;
    return TS_OK;
}

int ts_source_next(ts_source *s, uint8_t *pixels) {
    if (s->reader) {
        return next_of_video(s, pixels);
    }
    memcpy(pixels, s->shown, (size_t)(s->height * s->width * s->channels));
    return TS_OK;
}

void ts_source_close(ts_source **source) {
    ts_source *s = *source;
    if (!s) {
        return;
    }
    ts_video_reader_close(&s->reader);
    free(s->shown);
    free(s->following);
    free(s->mixed);
    free(s);
    *source = NULL;
}

int ts_source_describe(ts_source_info *out, const char *path) {
    *out = (ts_source_info){0};
    if (is_picture(path)) {
        uint8_t *pixels;
        TS_TRY(ts_image_read(path, &pixels, &out->height, &out->width));
        free(pixels);
        out->picture = true;
        out->frames = 1;
        return TS_OK;
    }
    ts_video_reader *reader;
    TS_TRY(ts_video_reader_open(&reader, path, NULL));
    const ts_video_info info = ts_video_reader_info(reader);
    ts_video_reader_close(&reader);
    *out = (ts_source_info){
        .width = info.width, .height = info.height, .frames = info.frames, .fps = info.fps, .duration = info.duration};
    return TS_OK;
}
