// SPDX-License-Identifier: Apache-2.0
// Windows: which frames they cover, that their weights share out each free frame, that those of loops and long canvases
// roll, that what is held and far from anything free is left out.
#include "core/base/rng.h"
#include "infer/sampler/windows.h"
#include "tests/ts_test.h"

enum { MOST = 64 };

static ts_canvas open(int64_t frames, int64_t window, int64_t overlap, int64_t context, bool loop) {
    ts_canvas c;
    CHECK_OK(ts_canvas_open(&c, frames, 2, 2, 1, 2, 2, "", 1.0));
    CHECK_OK(ts_canvas_add_source(&c));
    c.window = window;
    c.overlap = overlap;
    c.context = context;
    c.loop = loop;
    return c;
}

static ts_windows make(const ts_canvas *c, int64_t step) {
    ts_windows w = {0};
    CHECK_OK(ts_windows_make(&w, c, step));
    return w;
}

// "start+frames" of each window, a star for a head.
static void check(const ts_canvas *c, int64_t step, const char *wanted) {
    char text[512] = "";
    size_t used = 0;
    ts_windows w = make(c, step);
    for (int64_t k = 0; k < w.count; k++) {
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%lld+%lld%s", k ? " " : "",
                                 (long long)w.item[k].start, (long long)w.item[k].frames, w.item[k].head ? "*" : "");
    }
    if (strcmp(text, wanted) != 0) {
        fprintf(stderr, "windows \"%s\", wanted \"%s\"\n", text, wanted);
    }
    CHECK(strcmp(text, wanted) == 0);
    ts_windows_close(&w);
}

static void hold(ts_canvas *c, int64_t first, int64_t end) {
    for (int64_t t = first; t < end; t++) {
        c->strength[t] = 0.0f;
    }
}

static void test_straight(void) {
    ts_canvas c = open(5, 5, 2, 2, false);
    check(&c, 0, "0+5");
    check(&c, 3, "0+5");
    ts_windows w = make(&c, 0);
    CHECK(!w.joined && w.item[0].weight[0] == 1.0f && w.item[0].weight[4] == 1.0f);
    ts_windows_close(&w);
    ts_canvas_close(&c);
    c = open(6, 5, 2, 2, false);
    check(&c, 0, "0+5 1+5*");
    ts_canvas_close(&c);
    c = open(12, 5, 2, 2, false);  // those between the ends move back by a frame a step
    check(&c, 0, "0+5 3+5* 6+5* 7+5*");
    check(&c, 1, "0+5 2+5* 5+5* 7+5*");
    check(&c, 2, "0+5 1+5* 4+5* 7+5*");
    check(&c, 3, "0+5 3+5* 6+5* 7+5*");
    w = make(&c, 1);
    CHECK(w.joined);
    CHECK(w.item[1].weight[0] == 0.0f);  // the head
    CHECK_NEAR(w.item[0].weight[3], 2.0 / 3.0, 1e-6);
    CHECK_NEAR(w.item[1].weight[1], 1.0 / 3.0, 1e-6);
    CHECK(ts_window_frame(&c, &w.item[3], 4) == 11);
    ts_windows_close(&w);
    ts_canvas_close(&c);
}

static void test_loop(void) {
    ts_canvas c = open(4, 5, 2, 2, true);
    check(&c, 0, "0+5*");
    check(&c, 3, "3+5*");
    check(&c, 5, "1+5*");
    ts_windows w = make(&c, 3);
    CHECK(ts_window_frame(&c, &w.item[0], 0) == 3 && ts_window_frame(&c, &w.item[0], 4) == 3);
    CHECK(w.item[0].weight[0] == 0.0f && w.item[0].weight[4] == 1.0f);
    ts_windows_close(&w);
    ts_canvas_close(&c);
    c = open(1, 5, 2, 2, true);
    check(&c, 0, "0+2*");
    ts_canvas_close(&c);
    c = open(6, 5, 2, 2, true);
    check(&c, 0, "0+5* 3+5*");
    check(&c, 1, "1+5* 4+5*");
    ts_canvas_close(&c);
    c = open(10, 5, 3, 2, true);
    check(&c, 0, "0+5* 2+5* 4+5* 6+5* 8+5*");
    hold(&c, 2, 7);  // what is left runs over the end: 7 .. 11, with two on each side
    check(&c, 0, "5+5* 7+5* 9+5*");
    hold(&c, 8, 10);
    hold(&c, 0, 2);
    check(&c, 2, "5+5*");
    hold(&c, 0, 10);
    check(&c, 0, "");
    ts_canvas_close(&c);
}

