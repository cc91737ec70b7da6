// SPDX-License-Identifier: Apache-2.0
// Wall-clock seconds for measuring, and text for people.
#ifndef TS_BASE_CLOCK_H
#define TS_BASE_CLOCK_H

#include <stddef.h>

double ts_clock_seconds(void);       // monotonic; differences only
double ts_clock_unix_seconds(void);  // since 1970, for logs and event files
// "1:02:03", "4:05" or "6 s"; returns `out`.
const char *ts_clock_format(double seconds, char *out, size_t out_bytes);

#endif
