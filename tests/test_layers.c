// SPDX-License-Identifier: Apache-2.0
// Every layer: gradients against differences in f32 at odd shapes, and bf16 gradients against those of f32.
// TEST: ranks=1 timeout=60 backend=cuda
#include "core/base/rng.h"
#include "core/nn/activation.h"
#include "core/nn/attention.h"
#include "core/nn/embed.h"
#include "core/nn/gradcheck.h"
#include "core/nn/linear.h"
#include "core/nn/loss.h"
#include "core/nn/residual.h"
#include "tests/device_test.h"

// x is [B, L, D] and y [B, M, D]: two inputs of any layer. D = 2 heads of 10; no size is a multiple of a vector.
enum { B = 2, L = 7, M = 5, D = 20, HEADS = 2, OUT = 11, BUCKETS = 8, VOCABULARY = 6, MAX_OUT = 4096 };

typedef struct lab {
    ts_params *params;
    ts_linear narrow, wide, odd, precise;  // D -> OUT, D -> 3 x 32 (fused), D -> 3 x D (not fused), f32 always
    ts_param *weight, *bias, *bias_table, *table, *embedding;
    ts_tape *tape;
    float *x, *y, *target;  // [B, L, D], [B, M, D], [MAX_OUT]; these and the next, device memory
    float *zeros;           // [B, L, D]
    double *loss;
    ts_var *x_var, *y_var;
    float *x_grad, *y_grad;
    ts_var *(*build)(ts_tape *tape, struct lab *lab);
} lab;

static int declare(lab *l) {
    static const char *const three[] = {"a", "b", "c"};
    TS_TRY(ts_linear_open(&l->narrow, l->params, "narrow.", "layer", D, OUT, true));
    TS_TRY(ts_linear_open_joined(&l->wide, l->params, "wide.", three, 3, D, 32, true));
    TS_TRY(ts_linear_open_joined(&l->odd, l->params, "odd.", three, 3, D, D, true));
    TS_TRY(ts_linear_open(&l->precise, l->params, "precise.", "layer", D, OUT, false));
    l->precise.precise = true;
    l->weight = ts_params_add(l->params, "norm.weight", TS_SHAPE(D), false);
    l->bias = ts_params_add(l->params, "norm.bias", TS_SHAPE(D), false);
    l->bias_table = ts_params_add(l->params, "relative", TS_SHAPE(BUCKETS, HEADS), false);
    l->table = ts_params_add(l->params, "modulation", TS_SHAPE(3, 2 * D), false);
    l->embedding = ts_params_add(l->params, "embedding", TS_SHAPE(VOCABULARY, D), false);
    return l->weight && l->bias && l->bias_table && l->table && l->embedding ? 0 : TS_EINTERNAL;
}

static float *random_numbers(int64_t n, uint64_t stream) {
    static float host[MAX_OUT];
    float *numbers = test_new_copy(test_kernels->device, (size_t)n * sizeof *numbers);
    ts_rng_normal_fill(host, n, 1, TS_RNG_TEST, stream, 0);
    CHECK_OK(test_kernels->device->upload(numbers, host, (size_t)n * sizeof *numbers));
    return numbers;
}

static void open_lab(lab *l, ts_dtype dtype) {
    memset(l, 0, sizeof *l);
    CHECK_OK(ts_params_open(&l->params));
    l->params->kernels = test_kernels;
    CHECK_OK(declare(l));
    CHECK_OK(ts_params_allocate(l->params, dtype, true));
    for (int64_t i = 0; i < l->params->count; i++) {
        CHECK_OK(ts_param_init_normal(l->params->item[i], 3, 0.5f));
    }
    CHECK_OK(ts_params_refresh_operands(l->params));
    CHECK_OK(ts_tape_open(&l->tape, test_kernels, TS_TAPE_RECORD, dtype));
    l->x = random_numbers(B * L * D, 1);
    l->y = random_numbers(B * M * D, 2);
    l->target = random_numbers(MAX_OUT, 3);
    l->zeros = random_numbers(B * L * D, 4);
    CHECK_OK(test_kernels->device->zero(l->zeros, B * L * D * sizeof(float)));
    l->loss = test_new_copy(test_kernels->device, sizeof *l->loss);
}

static void close_lab(lab *l) {
    ts_tape_close(&l->tape);
    ts_params_close(&l->params);
    test_free_copies();
}

