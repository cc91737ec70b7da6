// SPDX-License-Identifier: Apache-2.0
// Frames out of a file that may be anything: the name says nothing, the header may lie, slices may be damaged.
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/avstring.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/media/frame_fit.h"
#include "core/media/libav.h"
#include "core/media/video.h"

// Containers that hold their own streams. Play lists (hls, dash, concat) and image2 would open other files.
static const char CONTAINERS[] = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,yuv4mpegpipe";
static const char DECODERS[] = "h264,hevc,libdav1d,libaom-av1,av1,vp8,vp9,mpeg1video,mpeg2video,mpeg4,msmpeg4v1,"
                               "msmpeg4v2,msmpeg4,mjpeg,prores,dnxhd,ffv1,ffvhuff,huffyuv,utvideo,rawvideo,"
                               "wrapped_avframe,cinepak,theora,h263,flv,dvvideo,png,qtrle";

// libavcodec counts a frame's padding to 64 columns into max_pixels; the exact limit is checked on what comes out.
enum { PADDING_PIXELS = 64 * 16384 };

struct ts_video_reader {
    char path[PATH_MAX];
    ts_video_limits limits;
    ts_video_info info;
    AVFormatContext *format;
    AVStream *stream;  // owned by `format`
    AVCodecContext *decoder;
    AVPacket *packet;
    AVFrame *frame;
    ts_frame_fit fit;
    int64_t packets, frames, damaged;
    double origin, last;  // time stamp of the first frame; time of the last one
    bool drained;
};

ts_video_limits ts_video_limits_default(void) {
    return (ts_video_limits){.max_pixels = 4096 * 4096, .max_frames = 1000000, .max_damaged_share = 0.1};
}

static int check_file(const char *path) {
    struct stat s;
    if (stat(path, &s)) {
        return TS_FAIL(TS_EINPUT, "%s: no such file, or it cannot be reached", path);
    }
    if (S_ISDIR(s.st_mode)) {
        return TS_FAIL(TS_EINPUT, "%s: is a folder; give a video file", path);
    }
    if (!S_ISREG(s.st_mode)) {
        return TS_FAIL(TS_EINPUT, "%s: is not a regular file; give a video file", path);
    }
    if (s.st_size == 0) {
        return TS_FAIL(TS_EINPUT, "%s: the file is empty", path);
    }
    return TS_OK;
}

static int open_container(ts_video_reader *r) {
    char url[PATH_MAX + 8];
    TS_TRY(ts_libav_url(url, sizeof url, r->path));
    AVDictionary *options = NULL;
    int error = av_dict_set(&options, "protocol_whitelist", "file", 0);
    error = error < 0 ? error : av_dict_set(&options, "format_whitelist", CONTAINERS, 0);
    error = error < 0 ? error : av_dict_set(&options, "codec_whitelist", DECODERS, 0);
    error = error < 0 ? error : avformat_open_input(&r->format, url, NULL, &options);
    av_dict_free(&options);
    if (error == AVERROR(EINVAL)) {
        return TS_FAIL(TS_EINPUT, "%s: not one of the accepted containers; re-encode it as one of %s", r->path,
                       CONTAINERS);
    }
    if (error < 0) {
        return ts_libav_fail(TS_EINPUT, error, r->path, "cannot be opened as a video", "is the file whole?");
    }
    return TS_OK;
}

static int check_size(const ts_video_reader *r, int64_t width, int64_t height) {
    return width <= 0 || height <= r->limits.max_pixels / width
               ? TS_OK
               : TS_FAIL(TS_EINPUT,
                         "%s: frames of %lldx%lld are above the limit of %lld pixels; raise max_pixels to read it",
                         r->path, (long long)width, (long long)height, (long long)r->limits.max_pixels);
}

