// SPDX-License-Identifier: Apache-2.0
#include "infer/sampler/decode.h"

#include <math.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/status.h"

int ts_decode(const ts_codec *codec, const float *latents, int64_t n, int64_t t, int64_t h, int64_t w, ts_comm *comm,
              int root, uint8_t **pixels) {
    const ts_codec_info info = ts_codec_get_info(codec);
    const int64_t numbers = t * h * w * info.channels;
    const int64_t bytes = (1 + (t - 1) * info.time_factor) * (h * info.space_factor) * (w * info.space_factor) * 3;
    const bool is_root = ts_comm_rank(comm) == root;
    uint8_t *out = is_root ? ts_malloc((size_t)(n * bytes) + 1) : NULL;
    int status = ts_agree(comm, is_root && !out ? TS_ERESOURCE : TS_OK);
    for (int64_t i = 0; i < n && !status; i++) {
        uint8_t *video = out ? out + i * bytes : NULL;
        status = ts_codec_decode_shared(codec, latents + i * numbers, t, h, w, comm, root, video);
    }
    if (status) {
        free(out);
        out = NULL;
    }
    *pixels = out;
    return status;
}

ts_video_writer_params ts_writer_params(int64_t width, int64_t height, double fps, const char *title) {
    int numerator = (int)lround(fps * 1000.0), denominator = 1000;
    if (fabs(fps - round(fps)) < 1e-6) {
        numerator = (int)lround(fps);
        denominator = 1;
    } else if (fabs(fps * 1.001 - round(fps * 1.001)) < 1e-4) {  // 23.976, 29.97, 59.94
        numerator = (int)lround(fps * 1.001) * 1000;
        denominator = 1001;
    }
    return (ts_video_writer_params){
        .width = width,
        .height = height,
        .fps_numerator = numerator,
        .fps_denominator = denominator,
        .crf = 12,  // a step between frames should be that of the pictures, not of their compression
        .title = title,
    };
}

int ts_write_video(const char *path, const uint8_t *pixels, int64_t frames, int64_t height, int64_t width, double fps,
                   const char *title) {
    const ts_video_writer_params params = ts_writer_params(width, height, fps, title);
    return ts_video_write(path, pixels, frames, &params);
}
