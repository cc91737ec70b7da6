// SPDX-License-Identifier: Apache-2.0
#include "core/base/clock.h"

#include <stdint.h>
#include <stdio.h>
#include <time.h>

static double read_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double ts_clock_seconds(void) {
    return read_clock(CLOCK_MONOTONIC);
}

double ts_clock_unix_seconds(void) {
    return read_clock(CLOCK_REALTIME);
}

const char *ts_clock_format(double seconds, char *out, size_t out_bytes) {
    if (!(seconds >= 0 && seconds < 1e9)) {  // also NaN, which an estimate before the first unit of work may be
        snprintf(out, out_bytes, "?");
        return out;
    }
    const int64_t total = (int64_t)(seconds + 0.5);
    const int hours = (int)(total / 3600), minutes = (int)(total / 60 % 60), rest = (int)(total % 60);
    if (hours) {
        snprintf(out, out_bytes, "%d:%02d:%02d", hours, minutes, rest);
    } else if (minutes) {
        snprintf(out, out_bytes, "%d:%02d", minutes, rest);
    } else {
        snprintf(out, out_bytes, "%d s", rest);
    }
    return out;
}