// Reads enough to know the streams. The decoders tried on the way get the limits, too.
static int probe_streams(ts_video_reader *r) {
    const unsigned count = r->format->nb_streams;
    for (unsigned i = 0; i < count; i++) {
        TS_TRY(check_size(r, r->format->streams[i]->codecpar->width, r->format->streams[i]->codecpar->height));
    }
    AVDictionary **options = ts_calloc(count ? count : 1, sizeof *options);
    if (!options) {
        return TS_ERESOURCE;
    }
    for (unsigned i = 0; i < count; i++) {
        av_dict_set_int(&options[i], "max_pixels", r->limits.max_pixels + PADDING_PIXELS, 0);
        av_dict_set(&options[i], "threads", "1", 0);
    }
    const int error = avformat_find_stream_info(r->format, options);
    for (unsigned i = 0; i < count; i++) {
        av_dict_free(&options[i]);
    }
    free(options);
    if (error < 0) {
        return ts_libav_fail(TS_EINPUT, error, r->path, "its streams cannot be read", "is the file whole?");
    }
    const int best = av_find_best_stream(r->format, AVMEDIA_TYPE_VIDEO, -1, -1, NULL, 0);
    if (best < 0 || r->format->streams[best]->disposition & AV_DISPOSITION_ATTACHED_PIC) {
        return TS_FAIL(TS_EINPUT, "%s: holds no video stream (%s, %u other streams)", r->path, r->format->iformat->name,
                       r->format->nb_streams);
    }
    for (unsigned i = 0; i < r->format->nb_streams; i++) {
        r->format->streams[i]->discard = (int)i == best ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
    }
    r->stream = r->format->streams[best];
    return TS_OK;
}

static int open_decoder(ts_video_reader *r) {
    const AVCodecParameters *p = r->stream->codecpar;
    const AVCodec *codec = avcodec_find_decoder(p->codec_id);
    if (!codec || !av_match_list(codec->name, DECODERS, ',')) {
        return TS_FAIL(TS_EINPUT, "%s: video codec %s is not accepted; re-encode it as H.264", r->path,
                       avcodec_get_name(p->codec_id));
    }
    if (p->width < 1 || p->height < 1) {
        return TS_FAIL(TS_EINPUT, "%s: its frame size cannot be read; is the file whole?", r->path);
    }
    TS_TRY(check_size(r, p->width, p->height));
    r->decoder = avcodec_alloc_context3(codec);
    r->packet = av_packet_alloc();
    r->frame = av_frame_alloc();
    if (!r->decoder || !r->packet || !r->frame) {
        return TS_FAIL(TS_ERESOURCE, "%s: out of memory for the decoder", r->path);
    }
    int error = avcodec_parameters_to_context(r->decoder, p);
    r->decoder->thread_count = 1;
    r->decoder->max_pixels = r->limits.max_pixels + PADDING_PIXELS;
    r->decoder->pkt_timebase = r->stream->time_base;
    error = error < 0 ? error : avcodec_open2(r->decoder, codec, NULL);
    return error < 0 ? ts_libav_fail(TS_EINPUT, error, r->path, "its decoder cannot be opened", NULL) : TS_OK;
}

// Size on the screen: a stored pixel need not be square, nor upright.
static void fill_geometry(ts_video_reader *r) {
    const AVCodecParameters *p = r->stream->codecpar;
    const AVRational sample = av_guess_sample_aspect_ratio(r->format, r->stream, NULL);
    const double aspect = sample.num > 0 && sample.den > 0 ? av_q2d(sample) : 1;
    r->fit.pixel_aspect = aspect >= 0.125 && aspect <= 8 ? aspect : 1;  // beyond is a damaged header
    size_t bytes = 0;
    const uint8_t *matrix = av_stream_get_side_data(r->stream, AV_PKT_DATA_DISPLAYMATRIX, &bytes);
    int32_t entries[9];
    if (matrix && bytes >= sizeof entries) {
        memcpy(entries, matrix, sizeof entries);
        r->fit.orientation = ts_orientation_of(entries);
    }
    const int64_t width = llround(p->width * r->fit.pixel_aspect);
    r->info.width = r->fit.orientation.transpose ? p->height : width < 1 ? 1 : width;
    r->info.height = !r->fit.orientation.transpose ? p->height : width < 1 ? 1 : width;
}

