// SPDX-License-Identifier: Apache-2.0
// AdamW over a parameter set against a loop in double precision; groups, ranges, clipping and the average.
#include "core/base/rng.h"
#include "tests/ts_test.h"
#include "train/optimizer.h"

enum { TENSORS = 5, STEPS = 6 };

static ts_params *make_params(ts_dtype dtype) {
    static const struct {
        const char *name;
        int64_t rows, columns;
        bool decay;
        float lr_scale;
    } LIST[TENSORS] = {{"a.weight", 33, 7, true, 1},
                       {"a.bias", 1, 33, false, 1},
                       {"b.weight", 5, 1, true, 1},
                       {"text.weight", 40, 9, true, 0.5f},
                       {"c.bias", 1, 1, false, 1}};
    ts_params *params = NULL;
    CHECK_OK(ts_params_open(&params));
    for (int i = 0; i < TENSORS; i++) {
        ts_param *p = ts_params_add(params, LIST[i].name, TS_SHAPE(LIST[i].rows, LIST[i].columns), LIST[i].decay);
        CHECK(p);
        p->lr_scale = LIST[i].lr_scale;
    }
    CHECK_OK(ts_params_allocate(params, dtype, true));
    for (int i = 0; i < TENSORS; i++) {
        ts_param_init_normal(params->item[i], 3, 1.0f);
    }
    ts_params_refresh_operands(params);
    return params;
}

static void set_gradients(ts_params *params, int step) {
    for (int64_t i = 0; i < params->count; i++) {
        ts_rng_normal_fill(params->item[i]->grad, params->item[i]->count, 9, TS_RNG_TEST, (uint64_t)(step * 100 + i),
                           0);
    }
}

static const ts_optimizer_params ADAMW = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};

static void test_against_double(const ts_kernels *kernels, ts_dtype dtype) {
    ts_params *params = make_params(dtype);
    ts_optimizer *o = NULL;
    CHECK_OK(ts_optimizer_open(&o, params, kernels, &ADAMW));
    const size_t n = (size_t)params->total;
    double *w = calloc(n, sizeof *w), *m = calloc(n, sizeof *m), *v = calloc(n, sizeof *v), *e = calloc(n, sizeof *e);
    for (size_t i = 0; i < n; i++) {
        w[i] = e[i] = (double)params->value[i];
    }
    for (int step = 1; step <= STEPS; step++) {
        const double lr = 0.01 / step, scale = 0.7, decay = 0.9;
        set_gradients(params, step);
        // Two uneven ranges that cut through tensors, as two owners of a sharded optimizer would.
        CHECK_OK(ts_optimizer_step(o, 0, 100, step, lr, scale, decay));
        CHECK_OK(ts_optimizer_step(o, 100, params->total - 100, step, lr, scale, decay));
        for (int64_t t = 0; t < params->count; t++) {
            const ts_param *p = params->item[t];
            for (int64_t i = p->offset; i < p->offset + p->count; i++) {
                const double g = (double)params->grad[i] * scale;
                m[i] = ADAMW.beta1 * m[i] + (1 - ADAMW.beta1) * g;
                v[i] = ADAMW.beta2 * v[i] + (1 - ADAMW.beta2) * g * g;
                const double step_m = m[i] / (1 - pow(ADAMW.beta1, step)), step_v = v[i] / (1 - pow(ADAMW.beta2, step));
                w[i] -= lr * (double)p->lr_scale *
                        (step_m / (sqrt(step_v) + ADAMW.eps) + (p->decay ? ADAMW.weight_decay : 0) * w[i]);
                e[i] = decay * e[i] + (1 - decay) * w[i];
            }
        }
    }
    for (size_t i = 0; i < n; i++) {
        CHECK_NEAR(params->value[i], w[i], 2e-6);
        CHECK_NEAR(o->average[i], e[i], 2e-6);
        CHECK_NEAR(o->moment1[i], m[i], 1e-6);
        CHECK(dtype == TS_F32 || params->operand[i] == ts_f32_to_bf16(params->value[i]));
    }
    // The exchange with the average is exact both ways and keeps the operands in step.
    const float value = params->value[5], average = o->average[5];
    ts_optimizer_swap_average(o);
    CHECK(params->value[5] == average && o->average[5] == value);
    CHECK(dtype == TS_F32 || params->operand[5] == ts_f32_to_bf16(average));
    ts_optimizer_swap_average(o);
    CHECK(params->value[5] == value && o->average[5] == average);
    free(w), free(m), free(v), free(e);
    ts_optimizer_close(&o);
    ts_params_close(&params);
}

static void test_clip(const ts_kernels *kernels) {
    ts_params *params = make_params(TS_F32);
    ts_optimizer *o = NULL;
    CHECK_OK(ts_optimizer_open(&o, params, kernels, &ADAMW));
    set_gradients(params, 1);
    double sum = 0, exact = 0;
    for (int64_t i = 0; i < params->total; i++) {
        exact += (double)params->grad[i] * (double)params->grad[i];
    }
    CHECK_OK(ts_optimizer_grad_squares(o, 0, params->total, &sum));
    CHECK_NEAR(sum, exact, 1e-4 * exact);
    CHECK_NEAR(ts_clip_scale(4, 1), 0.25, 1e-15);
    CHECK_NEAR(ts_clip_scale(0.5, 1), 1, 0);
    CHECK_NEAR(ts_clip_scale(100, 0), 1, 0);
    ts_optimizer_close(&o);
    ts_params_close(&params);
}

int main(void) {
    const ts_kernels *kernels = NULL;
    CHECK_OK(ts_kernels_cpu(&kernels, "auto"));
    test_against_double(kernels, TS_F32);
    test_against_double(kernels, TS_BF16);
    test_clip(kernels);
    return ts_test_end();
}
