// SPDX-License-Identifier: Apache-2.0
// Six guided UniPC steps of the golden tiny transformer, latents compared after each step; a recorded step gives the
// same bits, and frames may have guidance of their own. TEST: ranks=1 timeout=120 backend=cuda
#include "core/base/arena.h"
#include "core/base/json.h"
#include "core/store/safetensors.h"
#include "infer/sampler/solver.h"
#include "infer/sampler/velocity.h"
#include "tests/device_test.h"

enum { C = 16, T = 3, H = 8, W = 12, ROWS = 20, STEPS = 6, NUMBERS = C * T * H * W, TEXT = ROWS * 32 };

static float start[NUMBERS], contexts[TS_BRANCHES][TEXT];

// [C, T, H, W] of the file to our [T, H, W, C].
static void read_latents(const ts_safetensors *file, const char *name, float *out) {
    static float raw[NUMBERS];
    CHECK_OK(ts_safetensors_read_f32(file, name, TS_SHAPE(1, C, T, H, W), raw));
    for (int i = 0; i < T * H * W; i++) {
        for (int c = 0; c < C; c++) {
            out[i * C + c] = raw[c * T * H * W + i];
        }
    }
}

// The largest difference from the golden latents after a step.
static double compare_step(const ts_safetensors *file, int step, const float *latents) {
    const float *x = test_host(latents, NUMBERS * sizeof *x);
    static float wanted[NUMBERS];
    char name[32];
    snprintf(name, sizeof name, "step.%d", step);
    read_latents(file, name, wanted);
    double worst = 0.0;
    for (int i = 0; i < NUMBERS; i++) {
        worst = fmax(worst, fabs((double)x[i] - wanted[i]));
    }
    printf("step %d: largest difference %.2g\n", step, worst);
    return worst;
}

static void load_weights(const char *folder, ts_params *params) {
    ts_safetensors *file = NULL;
    CHECK_OK(ts_safetensors_open(&file, folder));
    for (int64_t i = 0; i < params->count; i++) {
        const ts_param *p = params->item[i];
        float *value = test_new_copy(&ts_device_host, (size_t)p->count * sizeof *value);
        CHECK_OK(ts_safetensors_read_f32(file, p->name, p->shape, value));
        CHECK_OK(ts_param_write(p, 0, p->count, value));
    }
    ts_safetensors_close(&file);
}

// The guided velocity at x; with `frames` each frame has guidance of its own, which happens to be the same but for the
// last bit of one.
static const float *velocity_at(ts_velocity *velocity, float timestep, const float *x, bool frames) {
    ts_velocity_batch batch = {.n = 1, .frames = T, .height = H, .width = W, .levels = 1, .contexts = 1};
    const ts_device *device = test_kernels->device;
    const float *out = NULL;
    CHECK_OK(ts_velocity_begin(velocity, &batch));
    CHECK_OK(device->copy(batch.latent, x, sizeof start));
    for (int i = 0; i < TS_BRANCHES; i++) {
        CHECK_OK(device->upload(batch.context[i], contexts[i], sizeof contexts[i]));
    }
    batch.timestep[0] = timestep;
    for (int t = 0; t < T; t++) {
        batch.guidance[t] = frames && t == 1 ? nextafterf(5.0f, 6.0f) : 5.0f;
    }
    CHECK_OK(ts_velocity_take(velocity, &batch, &out));
    return out;
}

// All steps; the last latents stay in x. Returns the largest difference on the way.
static double sample(const ts_dit *dit, ts_tape *tape, const ts_safetensors *file, bool record, bool frames, float *x) {
    static ts_schedule schedule;
    ts_velocity *velocity = NULL;
    ts_solver *solver = NULL;
    double worst = 0.0;
    CHECK_OK(ts_schedule_make(&schedule, TS_GRID_UNIPC, STEPS, 3.0));
    CHECK_OK(ts_solver_open(&solver, TS_SOLVER_UNIPC, &schedule, test_kernels,
                            &(ts_solver_rows){.rows = 1, .width = NUMBERS, .classes = 1, .floor = (float[]){1.0f}}));
    const ts_velocity_params params = {.dit = dit, .tape = tape, .guided = true, .record = record};
    CHECK_OK(ts_velocity_open(&velocity, &params));
    CHECK_OK(test_kernels->device->upload(x, start, sizeof start));
    for (int step = 0; step < STEPS; step++) {
        CHECK_OK(ts_solver_step(solver, step, velocity_at(velocity, schedule.timestep[step], x, frames), x));
        worst = fmax(worst, compare_step(file, step, x));
    }
    ts_velocity_close(&velocity);
    ts_solver_close(&solver);
    return worst;
}

static void run(const char *folder) {
    char path[1200];
    snprintf(path, sizeof path, "%s/transformer/config.json", folder);
    json_t *json = NULL;
    ts_dit_config config;
    ts_params *params = NULL;
    ts_dit *dit = NULL;
    ts_tape *tape = NULL;
    ts_safetensors *file = NULL;
    CHECK_OK(ts_json_read(path, 1 << 20, &json));
    CHECK_OK(ts_dit_config_from_json(&config, json, path));
    config.text_rows = ROWS;
    CHECK_OK(ts_params_open(&params));
    params->kernels = test_kernels;
    CHECK_OK(ts_dit_open(&dit, &config, params, ""));
    CHECK_OK(ts_params_allocate(params, TS_F32, false));
    snprintf(path, sizeof path, "%s/transformer", folder);
    load_weights(path, params);
    CHECK_OK(ts_tape_open(&tape, test_kernels, TS_TAPE_RUN, TS_F32));
    snprintf(path, sizeof path, "%s/sampling.safetensors", folder);
    CHECK_OK(ts_safetensors_open(&file, path));
    read_latents(file, "init_latents", start);
    CHECK_OK(ts_safetensors_read_f32(file, "prompt_embeds", TS_SHAPE(1, ROWS, 32), contexts[TS_BRANCH_WITH]));
    CHECK_OK(
        ts_safetensors_read_f32(file, "negative_prompt_embeds", TS_SHAPE(1, ROWS, 32), contexts[TS_BRANCH_WITHOUT]));

    float *plain = test_new_copy(test_kernels->device, sizeof start);
    float *again = test_new_copy(test_kernels->device, sizeof start);
    const double worst = sample(dit, tape, file, false, false, plain);
    CHECK(worst > 0.0 && worst <= 1e-3);
    CHECK(sample(dit, tape, file, true, false, again) == worst && test_same(plain, again, sizeof start));
    if (!test_is_slow()) {
        CHECK(sample(dit, tape, file, true, true, again) <= 1e-3 && !test_same(plain, again, sizeof start));
    }

    ts_safetensors_close(&file);
    ts_tape_close(&tape);
    ts_dit_close(&dit);
    ts_params_close(&params);
    json_decref(json);
}

int main(void) {
    char folder[1024];
    snprintf(folder, sizeof folder, "%s/parity/wan_t2v_tiny", ts_test_shared());
    for (int table = 0; test_choose(table); table++) {
        run(folder);
    }
    return ts_test_end();
}
