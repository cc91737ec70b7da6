// SPDX-License-Identifier: Apache-2.0
#include "train/validate.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/rng.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "train/objective.h"
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
    double *loss;               // [levels]
    double constant, elements;  // over all ranks
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

// 1 + variance of x0 within its channel. Collective.
static int measure_constant(ts_validation *v, int64_t channels) {
    // For each channel the sum and the sum of squares, then the number of elements.
    double *sum = ts_calloc((size_t)(2 * channels + 1), sizeof *sum);
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
        sum[2 * channels] += (double)n;
    }
    const int status = ts_all_reduce(v->data, sum, 2 * channels + 1, TS_F64, TS_SUM);
    v->elements = sum[2 * channels];
    const double per_channel = v->elements / (double)channels;
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
        v->loss = ts_calloc((size_t)params->levels, sizeof *v->loss);
        status = v->loss ? read_clips(v, dataset, params) : TS_ERESOURCE;
    }
    status = ts_agree(mesh->world, status);
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

int ts_validation_allocate(ts_validation_arrays *out, ts_tape *tape, int64_t clips, ts_shape shape) {
    ts_arena *arena = ts_tape_arena(tape);
    const size_t bytes = (size_t)(clips * ts_shape_count(shape)) * sizeof(float);
    const size_t row_bytes = (size_t)(clips * shape.dim[0]) * sizeof(float);
    *out = (ts_validation_arrays){.x0 = ts_arena_alloc(arena, bytes),
                                  .x = ts_arena_alloc(arena, bytes),
                                  .target = ts_arena_alloc(arena, bytes),
                                  .sigma = ts_tape_object(tape, row_bytes),
                                  .timestep = ts_tape_object(tape, row_bytes)};
    return out->x0 && out->x && out->target && out->sigma && out->timestep ? TS_OK : TS_ERESOURCE;
}

// Clean and noisy clips [first, first + n), and the target, at level sigma for all frames.
static int fill(const ts_validation *v, ts_tape *tape, int64_t first, int64_t n, int64_t level,
                const ts_validation_arrays *a) {
    const ts_kernels *kernels = ts_tape_kernels(tape);
    const ts_shape shape = v->clip[first].shape;
    const int64_t size = ts_shape_count(shape), rows = n * shape.dim[0];
    const float sigma = (float)(((double)level + 0.5) / (double)v->levels);
    for (int64_t i = 0; i < n; i++) {
        const held_clip *clip = &v->clip[first + i];
        const uint16_t *bits = ts_tape_upload(tape, clip->latent, (size_t)size * sizeof *bits);
        TS_TRY(ts_tape_status(tape));
        TS_TRY(kernels->cast(bits, TS_BF16, a->x0 + i * size, TS_F32, size));
        TS_TRY(kernels->noise(a->target + i * size, size, v->seed, TS_RNG_VALIDATION,
                              (uint64_t)(clip->number * v->levels + level), 0));
    }
    for (int64_t row = 0; row < rows; row++) {
        a->sigma[row] = sigma;
        a->timestep[row] = 1000.0f * sigma;
    }
    const float *levels = ts_tape_upload(tape, a->sigma, (size_t)rows * sizeof *levels);
    TS_TRY(ts_tape_status(tape));
    return kernels->mix(&(ts_mix){
        .rows = rows, .width = n * size / rows, .x0 = a->x0, .sigma = levels, .x = a->x, .eps_to_target = a->target});
}

// Sum of squared errors, over own tokens, of clips [first, first + n), which share one shape, at one level: `error`, on
// the device.
static int batch_error(const ts_validation *v, const ts_model *model, ts_tape *tape, int64_t first, int64_t n,
                       int64_t level, const char *const *prompt, double *error) {
    const ts_shape shape = v->clip[first].shape;
    const int64_t frames = shape.dim[0];
    ts_validation_arrays a;
    TS_TRY(ts_validation_allocate(&a, tape, n, shape));
    TS_TRY(fill(v, tape, first, n, level, &a));
    const ts_tensor latent = {TS_F32, TS_SHAPE(n, shape.dim[0], shape.dim[1], shape.dim[2], shape.dim[3]), a.x};
    const ts_dit_input input = {
        .latent = ts_tape_input(tape, latent, false),
        .context = ts_model_encode_text(tape, model, prompt, n),
        .timestep = a.timestep,
        .timesteps_per_sample = frames,
    };
    ts_var *velocity;
    return ts_token_loss(tape, model->dit, &input, &(ts_token_target){a.target, NULL, frames, 1.0, error}, &velocity);
}

// error [count, levels], on the device: that of the batch that begins with a clip; 0 of the others.
static int run_batches(const ts_validation *v, const ts_model *model, ts_tape *tape, double *error) {
    for (int64_t first = 0, n; first < v->count; first += n) {
        const char *prompt[MAX_BATCH];
        for (n = 0; n < v->batch && first + n < v->count && v->clip[first + n].bucket == v->clip[first].bucket; n++) {
            prompt[n] = v->clip[first + n].caption;
        }
        for (int64_t level = 0; level < v->levels; level++) {
            ts_tape_reset(tape);
            TS_TRY(batch_error(v, model, tape, first, n, level, prompt, error + first * v->levels + level));
        }
    }
    return TS_OK;
}

// Adds this rank's errors to v->loss. The device is waited for once, at the end.
static int local_errors(ts_validation *v, const ts_model *model, ts_tape *tape) {
    const ts_device *device = ts_tape_kernels(tape)->device;
    const size_t bytes = (size_t)(v->count * v->levels) * sizeof(double);
    double *error = device->allocate(bytes), *seen = ts_malloc(bytes + 1);
    int status = error && seen ? device->zero(error, bytes) : TS_ERESOURCE;
    status = status ? status : run_batches(v, model, tape, error);
    status = status ? status : device->download(seen, error, bytes);
    for (int64_t i = 0; i < v->count * v->levels && !status; i++) {
        v->loss[i % v->levels] += seen[i];
    }
    device->release(error);
    free(seen);
    return status;
}

int ts_validation_run(ts_validation *v, const ts_model *model, ts_tape *tape, ts_validation_result *out) {
    memset(v->loss, 0, (size_t)v->levels * sizeof *v->loss);
    ts_tape_reset(tape);
    ts_tape_set_mode(tape, TS_TAPE_RUN);
    const int status = local_errors(v, model, tape);
    ts_tape_reset(tape);
    ts_tape_set_mode(tape, TS_TAPE_RECORD);
    TS_TRY(ts_agree(v->world, status));
    TS_TRY(ts_all_reduce(v->world, v->loss, v->levels, TS_F64, TS_SUM));
    *out = (ts_validation_result){.levels = v->levels, .level_loss = v->loss, .constant = v->constant};
    for (int64_t level = 0; level < v->levels; level++) {
        v->loss[level] /= v->elements;
        out->loss += v->loss[level] / (double)v->levels;
    }
    out->share = out->loss / out->constant;
    return TS_OK;
}
