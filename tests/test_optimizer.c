// SPDX-License-Identifier: Apache-2.0
// TEST: backend=cuda
// AdamW over a parameter set against a loop in double precision; groups, clipping, the average, and counted bytes.
#include "core/base/rng.h"
#include "tests/device_test.h"
#include "train/optimizer.h"

enum { TENSORS = 5, STEPS = 6 };

static ts_params *make_params(ts_dtype dtype, ts_dtype grad_dtype) {
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
    params->kernels = test_kernels;
    for (int i = 0; i < TENSORS; i++) {
        ts_param *p = ts_params_add(params, LIST[i].name, TS_SHAPE(LIST[i].rows, LIST[i].columns), LIST[i].decay);
        CHECK(p);
        p->lr_scale = LIST[i].lr_scale;
        p->is_operand = LIST[i].decay;
    }
    CHECK_OK(ts_params_allocate(params, dtype, false));
    CHECK_OK(ts_params_allocate_grad(params, grad_dtype));
    for (int i = 0; i < TENSORS; i++) {
        CHECK_OK(ts_param_init_normal(params->item[i], 3, 1.0f));
    }
    CHECK_OK(ts_params_refresh_operands(params));
    return params;
}

// Element e of a parameter's gradient in a step; of few digits, so that bf16 holds it.
static float gradient(int step, int64_t item, int64_t e) {
    return ts_bf16_to_f32(ts_f32_to_bf16(ts_rng_normal(9, TS_RNG_TEST, (uint64_t)(step * 100 + item), (uint32_t)e)));
}

static void set_gradients(ts_optimizer *o, int step) {
    CHECK_OK(ts_zero_begin(o->zero));
    for (int64_t i = 0; i < o->weights->count; i++) {
        const ts_param *p = o->weights->item[i];
        float grad[40 * 9];
        for (int64_t e = 0; e < p->count; e++) {
            grad[e] = gradient(step, i, e);
        }
        CHECK_OK(test_kernels->device->upload(p->grad, grad, (size_t)p->count * sizeof *grad));
    }
    CHECK_OK(ts_zero_group_done(o->zero, 0, true));
}

static const ts_optimizer_params ADAMW = {
    .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .average = true};

// Moments, weight and average of one element.
typedef struct reference {
    double w, m, v, e;
} reference;

static void update(reference *x, double g, const ts_param *p, int step, double lr, double decay) {
    x->m = ADAMW.beta1 * x->m + (1 - ADAMW.beta1) * g;
    x->v = ADAMW.beta2 * x->v + (1 - ADAMW.beta2) * g * g;
    const double m = x->m / (1 - pow(ADAMW.beta1, step)), v = x->v / (1 - pow(ADAMW.beta2, step));
    x->w -= lr * (double)p->lr_scale * (m / (sqrt(v) + ADAMW.eps) + (p->decay ? ADAMW.weight_decay : 0) * x->w);
    x->e = decay * x->e + (1 - decay) * x->w;
}

static float first_of(const float *place) {
    return *(const float *)test_host(place, sizeof(float));
}

// The exchange with the average is exact both ways and keeps the operands in step.
static void check_swap(ts_optimizer *o) {
    int64_t parts;
    const ts_state_part *part = ts_optimizer_parts(o, &parts);
    const float value = first_of(part[1].weight), average = first_of(part[1].average);
    const ts_param *p = part[1].param;
    for (int turn = 0; turn < 2; turn++) {
        CHECK_OK(ts_optimizer_swap_average(o));
        const float now = turn == 0 ? average : value;
        CHECK(first_of(part[1].weight) == now && first_of(part[1].average) == (turn == 0 ? value : average));
        CHECK(p->value ? first_of(p->value) == now
                       : *(const uint16_t *)test_host(p->operand, sizeof(uint16_t)) == ts_f32_to_bf16(now));
    }
}

static void check_part(const ts_state_part *part, const reference *x, ts_dtype dtype) {
    const size_t bytes = (size_t)part->count * sizeof(float);
    const float *weight = test_host(part->weight, bytes), *average = test_host(part->average, bytes);
    const float *moment1 = test_host(part->moment1, bytes), *moment2 = test_host(part->moment2, bytes);
    const uint16_t *operand = dtype == TS_BF16 && part->param->is_operand
                                  ? test_host((uint16_t *)part->param->operand + part->first, bytes / 2)
                                  : NULL;
    for (int64_t i = 0; i < part->count; i++) {
        const reference *r = &x[part->param->offset + part->first + i];
        CHECK_NEAR(weight[i], r->w, 2e-6);
        CHECK_NEAR(average[i], r->e, 2e-6);
        CHECK_NEAR(moment1[i], r->m, 1e-6);
        CHECK_NEAR(moment2[i], r->v, 1e-6);
        CHECK(!operand || operand[i] == ts_f32_to_bf16(weight[i]));
    }
}

static void test_against_double(ts_dtype dtype, ts_dtype grad_dtype) {
    ts_params *params = make_params(dtype, grad_dtype);
    ts_optimizer *o = NULL;
    reference *x = calloc((size_t)params->total, sizeof *x);
    const float *before = test_host(params->value, (size_t)params->total * sizeof *before);
    for (int64_t i = 0; i < params->total; i++) {
        x[i].w = x[i].e = (double)before[i];
    }
    CHECK_OK(ts_optimizer_open(&o, params, test_kernels, &ADAMW));
    double *const squares = test_device(&(double){0}, sizeof *squares);
    CHECK(!params->value == (dtype == TS_BF16));
    for (int step = 1; step <= STEPS; step++) {
        const double lr = 0.01 / step, scale = 0.7, decay = 0.9;
        double exact = 0;
        set_gradients(o, step);
        for (int64_t t = 0; t < params->count; t++) {
            const ts_param *p = params->item[t];
            for (int64_t i = 0; i < p->count; i++) {
                const double g = (double)gradient(step, t, i);
                exact += g * g;
                update(&x[p->offset + i], g * scale, p, step, lr, decay);
            }
        }
        CHECK_OK(ts_optimizer_reduce(o, squares));
        CHECK_NEAR(*(const double *)test_host(squares, sizeof *squares), exact, 1e-4 * exact);
        CHECK_OK(ts_optimizer_step(o, step, lr, scale, decay));
    }
    int64_t parts, counted = 0;
    const ts_state_part *part = ts_optimizer_parts(o, &parts);
    for (int64_t p = 0; p < parts; p++) {
        counted += part[p].count;
        check_part(&part[p], x, dtype);
    }
    CHECK(counted == 33 * 7 + 33 + 5 + 360 + 1);
    check_swap(o);
    free(x);
    ts_optimizer_close(&o);
    ts_params_close(&params);
}

static void test_clip(void) {
    CHECK_NEAR(ts_clip_scale(4, 1), 0.25, 1e-15);
    CHECK_NEAR(ts_clip_scale(0.5, 1), 1, 0);
    CHECK_NEAR(ts_clip_scale(100, 0), 1, 0);
}

int main(void) {
    for (int i = 0; test_choose(i); i++) {
        test_against_double(TS_F32, TS_F32);
        test_against_double(TS_BF16, TS_F32);
        test_against_double(TS_BF16, TS_BF16);
    }
    test_clip();
    return ts_test_end();
}
