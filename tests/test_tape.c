// SPDX-License-Identifier: Apache-2.0
// The tape and the parameter set: sums over consumers, frozen parameters, sticky errors, memory, scopes, uploads.
// TEST: ranks=1 timeout=60 backend=cuda
#include "core/base/rng.h"
#include "core/nn/activation.h"
#include "core/nn/layer.h"
#include "core/nn/linear.h"
#include "core/nn/residual.h"
#include "tests/device_test.h"

enum { ROWS = 3, D = 32, BYTES = ROWS * D * sizeof(float) };

static ts_tape *open_tape(ts_tape_mode mode, ts_dtype dtype) {
    ts_tape *tape = NULL;
    CHECK_OK(ts_tape_open(&tape, test_kernels, mode, dtype));
    return tape;
}

static ts_params *open_params(void) {
    ts_params *params;
    CHECK_OK(ts_params_open(&params));
    params->kernels = test_kernels;
    return params;
}

// Numbers [ROWS, D] of the host, on the device.
static ts_tensor rows_of(const float *data) {
    return (ts_tensor){TS_F32, TS_SHAPE(ROWS, D), test_device(data, BYTES)};
}

static float number_of(const float *place) {
    return *(const float *)test_host(place, sizeof *place);
}

static uint16_t bits_of(const void *operand, int64_t index) {
    return *(const uint16_t *)test_host((const uint16_t *)operand + index, sizeof(uint16_t));
}

// ---- parameters

static void test_params(void) {
    ts_params *params = open_params();
    char name[32];
    CHECK(ts_params_find(params, "p0") == NULL);
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "p%d", i);
        ts_param *p = ts_params_add(params, name, TS_SHAPE(i % 50 + 1), i % 2);
        CHECK(p != NULL);
        p->is_operand = i % 2 == 0;  // these come first in flat order
    }
    CHECK(ts_params_add(params, "p7", TS_SHAPE(2), false) == NULL);
    CHECK(strstr(ts_error_text(), "p7"));
    CHECK_OK(ts_params_allocate(params, TS_BF16, true));
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "p%d", i);
        const ts_param *p = ts_params_find(params, name);
        CHECK(p && p->count == i % 50 + 1 && p->offset % 32 == 0 && p->value == params->value + p->offset);
        CHECK(p && strcmp(p->name, name) == 0 &&
              p->operand == (i % 2 ? (void *)p->value : params->operand + p->offset));
    }
    CHECK(ts_params_find(params, "p300") == NULL);
    ts_param *p = ts_params_find(params, "p40");
    CHECK_OK(ts_param_init_normal(p, 9, 2.0f));
    const float first = number_of(p->value);
    CHECK_OK(ts_param_init_constant(p, 0.1f));
    CHECK_OK(ts_params_refresh_operands(params));
    CHECK(bits_of(p->operand, 5) == ts_f32_to_bf16(0.1f));
    CHECK_OK(ts_param_init_normal(p, 9, 2.0f));
    CHECK(number_of(p->value) == first && first != 0.0f);
    CHECK(number_of(p->value + p->count) == 0.0f);  // padding stays zero
    float written[3] = {1, 2, 3}, read[4];
    CHECK_OK(ts_param_write(p, 5, 3, written));
    CHECK_OK(ts_param_read(p, 4, 4, read));
    CHECK(!memcmp(written, read + 1, sizeof written) && read[0] == number_of(p->value + 4));
    // Settled, operands are left in bf16 alone, what kernels read in f32 as it was.
    CHECK_OK(ts_params_settle(params));
    CHECK(!params->value && !p->value && p->operand == params->operand + p->offset);
    CHECK(bits_of(p->operand, 5) == ts_f32_to_bf16(0.1f));
    CHECK_OK(ts_param_init_normal(ts_params_find(params, "p41"), 9, 2.0f));
    CHECK(ts_params_find(params, "p41")->operand == ts_params_find(params, "p41")->value);
    ts_params_close(&params);
    CHECK(params == NULL);
}

