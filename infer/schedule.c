// SPDX-License-Identifier: Apache-2.0
#include "infer/schedule.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"

const char *const ts_grid_names[] = {"unipc", "wan", "euler", "euler-twice", "ltx", NULL};
const char *const ts_solver_names[] = {"euler", "unipc", NULL};

// ---- noise levels

static double shifted(double sigma, double shift) {
    return shift * sigma / (1.0 + (shift - 1.0) * sigma);
}

// Point i of n from `first` to `last`, as numpy's linspace.
static double between(double first, double last, int64_t i, int64_t n) {
    return n == 1 ? first : first + (last - first) * (double)i / (double)(n - 1);
}

static double stretched_ltx(double sigma, double mu, int64_t steps) {
    const double terminal = 0.1;
    const double last = exp(mu) / (exp(mu) + ((double)steps - 1.0));
    const double value = exp(mu) / (exp(mu) + (1.0 / sigma - 1.0));
    return steps == 1 ? value : 1.0 - (1.0 - value) * (1.0 - terminal) / (1.0 - last);
}

static double grid_sigma(ts_grid grid, int64_t i, int64_t steps, double shift) {
    switch (grid) {
    case TS_GRID_UNIPC: {
        const double sigma = shifted(between(1.0, 0.001, i, steps + 1), shift);
        // The solver divides by alpha = 1 - sigma, so exactly 1 is not a level.
        return i == 0 && fabs(sigma - 1.0) < 1e-6 ? sigma - 1e-6 : sigma;
    }
    case TS_GRID_WAN:
        return shifted(between(0.999, 0.0, i, steps + 1), shift);
    case TS_GRID_EULER:
        return shifted(between(1.0, 0.0, i, steps + 1), shift);
    case TS_GRID_EULER_TWICE:
        return shifted(between(1.0, shifted(0.001, shift), i, steps), shift);
    case TS_GRID_LTX:
        return stretched_ltx(between(1.0, 1.0 / (double)steps, i, steps), shift, steps);
    }
    return NAN;
}

int ts_schedule_make(ts_schedule *out, ts_grid grid, int64_t steps, double shift) {
    if (steps < 1 || steps > TS_MAX_STEPS) {
        return TS_FAIL(TS_EUSAGE, "%lld sampling steps; give 1 to %d", (long long)steps, TS_MAX_STEPS);
    }
    if (!(shift > 0.0) || !isfinite(shift)) {
        return TS_FAIL(TS_EUSAGE, "a shift of %g; give a positive number", shift);
    }
    const bool truncate = grid == TS_GRID_UNIPC || grid == TS_GRID_WAN;
    out->steps = steps;
    for (int64_t i = 0; i < steps; i++) {
        const double sigma = grid_sigma(grid, i, steps, shift);
        out->sigma[i] = (float)sigma;
        out->timestep[i] = (float)(truncate ? trunc(1000.0 * sigma) : 1000.0 * sigma);
    }
    out->sigma[steps] = 0.0f;
    return TS_OK;
}

// ---- solvers

struct ts_solver {
    ts_solver_kind kind;
    const ts_schedule *schedule;
    int64_t n;
    // UniPC only:
    int64_t last_order;  // of the predictor of the step before
    float *start;        // [n] the corrected sample that predictor started from
    float *x0[3];        // [n] x0 predicted now, one step ago, two steps ago
};

int ts_solver_open(ts_solver **out, ts_solver_kind kind, const ts_schedule *schedule, int64_t n) {
    ts_solver *solver = ts_calloc(1, sizeof *solver);
    if (!solver) {
        return TS_ERESOURCE;
    }
    *solver = (ts_solver){.kind = kind, .schedule = schedule, .n = n};
    if (kind == TS_SOLVER_UNIPC) {
        float *memory = ts_calloc(4 * (size_t)n, sizeof *memory);
        if (!memory) {
            free(solver);
            return TS_ERESOURCE;
        }
        solver->start = memory;
        for (int k = 0; k < 3; k++) {
            solver->x0[k] = memory + (k + 1) * n;
        }
    }
    *out = solver;
    return TS_OK;
}

