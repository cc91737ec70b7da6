// SPDX-License-Identifier: Apache-2.0
// The shipped model on another device: the same weights, the same noise to the bit, latents like the CPU's, of loops
// too, and the same bits whether steps are recorded or not. TEST: ranks=1 timeout=120 backend=cuda
#include "core/base/rng.h"
#include "core/model/model.h"
#include "infer/sampler/denoise.h"
#include "infer/sampler/sample.h"
#include "tests/device_test.h"

enum { VIDEOS = 3, T = 2, H = 4, W = 6, STEPS = 4 };

static const char *const prompts[VIDEOS] = {"a red circle moves left on a black background",
                                            "a cyan square moves down on a brown background", "a circle"};
static int64_t numbers;  // of a video's latents

static ts_sample_params sampling(ts_solver_kind solver, double guidance) {
    return (ts_sample_params){.frames = T,
                              .height = H,
                              .width = W,
                              .steps = STEPS,
                              .guidance = guidance,
                              .shift = 3.0,
                              .grid = TS_GRID_UNIPC,
                              .solver = solver,
                              .seed = 11,
                              .batch = 2,
                              .quiet = true};
}

static ts_model *load(const ts_kernels *kernels, ts_dtype operands) {
    ts_model *model = NULL;
    CHECK_OK(ts_model_load(&model, "configs/shapes-model", kernels, NULL, operands, false));
    return model;
}

static void compare_weights(const ts_model *cpu, const ts_model *model) {
    for (int64_t i = 0; i < cpu->params->count; i++) {
        const ts_param *a = cpu->params->item[i], *b = model->params->item[i];
        CHECK(a->count == b->count && test_same(a->value, b->value, (size_t)a->count * sizeof *a->value));
        test_free_copies();
    }
}

static void compare_noise(const ts_kernels *cpu) {
    const size_t bytes = (size_t)numbers * sizeof(float);
    float *host = test_new_copy(&ts_device_host, bytes), *x = test_new_copy(test_kernels->device, bytes);
    CHECK_OK(cpu->noise(host, numbers, 7, TS_RNG_SAMPLE, 5, 0));
    CHECK_OK(test_kernels->noise(x, numbers, 7, TS_RNG_SAMPLE, 5, 0));
    CHECK(test_same(host, x, bytes));
    test_free_copies();
}

// Latents after the last step, relative to the largest of the CPU's.
static void compare_latents(const ts_model *on_cpu, const ts_kernels *cpu, const ts_model *model, ts_solver_kind solver,
                            double guidance, double tolerance) {
    const ts_sample_params params = sampling(solver, guidance);
    const size_t bytes = (size_t)(VIDEOS * numbers) * sizeof(float);
    float *wanted = malloc(bytes), *got = malloc(bytes);
    double largest = 0.0, worst = 0.0;
    CHECK_OK(ts_sample(on_cpu, cpu, &params, prompts, VIDEOS, 5, wanted));
    CHECK_OK(ts_sample(model, test_kernels, &params, prompts, VIDEOS, 5, got));
    for (int64_t i = 0; i < VIDEOS * numbers; i++) {
        largest = fmax(largest, fabs((double)wanted[i]));
        worst = fmax(worst, fabs((double)got[i] - (double)wanted[i]));
    }
    printf("%s, guidance %g: latents differ by %.2g of %.2g\n", ts_solver_names[solver], guidance, worst, largest);
    CHECK(largest > 0.1 && worst <= tolerance * largest);
    free(wanted);
    free(got);
}

// A loop of joined windows with a held frame, whose heads the host makes: latents like the CPU's, what is held
// untouched.
static void loop(const ts_model *model, const ts_kernels *kernels, float *out) {
    enum { FRAMES = 4 };
    const ts_denoise_params params = {
        .grid = TS_GRID_UNIPC, .steps = STEPS, .shift = 3.0, .solver = TS_SOLVER_UNIPC, .seed = 1, .batch = 2};
    const int64_t tokens = H / 2 * (W / 2);
    ts_canvas canvas;
    ts_denoiser *denoiser = NULL;
    CHECK_OK(ts_canvas_open(&canvas, FRAMES, H, W, numbers / (T * H * W), 2, 2, prompts[0], 3.0));
    CHECK_OK(ts_canvas_add_source(&canvas));
    CHECK_OK(ts_canvas_set_prompt(&canvas, 2, prompts[1]));
    for (int64_t i = 0; i < ts_canvas_numbers(&canvas); i++) {
        canvas.source[i] = 0.01f * (float)(i % 100);
    }
    for (int64_t i = 0; i < tokens; i++) {
        canvas.strength[i] = 0.0f;
        canvas.strength[tokens + i] = 0.7f;
    }
    canvas.loop = true;
    canvas.window = 3;
    CHECK_OK(ts_denoiser_open(&denoiser, model, kernels, &params, &canvas, 1));
    for (int64_t step = ts_denoiser_first_step(denoiser); step < STEPS; step++) {
        CHECK_OK(ts_denoiser_step(denoiser, step));
    }
    CHECK_OK(ts_denoiser_latents(denoiser, 0, out));
    CHECK(memcmp(out, canvas.source, (size_t)ts_canvas_frame_numbers(&canvas) * sizeof *out) == 0);
    ts_denoiser_close(&denoiser);
    ts_canvas_close(&canvas);
}

