// SPDX-License-Identifier: Apache-2.0
// The transformer: gradients against differences, run equal to record, recomputation equal to none, counted equal to
// real memory, configuration both ways. TEST: ranks=1 timeout=120 backend=cuda
#include "core/base/arena.h"
#include "core/base/json.h"
#include "core/base/rng.h"
#include "core/model/dit.h"
#include "core/nn/gradcheck.h"
#include "core/nn/layer.h"
#include "core/nn/loss.h"
#include "tests/device_test.h"

enum { B = 2, T = 3, H = 4, W = 6, C = 3, ROWS = 5, TOKENS = T * (H / 2) * (W / 2) };

// A width of 20 is no multiple of 32, so projections cannot be fused; 32 is.
static ts_dit_config small_config(int64_t head_dim) {
    return (ts_dit_config){.patch = {1, 2, 2},
                           .heads = 2,
                           .head_dim = head_dim,
                           .in_channels = C,
                           .out_channels = C,
                           .text_dim = 7,
                           .freq_dim = 16,
                           .ffn_dim = 24,
                           .layers = 2,
                           .rope_max_positions = 16,
                           .text_rows = ROWS,
                           .eps = 1e-6,
                           .cross_attention_norm = true,
                           .absolute_positions = true};
}

typedef struct fixture {
    ts_params *params;
    ts_dit *dit;
    ts_tape *tape;
    float *latent, *target, *context, *image, *weight;  // these and the loss, device memory
    double *loss;
    float timestep[B * TOKENS];
    int64_t timesteps, contexts;  // per sample
    const int32_t *frame_context;
    ts_recompute recompute;
    ts_var *latent_var, *context_var, *image_var, *sample;
    float *latent_grad, *context_grad, *image_grad;
} fixture;

enum {
    VIDEO = B * T * H * W * C,
    VIDEO_BYTES = VIDEO * sizeof(float),
    CONTEXT = B * ROWS * 7,
    CONTEXTS = 4,
    IMAGE = B * 4 * 6
};

static float *random_numbers(int64_t n, uint64_t stream) {
    float *host = test_new_copy(&ts_device_host, (size_t)n * sizeof *host);
    ts_rng_normal_fill(host, n, 1, TS_RNG_TEST, stream, 0);
    return test_device(host, (size_t)n * sizeof *host);
}

static void add_noise(const ts_param *p, uint64_t index) {
    float *value = malloc((size_t)p->count * sizeof *value);
    CHECK_OK(ts_param_read(p, 0, p->count, value));
    for (int64_t j = 0; j < p->count; j++) {
        value[j] += 0.1f * ts_rng_normal(6, TS_RNG_TEST, index, (uint32_t)j);
    }
    CHECK_OK(ts_param_write(p, 0, p->count, value));
    free(value);
}

static void open_fixture(fixture *f, const ts_dit_config *config, ts_dtype dtype, ts_tape_mode mode) {
    memset(f, 0, sizeof *f);
    CHECK_OK(ts_params_open(&f->params));
    f->params->kernels = test_kernels;
    CHECK_OK(ts_dit_open(&f->dit, config, f->params, "transformer."));
    CHECK_OK(ts_params_allocate(f->params, dtype, true));
    CHECK_OK(ts_dit_init(f->dit, 5));
    // Nothing may hide behind a special value such as a zero bias.
    for (int64_t i = 0; i < f->params->count; i++) {
        add_noise(f->params->item[i], (uint64_t)i);
    }
    CHECK_OK(ts_params_refresh_operands(f->params));
    CHECK_OK(ts_tape_open(&f->tape, test_kernels, mode, dtype));
    f->latent = random_numbers(VIDEO, 1);
    f->target = random_numbers(VIDEO, 2);
    f->context = random_numbers(CONTEXTS * CONTEXT, 3);
    f->image = random_numbers(IMAGE, 4);
    static const float weight[B * T] = {1, 1, 0, 1, 0.5f, 1};  // held frames weigh nothing
    f->weight = test_device(weight, sizeof weight);
    f->loss = test_new_copy(test_kernels->device, sizeof *f->loss);
    const float levels[] = {999, 437, 437, 0, 0, 611};
    memcpy(f->timestep, levels, sizeof levels);
    f->timesteps = T;
    f->contexts = 1;
}

