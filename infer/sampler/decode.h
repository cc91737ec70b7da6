// SPDX-License-Identifier: Apache-2.0
// Latents to pixels, and pixels to a file.
#ifndef TS_INFER_DECODE_H
#define TS_INFER_DECODE_H

#include "core/comm/comm.h"
#include "core/media/video.h"
#include "core/model/codec.h"

// Decodes latents [n, t, h, w, C] f32, which every rank of `comm` (or NULL) has, into new pixels
// [n, 1 + 4 (t-1), 8 h, 8 w, 3] u8 that the caller frees, on rank `root`; NULL elsewhere. Every rank decodes a part of
// every video. Collective over comm.
int ts_decode(const ts_codec *codec, const float *latents, int64_t n, int64_t t, int64_t h, int64_t w, ts_comm *comm,
              int root, uint8_t **pixels);

// How videos are written, with exactly `fps` (23.976 and the like become the nearest fraction over 1001 or 1000).
ts_video_writer_params ts_writer_params(int64_t width, int64_t height, double fps, const char *title);
// Writes one MP4 so.
int ts_write_video(const char *path, const uint8_t *pixels, int64_t frames, int64_t height, int64_t width, double fps,
                   const char *title);

#endif
