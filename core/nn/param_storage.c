// SPDX-License-Identifier: Apache-2.0
// The memory of a parameter set: values, operands, gradients.
#include <inttypes.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/nn/param.h"

static void *zeroed(const ts_params *params, int64_t count, size_t element) {
    const ts_device *device = ts_params_device(params);
    void *data = device->allocate((size_t)count * element);
    if (data && device->zero(data, (size_t)count * element)) {
        device->release(data);
        data = NULL;
    }
    return data;
}

static int no_memory(const ts_params *params) {
    return TS_FAIL(TS_ERESOURCE, "out of memory for %" PRId64 " parameters", params->total);
}

// The pointers of every item, from those of its span.
static void point_items(ts_params *params) {
    int s = 0;
    for (int64_t i = 0; i < params->count; i++) {
        ts_param *param = params->item[i];
        const ts_span *span = &params->span[s];
        while (span->group != param->group || span->cut != (param->cut >= 0) || span->is_operand != param->is_operand) {
            span = &params->span[++s];
        }
        const int64_t at = param->offset - span->first;
        param->value = span->value ? span->value + at : NULL;
        param->operand = span->operand ? (void *)(span->operand + at) : (void *)param->value;
        param->grad = span->grad ? span->grad + at : NULL;
    }
}

// ---- values and operands

int ts_params_allocate(ts_params *params, ts_dtype operand_dtype, bool with_gradients) {
    TS_ASSERT(!params->value && (operand_dtype == TS_F32 || operand_dtype == TS_BF16));
    TS_TRY(ts_params_place(params));
    if (!params->kernels) {
        TS_TRY(ts_kernels_cpu(&params->kernels, ts_kernels_cpu_instruction_set()));
    }
    params->operand_dtype = operand_dtype;
    params->value = zeroed(params, params->total, sizeof(float));
    int64_t operands = 0;
    for (int s = 0; s < params->spans; s++) {
        operands += operand_dtype == TS_BF16 && params->span[s].is_operand ? params->span[s].count : 0;
    }
    params->operand = operands && params->value ? zeroed(params, operands, sizeof(uint16_t)) : NULL;
    if (!params->value || (operands && !params->operand)) {
        return no_memory(params);
    }
    uint16_t *operand = params->operand;
    for (int s = 0; s < params->spans; s++) {
        ts_span *span = &params->span[s];
        span->value = params->value + span->first;
        if (operand_dtype == TS_BF16 && span->is_operand) {
            span->operand = operand;
            operand += span->count;
        }
    }
    point_items(params);
    return with_gradients ? ts_params_allocate_grad(params, TS_F32) : 0;
}

int ts_params_refresh_operands(ts_params *params) {
    for (int s = 0; s < params->spans; s++) {
        const ts_span *span = &params->span[s];
        if (span->operand) {
            TS_TRY(params->kernels->cast(span->value, TS_F32, span->operand, TS_BF16, span->count));
        }
    }
    return 0;
}

int ts_params_settle(ts_params *params) {
    if (params->operand_dtype == TS_F32 || !params->value) {
        return 0;
    }
    int64_t left = 0;
    for (int s = 0; s < params->spans; s++) {
        left += params->span[s].operand ? 0 : params->span[s].count;
    }
    const ts_device *device = ts_params_device(params);
    params->settled = device->allocate((size_t)left * sizeof *params->settled);
    if (!params->settled) {
        return no_memory(params);
    }
    float *value = params->settled;
    for (int s = 0; s < params->spans; s++) {
        ts_span *span = &params->span[s];
        if (span->operand) {
            span->value = NULL;
            continue;
        }
        TS_TRY(device->copy(value, span->value, (size_t)span->count * sizeof *value));
        span->value = value;
        value += span->count;
    }
    device->release(params->value);
    params->value = NULL;
    point_items(params);
    return 0;
}

// ---- gradients

static int64_t group_count(const ts_params *params, int group) {
    int64_t count = 0;
    for (int s = 0; s < params->spans; s++) {
        count += params->span[s].group == group ? params->span[s].count : 0;
    }
    return count;
}

static int64_t largest_block(const ts_params *params) {
    int64_t most = 0;
    for (int group = 1; group < params->groups; group++) {
        const int64_t count = group_count(params, group);
        most = count > most ? count : most;
    }
    return most;
}

int64_t ts_params_shared_grad_count(const ts_params *params) {
    return group_count(params, 0) + largest_block(params);
}

// Spans of one group follow one another in the memory that the group has or shares. Cut and whole spans of a group lie
// apart in flat order, so each group is gone through by itself.
static void share_grad(ts_params *params) {
    float *const blocks = params->shared_grad + group_count(params, 0);
    for (int group = 0; group < params->groups; group++) {
        float *grad = group == 0 ? params->shared_grad : blocks;
        for (int s = 0; s < params->spans; s++) {
            ts_span *span = &params->span[s];
            if (span->group == group) {
                span->grad = grad;
                span->kept_grad = params->kept_grad + span->first;
                grad += span->count;
            }
        }
    }
}

int ts_params_allocate_grad(ts_params *params, ts_dtype kept) {
    TS_ASSERT(params->spans && !params->grad && !params->kept_grad && (kept == TS_F32 || kept == TS_BF16));
    params->grad_dtype = kept;
    if (kept == TS_F32) {
        params->grad = zeroed(params, params->total, sizeof *params->grad);
        for (int s = 0; params->grad && s < params->spans; s++) {
            params->span[s].grad = params->grad + params->span[s].first;
        }
    } else {
        params->kept_grad = zeroed(params, params->total, sizeof *params->kept_grad);
        params->shared_grad = zeroed(params, ts_params_shared_grad_count(params), sizeof *params->shared_grad);
        if (params->kept_grad && params->shared_grad) {
            share_grad(params);
        }
    }
    point_items(params);
    return params->grad || (params->kept_grad && params->shared_grad) ? 0 : no_memory(params);
}

int ts_params_zero_grad(ts_params *params) {
    const ts_device *device = ts_params_device(params);
    const size_t total = (size_t)params->total;
    if (params->grad) {
        TS_TRY(device->zero(params->grad, total * sizeof(float)));
    }
    if (params->kept_grad) {
        TS_TRY(device->zero(params->kept_grad, total * sizeof(uint16_t)));
    }
    if (params->shared_grad) {
        TS_TRY(device->zero(params->shared_grad, (size_t)ts_params_shared_grad_count(params) * sizeof(float)));
    }
    return 0;
}

int ts_params_fold_grad(ts_params *params, int group) {
    for (int s = 0; s < params->spans; s++) {
        const ts_span *span = &params->span[s];
        if (span->group == group && span->kept_grad) {
            TS_TRY(params->kernels->fold(span->grad, span->kept_grad, span->count));
        }
    }
    return 0;
}
