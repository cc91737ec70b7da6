// SPDX-License-Identifier: Apache-2.0
// Six guided UniPC steps of the golden tiny transformer, latents compared after each step; a recorded step gives the
// same bits. TEST: ranks=1 timeout=120 backend=cuda
#include "core/base/arena.h"
#include "core/base/json.h"
#include "core/store/safetensors.h"
#include "infer/denoise.h"
#include "tests/device_test.h"

enum { C = 16, T = 3, H = 8, W = 12, ROWS = 20, STEPS = 6, NUMBERS = C * T * H * W };

typedef struct golden {
    const ts_safetensors *file;
    double worst;
} golden;

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

static int compare_step(void *user, int64_t step, const float *latents) {
    golden *g = user;
    const float *x = test_host(latents, NUMBERS * sizeof *x);
    static float wanted[NUMBERS];
    char name[32];
    snprintf(name, sizeof name, "step.%d", (int)step);
    read_latents(g->file, name, wanted);
    double worst = 0.0;
    for (int i = 0; i < NUMBERS; i++) {
        worst = fmax(worst, fabs((double)x[i] - wanted[i]));
    }
    printf("step %d: largest difference %.2g\n", (int)step, worst);
    g->worst = fmax(g->worst, worst);
    return TS_OK;
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

static void sample(const char *folder) {
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

    static float start[NUMBERS], with[ROWS * 32], without[ROWS * 32], plain[NUMBERS];
    static ts_schedule schedule;
    golden g = {.file = file};
    read_latents(file, "init_latents", start);
    CHECK_OK(ts_safetensors_read_f32(file, "prompt_embeds", TS_SHAPE(1, ROWS, 32), with));
    CHECK_OK(ts_safetensors_read_f32(file, "negative_prompt_embeds", TS_SHAPE(1, ROWS, 32), without));
    CHECK_OK(ts_schedule_make(&schedule, TS_GRID_UNIPC, STEPS, 3.0));
    ts_denoise_params denoise = {
        .schedule = &schedule,
        .solver = TS_SOLVER_UNIPC,
        .guidance = 5.0,
        .n = 1,
        .frames = T,
        .height = H,
        .width = W,
        .with = test_device(with, sizeof with),
        .without = test_device(without, sizeof without),
        .on_step = compare_step,
        .user = &g,
    };
    for (int record = 0; record < 2; record++) {
        float *x = test_new_copy(test_kernels->device, sizeof start);
        CHECK_OK(test_kernels->device->upload(x, start, sizeof start));
        denoise.record = record;
        CHECK_OK(ts_denoise(dit, tape, &denoise, x));
        if (record) {
            CHECK(test_same(x, plain, sizeof plain));
        }
        memcpy(plain, test_host(x, sizeof plain), sizeof plain);
    }
    CHECK(g.worst > 0.0 && g.worst <= 1e-3);

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
        sample(folder);
    }
    return ts_test_end();
}
