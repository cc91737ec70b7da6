// SPDX-License-Identifier: Apache-2.0
// `tessera generate`: prompts in, MP4 files out.
#ifndef TS_INFER_GENERATE_H
#define TS_INFER_GENERATE_H

#include "core/comm/comm.h"
#include "core/model/model.h"

// The subcommand. Collective over `world`; argv[0] is its name.
int ts_command_generate(ts_comm *world, int argc, char **argv);

// Decodes latents [n, t, h, w, C] f32 into new pixels [n, 1 + 4 (t-1), 8 h, 8 w, 3] u8 that the caller frees. Not
// collective.
int ts_decode(const ts_codec *codec, const float *latents, int64_t n, int64_t t, int64_t h, int64_t w,
              uint8_t **pixels);

// Writes one MP4 with exactly `fps` (23.976 and the like become the nearest fraction over 1001 or 1000).
int ts_write_video(const char *path, const uint8_t *pixels, int64_t frames, int64_t height, int64_t width, double fps,
                   const char *title);

#endif
