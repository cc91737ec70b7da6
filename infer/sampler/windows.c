// SPDX-License-Identifier: Apache-2.0
#include "infer/sampler/windows.h"

#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/status.h"

void ts_windows_close(ts_windows *w) {
    for (int64_t k = 0; k < w->count; k++) {
        free(w->item[k].weight);
    }
    free(w->item);
    *w = (ts_windows){0};
}

int64_t ts_window_frame(const ts_canvas *c, const ts_window *w, int64_t i) {
    return c->loop ? (w->start + i) % c->frames : w->start + i;
}

// ---- what needs windows

// A stretch of frames to be covered; in a loop it may run over the end.
typedef struct stretch {
    int64_t first, count;
} stretch;

// Marks the frames at most c->context behind a free one, in the direction of `to` (1 or -1): twice round a circle, so
// that what is free at the end is seen from the beginning.
static void mark_behind(const ts_canvas *c, const bool *free_frame, int64_t to, bool *needed) {
    const int64_t most = c->context < c->frames ? c->context : c->frames;
    int64_t away = most + 1;  // frames since a free one, as far as it matters
    for (int64_t i = 0; i < (c->loop ? 2 : 1) * c->frames; i++) {
        const int64_t t = to > 0 ? i % c->frames : c->frames - 1 - i % c->frames;
        away = free_frame[t] ? 0 : away + (away <= most);
        needed[t] = needed[t] || away <= most;
    }
}

// Fills needed[frames], whether a frame is free or held within `context` of one that is; returns how many are.
static int64_t find_needed(const ts_canvas *c, bool *needed) {
    bool *free_frame = needed + c->frames;
    int64_t count = 0;
    for (int64_t t = 0; t < c->frames; t++) {
        needed[t] = free_frame[t] = !ts_canvas_frame_is_held(c, t);
    }
    mark_behind(c, free_frame, 1, needed);
    mark_behind(c, free_frame, -1, needed);
    for (int64_t t = 0; t < c->frames; t++) {
        count += needed[t];
    }
    return count;
}

// The stretch that begins at or after frame `from`, of which nothing is needed just before it; count 0: none.
static stretch next_stretch(const ts_canvas *c, const bool *needed, int64_t from) {
    for (int64_t first = from; first < c->frames; first++) {
        const bool begins = first > 0 ? !needed[first - 1] : !(c->loop && needed[c->frames - 1]);
        if (needed[first] && begins) {
            int64_t count = 1;
            while ((c->loop || first + count < c->frames) && needed[(first + count) % c->frames]) {
                count++;
            }
            return (stretch){first, count};
        }
    }
    return (stretch){0, 0};
}

// ---- windows of a stretch

// Room for twice as many whenever it is used up.
static int grow(ts_windows *w) {
    const int64_t room = w->room ? 2 * w->room : 1;
    ts_window *item = realloc(w->item, (size_t)room * sizeof *item);
    if (!item) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for %lld windows", (long long)room);
    }
    w->item = item;
    w->room = room;
    return TS_OK;
}

static int add(ts_windows *w, const ts_canvas *c, int64_t start, int64_t frames) {
    TS_TRY(w->count == w->room ? grow(w) : TS_OK);
    float *weight = ts_calloc((size_t)frames, sizeof *weight);
    if (!weight) {
        return TS_ERESOURCE;
    }
    w->item[w->count++] = (ts_window){start, frames, c->loop || start > 0, weight};
    return TS_OK;
}

// Windows of full length that share `overlap` frames with their neighbours, or more. Those between the ends move back
// by one frame a step as far as there is room, for which many windows take one more: where few are enough, it would
// cost too much.
static int cover(ts_windows *w, const ts_canvas *c, stretch s, int64_t step) {
    enum { MANY = 4 };
    if (s.count <= c->window) {
        return add(w, c, s.first, s.count);
    }
    const int64_t stride = c->window - c->overlap, last = s.count - c->window;
    int64_t gaps = (last + stride - 1) / stride;
    gaps += gaps + 1 >= MANY && gaps * stride - last < stride - 1;
    const int64_t spare = gaps * stride - last, back = step % (spare < stride ? spare + 1 : stride);
    w->joined = true;
    TS_TRY(add(w, c, s.first, c->window));
    for (int64_t k = 1; k < gaps && k * stride - back < last; k++) {
        TS_TRY(add(w, c, (s.first + k * stride - back) % c->frames, c->window));
    }
    return add(w, c, (s.first + last) % c->frames, c->window);
}

// A whole circle: each window's head is the last frame of what comes before it, which in the end is what it made.
static int cover_circle(ts_windows *w, const ts_canvas *c, int64_t step) {
    w->joined = true;
    if (c->frames < c->window) {
        return add(w, c, step % c->frames, c->frames + 1);
    }
    const int64_t stride = c->window - c->overlap, count = (c->frames + stride - 1) / stride;
    for (int64_t k = 0; k < count; k++) {
        TS_TRY(add(w, c, (step + k * c->frames / count) % c->frames, c->window));
    }
    return TS_OK;
}

// ---- weights

// Linear from both ends of a window, so that what two share goes from one to the other, then as shares of each frame.
static int weigh(ts_windows *w, const ts_canvas *c) {
    double *sum = ts_calloc((size_t)c->frames, sizeof *sum);
    if (!sum) {
        return TS_ERESOURCE;
    }
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t k = 0; k < w->count; k++) {
            const ts_window *item = &w->item[k];
            for (int64_t i = item->head; i < item->frames; i++) {
                const int64_t left = i - item->head + 1, right = item->frames - i;
                const double height = (double)(left < right ? left : right);
                double *total = &sum[ts_window_frame(c, item, i)];
                if (pass == 0) {
                    *total += height;
                } else {
                    item->weight[i] = (float)(height / *total);
                }
            }
        }
    }
    free(sum);
    return TS_OK;
}

int ts_windows_make(ts_windows *out, const ts_canvas *c, int64_t step) {
    ts_windows w = {0};
    bool *needed = ts_malloc(2 * (size_t)c->frames * sizeof *needed);
    int status = needed ? TS_OK : TS_ERESOURCE;
    if (!status && find_needed(c, needed) == c->frames) {
        status = c->loop ? cover_circle(&w, c, step) : cover(&w, c, (stretch){0, c->frames}, step);
    } else if (!status) {
        for (stretch s = next_stretch(c, needed, 0); s.count && !status; s = next_stretch(c, needed, s.first + 1)) {
            status = cover(&w, c, s, step);
        }
    }
    status = status ? status : weigh(&w, c);
    free(needed);
    if (status) {
        ts_windows_close(&w);
        return status;
    }
    *out = w;
    return TS_OK;
}
