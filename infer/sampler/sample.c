// SPDX-License-Identifier: Apache-2.0
#include "infer/sampler/sample.h"

#include <math.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "infer/sampler/denoise.h"

// One rank's share of the call.
typedef struct sampler {
    const ts_model *model;
    const ts_kernels *kernels;
    const ts_sample_params *params;
    int64_t video_numbers;  // T H W C
    int64_t group;          // videos in the group under way
    ts_progress progress;
} sampler;

int ts_sample_check_finite(const ts_sample_params *params, const float *latents, int64_t n, int64_t numbers,
                           int64_t first_index) {
    for (int64_t i = 0; i < n * numbers; i++) {
        if (!isfinite(latents[i])) {
            return TS_FAIL(
                TS_EINPUT,
                "video %lld: its latents are not finite after %lld steps with guidance %g; lower the guidance "
                "or take another model",
                (long long)(first_index + i / numbers), (long long)params->steps, params->guidance);
        }
    }
    return TS_OK;
}

// ---- a group of videos, sampled together

static int open_canvas(const sampler *s, const char *prompt, int64_t index, ts_canvas *canvas) {
    const ts_sample_params *p = s->params;
    const ts_dit_config *c = ts_dit_get_config(s->model->dit);
    TS_TRY(ts_canvas_open(canvas, p->frames, p->height, p->width, c->out_channels, c->patch[1], c->patch[2], prompt,
                          p->guidance));
    canvas->index = (uint64_t)index;
    if (p->window > 0) {
        canvas->window = p->window;
        canvas->overlap = p->overlap;
    }
    return TS_OK;
}

static int take_steps(sampler *s, ts_denoiser *denoiser) {
    for (int64_t step = ts_denoiser_first_step(denoiser); step < ts_denoiser_steps(denoiser); step++) {
        TS_TRY(ts_denoiser_step(denoiser, step));
        if (!s->params->quiet) {
            TS_TRY(s->kernels->device->finish());  // what is told is done
            ts_progress_update(&s->progress, s->progress.done + s->group, NULL);
        }
    }
    return TS_OK;
}

static int denoise_group(sampler *s, ts_canvas *canvas, int64_t n, float *latents) {
    const ts_sample_params *p = s->params;
    const ts_denoise_params params = {
        .grid = p->grid,
        .steps = p->steps,
        .shift = p->shift,
        .solver = p->solver,
        .seed = p->seed,
        .negative = p->negative,
        .batch = p->batch,
    };
    ts_denoiser *denoiser = NULL;
    int status = ts_denoiser_open(&denoiser, s->model, s->kernels, &params, canvas, n);
    status = status ? status : take_steps(s, denoiser);
    for (int64_t i = 0; i < n && !status; i++) {
        status = ts_denoiser_latents(denoiser, i, latents + i * s->video_numbers);
    }
    ts_denoiser_close(&denoiser);
    return status;
}

// Prompts to latents of n <= batch videos, host memory.
static int sample_group(sampler *s, const char *const *prompts, int64_t n, int64_t first_index, float *latents) {
    ts_canvas *canvas = ts_calloc((size_t)n, sizeof *canvas);
    int status = canvas ? TS_OK : TS_ERESOURCE;
    for (int64_t i = 0; i < n && !status; i++) {
        status = open_canvas(s, prompts[i], first_index + i, &canvas[i]);
    }
    s->group = n;
    status = ts_agree(ts_mesh_axis(s->model->params->mesh, TS_AXIS_VIDEO), status);
    status = status ? status : denoise_group(s, canvas, n, latents);
    for (int64_t i = 0; canvas && i < n; i++) {
        ts_canvas_close(&canvas[i]);
    }
    free(canvas);
    return status ? status : ts_sample_check_finite(s->params, latents, n, s->video_numbers, first_index);
}

// Samples the videos [videos.first, videos.first + videos.count) of the call.
static int sample_part(sampler *s, const char *const *prompts, ts_part videos, int64_t first_index, float *latents) {
    const ts_sample_params *p = s->params;
    const int64_t end = videos.first + videos.count;
    int status = TS_OK;
    if (!p->quiet) {
        ts_progress_begin(&s->progress, "sampling", "video steps", videos.count * p->steps);
    }
    for (int64_t i = videos.first; !status && i < end; i += p->batch) {
        const int64_t n = end - i < p->batch ? end - i : p->batch;
        status = sample_group(s, prompts + i, n, first_index + i, latents + i * s->video_numbers);
    }
    if (!p->quiet) {
        ts_progress_end(&s->progress, NULL);
    }
    return status;
}

// ---- over the mesh

int ts_sample_check(const ts_degrees *degree, double guidance) {
    if (degree->cfg > 2) {
        return TS_FAIL(TS_EUSAGE, "mesh cfg=%d: guidance has two branches; give cfg=2, and the ranks to another axis",
                       degree->cfg);
    }
    if (degree->cfg == 2 && guidance == 1.0) {
        return TS_FAIL(TS_EUSAGE,
                       "mesh cfg=2: with guidance 1 there is one branch and nothing to share; leave cfg out");
    }
    return TS_OK;
}

int ts_sample_check_reproducible(const ts_kernels *kernels, ts_dtype operands) {
    if (!kernels->device->is_host) {
        return TS_FAIL(TS_EUSAGE,
                       "reproducible: matrix products on %s have other last digits when ranks share the rows; leave it "
                       "out, or give --device cpu",
                       kernels->device->name);
    }
    if (ts_kernels_cpu_products_fixed(operands)) {
        return TS_OK;
    }
    return TS_FAIL(TS_EUSAGE,
                   "reproducible: matrix products of %s with %s have other last digits when ranks share the rows; it "
                   "takes AVX-512 for f32 and avx512bf16 or amx for bf16",
                   ts_dtype_name(operands), ts_kernels_cpu_instruction_set());
}

// Brings the videos of every rank of the data axis to all of them.
static int gather(ts_comm *data, int64_t n, int64_t numbers, float *latents) {
    const int size = ts_comm_size(data);
    int64_t *counts = ts_calloc((size_t)size, sizeof *counts);
    TS_TRY(ts_agree(data, counts ? TS_OK : TS_ERESOURCE));
    for (int rank = 0; rank < size; rank++) {
        counts[rank] = ts_split(n, size, rank).count * numbers;
    }
    const float *own = latents + ts_split_first(n, size, ts_comm_rank(data)) * numbers;
    const int status = ts_all_gather_v(data, own, latents, counts, TS_F32);
    free(counts);
    return status;
}

int ts_sample(const ts_model *model, const ts_kernels *kernels, const ts_sample_params *params,
              const char *const *prompts, int64_t n, int64_t first_index, float *latents) {
    const ts_mesh *mesh = model->params->mesh;
    ts_comm *data = ts_mesh_axis(mesh, TS_AXIS_DATA);
    sampler s = {.model = model, .kernels = kernels, .params = params};
    s.video_numbers = params->frames * params->height * params->width * ts_dit_get_config(model->dit)->out_channels;
    if (params->batch < 1) {
        return TS_FAIL(TS_EUSAGE, "a sampling batch of %lld; give 1 or more", (long long)params->batch);
    }
    if (mesh) {
        TS_TRY(ts_sample_check(&mesh->degree, params->guidance));
    }
    const ts_part videos = ts_split(n, ts_comm_size(data), ts_comm_rank(data));
    TS_TRY(ts_agree(ts_mesh_axis(mesh, TS_AXIS_WORLD), sample_part(&s, prompts, videos, first_index, latents)));
    return ts_comm_size(data) == 1 ? TS_OK : gather(data, n, s.video_numbers, latents);
}