static void close_fixture(fixture *f) {
    ts_tape_close(&f->tape);
    ts_dit_close(&f->dit);
    ts_params_close(&f->params);
}

// One pass; with `gradients` the tape must be in record (or count) mode.
static int step(void *user, bool gradients, double *loss) {
    fixture *f = user;
    ts_tape_reset(f->tape);
    f->latent_var = ts_tape_input(f->tape, (ts_tensor){TS_F32, TS_SHAPE(B, T, H, W, C), f->latent}, true);
    const ts_shape context = f->contexts > 1 ? TS_SHAPE(B, f->contexts, ROWS, 7) : TS_SHAPE(B, ROWS, 7);
    f->context_var = ts_tape_input(f->tape, (ts_tensor){TS_F32, context, f->context}, true);
    f->image_var = ts_dit_get_config(f->dit)->image_dim
                       ? ts_tape_input(f->tape, (ts_tensor){TS_F32, TS_SHAPE(B, 4, 6), f->image}, true)
                       : NULL;
    const ts_dit_input input = {.latent = f->latent_var,
                                .context = f->context_var,
                                .image = f->image_var,
                                .timestep = f->timestep,
                                .timesteps_per_sample = f->timesteps,
                                .contexts_per_sample = f->contexts,
                                .frame_context = f->frame_context,
                                .recompute = f->recompute};
    f->sample = ts_dit_forward(f->tape, f->dit, &input);
    const ts_velocity_loss p = {
        .target = f->target, .rows = B * T, .weight = f->weight, .scale = 0.01, .loss = f->loss};
    TS_TRY(ts_nn_velocity_loss(f->tape, f->sample, &p));
    if (gradients) {
        TS_TRY(ts_tape_backward(f->tape, f->sample, NULL));
        f->latent_grad = f->latent_var->grad;
        f->context_grad = f->context_var->grad;
        f->image_grad = f->image_var ? f->image_var->grad : NULL;
    }
    return ts_tape_computes(f->tape) ? test_kernels->device->download(loss, f->loss, sizeof *loss) : 0;
}

// Several contexts: `frame_context` or, of NULL, one for each frame.
static void check_gradients(const ts_dit_config *config, int64_t timesteps, int64_t contexts,
                            const int32_t *frame_context, ts_recompute recompute) {
    fixture f;
    open_fixture(&f, config, TS_F32, TS_TAPE_RECORD);
    f.timesteps = timesteps;
    f.contexts = contexts;
    f.frame_context = frame_context;
    f.recompute = recompute;
    const ts_gradcheck_target targets[] = {{"latent", f.latent, &f.latent_grad, VIDEO},
                                           {"context", f.context, &f.context_grad, contexts * CONTEXT},
                                           {"image", f.image, &f.image_grad, IMAGE}};
    ts_gradcheck_result result;
    CHECK_OK(ts_gradcheck(step, &f, targets, config->image_dim ? 3 : 2, f.params,
                          &(ts_gradcheck_params){.directions = 1, .seed = 3}, &result));
    if (!(result.worst < 1e-2)) {
        fprintf(stderr, "%g %s: analytic %.6g, numeric %.6g\n", result.worst, result.name, result.analytic,
                result.numeric);
    }
    CHECK(result.worst < 1e-2);
    close_fixture(&f);
}

static void test_gradients(void) {
    ts_dit_config config = small_config(10);
    check_gradients(&config, T, 1, NULL, TS_RECOMPUTE_NONE);
    config = small_config(16);
    check_gradients(&config, 1, 1, NULL, TS_RECOMPUTE_BLOCK);
    check_gradients(&config, T, T, NULL, TS_RECOMPUTE_ELEMENTWISE);
    check_gradients(&config, TOKENS, CONTEXTS, (const int32_t[T]){0, 2, 2}, TS_RECOMPUTE_NONE);
    config.cross_attention_norm = config.absolute_positions = false;
    config.image_dim = 6;
    config.added_kv_dim = ts_dit_width(&config);
    config.image_positions = 4;
    check_gradients(&config, TOKENS, 1, NULL, TS_RECOMPUTE_ELEMENTWISE);
}