// Gradients kept in bf16: what kernels add to is shared by the blocks, and empty after it was folded.
static void test_kept_gradients(void) {
    ts_params *params = open_params();
    const ts_device *device = test_kernels->device;
    ts_param *p[3];
    for (int i = 0; i < 3; i++) {
        char name[8];
        snprintf(name, sizeof name, "%d.", i);
        if (i > 0) {
            CHECK(ts_params_begin_group(params) == i);
        }
        CHECK_OK(ts_params_declare(&p[i], params, name, "w", TS_SHAPE(40 * (i + 1)), false));
        ts_params_end_group(params);
    }
    CHECK_OK(ts_params_allocate(params, TS_F32, false));
    CHECK_OK(ts_params_allocate_grad(params, TS_BF16));
    CHECK(!params->grad && p[1]->grad == p[2]->grad && p[0]->grad != p[1]->grad);
    CHECK(ts_params_shared_grad_count(params) == 64 + 128);
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 2; i >= 0; i--) {
            const float added = (float)(1 + i + turn);
            CHECK(number_of(p[i]->grad + 3) == 0.0f);
            CHECK_OK(device->upload(p[i]->grad + 3, &added, sizeof added));
            CHECK_OK(ts_params_fold_grad(params, i));
        }
    }
    float left;
    for (int i = 0; i < 3; i++) {
        CHECK(ts_bf16_to_f32(bits_of(params->span[i].kept_grad, 3)) == (float)(3 + 2 * i));
        CHECK_OK(ts_param_read_grad(p[i], 3, 1, &left));
        CHECK(left == 0.0f);
    }
    CHECK_OK(device->upload(p[0]->grad + 1, &(float){1.0f}, sizeof(float)));
    CHECK_OK(ts_params_zero_grad(params));
    CHECK(number_of(p[0]->grad + 1) == 0.0f && bits_of(params->span[2].kept_grad, 3) == 0);
    ts_params_close(&params);
}

// ---- gradients

// d/dx of sum over 3 uses of x: x + silu(x) + x, with d_output = 1.
static void test_consumers(void) {
    ts_tape *tape = open_tape(TS_TAPE_RECORD, TS_F32);
    float data[ROWS * D], ones[ROWS * D];
    for (int i = 0; i < ROWS * D; i++) {
        data[i] = 0.1f * (float)(i - 40);
        ones[i] = 1.0f;
    }
    for (int round = 0; round < 2; round++) {
        ts_tape_reset(tape);
        ts_var *x = ts_tape_input(tape, rows_of(data), true);
        ts_var *y = ts_nn_residual(tape, ts_nn_residual(tape, x, ts_nn_silu(tape, x)), x);
        CHECK_OK(ts_tape_backward(tape, y, test_device(ones, BYTES)));
        const float *grad = test_host(x->grad, BYTES);
        for (int i = 0; i < ROWS * D; i++) {
            const double s = 1 / (1 + exp(-(double)data[i]));
            CHECK_NEAR(grad[i], 2 + s * (1 + data[i] * (1 - s)), 1e-5);
        }
    }
    CHECK(data[0] == -4.0f);
    ts_tape_close(&tape);
}

// A bf16 variable with many consumers sums their gradients in f32: 64 times 1 + 1/128 is exact, in bf16 it is not.
static void test_bf16_sum(void) {
    ts_tape *tape = open_tape(TS_TAPE_RECORD, TS_BF16);
    float data[ROWS * D] = {0}, d_out[ROWS * D];
    for (int i = 0; i < ROWS * D; i++) {
        d_out[i] = 1.0f + 1.0f / 128;
    }
    ts_var *x = ts_tape_input(tape, rows_of(data), true);
    ts_var *narrow = ts_nn_cast(tape, x, TS_BF16), *sum = ts_tape_input(tape, rows_of(data), false);
    for (int i = 0; i < 64; i++) {
        sum = ts_nn_residual(tape, sum, narrow);
    }
    CHECK_OK(ts_tape_backward(tape, sum, test_device(d_out, BYTES)));
    CHECK(number_of((float *)x->grad + 5) == 64.5f);
    ts_tape_close(&tape);
}

