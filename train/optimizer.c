// SPDX-License-Identifier: Apache-2.0
// The optimizer's state: which numbers this rank holds, and where.
#include "train/optimizer.h"

#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "train/optimizer_private.h"

// ---- layout

static bool is_matrix(const ts_optimizer *o, const ts_param *param) {
    return o->params.muon && param->hidden;
}

// The end of parameter `item` of a shard together with its padding: where the next one begins.
static int64_t padded_end(const ts_optimizer *o, const ts_shard *shard, int64_t item) {
    const ts_span *span = shard->span;
    const int64_t end = shard->first + shard->count;
    const ts_param *next = item + 1 < o->weights->count ? o->weights->item[item + 1] : NULL;
    const int64_t begin = next && next->offset < span->first + span->count ? next->offset : span->first + span->count;
    return begin < end ? begin : end;
}

static void add_run(ts_optimizer *o, int span, const ts_shard *shard, int64_t item) {
    const ts_param *param = o->weights->item[item];
    const int64_t first = param->offset > shard->first ? param->offset : shard->first;
    const int64_t end = padded_end(o, shard, item);
    const float decay = param->decay ? (float)o->params.weight_decay : 0.0f;
    const bool matrix = is_matrix(o, param);
    ts_optimizer_run *last = o->runs ? &o->run[o->runs - 1] : NULL;
    if (!last || last->span != span || last->matrix || matrix || last->weight_decay != decay ||
        last->lr_scale != param->lr_scale) {
        last = &o->run[o->runs++];
        *last = (ts_optimizer_run){.span = span,
                                   .first = first,
                                   .weight_decay = decay,
                                   .lr_scale = param->lr_scale,
                                   .matrix = matrix ? param : NULL};
    }
    last->count = matrix ? param->count : end - last->first;
}

static int find_runs(ts_optimizer *o) {
    const ts_params *weights = o->weights;
    o->run = ts_calloc((size_t)(weights->count + weights->spans) + 1, sizeof *o->run);
    if (!o->run) {
        return TS_ERESOURCE;
    }
    for (int s = 0; s < weights->spans; s++) {
        const ts_shard *shard = &o->zero->shard[s];
        for (int64_t item = shard->item; item < shard->item_end; item++) {
            add_run(o, s, shard, item);
        }
    }
    return TS_OK;
}

static int lay_out(ts_optimizer *o) {
    TS_TRY(ts_zero_open(&o->zero, o->weights, o->params.muon));
    TS_TRY(find_runs(o));
    return o->params.muon ? ts_muon_group_open(&o->muon, o) : TS_OK;
}

// Elements of the state arrays.
typedef struct sizes {
    int64_t master, moment1, moment2, average;
} sizes;

static int64_t round_up(int64_t count) {
    enum { LINE = 16 };  // f32: runs begin at cache lines
    return (count + LINE - 1) / LINE * LINE;
}

static sizes measure(const ts_optimizer *o, ts_dtype operand_dtype) {
    sizes n = {0};
    for (int64_t i = 0; i < o->runs; i++) {
        const ts_optimizer_run *run = &o->run[i];
        const int64_t count = round_up(run->count);
        n.master += operand_dtype == TS_BF16 && o->weights->span[run->span].is_operand ? count : 0;
        n.moment1 += count;
        n.moment2 += run->matrix ? 0 : count;
        n.average += o->params.average ? count : 0;
    }
    return n;
}

// ---- opening

static int allocate(float **out, const ts_device *device, int64_t count) {
    const size_t bytes = (size_t)count * sizeof **out;
    *out = device->allocate(bytes);
    return *out ? device->zero(*out, bytes) : TS_ERESOURCE;
}

// At most those of all weights.
static int64_t wide_count(const ts_params *weights, bool on_host) {
    return on_host || weights->total < TS_WIDE_HOST ? TS_WIDE_HOST
           : weights->total < TS_WIDE_DEVICE        ? weights->total
                                                    : TS_WIDE_DEVICE;
}

