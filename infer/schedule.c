// SPDX-License-Identifier: Apache-2.0
#include "infer/schedule.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

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
    const ts_kernels *kernels;
    int64_t n;
    // UniPC only, device memory:
    int64_t last_order;  // of the predictor of the step before
    float *start;        // [n] the corrected sample that predictor started from
    float *x0[3];        // [n] x0 predicted now, one step ago, two steps ago
};

int ts_solver_open(ts_solver **out, ts_solver_kind kind, const ts_schedule *schedule, const ts_kernels *kernels,
                   int64_t n) {
    ts_solver *solver = ts_calloc(1, sizeof *solver);
    if (!solver) {
        return TS_ERESOURCE;
    }
    *solver = (ts_solver){.kind = kind, .schedule = schedule, .kernels = kernels, .n = n};
    if (kind == TS_SOLVER_UNIPC) {
        float *memory = kernels->device->allocate(4 * (size_t)n * sizeof *memory);
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
        (*solver)->kernels->device->release((*solver)->start);
        free(*solver);
        *solver = NULL;
    }
}

typedef struct term {
    double c;
    const float *x;
} term;

// out = the sum of the terms
static int combine(const ts_solver *s, float *out, const term *terms, int count) {
    ts_combine sum = {.n = s->n, .terms = count, .out = out};
    for (int k = 0; k < count; k++) {
        sum.c[k] = terms[k].c;
        sum.x[k] = terms[k].x;
    }
    return s->kernels->combine(&sum);
}

static int copy(const ts_solver *s, float *to, const float *from) {
    return s->kernels->device->copy(to, from, (size_t)s->n * sizeof *to);
}

// Half the log signal-to-noise ratio, lambda = ln(1 - sigma) - ln(sigma); +infinity at sigma 0.
static double log_snr(const ts_schedule *schedule, int64_t i) {
    const double sigma = schedule->sigma[i];
    return log(1.0 - sigma) - log(sigma);
}

// Corrects x, which the predictor of step i-1 reached, with the x0 found there (x0[0]):
//   x = ratio start - a (x0[1] + c_old (x0[2] - x0[1]) / r + c_new (x0[0] - x0[1]))
static int unipc_correct(ts_solver *s, int64_t i, float *x) {
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
    const double older = c_old / r;
    const term terms[] = {
        {ratio, s->start}, {-a * (1.0 - older - c_new), s->x0[1]}, {-a * c_new, s->x0[0]}, {-a * older, s->x0[2]}};
    return combine(s, x, terms, s->last_order == 2 ? 4 : 3);  // there is no x0[2] before order 2
}

//   x = ratio x - a (x0[0] + c (x0[1] - x0[0]))
static int unipc_predict(ts_solver *s, int64_t i, float *x) {
    const ts_schedule *g = s->schedule;
    if (i + 1 == g->steps) {  // sigma 0: the sample is x0 itself
        return copy(s, x, s->x0[0]);
    }
    s->last_order = i == 0 ? 1 : 2;
    const double h = log_snr(g, i + 1) - log_snr(g, i), e = expm1(-h);
    const double a = (1.0 - g->sigma[i + 1]) * e, ratio = (double)g->sigma[i + 1] / g->sigma[i];
    const double r = i == 0 ? 1.0 : (log_snr(g, i - 1) - log_snr(g, i)) / h;
    const double c = i == 0 ? 0.0 : 0.5 / r;
    const term terms[] = {{ratio, x}, {-a * (1.0 - c), s->x0[0]}, {-a * c, s->x0[1]}};
    return combine(s, x, terms, i == 0 ? 2 : 3);
}

static int unipc_step(ts_solver *s, int64_t i, const float *velocity, float *x) {
    float *oldest = s->x0[2];
    s->x0[2] = s->x0[1];
    s->x0[1] = s->x0[0];
    s->x0[0] = oldest;
    // x0 comes from the uncorrected sample, where the velocity was taken, and is not made anew after the correction.
    TS_TRY(combine(s, s->x0[0], (const term[]){{1.0, x}, {-(double)s->schedule->sigma[i], velocity}}, 2));
    TS_TRY(i > 0 ? unipc_correct(s, i, x) : TS_OK);
    TS_TRY(copy(s, s->start, x));
    return unipc_predict(s, i, x);
}

int ts_solver_step(ts_solver *solver, int64_t step, const float *velocity, float *x) {
    TS_ASSERT(step >= 0 && step < solver->schedule->steps);
    if (solver->kind == TS_SOLVER_UNIPC) {
        return unipc_step(solver, step, velocity, x);
    }
    const float d = solver->schedule->sigma[step + 1] - solver->schedule->sigma[step];
    return combine(solver, x, (const term[]){{1.0, x}, {d, velocity}}, 2);
}
