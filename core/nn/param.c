// SPDX-License-Identifier: Apache-2.0
#include "core/nn/param.h"

#include <inttypes.h>
#include <stdlib.h>
#include <xxhash.h>

#include "core/base/arena.h"
#include "core/base/rng.h"
#include "core/base/split.h"
#include "core/base/status.h"

enum { PARAM_ALIGN = 32 };  // elements: 64 bytes of bf16, a cache line

// Elements declared so far in each of a group's four classes, which become spans.
typedef struct extent {
    int64_t count[2][2];  // [is cut][is no operand]
} extent;

static int64_t padded(int64_t count) {
    return (count + PARAM_ALIGN - 1) / PARAM_ALIGN * PARAM_ALIGN;
}

// What ts_params hides: the list's capacity and a hash table from names to items, open addressing, never full.
typedef struct params_object {
    ts_params base;
    ts_arena *names;
    int64_t capacity;    // of base.item
    int64_t slot_count;  // power of two, at least twice the items
    int32_t *slot;       // index of an item, or -1
    int group;           // of the next declaration
    extent *extent;      // [extents] of each group
    int extents;
    bool placed;
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
    p->base.groups = 1;
    *out = &p->base;
    return 0;
}

void ts_params_close(ts_params **params) {
    if (!*params) {
        return;
    }
    params_object *p = (params_object *)*params;
    const ts_device *device = ts_params_device(*params);
    device->release(p->base.kept_grad);
    device->release(p->base.shared_grad);
    device->release(p->base.grad);
    device->release(p->base.operand);
    device->release(p->base.settled);
    device->release(p->base.value);
    free(p->base.span);
    free(p->extent);
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

static void fill_slots(params_object *p) {
    for (int64_t i = 0; i < p->slot_count; i++) {
        p->slot[i] = -1;
    }
    for (int64_t i = 0; i < p->base.count; i++) {
        p->slot[find_slot(p, p->base.item[i]->name)] = (int32_t)i;
    }
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
    fill_slots(p);
    return 0;
}

// ---- declaration

int ts_params_begin_group(ts_params *params) {
    params_object *p = (params_object *)params;
    p->group = params->groups++;
    return p->group;
}

void ts_params_end_group(ts_params *params) {
    ((params_object *)params)->group = 0;
}

static int64_t *extent_of(params_object *p, const ts_param *param) {
    return &p->extent[param->group].count[param->cut >= 0][!param->is_operand];
}

static int make_extents(params_object *p) {
    if (p->base.groups <= p->extents) {
        return 0;
    }
    const int wanted = 2 * p->base.groups + 64;
    extent *extents = realloc(p->extent, (size_t)wanted * sizeof *extents);
    if (!extents) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for %d groups of parameters", wanted);
    }
    memset(extents + p->extents, 0, (size_t)(wanted - p->extents) * sizeof *extents);
    p->extent = extents;
    p->extents = wanted;
    return 0;
}

// The part of this rank; a lone tensor rank holds the whole.
static void cut_part(ts_param *param, const ts_params *params, int cut, int64_t unit) {
    const ts_comm *tensor = ts_mesh_axis(params->mesh, TS_AXIS_TENSOR);
    param->shape = param->whole;
    param->cut = cut < 0 || ts_comm_size(tensor) == 1 ? -1 : cut;
    if (param->cut >= 0) {
        TS_ASSERT(param->whole.dim[cut] % unit == 0);
        const ts_part part = ts_split(param->whole.dim[cut] / unit, ts_comm_size(tensor), ts_comm_rank(tensor));
        param->unit = unit;
        param->shape.dim[cut] = part.count * unit;
        param->cut_first = part.first * unit;
    }
    param->count = ts_shape_count(param->shape);
}

int ts_params_declare_as(ts_param **out, ts_params *params, const char *prefix, const char *name,
                         const ts_declaration *as) {
    params_object *p = (params_object *)params;
    TS_ASSERT(!p->placed);
    *out = NULL;
    TS_TRY(make_extents(p));
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
                        .whole = as->whole,
                        .group = p->group,
                        .is_operand = as->is_operand,
                        .decay = as->decay,
                        .lr_scale = 1.0f};
    cut_part(param, params, as->cut, as->unit);
    int64_t *const end = extent_of(p, param);
    param->offset = *end;  // within its span, until all are known: tells neighbours
    *end += padded(param->count);
    p->slot[slot] = (int32_t)params->count;
    params->item[params->count++] = param;
    *out = param;
    return 0;
}

int ts_params_declare(ts_param **out, ts_params *params, const char *prefix, const char *name, ts_shape shape,
                      bool decay) {
    const ts_declaration whole = {.whole = shape, .decay = decay, .cut = -1};
    return ts_params_declare_as(out, params, prefix, name, &whole);
}

ts_param *ts_params_add(ts_params *params, const char *name, ts_shape shape, bool decay) {
    ts_param *param;
    (void)ts_params_declare(&param, params, "", name, shape, decay);
    return param;
}

// The items in flat order. Not by offset: an empty part shares its own with the next one, and the order must be alike
// on all ranks, whichever parts are empty there.
static int sort_items(params_object *p) {
    ts_params *const params = &p->base;
    ts_param **sorted = ts_malloc((size_t)(p->capacity + 1) * sizeof *sorted);
    if (!sorted) {
        return TS_ERESOURCE;
    }
    int64_t count = 0;
    for (int class = 0; class < 4 * params->groups; class ++) {
        const bool cut = class >= 2 * params->groups;
        const int group = class / 2 % params->groups;
        for (int64_t i = 0; i < params->count; i++) {
            ts_param *const param = params->item[i];
            if ((param->cut >= 0) == cut && param->group == group && param->is_operand == (class % 2 == 0)) {
                sorted[count++] = param;
            }
        }
    }
    TS_ASSERT(count == params->count);
    free(params->item);
    params->item = sorted;
    fill_slots(p);
    return 0;
}

