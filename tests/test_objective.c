// SPDX-License-Identifier: Apache-2.0
// The training objective: statistics of the draws, the patterns, and independence of how a batch is shared out.
#include "core/base/rng.h"
#include "tests/ts_test.h"
#include "train/objective.h"

enum { FRAMES = 5, SAMPLES = 20000 };

static ts_objective one_pattern(ts_pattern kind) {
    ts_objective o = {.seed = 7, .std = 1, .shift = 1};
    o.pattern[kind] = 1;
    return o;
}

static void test_shift(void) {
    CHECK_NEAR(ts_sigma_shift(0.5, 3), 0.75, 1e-15);
    CHECK_NEAR(ts_sigma_shift(0, 3), 0, 0);
    CHECK_NEAR(ts_sigma_shift(1, 3), 1, 1e-15);
}

// logit(sigma) is normal; the shift moves every logit by log(s).
static void test_level_statistics(void) {
    ts_objective o = one_pattern(TS_PATTERN_ALL);
    o.mean = 0.3, o.std = 0.8, o.shift = 2;
    double sum = 0, squares = 0;
    float sigma[FRAMES], weight[FRAMES];
    for (uint64_t i = 0; i < SAMPLES; i++) {
        CHECK(ts_objective_levels(&o, i, FRAMES, sigma, weight) == TS_PATTERN_ALL);
        CHECK(sigma[0] > 0 && sigma[0] < 1 && sigma[4] == sigma[0] && weight[2] == 1);
        const double logit = log((double)sigma[0] / (1 - (double)sigma[0]));
        sum += logit, squares += logit * logit;
    }
    const double mean = sum / SAMPLES, deviation = sqrt(squares / SAMPLES - mean * mean);
    CHECK_NEAR(mean, 0.3 + log(2), 0.03);
    CHECK_NEAR(deviation, 0.8, 0.02);

    o.uniform_share = 1, o.shift = 1, sum = squares = 0;
    for (uint64_t i = 0; i < SAMPLES; i++) {
        ts_objective_levels(&o, i, FRAMES, sigma, weight);
        sum += (double)sigma[0], squares += (double)sigma[0] * (double)sigma[0];
    }
    CHECK_NEAR(sum / SAMPLES, 0.5, 0.01);
    CHECK_NEAR(squares / SAMPLES, 1.0 / 3, 0.01);
}

static void test_independent_levels(void) {
    const ts_objective o = one_pattern(TS_PATTERN_INDEPENDENT);
    double product = 0;
    float sigma[FRAMES], weight[FRAMES];
    for (uint64_t i = 0; i < SAMPLES; i++) {
        CHECK(ts_objective_levels(&o, i, FRAMES, sigma, weight) == TS_PATTERN_INDEPENDENT);
        product += ((double)sigma[0] - 0.5) * ((double)sigma[3] - 0.5);
    }
    CHECK(sigma[0] != sigma[1] && sigma[1] != sigma[2]);
    CHECK_NEAR(product / SAMPLES, 0, 0.003);
}

// Held frames are clean and weightless, at least one frame is free, and the held set has the pattern's form.
static void check_form(ts_pattern kind, const bool *held, int64_t frames) {
    int64_t count = 0, changes = 0;
    for (int64_t f = 0; f < frames; f++) {
        count += held[f];
        changes += f > 0 && held[f] != held[f - 1];
    }
    CHECK(count >= 1 && count < frames);
    CHECK(kind != TS_PATTERN_PREFIX || (held[0] && changes == 1));
    CHECK(kind != TS_PATTERN_SUFFIX || (held[frames - 1] && changes == 1));
    CHECK(kind != TS_PATTERN_BOTH_ENDS || (held[0] && held[frames - 1] && changes == 2));
}

static void test_forms(void) {
    for (int kind = TS_PATTERN_PREFIX; kind <= TS_PATTERN_SCATTERED; kind++) {
        const ts_objective o = one_pattern((ts_pattern)kind);
        bool held[FRAMES], ever_held[FRAMES] = {false}, ever_free[FRAMES] = {false};
        float sigma[FRAMES], weight[FRAMES];
        for (uint64_t i = 0; i < 2000; i++) {
            CHECK(ts_objective_held(&o, i, FRAMES, held) == (ts_pattern)kind);
            ts_objective_levels(&o, i, FRAMES, sigma, weight);
            check_form((ts_pattern)kind, held, FRAMES);
            for (int f = 0; f < FRAMES; f++) {
                CHECK(held[f] ? sigma[f] == 0 && weight[f] == 0 : sigma[f] > 0 && weight[f] == 1);
                ever_held[f] |= held[f], ever_free[f] |= !held[f];
            }
        }
        // Every length occurs: each frame that can be held sometimes is, and the other way round.
        CHECK(ever_held[1] && ever_held[3] && ever_free[1] && ever_free[3]);
        CHECK(ever_held[0] == (kind != TS_PATTERN_SUFFIX) &&
              ever_free[4] == (kind == TS_PATTERN_PREFIX || kind == TS_PATTERN_SCATTERED));
    }
}

