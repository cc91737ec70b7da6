// SPDX-License-Identifier: Apache-2.0
#include "infer/sampler/schedule.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#include "core/base/status.h"

const char *const ts_grid_names[] = {"unipc", "wan", "euler", "euler-twice", "ltx", NULL};

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

float ts_schedule_floor(ts_grid grid, double strength, double shift) {
    if (strength <= 0.0) {
        return 0.0f;
    }
    return (float)shifted(fmin(strength, 1.0), grid == TS_GRID_LTX ? exp(shift) : shift);
}

// A shift that is far off leaves levels that a float cannot tell apart, or none at all; solvers divide by their
// distance.
static int check_levels(const ts_schedule *schedule, double shift) {
    for (int64_t i = 0; i < schedule->steps; i++) {
        if (!(schedule->sigma[i] <= 1.0f && schedule->sigma[i + 1] < schedule->sigma[i])) {
            return TS_FAIL(TS_EUSAGE, "a shift of %g leaves no %lld different noise levels; take one nearer to 1",
                           shift, (long long)schedule->steps);
        }
    }
    return TS_OK;
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
    return check_levels(out, shift);
}
