// SPDX-License-Identifier: Apache-2.0
#include "core/media/frame_fit.h"

#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"

ts_orientation ts_orientation_of(const int32_t *matrix) {
    if (!matrix) {
        return (ts_orientation){0};
    }
    // Stored (p, q) is displayed at (a p + c q, b p + d q).
    const int64_t a = matrix[0], b = matrix[1], c = matrix[3], d = matrix[4];
    const bool transpose = llabs(b) + llabs(c) > llabs(a) + llabs(d);
    return (ts_orientation){
        .transpose = transpose, .flip_x = transpose ? c < 0 : a < 0, .flip_y = transpose ? b < 0 : d < 0};
}

// The part of the frame that the result shows: as large as possible, of the result's aspect, in the centre.
static int crop(const ts_frame_fit *fit, AVFrame *frame, int64_t width, int64_t height) {
    const AVPixFmtDescriptor *format = av_pix_fmt_desc_get(frame->format);
    const double scale = fmax((double)width / (frame->width * fit->pixel_aspect), (double)height / frame->height);
    const int64_t kept_x = llround((double)width / (scale * fit->pixel_aspect));
    const int64_t kept_y = llround((double)height / scale);
    const size_t cut_x = (size_t)(kept_x < frame->width ? frame->width - (kept_x > 0 ? kept_x : 1) : 0);
    const size_t cut_y = (size_t)(kept_y < frame->height ? frame->height - (kept_y > 0 ? kept_y : 1) : 0);
    // Left and top on whole chroma samples.
    frame->crop_left = cut_x / 2 >> format->log2_chroma_w << format->log2_chroma_w;
    frame->crop_top = cut_y / 2 >> format->log2_chroma_h << format->log2_chroma_h;
    frame->crop_right = cut_x - frame->crop_left;
    frame->crop_bottom = cut_y - frame->crop_top;
    return av_frame_apply_cropping(frame, AV_FRAME_CROP_UNALIGNED);
}

// Files that do not say follow the convention: BT.709 from 720 lines on, BT.601 below.
static int colorspace_of(const AVFrame *frame) {
    switch (frame->colorspace) {
    case AVCOL_SPC_BT709:
        return SWS_CS_ITU709;
    case AVCOL_SPC_BT2020_NCL:
    case AVCOL_SPC_BT2020_CL:
        return SWS_CS_BT2020;
    case AVCOL_SPC_FCC:
        return SWS_CS_FCC;
    case AVCOL_SPC_SMPTE240M:
        return SWS_CS_SMPTE240M;
    case AVCOL_SPC_BT470BG:
    case AVCOL_SPC_SMPTE170M:
        return SWS_CS_ITU601;
    default:
        return frame->height >= 720 ? SWS_CS_ITU709 : SWS_CS_ITU601;
    }
}

static int prepare(ts_frame_fit *fit, const AVFrame *frame, int colorspace, int width, int height, const char *path) {
    const ts_frame_fit_key key = {.source_width = frame->width,
                                  .source_height = frame->height,
                                  .source_format = frame->format,
                                  .colorspace = colorspace,
                                  .range = frame->color_range == AVCOL_RANGE_JPEG,
                                  .width = width,
                                  .height = height};
    if (fit->scaler && memcmp(&key, &fit->key, sizeof key) == 0) {
        return TS_OK;
    }
    ts_frame_fit_close(fit);
    if (!sws_isSupportedInput(frame->format)) {
        return TS_FAIL(TS_EINPUT, "%s: pixel format %s cannot be converted; re-encode the file", path,
                       av_get_pix_fmt_name(frame->format));
    }
    const bool shrinks = (int64_t)width * height < (int64_t)frame->width * frame->height;
    const int flags = (shrinks ? SWS_AREA : SWS_BICUBIC) | SWS_ACCURATE_RND | SWS_BITEXACT | SWS_FULL_CHR_H_INT;
    fit->scaler = sws_getContext(frame->width, frame->height, frame->format, width, height, AV_PIX_FMT_RGB24, flags,
                                 NULL, NULL, NULL);
    fit->stored_stride = (width * 3 + 127) / 64 * 64;
    fit->stored = ts_aligned_alloc((size_t)fit->stored_stride * (size_t)height);
    if (!fit->scaler || !fit->stored) {
        return TS_FAIL(TS_EINPUT, "%s: cannot resize %dx%d to %dx%d pixels", path, frame->width, frame->height, width,
                       height);
    }
    const int *source = sws_getCoefficients(colorspace), *target = sws_getCoefficients(SWS_CS_ITU709);
    // Returns -1 when neither side is YUV: nothing to set then.
    (void)sws_setColorspaceDetails(fit->scaler, source, key.range, target, 1, 0, 1 << 16, 1 << 16);
    fit->key = key;
    return TS_OK;
}

static void turn(const ts_frame_fit *fit, uint8_t *rgb) {
    const ts_orientation o = fit->orientation;
    const int64_t step_x = o.transpose ? fit->stored_stride : 3, step_y = o.transpose ? 3 : fit->stored_stride;
    for (int64_t y = 0; y < fit->height; y++) {
        const uint8_t *row = fit->stored + (o.flip_y ? fit->height - 1 - y : y) * step_y;
        if (step_x == 3 && !o.flip_x) {
            memcpy(rgb, row, (size_t)fit->width * 3);
            rgb += fit->width * 3;
            continue;
        }
        for (int64_t x = 0; x < fit->width; x++, rgb += 3) {
            memcpy(rgb, row + (o.flip_x ? fit->width - 1 - x : x) * step_x, 3);
        }
    }
}

int ts_frame_fit_apply(ts_frame_fit *fit, AVFrame *frame, const char *path, uint8_t *rgb) {
    const int64_t width = fit->orientation.transpose ? fit->height : fit->width;
    const int64_t height = fit->orientation.transpose ? fit->width : fit->height;
    const int colorspace = colorspace_of(frame);  // by the height before cropping
    if (crop(fit, frame, width, height) < 0) {
        return TS_FAIL(TS_EINPUT, "%s: a frame of %dx%d pixels cannot be cropped", path, frame->width, frame->height);
    }
    TS_TRY(prepare(fit, frame, colorspace, (int)width, (int)height, path));
    uint8_t *const planes[4] = {fit->stored};
    const int strides[4] = {fit->stored_stride};
    if (sws_scale(fit->scaler, (const uint8_t *const *)frame->data, frame->linesize, 0, frame->height, planes,
                  strides) < 0) {
        return TS_FAIL(TS_EINPUT, "%s: a frame cannot be resized", path);
    }
    turn(fit, rgb);
    return TS_OK;
}

void ts_frame_fit_close(ts_frame_fit *fit) {
    sws_freeContext(fit->scaler);
    free(fit->stored);
    fit->scaler = NULL;
    fit->stored = NULL;
}