static int step(void *user, bool gradients, double *loss) {
    lab *l = user;
    ts_tape_reset(l->tape);
    l->x_var = ts_tape_input(l->tape, (ts_tensor){TS_F32, TS_SHAPE(B, L, D), l->x}, true);
    l->y_var = ts_tape_input(l->tape, (ts_tensor){TS_F32, TS_SHAPE(B, M, D), l->y}, true);
    ts_var *out = ts_nn_cast(l->tape, l->build(l->tape, l), TS_F32);
    TS_TRY(ts_tape_status(l->tape));
    const int64_t count = ts_shape_count(out->value.shape);
    CHECK(count <= MAX_OUT);
    const ts_velocity_loss p = {.target = l->target, .rows = 1, .scale = 1.0 / (double)count, .loss = l->loss};
    TS_TRY(ts_nn_velocity_loss(l->tape, out, &p));
    if (gradients) {
        TS_TRY(ts_tape_backward(l->tape, out, NULL));
        l->x_grad = l->x_var->grad_written ? l->x_var->grad : l->zeros;
        l->y_grad = l->y_var->grad_written ? l->y_var->grad : l->zeros;
    }
    return test_kernels->device->download(loss, l->loss, sizeof *loss);
}

// ---- cases

static ts_var *operand(ts_tape *tape, ts_var *x) {
    return ts_nn_cast(tape, x, ts_tape_operand_dtype(tape));
}

static ts_var *linear_f32_out(ts_tape *tape, lab *l) {
    return ts_nn_linear(tape, &l->narrow, operand(tape, l->x_var), TS_F32);
}
static ts_var *linear_gelu(ts_tape *tape, lab *l) {
    return ts_nn_linear_gelu(tape, &l->narrow, operand(tape, l->x_var));
}
static ts_var *linear_fused(ts_tape *tape, lab *l) {
    return ts_nn_linear(tape, &l->wide, operand(tape, l->x_var), ts_tape_operand_dtype(tape));
}
static ts_var *linear_pieces(ts_tape *tape, lab *l) {
    return ts_nn_linear(tape, &l->odd, operand(tape, l->x_var), ts_tape_operand_dtype(tape));
}
static ts_var *linear_precise(ts_tape *tape, lab *l) {
    return ts_nn_linear(tape, &l->precise, ts_nn_silu(tape, l->x_var), TS_F32);
}
static ts_var *layer_norm_plain(ts_tape *tape, lab *l) {
    return ts_nn_layer_norm(tape, l->x_var, 1e-5, 0.0, (ts_columns){0}, (ts_columns){0}, (ts_row_map){NULL, 1}, TS_F32);
}
static ts_var *layer_norm_affine(ts_tape *tape, lab *l) {
    return ts_nn_layer_norm_affine(tape, l->x_var, 1e-5, l->weight, l->bias, ts_tape_operand_dtype(tape));
}

static const int32_t LEVELS[B * L] = {0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2};

static ts_var *modulate_and_gate(ts_tape *tape, lab *l) {
    ts_var *table = ts_tape_param(tape, l->table);
    const ts_row_map map = {ts_tape_upload(tape, LEVELS, sizeof LEVELS), 3};
    const ts_columns a = {table, 0, D}, b = {table, D, D};
    ts_var *n = ts_nn_layer_norm(tape, l->x_var, 1e-5, 1.0, a, b, map, ts_tape_operand_dtype(tape));
    return ts_nn_gated_residual(tape, l->x_var, n, b, map);
}
static ts_var *residual(ts_tape *tape, lab *l) {
    return ts_nn_residual(tape, l->x_var, ts_nn_silu(tape, l->x_var));
}
static ts_var *add_rows(ts_tape *tape, lab *l) {
    ts_var *part = ts_tape_param_part(tape, l->table, D, TS_SHAPE(1, D));
    ts_var *row = ts_nn_add_rows(tape, ts_tape_param(tape, l->embedding), part);
    static const int32_t ids[L] = {0, 5, 5, 2, 1, 3, 2};
    ts_var *seven = ts_nn_embedding(tape, l->embedding, ts_tape_upload(tape, ids, sizeof ids), TS_SHAPE(L));
    return ts_nn_add_rows(tape, ts_nn_add_rows(tape, l->x_var, seven),
                          ts_nn_layer_norm_affine(tape, row, 1e-5, l->weight, l->bias, TS_F32));
}

// Rotary angles of L positions.
static ts_rope rope(ts_tape *tape) {
    static float cosine[L * D / HEADS / 2], sine[L * D / HEADS / 2];
    for (int i = 0; i < L * D / HEADS / 2; i++) {
        cosine[i] = cosf((float)i);
        sine[i] = sinf((float)i);
    }
    return (ts_rope){ts_tape_upload(tape, cosine, sizeof cosine), ts_tape_upload(tape, sine, sizeof sine), L,
                     D / HEADS};
}

