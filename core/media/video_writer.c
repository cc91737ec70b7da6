// SPDX-License-Identifier: Apache-2.0
// H.264 in MP4 through libx264.
#include <errno.h>
#include <fcntl.h>
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/media/libav.h"
#include "core/media/video.h"

// At 64x64 the set-up of the encoder costs as much as the frames; `veryfast` keeps the look-ahead short and at equal
// crf its files are about a tenth larger than those of `medium`.
static const char PRESET[] = "veryfast";
enum { DEFAULT_CRF = 18, MIN_SIDE = 16, MAX_SIDE = 8192 };

struct ts_video_writer {
    ts_video_writer_params params;
    AVFormatContext *format;
    AVStream *stream;  // owned by `format`
    AVCodecContext *encoder;
    AVFrame *frame;  // yuv420p
    AVPacket *packet;
    struct SwsContext *convert;
    int64_t frames;
    char path[PATH_MAX], temporary[PATH_MAX];
};

static int check_params(const ts_video_writer_params *p, const char *path) {
    if (p->width < MIN_SIDE || p->height < MIN_SIDE || p->width > MAX_SIDE || p->height > MAX_SIDE || p->width % 2 ||
        p->height % 2) {
        return TS_FAIL(TS_EUSAGE, "%s: cannot write %lldx%lld pixels; sides must be even, %d to %d", path,
                       (long long)p->width, (long long)p->height, MIN_SIDE, MAX_SIDE);
    }
    if (p->fps_numerator < 1 || p->fps_denominator < 1 || p->fps_numerator / p->fps_denominator > 1000) {
        return TS_FAIL(TS_EUSAGE, "%s: cannot write at %d/%d frames a second; give a rate above 0 and up to 1000", path,
                       p->fps_numerator, p->fps_denominator);
    }
    if (p->crf < 0 || p->crf > 51) {
        return TS_FAIL(TS_EUSAGE, "%s: crf %d is out of range; give 1 (best) to 51", path, p->crf);
    }
    return TS_OK;
}

static int open_encoder(ts_video_writer *w) {
    const ts_video_writer_params *p = &w->params;
    const AVCodec *codec = avcodec_find_encoder_by_name("libx264");
    if (!codec) {
        return TS_FAIL(TS_ERESOURCE, "%s: this FFmpeg has no libx264 encoder; install Debian's libavcodec59", w->path);
    }
    AVCodecContext *e = w->encoder = avcodec_alloc_context3(codec);
    if (!e) {
        return TS_FAIL(TS_ERESOURCE, "%s: out of memory for the encoder", w->path);
    }
    e->width = (int)p->width;
    e->height = (int)p->height;
    e->time_base = (AVRational){p->fps_denominator, p->fps_numerator};
    e->framerate = (AVRational){p->fps_numerator, p->fps_denominator};
    e->sample_aspect_ratio = (AVRational){1, 1};
    e->pix_fmt = AV_PIX_FMT_YUV420P;
    e->color_primaries = AVCOL_PRI_BT709;
    e->color_trc = AVCOL_TRC_BT709;
    e->colorspace = AVCOL_SPC_BT709;
    e->color_range = AVCOL_RANGE_MPEG;
    e->thread_count = 1;
    e->flags |= AV_CODEC_FLAG_BITEXACT | AV_CODEC_FLAG_GLOBAL_HEADER;
    AVDictionary *options = NULL;
    int error = av_dict_set_int(&options, "crf", p->crf ? p->crf : DEFAULT_CRF, 0);
    error = error < 0 ? error : av_dict_set(&options, "preset", PRESET, 0);
    // The same bytes whatever vector instructions the machine has.
    error = error < 0 ? error : av_dict_set(&options, "x264-params", "cpu-independent=1", 0);
    error = error < 0 ? error : avcodec_open2(e, codec, &options);
    av_dict_free(&options);
    return error < 0 ? ts_libav_fail(TS_EINTERNAL, error, w->path, "cannot open the H.264 encoder", NULL) : TS_OK;
}

