// SPDX-License-Identifier: Apache-2.0
#include "infer/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/base/status.h"
#include "infer/denoise.h"

// One rank's share of the call.
typedef struct sampler {
    const ts_model *model;
    const ts_kernels *kernels;
    const ts_sample_params *params;
    ts_schedule schedule;
    ts_tape *tape;
    int64_t video_numbers;    // T H W C
    int64_t context_numbers;  // rows width
    float *with, *without;    // [batch, rows, width]
    int64_t group;            // videos in the group under way
    ts_progress progress;
} sampler;

static void sampler_close(sampler *s) {
    ts_tape_close(&s->tape);
    free(s->with);
    free(s->without);
}

// Runs the text encoder on prompts [n] into `context` [n, rows, width].
static int encode_prompts(sampler *s, const char *const *prompts, int64_t n, float *context) {
    ts_tape_reset(s->tape);
    const ts_var *encoded = ts_model_encode_text(s->tape, s->model, prompts, n);
    TS_TRY(ts_tape_status(s->tape));
    memcpy(context, encoded->value.data, (size_t)(n * s->context_numbers) * sizeof *context);
    return TS_OK;
}

// The negative prompt is the same for every video, so its context is made once, a copy for each video of a group.
static int encode_negative(sampler *s) {
    const char *negative = s->params->negative ? s->params->negative : "";
    TS_TRY(encode_prompts(s, &negative, 1, s->without));
    for (int64_t i = 1; i < s->params->batch; i++) {
        memcpy(s->without + i * s->context_numbers, s->without, (size_t)s->context_numbers * sizeof(float));
    }
    return TS_OK;
}

static int sampler_open(sampler *s, const ts_model *model, const ts_kernels *kernels, const ts_sample_params *params) {
    const ts_dit_config *dit = ts_dit_get_config(model->dit);
    *s = (sampler){.model = model, .kernels = kernels, .params = params};
    s->video_numbers = params->frames * params->height * params->width * dit->out_channels;
    s->context_numbers = dit->text_rows * dit->text_dim;
    if (params->batch < 1) {
        return TS_FAIL(TS_EUSAGE, "a sampling batch of %lld; give 1 or more", (long long)params->batch);
    }
    TS_TRY(ts_schedule_make(&s->schedule, params->grid, params->steps, params->shift));
    s->with = ts_aligned_alloc((size_t)(params->batch * s->context_numbers) * sizeof(float));
    s->without = ts_aligned_alloc((size_t)(params->batch * s->context_numbers) * sizeof(float));
    if (!s->with || !s->without) {
        return TS_ERESOURCE;
    }
    TS_TRY(ts_tape_open(&s->tape, kernels, TS_TAPE_RUN, model->params->operand_dtype));
    return params->guidance == 1.0 ? TS_OK : encode_negative(s);
}

static int count_step(void *user, int64_t step, const float *x) {
    sampler *s = user;
    (void)step;
    (void)x;
    if (!s->params->quiet) {
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

// Noise to latents for n <= batch videos, x [n, T, H, W, C].
static int sample_group(sampler *s, const char *const *prompts, int64_t n, int64_t first_index, float *x) {
    const ts_sample_params *p = s->params;
    for (int64_t i = 0; i < n; i++) {
        TS_TRY(s->kernels->noise(x + i * s->video_numbers, s->video_numbers, p->seed, TS_RNG_SAMPLE,
                                 (uint64_t)(first_index + i), 0));
    }
    TS_TRY(encode_prompts(s, prompts, n, s->with));
    s->group = n;
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
        .on_step = count_step,
        .user = s,
    };
    TS_TRY(ts_denoise(s->model->dit, s->tape, &denoise, x));
    return check_finite(s, x, n, first_index);
}

// Samples videos [first, end) of the call on this rank.
static int sample_range(const ts_model *model, const ts_kernels *kernels, const ts_sample_params *params,
                        const char *const *prompts, int64_t first, int64_t end, int64_t first_index, float *latents) {
    sampler s;
    int status = sampler_open(&s, model, kernels, params);
    if (!params->quiet) {
        ts_progress_begin(&s.progress, "sampling", "video steps", (end - first) * params->steps);
    }
    for (int64_t i = first; !status && i < end; i += params->batch) {
        const int64_t n = end - i < params->batch ? end - i : params->batch;
        status = sample_group(&s, prompts + i, n, first_index + i, latents + i * s.video_numbers);
    }
    if (!params->quiet) {
        ts_progress_end(&s.progress, NULL);
    }
    sampler_close(&s);
    return status;
}

int64_t ts_sample_first(int64_t n, int rank, int size) {
    return (n * rank + size - 1) / size;
}

// Brings every rank's part of `latents` to all ranks.
static int gather(ts_comm *comm, int64_t n, int64_t numbers, float *latents) {
    const int rank = ts_comm_rank(comm), size = ts_comm_size(comm);
    const int64_t first = ts_sample_first(n, rank, size), end = ts_sample_first(n, rank + 1, size);
    const size_t bytes = (size_t)((end - first) * numbers) * sizeof *latents;
    int64_t *counts = ts_calloc((size_t)size, sizeof *counts);
    float *mine = ts_malloc(bytes + 1);
    int status = ts_agree(comm, counts && mine ? TS_OK : TS_ERESOURCE);
    if (!status) {
        for (int r = 0; r < size; r++) {
            counts[r] = (ts_sample_first(n, r + 1, size) - ts_sample_first(n, r, size)) * numbers;
        }
        memcpy(mine, latents + first * numbers, bytes);
        status = ts_all_gather_v(comm, mine, latents, counts, TS_F32);
    }
    free(mine);
    free(counts);
    return status;
}

int ts_sample(const ts_model *model, const ts_kernels *kernels, const ts_sample_params *params,
              const char *const *prompts, int64_t n, int64_t first_index, ts_comm *comm, float *latents) {
    const int rank = ts_comm_rank(comm), size = ts_comm_size(comm);
    const int status = sample_range(model, kernels, params, prompts, ts_sample_first(n, rank, size),
                                    ts_sample_first(n, rank + 1, size), first_index, latents);
    TS_TRY(ts_agree(comm, status));
    const int64_t channels = ts_dit_get_config(model->dit)->out_channels;
    return size == 1 ? TS_OK : gather(comm, n, params->frames * params->height * params->width * channels, latents);
}