static ts_var *rms_norm(ts_tape *tape, lab *l) {
    return ts_nn_rms_norm(tape, ts_whole(l->x_var), 1e-5, l->weight, (ts_rope){0}, TS_F32);
}

// Self-attention as models write it: one projection, norm and rotation of its columns.
static ts_var *self_attention(ts_tape *tape, lab *l) {
    const ts_dtype dtype = ts_tape_operand_dtype(tape);
    ts_var *qkv = linear_pieces(tape, l);
    ts_var *q = ts_nn_rms_norm(tape, (ts_columns){qkv, 0, D}, 1e-5, l->weight, rope(tape), dtype);
    ts_var *k = ts_nn_rms_norm(tape, (ts_columns){qkv, D, D}, 1e-5, l->bias, rope(tape), dtype);
    return ts_nn_attention(tape, (ts_attention_heads){B, HEADS, D / HEADS, 0.4}, ts_whole(q), ts_whole(k),
                           (ts_columns){qkv, 2 * D, D}, NULL, NULL);
}

// q used by two attentions with other keys, some of them masked.
static ts_var *cross_attention(ts_tape *tape, lab *l) {
    static const int32_t counts[B] = {5, 2};
    const ts_attention_heads heads = {B, HEADS, D / HEADS, 0.3};
    ts_var *q = operand(tape, l->x_var), *y = operand(tape, l->y_var);
    ts_var *a = ts_nn_attention(tape, heads, ts_whole(q), ts_whole(y), ts_whole(y), NULL,
                                ts_tape_upload(tape, counts, sizeof counts));
    ts_var *b = ts_nn_attention(tape, heads, ts_whole(q), ts_whole(q), ts_whole(q), NULL, NULL);
    return ts_nn_residual(tape, ts_nn_cast(tape, a, TS_F32), b);
}

static ts_var *biased_attention(ts_tape *tape, lab *l) {
    const ts_attention_heads heads = {B, HEADS, D / HEADS, 1.0};
    ts_var *x = operand(tape, l->x_var), *strip = ts_nn_relative_bias(tape, l->bias_table, L, 6);
    static const int32_t counts[B] = {4, 7};
    ts_var *o = ts_nn_attention(tape, heads, ts_whole(x), ts_whole(x), ts_whole(x), strip,
                                ts_tape_upload(tape, counts, sizeof counts));
    return ts_nn_keep_rows(tape, ts_nn_rms_norm(tape, ts_whole(o), 1e-5, l->weight, (ts_rope){0}, TS_F32), counts, B);
}

static ts_var *gated_gelu(ts_tape *tape, lab *l) {
    ts_var *n = ts_nn_rms_norm(tape, ts_whole(l->x_var), 1e-5, l->weight, (ts_rope){0}, ts_tape_operand_dtype(tape));
    return ts_nn_gated_gelu(tape, linear_f32_out(tape, l), ts_nn_linear(tape, &l->narrow, n, TS_F32));
}
static ts_var *gelu_erf(ts_tape *tape, lab *l) {
    return ts_nn_gelu_erf(tape, l->x_var);
}
// x seen as a video [1, 1, 2 x 7, 4, 5] in patches of 1 x 2 x 2, and back in the other order of features.
static ts_var *patches(ts_tape *tape, lab *l) {
    static const int64_t patch[3] = {1, 2, 2};
    ts_var *video = ts_tape_alias(tape, l->x_var, TS_SHAPE(1, 1, B * L, 4, 5), true);
    ts_var *tokens = ts_nn_patchify(tape, video, patch, ts_tape_operand_dtype(tape));  // [1, B L, D]
    ts_var *out =
        ts_nn_unpatchify(tape, ts_nn_linear(tape, &l->odd, tokens, TS_F32), patch, TS_SHAPE(1, 1, B * L, 4, 15));
    l->x_var = video;
    return out;
}

static const struct {
    const char *name;
    ts_var *(*build)(ts_tape *tape, lab *l);
} CASES[] = {{"linear", linear_f32_out},
             {"linear with GELU", linear_gelu},
             {"three layers, one GEMM", linear_fused},
             {"three layers, three GEMMs", linear_pieces},
             {"precise linear", linear_precise},
             {"layer norm", layer_norm_plain},
             {"affine layer norm", layer_norm_affine},
             {"modulation and gate", modulate_and_gate},
             {"residual", residual},
             {"sums of rows", add_rows},
             {"RMS norm", rms_norm},
             {"self-attention", self_attention},
             {"cross-attention", cross_attention},
             {"biased attention", biased_attention},
             {"gated GELU", gated_gelu},
             {"exact GELU", gelu_erf},
             {"patches", patches}};

