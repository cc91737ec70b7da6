// SPDX-License-Identifier: Apache-2.0
// Clips of fixed length, taken from a video file at a fixed stride.
//
// The file is resampled to the configured rate: sample n is the latest frame shown by n / fps seconds. Clip k holds
// the samples [k * stride, k * stride + frames), resized to cover the bucket and centre-cropped. The bucket is chosen
// once for a file: of those that are short enough, the nearest in aspect, then the largest that needs no enlarging,
// then the longest.
#ifndef TS_DATA_CLIPS_H
#define TS_DATA_CLIPS_H

#include <stdint.h>

#include "core/media/video.h"

// One size and length: every clip of a bucket has the same shape.
typedef struct ts_bucket {
    int64_t width, height, frames;
} ts_bucket;

// "64x64x17", width first. TS_EUSAGE unless the sides are multiples of 8 and the frames 1 + 4k.
int ts_bucket_parse(const char *text, ts_bucket *out);
// Index of the bucket for a file of width x height that lasts `duration` seconds; -1 when it is too short for all.
int ts_bucket_choose(const ts_bucket *buckets, int count, double fps, int64_t width, int64_t height, double duration);

typedef struct ts_clip_params {
    const ts_bucket *buckets;  // borrowed while the reader is open
    int bucket_count;
    double fps;
    double stride;  // seconds between the starts of clips; 0: clips do not overlap and leave nothing out
    ts_video_limits limits;
} ts_clip_params;

typedef struct ts_clip {
    int64_t index;          // of the clip in its file
    double start, end;      // seconds in the file: of the first sample, and of the moment after the last
    const uint8_t *pixels;  // [frames, height, width, 3]; borrowed until the next call
} ts_clip;

typedef struct ts_clip_reader ts_clip_reader;
// TS_EINPUT when the file cannot be read as a video.
int ts_clip_reader_open(ts_clip_reader **out, const char *path, const ts_clip_params *params);
void ts_clip_reader_close(ts_clip_reader **reader);
// Next clip. TS_EOF at the end, also at once when the file is too short: no clip came then.
// TS_EINPUT when the file turns out to be damaged above the limit, perhaps after some clips.
int ts_clip_reader_next(ts_clip_reader *reader, ts_clip *out);
int ts_clip_reader_bucket(const ts_clip_reader *reader);     // -1: too short for all
int64_t ts_clip_reader_clips(const ts_clip_reader *reader);  // expected in all by the file's header; 0 when unknown
int64_t ts_clip_reader_damaged(const ts_clip_reader *reader);

#endif