static int open_file(ts_video_writer *w) {
    int error = avformat_alloc_output_context2(&w->format, NULL, "mp4", NULL);
    if (error < 0) {
        return ts_libav_fail(TS_EINTERNAL, error, w->path, "cannot set up the MP4 writer", NULL);
    }
    w->stream = avformat_new_stream(w->format, NULL);
    char url[PATH_MAX + 8];
    TS_TRY(ts_libav_url(url, sizeof url, w->temporary));
    w->format->url = av_strdup(url);  // faststart reads the file back by this name
    if (!w->stream || !w->format->url || avcodec_parameters_from_context(w->stream->codecpar, w->encoder) < 0 ||
        (w->params.title && av_dict_set(&w->format->metadata, "title", w->params.title, 0) < 0)) {
        return TS_FAIL(TS_ERESOURCE, "%s: out of memory for the MP4 writer", w->path);
    }
    w->stream->time_base = w->encoder->time_base;
    w->stream->avg_frame_rate = w->encoder->framerate;
    w->format->flags |= AVFMT_FLAG_BITEXACT;
    error = avio_open(&w->format->pb, url, AVIO_FLAG_WRITE);
    if (error < 0) {
        return ts_libav_fail(TS_EINPUT, error, w->path, "cannot be created", "is the folder there and writable?");
    }
    AVDictionary *options = NULL;
    error = av_dict_set(&options, "movflags", "+faststart", 0);
    error = error < 0 ? error : avformat_write_header(w->format, &options);
    av_dict_free(&options);
    return error < 0 ? ts_libav_fail(TS_EINTERNAL, error, w->path, "cannot write the MP4 header", NULL) : TS_OK;
}

// RGB to BT.709 in limited range, as tagged. Bit-exact: no assembly with other rounding.
static int open_converter(ts_video_writer *w) {
    const int width = (int)w->params.width, height = (int)w->params.height;
    w->convert = sws_getContext(width, height, AV_PIX_FMT_RGB24, width, height, AV_PIX_FMT_YUV420P,
                                SWS_BICUBIC | SWS_ACCURATE_RND | SWS_BITEXACT | SWS_FULL_CHR_H_INP, NULL, NULL, NULL);
    w->frame = av_frame_alloc();
    w->packet = av_packet_alloc();
    if (!w->convert || !w->frame || !w->packet) {
        return TS_FAIL(TS_ERESOURCE, "%s: out of memory for a frame", w->path);
    }
    const int *bt709 = sws_getCoefficients(SWS_CS_ITU709);
    sws_setColorspaceDetails(w->convert, bt709, 1, bt709, 0, 0, 1 << 16, 1 << 16);
    w->frame->format = AV_PIX_FMT_YUV420P;
    w->frame->width = width;
    w->frame->height = height;
    const int error = av_frame_get_buffer(w->frame, 0);
    return error < 0 ? ts_libav_fail(TS_EINTERNAL, error, w->path, "cannot allocate a frame", NULL) : TS_OK;
}

int ts_video_writer_open(ts_video_writer **out, const char *path, const ts_video_writer_params *params) {
    *out = NULL;
    ts_libav_init();
    TS_TRY(check_params(params, path));
    ts_video_writer *w = ts_calloc(1, sizeof *w);
    if (!w) {
        return TS_ERESOURCE;
    }
    w->params = *params;
    int status = TS_OK;
    if (snprintf(w->path, sizeof w->path, "%s", path) >= PATH_MAX - 4) {
        status = TS_FAIL(TS_EINPUT, "%.60s...: the path is too long; use a shorter one", path);
        w->temporary[0] = '\0';  // nothing to remove
        goto fail;
    }
    strcpy(stpcpy(w->temporary, w->path), ".tmp");
    TS_TRY_GOTO(status, open_encoder(w), fail);
    TS_TRY_GOTO(status, open_converter(w), fail);
    TS_TRY_GOTO(status, open_file(w), fail);
    *out = w;
    return TS_OK;
fail:
    ts_video_writer_abandon(&w);
    return status;
}

