// SPDX-License-Identifier: Apache-2.0
// The text encoder: relative buckets, gradients against differences, independence of padding, modes, configuration.
// TEST: ranks=1 timeout=120 backend=cuda
#include "core/base/rng.h"
#include "core/model/text.h"
#include "core/nn/attention.h"
#include "core/nn/gradcheck.h"
#include "core/nn/layer.h"
#include "core/nn/loss.h"
#include "tests/device_test.h"

enum { B = 2, ROWS = 9, D = 10 };

static const ts_text_config CONFIG = {.vocabulary = 13,
                                      .width = D,
                                      .head_dim = 6,
                                      .heads = 3,
                                      .ffn_dim = 14,
                                      .layers = 2,
                                      .buckets = 8,
                                      .max_distance = 12,
                                      .eps = 1e-6};

typedef struct fixture {
    ts_params *params;
    ts_text *text;
    ts_tape *tape;
    int32_t ids[B * ROWS], counts[B];
    float *target;  // [B, ROWS, D], device memory as the loss
    double *loss;
    bool zero_padding;
    ts_var *out;
} fixture;

enum { OUTPUT_BYTES = B * ROWS * D * sizeof(float) };

// Norm weights that differ, and attention that is far from uniform.
static void vary(const ts_param *p) {
    float *value = malloc((size_t)p->count * sizeof *value);
    CHECK_OK(ts_param_read(p, 0, p->count, value));
    for (int64_t i = 0; i < p->count; i++) {
        value[i] *= 1.0f + 0.3f * ts_rng_normal(8, TS_RNG_TEST, 0, (uint32_t)(p->offset + i));
    }
    CHECK_OK(ts_param_write(p, 0, p->count, value));
    free(value);
}

static void open_fixture(fixture *f, ts_tape_mode mode, ts_dtype dtype) {
    memset(f, 0, sizeof *f);
    CHECK_OK(ts_params_open(&f->params));
    f->params->kernels = test_kernels;
    CHECK_OK(ts_text_open(&f->text, &CONFIG, f->params, "text_encoder."));
    CHECK_OK(ts_params_allocate(f->params, dtype, true));
    CHECK_OK(ts_text_init(f->text, 7));
    for (int64_t i = 0; i < f->params->count; i++) {
        vary(f->params->item[i]);
    }
    CHECK_OK(ts_params_refresh_operands(f->params));
    CHECK_OK(ts_tape_open(&f->tape, test_kernels, mode, dtype));
    for (int i = 0; i < B * ROWS; i++) {
        f->ids[i] = (int32_t)ts_rng_below(9, TS_RNG_TEST, 0, (uint32_t)i, 13);
    }
    f->counts[0] = ROWS;
    f->counts[1] = 4;
    f->zero_padding = true;
    float *target = test_new_copy(&ts_device_host, OUTPUT_BYTES);
    ts_rng_normal_fill(target, B * ROWS * D, 1, TS_RNG_TEST, 2, 0);
    f->target = test_device(target, OUTPUT_BYTES);
    f->loss = test_new_copy(test_kernels->device, sizeof *f->loss);
}

static void close_fixture(fixture *f) {
    ts_tape_close(&f->tape);
    ts_text_close(&f->text);
    ts_params_close(&f->params);
}

static int step(void *user, bool gradients, double *loss) {
    fixture *f = user;
    ts_tape_reset(f->tape);
    f->out = ts_text_forward(f->tape, f->text, f->ids, f->counts, B, ROWS, f->zero_padding);
    const ts_velocity_loss p = {.target = f->target, .rows = B * ROWS, .scale = 0.1, .loss = f->loss};
    TS_TRY(ts_nn_velocity_loss(f->tape, f->out, &p));
    TS_TRY(gradients ? ts_tape_backward(f->tape, f->out, NULL) : 0);
    return ts_tape_computes(f->tape) ? test_kernels->device->download(loss, f->loss, sizeof *loss) : 0;
}

static void test_gradients(bool zero_padding) {
    fixture f;
    open_fixture(&f, TS_TAPE_RECORD, TS_F32);
    f.zero_padding = zero_padding;
    ts_gradcheck_result result;
    CHECK_OK(ts_gradcheck(step, &f, NULL, 0, f.params, &(ts_gradcheck_params){.seed = 4}, &result));
    if (!(result.worst < 1e-2)) {
        fprintf(stderr, "%g %s: analytic %.6g, numeric %.6g\n", result.worst, result.name, result.analytic,
                result.numeric);
    }
    CHECK(result.worst < 1e-2);
    close_fixture(&f);
}