static void test_frozen(void) {
    ts_params *params = open_params();
    ts_linear linear;
    CHECK_OK(ts_linear_open(&linear, params, "", "a", D, D, true));
    CHECK_OK(ts_params_allocate(params, TS_F32, false));
    CHECK_OK(ts_linear_init(&linear, 1, 1.0));
    float data[ROWS * D] = {1, 2, 3};
    const float *d_out = test_device(data, BYTES);
    ts_tape *tape = open_tape(TS_TAPE_RECORD, TS_F32);
    ts_var *x = ts_tape_input(tape, rows_of(data), false);
    ts_var *y = ts_nn_linear(tape, &linear, x, TS_F32);
    CHECK(y && !y->needs_grad);
    CHECK_OK(ts_tape_backward(tape, y, d_out));  // nothing to do
    ts_tape_reset(tape);
    x = ts_tape_input(tape, rows_of(data), true);
    y = ts_nn_linear(tape, &linear, x, TS_F32);
    CHECK_OK(ts_tape_backward(tape, y, d_out));
    CHECK(x->grad_written);
    ts_tape_close(&tape);
    ts_params_close(&params);
}

// ---- errors

static void test_missing_kernel(void) {
    ts_kernels some = *test_kernels;
    some.silu_forward = NULL;
    some.name = "half";
    ts_tape *tape;
    CHECK_OK(ts_tape_open(&tape, &some, TS_TAPE_RUN, TS_F32));
    float data[ROWS * D] = {0};
    ts_var *x = ts_tape_input(tape, rows_of(data), false);
    CHECK(ts_nn_silu(tape, x) == NULL);
    CHECK_FAILS(ts_tape_status(tape), TS_EUSAGE, "silu_forward is not supported on half");
    CHECK(ts_nn_gelu_erf(tape, NULL) == NULL && ts_nn_residual(tape, NULL, x) == NULL);
    CHECK(ts_tape_input(tape, rows_of(data), false) == NULL);
    ts_tape_reset(tape);
    CHECK(ts_tape_status(tape) == 0);
    ts_tape_close(&tape);
}

// ---- scopes and memory

typedef struct scope_counter {
    int calls;
} scope_counter;

// x + silu(x) + silu(y)
static ts_var *block(ts_tape *tape, const void *context, ts_var *const *inputs) {
    ((scope_counter *)(uintptr_t)context)->calls++;
    ts_var *x = ts_nn_residual(tape, inputs[0], ts_nn_silu(tape, inputs[0]));
    return ts_nn_residual(tape, x, ts_nn_silu(tape, inputs[1]));
}

// x + W3 gelu(W2 W1 x), W1 made again by elementwise recompute
typedef struct layers {
    ts_linear one, two, three;
} layers;

static ts_var *linear_block(ts_tape *tape, const void *context, ts_var *const *inputs) {
    const layers *l = context;
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    ts_var *y = ts_nn_linear(tape, &l->one, ts_nn_cast(tape, inputs[0], dtype), dtype);
    y = ts_nn_linear(tape, &l->three, ts_nn_linear_gelu(tape, &l->two, y), dtype);
    return ts_nn_block_sum(tape, inputs[0], y, (ts_columns){0}, (ts_row_map){0});
}

static int64_t products;

static int counted_gemm(const ts_gemm *p) {
    products++;
    return test_kernels->gemm(p);
}

typedef struct outcome {
    float grad[ROWS * D];
    ts_tape_stats stats;
    int64_t products;
} outcome;

