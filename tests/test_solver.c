// SPDX-License-Identifier: Apache-2.0
// A noise level for each row: rows of many floors side by side against a solver for each floor alone.
// TEST: timeout=30
#include <stdlib.h>
#include <string.h>

#include "infer/sampler/solver.h"
#include "tests/ts_test.h"

enum { ROWS = 9, WIDTH = 5, CLASSES = 6, STEPS = 12 };

static const ts_kernels *kernels;
static ts_schedule schedule;

// Held; a little above a level of the schedule; between two; a level itself; above all; near the end.
static float floors[CLASSES];
static const int32_t class_of[ROWS] = {2, 0, 1, 4, 3, 3, 0, 5, 2};

static void make_floors(void) {
    CHECK_OK(ts_schedule_make(&schedule, TS_GRID_UNIPC, STEPS, 3.0));
    floors[0] = 0.0f;
    floors[1] = schedule.sigma[4] + 1e-4f;
    floors[2] = 0.5f * (schedule.sigma[6] + schedule.sigma[7]);
    floors[3] = schedule.sigma[5];
    floors[4] = 1.0f;
    floors[5] = 0.5f * schedule.sigma[STEPS - 1];
}

static void start(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] = sinf(1.7f * (float)i + 0.3f);
    }
}

static float field(float x, float level) {
    return 0.7f * tanhf(x) + 0.3f * level;
}

// The rows of one class by a solver of a schedule that begins at the class's floor.
static void alone(ts_solver_kind kind, float floor, float *x, int64_t n) {
    static ts_schedule own;
    own = (ts_schedule){0};
    for (int64_t i = 0; i <= STEPS; i++) {
        if (own.steps == 0 && schedule.sigma[i] < floor && i > 0) {
            own.sigma[own.steps++] = fminf(schedule.sigma[i - 1], floor);
        }
        if (own.steps > 0) {
            own.sigma[own.steps++] = schedule.sigma[i];
        }
    }
    own.steps -= own.steps > 0;
    ts_solver *solver = NULL;
    const float all = 1.0f;
    float velocity[ROWS * WIDTH];
    CHECK_OK(ts_solver_open(&solver, kind, &own, kernels, &(ts_solver_rows){1, n, 1, &all, NULL}));
    for (int64_t i = 0; i < own.steps; i++) {
        for (int64_t j = 0; j < n; j++) {
            velocity[j] = field(x[j], own.sigma[i]);
        }
        CHECK_OK(ts_solver_step(solver, i, velocity, x));
    }
    ts_solver_close(&solver);
}

// Velocities for rows that move are the field's; of others what no number may come from.
static void velocities(const ts_solver *solver, int64_t step, const float *x, float *velocity) {
    for (int64_t i = 0; i < ROWS * WIDTH; i++) {
        const float floor = floors[class_of[i / WIDTH]];
        const float level = ts_solver_level(solver, step, class_of[i / WIDTH]);
        CHECK(level == fminf(schedule.sigma[step], floor));
        velocity[i] = schedule.sigma[step + 1] < floor ? field(x[i], level) : NAN;
    }
}

// Steps `first` to `end`; rows that do not move must keep their bits. The last clean latents are compared.
static void run(ts_solver *solver, int64_t first, int64_t end, float *x) {
    float velocity[ROWS * WIDTH], before[ROWS * WIDTH];
    for (int64_t i = first; i < end; i++) {
        velocities(solver, i, x, velocity);
        memcpy(before, x, sizeof before);
        CHECK_OK(ts_solver_step(solver, i, velocity, x));
        const float *x0 = ts_solver_x0(solver);
        for (int64_t j = 0; j < ROWS * WIDTH; j++) {
            const float level = ts_solver_level(solver, i, class_of[j / WIDTH]);
            if (isnan(velocity[j])) {
                CHECK(memcmp(&x[j], &before[j], sizeof x[j]) == 0);
                CHECK(level > 0.0f || memcmp(&x0[j], &x[j], sizeof x[j]) == 0);
            } else {
                CHECK_NEAR(x0[j], before[j] - level * velocity[j], 1e-6);
            }
        }
    }
}

static const ts_solver_rows all_rows = {ROWS, WIDTH, CLASSES, floors, class_of};

static void check_against_lone_solvers(ts_solver_kind kind) {
    ts_solver *solver = NULL;
    CHECK_OK(ts_solver_open(&solver, kind, &schedule, kernels, &all_rows));
    CHECK(ts_solver_first_step(solver) == 0 && ts_solver_x0(solver) == NULL);
    float x[ROWS * WIDTH], lone[ROWS * WIDTH];
    start(x, ROWS * WIDTH);
    start(lone, ROWS * WIDTH);
    run(solver, 0, STEPS, x);
    for (int64_t row = 0; row < ROWS; row++) {
        alone(kind, floors[class_of[row]], lone + row * WIDTH, WIDTH);
    }
    for (int64_t i = 0; i < ROWS * WIDTH; i++) {
        CHECK(isfinite(x[i]));
        CHECK(memcmp(&x[i], &lone[i], sizeof x[i]) == 0);
    }
    CHECK(ts_solver_level(solver, STEPS, 4) == 0.0f);
    ts_solver_close(&solver);
}