// Passes a frame (NULL at the end) through the encoder and writes the packets that come out.
static int encode(ts_video_writer *w, AVFrame *frame) {
    int error = avcodec_send_frame(w->encoder, frame);
    if (error < 0) {
        return ts_libav_fail(TS_EINTERNAL, error, w->path, "cannot encode a frame", NULL);
    }
    while ((error = avcodec_receive_packet(w->encoder, w->packet)) >= 0) {
        w->packet->duration = 1;
        w->packet->stream_index = w->stream->index;
        av_packet_rescale_ts(w->packet, w->encoder->time_base, w->stream->time_base);
        error = av_interleaved_write_frame(w->format, w->packet);
        if (error < 0) {
            return ts_libav_fail(TS_ERESOURCE, error, w->path, "cannot write", "is the disk full?");
        }
    }
    return error == AVERROR(EAGAIN) || error == AVERROR_EOF
               ? TS_OK
               : ts_libav_fail(TS_EINTERNAL, error, w->path, "cannot encode a frame", NULL);
}

int ts_video_writer_add(ts_video_writer *w, const uint8_t *rgb) {
    const int error = av_frame_make_writable(w->frame);  // the encoder may still hold the last one
    if (error < 0) {
        return ts_libav_fail(TS_EINTERNAL, error, w->path, "cannot allocate a frame", NULL);
    }
    const uint8_t *const planes[4] = {rgb};
    const int strides[4] = {(int)(w->params.width * 3)};
    sws_scale(w->convert, planes, strides, 0, (int)w->params.height, w->frame->data, w->frame->linesize);
    w->frame->pts = w->frames++;
    return encode(w, w->frame);
}

static int finish(ts_video_writer *w) {
    if (!w->frames) {
        return TS_FAIL(TS_EUSAGE, "%s: a video needs at least one frame", w->path);
    }
    TS_TRY(encode(w, NULL));
    int error = av_write_trailer(w->format);
    error = error < 0 ? error : w->format->pb->error;
    const int closed = avio_closep(&w->format->pb);
    error = error < 0 ? error : closed;
    if (error < 0) {
        return ts_libav_fail(TS_ERESOURCE, error, w->path, "cannot write", "is the disk full?");
    }
    const int fd = open(w->temporary, O_RDONLY | O_CLOEXEC);
    const bool synced = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) {
        close(fd);
    }
    if (!synced || rename(w->temporary, w->path)) {
        return TS_FAIL(TS_ERESOURCE, "%s: cannot finish the file: %s; is the disk full?", w->path, strerror(errno));
    }
    w->temporary[0] = '\0';
    return TS_OK;
}

int ts_video_writer_commit(ts_video_writer **writer) {
    const int status = finish(*writer);
    ts_video_writer_abandon(writer);
    return status;
}

void ts_video_writer_abandon(ts_video_writer **writer) {
    ts_video_writer *w = *writer;
    if (!w) {
        return;
    }
    sws_freeContext(w->convert);
    av_packet_free(&w->packet);
    av_frame_free(&w->frame);
    avcodec_free_context(&w->encoder);
    if (w->format) {
        avio_closep(&w->format->pb);
        avformat_free_context(w->format);
    }
    if (w->temporary[0]) {
        unlink(w->temporary);
    }
    free(w);
    *writer = NULL;
}

int ts_video_write(const char *path, const uint8_t *rgb, int64_t frames, const ts_video_writer_params *params) {
    ts_video_writer *writer;
    TS_TRY(ts_video_writer_open(&writer, path, params));
    for (int64_t t = 0; t < frames; t++) {
        const int status = ts_video_writer_add(writer, rgb + t * params->height * params->width * 3);
        if (status) {
            ts_video_writer_abandon(&writer);
            return status;
        }
    }
    return ts_video_writer_commit(&writer);
}