static void test_held(void) {
    ts_canvas c = open(9, 5, 2, 2, false);
    check(&c, 0, "0+5 3+5* 4+5*");
    check(&c, 2, "0+5 1+5* 4+5*");
    hold(&c, 0, 4);  // a prefix: 2 and 3 are kept beside what is free, and two windows do
    check(&c, 0, "2+5* 4+5*");
    check(&c, 1, "2+5* 4+5*");
    hold(&c, 0, 5);
    check(&c, 0, "3+5* 4+5*");
    hold(&c, 0, 6);
    check(&c, 0, "4+5*");
    hold(&c, 0, 9);
    check(&c, 0, "");
    c.strength[0] = c.strength[8] = 0.01f;  // both ends, nothing between
    check(&c, 0, "0+3 6+3*");
    ts_canvas_close(&c);
}

// Frames that go through the transformer in a number of steps.
static int64_t work(const ts_canvas *c) {
    int64_t frames = 0;
    for (int64_t step = 0; step < 30; step++) {
        ts_windows w = make(c, step);
        for (int64_t k = 0; k < w.count; k++) {
            frames += w.item[k].frames;
        }
        ts_windows_close(&w);
    }
    return frames;
}

// A held first half is not computed but for the context it gives.
static void test_saving(void) {
    for (int64_t frames = 9; frames <= 33; frames += 4) {
        ts_canvas c = open(frames, 5, 2, 3, false);
        const int64_t whole = work(&c);
        hold(&c, 0, (frames + 1) / 2);
        CHECK((double)work(&c) <= 0.7 * (double)whole);
        ts_canvas_close(&c);
    }
}

// Whether a frame is free, or held within c->context of one that is: by looking at all of them.
static bool is_needed(const ts_canvas *c, int64_t t) {
    for (int64_t at = 0; at < c->frames; at++) {
        const int64_t straight = at > t ? at - t : t - at, round = c->frames - straight;
        const int64_t away = c->loop && round < straight ? round : straight;
        if (away <= c->context && !ts_canvas_frame_is_held(c, at)) {
            return true;
        }
    }
    return false;
}

// Held but for its ends, as long as canvases are, and all of it context: work that grows with the length alone.
static void test_length(void) {
    ts_canvas c = open(1 << 16, 5, 2, 1 << 16, false);
    hold(&c, 1, c.frames - 1);
    for (int64_t step = 0; step < 50; step++) {
        ts_windows w = make(&c, step);
        CHECK(w.count > c.frames / 4);
        ts_windows_close(&w);
    }
    hold(&c, 0, c.frames);
    c.context = INT64_MAX;
    check(&c, 0, "");
    ts_canvas_close(&c);
}

// Any canvas at all.
static void test_any(uint64_t index) {
    enum { FRAMES, WINDOW, OVERLAP, CONTEXT, LOOP, STEP, HOLDS };
    uint64_t draw[HOLDS];
    const uint64_t most[HOLDS] = {MOST - 1, 12, 100, 6, 2, 50};
    for (uint32_t i = 0; i < HOLDS; i++) {
        draw[i] = ts_rng_below(5, TS_RNG_TEST, index, i, most[i]);
    }
    const int64_t window = 2 + (int64_t)draw[WINDOW], overlap = 1 + (int64_t)draw[OVERLAP] % (window - 1);
    ts_canvas c =
        open(1 + (int64_t)draw[FRAMES], window, overlap, 1 + (int64_t)draw[CONTEXT], draw[LOOP] == 1 && index % 5);
    for (int64_t t = 0, held = 0; t < c.frames; t++) {
        held = ts_rng_below(5, TS_RNG_TEST, index, (uint32_t)(HOLDS + t), 8) == 0 ? !held : held;
        c.strength[t] = held ? 0.0f : 0.5f;
    }
    double sum[MOST] = {0};
    bool seen[MOST] = {false};
    ts_windows w = make(&c, (int64_t)draw[STEP]);
    for (int64_t k = 0; k < w.count; k++) {
        const ts_window *item = &w.item[k];
        CHECK(item->frames >= 1 && item->frames <= window + (c.loop && c.frames < window));
        CHECK(item->head == (c.loop || item->start > 0));
        for (int64_t i = 0; i < item->frames; i++) {
            const int64_t t = ts_window_frame(&c, item, i);
            CHECK(t >= 0 && t < c.frames && (item->weight[i] > 0.0f) == (i > 0 || !item->head));
            sum[t] += (double)item->weight[i];
            seen[t] = true;
        }
    }
    for (int64_t t = 0; t < c.frames; t++) {  // so heads stand for frames that are held or another window's, too
        CHECK(sum[t] == 0.0 ? ts_canvas_frame_is_held(&c, t) : fabs(sum[t] - 1.0) < 1e-6);
        CHECK(seen[t] == is_needed(&c, t));
    }
    ts_windows_close(&w);
    ts_canvas_close(&c);
}

int main(void) {
    test_straight();
    test_loop();
    test_held();
    test_saving();
    test_length();
    for (uint64_t i = 0; i < 2000; i++) {
        test_any(i);
    }
    return ts_test_end();
}