// A first step of almost no length, during which the world of a row changed, is not extrapolated from.
static void check_short_first_step(void) {
    const float floor = schedule.sigma[4] + 1e-6f;
    ts_solver *solver = NULL;
    CHECK_OK(ts_solver_open(&solver, TS_SOLVER_UNIPC, &schedule, kernels, &(ts_solver_rows){1, 1, 1, &floor, NULL}));
    CHECK(ts_solver_first_step(solver) == 3);
    float x = 0.5f;
    for (int64_t i = 3; i < STEPS; i++) {
        const float velocity = i == 3 ? 0.0f : 0.5f;
        CHECK_OK(ts_solver_step(solver, i, &velocity, &x));
        CHECK(fabsf(x) < 2.0f);
    }
    ts_solver_close(&solver);
}

// Saved after some steps and continued by another solver: the same bits.
static void check_resume(ts_solver_kind kind) {
    float whole[ROWS * WIDTH], x[ROWS * WIDTH], *from[TS_SOLVER_ARRAYS], *to[TS_SOLVER_ARRAYS];
    start(whole, ROWS * WIDTH);
    start(x, ROWS * WIDTH);
    ts_solver *solver = NULL, *other = NULL;
    CHECK_OK(ts_solver_open(&solver, kind, &schedule, kernels, &all_rows));
    run(solver, 0, STEPS, whole);
    ts_solver_close(&solver);
    CHECK_OK(ts_solver_open(&solver, kind, &schedule, kernels, &all_rows));
    CHECK_OK(ts_solver_open(&other, kind, &schedule, kernels, &all_rows));
    run(solver, 0, 7, x);
    int count, same;
    CHECK_OK(ts_solver_memory(solver, from, &count));
    CHECK_OK(ts_solver_memory(other, to, &same));
    CHECK(count == same && count == (kind == TS_SOLVER_UNIPC ? 4 : 1));
    for (int k = 0; k < count; k++) {
        memcpy(to[k], from[k], sizeof x);
    }
    CHECK_OK(ts_solver_resume(other, 7));
    CHECK(memcmp(ts_solver_x0(other), ts_solver_x0(solver), sizeof x) == 0);
    run(other, 7, STEPS, x);
    CHECK(memcmp(x, whole, sizeof x) == 0);
    CHECK_FAILS(ts_solver_resume(other, STEPS + 1), TS_EUSAGE, "step");
    ts_solver_close(&solver);
    ts_solver_close(&other);
}

// What the caller changed on the way goes on as if it began there; the other rows do not notice, nor do rows that still
// wait.
static void check_forget(ts_solver_kind kind) {
    enum { CHANGED = 4, WAITS = 5, FROM = 6 };
    float x[ROWS * WIDTH], undisturbed[ROWS * WIDTH], lone[ROWS * WIDTH];
    ts_solver *solver = NULL;
    for (int changed = 0; changed < 2; changed++) {
        float *rows = changed ? x : undisturbed;
        CHECK_OK(ts_solver_open(&solver, kind, &schedule, kernels, &all_rows));
        start(rows, ROWS * WIDTH);
        run(solver, 0, FROM, rows);
        for (int64_t i = 0; i < ROWS * WIDTH && changed; i++) {
            rows[i] = class_of[i / WIDTH] == CHANGED ? -rows[i] : rows[i];
            lone[i] = rows[i];
        }
        if (changed) {
            ts_solver_forget(solver, CHANGED);
            ts_solver_forget(solver, WAITS);
        }
        run(solver, FROM, STEPS, rows);
        ts_solver_close(&solver);
    }
    for (int64_t row = 0; row < ROWS; row++) {
        const bool is_changed = class_of[row] == CHANGED;
        if (is_changed) {
            alone(kind, schedule.sigma[FROM], lone + row * WIDTH, WIDTH);
        }
        const float *wanted = is_changed ? lone : undisturbed;
        CHECK(memcmp(x + row * WIDTH, wanted + row * WIDTH, WIDTH * sizeof *x) == 0);
    }
}

static void check_refusals(void) {
    ts_solver *solver = NULL;
    const float bad[] = {NAN, -0.5f};
    const int32_t none = 1;
    for (int i = 0; i < 2; i++) {
        const ts_solver_rows rows = {1, 1, 1, bad + i, NULL};
        CHECK_FAILS(ts_solver_open(&solver, TS_SOLVER_EULER, &schedule, kernels, &rows), TS_EUSAGE, "floor");
    }
    const ts_solver_rows rows = {1, 1, 1, floors, &none};
    CHECK_FAILS(ts_solver_open(&solver, TS_SOLVER_EULER, &schedule, kernels, &rows), TS_EUSAGE, "class");
    const ts_solver_rows held = {1, 1, 1, floors, NULL};
    CHECK_OK(ts_solver_open(&solver, TS_SOLVER_EULER, &schedule, kernels, &held));
    CHECK(ts_solver_first_step(solver) == STEPS);
    ts_solver_close(&solver);
}

int main(void) {
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    make_floors();
    for (ts_solver_kind kind = TS_SOLVER_EULER; kind <= TS_SOLVER_UNIPC && !ts_test_failures; kind++) {
        check_against_lone_solvers(kind);
        check_resume(kind);
        check_forget(kind);
    }
    check_short_first_step();
    check_refusals();
    return ts_test_end();
}