// Masters and averages of the runs, from weights that are not settled yet.
static int copy_weights(ts_optimizer *o, const sizes *n) {
    const ts_device *device = o->kernels->device;
    TS_TRY(n->master ? allocate(&o->master, device, n->master) : TS_OK);
    TS_TRY(n->average ? allocate(&o->average, device, n->average) : TS_OK);
    float *master = o->master, *average = o->average;
    for (int64_t i = 0; i < o->runs; i++) {
        ts_optimizer_run *run = &o->run[i];
        const ts_span *span = &o->weights->span[run->span];
        const float *value = span->value + (run->first - span->first);
        const size_t bytes = (size_t)run->count * sizeof(float);
        if (span->operand) {
            run->operand = span->operand + (run->first - span->first);
            run->weight = master;
            TS_TRY(device->copy(master, value, bytes));
            master += round_up(run->count);
        }
        if (average) {
            run->average = average;
            TS_TRY(device->copy(average, value, bytes));
            average += round_up(run->count);
        }
    }
    return TS_OK;
}

static int make_moments(ts_optimizer *o, const sizes *n) {
    const ts_device *device = o->kernels->device;
    TS_TRY(allocate(&o->moment1, device, n->moment1));
    TS_TRY(allocate(&o->moment2, device, n->moment2));
    o->wide_count = wide_count(o->weights, device->is_host);
    o->wide = device->allocate((size_t)o->wide_count * sizeof *o->wide);
    if (!o->wide) {
        return TS_ERESOURCE;
    }
    float *moment1 = o->moment1, *moment2 = o->moment2;
    for (int64_t i = 0; i < o->runs; i++) {
        ts_optimizer_run *run = &o->run[i];
        run->moment1 = moment1;
        moment1 += round_up(run->count);
        if (!run->matrix) {
            run->moment2 = moment2;
            moment2 += round_up(run->count);
        }
    }
    return o->muon ? ts_muon_group_allocate(o->muon, o) : TS_OK;
}

// Where kernels read the weights themselves, the settled ones are the masters.
static void point_masters(ts_optimizer *o) {
    for (int64_t i = 0; i < o->runs; i++) {
        ts_optimizer_run *run = &o->run[i];
        const ts_span *span = &o->weights->span[run->span];
        run->weight = span->operand ? run->weight : span->value + (run->first - span->first);
    }
}

static const ts_optimizer_run *run_at(const ts_optimizer *o, int span, int64_t element) {
    for (int64_t i = 0; i < o->runs; i++) {
        const ts_optimizer_run *run = &o->run[i];
        if (run->span == span && element >= run->first && element < run->first + run->count) {
            return run;
        }
    }
    return NULL;
}

static void add_part(ts_optimizer *o, int span, const ts_param *param) {
    const ts_shard *shard = &o->zero->shard[span];
    const int64_t first = param->offset > shard->first ? param->offset : shard->first;
    const int64_t param_end = param->offset + param->count, shard_end = shard->first + shard->count;
    const int64_t end = param_end < shard_end ? param_end : shard_end;
    const ts_optimizer_run *run = first < end ? run_at(o, span, first) : NULL;
    if (!run) {
        return;  // an empty slice
    }
    const int64_t at = first - run->first;
    o->part[o->parts++] = (ts_state_part){.param = param,
                                          .first = first - param->offset,
                                          .count = end - first,
                                          .weight = run->weight + at,
                                          .average = run->average ? run->average + at : NULL,
                                          .moment1 = run->moment1 + at,
                                          .moment2 = run->moment2 ? run->moment2 + at : NULL};
}

static int list_parts(ts_optimizer *o) {
    const ts_params *weights = o->weights;
    o->part = ts_calloc((size_t)(weights->count + weights->spans) + 1, sizeof *o->part);
    if (!o->part) {
        return TS_ERESOURCE;
    }
    for (int s = 0; s < weights->spans; s++) {
        for (int64_t item = o->zero->shard[s].item; item < o->zero->shard[s].item_end; item++) {
            add_part(o, s, weights->item[item]);
        }
    }
    return TS_OK;
}

