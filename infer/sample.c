// SPDX-License-Identifier: Apache-2.0
#include "infer/sample.h"

#include <math.h>
#include <stdlib.h>

#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "infer/denoise.h"

// One rank's share of the call.
typedef struct sampler {
    const ts_model *model;
    const ts_mesh *mesh;  // or NULL
    const ts_kernels *kernels;
    const ts_sample_params *params;
    ts_schedule schedule;
    ts_tape *tape;
    int64_t video_numbers;    // T H W C
    int64_t context_numbers;  // rows width
    ts_part branches;         // of guidance, computed here
    // Device memory: [batch, rows, width], of the branches computed here, else NULL.
    float *with, *without;
    float *x;       // [batch, T, H, W, C], NULL on the host, where latents are made in place
    int64_t group;  // videos in the group under way
    ts_progress progress;
} sampler;

// The branches of guidance, by their number.
enum { WITH, WITHOUT };

static bool computes(const sampler *s, int branch) {
    return s->branches.first <= branch && branch < s->branches.first + s->branches.count;
}

static void sampler_close(sampler *s) {
    ts_tape_close(&s->tape);
    s->kernels->device->release(s->with);
    s->kernels->device->release(s->without);
    s->kernels->device->release(s->x);
}

// Runs the text encoder on prompts [n] into `context` [n, rows, width].
static int encode_prompts(sampler *s, const char *const *prompts, int64_t n, float *context) {
    ts_tape_reset(s->tape);
    const ts_var *encoded = ts_model_encode_text(s->tape, s->model, prompts, n);
    TS_TRY(ts_tape_status(s->tape));
    return s->kernels->device->copy(context, encoded->value.data, (size_t)(n * s->context_numbers) * sizeof *context);
}

// The negative prompt is the same for every video, so its context is made once, a copy for each video of a group.
static int encode_negative(sampler *s) {
    const char *negative = s->params->negative ? s->params->negative : "";
    TS_TRY(encode_prompts(s, &negative, 1, s->without));
    for (int64_t i = 1; i < s->params->batch; i++) {
        TS_TRY(s->kernels->device->copy(s->without + i * s->context_numbers, s->without,
                                        (size_t)s->context_numbers * sizeof *s->without));
    }
    return TS_OK;
}

static int allocate(sampler *s) {
    const ts_device *device = s->kernels->device;
    const size_t batch = (size_t)s->params->batch, context = batch * (size_t)s->context_numbers * sizeof(float);
    s->with = computes(s, WITH) ? device->allocate(context) : NULL;
    s->without = computes(s, WITHOUT) ? device->allocate(context) : NULL;
    s->x = device->is_host ? NULL : device->allocate(batch * (size_t)s->video_numbers * sizeof *s->x);
    const bool good =
        (s->with || !computes(s, WITH)) && (s->without || !computes(s, WITHOUT)) && (s->x || device->is_host);
    return good ? TS_OK : TS_ERESOURCE;
}

static int sampler_open(sampler *s, const ts_model *model, const ts_kernels *kernels, const ts_sample_params *params) {
    const ts_dit_config *dit = ts_dit_get_config(model->dit);
    *s = (sampler){.model = model, .mesh = model->params->mesh, .kernels = kernels, .params = params};
    const ts_comm *cfg = ts_mesh_axis(s->mesh, TS_AXIS_CFG);
    s->video_numbers = params->frames * params->height * params->width * dit->out_channels;
    s->context_numbers = dit->text_rows * dit->text_dim;
    if (params->batch < 1) {
        return TS_FAIL(TS_EUSAGE, "a sampling batch of %lld; give 1 or more", (long long)params->batch);
    }
    if (s->mesh) {
        TS_TRY(ts_sample_check(&s->mesh->degree, params->guidance));
    }
    TS_TRY(ts_schedule_make(&s->schedule, params->grid, params->steps, params->shift));
    s->branches = ts_denoise_branches(params->guidance, ts_comm_size(cfg), ts_comm_rank(cfg));
    TS_TRY(allocate(s));
    TS_TRY(ts_tape_open(&s->tape, kernels, TS_TAPE_RUN, model->params->operand_dtype));
    return computes(s, WITHOUT) ? encode_negative(s) : TS_OK;
}

