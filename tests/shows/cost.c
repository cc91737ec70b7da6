// SPDX-License-Identifier: Apache-2.0
#include "tests/shows/cost.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/arena.h"
#include "core/base/rng.h"
#include "core/base/status.h"
#include "core/model/model.h"
#include "infer/edit/score.h"
#include "infer/sampler/denoise.h"

static const char *const prompts[] = {"a red circle moves left on a black background", ""};

typedef struct bench {
    const ts_kernels *kernels;
    ts_model *model;
    ts_schedule schedule;
    int64_t shape[4], numbers;  // T, H, W, C of a video
    double guidance;
    float *plain, *canvas;  // [T, H, W, C] the two results
} bench;

static double processor_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// ---- the plain way: one level, one prompt and the empty one, all free

// One step: both branches as one batch, their velocities as one, the solver.
static int plain_step(const bench *b, ts_tape *tape, ts_solver *solver, int64_t step, ts_tensor context,
                      float *branches) {
    const float timestep[2] = {b->schedule.timestep[step], b->schedule.timestep[step]};
    const size_t bytes = (size_t)b->numbers * sizeof(float);
    memcpy(branches, b->plain, bytes);
    memcpy(branches + b->numbers, b->plain, bytes);
    ts_tape_reset(tape);
    const ts_tensor latent = {TS_F32, TS_SHAPE(2, b->shape[0], b->shape[1], b->shape[2], b->shape[3]), branches};
    const ts_dit_input input = {
        .latent = ts_tape_input(tape, latent, false),
        .context = ts_tape_input(tape, context, false),
        .timestep = timestep,
        .timesteps_per_sample = 1,
    };
    const ts_var *v = ts_dit_forward(tape, b->model->dit, &input);
    TS_TRY(ts_tape_status(tape));
    const float *with = v->value.data;
    const ts_combine sum = {.n = b->numbers,
                            .terms = 2,
                            .c = {b->guidance, 1.0 - b->guidance},
                            .x = {with, with + b->numbers},
                            .out = branches};
    TS_TRY(b->kernels->combine(&sum));
    return ts_solver_step(solver, step, branches, b->plain);
}

static int plain_steps(const bench *b, ts_tape *tape, ts_solver *solver, float *context, float *branches) {
    const ts_dit_config *c = ts_dit_get_config(b->model->dit);
    const ts_tensor both = {TS_F32, TS_SHAPE(2, c->text_rows, c->text_dim), context};
    const ts_var *encoded = ts_model_encode_text(tape, b->model, prompts, 2);
    TS_TRY(ts_tape_status(tape));
    memcpy(context, encoded->value.data, (size_t)(2 * c->text_rows * c->text_dim) * sizeof *context);
    TS_TRY(b->kernels->noise(b->plain, b->numbers, 0, TS_RNG_SAMPLE, 0, 0));
    for (int64_t step = 0; step < b->schedule.steps; step++) {
        TS_TRY(plain_step(b, tape, solver, step, both, branches));
    }
    return TS_OK;
}

static int run_plain(const bench *b) {
    const ts_dit_config *c = ts_dit_get_config(b->model->dit);
    const float all = 1.0f;
    const ts_solver_rows rows = {.rows = 1, .width = b->numbers, .classes = 1, .floor = &all};
    ts_tape *tape = NULL;
    ts_solver *solver = NULL;
    float *context = ts_aligned_alloc((size_t)(2 * c->text_rows * c->text_dim) * sizeof *context);
    float *branches = ts_aligned_alloc((size_t)(2 * b->numbers) * sizeof *branches);
    int status = context && branches ? TS_OK : TS_ERESOURCE;
    status = status ? status : ts_tape_open(&tape, b->kernels, TS_TAPE_RUN, b->model->params->operand_dtype);
    status = status ? status : ts_solver_open(&solver, TS_SOLVER_UNIPC, &b->schedule, b->kernels, &rows);
    status = status ? status : plain_steps(b, tape, solver, context, branches);
    ts_solver_close(&solver);
    ts_tape_close(&tape);
    free(context);
    free(branches);
    return status;
}

