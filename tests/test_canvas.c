// SPDX-License-Identifier: Apache-2.0
// Canvases: what an empty one holds, what is refused, what a prompt set in between leaves behind.
#include "infer/sampler/canvas.h"
#include "tests/ts_test.h"

static ts_canvas empty(void) {
    ts_canvas c;
    CHECK_OK(ts_canvas_open(&c, 3, 4, 6, 2, 2, 2, "a circle", 3.0));
    return c;
}

static void test_empty(void) {
    ts_canvas c = empty();
    CHECK(c.rows == 2 && c.columns == 3 && c.window == 3 && c.prompts == 1);
    CHECK(ts_canvas_frame_numbers(&c) == 48 && ts_canvas_numbers(&c) == 144);
    CHECK(!c.source && !c.strength && ts_canvas_strength(&c, 2, 1, 2) == TS_STRENGTH_STEPS);
    CHECK(!ts_canvas_frame_is_held(&c, 0));
    for (int t = 0; t < 3; t++) {
        CHECK(c.weight[t] == 1.0f && c.guidance[t] == 3.0f);
    }
    CHECK_OK(ts_canvas_check(&c));
    ts_canvas_close(&c);
    ts_canvas_close(&c);
    CHECK_FAILS(ts_canvas_open(&c, 3, 5, 6, 2, 2, 2, "a circle", 3.0), TS_EUSAGE, "multiples of 1x2x2");
    CHECK_FAILS(ts_canvas_open(&c, 0, 4, 6, 2, 2, 2, "a circle", 3.0), TS_EUSAGE, "0x4x6");
}

static void test_source(void) {
    ts_canvas c = empty();
    CHECK_OK(ts_canvas_add_source(&c));
    CHECK(c.source[143] == 0.0f && c.strength[17] == 1.0f);
    c.source[143] = 5.0f;
    CHECK_OK(ts_canvas_add_source(&c));
    CHECK(c.source[143] == 5.0f);
    for (int i = 6; i < 12; i++) {
        c.strength[i] = 0.004f;  // nearer to 0 than to a hundredth
    }
    CHECK(ts_canvas_frame_is_held(&c, 1) && !ts_canvas_frame_is_held(&c, 2));
    c.strength[11] = 0.25f;
    CHECK(ts_canvas_strength(&c, 1, 1, 2) == 25 && !ts_canvas_frame_is_held(&c, 1));
    ts_canvas_close(&c);
}

static void test_prompts(void) {
    ts_canvas c = empty();
    char text[] = "a square";
    CHECK_OK(ts_canvas_set_prompt(&c, 1, text));
    text[2] = 'S';
    CHECK(c.prompts == 2 && c.copies == 1 && strcmp(c.prompt[1], "a square") == 0);
    CHECK_OK(ts_canvas_set_prompt(&c, 2, "a star"));
    const float wanted[] = {1, 0, 0, 0, 1, 0, 0, 0, 1};
    CHECK(c.prompts == 3 && memcmp(c.weight, wanted, sizeof wanted) == 0);
    CHECK_OK(ts_canvas_check(&c));
    CHECK_OK(ts_canvas_steer(&c, 1, "a moon", 0.9));
    CHECK_OK(ts_canvas_steer(&c, 2, "a sun", 0.5));
    c.guidance[0] = c.guidance[1] = c.guidance[2] = 3.0f;
    CHECK_NEAR(ts_canvas_guidance(&c, 0), 3.0, 0);
    CHECK_NEAR(ts_canvas_guidance(&c, 1), 1.0 + 2.0 / pow(0.9, 4.0), 1e-6);
    CHECK_NEAR(ts_canvas_guidance(&c, 2), 9.0, 1e-6);  // no louder than that
    CHECK(strcmp(c.prompt[c.prompts - 1], "a sun") == 0 && c.weight[3 * c.prompts - 1] == 1.0f);
    CHECK_FAILS(ts_canvas_set_prompt(&c, 3, "a star"), TS_EUSAGE, "frame 3 of 3");
    CHECK_FAILS(ts_canvas_set_prompt(&c, -1, "a star"), TS_EUSAGE, "frame -1");
    ts_canvas_close(&c);
}

static void test_refusals(void) {
    ts_canvas c = empty();
    c.guidance[1] = NAN;
    CHECK_FAILS(ts_canvas_check(&c), TS_EUSAGE, "frame 1");
    c.guidance[1] = 1.0f;
    c.weight[2] = 0.5f;
    CHECK_FAILS(ts_canvas_check(&c), TS_EUSAGE, "sum to 0.5");
    c.weight[2] = 1.0f;
    c.window = 2;
    c.overlap = 2;
    CHECK_FAILS(ts_canvas_check(&c), TS_EUSAGE, "not all");
    c.overlap = 0;
    CHECK_FAILS(ts_canvas_check(&c), TS_EUSAGE, "share one");
    c.overlap = 1;
    CHECK_OK(ts_canvas_check(&c));
    CHECK_OK(ts_canvas_add_source(&c));
    c.strength[7] = 1.5f;
    CHECK_FAILS(ts_canvas_check(&c), TS_EUSAGE, "strength of 1.5");
    c.strength[7] = NAN;
    CHECK_FAILS(ts_canvas_check(&c), TS_EUSAGE, "strength of");
    c.strength[7] = 0.0f;
    CHECK_OK(ts_canvas_check(&c));
    ts_canvas_close(&c);
}

int main(void) {
    test_empty();
    test_source();
    test_prompts();
    test_refusals();
    return ts_test_end();
}
