// SPDX-License-Identifier: Apache-2.0
// Numbers about finished videos, from their pixels alone: what tests assert and users compare.
#ifndef TS_INFER_SCORE_H
#define TS_INFER_SCORE_H

#include <stdint.h>

#include "core/comm/comm.h"

// rgb [frames, height, width, 3] u8 throughout.

// Mean absolute difference of neighbouring frames, in units of 1/255: step [frames - 1].
void ts_score_steps(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width, double *step);
// The step from the last frame to the first over the median step.
double ts_score_seam(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width);
// 10 log10(255^2 / mean squared difference), over frames [first, end); infinite when equal.
double ts_score_psnr(const uint8_t *a, const uint8_t *b, int64_t first, int64_t end, int64_t height, int64_t width);

// tessera score FILE.mp4 [--against FILE] [--held A..B] [--prompt TEXT] [--loop] [--window FRAMES] [--json]
int ts_command_score(ts_comm *world, int argc, char **argv);

#endif
