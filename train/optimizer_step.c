// SPDX-License-Identifier: Apache-2.0
// One step of the optimizer: the norm of the gradients, and the update.
#include "core/base/status.h"
#include "train/optimizer_private.h"

int ts_run_gradient(const ts_optimizer *o, const ts_optimizer_run *run, int64_t first, int64_t count, float *to,
                    const float **out) {
    const ts_span *span = &o->weights->span[run->span];
    const int64_t at = run->first - span->first + first;
    *out = span->kept_grad ? to : span->grad + at;
    return span->kept_grad ? o->kernels->cast(span->kept_grad + at, TS_BF16, to, TS_F32, count) : TS_OK;
}

// Elements of a run that are taken at once: all when its gradients need no widening.
static int64_t stride_of(const ts_optimizer *o, const ts_optimizer_run *run) {
    return o->weights->kept_grad && run->count > o->wide_count ? o->wide_count : run->count;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int ts_optimizer_reduce(ts_optimizer *o, double *squares) {
    TS_TRY(ts_zero_reduce(o->zero));
    TS_TRY(o->kernels->device->zero(squares, sizeof *squares));
    for (int64_t i = 0; i < o->runs; i++) {
        const ts_optimizer_run *run = &o->run[i];
        const int64_t stride = stride_of(o, run);
        for (int64_t first = 0; first < run->count; first += stride) {
            const int64_t count = least(stride, run->count - first);
            const float *grad;
            TS_TRY(ts_run_gradient(o, run, first, count, o->wide, &grad));
            TS_TRY(o->kernels->sum_squares(grad, count, squares));
        }
    }
    return TS_OK;
}

double ts_clip_scale(double norm, double clip) {
    return clip > 0 && norm > clip ? clip / norm : 1.0;
}

static int adamw(const ts_optimizer *o, const ts_optimizer_run *run, const ts_update *update) {
    const int64_t stride = stride_of(o, run);
    for (int64_t first = 0; first < run->count; first += stride) {
        const int64_t count = least(stride, run->count - first);
        const float *grad;
        TS_TRY(ts_run_gradient(o, run, first, count, o->wide, &grad));
        const ts_adamw part = {
            .count = count,
            .step = update->step,
            .lr = (float)(update->lr * (double)run->lr_scale),
            .beta1 = (float)o->params.beta1,
            .beta2 = (float)o->params.beta2,
            .eps = (float)o->params.eps,
            .weight_decay = run->weight_decay,
            .grad_scale = (float)update->grad_scale,
            .weight = run->weight + first,
            .m = run->moment1 + first,
            .v = run->moment2 + first,
            .grad = grad,
            .operand = run->operand ? run->operand + first : NULL,
            .ema = run->average ? run->average + first : NULL,
            .ema_decay = (float)update->average_decay,
            .rounding = o->params.rounding,
            .seed = o->params.seed,
            .first = run->first + first,  // of the same number the same, whichever rank has it
        };
        TS_TRY(o->kernels->adamw(&part));
    }
    return TS_OK;
}

// Matrices first: the weights of a span travel while the next one is updated.
int ts_optimizer_step(ts_optimizer *o, int64_t step, double lr, double grad_scale, double average_decay) {
    const ts_update update = {step, lr, grad_scale, average_decay};
    if (o->muon) {
        TS_TRY(ts_muon_group_update(o, &update));
    }
    int64_t i = 0;
    for (int span = 0; span < o->weights->spans; span++) {
        for (; i < o->runs && o->run[i].span == span; i++) {
            if (!o->run[i].matrix) {
                TS_TRY(adamw(o, &o->run[i], &update));
            }
        }
        TS_TRY(ts_zero_gather_start(o->zero, span));
    }
    return ts_zero_gather_wait(o->zero);
}
