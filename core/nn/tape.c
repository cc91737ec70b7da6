// SPDX-License-Identifier: Apache-2.0
#include "core/nn/tape.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/clock.h"
#include "core/nn/tape_private.h"

enum { OBJECT_CHUNK = 64 << 10, VALUE_CHUNK = 4 << 20 };

static bool counts(ts_tape_mode mode) {
    return mode == TS_TAPE_COUNT || mode == TS_TAPE_COUNT_RUN;
}

static int open_arenas(ts_tape *tape) {
    const ts_device *device = ts_tape_device(tape);
    const bool counting = counts(tape->mode);
    TS_TRY(ts_arena_open_on(&tape->values, device, "values", VALUE_CHUNK, counting));
    TS_TRY(ts_arena_open_on(&tape->kept, device, "kept values", VALUE_CHUNK, counting));
    return ts_arena_open_on(&tape->gradients, device, "gradients", VALUE_CHUNK, counting);
}

static void close_arenas(ts_tape *tape) {
    ts_arena_close(&tape->gradients);
    ts_arena_close(&tape->kept);
    ts_arena_close(&tape->values);
}

int ts_tape_open(ts_tape **out, const ts_kernels *kernels, ts_tape_mode mode, ts_dtype operand_dtype) {
    TS_ASSERT(operand_dtype == TS_F32 || operand_dtype == TS_BF16);
    ts_tape *tape = ts_calloc(1, sizeof *tape);
    if (!tape) {
        return TS_ERESOURCE;
    }
    *tape = (ts_tape){.kernels = kernels, .mode = mode, .operand_dtype = operand_dtype};
    int status = ts_arena_open(&tape->objects, "tape", OBJECT_CHUNK, false);
    if (!status) {
        status = open_arenas(tape);
    }
    if (status) {
        ts_tape_close(&tape);
        return status;
    }
    *out = tape;
    return 0;
}

void ts_tape_close(ts_tape **tape) {
    if (!*tape) {
        return;
    }
    free((*tape)->pool);
    free((*tape)->keep);
    free((*tape)->calls);
    close_arenas(*tape);
    ts_arena_close(&(*tape)->objects);
    free(*tape);
    *tape = NULL;
}

void *ts_tape_grow(ts_tape *tape, void *items, int64_t *capacity, int64_t wanted, size_t bytes) {
    enum { FEWEST = 64 };
    if (wanted <= *capacity) {
        return items;
    }
    const int64_t doubled = 2 * *capacity > FEWEST ? 2 * *capacity : FEWEST, room = wanted > doubled ? wanted : doubled;
    void *grown = realloc(items, (size_t)room * bytes);
    if (!grown) {
        (void)TS_FAIL(TS_ERESOURCE, "out of memory for a tape of %lld calls", (long long)room);
        return NULL;
    }
    *capacity = room;
    tape->list_growths++;
    return grown;
}

ts_tape_room ts_tape_get_room(const ts_tape *tape) {
    return (ts_tape_room){.objects = ts_arena_peak(tape->objects),
                          .values = ts_arena_peak(tape->values),
                          .kept = ts_arena_peak(tape->kept),
                          .gradients = ts_arena_peak(tape->gradients),
                          .calls = tape->call_capacity,
                          .pool = tape->pool_capacity,
                          .keep = tape->keep_capacity};
}

int ts_tape_reserve(ts_tape *tape, const ts_tape_room *room) {
    TS_TRY(ts_arena_reserve(tape->objects, room->objects));
    TS_TRY(ts_arena_reserve(tape->values, room->values));
    TS_TRY(ts_arena_reserve(tape->kept, room->kept));
    TS_TRY(ts_arena_reserve(tape->gradients, room->gradients));
    tape_call *calls = ts_tape_grow(tape, tape->calls, &tape->call_capacity, room->calls, sizeof *calls);
    tape->calls = calls ? calls : tape->calls;
    tape_block *pool = ts_tape_grow(tape, tape->pool, &tape->pool_capacity, room->pool, sizeof *pool);
    tape->pool = pool ? pool : tape->pool;
    tape_block *keep = ts_tape_grow(tape, tape->keep, &tape->keep_capacity, room->keep, sizeof *keep);
    tape->keep = keep ? keep : tape->keep;
    return (room->calls && !calls) || (room->pool && !pool) || (room->keep && !keep) ? TS_ERESOURCE : TS_OK;
}