enum { BLOCKS = 4 };

static void run_blocks(const layers *l, ts_params *params, ts_dtype dtype, ts_recompute recompute, outcome *out) {
    float data[ROWS * D], d_out[ROWS * D];
    ts_rng_normal_fill(data, ROWS * D, 1, TS_RNG_TEST, 1, 0);
    ts_rng_normal_fill(d_out, ROWS * D, 1, TS_RNG_TEST, 3, 0);
    ts_kernels counting = *test_kernels;
    counting.gemm = counted_gemm;
    ts_tape *tape = NULL;
    CHECK_OK(ts_tape_open(&tape, &counting, TS_TAPE_RECORD, dtype));
    for (int step = 0; step < 2; step++) {
        ts_tape_reset(tape);
        CHECK_OK(ts_params_zero_grad(params));
        products = 0;
        ts_var *x = ts_tape_input(tape, rows_of(data), true), *z = x;
        for (int i = 0; i < BLOCKS; i++) {
            z = ts_tape_scope(tape, linear_block, l, &z, 1, recompute);
        }
        CHECK_OK(ts_tape_backward(tape, z, test_device(d_out, BYTES)));
        memcpy(out->grad, test_host(x->grad, BYTES), BYTES);
    }
    out->stats = ts_tape_get_stats(tape);
    out->products = products;
    CHECK(data[0] != 0 && ts_tape_status(tape) == 0);
    ts_tape_close(&tape);
}

// Every kind of recompute gives the same bits; elementwise leaves out the products it kept, and keeps no more than it
// says.
static void test_recompute(ts_dtype dtype) {
    ts_params *params = open_params();
    layers l;
    CHECK_OK(ts_linear_open(&l.one, params, "", "one", D, D, true));
    CHECK_OK(ts_linear_open(&l.two, params, "", "two", D, 2 * D, true));
    CHECK_OK(ts_linear_open(&l.three, params, "", "three", 2 * D, D, true));
    CHECK_OK(ts_params_allocate(params, dtype, true));
    l.one.again = true;
    CHECK_OK(ts_linear_init(&l.one, 1, 1.0));
    CHECK_OK(ts_linear_init(&l.two, 2, 1.0));
    CHECK_OK(ts_linear_init(&l.three, 3, 1.0));
    CHECK_OK(ts_params_refresh_operands(params));
    outcome out[3];
    const size_t bytes = (size_t)params->total * sizeof(float);
    float *grad = malloc(bytes);
    for (ts_recompute r = TS_RECOMPUTE_NONE; grad && r <= TS_RECOMPUTE_BLOCK; r++) {
        run_blocks(&l, params, dtype, r, &out[r]);
        if (r == TS_RECOMPUTE_NONE) {
            memcpy(grad, test_host(params->grad, bytes), bytes);
        }
        CHECK(test_same(grad, params->grad, bytes));
        CHECK(!memcmp(out[0].grad, out[r].grad, sizeof out[0].grad));
        CHECK(out[r].stats.flops == out[0].stats.flops && out[r].stats.calls >= out[0].stats.calls);
    }
    CHECK(out[0].products == BLOCKS * (3 + 6));
    CHECK(out[1].products == BLOCKS * (4 + 6) && out[2].products == BLOCKS * (6 + 6));
    CHECK(out[2].stats.activation_bytes < out[1].stats.activation_bytes);
    CHECK(out[1].stats.activation_bytes < out[0].stats.activation_bytes);
    // Before GELU 2 D, the last product D, the sum 4 bytes x D, and one block's all that is recorded.
    const uint64_t element = ts_dtype_bytes(dtype), row = ROWS * D;
    const uint64_t kept = row * (3 * element + 4), again = row * (element + 2 * element + (dtype == TS_BF16 ? 2 : 0));
    const uint64_t wanted = BLOCKS * kept + again;  // where no alignment adds to it
    CHECK(test_kernels->device->is_host ? out[1].stats.activation_bytes == wanted
                                        : out[1].stats.activation_bytes - wanted < (BLOCKS * 4 + 4) * 256);
    free(grad);
    ts_params_close(&params);
}

