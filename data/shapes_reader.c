// SPDX-License-Identifier: Apache-2.0
#include "data/shapes_reader.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/media/video.h"

static const double LEAST_CONTRAST = 20;  // of an object that counts as found, in units of 1/255

// ---- one frame

// What the pixels of a frame are measured against.
typedef struct contrast {
    double background[3];
    double object;  // distance of the object's inside from the background
} contrast;

// The middle value of one channel: the object covers less than half of the frame, so this is background.
static int channel_median(const uint8_t *rgb, int64_t pixels, int channel) {
    int64_t histogram[256] = {0}, below = 0;
    for (int64_t i = 0; i < pixels; i++) {
        histogram[rgb[3 * i + channel]]++;
    }
    for (int v = 0; v < 256; v++) {
        below += histogram[v];
        if (2 * below >= pixels) {
            return v;
        }
    }
    return 255;
}

static double distance(const uint8_t *pixel, const double rgb[3]) {
    double most = 0;
    for (int c = 0; c < 3; c++) {
        most = fmax(most, fabs(pixel[c] - rgb[c]));
    }
    return most;
}

// The distance from the background that only the inside of the object reaches is its 99th percentile.
static contrast measure_contrast(const uint8_t *rgb, int64_t pixels) {
    contrast out = {0};
    for (int c = 0; c < 3; c++) {
        out.background[c] = channel_median(rgb, pixels, c);
    }
    int64_t histogram[256] = {0}, above = 0;
    for (int64_t i = 0; i < pixels; i++) {
        histogram[(int)distance(rgb + 3 * i, out.background)]++;
    }
    for (int v = 255; v >= 0 && out.object == 0; v--) {
        above += histogram[v];
        out.object = 100 * above >= pixels ? v : 0;
    }
    return out;
}

// How much of a pixel the object covers: how far its colour is on the way from background to object.
static double coverage(const uint8_t *pixel, const contrast *k) {
    const double share = distance(pixel, k->background) / k->object;
    return share < 0.25 ? 0 : fmin(share, 1);
}

static int nearest(const ts_shapes_colour *paints, int count, const double rgb[3]) {
    int best = 0;
    double least = INFINITY;
    for (int i = 0; i < count; i++) {
        double d = 0;
        for (int c = 0; c < 3; c++) {
            const double difference = rgb[c] - paints[i].rgb[c];
            d += difference * difference;
        }
        if (d < least) {
            least = d;
            best = i;
        }
    }
    return best;
}

// From the pixels that are all object.
static int read_colour(const uint8_t *rgb, int64_t pixels, const contrast *k) {
    double sum[3] = {0}, count = 0;
    for (int64_t i = 0; i < pixels; i++) {
        if (distance(rgb + 3 * i, k->background) >= 0.85 * k->object) {
            for (int c = 0; c < 3; c++) {
                sum[c] += rgb[3 * i + c];
            }
            count += 1;
        }
    }
    const double mean[3] = {sum[0] / count, sum[1] / count, sum[2] / count};
    return nearest(ts_shapes_colours, TS_SHAPES_COLOURS, mean);
}

// The shorter way round a circle of `size`: in [-size / 2, size / 2].
static double shorter(double way, double size) {
    return way - size * round(way / size);
}

static double wrap(double at, double size) {
    const double rest = at - size * floor(at / size);
    return rest < size ? rest : 0;  // a rounding below 0 gives size itself
}

// Mean place on a circle of `size` of weights [size] at i + 0.5. The circular mean, the direction of the sum of the
// unit vectors, says near which place the object is whole; the plain mean of the offsets from there is its centroid.
static double circular_centroid(const double *weight, int64_t size) {
    double c = 0, s = 0, total = 0, offset = 0;
    for (int64_t i = 0; i < size; i++) {
        const double angle = 2 * M_PI * ((double)i + 0.5) / (double)size;
        c += weight[i] * cos(angle);
        s += weight[i] * sin(angle);
        total += weight[i];
    }
    const double about = atan2(s, c) / (2 * M_PI) * (double)size;
    for (int64_t i = 0; i < size; i++) {
        offset += weight[i] * shorter((double)i + 0.5 - about, (double)size);
    }
    return wrap(about + offset / total, (double)size);
}

// Coverage summed over rows and columns: profile [width + height], columns first.
static void read_place(const uint8_t *rgb, int64_t height, int64_t width, const contrast *k, double *profile,
                       ts_shapes_frame *out) {
    memset(profile, 0, (size_t)(width + height) * sizeof *profile);
    for (int64_t i = 0; i < height * width; i++) {
        const double a = coverage(rgb + 3 * i, k);
        profile[i % width] += a;
        profile[width + i / width] += a;
        out->area += a;
    }
    out->x = circular_centroid(profile, width);
    out->y = circular_centroid(profile + width, height);
}