// Recomputing gives the same bits as keeping, and running those of recording.
static void test_modes_agree(ts_dtype dtype, ts_recompute recompute) {
    const ts_dit_config config = small_config(16);
    fixture kept, recomputed, run;
    double loss[3];
    open_fixture(&kept, &config, dtype, TS_TAPE_RECORD);
    open_fixture(&recomputed, &config, dtype, TS_TAPE_RECORD);
    open_fixture(&run, &config, dtype, TS_TAPE_RUN);
    recomputed.recompute = recompute;
    CHECK_OK(step(&kept, true, &loss[0]));
    CHECK_OK(step(&recomputed, true, &loss[1]));
    CHECK_OK(step(&run, false, &loss[2]));
    CHECK(loss[0] == loss[1] && loss[0] == loss[2]);
    const size_t all_parameters = (size_t)kept.params->total * sizeof(float);
    CHECK(test_same(kept.sample->value.data, recomputed.sample->value.data, VIDEO_BYTES));
    CHECK(test_same(kept.sample->value.data, run.sample->value.data, VIDEO_BYTES));
    CHECK(test_same(kept.params->grad, recomputed.params->grad, all_parameters));
    CHECK(test_same(kept.latent_grad, recomputed.latent_grad, VIDEO_BYTES));
    CHECK(test_same(kept.context_grad, recomputed.context_grad, CONTEXT * sizeof(float)));
    CHECK(test_same(random_numbers(VIDEO, 1), run.latent, VIDEO_BYTES));  // inputs are not overwritten
    CHECK(ts_tape_get_stats(recomputed.tape).activation_bytes < ts_tape_get_stats(kept.tape).activation_bytes);
    // A second step repeats the first bit by bit.
    CHECK_OK(ts_params_zero_grad(recomputed.params));
    CHECK_OK(step(&recomputed, true, &loss[1]));
    CHECK(loss[0] == loss[1]);
    CHECK(test_same(kept.params->grad, recomputed.params->grad, all_parameters));
    close_fixture(&kept);
    close_fixture(&recomputed);
    close_fixture(&run);
}

static void check_counted(ts_dtype dtype, ts_recompute recompute, bool train) {
    const ts_dit_config config = small_config(16);
    fixture real, counted;
    double loss;
    open_fixture(&real, &config, dtype, train ? TS_TAPE_RECORD : TS_TAPE_RUN);
    open_fixture(&counted, &config, dtype, train ? TS_TAPE_COUNT : TS_TAPE_COUNT_RUN);
    real.recompute = counted.recompute = recompute;
    CHECK_OK(step(&real, train, &loss));
    CHECK_OK(step(&counted, train, &loss));
    const ts_tape_stats a = ts_tape_get_stats(real.tape), b = ts_tape_get_stats(counted.tape);
    CHECK(a.peak_bytes == b.peak_bytes && a.peak_bytes > 0);
    CHECK(a.activation_bytes == b.activation_bytes);
    CHECK(a.flops == b.flops && a.calls == b.calls);
    // GEMMs and attentions add up to the formula and the time path (3 GEMMs for each of 5 distinct levels).
    const double D = (double)ts_dit_width(&config);
    const double formula = B * ts_dit_flops(&config, T, H, W);
    const double time_path = 4 * 2 * (16 * D + 7 * D * D), text = B * ROWS * 2 * (7 * D + D * D);
    const double positions = TOKENS * 2 * 12 * D;
    CHECK_NEAR(a.flops, formula + time_path + text + positions, 1e-6 * formula);
    close_fixture(&real);
    close_fixture(&counted);
}

static void test_counting(void) {
    check_counted(TS_BF16, TS_RECOMPUTE_ELEMENTWISE, true);
    check_counted(TS_BF16, TS_RECOMPUTE_NONE, false);
    if (!test_is_slow()) {
        check_counted(TS_F32, TS_RECOMPUTE_NONE, true);
        check_counted(TS_BF16, TS_RECOMPUTE_NONE, true);
        check_counted(TS_F32, TS_RECOMPUTE_ELEMENTWISE, true);
        check_counted(TS_BF16, TS_RECOMPUTE_BLOCK, true);
    }
}