// silu(x W^T): the last value of the block is made again, what it is made of is kept
static ts_var *unkept_block(ts_tape *tape, const void *context, ts_var *const *inputs) {
    return ts_nn_silu(tape, ts_nn_linear(tape, context, inputs[0], TS_F32));
}

// What counting finds is what a step takes, whichever values outlive a block.
static void test_counted_room(void) {
    ts_params *params = open_params();
    ts_linear linear;
    ts_tape_room room[2];
    float data[ROWS * D] = {0}, d_out[ROWS * D] = {0};
    CHECK_OK(ts_linear_open(&linear, params, "", "w", D, D, false));
    CHECK_OK(ts_params_allocate(params, TS_F32, true));
    for (ts_recompute recompute = TS_RECOMPUTE_NONE; recompute <= TS_RECOMPUTE_BLOCK; recompute++) {
        for (int counting = 0; counting < 2; counting++) {
            ts_tape *tape = open_tape(counting ? TS_TAPE_COUNT : TS_TAPE_RECORD, TS_F32);
            ts_var *x = ts_tape_input(tape, rows_of(data), true);
            for (int i = 0; i < 3; i++) {
                x = ts_tape_scope(tape, unkept_block, &linear, &x, 1, recompute);
            }
            CHECK_OK(ts_tape_backward(tape, x, test_device(d_out, BYTES)));
            room[counting] = ts_tape_get_room(tape);
            ts_tape_close(&tape);
        }
        CHECK(!memcmp(&room[0], &room[1], sizeof room[0]));
    }
    ts_params_close(&params);
}

static void test_scopes(void) {
    float data[ROWS * D], other[ROWS * D], d_out[ROWS * D], kept[2][ROWS * D];
    ts_rng_normal_fill(data, ROWS * D, 1, TS_RNG_TEST, 1, 0);
    ts_rng_normal_fill(other, ROWS * D, 1, TS_RNG_TEST, 2, 0);
    ts_rng_normal_fill(d_out, ROWS * D, 1, TS_RNG_TEST, 3, 0);
    scope_counter counter = {0};
    for (ts_recompute recompute = TS_RECOMPUTE_NONE; recompute <= TS_RECOMPUTE_BLOCK; recompute++) {
        ts_tape *tape = open_tape(TS_TAPE_RECORD, TS_F32);
        ts_var *x = ts_tape_input(tape, rows_of(data), true), *y = ts_tape_input(tape, rows_of(other), true);
        ts_var *z = x;
        for (int i = 0; i < 3; i++) {
            ts_var *inputs[] = {z, y, NULL};
            z = ts_tape_scope(tape, block, &counter, inputs, 3, recompute);
        }
        CHECK_OK(ts_tape_backward(tape, z, test_device(d_out, BYTES)));
        if (recompute) {
            CHECK(test_same(kept[0], x->grad, BYTES) && test_same(kept[1], y->grad, BYTES));
        }
        memcpy(kept[0], test_host(x->grad, BYTES), BYTES);
        memcpy(kept[1], test_host(y->grad, BYTES), BYTES);
        ts_tape_close(&tape);
    }
    CHECK(counter.calls == 3 + 6 + 6);
}

