// SPDX-License-Identifier: Apache-2.0
// Times, spans, steps and boxes as they are written in a timeline.
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/status.h"
#include "infer/timeline/timeline.h"

enum { MAX_TIME_BYTES = 63, MAX_SIDE = 1000000 };
// Sums of decimal fractions miss a whole frame by less than this.
static const double FRAME_ROUNDING = 1e-6;

// ---- times

// Digits, and with `fraction` digits behind a dot; false when there is no such number or it has more than nine digits
// before the dot.
static bool take_number(const char **text, bool fraction, double *out) {
    const char *at = *text;
    while (isdigit((unsigned char)*at)) {
        at++;
    }
    const ptrdiff_t digits = at - *text;
    if (fraction && at[0] == '.' && isdigit((unsigned char)at[1])) {
        for (at++; isdigit((unsigned char)*at);) {
            at++;
        }
    }
    *out = strtod(*text, NULL);
    *text = at;
    return digits >= 1 && digits <= 9;
}

// "M:S" or "H:M:S" as seconds. Only the first may exceed 59.
static bool parse_clock(const char *text, double *seconds) {
    double part;
    *seconds = 0;
    for (int i = 0; i < 3; i++) {
        const char *start = text;
        if (!take_number(&text, true, &part) || (i > 0 && part >= 60)) {
            return false;
        }
        *seconds = *seconds * 60 + part;
        if (*text == '\0') {
            return i > 0;
        }
        if (*text++ != ':' || memchr(start, '.', (size_t)(text - start))) {
            return false;
        }
    }
    return false;
}

// "1.5s", "12f", "12".
static bool parse_plain(const char *text, double fps, double *frames) {
    if (!take_number(&text, true, frames)) {
        return false;
    }
    if (strcmp(text, "s") == 0) {
        *frames *= fps;
        return true;
    }
    return *text == '\0' || strcmp(text, "f") == 0;
}

int ts_time_parse(double *out, const char *text, double fps, int64_t frames, const char *place) {
    double value;
    if (strcmp(text, "start") == 0) {
        value = 0;
    } else if (strcmp(text, "end") == 0) {
        value = (double)frames;
    } else if (strchr(text, ':') && parse_clock(text, &value)) {
        value *= fps;
    } else if (strchr(text, ':') || !parse_plain(text, fps, &value)) {
        return TS_FAIL(TS_EUSAGE, "%s: \"%.80s\" is no time; write 1.5s, 0:01.5, 12f, start or end", place, text);
    }
    const double whole = round(value);
    *out = fabs(value - whole) < FRAME_ROUNDING ? whole : value;
    return TS_OK;
}

// ---- spans

// One end of a span into a buffer of its own; what is absent is `otherwise`.
static bool copy_end(char out[MAX_TIME_BYTES + 1], const char *from, size_t bytes, const char *otherwise) {
    if (bytes > MAX_TIME_BYTES) {
        return false;
    }
    snprintf(out, MAX_TIME_BYTES + 1, "%.*s", bytes ? (int)bytes : MAX_TIME_BYTES, bytes ? from : otherwise);
    return true;
}

int ts_span_parse(ts_frame_span *out, const char *text, double fps, int64_t frames, const char *place) {
    if (strcmp(text, "all") == 0) {
        *out = (ts_frame_span){0, (double)frames};
        return TS_OK;
    }
    char first[MAX_TIME_BYTES + 1], end[MAX_TIME_BYTES + 1];
    const char *dots = strstr(text, "..");
    if (!dots || !copy_end(first, text, (size_t)(dots - text), "start") ||
        !copy_end(end, dots + 2, strlen(dots + 2), "end")) {
        return TS_FAIL(TS_EUSAGE, "%s: \"%.80s\" is no span; write A..B, as 0s..1.5s or 8f..end, or all", place, text);
    }
    ts_frame_span span;
    TS_TRY(ts_time_parse(&span.first, first, fps, frames, place));
    TS_TRY(ts_time_parse(&span.end, end, fps, frames, place));
    if (span.end > (double)frames) {
        return TS_FAIL(TS_EUSAGE,
                       "%s: \"%s\" ends at frame %.6g, and the video has %lld (%.6g s); end it earlier or raise frames",
                       place, text, span.end, (long long)frames, (double)frames / fps);
    }
    if (!(span.first < span.end)) {
        return TS_FAIL(TS_EUSAGE,
                       "%s: \"%s\" is empty: it begins at frame %.6g and ends before frame %.6g; let it end later",
                       place, text, span.first, span.end);
    }
    *out = span;
    return TS_OK;
}