static void test_short_samples(void) {
    bool held[2];
    for (int kind = 0; kind < TS_PATTERN_COUNT; kind++) {
        const ts_objective o = one_pattern((ts_pattern)kind);
        const ts_pattern alone = ts_objective_held(&o, 3, 1, held);
        CHECK(!held[0] && alone == (kind == TS_PATTERN_INDEPENDENT ? TS_PATTERN_INDEPENDENT : TS_PATTERN_ALL));
        const ts_pattern two = ts_objective_held(&o, 3, 2, held);
        CHECK(two == (kind == TS_PATTERN_BOTH_ENDS ? TS_PATTERN_ALL : (ts_pattern)kind));
    }
}

static void test_shares(void) {
    ts_objective o = {.seed = 5, .std = 1, .shift = 1, .text_dropout = 0.15};
    const double weight[TS_PATTERN_COUNT] = {0.4, 0.2, 0, 0.1, 0.2, 0.1};
    memcpy(o.pattern, weight, sizeof weight);
    int64_t seen[TS_PATTERN_COUNT] = {0}, dropped = 0;
    bool held[FRAMES];
    for (uint64_t i = 0; i < SAMPLES; i++) {
        seen[ts_objective_held(&o, i, FRAMES, held)]++;
        dropped += ts_objective_drops_text(&o, i);
    }
    for (int kind = 0; kind < TS_PATTERN_COUNT; kind++) {
        CHECK_NEAR((double)seen[kind] / SAMPLES, weight[kind], 0.015);
    }
    CHECK(seen[TS_PATTERN_SUFFIX] == 0);
    CHECK_NEAR((double)dropped / SAMPLES, 0.15, 0.01);
}

// A batch prepared whole equals the same batch prepared in uneven parts, bit for bit, and obeys the equations.
static void test_parts(void) {
    enum { BATCH = 7, SIZE = 12, N = FRAMES * SIZE };
    ts_objective o = {.seed = 11, .std = 1, .shift = 2, .text_dropout = 0.5};
    for (int kind = 0; kind < TS_PATTERN_COUNT; kind++) {
        o.pattern[kind] = 1;
    }
    const ts_kernels *kernels = NULL;
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    const ts_shape shape = TS_SHAPE(FRAMES, 2, 3, 2);
    static float latent[BATCH * N];
    ts_rng_normal_fill(latent, BATCH * N, 3, TS_RNG_TEST, 0, 0);
    const char *caption[BATCH] = {"a", "b", "c", "d", "e", "f", "g"};
    ts_tape *tape = NULL;
    CHECK_OK(ts_tape_open(&tape, kernels, TS_TAPE_RUN, TS_F32));
    ts_noisy whole, part;
    const ts_clean clean = {
        .count = BATCH, .shape = shape, .latent = latent, .dtype = TS_F32, .caption = caption, .first = 100};
    CHECK_OK(ts_objective_prepare(&o, tape, &clean, &whole));
    for (int64_t i = 0, count; i < BATCH; i += count) {
        count = i == 0 ? 3 : 2;
        const ts_clean some = {.count = count,
                               .shape = shape,
                               .latent = latent + i * N,
                               .dtype = TS_F32,
                               .caption = caption + i,
                               .first = 100 + (uint64_t)i};
        CHECK_OK(ts_objective_prepare(&o, tape, &some, &part));
        CHECK(!memcmp(part.x, whole.x + i * N, (size_t)(count * N) * sizeof(float)));
        CHECK(!memcmp(part.target, whole.target + i * N, (size_t)(count * N) * sizeof(float)));
        CHECK(!memcmp(part.timestep, whole.timestep + i * FRAMES, (size_t)(count * FRAMES) * sizeof(float)));
        CHECK(!memcmp(part.prompt, whole.prompt + i, (size_t)count * sizeof(char *)) ||
              !strcmp(part.prompt[0], whole.prompt[i]));
    }
    int64_t loss_frames = 0;
    for (int64_t r = 0; r < BATCH * FRAMES; r++) {
        loss_frames += whole.weight[r] > 0;
        for (int64_t e = r * SIZE; e < (r + 1) * SIZE; e++) {
            // x - sigma v = x0
            CHECK_NEAR(whole.x[e] - whole.timestep[r] / 1000 * whole.target[e], latent[e], 1e-5);
        }
    }
    CHECK(loss_frames == ts_objective_loss_frames(&o, 100, BATCH, FRAMES));
    CHECK(loss_frames < BATCH * FRAMES);
    ts_tape_close(&tape);
}

int main(void) {
    test_shift();
    test_level_statistics();
    test_independent_levels();
    test_forms();
    test_short_samples();
    test_shares();
    test_parts();
    return ts_test_end();
}