int ts_optimizer_open(ts_optimizer **out, ts_params *weights, const ts_kernels *kernels,
                      const ts_optimizer_params *params) {
    TS_ASSERT(weights->value);
    ts_optimizer *o = ts_calloc(1, sizeof *o);
    if (!o) {
        return TS_ERESOURCE;
    }
    *o = (ts_optimizer){.params = *params, .weights = weights, .kernels = kernels};
    int status = TS_OK;
    TS_TRY_GOTO(status, lay_out(o), failed);
    const sizes n = measure(o, weights->operand_dtype);
    TS_TRY_GOTO(status, copy_weights(o, &n), failed);
    TS_TRY_GOTO(status, ts_params_settle(weights), failed);
    point_masters(o);
    TS_TRY_GOTO(status, make_moments(o, &n), failed);  // into what settling gave back
    TS_TRY_GOTO(status, list_parts(o), failed);
    *out = o;
    return TS_OK;
failed:
    ts_optimizer_close(&o);
    return status;
}

void ts_optimizer_close(ts_optimizer **optimizer) {
    ts_optimizer *o = *optimizer;
    if (o) {
        ts_muon_group_close(&o->muon);
        ts_zero_close(&o->zero);
        if (o->kernels) {
            const ts_device *device = o->kernels->device;
            device->release(o->master);
            device->release(o->moment1);
            device->release(o->moment2);
            device->release(o->average);
            device->release(o->wide);
        }
        free(o->run);
        free(o->part);
        free(o);
        *optimizer = NULL;
    }
}

// ---- counting

int ts_optimizer_count(ts_params *placed, ts_dtype operand_dtype, ts_dtype grad_dtype,
                       const ts_optimizer_params *params, bool on_host, ts_state_bytes *out) {
    ts_optimizer *o = ts_calloc(1, sizeof *o);
    if (!o) {
        return TS_ERESOURCE;
    }
    *o = (ts_optimizer){.params = *params, .weights = placed};
    const int status = lay_out(o);
    const int64_t f32 = (int64_t)sizeof(float), bf16 = (int64_t)sizeof(uint16_t);
    *out = (ts_state_bytes){0};
    for (int s = 0; s < placed->spans && !status; s++) {
        const bool narrow = operand_dtype == TS_BF16 && placed->span[s].is_operand;
        out->weights += placed->span[s].count * (narrow ? bf16 : f32);
    }
    if (!status) {
        const sizes n = measure(o, operand_dtype);
        out->gradients = placed->total * (grad_dtype == TS_BF16 ? bf16 : f32);
        out->masters = n.master * f32;
        out->moments = (n.moment1 + n.moment2) * f32;
        out->average = n.average * f32;
        out->buffers =
            (wide_count(placed, on_host) + (grad_dtype == TS_BF16 ? ts_params_shared_grad_count(placed) : 0)) * f32 +
            (o->muon ? ts_muon_group_bytes(o->muon, operand_dtype) : 0);
    }
    ts_optimizer_close(&o);
    return status;
}

// ---- state

const ts_state_part *ts_optimizer_parts(const ts_optimizer *o, int64_t *count) {
    *count = o->parts;
    return o->part;
}

int ts_optimizer_loaded(ts_optimizer *o) {
    for (int64_t i = 0; i < o->runs; i++) {
        const ts_optimizer_run *run = &o->run[i];
        if (run->operand) {
            TS_TRY(o->kernels->cast(run->weight, TS_F32, run->operand, TS_BF16, run->count));
        }
    }
    for (int span = 0; span < o->weights->spans; span++) {
        TS_TRY(ts_zero_gather_start(o->zero, span));
    }
    return ts_zero_gather_wait(o->zero);
}

static int exchange(const ts_optimizer *o, float *a, float *b, size_t bytes) {
    const ts_device *device = o->kernels->device;
    TS_TRY(device->copy(o->wide, a, bytes));
    TS_TRY(device->copy(a, b, bytes));
    return device->copy(b, o->wide, bytes);
}

int ts_optimizer_swap_average(ts_optimizer *o) {
    if (!o->params.average) {
        return TS_OK;
    }
    for (int64_t i = 0; i < o->runs; i++) {
        const ts_optimizer_run *run = &o->run[i];
        for (int64_t first = 0; first < run->count; first += o->wide_count) {
            const int64_t left = run->count - first, count = left < o->wide_count ? left : o->wide_count;
            TS_TRY(exchange(o, run->weight + first, run->average + first, (size_t)count * sizeof(float)));
        }
    }
    return ts_optimizer_loaded(o);
}