uint64_t ts_tape_system_calls(const ts_tape *tape) {
    return ts_arena_system_calls(tape->objects) + ts_arena_system_calls(tape->values) +
           ts_arena_system_calls(tape->kept) + ts_arena_system_calls(tape->gradients) + tape->list_growths;
}

void ts_tape_reset(ts_tape *tape) {
    tape->call_count = 0;
    tape->pool_count = 0;
    tape->keep_count = 0;
    tape->pass = PASS_PLAIN;
    ts_arena_reset(tape->gradients);
    ts_arena_reset(tape->kept);
    ts_arena_reset(tape->values);
    ts_arena_reset(tape->objects);
    tape->status = 0;
    tape->replaying = false;
    tape->flops = 0;
    tape->forward_bytes = tape->activation_bytes = 0;
    tape->calls_made = 0;
}

int ts_tape_set_mode(ts_tape *tape, ts_tape_mode mode) {
    TS_ASSERT(tape->call_count == 0 && ts_arena_used(tape->values) == 0);
    const bool other_arenas = counts(mode) != counts(tape->mode);
    tape->mode = mode;
    if (!other_arenas) {
        return 0;
    }
    close_arenas(tape);
    return open_arenas(tape);
}

int ts_tape_status(const ts_tape *tape) {
    return tape->status;
}

ts_tape_stats ts_tape_get_stats(const ts_tape *tape) {
    return (ts_tape_stats){.flops = tape->flops,
                           .forward_bytes = tape->forward_bytes,
                           .activation_bytes = tape->activation_bytes,
                           .peak_bytes =
                               ts_arena_peak(tape->values) + ts_arena_peak(tape->kept) + ts_arena_peak(tape->gradients),
                           .calls = tape->calls_made};
}

ts_arena *ts_tape_arena(ts_tape *tape) {
    return tape->values;
}

const ts_kernels *ts_tape_kernels(const ts_tape *tape) {
    return tape->kernels;
}

const ts_device *ts_tape_device(const ts_tape *tape) {
    return tape->kernels ? tape->kernels->device : &ts_device_host;
}

ts_dtype ts_tape_operand_dtype(const ts_tape *tape) {
    return tape->operand_dtype;
}

// ---- for layers

bool ts_tape_computes(const ts_tape *tape) {
    return !counts(tape->mode);
}

bool ts_tape_keeps(const ts_tape *tape) {
    return tape->mode == TS_TAPE_RECORD || tape->mode == TS_TAPE_COUNT;
}

int ts_tape_try(ts_tape *tape, int status) {
    if (status && !tape->status) {
        tape->status = status;
    }
    return status;
}

int ts_tape_zero(ts_tape *tape, void *data, size_t bytes) {
    return ts_tape_computes(tape) ? ts_tape_device(tape)->zero(data, bytes) : 0;
}

int ts_tape_copy(ts_tape *tape, void *to, const void *from, size_t bytes) {
    return ts_tape_computes(tape) ? ts_tape_device(tape)->copy(to, from, bytes) : 0;
}

void ts_tape_add_flops(ts_tape *tape, double n) {
    if (!tape->replaying) {
        tape->flops += n;
    }
}

void *ts_tape_object(ts_tape *tape, size_t bytes) {
    void *block = ts_arena_zalloc(tape->objects, bytes);
    if (!block) {
        ts_tape_try(tape, TS_ERESOURCE);
    }
    return block;
}

void *ts_tape_alloc(ts_tape *tape, size_t bytes) {
    void *block = ts_arena_alloc(tape->values, bytes);
    if (!block) {
        ts_tape_try(tape, TS_ERESOURCE);
    }
    return block;
}

void *ts_tape_upload(ts_tape *tape, const void *host, size_t bytes) {
    const ts_device *device = ts_tape_device(tape);
    if (tape->status || device->is_host) {
        return tape->status ? NULL : (void *)(uintptr_t)host;
    }
    void *copy = ts_tape_alloc(tape, bytes);
    if (copy && ts_tape_computes(tape) && ts_tape_try(tape, device->upload(copy, host, bytes))) {
        return NULL;
    }
    return copy;
}