// A run keeps one block's memory, overwrites no input, and asks the system for memory once.
static void test_run_memory(void) {
    float data[ROWS * D], other[ROWS * D] = {0};
    scope_counter counter = {0};
    ts_rng_normal_fill(data, ROWS * D, 1, TS_RNG_TEST, 1, 0);
    const ts_tensor input = rows_of(data);
    const float before = data[4];
    uint64_t peak[2], calls = 0;
    for (int depth = 1; depth <= 2; depth++) {
        ts_tape *tape = open_tape(TS_TAPE_RUN, TS_F32);
        for (int step = 0; step < 3; step++) {
            ts_tape_reset(tape);
            ts_var *x = ts_tape_input(tape, input, false), *y = ts_tape_input(tape, rows_of(other), false);
            for (int i = 0; i < 4 * depth; i++) {
                ts_var *inputs[] = {x, y};
                x = ts_tape_scope(tape, block, &counter, inputs, 2, TS_RECOMPUTE_NONE);
            }
            CHECK(x && isfinite(number_of(x->value.data)));
            CHECK(step < 2 || ts_arena_system_calls(ts_tape_arena(tape)) == calls);
            calls = ts_arena_system_calls(ts_tape_arena(tape));
        }
        peak[depth - 1] = ts_tape_get_stats(tape).peak_bytes;
        ts_tape_close(&tape);
    }
    CHECK(peak[0] == peak[1]);
    CHECK(number_of((float *)input.data + 4) == before);
}

static void count_probe(void *user, const char *name, const ts_var *var) {
    *(int *)user += strcmp(name, "x.3") == 0 && var->value.dtype == TS_F32;
}

static void test_probe(void) {
    int seen = 0;
    float data[ROWS * D] = {0};
    for (int counting = 0; counting < 2; counting++) {
        ts_tape *tape = open_tape(TS_TAPE_RUN, TS_F32);
        CHECK_OK(ts_tape_set_mode(tape, counting ? TS_TAPE_COUNT_RUN : TS_TAPE_RUN));
        ts_tape_set_probe(tape, count_probe, &seen);
        ts_tape_probe(tape, ts_tape_input(tape, rows_of(data), false), "x.%d", 3);
        CHECK(seen == 1);  // values exist only when something is computed
        ts_tape_close(&tape);
    }
}

// The host's numbers on the device: themselves on the host, a copy elsewhere, which counting counts.
static void test_upload(void) {
    float data[ROWS * D];
    ts_rng_normal_fill(data, ROWS * D, 1, TS_RNG_TEST, 1, 0);
    const bool is_host = test_kernels->device->is_host;
    uint64_t peak[2];
    for (int counting = 0; counting < 2; counting++) {
        ts_tape *tape = open_tape(counting ? TS_TAPE_COUNT_RUN : TS_TAPE_RUN, TS_F32);
        const float *copy = ts_tape_upload(tape, data, sizeof data);
        CHECK((copy == data) == is_host);
        CHECK(counting || test_same(copy, data, sizeof data));
        peak[counting] = ts_tape_get_stats(tape).peak_bytes;
        ts_tape_close(&tape);
    }
    CHECK(peak[0] == peak[1] && peak[0] == (is_host ? 0 : (BYTES + 255) / 256 * 256));
}

static void note_seconds(void *user, const ts_cost *cost) {
    *(double *)user = cost->seconds;
}

// A meter hears of the time that the work takes, not of the time in which it was asked for.
static void test_meter(void) {
    double seconds = -1;
    float data[ROWS * D] = {0};
    ts_tape *tape = open_tape(TS_TAPE_RUN, TS_F32);
    ts_tape_set_meter(tape, note_seconds, &seconds);
    CHECK(ts_nn_silu(tape, ts_tape_input(tape, rows_of(data), false)) != NULL);
    CHECK(seconds > 0 && seconds < 10);
    ts_tape_close(&tape);
}

int main(void) {
    for (int table = 0; test_choose(table); table++) {
        test_params();
        test_kept_gradients();
        test_consumers();
        test_bf16_sum();
        test_frozen();
        test_missing_kernel();
        test_scopes();
        test_counted_room();
        test_recompute(TS_F32);
        test_recompute(TS_BF16);
        test_run_memory();
        test_probe();
        test_upload();
        test_meter();
    }
    return ts_test_end();
}