void ts_solver_close(ts_solver **solver) {
    if (*solver) {
        free((*solver)->start);
        free(*solver);
        *solver = NULL;
    }
}

// Half the log signal-to-noise ratio, lambda = ln(1 - sigma) - ln(sigma); +infinity at sigma 0.
static double log_snr(const ts_schedule *schedule, int64_t i) {
    const double sigma = schedule->sigma[i];
    return log(1.0 - sigma) - log(sigma);
}

// Corrects x, which the predictor of step i-1 reached, with the x0 found there (x0[0]).
static void unipc_correct(ts_solver *s, int64_t i, float *x) {
    const ts_schedule *g = s->schedule;
    const double h = log_snr(g, i) - log_snr(g, i - 1), e = expm1(-h);
    const double a = (1.0 - g->sigma[i]) * e, ratio = (double)g->sigma[i] / g->sigma[i - 1];
    double c_old = 0.0, c_new = 0.5, r = 1.0;
    if (s->last_order == 2) {
        r = (log_snr(g, i - 2) - log_snr(g, i - 1)) / h;
        const double phi = -e / h - 1.0, b1 = phi / e, b2 = 2.0 * (-phi / h - 0.5) / e;
        c_old = (b1 - b2) / (1.0 - r);
        c_new = b1 - c_old;
    }
    const float *now = s->x0[0], *one = s->x0[1], *two = s->x0[2];
    for (int64_t j = 0; j < s->n; j++) {
        const double base = ratio * s->start[j] - a * one[j];
        const double older = s->last_order == 2 ? c_old * (two[j] - one[j]) / r : 0.0;
        x[j] = (float)(base - a * (older + c_new * (now[j] - one[j])));
    }
}

static void unipc_predict(ts_solver *s, int64_t i, float *x) {
    const ts_schedule *g = s->schedule;
    if (i + 1 == g->steps) {  // sigma 0: the sample is x0 itself
        memcpy(x, s->x0[0], (size_t)s->n * sizeof *x);
        return;
    }
    s->last_order = i == 0 ? 1 : 2;
    const double h = log_snr(g, i + 1) - log_snr(g, i), e = expm1(-h);
    const double a = (1.0 - g->sigma[i + 1]) * e, ratio = (double)g->sigma[i + 1] / g->sigma[i];
    const double r = i == 0 ? 1.0 : (log_snr(g, i - 1) - log_snr(g, i)) / h;
    const double c = i == 0 ? 0.0 : 0.5 / r;
    const float *now = s->x0[0], *one = s->x0[1];
    for (int64_t j = 0; j < s->n; j++) {
        x[j] = (float)(ratio * x[j] - a * (now[j] + c * (one[j] - now[j])));
    }
}

static void unipc_step(ts_solver *s, int64_t i, const float *velocity, float *x) {
    float *oldest = s->x0[2];
    s->x0[2] = s->x0[1];
    s->x0[1] = s->x0[0];
    s->x0[0] = oldest;
    // x0 comes from the uncorrected sample, where the velocity was taken, and is not made anew after the correction.
    for (int64_t j = 0; j < s->n; j++) {
        s->x0[0][j] = x[j] - s->schedule->sigma[i] * velocity[j];
    }
    if (i > 0) {
        unipc_correct(s, i, x);
    }
    memcpy(s->start, x, (size_t)s->n * sizeof *x);
    unipc_predict(s, i, x);
}

int ts_solver_step(ts_solver *solver, int64_t step, const float *velocity, float *x) {
    TS_ASSERT(step >= 0 && step < solver->schedule->steps);
    if (solver->kind == TS_SOLVER_UNIPC) {
        unipc_step(solver, step, velocity, x);
        return TS_OK;
    }
    const float d = solver->schedule->sigma[step + 1] - solver->schedule->sigma[step];
    for (int64_t j = 0; j < solver->n; j++) {
        x[j] += d * velocity[j];
    }
    return TS_OK;
}
