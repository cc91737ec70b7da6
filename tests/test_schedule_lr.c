// SPDX-License-Identifier: Apache-2.0
// The learning rate and the average's decay as functions of the step.
#include "tests/ts_test.h"
#include "train/schedule.h"

static void test_cosine(void) {
    const ts_lr_schedule s = {.peak = 2e-3, .warmup = 100, .steps = 1100, .final_share = 0.1};
    CHECK_NEAR(ts_lr_at(&s, 1), 2e-5, 1e-15);
    CHECK_NEAR(ts_lr_at(&s, 50), 1e-3, 1e-15);
    CHECK_NEAR(ts_lr_at(&s, 100), 2e-3, 1e-15);
    CHECK_NEAR(ts_lr_at(&s, 600), 2e-3 * (0.1 + 0.9 * 0.5), 1e-15);
    CHECK_NEAR(ts_lr_at(&s, 1100), 2e-4, 1e-15);
    CHECK_NEAR(ts_lr_at(&s, 5000), 2e-4, 1e-15);
    for (int64_t step = 101; step <= 1100; step++) {
        CHECK(ts_lr_at(&s, step) < ts_lr_at(&s, step - 1));
    }
}

static void test_edges(void) {
    const ts_lr_schedule no_warmup = {.peak = 1, .warmup = 0, .steps = 10, .final_share = 0};
    CHECK(ts_lr_at(&no_warmup, 1) < 1 && ts_lr_at(&no_warmup, 1) > 0.9);
    CHECK_NEAR(ts_lr_at(&no_warmup, 10), 0, 1e-15);
    const ts_lr_schedule constant = {.peak = 1, .warmup = 4, .steps = 10, .final_share = 0, .constant = true};
    CHECK_NEAR(ts_lr_at(&constant, 2), 0.5, 0);
    CHECK_NEAR(ts_lr_at(&constant, 10), 1, 0);
    const ts_lr_schedule all_warmup = {.peak = 1, .warmup = 20, .steps = 10, .final_share = 0};
    CHECK_NEAR(ts_lr_at(&all_warmup, 10), 0.5, 0);
    const ts_lr_schedule just_warmup = {.peak = 1, .warmup = 10, .steps = 10, .final_share = 0.25};
    CHECK_NEAR(ts_lr_at(&just_warmup, 10), 0.25, 0);
}

static void test_average(void) {
    CHECK_NEAR(ts_ema_decay_at(0.999, 10, 1), 1.0 / 11, 1e-15);
    CHECK_NEAR(ts_ema_decay_at(0.999, 10, 1000000), 0.999, 0);
    CHECK_NEAR(ts_ema_decay_at(0.5, 0, 1), 0.5, 0);
}

int main(void) {
    test_cosine();
    test_edges();
    test_average();
    return ts_test_end();
}