// Memory of a run does not grow with depth.
static void test_run_memory(void) {
    ts_dit_config config = small_config(16);
    uint64_t peak[2];
    for (int i = 0; i < 2; i++) {
        config.layers = i ? 6 : 2;
        fixture f;
        double loss;
        open_fixture(&f, &config, TS_BF16, TS_TAPE_RUN);
        CHECK_OK(step(&f, false, &loss));
        peak[i] = ts_tape_get_stats(f.tape).peak_bytes;
        close_fixture(&f);
    }
    CHECK(peak[0] == peak[1]);
}

static void test_errors(void) {
    const ts_dit_config config = small_config(16);
    fixture f;
    double loss;
    open_fixture(&f, &config, TS_F32, TS_TAPE_RUN);
    f.timesteps = 4;
    CHECK_FAILS(step(&f, false, &loss), TS_EINPUT, "timesteps");
    CHECK(f.sample == NULL);
    // The error is sticky, and gone after reset.
    CHECK(ts_tape_status(f.tape) == TS_EINPUT);
    f.timesteps = 1;
    f.contexts = CONTEXTS;
    CHECK_FAILS(step(&f, false, &loss), TS_EINPUT, "wanted 1, or one for each of 3 frames");
    f.frame_context = (const int32_t[T]){0, 2, 1};
    CHECK_FAILS(step(&f, false, &loss), TS_EINPUT, "must not fall");
    f.frame_context = (const int32_t[T]){-1, 2, 3};
    CHECK_FAILS(step(&f, false, &loss), TS_EINPUT, "frame 0 sees context -1 of 4");
    f.frame_context = (const int32_t[T]){0, 2, 4};
    CHECK_FAILS(step(&f, false, &loss), TS_EINPUT, "frame 2 sees context 4 of 4");
    f.contexts = -1;
    CHECK_FAILS(step(&f, false, &loss), TS_EINPUT, "context [2, rows, 7]");
    f.contexts = 0;
    CHECK_OK(step(&f, false, &loss));
    close_fixture(&f);
}

static void test_config(void) {
    ts_dit_config config = small_config(16), back;
    json_t *json = ts_dit_config_to_json(&config);
    CHECK(json != NULL);
    CHECK_OK(ts_dit_config_from_json(&back, json, "here"));
    CHECK(!memcmp(&config, &back, sizeof config));
    json_object_set_new(json, "qk_norm", json_string("none"));
    CHECK_FAILS(ts_dit_config_from_json(&back, json, "here"), TS_EINPUT, "qk_norm");
    json_object_set_new(json, "qk_norm", json_null());
    json_object_set_new(json, "attention_head_dim", json_integer(15));
    CHECK_FAILS(ts_dit_config_from_json(&back, json, "here"), TS_EINPUT, "even");
    json_object_set_new(json, "attention_head_dim", json_integer(-2));
    CHECK(ts_dit_config_from_json(&back, json, "here") == TS_EINPUT);
    json_decref(json);
    json = json_object();
    CHECK_OK(ts_dit_config_from_json(&back, json, "here"));
    CHECK(ts_dit_width(&back) == 5120 && back.layers == 40 && back.text_rows == 512);
    json_decref(json);
    // T2V-1.3B at 480 x 832 x 81: 283 TFLOP.
    back.heads = 12;
    back.layers = 30;
    back.ffn_dim = 8960;
    CHECK_NEAR(ts_dit_flops(&back, 21, 60, 104) / 1e12, 283.0, 0.5);
}

int main(void) {
    test_config();
    for (int table = 0; test_choose(table); table++) {
        for (ts_recompute recompute = TS_RECOMPUTE_ELEMENTWISE; recompute <= TS_RECOMPUTE_BLOCK; recompute++) {
            if (!test_is_slow()) {
                test_modes_agree(TS_F32, recompute);
            }
            test_modes_agree(TS_BF16, recompute);
        }
        test_counting();
        test_run_memory();
        test_errors();
        if (test_kernels->device->is_host) {  // elsewhere kernels are checked against the CPU's, one by one
            test_gradients();
        }
    }
    return ts_test_end();
}
