// SPDX-License-Identifier: Apache-2.0
// Noise levels and solver trajectories against the tables of the public implementations
// (tests/vectors/schedulers.json).
#include "core/base/json.h"
#include "infer/sampler/solver.h"
#include "tests/ts_test.h"

static json_t *vectors;
static const ts_kernels *kernels;

static double number(const json_t *list, size_t i) {
    return json_number_value(json_array_get(list, i));
}

// Compares sigmas and timesteps of one table; the worst difference of sigma is returned for the known-wrong check.
static double compare(const char *name, ts_grid grid, int64_t steps, double shift) {
    const json_t *table = json_object_get(vectors, name);
    const json_t *sigmas = json_object_get(table, "sigmas"), *timesteps = json_object_get(table, "timesteps");
    static ts_schedule schedule;
    CHECK_OK(ts_schedule_make(&schedule, grid, steps, shift));
    CHECK(json_array_size(sigmas) == (size_t)steps + 1 && json_array_size(timesteps) == (size_t)steps);
    double worst = 0.0;
    for (size_t i = 0; i <= (size_t)steps && i < json_array_size(sigmas); i++) {
        worst = fmax(worst, fabs(schedule.sigma[i] - number(sigmas, i)));
        if (i < (size_t)steps) {
            worst = fmax(worst, fabs(schedule.timestep[i] - number(timesteps, i)) * 1e-3);
        }
    }
    return worst;
}

static void check_tables(void) {
    const char *name;
    json_t *table;
    int checked = 0;
    json_object_foreach(vectors, name, table) {
        int steps = 0;
        double shift = 0.0;
        ts_grid grid = TS_GRID_UNIPC;
        if (sscanf(name, "unipc_diffusers_N%d_shift%lf", &steps, &shift) == 2) {
            grid = TS_GRID_UNIPC;
        } else if (sscanf(name, "unipc_official_wan_N%d_shift%lf", &steps, &shift) == 2) {
            grid = TS_GRID_WAN;
        } else if (sscanf(name, "euler_default_N%d_shift%lf", &steps, &shift) == 2) {
            grid = TS_GRID_EULER_TWICE;
        } else if (sscanf(name, "euler_hunyuan_N%d_shift%lf", &steps, &shift) == 2) {
            grid = TS_GRID_EULER;
        } else if (sscanf(name, "euler_ltx_N%d", &steps) == 1) {
            grid = TS_GRID_LTX;
            shift = json_number_value(json_object_get(table, "mu"));
        } else {
            continue;
        }
        const double worst = compare(name, grid, steps, shift);
        printf("%-40s %.2g\n", name, worst);
        CHECK(worst <= 1e-5);
        checked++;
    }
    CHECK(checked == 23);
    CHECK(compare("unipc_diffusers_N50_shift3.0", TS_GRID_WAN, 50, 3.0) > 1e-5);  // the check can fail
}

static void check_trajectory(const char *name, int64_t steps, double shift) {
    const json_t *states = json_object_get(json_object_get(vectors, name), "x");
    CHECK(json_array_size(states) == (size_t)steps + 1);
    const json_t *start = json_array_get(states, 0);
    enum { MAX = 64 };
    const int64_t n = (int64_t)json_array_size(start);
    CHECK(n > 0 && n <= MAX);
    float x[MAX], velocity[MAX];
    for (int64_t j = 0; j < n; j++) {
        x[j] = (float)number(start, (size_t)j);
    }
    static ts_schedule schedule;
    ts_solver *solver = NULL;
    CHECK_OK(ts_schedule_make(&schedule, TS_GRID_UNIPC, steps, shift));
    const float all = 1.0f;
    CHECK_OK(ts_solver_open(&solver, TS_SOLVER_UNIPC, &schedule, kernels, &(ts_solver_rows){1, n, 1, &all, NULL}));
    double worst = 0.0;
    for (int64_t i = 0; i < steps; i++) {
        for (int64_t j = 0; j < n; j++) {
            velocity[j] = 0.7f * tanhf(x[j]) + 0.3f * schedule.timestep[i] / 1000.0f;
        }
        CHECK_OK(ts_solver_step(solver, i, velocity, x));
        for (int64_t j = 0; j < n; j++) {
            worst = fmax(worst, fabs(x[j] - number(json_array_get(states, (size_t)i + 1), (size_t)j)));
        }
    }
    printf("%-40s %.2g\n", name, worst);
    CHECK(worst <= 1e-5);
    ts_solver_close(&solver);
}