static void compare_loop(const ts_model *on_cpu, const ts_kernels *cpu, const ts_model *model) {
    const int64_t n = numbers / T * 4;
    float *wanted = malloc((size_t)n * sizeof *wanted), *got = malloc((size_t)n * sizeof *got);
    double largest = 0.0, worst = 0.0;
    loop(on_cpu, cpu, wanted);
    loop(model, test_kernels, got);
    for (int64_t i = 0; i < n; i++) {
        largest = fmax(largest, fabs((double)wanted[i]));
        worst = fmax(worst, fabs((double)got[i] - (double)wanted[i]));
    }
    printf("loop: latents differ by %.2g of %.2g\n", worst, largest);
    CHECK(largest > 0.1 && worst <= 1e-3 * largest);
    free(wanted);
    free(got);
}

static int recordings;

static int counted_begin(void) {
    recordings++;
    return test_kernels->device->record_begin();
}

// The table, with recordings counted or refused; the model's tables of positions hold on to its device.
static const ts_kernels *with_recording(bool counted) {
    static ts_device device[2];
    static ts_kernels kernels[2];
    device[counted] = *test_kernels->device;
    device[counted].record_begin = counted && device[counted].record_begin ? counted_begin : NULL;
    kernels[counted] = *test_kernels;
    kernels[counted].device = &device[counted];
    return &kernels[counted];
}

// Five steps of one free canvas, whose last latents go to `out`.
static void take_steps(const ts_model *model, const ts_kernels *kernels, double guidance, float *out) {
    const ts_denoise_params params = {
        .grid = TS_GRID_UNIPC, .steps = STEPS + 1, .shift = 3.0, .solver = TS_SOLVER_UNIPC, .seed = 1, .batch = 1};
    ts_canvas canvas;
    ts_denoiser *denoiser = NULL;
    CHECK_OK(ts_canvas_open(&canvas, T, H, W, numbers / (T * H * W), 2, 2, prompts[0], guidance));
    CHECK_OK(ts_denoiser_open(&denoiser, model, kernels, &params, &canvas, 1));
    for (int64_t step = 0; step <= STEPS; step++) {
        CHECK_OK(ts_denoiser_step(denoiser, step));
    }
    CHECK_OK(ts_denoiser_latents(denoiser, 0, out));
    ts_denoiser_close(&denoiser);
    ts_canvas_close(&canvas);
}

static void record_steps(const ts_model *model, double guidance) {
    const size_t bytes = (size_t)numbers * sizeof(float);
    float *plain = malloc(bytes), *recorded = malloc(bytes);
    take_steps(model, with_recording(false), guidance, plain);
    recordings = 0;
    take_steps(model, with_recording(true), guidance, recorded);
    CHECK(memcmp(plain, recorded, bytes) == 0 && isfinite(plain[0]));
    CHECK(recordings == (test_kernels->device->record_begin ? 1 : 0));
    free(plain);
    free(recorded);
}

int main(void) {
    for (int table = 0; test_choose(table); table++) {
        const ts_kernels *cpu = NULL;
        CHECK_OK(ts_kernels_cpu(&cpu, "auto"));
        ts_model *on_cpu = load(cpu, TS_F32), *model = load(test_kernels, TS_F32);
        numbers = T * H * W * ts_dit_get_config(model->dit)->out_channels;
        compare_weights(on_cpu, model);
        compare_noise(cpu);
        compare_latents(on_cpu, cpu, model, TS_SOLVER_UNIPC, 3.0, 1e-3);
        compare_latents(on_cpu, cpu, model, TS_SOLVER_EULER, 1.0, 1e-3);
        compare_loop(on_cpu, cpu, model);
        record_steps(model, 3.0);
        record_steps(model, 1.0);
        ts_model_close(&model);
        model = load(test_kernels, TS_BF16);
        compare_latents(on_cpu, cpu, model, TS_SOLVER_EULER, 1.0, 0.1);
        ts_model_close(&model);
        ts_model_close(&on_cpu);
    }
    return ts_test_end();
}