static int fill_info(ts_video_reader *r) {
    const AVStream *s = r->stream;
    fill_geometry(r);
    ts_video_info *info = &r->info;
    const AVRational rate =
        s->avg_frame_rate.num > 0 && s->avg_frame_rate.den > 0 ? s->avg_frame_rate : s->r_frame_rate;
    info->fps = rate.num > 0 && rate.den > 0 ? av_q2d(rate) : 0;
    info->duration = s->duration > 0           ? (double)s->duration * av_q2d(s->time_base)
                     : r->format->duration > 0 ? (double)r->format->duration / AV_TIME_BASE
                                               : 0;
    const double estimate = info->duration * info->fps;
    info->frames = s->nb_frames > 0 ? s->nb_frames : estimate < 9e15 ? llround(estimate) : INT64_MAX;
    snprintf(info->codec, sizeof info->codec, "%s", avcodec_get_name(s->codecpar->codec_id));
    snprintf(info->container, sizeof info->container, "%s", r->format->iformat->name);
    TS_TRY(check_size(r, info->width, info->height));
    if (info->frames > r->limits.max_frames) {
        return TS_FAIL(TS_EINPUT, "%s: its header claims %lld frames, above the limit of %lld; cut the file", r->path,
                       (long long)info->frames, (long long)r->limits.max_frames);
    }
    r->fit.width = info->width;
    r->fit.height = info->height;
    return TS_OK;
}

int ts_video_reader_open(ts_video_reader **out, const char *path, const ts_video_limits *limits) {
    *out = NULL;
    ts_libav_init();
    TS_TRY(check_file(path));
    ts_video_reader *r = ts_calloc(1, sizeof *r);
    if (!r) {
        return TS_ERESOURCE;
    }
    r->limits = limits ? *limits : ts_video_limits_default();
    int status = TS_OK;
    snprintf(r->path, sizeof r->path, "%s", path);  // stat took it, so it fits
    TS_TRY_GOTO(status, open_container(r), fail);
    TS_TRY_GOTO(status, probe_streams(r), fail);
    TS_TRY_GOTO(status, open_decoder(r), fail);
    TS_TRY_GOTO(status, fill_info(r), fail);
    *out = r;
    return TS_OK;
fail:
    ts_video_reader_close(&r);
    return status;
}

void ts_video_reader_close(ts_video_reader **reader) {
    ts_video_reader *r = *reader;
    if (!r) {
        return;
    }
    ts_frame_fit_close(&r->fit);
    av_frame_free(&r->frame);
    av_packet_free(&r->packet);
    avcodec_free_context(&r->decoder);
    avformat_close_input(&r->format);
    free(r);
    *reader = NULL;
}

ts_video_info ts_video_reader_info(const ts_video_reader *reader) {
    return reader->info;
}

int64_t ts_video_reader_damaged(const ts_video_reader *reader) {
    return reader->damaged;
}

int ts_video_reader_set_output(ts_video_reader *r, int64_t width, int64_t height) {
    if (width < 1 || height < 1 || width > r->limits.max_pixels / height) {
        return TS_FAIL(TS_EUSAGE, "%s: cannot give frames of %lldx%lld pixels", r->path, (long long)width,
                       (long long)height);
    }
    r->fit.width = width;
    r->fit.height = height;
    return TS_OK;
}

static int refuse_damaged(const ts_video_reader *r, int64_t total) {
    if ((double)r->damaged <= r->limits.max_damaged_share * (double)total) {
        return TS_OK;
    }
    return TS_FAIL(TS_EINPUT,
                   "%s: %lld of %lld frames are damaged or missing, above the limit of %g %%; raise "
                   "max_damaged_share to keep it",
                   r->path, (long long)r->damaged, (long long)total, r->limits.max_damaged_share * 100);
}