int64_t ts_pixel_frame(int64_t t, int64_t time_factor, bool loop) {
    return loop || t == 0 ? t * time_factor : 1 + (t - 1) * time_factor;
}

int64_t ts_latent_frames(int64_t frames, int64_t time_factor, bool loop) {
    const int64_t groups = loop ? frames : frames - 1;
    const int64_t latent = (groups + time_factor - 1) / time_factor + !loop;
    return latent > 1 ? latent : 1;
}

// How many latent frames have their middle before pixel position x.
static int64_t frames_before(double x, int64_t time_factor, int64_t latent_frames, bool loop) {
    const double shifted = loop ? x : x + (double)(time_factor - 1);  // as if all frames were groups
    const double count = ceil(shifted / (double)time_factor - 0.5);
    if (!loop && x <= 0.5) {
        return 0;
    }
    return count < 0 ? 0 : count > (double)latent_frames ? latent_frames : (int64_t)count;
}

ts_latent_span ts_span_snap(ts_frame_span span, int64_t time_factor, int64_t latent_frames, bool loop, bool *moved) {
    ts_latent_span out = {.first = frames_before(span.first, time_factor, latent_frames, loop),
                          .end = frames_before(span.end, time_factor, latent_frames, loop)};
    if (out.first >= out.end) {  // a part of one frame, on one side of its middle
        const double middle = (span.first + span.end) / 2;
        out.first = out.first < latent_frames ? out.first : latent_frames - 1;
        out.first -= out.first > 0 && (double)ts_pixel_frame(out.first, time_factor, loop) > middle;
        out.end = out.first + 1;
    }
    *moved = (double)ts_pixel_frame(out.first, time_factor, loop) != span.first ||
             (double)ts_pixel_frame(out.end, time_factor, loop) != span.end;
    return out;
}

// ---- steps and boxes

int ts_step_parse(int64_t *out, const char *text, int64_t steps, const char *place) {
    const char *at = text;
    double number;
    const bool read = take_number(&at, true, &number), share = read && strcmp(at, "%") == 0;
    if (!share && !(read && *at == '\0' && number == floor(number))) {
        return TS_FAIL(TS_EUSAGE, "%s: \"%.80s\" is no step; write its number, from 0 on, or 40%%", place, text);
    }
    if (share && number >= 100) {
        return TS_FAIL(TS_EUSAGE, "%s: %s of the steps are over with the last one; give less than 100%%", place, text);
    }
    const double step = share ? floor(number / 100 * (double)steps + FRAME_ROUNDING) : number;
    if (step >= (double)steps) {
        return TS_FAIL(TS_EUSAGE, "%s: step %s does not come: there are %lld, from 0 on; name an earlier one", place,
                       text, (long long)steps);
    }
    *out = (int64_t)step;
    return TS_OK;
}

int ts_box_parse(int64_t out[4], const char *text, const char *place) {
    const char *at = text;
    for (int i = 0; i < 4; i++) {
        char *end;
        const bool starts = isdigit((unsigned char)*at) || (*at == '-' && isdigit((unsigned char)at[1]));
        errno = 0;
        const long long value = strtoll(at, &end, 10);
        const bool in_range = errno == 0 && value >= (i < 2 ? -MAX_SIDE : 1) && value <= MAX_SIDE;
        if (!starts || !in_range || *end != (i < 3 ? ',' : '\0')) {
            return TS_FAIL(TS_EUSAGE, "%s: \"%.80s\" is no box; write x,y,width,height in pixels, as 8,8,32,32", place,
                           text);
        }
        out[i] = value;
        at = end + 1;
        at += i < 3 ? strspn(at, " ") : 0;
    }
    return TS_OK;
}