static ts_shapes_frame read_frame(const uint8_t *rgb, int64_t height, int64_t width, double *profile) {
    const contrast k = measure_contrast(rgb, height * width);
    ts_shapes_frame out = {.found = k.object >= LEAST_CONTRAST,
                           .background = nearest(ts_shapes_backgrounds, TS_SHAPES_BACKGROUNDS, k.background)};
    if (out.found) {
        out.colour = read_colour(rgb, height * width, &k);
        read_place(rgb, height, width, &k, profile, &out);
    }
    return out;
}

// ---- motion

int ts_shapes_read_frames(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width, ts_shapes_frame *out) {
    double *profile = ts_malloc((size_t)(width + height) * sizeof *profile);
    if (!profile) {
        return TS_ERESOURCE;
    }
    double way_x = 0, way_y = 0;
    const ts_shapes_frame *last = NULL;  // that was found
    for (int64_t t = 0; t < frames; t++) {
        out[t] = read_frame(rgb + 3 * t * height * width, height, width, profile);
        if (out[t].found && last) {
            way_x += shorter(out[t].x - last->x, (double)width);
            way_y += shorter(out[t].y - last->y, (double)height);
        }
        out[t].way_x = way_x;
        out[t].way_y = way_y;
        last = out[t].found ? &out[t] : last;
    }
    free(profile);
    return TS_OK;
}

void ts_shapes_velocity(const ts_shapes_frame *frame, int64_t first, int64_t end, double *vx, double *vy) {
    double n = 0, st = 0, stt = 0, sx = 0, sy = 0, stx = 0, sty = 0;
    for (int64_t i = first; i < end; i++) {
        if (frame[i].found) {
            const double t = (double)(i - first);
            n += 1;
            st += t;
            stt += t * t;
            sx += frame[i].way_x;
            sy += frame[i].way_y;
            stx += t * frame[i].way_x;
            sty += t * frame[i].way_y;
        }
    }
    const double spread = n * stt - st * st;
    *vx = spread > 0 ? (n * stx - st * sx) / spread : 0;
    *vy = spread > 0 ? (n * sty - st * sy) / spread : 0;
}

int ts_shapes_direction_of(double vx, double vy) {
    int best = 0;
    for (int i = 1; i < TS_SHAPES_DIRECTIONS; i++) {
        const ts_shapes_direction *a = &ts_shapes_directions[i], *b = &ts_shapes_directions[best];
        best = a->dx * vx + a->dy * vy > b->dx * vx + b->dy * vy ? i : best;
    }
    return best;
}

// ---- shape

enum { CIRCLE, SQUARE, TRIANGLE };  // order of ts_shapes_shapes

// The shape of this area and centroid, drawn as the world draws it, white on black.
static void draw_template(int shape, const ts_shapes_frame *seen, int64_t height, int64_t width, uint8_t *rgb) {
    static const double area_of_unit[] = {[CIRCLE] = M_PI, [SQUARE] = 1.76 * 1.76, [TRIANGLE] = 1.8};
    const double radius = sqrt(seen->area / area_of_unit[shape]);
    const ts_shapes_factors factors = {
        .colour = TS_SHAPES_COLOURS - 1,
        .shape = shape,
        .radius = radius,
        .x = seen->x,
        .y = seen->y - (shape == TRIANGLE ? 0.2 * radius : 0),  // its centroid lies below its centre
    };
    ts_world_shapes_render(&factors, width, height, 1, rgb);
}

// Common over joint coverage of a frame and a template: 1 when they are the same. A soft edge costs all shapes alike.
static double overlap(const uint8_t *rgb, const uint8_t *template, int64_t pixels, const contrast *k) {
    const double dark = ts_shapes_backgrounds[0].rgb[0], bright = ts_shapes_colours[TS_SHAPES_COLOURS - 1].rgb[0];
    double common = 0, joint = 0;
    for (int64_t i = 0; i < pixels; i++) {
        const double a = coverage(rgb + 3 * i, k), b = (template[3 * i] - dark) / (bright - dark);
        common += fmin(a, b);
        joint += fmax(a, b);
    }
    return joint > 0 ? common / joint : 0;
}

