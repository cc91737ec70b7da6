// SPDX-License-Identifier: Apache-2.0
// Scopes: blocks whose memory is released when they are done, and which backward runs a second time.
//
// With elementwise recompute the two runs of a block share what is dear to compute. The first run records nothing, but
// memory asked for through ts_tape_alloc_kept comes from an arena that outlives the block; the second run is handed the
// same memory in the same order, still full, and leaves those kernels and messages out. Blocks go backward in the
// reverse of the order they ran in, so that this arena is a stack too.
#include "core/nn/tape_private.h"

enum { MAX_SCOPE_INPUTS = 8 };

// ---- what is kept

static int append_keep(ts_tape *tape, tape_block block) {
    tape_block *keep = ts_tape_grow(tape, tape->keep, &tape->keep_capacity, tape->keep_count + 1, sizeof *keep);
    if (!keep) {
        return TS_ERESOURCE;
    }
    tape->keep = keep;
    tape->keep[tape->keep_count++] = block;
    return 0;
}

// A block of the kept arena, beside the list. Where nothing is computed addresses are offsets, of which every arena has
// the same ones: a bit of its own keeps those of this arena apart, for is_kept.
static void *take_kept(ts_tape *tape, size_t bytes) {
    char *data = ts_arena_alloc(tape->kept, bytes);
    return data && !ts_tape_computes(tape) ? (void *)((uintptr_t)data | (uintptr_t)1 << 62) : data;
}

void *ts_tape_alloc_kept(ts_tape *tape, size_t bytes, bool *ready) {
    *ready = tape->pass == PASS_AGAIN;
    if (tape->pass == PASS_PLAIN) {
        return ts_tape_alloc(tape, bytes);
    }
    if (tape->pass == PASS_AGAIN) {
        TS_ASSERT(tape->keep_next < tape->keep_count && tape->keep[tape->keep_next].bytes == bytes);
        return tape->keep[tape->keep_next++].data;
    }
    void *data = take_kept(tape, bytes);
    return ts_tape_try(tape, data ? append_keep(tape, (tape_block){data, bytes}) : TS_ERESOURCE) ? NULL : data;
}

ts_var *ts_tape_new_kept(ts_tape *tape, ts_dtype dtype, ts_shape shape, bool needs_grad, bool *ready) {
    void *data = ts_tape_alloc_kept(tape, (size_t)ts_shape_count(shape) * ts_dtype_bytes(dtype), ready);
    ts_var *var = data ? ts_tape_var(tape, (ts_tensor){dtype, shape, data}, needs_grad) : NULL;
    if (var) {
        var->borrowed = tape->pass != PASS_PLAIN;
    }
    return var;
}

static bool is_kept(const ts_tape *tape, int64_t first, const void *data) {
    for (int64_t i = first; i < tape->keep_count; i++) {
        if (tape->keep[i].data == data) {
            return true;
        }
    }
    return false;
}

// ---- inputs

// Inputs as the block sees them while it is recomputed: same memory, never overwritten.
static int shield_inputs(ts_tape *tape, ts_var *const *inputs, int count, ts_var **shielded) {
    for (int i = 0; i < count; i++) {
        shielded[i] = NULL;
        if (!inputs[i]) {
            continue;
        }
        shielded[i] = ts_tape_object(tape, sizeof(ts_var));
        if (!shielded[i]) {
            return tape->status;
        }
        *shielded[i] = *inputs[i];
        shielded[i]->borrowed = true;
    }
    return 0;
}

// ---- the second run

typedef struct scope_call {
    ts_block_fn block;
    const void *context;
    ts_var *input[MAX_SCOPE_INPUTS];
    int input_count;
    ts_var *output;
    ts_recompute recompute;
    int64_t keep_first;       // its part of the kept list reaches from here to the end
    ts_arena_mark kept_mark;  // what the kept arena held before the block
} scope_call;

// Runs the block, recorded. NULL after a failure.
static ts_var *run_again(ts_tape *tape, const scope_call *c, ts_var *const *inputs) {
    if (c->recompute == TS_RECOMPUTE_ELEMENTWISE) {
        tape->pass = PASS_AGAIN;
        tape->keep_next = c->keep_first;
    }
    ts_var *output = c->block(tape, c->context, inputs);
    TS_ASSERT(tape->status || tape->pass == PASS_PLAIN || tape->keep_next == tape->keep_count);
    tape->pass = PASS_PLAIN;
    return tape->status ? NULL : output;
}

