// SPDX-License-Identifier: Apache-2.0
// Video files in and out. Only the files of this folder touch libav*.
//
// Reading is defensive: protocol (file) and format white lists, pixels x frames bounded before allocation, damaged
// frames counted and passed over up to a limit.
#ifndef TS_MEDIA_VIDEO_H
#define TS_MEDIA_VIDEO_H

#include <stdint.h>

typedef struct ts_video_limits {
    int64_t max_pixels;        // of one frame; default 4096 * 4096
    int64_t max_frames;        // read from one file; default 1,000,000
    double max_damaged_share;  // of frames that fail to decode before the file is refused; default 0.1
} ts_video_limits;
ts_video_limits ts_video_limits_default(void);

typedef struct ts_video_info {
    int64_t width, height;  // as displayed: after sample aspect and rotation
    double fps;             // average
    double duration;        // seconds, 0 when unknown
    int64_t frames;         // estimate, 0 when unknown
    char codec[32], container[32];
} ts_video_info;

typedef struct ts_video_reader ts_video_reader;
int ts_video_reader_open(ts_video_reader **out, const char *path, const ts_video_limits *limits);
void ts_video_reader_close(ts_video_reader **reader);
ts_video_info ts_video_reader_info(const ts_video_reader *reader);
// Asks the reader to give frames of width x height, resized to cover and centre-cropped (area filter when shrinking),
// before the first ts_video_reader_next. Default: the size as displayed.
int ts_video_reader_set_output(ts_video_reader *reader, int64_t width, int64_t height);
// Next frame as RGB [height, width, 3] u8 into `rgb`, and its time in seconds from the first frame. TS_EOF at the end.
int ts_video_reader_next(ts_video_reader *reader, uint8_t *rgb, double *time);
int64_t ts_video_reader_damaged(const ts_video_reader *reader);

typedef struct ts_video_writer_params {
    int64_t width, height;  // even
    int fps_numerator, fps_denominator;
    int crf;            // x264 quality, 1 (best) .. 51; 0 means 18
    const char *title;  // metadata or NULL
} ts_video_writer_params;

typedef struct ts_video_writer ts_video_writer;
// H.264, yuv420p, bt709 tagged, constant rate, faststart MP4; bit-exact flags, so equal frames make equal files. One
// thread. Written to path.tmp; ts_video_writer_commit renames. Nothing remains after ts_video_writer_abandon.
int ts_video_writer_open(ts_video_writer **out, const char *path, const ts_video_writer_params *params);
int ts_video_writer_add(ts_video_writer *writer, const uint8_t *rgb);  // [height, width, 3]
int ts_video_writer_commit(ts_video_writer **writer);
void ts_video_writer_abandon(ts_video_writer **writer);

// All frames at once: rgb [frames, height, width, 3].
int ts_video_write(const char *path, const uint8_t *rgb, int64_t frames, const ts_video_writer_params *params);

#endif
