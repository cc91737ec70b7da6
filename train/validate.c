// SPDX-License-Identifier: Apache-2.0
#include "train/validate.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/rng.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "train/token_loss.h"

enum { MAX_BATCH = 64 };

// A clip held in memory.
typedef struct held_clip {
    int64_t number;
    int bucket;
    ts_shape shape;       // [T, H, W, C]
    uint16_t *latent;     // bf16
    const char *caption;  // borrowed from the data set
} held_clip;

struct ts_validation {
    int64_t levels, batch;
    uint64_t seed;
    ts_comm *world, *data;
    held_clip *clip;  // this rank's share, neighbours of one bucket together
    int64_t count;
    double pattern[TS_PATTERN_COUNT];   // weights of the patterns, of sum 1
    double *loss;                       // [TS_PATTERN_COUNT, levels]
    double constant;                    // over all ranks, as the next
    double elements[TS_PATTERN_COUNT];  // that carry loss at one level
};

static int by_bucket(const void *left, const void *right) {
    const held_clip *a = left, *b = right;
    return a->bucket != b->bucket ? (a->bucket > b->bucket) - (a->bucket < b->bucket)
                                  : (a->number > b->number) - (a->number < b->number);
}

static int read_clips(ts_validation *v, const ts_dataset *dataset, const ts_validation_params *p) {
    held_clip *all = ts_calloc((size_t)p->count, sizeof *all);
    v->clip = ts_calloc((size_t)p->count, sizeof *v->clip);
    if (!all || !v->clip) {
        free(all);
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < p->count; i++) {
        all[i].number = p->clips[i];
        all[i].bucket = ts_dataset_bucket_of(dataset, p->clips[i]);
        all[i].shape = ts_dataset_bucket_shape(dataset, all[i].bucket);
        all[i].caption = ts_dataset_caption(dataset, p->clips[i]);
    }
    qsort(all, (size_t)p->count, sizeof *all, by_bucket);
    const ts_part own = ts_split(p->count, ts_comm_size(v->data), ts_comm_rank(v->data));
    int status = TS_OK;
    for (int64_t i = own.first; !status && i < own.first + own.count; i++) {
        held_clip *clip = &v->clip[v->count++];
        *clip = all[i];
        clip->latent = ts_malloc((size_t)ts_shape_count(clip->shape) * sizeof *clip->latent);
        status = clip->latent ? ts_dataset_read_latent(dataset, clip->number, clip->latent) : TS_ERESOURCE;
    }
    free(all);
    return status;
}

// ---- patterns

// Which frames of a clip carry loss under `pattern`: weight [frames] is 1 or 0; 0 for all where the clip is too short.
static void pattern_weights(const ts_validation *v, const held_clip *clip, ts_pattern pattern, float *weight) {
    ts_objective one = {.seed = v->seed};
    one.pattern[pattern] = 1;
    bool held[TS_OBJECTIVE_MAX_FRAMES];
    const int64_t frames = clip->shape.dim[0];
    const bool fits = ts_objective_held(&one, (uint64_t)clip->number, frames, held) == pattern;
    for (int64_t t = 0; t < frames; t++) {
        weight[t] = fits && !held[t] ? 1.0f : 0.0f;
    }
}

// sigma and weight [frames] of a clip at one level.
static void pattern_levels(const ts_validation *v, const held_clip *clip, ts_pattern pattern, int64_t level,
                           float *sigma, float *weight) {
    pattern_weights(v, clip, pattern, weight);
    for (int64_t t = 0; t < clip->shape.dim[0]; t++) {
        const uint64_t shift =
            pattern == TS_PATTERN_INDEPENDENT
                ? ts_rng_below(v->seed, TS_RNG_SIGMA, (uint64_t)clip->number, (uint32_t)t, (uint64_t)v->levels)
                : 0;
        const int64_t own = (level + (int64_t)shift) % v->levels;
        sigma[t] = weight[t] * (float)(((double)own + 0.5) / (double)v->levels);
    }
}

// Collective.
static int count_elements(ts_validation *v) {
    float weight[TS_OBJECTIVE_MAX_FRAMES];
    for (int64_t i = 0; i < v->count; i++) {
        const held_clip *clip = &v->clip[i];
        const int64_t frames = clip->shape.dim[0], frame_elements = ts_shape_count(clip->shape) / frames;
        for (int p = 0; p < TS_PATTERN_COUNT; p++) {
            pattern_weights(v, clip, (ts_pattern)p, weight);
            for (int64_t t = 0; t < frames; t++) {
                v->elements[p] += (double)weight[t] * (double)frame_elements;
            }
        }
    }
    return ts_all_reduce(v->data, v->elements, TS_PATTERN_COUNT, TS_F64, TS_SUM);
}

static bool is_measured(const ts_validation *v, int pattern, bool all_patterns) {
    return pattern == TS_PATTERN_ALL || (all_patterns && v->pattern[pattern] > 0 && v->elements[pattern] > 0);
}

// ---- opening