// With a constant velocity Euler is exact on any grid.
static void check_euler(void) {
    static ts_schedule schedule;
    ts_solver *solver = NULL;
    CHECK_OK(ts_schedule_make(&schedule, TS_GRID_EULER, 7, 3.0));
    const float all = 1.0f;
    CHECK_OK(ts_solver_open(&solver, TS_SOLVER_EULER, &schedule, kernels, &(ts_solver_rows){1, 2, 1, &all, NULL}));
    float x[2] = {1.0f, -2.0f};
    const float velocity[2] = {0.5f, -1.5f};
    for (int64_t i = 0; i < 7; i++) {
        CHECK_OK(ts_solver_step(solver, i, velocity, x));
    }
    CHECK_NEAR(x[0], 0.5, 1e-6);
    CHECK_NEAR(x[1], -0.5, 1e-6);
    ts_solver_close(&solver);
    CHECK(ts_schedule_floor(TS_GRID_EULER, 0.0, 3.0) == 0.0f && ts_schedule_floor(TS_GRID_EULER, 1.0, 3.0) == 1.0f);
    CHECK_NEAR(ts_schedule_floor(TS_GRID_EULER, 4.0 / 7.0, 3.0), schedule.sigma[3], 1e-7);  // the level 4/7 of the way
    CHECK_FAILS(ts_schedule_make(&schedule, TS_GRID_EULER, 0, 3.0), TS_EUSAGE, "steps");
    CHECK_FAILS(ts_schedule_make(&schedule, TS_GRID_EULER, TS_MAX_STEPS + 1, 3.0), TS_EUSAGE, "steps");
    CHECK_FAILS(ts_schedule_make(&schedule, TS_GRID_EULER, 4, 0.0), TS_EUSAGE, "shift");
    CHECK_FAILS(ts_schedule_make(&schedule, TS_GRID_EULER, 4, (double)NAN), TS_EUSAGE, "shift");
}

// Every grid falls all the way at any shift that models have, and a shift far off is told, not made into NaN.
static void check_falling(void) {
    static const double shifts[] = {0.5, 1.0, 3.0, 12.0};
    static ts_schedule s;
    for (int grid = 0; ts_grid_names[grid]; grid++) {
        for (int64_t steps = 1; steps <= TS_MAX_STEPS; steps = steps * 10) {
            for (size_t i = 0; i < sizeof shifts / sizeof *shifts; i++) {
                CHECK_OK(ts_schedule_make(&s, (ts_grid)grid, steps, shifts[i]));
                CHECK(s.sigma[0] <= 1.0f && s.sigma[steps - 1] > 0.0f && s.sigma[steps] == 0.0f);
            }
        }
    }
    CHECK_FAILS(ts_schedule_make(&s, TS_GRID_LTX, 25, 100.0), TS_EUSAGE, "nearer to 1");
    CHECK_FAILS(ts_schedule_make(&s, TS_GRID_LTX, 1, 1000.0), TS_EUSAGE, "a shift of 1000");
    CHECK_FAILS(ts_schedule_make(&s, TS_GRID_UNIPC, TS_MAX_STEPS, 1000.0), TS_EUSAGE, "different noise levels");
    CHECK_FAILS(ts_schedule_make(&s, TS_GRID_EULER, 4, 1e-60), TS_EUSAGE, "different noise levels");
    CHECK_OK(ts_schedule_make(&s, TS_GRID_UNIPC, 50, 1000.0));
}

int main(void) {
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    CHECK_OK(ts_json_read("tests/vectors/schedulers.json", 1 << 20, &vectors));
    if (ts_test_failures) {
        return ts_test_end();
    }
    check_tables();
    check_trajectory("unipc_traj_N8_shift3.0", 8, 3.0);
    check_trajectory("unipc_traj_N20_shift5.0", 20, 5.0);
    check_euler();
    check_falling();
    json_decref(vectors);
    return ts_test_end();
}
