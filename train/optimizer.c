// SPDX-License-Identifier: Apache-2.0
#include "train/optimizer.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "train/muon.h"

// Neighbouring parameters that are updated alike. Padding between tensors holds zeros, which AdamW leaves alone, so a
// run spans it. A matrix with orthogonalised momentum is a run of its own.
struct ts_optimizer_run {
    int64_t first, end;
    float weight_decay, lr_scale;
    int64_t rows, columns;  // 0: AdamW
};

static int find_runs(ts_optimizer *o) {
    const ts_params *weights = o->weights;
    o->run = ts_calloc((size_t)weights->count, sizeof *o->run);
    if (!o->run) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < weights->count; i++) {
        const ts_param *param = weights->item[i];
        const float decay = param->decay ? (float)o->params.weight_decay : 0.0f;
        struct ts_optimizer_run *last = o->run_count ? &o->run[o->run_count - 1] : NULL;
        const bool muon = o->params.muon && param->hidden;
        if (!last || muon || last->rows || last->weight_decay != decay || last->lr_scale != param->lr_scale) {
            last = &o->run[o->run_count++];
            *last =
                (struct ts_optimizer_run){.first = param->offset, .weight_decay = decay, .lr_scale = param->lr_scale};
        }
        if (muon) {
            TS_ASSERT(param->shape.ndim == 2);
            last->rows = param->shape.dim[0];
            last->columns = param->shape.dim[1];
        }
        last->end = param->offset + param->count;
    }
    return TS_OK;
}

static int open_muon(ts_optimizer *o) {
    int64_t elements = 0, smaller = 0;
    for (int64_t i = 0; i < o->run_count; i++) {
        const struct ts_optimizer_run *run = &o->run[i];
        const int64_t side = run->rows < run->columns ? run->rows : run->columns;
        elements = run->rows * run->columns > elements ? run->rows * run->columns : elements;
        smaller = side > smaller ? side : smaller;
        o->direction_total += run->rows * run->columns;
    }
    if (!elements) {
        return TS_OK;
    }
    o->direction = ts_aligned_alloc((size_t)o->direction_total * sizeof *o->direction);
    return o->direction ? ts_muon_open(&o->muon, o->kernels, o->weights->operand_dtype, elements, smaller)
                        : TS_ERESOURCE;
}

// State is replicated: the first rank answers for all of it.
static int list_parts(ts_optimizer *o) {
    const ts_params *weights = o->weights;
    if (ts_comm_rank(o->params.data) > 0) {
        return TS_OK;
    }
    o->part = ts_calloc((size_t)weights->count, sizeof *o->part);
    if (!o->part) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < weights->count; i++) {
        const ts_param *param = weights->item[i];
        const bool muon = o->params.muon && param->hidden;
        o->part[o->parts++] = (ts_state_part){.param = param,
                                              .count = param->count,
                                              .weight = weights->value + param->offset,
                                              .average = o->average + param->offset,
                                              .moment1 = o->moment1 + param->offset,
                                              .moment2 = muon ? NULL : o->moment2 + param->offset};
    }
    return TS_OK;
}

const ts_state_part *ts_optimizer_parts(const ts_optimizer *o, int64_t *count) {
    *count = o->parts;
    return o->part;
}

int ts_optimizer_loaded(ts_optimizer *o) {
    float *const array[] = {o->weights->value, o->average, o->moment1, o->moment2};
    for (size_t i = 0; i < sizeof array / sizeof *array; i++) {
        TS_TRY(ts_broadcast(o->params.data, array[i], o->weights->total * (int64_t)sizeof(float), 0));
    }
    ts_params_refresh_operands(o->weights);
    return TS_OK;
}

int ts_optimizer_open(ts_optimizer **out, ts_params *weights, const ts_kernels *kernels,
                      const ts_optimizer_params *params) {
    TS_ASSERT(weights->value && weights->grad);
    const size_t bytes = (size_t)weights->total * sizeof(float);
    ts_optimizer *o = ts_calloc(1, sizeof *o);
    if (!o) {
        return TS_ERESOURCE;
    }
    *o = (ts_optimizer){.params = *params, .weights = weights, .kernels = kernels};
    o->moment1 = ts_aligned_alloc(bytes);
    o->moment2 = ts_aligned_alloc(bytes);
    o->average = ts_aligned_alloc(bytes);
    if (!o->moment1 || !o->moment2 || !o->average || find_runs(o) || open_muon(o) || list_parts(o)) {
        ts_optimizer_close(&o);
        return TS_ERESOURCE;
    }
    memset(o->moment1, 0, bytes);
    memset(o->moment2, 0, bytes);
    memcpy(o->average, weights->value, bytes);
    *out = o;
    return TS_OK;
}

