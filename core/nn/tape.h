// SPDX-License-Identifier: Apache-2.0
// The tape: model code is a C function over nn calls; the tape's mode says what a call does.
//
//   run          compute, keep nothing: sampling
//   record       compute, keep what backward needs, note the call: training
//   count        compute nothing, allocate nothing: exact shapes, bytes and FLOPs of a recorded step with its backward
//   count run    the same of a run
//
// On an imagined mesh (core/comm/mesh.h) nothing is sent in any mode: a recorded step is then a rehearsal, which
// computes as one of its ranks would, from whatever is in memory, and counts what it would send.
//
// Variables live in the tape's arenas, memory of its kernel table's device, until ts_tape_reset. Errors are sticky:
// after a failure every call is a no-op that returns NULL and accepts NULL, and ts_tape_status tells the first error,
// so model code reads as equations.
//
// Gradient contract: parameters `+=`; a variable's gradient is `=` by its first consumer in reverse order and `+=` by
// later ones. The gradient of an intermediate variable lives only until the call that made the variable has gone
// backward; the gradients of inputs stay until reset.
#ifndef TS_NN_TAPE_H
#define TS_NN_TAPE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/kernels/cost.h"
#include "core/nn/param.h"

typedef enum { TS_TAPE_RUN, TS_TAPE_RECORD, TS_TAPE_COUNT, TS_TAPE_COUNT_RUN } ts_tape_mode;

typedef struct ts_tape ts_tape;

typedef struct ts_var {
    ts_tensor value;
    void *grad;           // shape of value; set once backward reached the variable (grad_written)
    ts_dtype grad_dtype;  // that of value; F32 for a bf16 variable with several consumers, whose sum needs the digits
    bool needs_grad;
    bool grad_written;  // false: the next backward contribution assigns
    bool borrowed;      // the value is the caller's, or is read again later: never overwritten in place
    int consumers;      // calls that will contribute to the gradient
} ts_var;

typedef struct ts_tape_stats {
    double flops;               // forward, multiply-add = 2, GEMM and attention
    uint64_t forward_bytes;     // values that the forward pass leaves to the backward pass
    uint64_t activation_bytes;  // values at the peak: the same, or these with those of a block that is made again
    uint64_t peak_bytes;        // values and gradients, peak since open
    int64_t calls;
} ts_tape_stats;

// `operand_dtype` is the dtype of GEMM and attention inputs: F32 or BF16. `kernels` may be NULL in the count modes,
// which then count for the host.
int ts_tape_open(ts_tape **out, const ts_kernels *kernels, ts_tape_mode mode, ts_dtype operand_dtype);
void ts_tape_close(ts_tape **tape);
void ts_tape_reset(ts_tape *tape);                       // forgets variables and calls, keeps the memory
int ts_tape_set_mode(ts_tape *tape, ts_tape_mode mode);  // only right after reset
int ts_tape_status(const ts_tape *tape);                 // first error since reset
ts_tape_stats ts_tape_get_stats(const ts_tape *tape);
// What steps need of memory, the most since open: bytes of each arena, entries of each list.
typedef struct ts_tape_room {
    size_t objects, values, kept, gradients;
    int64_t calls, pool, keep;
} ts_tape_room;
ts_tape_room ts_tape_get_room(const ts_tape *tape);
// Reserves room, as a tape in count mode found it: steps that need no more ask the system for nothing. Right after open
// or reset.
int ts_tape_reserve(ts_tape *tape, const ts_tape_room *room);
uint64_t ts_tape_system_calls(const ts_tape *tape);  // how often memory was asked of the system
ts_arena *ts_tape_arena(ts_tape *tape);              // device memory, for inputs that live as long as the step
// Zeroed host memory until reset, real in every mode: row maps, a block's context. NULL after a failure.
void *ts_tape_object(ts_tape *tape, size_t bytes);
// The device's copy of host memory, as lasting as the tape's values; on the host it is that memory itself, which must
// last as long: ts_tape_object's does. `host` may be changed at once on other devices. NULL after a failure.
void *ts_tape_upload(ts_tape *tape, const void *host, size_t bytes);
const ts_kernels *ts_tape_kernels(const ts_tape *tape);
const ts_device *ts_tape_device(const ts_tape *tape);
ts_dtype ts_tape_operand_dtype(const ts_tape *tape);

// An input: copies nothing, borrows `tensor.data`, device memory, until reset. With needs_grad its .grad is filled by
// backward.
ts_var *ts_tape_input(ts_tape *tape, ts_tensor tensor, bool needs_grad);
// A parameter, or elements [first, first + count(shape)) of it, as an f32 variable whose gradient is the parameter's.
ts_var *ts_tape_param(ts_tape *tape, const ts_param *param);
ts_var *ts_tape_param_part(ts_tape *tape, const ts_param *param, int64_t first, ts_shape shape);

// Runs backward from `output` with d_output (dtype and shape of output, device memory; NULL means output.grad was set
// by a loss). Record mode only. Gradients of parameters are added into param->grad.
int ts_tape_backward(ts_tape *tape, ts_var *output, const void *d_output);

// What is kept of a block for its backward pass, and what is computed a second time.
typedef enum {
    TS_RECOMPUTE_NONE,         // everything is kept
    TS_RECOMPUTE_ELEMENTWISE,  // what is dear to compute is kept, what is cheap is made again: see ts_tape_new_kept
    TS_RECOMPUTE_BLOCK         // only the block's output is kept
} ts_recompute;

// A scope: `block` is a pure function of its inputs (at most 8, some may be NULL; the first has the shape and dtype of
// the output) and of what `context` points to, which must outlive the backward pass. When nothing is recorded, only the
// block's output stays in memory. When recording, what `recompute` says is kept, and backward runs the block again,
// recorded, before it goes through it; the output's value is gone after that.
typedef ts_var *(*ts_block_fn)(ts_tape *tape, const void *context, ts_var *const *inputs);
ts_var *ts_tape_scope(ts_tape *tape, ts_block_fn block, const void *context, ts_var *const *inputs, int input_count,
                      ts_recompute recompute);

// When backward passes this place, every call recorded after it has gone backward: the gradients of parameters that are
// used only after it are final. `done` is called then; a failure ends the backward pass. Nothing in the other modes.
typedef int (*ts_tape_mark_fn)(void *user, int index);
void ts_tape_mark(ts_tape *tape, ts_tape_mark_fn done, void *user, int index);

// Hears of every kernel call of a step, forward and backward, recomputed ones too: of a counted one what it would cost,
// of a computed one its seconds as well, for which the device is waited for before and after.
typedef void (*ts_tape_meter_fn)(void *user, const ts_cost *cost);
void ts_tape_set_meter(ts_tape *tape, ts_tape_meter_fn meter, void *user);

// A named value, device memory, that `ts_tape_probe_fn` sees as it is made: how parity checks and debuggers look inside
// a model.
typedef void (*ts_tape_probe_fn)(void *user, const char *name, const ts_var *var);
void ts_tape_set_probe(ts_tape *tape, ts_tape_probe_fn probe, void *user);
bool ts_tape_has_probe(const ts_tape *tape);
bool ts_tape_is_watched(const ts_tape *tape);  // has a meter or a probe, which wait for the device
void ts_tape_probe(ts_tape *tape, const ts_var *var, const char *name_format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