// The first run of a block whose kept values will meet a recorded run asks for the same memory as that one.
static bool differentiates(const ts_tape *tape) {
    return ts_tape_keeps(tape) || tape->pass == PASS_FIRST;
}

ts_var *ts_tape_var(ts_tape *tape, ts_tensor value, bool needs_grad) {
    ts_var *var = ts_tape_object(tape, sizeof *var);
    if (var) {
        *var = (ts_var){.value = value, .grad_dtype = value.dtype, .needs_grad = needs_grad && differentiates(tape)};
    }
    return var;
}

ts_var *ts_tape_new(ts_tape *tape, ts_dtype dtype, ts_shape shape, bool needs_grad) {
    void *data = ts_tape_alloc(tape, (size_t)ts_shape_count(shape) * ts_dtype_bytes(dtype));
    return data ? ts_tape_var(tape, (ts_tensor){dtype, shape, data}, needs_grad) : NULL;
}

ts_var *ts_tape_alias(ts_tape *tape, const ts_var *x, ts_shape shape, bool needs_grad) {
    TS_ASSERT(ts_shape_count(shape) == ts_shape_count(x->value.shape));
    ts_var *var = ts_tape_var(tape, (ts_tensor){x->value.dtype, shape, x->value.data}, needs_grad);
    if (var) {
        var->borrowed = x->borrowed;
    }
    return var;
}

ts_var *ts_tape_input(ts_tape *tape, ts_tensor tensor, bool needs_grad) {
    if (tape->status) {
        return NULL;
    }
    ts_var *var = ts_tape_var(tape, tensor, needs_grad);
    if (var) {
        var->borrowed = true;
    }
    return var;
}

bool ts_tape_trains(const ts_tape *tape, const ts_param *param) {
    // A parameter set that was only declared, to be counted, is taken as one that will be trained.
    return differentiates(tape) && (param->grad || (!param->operand && !ts_tape_computes(tape)));
}

ts_var *ts_tape_param_part(ts_tape *tape, const ts_param *param, int64_t first, ts_shape shape) {
    if (tape->status) {
        return NULL;
    }
    TS_ASSERT(first >= 0 && first + ts_shape_count(shape) <= param->count);
    float *value = param->value ? param->value + first : NULL;
    ts_var *var = ts_tape_var(tape, (ts_tensor){TS_F32, shape, value}, ts_tape_trains(tape, param));
    if (var) {
        var->borrowed = true;
        var->grad = param->grad ? param->grad + first : NULL;
        var->grad_written = true;
    }
    return var;
}

ts_var *ts_tape_param(ts_tape *tape, const ts_param *param) {
    return ts_tape_param_part(tape, param, 0, param->shape);
}

// Room for what a call's backward function needs; NULL when nothing is recorded. `output` may be NULL.
static void *append_call(ts_tape *tape, ts_var *output, ts_backward_fn backward, size_t call_bytes) {
    if (tape->status || !ts_tape_keeps(tape)) {
        return NULL;
    }
    tape_call *calls = ts_tape_grow(tape, tape->calls, &tape->call_capacity, tape->call_count + 1, sizeof *calls);
    if (!calls) {
        ts_tape_try(tape, TS_ERESOURCE);
        return NULL;
    }
    tape->calls = calls;
    void *context = ts_tape_object(tape, call_bytes);
    if (context) {
        tape->calls[tape->call_count++] = (tape_call){backward, context, output};
    }
    return context;
}

void *ts_tape_note(ts_tape *tape, ts_var *output, ts_backward_fn backward, size_t call_bytes) {
    if (!tape->replaying) {
        tape->calls_made++;
    }
    return tape->status || !output->needs_grad ? NULL : append_call(tape, output, backward, call_bytes);
}

void ts_var_consume(ts_var *x) {
    if (x->needs_grad && ++x->consumers > 1) {
        x->grad_dtype = TS_F32;
    }
}

ts_shape ts_var_shape_with_width(const ts_var *x, int64_t width) {
    ts_shape shape = x->value.shape;
    shape.dim[shape.ndim - 1] = width;
    return shape;
}