// ---- the canvas

static int run_canvas(const bench *b) {
    const ts_dit_config *c = ts_dit_get_config(b->model->dit);
    const ts_denoise_params params = {.grid = TS_GRID_UNIPC,
                                      .steps = b->schedule.steps,
                                      .shift = b->model->defaults.flow_shift,
                                      .solver = TS_SOLVER_UNIPC,
                                      .batch = 1};
    ts_canvas canvas = {0};
    ts_denoiser *denoiser = NULL;
    int status = ts_canvas_open(&canvas, b->shape[0], b->shape[1], b->shape[2], b->shape[3], c->patch[1], c->patch[2],
                                prompts[0], b->guidance);
    status = status ? status : ts_denoiser_open(&denoiser, b->model, b->kernels, &params, &canvas, 1);
    for (int64_t step = 0; !status && step < b->schedule.steps; step++) {
        status = ts_denoiser_step(denoiser, step);
    }
    status = status ? status : ts_denoiser_latents(denoiser, 0, b->canvas);
    ts_denoiser_close(&denoiser);
    ts_canvas_close(&canvas);
    return status;
}

// ---- both in turn

static int open_bench(bench *b, const char *folder) {
    TS_TRY(ts_kernels_cpu(&b->kernels, "auto"));
    TS_TRY(ts_model_load(&b->model, folder, b->kernels, NULL, TS_F32, false));
    const ts_model_defaults *d = &b->model->defaults;
    const ts_codec_info codec = ts_codec_get_info(b->model->codec);
    const int64_t shape[] = {1 + (d->frames - 1) / codec.time_factor, d->height / codec.space_factor,
                             d->width / codec.space_factor, codec.channels};
    memcpy(b->shape, shape, sizeof shape);
    b->numbers = shape[0] * shape[1] * shape[2] * shape[3];
    b->guidance = d->guidance;
    b->plain = ts_aligned_alloc((size_t)b->numbers * sizeof *b->plain);
    b->canvas = ts_aligned_alloc((size_t)b->numbers * sizeof *b->canvas);
    TS_TRY(b->plain && b->canvas ? TS_OK : TS_ERESOURCE);
    return ts_schedule_make(&b->schedule, TS_GRID_UNIPC, d->steps, d->flow_shift);
}

static int compare_rounds(const bench *b, int rounds) {
    double *plain = ts_calloc(2 * (size_t)rounds, sizeof *plain), *canvas = plain + rounds;
    int status = plain ? TS_OK : TS_ERESOURCE;
    for (int i = -1; i < rounds && !status; i++) {  // the first is not counted: kernels choose their ways
        const double start = processor_seconds();
        status = run_plain(b);
        const double middle = processor_seconds();
        status = status ? status : run_canvas(b);
        if (i >= 0) {
            plain[i] = middle - start;
            canvas[i] = processor_seconds() - middle;
        }
    }
    if (!status && memcmp(b->plain, b->canvas, (size_t)b->numbers * sizeof *b->plain) != 0) {
        status = TS_FAIL(TS_EINTERNAL, "the canvas gives another video than the plain loop");
    }
    if (!status) {
        const double a = ts_score_median(plain, rounds), c = ts_score_median(canvas, rounds);
        printf("%.4f %.4f %.2f\n", a, c, 100 * (c / a - 1));
    }
    free(plain);
    return status;
}

int shows_cost(const char *model_folder, int rounds) {
    bench b = {0};
    omp_set_num_threads(1);
    int status = open_bench(&b, model_folder);
    status = status ? status : compare_rounds(&b, rounds);
    free(b.plain);
    free(b.canvas);
    ts_model_close(&b.model);
    return status;
}