// 1 + variance of x0 within its channel. Collective.
static int measure_constant(ts_validation *v, int64_t channels) {
    double *sum = ts_calloc((size_t)(2 * channels), sizeof *sum);  // for each channel the sum and the sum of squares
    if (!sum) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < v->count; i++) {
        const int64_t n = ts_shape_count(v->clip[i].shape);
        for (int64_t e = 0; e < n; e++) {
            const double x = (double)ts_bf16_to_f32(v->clip[i].latent[e]);
            sum[e % channels] += x;
            sum[channels + e % channels] += x * x;
        }
    }
    const int status = ts_all_reduce(v->data, sum, 2 * channels, TS_F64, TS_SUM);
    const double per_channel = v->elements[TS_PATTERN_ALL] / (double)channels;
    v->constant = 1.0;
    for (int64_t c = 0; c < channels; c++) {
        const double mean = sum[c] / per_channel;
        v->constant += (sum[channels + c] / per_channel - mean * mean) / (double)channels;
    }
    free(sum);
    return status;
}

int ts_validation_open(ts_validation **out, const ts_dataset *dataset, const ts_validation_params *params,
                       const ts_mesh *mesh) {
    TS_ASSERT(params->count > 0);
    ts_validation *v = ts_calloc(1, sizeof *v);
    int status = TS_ERESOURCE;
    if (v) {
        *v = (ts_validation){.levels = params->levels,
                             .batch = params->batch < MAX_BATCH ? params->batch : MAX_BATCH,
                             .seed = params->seed,
                             .world = mesh->world,
                             .data = mesh->axis[TS_AXIS_DATA]};
        v->loss = ts_calloc((size_t)(TS_PATTERN_COUNT * params->levels), sizeof *v->loss);
        double weights = 0;
        for (int p = 0; p < TS_PATTERN_COUNT; p++) {
            weights += params->pattern[p];
        }
        for (int p = 0; p < TS_PATTERN_COUNT; p++) {
            v->pattern[p] = params->pattern[p] / weights;
        }
        status = v->loss ? read_clips(v, dataset, params) : TS_ERESOURCE;
    }
    status = ts_agree(mesh->world, status);
    status = status ? status : count_elements(v);
    if (!status) {
        status = measure_constant(v, ts_dataset_bucket_shape(dataset, 0).dim[3]);
    }
    if (status) {
        ts_validation_close(&v);
        return status;
    }
    *out = v;
    return TS_OK;
}

void ts_validation_close(ts_validation **validation) {
    ts_validation *v = *validation;
    if (v) {
        for (int64_t i = 0; i < v->count; i++) {
            free(v->clip[i].latent);
        }
        free(v->clip);
        free(v->loss);
        free(v);
        *validation = NULL;
    }
}

// ---- running

int ts_validation_allocate(ts_validation_arrays *out, ts_tape *tape, int64_t clips, ts_shape shape) {
    ts_arena *arena = ts_tape_arena(tape);
    const size_t bytes = (size_t)(clips * ts_shape_count(shape)) * sizeof(float);
    const size_t row_bytes = (size_t)(clips * shape.dim[0]) * sizeof(float);
    *out = (ts_validation_arrays){.x0 = ts_arena_alloc(arena, bytes),
                                  .x = ts_arena_alloc(arena, bytes),
                                  .target = ts_arena_alloc(arena, bytes),
                                  .sigma = ts_tape_object(tape, row_bytes),
                                  .timestep = ts_tape_object(tape, row_bytes),
                                  .weight = ts_tape_object(tape, row_bytes)};
    return out->x0 && out->x && out->target && out->sigma && out->timestep && out->weight ? TS_OK : TS_ERESOURCE;
}

// Clips of one shape that are computed at once, under one pattern and at one level.
typedef struct clip_batch {
    int64_t first, count;
    ts_pattern pattern;
    int64_t level;
    const char *prompt[MAX_BATCH];
} clip_batch;

// Clean and noisy clips, the target, levels and weights.
static int fill(const ts_validation *v, ts_tape *tape, const clip_batch *b, const ts_validation_arrays *a) {
    const ts_kernels *kernels = ts_tape_kernels(tape);
    const ts_shape shape = v->clip[b->first].shape;
    const int64_t size = ts_shape_count(shape), frames = shape.dim[0], rows = b->count * frames;
    for (int64_t i = 0; i < b->count; i++) {
        const held_clip *clip = &v->clip[b->first + i];
        pattern_levels(v, clip, b->pattern, b->level, a->sigma + i * frames, a->weight + i * frames);
        const uint16_t *bits = ts_tape_upload(tape, clip->latent, (size_t)size * sizeof *bits);
        TS_TRY(ts_tape_status(tape));
        TS_TRY(kernels->cast(bits, TS_BF16, a->x0 + i * size, TS_F32, size));
        TS_TRY(kernels->noise(a->target + i * size, size, v->seed, TS_RNG_VALIDATION,
                              (uint64_t)(clip->number * v->levels + b->level), 0));
    }
    for (int64_t row = 0; row < rows; row++) {
        a->timestep[row] = 1000.0f * a->sigma[row];
    }
    const float *levels = ts_tape_upload(tape, a->sigma, (size_t)rows * sizeof *levels);
    TS_TRY(ts_tape_status(tape));
    return kernels->mix(&(ts_mix){
        .rows = rows, .width = size / frames, .x0 = a->x0, .sigma = levels, .x = a->x, .eps_to_target = a->target});
}