ts_columns ts_whole(ts_var *var) {
    return (ts_columns){var, 0, var ? ts_var_width(var) : 0};
}

const void *ts_columns_data(ts_columns x) {
    return (const char *)x.var->value.data + (size_t)x.first * ts_dtype_bytes(x.var->value.dtype);
}

// A call without an output, whose backward function only tells its owner.
typedef struct mark_call {
    ts_tape_mark_fn done;
    void *user;
    int index;
} mark_call;

static int mark_backward(ts_tape *tape, void *call) {
    const mark_call *c = call;
    return ts_tape_computes(tape) ? c->done(c->user, c->index) : 0;
}

void ts_tape_mark(ts_tape *tape, ts_tape_mark_fn done, void *user, int index) {
    mark_call *c = append_call(tape, NULL, mark_backward, sizeof *c);
    if (c) {
        *c = (mark_call){done, user, index};
    }
}

// ---- backward

void ts_tape_note_activations(ts_tape *tape) {
    const uint64_t used = ts_arena_used(tape->values) + ts_arena_used(tape->kept);
    tape->activation_bytes = used > tape->activation_bytes ? used : tape->activation_bytes;
}

int ts_tape_run_backward(ts_tape *tape, int64_t first) {
    while (tape->call_count > first) {
        const tape_call call = tape->calls[--tape->call_count];
        if (call.output && !call.output->grad_written) {
            continue;  // nothing depends on this output
        }
        TS_TRY(ts_tape_try(tape, call.backward(tape, call.context)));
        if (call.output) {
            ts_grad_drop(tape, call.output);
        }
    }
    return 0;
}

int ts_tape_backward(ts_tape *tape, ts_var *output, const void *d_output) {
    if (tape->status) {
        return tape->status;
    }
    TS_ASSERT(ts_tape_keeps(tape));
    ts_tape_note_activations(tape);
    tape->forward_bytes = tape->activation_bytes;
    if (!output->needs_grad) {
        return 0;
    }
    if (d_output || !ts_tape_computes(tape)) {
        TS_TRY(ts_tape_try(tape, ts_grad_allocate(tape, output)));
        TS_TRY(ts_tape_try(tape, ts_tape_copy(tape, output->grad, d_output, ts_tensor_bytes(&output->value))));
        output->grad_written = true;
    }
    TS_ASSERT(output->grad_written);
    tape->replaying = true;
    const int status = ts_tape_run_backward(tape, 0);
    tape->replaying = false;
    return status;
}

// ---- meter

void ts_tape_set_meter(ts_tape *tape, ts_tape_meter_fn meter, void *user) {
    tape->meter = meter;
    tape->meter_user = user;
}

int ts_tape_meter(ts_tape *tape, ts_cost cost) {
    if (tape->meter) {
        tape->meter(tape->meter_user, &cost);
    }
    return 0;
}

bool ts_tape_starts_clock(ts_tape *tape) {
    if (!tape->meter) {
        return false;
    }
    // A failure here is one of earlier work, and told again by the wait that follows this call.
    (void)ts_tape_device(tape)->finish();
    tape->clock = ts_clock_seconds();
    return true;
}

int ts_tape_stop_clock(ts_tape *tape, ts_cost cost, int status) {
    status = status ? status : ts_tape_device(tape)->finish();
    cost.seconds = ts_clock_seconds() - tape->clock;
    tape->meter(tape->meter_user, &cost);
    return status;
}

// ---- probes

void ts_tape_set_probe(ts_tape *tape, ts_tape_probe_fn probe, void *user) {
    tape->probe = probe;
    tape->probe_user = user;
}

bool ts_tape_has_probe(const ts_tape *tape) {
    return tape->probe != NULL;
}

bool ts_tape_is_watched(const ts_tape *tape) {
    return tape->probe || tape->meter;
}

void ts_tape_probe(ts_tape *tape, const ts_var *var, const char *name_format, ...) {
    if (!tape->probe || tape->status || tape->replaying || !ts_tape_computes(tape)) {
        return;
    }
    char name[256];
    va_list arguments;
    va_start(arguments, name_format);
    vsnprintf(name, sizeof name, name_format, arguments);
    va_end(arguments);
    tape->probe(tape->probe_user, name, var);
}
