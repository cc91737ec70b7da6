// SPDX-License-Identifier: Apache-2.0
// Numbers about finished videos, from their pixels alone: what tests assert and users compare.
#ifndef TS_INFER_SCORE_H
#define TS_INFER_SCORE_H

#include <stdint.h>

#include "core/comm/comm.h"
#include "infer/sampler/canvas.h"

// rgb [frames, height, width, 3] u8 throughout. Values of the host; not collective. NAN where there is nothing to
// measure: of no numbers, of a single frame.

// The frame-difference profile: mean absolute difference of neighbouring frames, in units of 1/255: step [frames - 1].
void ts_score_steps(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width, double *step);
// The middle one of `count` numbers, or the mean of the two in the middle.
double ts_score_median(const double *x, int64_t count);
// The median of the steps after frames first, first + group, ..: those from one group of a codec to the next, which are
// larger than the steps within where it keeps little of a group.
double ts_score_group_step(const double *step, int64_t steps, int64_t first, int64_t group);
// The step from the last frame to the first over the median step: 1 of a loop without a seam.
double ts_score_seam(const uint8_t *rgb, int64_t frames, int64_t height, int64_t width);
// 10 log10(255^2 / mean squared difference), over frames [first, end); infinite when equal.
double ts_score_psnr(const uint8_t *a, const uint8_t *b, int64_t first, int64_t end, int64_t height, int64_t width);
// Steps at borders over the median step: border [count] holds the frames after which there is one. Those that are no
// step of the video are passed over.
typedef struct ts_score_border {
    int64_t count;
    double mean, largest;
} ts_score_border;
ts_score_border ts_score_borders(const double *step, int64_t steps, const int64_t *border, int64_t count);

// Where windows had a border: after which pixel frames, rising, one of them began (behind its head) or ended in any
// step of making the canvas, whose latent frames are groups of `group` pixel frames and which is free everywhere.
// Windows move from step to step (infer/sampler/windows.h), so that of many, and in a loop, every place between groups
// comes to be one but the first few and the last. A loop's seam is after the last of its frames. *border [count] is to
// be freed; TS_ERESOURCE, with nothing to free.
int ts_score_find_borders(const ts_canvas *canvas, int64_t group, int64_t **border, int64_t *count);

// tessera score FILE.mp4 [--frames A..B] [--against FILE [--from FRAME]] [--loop] [--repeat N]
//   [--window FRAMES [--overlap FRAMES]] [--group FRAMES] [--shapes] [--prompt TEXT] [--json | --print KEY,..]
// Rank 0 reads and prints; the others wait. Collective.
int ts_command_score(ts_comm *world, int argc, char **argv);

#endif