void ts_optimizer_close(ts_optimizer **optimizer) {
    if (*optimizer) {
        free((*optimizer)->moment1);
        free((*optimizer)->moment2);
        free((*optimizer)->average);
        free((*optimizer)->run);
        free((*optimizer)->part);
        free((*optimizer)->direction);
        ts_muon_close(&(*optimizer)->muon);
        free(*optimizer);
        *optimizer = NULL;
    }
}

int ts_optimizer_grad_squares(const ts_optimizer *o, int64_t first, int64_t count, double *sum) {
    return o->kernels->sum_squares(o->weights->grad + first, count, sum);
}

double ts_clip_scale(double norm, double clip) {
    return clip > 0 && norm > clip ? clip / norm : 1.0;
}

static int adamw_run(ts_optimizer *o, const struct ts_optimizer_run *run, int64_t from, int64_t to, int64_t step,
                     double lr, double grad_scale, double average_decay) {
    const ts_params *weights = o->weights;
    const ts_adamw update = {
        .count = to - from,
        .step = step,
        .lr = (float)(lr * (double)run->lr_scale),
        .beta1 = (float)o->params.beta1,
        .beta2 = (float)o->params.beta2,
        .eps = (float)o->params.eps,
        .weight_decay = run->weight_decay,
        .grad_scale = (float)grad_scale,
        .weight = weights->value + from,
        .m = o->moment1 + from,
        .v = o->moment2 + from,
        .grad = weights->grad + from,
        .operand = weights->operand ? weights->operand + from : NULL,
        .ema = o->average + from,
        .ema_decay = (float)average_decay,
    };
    return o->kernels->adamw(&update);
}

// Directions of all matrices in the range. Each rank of the data axis makes every size-th one, the others count as
// zero, and the sum brings them together: adding zeros changes no bit.
static int find_directions(ts_optimizer *o, int64_t first, int64_t end, double grad_scale) {
    const int rank = o->params.data ? ts_comm_rank(o->params.data) : 0;
    const int size = o->params.data ? ts_comm_size(o->params.data) : 1;
    float *direction = o->direction;
    int64_t matrix = 0;
    for (int64_t i = 0; i < o->run_count; i++) {
        const struct ts_optimizer_run *run = &o->run[i];
        const int64_t n = run->rows * run->columns;
        if (!n || run->first < first || run->first >= end) {
            continue;
        }
        TS_ASSERT(run->end <= end);
        // Every rank keeps every moment, so that any of them can write the checkpoint.
        const float *grad = o->weights->grad + run->first;
        float *moment = o->moment1 + run->first;
        ts_muon_advance(grad, (float)grad_scale, (float)o->params.muon_momentum, n, moment);
        if (matrix++ % size == rank) {
            TS_TRY(ts_muon_direction(o->muon, grad, (float)grad_scale, (float)o->params.muon_momentum, run->rows,
                                     run->columns, moment, direction));
        } else {
            memset(direction, 0, (size_t)n * sizeof *direction);
        }
        direction += n;
    }
    return size > 1 ? ts_all_reduce(o->params.data, o->direction, direction - o->direction, TS_F32, TS_SUM) : TS_OK;
}

static int muon_run(ts_optimizer *o, const struct ts_optimizer_run *run, const float *direction, double lr,
                    double average_decay) {
    const ts_kernels *k = o->kernels;
    const int64_t n = run->rows * run->columns;
    float *weight = o->weights->value + run->first, *average = o->average + run->first;
    const double rate = lr * (double)run->lr_scale * o->params.muon_lr_scale;
    TS_TRY(k->axpy((float)-rate, direction, weight, n));
    TS_TRY(k->scale((float)average_decay, average, n));
    TS_TRY(k->axpy((float)(1.0 - average_decay), weight, average, n));
    return o->weights->operand ? k->cast(weight, TS_F32, o->weights->operand + run->first, TS_BF16, n) : TS_OK;
}

int ts_optimizer_step(ts_optimizer *o, int64_t first, int64_t count, int64_t step, double lr, double grad_scale,
                      double average_decay) {
    const int64_t end = first + count;
    const float *direction = o->direction;
    if (o->muon) {
        TS_TRY(find_directions(o, first, end, grad_scale));
    }
    for (int64_t i = 0; i < o->run_count; i++) {
        const struct ts_optimizer_run *run = &o->run[i];
        const int64_t from = run->first > first ? run->first : first;
        const int64_t to = run->end < end ? run->end : end;
        if (from >= to) {
            continue;
        }
        if (run->rows) {
            TS_TRY(muon_run(o, run, direction, lr, average_decay));
            direction += run->rows * run->columns;
        } else {
            TS_TRY(adamw_run(o, run, from, to, step, lr, grad_scale, average_decay));
        }
    }
    return TS_OK;
}

void ts_optimizer_swap_average(ts_optimizer *o) {
    float *value = o->weights->value, *average = o->average;
    const int64_t total = o->weights->total;
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < total; i++) {
        const float kept = value[i];
        value[i] = average[i];
        average[i] = kept;
    }
    ts_params_refresh_operands(o->weights);
}
