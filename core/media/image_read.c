// SPDX-License-Identifier: Apache-2.0
// Pictures of files that may be anything. PNG is libpng's, JPEG libavcodec's; both see the file in memory.
#include <libavcodec/avcodec.h>
#include <limits.h>
#include <png.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/status.h"
#include "core/media/frame_fit.h"
#include "core/media/image.h"
#include "core/media/libav.h"

enum { MAX_FILE_BYTES = 256 << 20, PNG_MAGIC_BYTES = 8, JPEG_MAGIC_BYTES = 3 };
static const uint8_t PNG_MAGIC[PNG_MAGIC_BYTES] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
static const uint8_t JPEG_MAGIC[JPEG_MAGIC_BYTES] = {0xff, 0xd8, 0xff};

// A picture while it is read. JPEG has no alpha.
typedef struct picture {
    uint8_t *pixels;  // [height, width, channels] u8
    int64_t height, width;
    int channels;  // RGB or RGBA
} picture;

// Room for the pixels, once the size is known and found fit.
static int picture_open(picture *p, const char *path, int64_t height, int64_t width, int channels) {
    if (height < 1 || width < 1 || height > TS_IMAGE_MAX_SIDE || width > TS_IMAGE_MAX_SIDE ||
        height * width > TS_IMAGE_MAX_PIXELS) {
        return TS_FAIL(TS_EINPUT,
                       "%s: a picture of %lldx%lld pixels; at most %d a side and %d in all are read: scale it down",
                       path, (long long)width, (long long)height, TS_IMAGE_MAX_SIDE, TS_IMAGE_MAX_PIXELS);
    }
    *p = (picture){ts_malloc((size_t)(height * width * channels)), height, width, channels};
    return p->pixels ? TS_OK : TS_ERESOURCE;
}

// ---- PNG

static int read_png(picture *out, const char *path, const char *bytes, size_t count) {
    png_image image = {.version = PNG_IMAGE_VERSION};
    if (!png_image_begin_read_from_memory(&image, bytes, count)) {
        return TS_FAIL(TS_EINPUT, "%s: no PNG image can be read: %s", path, image.message);
    }
    image.format = PNG_FORMAT_RGBA;
    const int status = picture_open(out, path, image.height, image.width, 4);
    if (status) {
        png_image_free(&image);
        return status;
    }
    if (!png_image_finish_read(&image, NULL, out->pixels, 0, NULL)) {  // frees `image`
        return TS_FAIL(TS_EINPUT, "%s: no PNG image can be read: %s", path, image.message);
    }
    return TS_OK;
}

// ---- JPEG

typedef struct jpeg {
    AVCodecContext *decoder;
    AVPacket *packet;
    AVFrame *frame;
    ts_frame_fit fit;
} jpeg;

static void jpeg_close(jpeg *j) {
    ts_frame_fit_close(&j->fit);
    av_frame_free(&j->frame);
    av_packet_free(&j->packet);
    avcodec_free_context(&j->decoder);
}

static int jpeg_decode(jpeg *j, const char *path, const char *bytes, size_t count) {
    ts_libav_init();
    j->decoder = avcodec_alloc_context3(avcodec_find_decoder(AV_CODEC_ID_MJPEG));
    j->packet = av_packet_alloc();
    j->frame = av_frame_alloc();
    if (!j->decoder || !j->packet || !j->frame || av_new_packet(j->packet, (int)count) < 0) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory to decode it", path);
    }
    memcpy(j->packet->data, bytes, count);
    j->decoder->thread_count = 1;
    j->decoder->max_pixels = TS_IMAGE_MAX_PIXELS;
    j->decoder->err_recognition = AV_EF_EXPLODE;  // half a picture is none
    int error = avcodec_open2(j->decoder, NULL, NULL);
    error = error < 0 ? error : avcodec_send_packet(j->decoder, j->packet);
    error = error < 0 ? error : avcodec_receive_frame(j->decoder, j->frame);
    if (error < 0 || j->frame->decode_error_flags) {
        return ts_libav_fail(TS_EINPUT, error < 0 ? error : AVERROR_INVALIDDATA, path, "no JPEG image can be read",
                             "is it whole, and not too large?");
    }
    return TS_OK;
}

static int read_jpeg(picture *out, const char *path, const char *bytes, size_t count) {
    jpeg j = {0};
    int status;
    TS_TRY_GOTO(status, jpeg_decode(&j, path, bytes, count), done);
    const AVFrameSideData *matrix = av_frame_get_side_data(j.frame, AV_FRAME_DATA_DISPLAYMATRIX);
    j.fit.orientation = ts_orientation_of(matrix ? (const int32_t *)(const void *)matrix->data : NULL);
    j.fit.pixel_aspect = 1;
    j.fit.height = j.fit.orientation.transpose ? j.frame->width : j.frame->height;
    j.fit.width = j.fit.orientation.transpose ? j.frame->height : j.frame->width;
    TS_TRY_GOTO(status, picture_open(out, path, j.fit.height, j.fit.width, 3), done);
    status = ts_frame_fit_apply(&j.fit, j.frame, path, out->pixels);
done:
    jpeg_close(&j);
    return status;
}

// ---- both

static int read_picture(picture *out, const char *path) {
    char *bytes;
    size_t count;
    *out = (picture){0};
    TS_TRY(ts_file_read(path, MAX_FILE_BYTES, &bytes, &count));
    int status;
    if (count >= PNG_MAGIC_BYTES && memcmp(bytes, PNG_MAGIC, PNG_MAGIC_BYTES) == 0) {
        status = read_png(out, path, bytes, count);
    } else if (count >= JPEG_MAGIC_BYTES && memcmp(bytes, JPEG_MAGIC, JPEG_MAGIC_BYTES) == 0) {
        status = read_jpeg(out, path, bytes, count);
    } else {
        status = TS_FAIL(TS_EINPUT, "%s: neither a PNG nor a JPEG image", path);
    }
    free(bytes);
    if (status) {
        free(out->pixels);
        out->pixels = NULL;
    }
    return status;
}

// `value` over `background`, rounded.
static uint8_t over(int value, int background, int alpha) {
    return (uint8_t)((value * alpha + background * (255 - alpha) + 127) / 255);
}

static int alpha_of(const picture *p, const uint8_t *pixel) {
    return p->channels == 4 ? pixel[3] : 255;
}

int ts_image_read(const char *path, uint8_t **rgb, int64_t *height, int64_t *width) {
    picture p;
    *rgb = NULL;
    TS_TRY(read_picture(&p, path));
    uint8_t *to = p.pixels;  // in place: no pixel's result lies beyond its source
    for (int64_t i = 0; i < p.height * p.width; i++, to += 3) {
        const uint8_t *pixel = p.pixels + i * p.channels;
        const int alpha = alpha_of(&p, pixel);
        for (int c = 0; c < 3; c++) {
            to[c] = over(pixel[c], 255, alpha);
        }
    }
    *rgb = p.pixels;
    *height = p.height;
    *width = p.width;
    return TS_OK;
}

int ts_image_read_grey(const char *path, uint8_t **grey, int64_t *height, int64_t *width) {
    picture p;
    *grey = NULL;
    TS_TRY(read_picture(&p, path));
    for (int64_t i = 0; i < p.height * p.width; i++) {
        const uint8_t *pixel = p.pixels + i * p.channels;
        p.pixels[i] = over(ts_image_brightness(pixel), 0, alpha_of(&p, pixel));
    }
    *grey = p.pixels;
    *height = p.height;
    *width = p.width;
    return TS_OK;
}