// How many elements each class has, now that no flag changes any more, and where in its span each item begins.
static void measure_spans(params_object *p) {
    memset(p->extent, 0, (size_t)p->extents * sizeof *p->extent);
    for (int64_t i = 0; i < p->base.count; i++) {
        int64_t *const end = extent_of(p, p->base.item[i]);
        p->base.item[i]->offset = *end;
        *end += padded(p->base.item[i]->count);
    }
}

// Items are in flat order: those of a class, wherever it has any, become a span.
static void place_spans(params_object *p) {
    ts_params *const params = &p->base;
    for (int64_t i = 0; i < params->count; i++) {
        ts_param *const param = params->item[i];
        const int64_t *const count = extent_of(p, param);
        if (i == 0 || count != extent_of(p, params->item[i - 1])) {
            params->span[params->spans++] = (ts_span){.first = params->total,
                                                      .count = *count,
                                                      .group = param->group,
                                                      .cut = param->cut >= 0,
                                                      .is_operand = param->is_operand};
            params->total += *count;
        }
        param->offset += params->span[params->spans - 1].first;
    }
}

int ts_params_place(ts_params *params) {
    params_object *p = (params_object *)params;
    if (p->placed) {
        return 0;
    }
    params->span = ts_calloc((size_t)(4 * params->groups), sizeof *params->span);
    if (!params->span) {
        return TS_ERESOURCE;
    }
    TS_TRY(sort_items(p));
    measure_spans(p);
    place_spans(p);
    p->placed = true;
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

int ts_param_pieces(const ts_param *param, int64_t first, int64_t count, ts_piece piece[TS_MAX_PIECES]) {
    int64_t below = 1;  // elements of one index of the cut dimension
    for (int d = param->cut + 1; param->cut >= 0 && d < param->shape.ndim; d++) {
        below *= param->shape.dim[d];
    }
    const int64_t here = param->cut < 0 ? param->count : param->shape.dim[param->cut] * below;
    const int64_t whole = param->cut < 0 ? param->count : param->whole.dim[param->cut] * below;
    const int64_t skipped = param->cut < 0 ? 0 : param->cut_first * below;
    int pieces = 0;
    // A run that the range begins inside of, whole runs, and one that it ends inside of.
    while (count > 0) {
        const int64_t row = first / here, column = first % here;
        const int64_t runs = column == 0 && count >= here ? count / here : 1;
        const int64_t length = column + count < here ? count : here - column;
        piece[pieces++] = (ts_piece){row * whole + skipped + column, runs, length, whole};
        first += runs * length;
        count -= runs * length;
    }
    return pieces;
}

// ---- values

int ts_param_write(const ts_param *param, int64_t first, int64_t count, const float *from) {
    TS_ASSERT(param->value && first >= 0 && first + count <= param->count);
    return ts_device_of(param->value)->upload(param->value + first, from, (size_t)count * sizeof *from);
}

int ts_param_read(const ts_param *param, int64_t first, int64_t count, float *to) {
    TS_ASSERT(param->value && first >= 0 && first + count <= param->count);
    return ts_device_of(param->value)->download(to, param->value + first, (size_t)count * sizeof *to);
}

int ts_param_read_grad(const ts_param *param, int64_t first, int64_t count, float *to) {
    TS_ASSERT(param->grad && first >= 0 && first + count <= param->count);
    return ts_device_of(param->grad)->download(to, param->grad + first, (size_t)count * sizeof *to);
}

enum { INIT_CHUNK = 1 << 20 };  // elements that are made at a time

// Makes `count` elements from place `first` of the whole tensor on, which are this rank's from `own` on.
static int init_run(ts_param *param, uint64_t seed, float std, int64_t first, int64_t own, int64_t count,
                    float *buffer) {
    for (int64_t done = 0, n; done < count; done += n) {
        n = count - done < INIT_CHUNK ? count - done : INIT_CHUNK;
        ts_rng_normal_fill(buffer, n, seed, TS_RNG_INIT, name_hash(param->name), first + done);
        for (int64_t i = 0; i < n; i++) {
            buffer[i] *= std;
        }
        TS_TRY(ts_param_write(param, own + done, n, buffer));
    }
    return 0;
}

int ts_param_init_normal(ts_param *param, uint64_t seed, float std) {
    ts_piece piece[TS_MAX_PIECES];
    const int pieces = ts_param_pieces(param, 0, param->count, piece);
    float *buffer = ts_malloc((size_t)(param->count < INIT_CHUNK ? param->count : INIT_CHUNK) * sizeof *buffer);
    int64_t own = 0;
    int status = buffer ? 0 : TS_ERESOURCE;
    for (int i = 0; i < pieces; i++) {
        for (int64_t run = 0; run < piece[i].runs && !status; run++, own += piece[i].length) {
            status = init_run(param, seed, std, piece[i].first + run * piece[i].stride, own, piece[i].length, buffer);
        }
    }
    free(buffer);
    return status;
}

int ts_param_init_constant(ts_param *param, float value) {
    const int64_t chunk = param->count < INIT_CHUNK ? param->count : INIT_CHUNK;
    float *buffer = ts_malloc((size_t)chunk * sizeof *buffer);
    int status = buffer ? 0 : TS_ERESOURCE;
    for (int64_t i = 0; buffer && i < chunk; i++) {
        buffer[i] = value;
    }
    for (int64_t done = 0, n; done < param->count && !status; done += n) {
        n = param->count - done < chunk ? param->count - done : chunk;
        status = ts_param_write(param, done, n, buffer);
    }
    free(buffer);
    return status;
}