// Real rows depend neither on what padding holds nor on how much of it there is; padding comes out as zeros.
static void test_padding(void) {
    fixture f;
    double loss;
    open_fixture(&f, TS_TAPE_RUN, TS_F32);
    CHECK_OK(step(&f, false, &loss));
    float first[B * ROWS * D];
    memcpy(first, test_host(f.out->value.data, sizeof first), sizeof first);
    for (int i = ROWS + 4; i < B * ROWS; i++) {
        f.ids[i] = (f.ids[i] + 1) % 13;
    }
    CHECK_OK(step(&f, false, &loss));
    CHECK(test_same(first, f.out->value.data, sizeof first));
    for (int i = (ROWS + 4) * D; i < B * ROWS * D; i++) {
        CHECK(first[i] == 0.0f);
    }
    ts_tape_reset(f.tape);
    const ts_var *alone = ts_text_forward(f.tape, f.text, f.ids + ROWS, f.counts + 1, 1, 4, false);
    CHECK(alone != NULL);
    const float *rows = alone ? test_host(alone->value.data, 4 * D * sizeof *rows) : NULL;
    for (int i = 0; rows && i < 4 * D; i++) {
        CHECK_NEAR(rows[i], first[ROWS * D + i], 1e-5);
    }
    close_fixture(&f);
}

static void test_modes(ts_dtype dtype) {
    fixture run, record, count;
    double loss[2], counted_loss;
    open_fixture(&run, TS_TAPE_RUN, dtype);
    open_fixture(&record, TS_TAPE_RECORD, dtype);
    open_fixture(&count, TS_TAPE_COUNT, dtype);
    CHECK_OK(step(&run, false, &loss[0]));
    CHECK_OK(step(&record, true, &loss[1]));
    CHECK_OK(step(&count, true, &counted_loss));
    CHECK(loss[0] == loss[1]);
    CHECK(test_same(run.out->value.data, record.out->value.data, OUTPUT_BYTES));
    CHECK(ts_tape_get_stats(record.tape).peak_bytes == ts_tape_get_stats(count.tape).peak_bytes);
    CHECK(ts_tape_get_stats(run.tape).peak_bytes < ts_tape_get_stats(record.tape).peak_bytes);
    close_fixture(&run);
    close_fixture(&record);
    close_fixture(&count);
}

static void test_buckets(void) {
    const int64_t edges[][2] = {{0, 0},   {7, 7},   {8, 8},   {11, 8},  {12, 9},  {15, 9},
                                {16, 10}, {22, 10}, {23, 11}, {31, 11}, {32, 12}, {45, 12},
                                {46, 13}, {63, 13}, {64, 14}, {90, 14}, {91, 15}, {999, 15}};
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) {
        CHECK(ts_relative_bucket(-edges[i][0], 32, 128) == edges[i][1]);
        CHECK(ts_relative_bucket(edges[i][0], 32, 128) == (edges[i][0] ? 16 + edges[i][1] : 0));
    }
}

static void test_errors(void) {
    fixture f;
    double loss;
    open_fixture(&f, TS_TAPE_RUN, TS_F32);
    f.ids[3] = 13;
    CHECK_FAILS(step(&f, false, &loss), TS_EINPUT, "vocabulary");
    f.ids[3] = 0;
    f.counts[0] = 0;
    CHECK_FAILS(step(&f, false, &loss), TS_EINPUT, "ids");
    close_fixture(&f);
    ts_text_config back;
    json_t *json = ts_text_config_to_json(&CONFIG);
    CHECK_OK(ts_text_config_from_json(&back, json, "here"));
    CHECK(!memcmp(&back, &CONFIG, sizeof back));
    json_object_set_new(json, "model_type", json_string("t5"));
    CHECK_FAILS(ts_text_config_from_json(&back, json, "here"), TS_EINPUT, "model_type");
    json_decref(json);
}

int main(void) {
    test_buckets();
    for (int table = 0; test_choose(table); table++) {
        test_errors();
        test_padding();
        test_modes(TS_F32);
        test_modes(TS_BF16);
        if (test_kernels->device->is_host) {  // elsewhere kernels are checked against the CPU's, one by one
            test_gradients(true);
            test_gradients(false);
        }
    }
    return ts_test_end();
}
