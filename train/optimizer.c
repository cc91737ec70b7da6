// SPDX-License-Identifier: Apache-2.0
#include "train/optimizer.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"

// Neighbouring parameters that are updated alike. Padding between tensors holds zeros, which AdamW leaves alone, so a
// run spans it.
struct ts_optimizer_run {
    int64_t first, end;
    float weight_decay, lr_scale;
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
        if (!last || last->weight_decay != decay || last->lr_scale != param->lr_scale) {
            last = &o->run[o->run_count++];
            *last =
                (struct ts_optimizer_run){.first = param->offset, .weight_decay = decay, .lr_scale = param->lr_scale};
        }
        last->end = param->offset + param->count;
    }
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
    if (!o->moment1 || !o->moment2 || !o->average || find_runs(o)) {
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

int ts_optimizer_step(ts_optimizer *o, int64_t first, int64_t count, int64_t step, double lr, double grad_scale,
                      double average_decay) {
    const ts_params *weights = o->weights;
    const int64_t end = first + count;
    for (int64_t i = 0; i < o->run_count; i++) {
        const struct ts_optimizer_run *run = &o->run[i];
        const int64_t from = run->first > first ? run->first : first;
        const int64_t to = run->end < end ? run->end : end;
        if (from >= to) {
            continue;
        }
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
        TS_TRY(o->kernels->adamw(&update));
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
