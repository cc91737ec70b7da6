// SPDX-License-Identifier: Apache-2.0
#include "tests/shapes_reader.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/media/video.h"
#include "data/world.h"

// The middle value of one channel over all pixels of all frames: the object covers less than half, so this is
// background.
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

static int nearest(const ts_shapes_colour *paints, int count, const double rgb[3]) {
    int best = 0;
    double least = INFINITY;
    for (int i = 0; i < count; i++) {
        double d = 0.0;
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

static double distance(const uint8_t *pixel, const double rgb[3]) {
    double most = 0.0;
    for (int c = 0; c < 3; c++) {
        most = fmax(most, fabs(pixel[c] - rgb[c]));
    }
    return most;
}

// The distance from the background that only the inside of the object reaches: the 99th percentile over the clip.
static double object_contrast(const uint8_t *rgb, int64_t pixels, const double background[3]) {
    int64_t histogram[256] = {0}, above = 0;
    for (int64_t i = 0; i < pixels; i++) {
        histogram[(int)distance(rgb + 3 * i, background)]++;
    }
    for (int v = 255; v >= 0; v--) {
        above += histogram[v];
        if (100 * above >= pixels) {
            return v;
        }
    }
    return 0.0;
}

typedef struct frame_blob {
    double area, x, y;  // coverage in pixels, centroid
} frame_blob;

// Coverage of a pixel by the object, from how far its colour is on the way from background to object.
static double coverage(const uint8_t *pixel, const double background[3], double contrast) {
    const double share = distance(pixel, background) / contrast;
    return share < 0.25 ? 0.0 : fmin(share, 1.0);
}

static frame_blob find_blob(const uint8_t *rgb, int64_t height, int64_t width, const double background[3],
                            double contrast) {
    frame_blob blob = {0};
    for (int64_t y = 0; y < height; y++) {
        for (int64_t x = 0; x < width; x++) {
            const double a = coverage(rgb + 3 * (y * width + x), background, contrast);
            blob.area += a;
            blob.x += a * ((double)x + 0.5);
            blob.y += a * ((double)y + 0.5);
        }
    }
    if (blob.area > 0.0) {
        blob.x /= blob.area;
        blob.y /= blob.area;
    }
    return blob;
}

static void mean_colour(const uint8_t *rgb, int64_t pixels, const double background[3], double contrast,
                        double out[3]) {
    double sum[3] = {0}, count = 0.0;
    for (int64_t i = 0; i < pixels; i++) {
        if (distance(rgb + 3 * i, background) >= 0.85 * contrast) {
            for (int c = 0; c < 3; c++) {
                sum[c] += rgb[3 * i + c];
            }
            count += 1.0;
        }
    }
    for (int c = 0; c < 3; c++) {
        out[c] = count > 0.0 ? sum[c] / count : 0.0;
    }
}

// Displacement over the clip by least squares through the centroids, so that one odd frame does not decide.
static void measure_motion(const frame_blob *blobs, int64_t frames, shapes_reading *out) {
    double n = 0, st = 0, stt = 0, sx = 0, sy = 0, stx = 0, sty = 0;
    for (int64_t i = 0; i < frames; i++) {
        if (blobs[i].area < 4.0) {
            continue;
        }
        const double t = (double)i;
        n += 1;
        st += t;
        stt += t * t;
        sx += blobs[i].x;
        sy += blobs[i].y;
        stx += t * blobs[i].x;
        sty += t * blobs[i].y;
    }
    const double spread = n * stt - st * st;
    if (spread > 0.0) {
        out->moved_x = (n * stx - st * sx) / spread * (double)(frames - 1);
        out->moved_y = (n * sty - st * sy) / spread * (double)(frames - 1);
    }
    const bool horizontal = fabs(out->moved_x) >= fabs(out->moved_y);
    const int dx = !horizontal ? 0 : out->moved_x < 0 ? -1 : 1, dy = horizontal ? 0 : out->moved_y < 0 ? -1 : 1;
    for (int i = 0; i < TS_SHAPES_DIRECTIONS; i++) {
        if (ts_shapes_directions[i].dx == dx && ts_shapes_directions[i].dy == dy) {
            out->direction = i;
        }
    }
}

enum { CIRCLE, SQUARE, TRIANGLE };  // order of ts_shapes_shapes

// The shape of this area and centroid, drawn as the world draws it, white on black.
static void draw_template(int shape, const frame_blob *blob, int64_t height, int64_t width, uint8_t *rgb) {
    static const double area_of_unit[] = {[CIRCLE] = 3.14159265, [SQUARE] = 1.76 * 1.76, [TRIANGLE] = 1.8};
    const double radius = sqrt(blob->area / area_of_unit[shape]);
    const ts_shapes_factors factors = {
        .colour = TS_SHAPES_COLOURS - 1,
        .shape = shape,
        .radius = radius,
        .x = blob->x,
        .y = blob->y - (shape == TRIANGLE ? 0.2 * radius : 0.0),  // its centroid lies below its centre
    };
    ts_world_shapes_render(&factors, width, height, 1, rgb);
}

// Common over joint coverage of a frame and a template: 1 when they are the same. A soft edge costs all shapes alike.
static double overlap(const uint8_t *rgb, const uint8_t *template, int64_t pixels, const double background[3],
                      double contrast) {
    const double dark = ts_shapes_backgrounds[0].rgb[0], bright = ts_shapes_colours[TS_SHAPES_COLOURS - 1].rgb[0];
    double common = 0.0, joint = 0.0;
    for (int64_t i = 0; i < pixels; i++) {
        const double a = coverage(rgb + 3 * i, background, contrast), b = (template[3 * i] - dark) / (bright - dark);
        common += fmin(a, b);
        joint += fmax(a, b);
    }
    return joint > 0.0 ? common / joint : 0.0;
}

// The shape whose templates overlap the frames best.
static void measure_shape(const uint8_t *rgb, const frame_blob *blobs, int64_t frames, int64_t height, int64_t width,
                          const double background[3], double contrast, uint8_t *scratch, shapes_reading *out) {
    for (int64_t i = 0; i < frames; i++) {
        if (blobs[i].area < 4.0) {
            continue;
        }
        for (int shape = 0; shape < TS_SHAPES_SHAPES; shape++) {
            draw_template(shape, &blobs[i], height, width, scratch);
            out->fit[shape] +=
                overlap(rgb + 3 * i * height * width, scratch, height * width, background, contrast) / (double)frames;
        }
    }
    for (int shape = 0; shape < TS_SHAPES_SHAPES; shape++) {
        out->shape = out->fit[shape] > out->fit[out->shape] ? shape : out->shape;
    }
}

shapes_reading shapes_read(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width) {
    shapes_reading out = {0};
    const int64_t pixels = frames * height * width;
    double background[3], colour[3];
    for (int c = 0; c < 3; c++) {
        background[c] = channel_median(rgb, pixels, c);
    }
    const double contrast = object_contrast(rgb, pixels, background);
    frame_blob *blobs = ts_calloc((size_t)frames, sizeof *blobs);
    uint8_t *scratch = ts_calloc((size_t)(height * width), 3);
    out.background = nearest(ts_shapes_backgrounds, TS_SHAPES_BACKGROUNDS, background);
    if (contrast >= 20.0 && blobs && scratch) {
        out.found = true;
        mean_colour(rgb, pixels, background, contrast, colour);
        out.colour = nearest(ts_shapes_colours, TS_SHAPES_COLOURS, colour);
        for (int64_t i = 0; i < frames; i++) {
            blobs[i] = find_blob(rgb + 3 * i * height * width, height, width, background, contrast);
        }
        measure_motion(blobs, frames, &out);
        measure_shape(rgb, blobs, frames, height, width, background, contrast, scratch, &out);
    }
    free(blobs);
    free(scratch);
    return out;
}

enum { MAX_FRAMES = 1024 };

int shapes_read_file(const char *path, shapes_reading *out) {
    const ts_video_limits limits = ts_video_limits_default();
    ts_video_reader *reader = NULL;
    TS_TRY(ts_video_reader_open(&reader, path, &limits));
    const ts_video_info info = ts_video_reader_info(reader);
    const int64_t frame_bytes = info.width * info.height * 3;
    uint8_t *rgb = NULL;
    int64_t frames = 0;
    int status = TS_OK;
    while (!status && frames < MAX_FRAMES) {
        uint8_t *grown = realloc(rgb, (size_t)((frames + 1) * frame_bytes));
        if (!grown) {
            status = TS_FAIL(TS_ERESOURCE, "%s: out of memory at frame %lld", path, (long long)frames);
            break;
        }
        rgb = grown;
        double time;
        status = ts_video_reader_next(reader, rgb + frames * frame_bytes, &time);
        frames += status == TS_OK;
    }
    if (status == TS_EOF && frames > 1) {
        *out = shapes_read(rgb, frames, info.height, info.width);
        status = TS_OK;
    } else if (status == TS_EOF) {
        status = TS_FAIL(TS_EINPUT, "%s: %lld frames; motion needs two", path, (long long)frames);
    }
    free(rgb);
    ts_video_reader_close(&reader);
    return status;
}

bool shapes_parse_caption(const char *caption, shapes_reading *out) {
    ts_shapes_factors f = {0};
    char made[256];
    for (f.colour = 0; f.colour < TS_SHAPES_COLOURS; f.colour++) {
        for (f.shape = 0; f.shape < TS_SHAPES_SHAPES; f.shape++) {
            for (f.direction = 0; f.direction < TS_SHAPES_DIRECTIONS; f.direction++) {
                for (f.background = 0; f.background < TS_SHAPES_BACKGROUNDS; f.background++) {
                    if (strcmp(ts_shapes_caption(&f, made, sizeof made), caption) == 0) {
                        *out = (shapes_reading){.found = true,
                                                .colour = f.colour,
                                                .shape = f.shape,
                                                .direction = f.direction,
                                                .background = f.background};
                        return true;
                    }
                }
            }
        }
    }
    return false;
}
