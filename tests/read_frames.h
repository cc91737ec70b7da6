// SPDX-License-Identifier: Apache-2.0
// Frames of a source (infer/timeline/source.h) all at once.
#ifndef TS_TEST_READ_FRAMES_H
#define TS_TEST_READ_FRAMES_H

#include <math.h>

#include "core/base/status.h"
#include "infer/timeline/source.h"

// Frames `wanted` of a file that is read forward, frame i to place i, or from the last place to the first.
static inline int read_forward(ts_source *s, int64_t wanted, bool backward, int64_t frame_bytes, uint8_t *rgb,
                               int64_t *had) {
    int status = TS_OK;
    for (*had = 0; *had < wanted && !status; *had += !status) {
        status = ts_source_next(s, rgb + (backward ? wanted - 1 - *had : *had) * frame_bytes);
    }
    return status == TS_EOF ? TS_OK : status;
}

// rgb [frames, height, width, 3] u8 at first_time + i * step_time seconds; step_time may be negative. *filled is how
// many frames the file had, from the first one on: fewer when it ends early, or begins later.
static inline int read_frames(const char *path, double first_time, double step_time, int64_t frames, int64_t height,
                              int64_t width, uint8_t *rgb, int64_t *filled) {
    const double early = 1e-6;  // no more than rounding
    *filled = 0;
    const bool backward = step_time < 0;
    int64_t wanted = first_time < -early ? 0 : frames;
    while (backward && wanted && first_time + (double)(wanted - 1) * step_time < -early) {
        wanted--;
    }
    if (!wanted) {
        return TS_OK;
    }
    const double earliest = fmax(first_time + (backward ? (double)(wanted - 1) * step_time : 0), 0);
    ts_source *s;
    int64_t had;
    TS_TRY(ts_source_open(&s, path, earliest, fabs(step_time), height, width, 3));
    const int status = read_forward(s, wanted, backward, height * width * 3, rgb, &had);
    ts_source_close(&s);
    *filled = status || (backward && had < wanted) ? 0 : had;
    return status;
}

#endif
