// SPDX-License-Identifier: Apache-2.0
#include "core/nn/param.h"

#include <inttypes.h>
#include <stdlib.h>
#include <xxhash.h>

#include "core/base/arena.h"
#include "core/base/rng.h"
#include "core/base/status.h"

enum { PARAM_ALIGN = 32 };  // elements: 64 bytes of bf16, a cache line

// What ts_params hides: the list's capacity and a hash table from names to items, open addressing, never full.
typedef struct params_object {
    ts_params base;
    ts_arena *names;
    int64_t capacity;    // of base.item
    int64_t slot_count;  // power of two, at least twice the items
    int32_t *slot;       // index of an item, or -1
    bool allocated;
} params_object;

static uint64_t name_hash(const char *name) {
    return XXH3_64bits(name, strlen(name));
}

int ts_params_open(ts_params **out) {
    params_object *p = ts_calloc(1, sizeof *p);
    if (!p) {
        return TS_ERESOURCE;
    }
    const int status = ts_arena_open(&p->names, "parameter names", 1 << 16, false);
    if (status) {
        free(p);
        return status;
    }
    *out = &p->base;
    return 0;
}

void ts_params_close(ts_params **params) {
    if (!*params) {
        return;
    }
    params_object *p = (params_object *)*params;
    free(p->base.grad);
    free(p->base.operand);
    free(p->base.value);
    free(p->slot);
    free(p->base.item);
    ts_arena_close(&p->names);
    free(p);
    *params = NULL;
}

// Index of the slot that holds `name`, or of the empty slot where it belongs.
static int64_t find_slot(const params_object *p, const char *name) {
    int64_t i = (int64_t)(name_hash(name) & (uint64_t)(p->slot_count - 1));
    while (p->slot[i] >= 0 && strcmp(p->base.item[p->slot[i]]->name, name) != 0) {
        i = (i + 1) & (p->slot_count - 1);
    }
    return i;
}

static int grow(params_object *p) {
    const int64_t capacity = p->capacity ? 2 * p->capacity : 64;
    ts_param **item = realloc(p->base.item, (size_t)capacity * sizeof *item);
    if (!item) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for %" PRId64 " parameters", capacity);
    }
    p->base.item = item;
    int32_t *slot = ts_malloc((size_t)(2 * capacity) * sizeof *slot);
    if (!slot) {
        return TS_ERESOURCE;
    }
    free(p->slot);
    p->slot = slot;
    p->capacity = capacity;
    p->slot_count = 2 * capacity;
    for (int64_t i = 0; i < p->slot_count; i++) {
        slot[i] = -1;
    }
    for (int64_t i = 0; i < p->base.count; i++) {
        slot[find_slot(p, p->base.item[i]->name)] = (int32_t)i;
    }
    return 0;
}

int ts_params_declare(ts_param **out, ts_params *params, const char *prefix, const char *name, ts_shape shape,
                      bool decay) {
    params_object *p = (params_object *)params;
    TS_ASSERT(!p->allocated);
    *out = NULL;
    if (params->count == p->capacity) {
        TS_TRY(grow(p));
    }
    ts_param *param = ts_arena_zalloc(p->names, sizeof *param);
    char *full = param ? ts_arena_printf(p->names, "%s%s", prefix, name) : NULL;
    if (!full) {
        return TS_ERESOURCE;
    }
    const int64_t slot = find_slot(p, full);
    if (p->slot[slot] >= 0) {
        return TS_FAIL(TS_EINTERNAL, "parameter '%s' is declared twice", full);
    }
    *param = (ts_param){.name = full,
                        .shape = shape,
                        .offset = params->total,
                        .count = ts_shape_count(shape),
                        .decay = decay,
                        .lr_scale = 1.0f};
    p->slot[slot] = (int32_t)params->count;
    params->item[params->count++] = param;
    params->total += (param->count + PARAM_ALIGN - 1) / PARAM_ALIGN * PARAM_ALIGN;
    *out = param;
    return 0;
}

ts_param *ts_params_add(ts_params *params, const char *name, ts_shape shape, bool decay) {
    ts_param *param;
    (void)ts_params_declare(&param, params, "", name, shape, decay);
    return param;
}

static void *zeroed(int64_t count, size_t element) {
    void *data = ts_aligned_alloc((size_t)count * element);
    if (data) {
        memset(data, 0, (size_t)count * element);
    }
    return data;
}

int ts_params_allocate(ts_params *params, ts_dtype operand_dtype, bool with_gradients) {
    params_object *p = (params_object *)params;
    TS_ASSERT(!p->allocated && (operand_dtype == TS_F32 || operand_dtype == TS_BF16));
    p->allocated = true;
    params->operand_dtype = operand_dtype;
    params->value = zeroed(params->total, sizeof(float));
    const bool bf16 = operand_dtype == TS_BF16;
    params->operand = bf16 && params->value ? zeroed(params->total, sizeof(uint16_t)) : NULL;
    params->grad = with_gradients && params->value ? zeroed(params->total, sizeof(float)) : NULL;
    if (!params->value || (bf16 && !params->operand) || (with_gradients && !params->grad)) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for %" PRId64 " parameters", params->total);
    }
    for (int64_t i = 0; i < params->count; i++) {
        ts_param *param = params->item[i];
        param->value = params->value + param->offset;
        param->operand = bf16 ? (void *)(params->operand + param->offset) : (void *)param->value;
        param->grad = params->grad ? params->grad + param->offset : NULL;
    }
    return 0;
}

ts_param *ts_params_find(const ts_params *params, const char *name) {
    const params_object *p = (const params_object *)params;
    if (!params->count) {
        return NULL;
    }
    const int32_t index = p->slot[find_slot(p, name)];
    return index < 0 ? NULL : params->item[index];
}

void ts_params_zero_grad(ts_params *params) {
    const int64_t total = params->grad ? params->total : 0;
    float *grad = params->grad;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < total; i++) {
        grad[i] = 0.0f;
    }
}

void ts_params_refresh_operands(ts_params *params) {
    if (!params->operand) {
        return;
    }
    const int64_t total = params->total;
    const float *value = params->value;
    uint16_t *operand = params->operand;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < total; i++) {
        operand[i] = ts_f32_to_bf16(value[i]);
    }
}

void ts_param_init_normal(ts_param *param, uint64_t seed, float std) {
    ts_rng_normal_fill(param->value, param->count, seed, TS_RNG_INIT, name_hash(param->name), 0);
    for (int64_t i = 0; i < param->count; i++) {
        param->value[i] *= std;
    }
}

void ts_param_init_constant(ts_param *param, float value) {
    for (int64_t i = 0; i < param->count; i++) {
        param->value[i] = value;
    }
}