static int count_step(void *user, int64_t step, const float *x) {
    sampler *s = user;
    (void)step;
    (void)x;
    if (!s->params->quiet) {
        TS_TRY(s->kernels->device->finish());  // what is told is done
        ts_progress_update(&s->progress, s->progress.done + s->group, NULL);
    }
    return TS_OK;
}

// Numbers that ran away must not be decoded into a black video.
static int check_finite(const sampler *s, const float *x, int64_t n, int64_t first_index) {
    for (int64_t i = 0; i < n * s->video_numbers; i++) {
        if (!isfinite(x[i])) {
            return TS_FAIL(
                TS_EINPUT,
                "video %lld: its latents are not finite after %lld steps with guidance %g; lower the guidance "
                "or take another model",
                (long long)(first_index + i / s->video_numbers), (long long)s->params->steps, s->params->guidance);
        }
    }
    return TS_OK;
}

int ts_sample_noise(const ts_kernels *kernels, const ts_sample_params *params, int64_t channels, int64_t n,
                    int64_t first_index, float *x) {
    const int64_t numbers = params->frames * params->height * params->width * channels;
    for (int64_t i = 0; i < n; i++) {
        TS_TRY(kernels->noise(x + i * numbers, numbers, params->seed, TS_RNG_SAMPLE, (uint64_t)(first_index + i), 0));
    }
    return TS_OK;
}

// The latents of n <= batch videos, x [n, T, H, W, C] device memory, from noise.
static int denoise_group(sampler *s, int64_t n, float *x) {
    const ts_sample_params *p = s->params;
    ts_comm *video = ts_mesh_axis(s->mesh, TS_AXIS_VIDEO);
    const ts_denoise_params denoise = {
        .schedule = &s->schedule,
        .solver = p->solver,
        .guidance = p->guidance,
        .n = n,
        .frames = p->frames,
        .height = p->height,
        .width = p->width,
        .with = s->with,
        .without = s->without,
        .record = ts_comm_size(video) == 1,
        .on_step = count_step,
        .user = s,
        .cfg = ts_mesh_axis(s->mesh, TS_AXIS_CFG),
    };
    s->group = n;
    const int status = ts_denoise(s->model->dit, s->tape, &denoise, x);
    if (status && ts_comm_size(video) > 1) {
        ts_comm_abort(ts_mesh_axis(s->mesh, TS_AXIS_WORLD), status);  // the others wait for this rank inside a step
    }
    return status;
}

// Prompts to latents of n <= batch videos, host memory.
static int sample_group(sampler *s, const char *const *prompts, int64_t n, int64_t first_index, float *latents) {
    const ts_sample_params *p = s->params;
    const ts_device *device = s->kernels->device;
    float *x = s->x ? s->x : latents;
    TS_TRY(ts_sample_noise(s->kernels, p, ts_dit_get_config(s->model->dit)->out_channels, n, first_index, x));
    TS_TRY(ts_agree(ts_mesh_axis(s->mesh, TS_AXIS_VIDEO),
                    computes(s, WITH) ? encode_prompts(s, prompts, n, s->with) : TS_OK));
    TS_TRY(denoise_group(s, n, x));
    if (s->x) {
        TS_TRY(device->download(latents, x, (size_t)(n * s->video_numbers) * sizeof *latents));
    }
    return check_finite(s, latents, n, first_index);
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
    ts_comm *world = ts_mesh_axis(mesh, TS_AXIS_WORLD), *data = ts_mesh_axis(mesh, TS_AXIS_DATA);
    sampler s;
    int status = ts_agree(world, sampler_open(&s, model, kernels, params));
    if (!status) {
        const ts_part videos = ts_split(n, ts_comm_size(data), ts_comm_rank(data));
        status = ts_agree(world, sample_part(&s, prompts, videos, first_index, latents));
    }
    const int64_t numbers = s.video_numbers;
    sampler_close(&s);
    return status || ts_comm_size(data) == 1 ? status : gather(data, n, numbers, latents);
}
