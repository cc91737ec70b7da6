// SPDX-License-Identifier: Apache-2.0
#include "core/nn/gradcheck.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/rng.h"
#include "core/base/status.h"

typedef struct derivative {
    const char *name;
    double analytic, numeric;
} derivative;

typedef struct checker {
    ts_gradcheck_fn f;
    void *user;
    ts_params *set;
    double step;
    uint64_t seed, draws;
    derivative *made;
    int64_t made_count;
} checker;

static double root_mean_square(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    return sqrt(sum / (double)n);
}

// Host copies of a target's numbers; `moved` also takes the gradient.
typedef struct numbers {
    float *base, *direction, *moved;
} numbers;

static int value_at(checker *c, const ts_gradcheck_target *t, const numbers *x, double distance, double *out) {
    const ts_device *device = ts_device_of(t->value);
    const size_t bytes = (size_t)t->count * sizeof *x->moved;
    for (int64_t i = 0; i < t->count; i++) {
        x->moved[i] = (float)((double)x->base[i] + distance * (double)x->direction[i]);
    }
    TS_TRY(device->upload(t->value, x->moved, bytes));
    const int status = c->f(c->user, false, out);
    TS_TRY(device->upload(t->value, x->base, bytes));
    return status;
}

static int check_direction(checker *c, const ts_gradcheck_target *t, const numbers *x) {
    const int64_t n = t->count;
    const size_t bytes = (size_t)n * sizeof *x->base;
    ts_rng_normal_fill(x->direction, n, c->seed, TS_RNG_TEST, c->draws++, 0);
    TS_TRY(ts_device_of(t->value)->download(x->base, t->value, bytes));
    const double size = root_mean_square(x->base, n), h = c->step * (size > 0 ? size : 1.0);
    double value, near[2], far[2], analytic = 0;
    if (c->set) {
        TS_TRY(ts_params_zero_grad(c->set));
    }
    TS_TRY(c->f(c->user, true, &value));
    TS_TRY(ts_device_of(*t->grad)->download(x->moved, *t->grad, bytes));
    for (int64_t i = 0; i < n; i++) {
        analytic += (double)x->moved[i] * (double)x->direction[i];
    }
    for (int side = 0; side < 2; side++) {
        const double sign = side ? 1.0 : -1.0;
        TS_TRY(value_at(c, t, x, sign * h, &near[side]));
        TS_TRY(value_at(c, t, x, sign * 2 * h, &far[side]));
    }
    const double numeric = (8 * (near[1] - near[0]) - (far[1] - far[0])) / (12 * h);
    c->made[c->made_count++] = (derivative){t->name, analytic, numeric};
    return 0;
}

static int check_target(checker *c, const ts_gradcheck_target *t, int directions) {
    float *room = ts_malloc(3 * (size_t)t->count * sizeof *room);
    if (!room) {
        return TS_ERESOURCE;
    }
    const numbers x = {room, room + t->count, room + 2 * t->count};
    int status = 0;
    for (int i = 0; i < directions && !status; i++) {
        status = check_direction(c, t, &x);
    }
    free(room);
    return status;
}

static void judge(const checker *c, ts_gradcheck_result *out) {
    double largest = 0;
    for (int64_t i = 0; i < c->made_count; i++) {
        largest = fmax(largest, fabs(c->made[i].analytic));
    }
    *out = (ts_gradcheck_result){0};
    for (int64_t i = 0; i < c->made_count; i++) {
        const derivative *d = &c->made[i];
        const double size = fmax(fmax(fabs(d->analytic), fabs(d->numeric)), 1e-2 * largest);
        const double error = size > 0 ? fabs(d->analytic - d->numeric) / size : 0;
        if (!(error <= out->worst)) {  // NaN counts as worst
            out->worst = isnan(error) ? INFINITY : error;
            snprintf(out->name, sizeof out->name, "%s", d->name);
            out->analytic = d->analytic;
            out->numeric = d->numeric;
        }
    }
}

int ts_gradcheck(ts_gradcheck_fn f, void *user, const ts_gradcheck_target *targets, int target_count, ts_params *set,
                 const ts_gradcheck_params *params, ts_gradcheck_result *out) {
    const int directions = params->directions ? params->directions : 2;
    const int64_t parameters = set ? set->count : 0;
    checker c = {
        .f = f, .user = user, .set = set, .step = params->step > 0 ? params->step : 0.02, .seed = params->seed};
    c.made = ts_calloc((size_t)((target_count + parameters) * directions + 1), sizeof *c.made);
    int status = c.made ? 0 : TS_ERESOURCE;
    for (int i = 0; i < target_count && !status; i++) {
        status = check_target(&c, &targets[i], directions);
    }
    for (int64_t i = 0; i < parameters && !status; i++) {
        ts_param *p = set->item[i];
        const ts_gradcheck_target target = {p->name, p->value, &p->grad, p->count};
        status = check_target(&c, &target, directions);
    }
    if (!status) {
        judge(&c, out);
    }
    free(c.made);
    return status;
}