static void test_differences(int index) {
    lab l;
    open_lab(&l, TS_F32);
    l.build = CASES[index].build;
    const ts_gradcheck_target targets[] = {{"x", l.x, &l.x_grad, B * L * D}, {"y", l.y, &l.y_grad, B * M * D}};
    ts_gradcheck_result result;
    CHECK_OK(ts_gradcheck(step, &l, targets, 2, l.params, &(ts_gradcheck_params){.seed = 5}, &result));
    if (!(result.worst < 5e-3)) {
        fprintf(stderr, "%s: %g at %s: analytic %.6g, numeric %.6g\n", CASES[index].name, result.worst, result.name,
                result.analytic, result.numeric);
    }
    CHECK(result.worst < 5e-3);
    close_lab(&l);
}

static double distance(const float *x, const float *y, int64_t n) {
    const float *a = test_host(x, (size_t)n * sizeof *a), *b = test_host(y, (size_t)n * sizeof *b);
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(difference / (size > 0 ? size : 1));
}

static void test_bf16(int index) {
    lab exact, rounded;
    double loss[2];
    open_lab(&exact, TS_F32);
    open_lab(&rounded, TS_BF16);
    exact.build = rounded.build = CASES[index].build;
    CHECK_OK(step(&exact, true, &loss[0]));
    CHECK_OK(step(&rounded, true, &loss[1]));
    CHECK_NEAR(loss[0], loss[1], 0.01 * loss[0]);
    const double errors[] = {distance(rounded.x_grad, exact.x_grad, B * L * D),
                             distance(rounded.y_grad, exact.y_grad, B * M * D),
                             distance(rounded.params->grad, exact.params->grad, exact.params->total)};
    for (int i = 0; i < 3; i++) {
        if (!(errors[i] < 0.02)) {
            fprintf(stderr, "%s: bf16 gradient %d is off by %g\n", CASES[index].name, i, errors[i]);
        }
        CHECK(errors[i] < 0.02);
    }
    close_lab(&rounded);
    close_lab(&exact);
}

// Loss and gradients are those of the CPU, where it has differences to compare with.
static void test_like_cpu(int index) {
    const ts_kernels *const kernels = test_kernels;
    lab cpu, here;
    double loss[2];
    open_lab(&here, TS_F32);
    CHECK_OK(ts_kernels_cpu(&test_kernels, "auto"));
    open_lab(&cpu, TS_F32);
    cpu.build = here.build = CASES[index].build;
    CHECK_OK(step(&cpu, true, &loss[0]));
    test_kernels = kernels;
    CHECK_OK(step(&here, true, &loss[1]));
    CHECK_NEAR(loss[0], loss[1], 1e-5 * loss[0]);
    CHECK(distance(here.x_grad, cpu.x_grad, B * L * D) < 1e-4);
    CHECK(distance(here.y_grad, cpu.y_grad, B * M * D) < 1e-4);
    CHECK(distance(here.params->grad, cpu.params->grad, cpu.params->total) < 1e-4);
    close_lab(&cpu);
    close_lab(&here);
}

// A wrong gradient is found: the checker itself can fail.
static int wrong_step(void *user, bool gradients, double *loss) {
    lab *l = user;
    TS_TRY(step(user, gradients, loss));
    if (gradients) {
        float third;
        TS_TRY(test_kernels->device->download(&third, l->x_grad + 3, sizeof third));
        third *= 1.5f;
        TS_TRY(test_kernels->device->upload(l->x_grad + 3, &third, sizeof third));
    }
    return 0;
}

static void test_checker(void) {
    lab l;
    open_lab(&l, TS_F32);
    l.build = rms_norm;
    const ts_gradcheck_target target = {"x", l.x, &l.x_grad, B * L * D};
    ts_gradcheck_result result;
    CHECK_OK(ts_gradcheck(wrong_step, &l, &target, 1, NULL, &(ts_gradcheck_params){.seed = 5}, &result));
    CHECK(result.worst > 0.01 && strcmp(result.name, "x") == 0);
    close_lab(&l);
}

int main(void) {
    for (int table = 0; test_choose(table); table++) {
        for (int i = 0; i < (int)(sizeof CASES / sizeof *CASES); i++) {
            if (test_is_slow()) {
                test_like_cpu(i);
            } else {
                test_differences(i);
            }
            test_bf16(i);
        }
        test_checker();
    }
    return ts_test_end();
}