static int scope_backward(ts_tape *tape, void *call) {
    scope_call *c = call;
    const ts_arena_mark values = ts_arena_save(tape->values), objects = ts_arena_save(tape->objects);
    const int64_t first = tape->call_count;
    ts_var *inputs[MAX_SCOPE_INPUTS];
    TS_TRY(shield_inputs(tape, c->input, c->input_count, inputs));
    ts_var *output = run_again(tape, c, inputs);
    if (!output) {
        return tape->status;
    }
    ts_tape_note_activations(tape);
    if (output->needs_grad) {
        TS_TRY(ts_grad_pass(tape, c->output, output));
        TS_TRY(ts_tape_run_backward(tape, first));
    }
    for (int i = 0; i < c->input_count; i++) {
        if (inputs[i]) {
            c->input[i]->grad = inputs[i]->grad;
            c->input[i]->grad_dtype = inputs[i]->grad_dtype;
            c->input[i]->grad_written = inputs[i]->grad_written;
        }
    }
    ts_arena_release(tape->values, values);
    ts_arena_release(tape->objects, objects);
    tape->keep_count = c->keep_first;
    ts_arena_release(tape->kept, c->kept_mark);
    return 0;
}

// ---- the first run

// Calls the block with everything but its output released. The output takes inputs[0]'s memory where that may be
// overwritten, else new memory.
static ts_var *released_scope(ts_tape *tape, ts_block_fn block, const void *context, ts_var *const *inputs) {
    const ts_var *like = inputs[0];
    ts_tensor result = like->value;
    if (like->borrowed) {
        result.data = ts_tape_alloc(tape, ts_tensor_bytes(&result));
    }
    ts_var *out = result.data ? ts_tape_var(tape, result, false) : NULL;
    if (!out) {
        return NULL;
    }
    const ts_arena_mark values = ts_arena_save(tape->values), objects = ts_arena_save(tape->objects);
    const ts_var *made = block(tape, context, inputs);
    if (tape->status) {
        return NULL;
    }
    TS_ASSERT(made->value.dtype == result.dtype && ts_shape_equal(made->value.shape, result.shape));
    if (made->value.data != result.data &&
        ts_tape_try(tape, ts_tape_copy(tape, result.data, made->value.data, ts_tensor_bytes(&result)))) {
        return NULL;
    }
    ts_arena_release(tape->values, values);
    ts_arena_release(tape->objects, objects);
    return out;
}

// Runs the block with nothing recorded and its inputs left as they are, and fills out->value, whose memory comes from
// the kept arena: it is the block's own where that was kept, else a copy.
static int run_first(ts_tape *tape, const scope_call *c, ts_var *const *inputs, ts_var *out) {
    const ts_arena_mark values = ts_arena_save(tape->values), objects = ts_arena_save(tape->objects);
    ts_var *seen[MAX_SCOPE_INPUTS];
    TS_TRY(shield_inputs(tape, inputs, c->input_count, seen));
    const ts_tape_mode mode = tape->mode;
    tape->mode = mode == TS_TAPE_RECORD ? TS_TAPE_RUN : TS_TAPE_COUNT_RUN;
    tape->pass = c->recompute == TS_RECOMPUTE_ELEMENTWISE ? PASS_FIRST : PASS_PLAIN;
    const ts_var *made = c->block(tape, c->context, seen);
    tape->mode = mode;
    tape->pass = PASS_PLAIN;
    if (tape->status) {
        return tape->status;
    }
    out->value = made->value;
    if (!is_kept(tape, c->keep_first, made->value.data)) {
        const size_t bytes = ts_tensor_bytes(&made->value);
        out->value.data = take_kept(tape, bytes);
        if (!out->value.data) {
            return ts_tape_try(tape, TS_ERESOURCE);
        }
        TS_TRY(ts_tape_try(tape, ts_tape_copy(tape, out->value.data, made->value.data, bytes)));
    }
    ts_arena_release(tape->values, values);
    ts_arena_release(tape->objects, objects);
    return 0;
}

static ts_var *repeated_scope(ts_tape *tape, const scope_call *scope, ts_var *const *inputs) {
    ts_var *out = ts_tape_var(tape, inputs[0]->value, true);
    scope_call *c = out ? ts_tape_note(tape, out, scope_backward, sizeof *c) : NULL;
    if (!c) {
        return NULL;
    }
    *c = *scope;
    c->output = out;
    c->keep_first = tape->keep_count;
    c->kept_mark = ts_arena_save(tape->kept);
    for (int i = 0; i < c->input_count; i++) {
        c->input[i] = inputs[i];
        if (inputs[i]) {
            // The block may read an input several times, which is not known before it runs again.
            ts_var_consume(inputs[i]);
            ts_var_consume(inputs[i]);
        }
    }
    return run_first(tape, c, inputs, out) ? NULL : out;
}

ts_var *ts_tape_scope(ts_tape *tape, ts_block_fn block, const void *context, ts_var *const *inputs, int input_count,
                      ts_recompute recompute) {
    if (tape->status) {
        return NULL;
    }
    TS_ASSERT(input_count >= 1 && input_count <= MAX_SCOPE_INPUTS);
    if (!ts_tape_keeps(tape)) {
        return released_scope(tape, block, context, inputs);
    }
    // A scope inside a block that runs a second time is part of that block.
    if (recompute == TS_RECOMPUTE_NONE || tape->pass != PASS_PLAIN) {
        return block(tape, context, inputs);
    }
    const scope_call scope = {.block = block, .context = context, .input_count = input_count, .recompute = recompute};
    return repeated_scope(tape, &scope, inputs);
}