// One more frame is lost. Gives up as soon as the file cannot stay within its limits.
static int count_damaged(ts_video_reader *r) {
    r->damaged++;
    if (r->damaged + r->frames > r->limits.max_frames) {
        return TS_FAIL(TS_EINPUT, "%s: more than %lld frames; cut the file", r->path, (long long)r->limits.max_frames);
    }
    const int64_t seen = r->damaged + r->frames;
    return r->info.frames > 0 ? refuse_damaged(r, seen > r->info.frames ? seen : r->info.frames) : TS_OK;
}

// Hands the decoder the stream's next packet, or the end.
static int feed(ts_video_reader *r) {
    int error;
    while ((error = av_read_frame(r->format, r->packet)) >= 0 && r->packet->stream_index != r->stream->index) {
        av_packet_unref(r->packet);
    }
    if (error < 0) {
        if (r->drained) {
            return TS_FAIL(TS_EINPUT, "%s: the decoder does not come to an end", r->path);
        }
        r->drained = true;
        avcodec_send_packet(r->decoder, NULL);
        return error == AVERROR_EOF ? TS_OK : count_damaged(r);
    }
    r->packets++;
    error = avcodec_send_packet(r->decoder, r->packet);
    av_packet_unref(r->packet);
    return error < 0 ? count_damaged(r) : TS_OK;
}

// The index of an MP4 lists every frame, so that one cut short is known at its end. Other containers' lists are
// partial, or count frames that are not there.
static int at_end(ts_video_reader *r) {
    if (strncmp(r->info.container, "mov", 3) == 0) {
        const int64_t listed = avformat_index_get_entries_count(r->stream);
        r->damaged += listed > r->packets ? listed - r->packets : 0;
        r->packets = listed;
    }
    if (!r->frames) {
        return TS_FAIL(TS_EINPUT, "%s: no frame could be decoded", r->path);
    }
    TS_TRY(refuse_damaged(r, r->frames + r->damaged));
    return TS_EOF;
}

// Decodes up to the next whole frame.
static int decode(ts_video_reader *r) {
    for (;;) {
        const int error = avcodec_receive_frame(r->decoder, r->frame);
        if (error == AVERROR(EAGAIN)) {
            TS_TRY(feed(r));
        } else if (error == AVERROR_EOF) {
            return at_end(r);
        } else if (error < 0) {
            TS_TRY(count_damaged(r));
        } else if (r->frame->decode_error_flags || r->frame->flags & AV_FRAME_FLAG_CORRUPT) {
            TS_TRY(count_damaged(r));
        } else {
            return TS_OK;
        }
    }
}

// Seconds since the first frame; never falls. Raw streams carry no stamps: their rate must do.
static int frame_time(ts_video_reader *r, double *time) {
    const int64_t stamp = r->frame->best_effort_timestamp;
    if (stamp == AV_NOPTS_VALUE && r->info.fps <= 0) {
        return TS_FAIL(TS_EINPUT, "%s: has neither time stamps nor a frame rate; re-encode it", r->path);
    }
    double now = stamp == AV_NOPTS_VALUE ? r->frames ? r->last + 1 / r->info.fps : 0
                                         : (double)stamp * av_q2d(r->stream->time_base) - r->origin;
    if (!r->frames) {
        r->origin = now;
        now = 0;
    }
    *time = r->last = now > r->last ? now : r->last;
    return TS_OK;
}

int ts_video_reader_next(ts_video_reader *r, uint8_t *rgb, double *time) {
    TS_TRY(decode(r));
    TS_TRY(frame_time(r, time));
    if (++r->frames > r->limits.max_frames) {
        return TS_FAIL(TS_EINPUT, "%s: more than %lld frames; cut the file", r->path, (long long)r->limits.max_frames);
    }
    TS_TRY(check_size(r, r->frame->width, r->frame->height));
    const int status = ts_frame_fit_apply(&r->fit, r->frame, r->path, rgb);
    av_frame_unref(r->frame);
    return status;
}