// Sum of squared errors over own tokens: `error`, on the device.
static int batch_error(const ts_validation *v, const ts_model *model, ts_tape *tape, const clip_batch *b,
                       double *error) {
    const ts_shape shape = v->clip[b->first].shape;
    const int64_t frames = shape.dim[0];
    ts_validation_arrays a;
    TS_TRY(ts_validation_allocate(&a, tape, b->count, shape));
    TS_TRY(fill(v, tape, b, &a));
    const ts_tensor latent = {TS_F32, TS_SHAPE(b->count, shape.dim[0], shape.dim[1], shape.dim[2], shape.dim[3]), a.x};
    const ts_dit_input input = {
        .latent = ts_tape_input(tape, latent, false),
        .context = ts_model_encode_text(tape, model, b->prompt, b->count),
        .timestep = a.timestep,
        .timesteps_per_sample = frames,
    };
    ts_var *velocity;
    return ts_token_loss(tape, model->dit, &input, &(ts_token_target){a.target, a.weight, frames, 1.0, error},
                         &velocity);
}

// error [count, levels], on the device: that of the batch that begins with a clip; 0 of the others.
static int run_batches(const ts_validation *v, const ts_model *model, ts_tape *tape, ts_pattern pattern,
                       double *error) {
    clip_batch b = {.pattern = pattern};
    for (; b.first < v->count; b.first += b.count) {
        const int bucket = v->clip[b.first].bucket;
        for (b.count = 0; b.count < v->batch && b.first + b.count < v->count; b.count++) {
            const held_clip *clip = &v->clip[b.first + b.count];
            if (clip->bucket != bucket) {
                break;
            }
            b.prompt[b.count] = clip->caption;
        }
        for (b.level = 0; b.level < v->levels; b.level++) {
            ts_tape_reset(tape);
            TS_TRY(batch_error(v, model, tape, &b, error + b.first * v->levels + b.level));
        }
    }
    return TS_OK;
}

// loss [levels] = this rank's errors under one pattern. The device is waited for once, at the end.
static int local_errors(const ts_validation *v, const ts_model *model, ts_tape *tape, ts_pattern pattern,
                        double *loss) {
    const ts_device *device = ts_tape_kernels(tape)->device;
    const size_t bytes = (size_t)(v->count * v->levels) * sizeof(double);
    double *error = device->allocate(bytes), *seen = ts_malloc(bytes + 1);
    int status = error && seen ? device->zero(error, bytes) : TS_ERESOURCE;
    status = status ? status : run_batches(v, model, tape, pattern, error);
    status = status ? status : device->download(seen, error, bytes);
    for (int64_t i = 0; i < v->count * v->levels && !status; i++) {
        loss[i % v->levels] += seen[i];
    }
    device->release(error);
    free(seen);
    return status;
}

// From the sums over all ranks.
static void conclude(const ts_validation *v, bool all_patterns, ts_validation_result *out) {
    *out = (ts_validation_result){.levels = v->levels, .level_loss = v->loss, .constant = v->constant};
    for (int p = 0; p < TS_PATTERN_COUNT; p++) {
        ts_pattern_loss *pattern = &out->pattern[p];
        pattern->measured = is_measured(v, p, all_patterns);
        pattern->weight = v->pattern[p];
        for (int64_t level = 0; level < v->levels && pattern->measured; level++) {
            double *loss = &v->loss[p * v->levels + level];
            *loss /= v->elements[p];
            pattern->loss += *loss / (double)v->levels;
        }
        pattern->share = pattern->loss / v->constant;
    }
    out->loss = out->pattern[TS_PATTERN_ALL].loss;
    out->share = out->pattern[TS_PATTERN_ALL].share;
}

int ts_validation_run(ts_validation *v, const ts_model *model, ts_tape *tape, bool all_patterns,
                      ts_validation_result *out) {
    memset(v->loss, 0, (size_t)(TS_PATTERN_COUNT * v->levels) * sizeof *v->loss);
    ts_tape_reset(tape);
    ts_tape_set_mode(tape, TS_TAPE_RUN);
    int status = TS_OK;
    for (int p = 0; p < TS_PATTERN_COUNT && !status; p++) {
        if (is_measured(v, p, all_patterns)) {
            status = local_errors(v, model, tape, (ts_pattern)p, v->loss + p * v->levels);
        }
    }
    ts_tape_reset(tape);
    ts_tape_set_mode(tape, TS_TAPE_RECORD);
    TS_TRY(ts_agree(v->world, status));
    TS_TRY(ts_all_reduce(v->world, v->loss, TS_PATTERN_COUNT * v->levels, TS_F64, TS_SUM));
    conclude(v, all_patterns, out);
    return TS_OK;
}