// The shape whose templates overlap the frames best.
static int read_shape(const uint8_t *rgb, const ts_shapes_frame *frame, int64_t frames, int64_t height, int64_t width,
                      ts_shapes_reading *out) {
    const int64_t pixels = height * width;
    uint8_t *template = ts_malloc((size_t)pixels * 3);
    if (!template) {
        return TS_ERESOURCE;
    }
    for (int64_t t = 0; t < frames; t++) {
        const contrast k = measure_contrast(rgb + 3 * t * pixels, pixels);
        for (int shape = 0; frame[t].found && shape < TS_SHAPES_SHAPES; shape++) {
            draw_template(shape, &frame[t], height, width, template);
            out->fit[shape] += overlap(rgb + 3 * t * pixels, template, pixels, &k) / (double)frames;
        }
    }
    free(template);
    for (int shape = 0; shape < TS_SHAPES_SHAPES; shape++) {
        out->shape = out->fit[shape] > out->fit[out->shape] ? shape : out->shape;
    }
    return TS_OK;
}

// ---- a video

static int most(const int64_t *votes, int count) {
    int best = 0;
    for (int i = 1; i < count; i++) {
        best = votes[i] > votes[best] ? i : best;
    }
    return best;
}

int ts_shapes_read(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width, ts_shapes_reading *out) {
    *out = (ts_shapes_reading){0};
    ts_shapes_frame *frame = ts_calloc((size_t)frames, sizeof *frame);
    int status = frame ? ts_shapes_read_frames(rgb, frames, height, width, frame) : TS_ERESOURCE;
    if (!status) {
        int64_t colours[TS_SHAPES_COLOURS] = {0}, backgrounds[TS_SHAPES_BACKGROUNDS] = {0};
        for (int64_t t = 0; t < frames; t++) {
            out->found = out->found || frame[t].found;
            colours[frame[t].colour] += frame[t].found;
            backgrounds[frame[t].background]++;
        }
        out->colour = most(colours, TS_SHAPES_COLOURS);
        out->background = most(backgrounds, TS_SHAPES_BACKGROUNDS);
        ts_shapes_velocity(frame, 0, frames, &out->vx, &out->vy);
        out->speed = hypot(out->vx, out->vy);
        out->direction = ts_shapes_direction_of(out->vx, out->vy);
        status = read_shape(rgb, frame, frames, height, width, out);
    }
    free(frame);
    return status;
}

enum { MAX_FRAMES = 4096 };

// All frames of a file: *rgb [*frames, height, width, 3], to be freed, also after an error.
static int read_pixels(ts_video_reader *reader, const char *path, int64_t frame_bytes, uint8_t **rgb, int64_t *frames) {
    for (int64_t capacity = 0;;) {
        if (*frames == capacity) {
            capacity = capacity ? 2 * capacity : 32;
            uint8_t *grown = realloc(*rgb, (size_t)(capacity * frame_bytes));
            if (!grown) {
                return TS_FAIL(TS_ERESOURCE, "%s: out of memory at frame %lld", path, (long long)*frames);
            }
            *rgb = grown;
        }
        double time;
        const int status = ts_video_reader_next(reader, *rgb + *frames * frame_bytes, &time);
        if (status) {
            return status == TS_EOF ? TS_OK : status;
        }
        if (++*frames > MAX_FRAMES) {
            return TS_FAIL(TS_EINPUT, "%s: has more than %d frames; cut it", path, MAX_FRAMES);
        }
    }
}

int ts_shapes_read_file(const char *path, ts_shapes_reading *out) {
    const ts_video_limits limits = ts_video_limits_default();
    ts_video_reader *reader = NULL;
    TS_TRY(ts_video_reader_open(&reader, path, &limits));
    const ts_video_info info = ts_video_reader_info(reader);
    uint8_t *rgb = NULL;
    int64_t frames = 0;
    int status = read_pixels(reader, path, info.width * info.height * 3, &rgb, &frames);
    if (!status && frames < 2) {
        status = TS_FAIL(TS_EINPUT, "%s: %lld frames; motion needs two", path, (long long)frames);
    }
    status = status ? status : ts_shapes_read(rgb, frames, info.height, info.width, out);
    free(rgb);
    ts_video_reader_close(&reader);
    return status;
}

// ---- captions

bool ts_shapes_parse_caption(const char *caption, ts_shapes_factors *out) {
    ts_shapes_factors f = {0};
    char made[256];
    for (f.colour = 0; f.colour < TS_SHAPES_COLOURS; f.colour++) {
        for (f.shape = 0; f.shape < TS_SHAPES_SHAPES; f.shape++) {
            for (f.direction = 0; f.direction < TS_SHAPES_DIRECTIONS; f.direction++) {
                for (f.background = 0; f.background < TS_SHAPES_BACKGROUNDS; f.background++) {
                    if (strcmp(ts_shapes_caption(&f, made, sizeof made), caption) == 0) {
                        *out = f;
                        return true;
                    }
                }
            }
        }
    }
    return false;
}
