// SPDX-License-Identifier: Apache-2.0
// Parameters: named tensors that live in flat arrays, so that optimizer, moving average, gradient reduction and
// checkpoints work on ranges of numbers and not on a list of tensors. The arrays are memory of the device of the set's
// kernel table (core/base/device.h); the host reads and writes them with ts_param_read and ts_param_write.
//
// On a mesh with a tensor axis a parameter may be cut along one dimension: this rank holds `shape` of `whole`. The flat
// order puts parameters that are alike side by side: first those that every rank holds whole, then those that are cut;
// of each, group after group; in a group what GEMMs read as operands, then what is always f32. Such a stretch is a
// span, the unit of gradient reduction and of the sharded optimizer.
#ifndef TS_NN_PARAM_H
#define TS_NN_PARAM_H

#include <stdbool.h>
#include <stdint.h>

#include "core/comm/mesh.h"
#include "core/kernels/kernels.h"
#include "core/tensor/piece.h"
#include "core/tensor/tensor.h"

typedef struct ts_param {
    const char *name;   // global, as in the checkpoint: "blocks.0.attn1.to_q.weight"
    ts_shape shape;     // of the part that this rank holds
    ts_shape whole;     // as in the checkpoint
    int cut;            // dimension that is cut over the tensor axis, or -1: this rank holds the whole
    int64_t cut_first;  // where its part begins along that dimension
    int64_t unit;       // indices of it that stay together
    int64_t offset;     // first element in the flat arrays, a multiple of 32; final after ts_params_allocate
    int64_t count;      // of the part; may be 0
    int group;          // 0, or that of the block it belongs to
    bool is_operand;    // read by GEMMs in the operand dtype; else always read as f32
    bool decay;         // weight decay applies (matrices, not norms, biases and tables)
    bool hidden;        // a matrix inside a block: may have orthogonalised momentum (train/muon.h); default false
    float lr_scale;     // learning-rate factor of this tensor; 1 unless the model says otherwise
    // device memory
    float *value;   // NULL once ts_params_settle dropped it
    void *operand;  // what kernels read: bf16 of what is_operand says in bf16 mode, else value
    float *grad;    // that kernels add to; NULL when the set holds no gradients
} ts_param;

// A stretch of the flat arrays, padding included. Every rank lists the same ones; a cut span is empty where this rank's
// slices are.
typedef struct ts_span {
    int64_t first, count;
    int group;
    bool cut, is_operand;
    // [count] each, device memory
    float *value;         // NULL once ts_params_settle dropped it
    uint16_t *operand;    // bf16, or NULL where kernels read the value
    float *grad;          // that kernels add to; the blocks share it when gradients are kept in bf16
    uint16_t *kept_grad;  // bf16 sums, or NULL
} ts_span;

// A growing list of parameters, then, after ts_params_allocate, flat arrays. Pointers to ts_param stay valid.
typedef struct ts_params {
    int64_t count;              // number of tensors
    ts_param **item;            // as declared; after ts_params_allocate in flat order
    int64_t total;              // elements of the flat arrays, padding included (padding stays 0)
    const ts_mesh *mesh;        // borrowed; set before the first declaration. NULL: one rank
    const ts_kernels *kernels;  // borrowed; set before ts_params_allocate, which takes the CPU's for NULL
    int groups;                 // number of groups, 1 + blocks
    ts_span *span;              // [spans] in flat order, after ts_params_place
    int spans;
    ts_dtype operand_dtype, grad_dtype;
    // device memory
    float *value;         // [total] f32; once settled in bf16 mode only what is no operand, and NULL here
    uint16_t *operand;    // bf16 of the operands' spans, one after another, or NULL
    float *grad;          // [total] f32; NULL without gradients, or when they are kept in bf16
    float *settled;       // owned by storage: values left after ts_params_settle ..
    float *shared_grad;   // .. what kernels add gradients to when they are kept in bf16 ..
    uint16_t *kept_grad;  // [total] .. and their sums
} ts_params;

int ts_params_open(ts_params **out);
void ts_params_close(ts_params **params);

// Declares a tensor before allocation; NULL (error text set) when memory is exhausted or the name is taken.
ts_param *ts_params_add(ts_params *params, const char *name, ts_shape shape, bool decay);
// The same of the name PREFIX NAME, into *out, as a status.
int ts_params_declare(ts_param **out, ts_params *params, const char *prefix, const char *name, ts_shape shape,
                      bool decay);
// The same of a tensor that GEMMs read (is_operand), or that is cut along dimension `cut` (-1: not), which is split
// over the tensor axis in units of `unit` indices (a head's columns, say).
typedef struct ts_declaration {
    ts_shape whole;
    bool decay, is_operand;
    int cut;
    int64_t unit;
} ts_declaration;
int ts_params_declare_as(ts_param **out, ts_params *params, const char *prefix, const char *name,
                         const ts_declaration *as);
// What is declared between the two belongs to a group of its own; its number is returned.
int ts_params_begin_group(ts_params *params);
void ts_params_end_group(ts_params *params);
// Lays spans and items out without memory, to be counted and planned; ts_params_allocate does it otherwise. Once.
int ts_params_place(ts_params *params);
// Allocates the flat arrays (zeroed; on the host huge pages) on the device of the kernel table and sets the pointers of
// every item. `with_gradients` adds f32 gradients. Once.
int ts_params_allocate(ts_params *params, ts_dtype operand_dtype, bool with_gradients);
ts_param *ts_params_find(const ts_params *params, const char *name);  // NULL when absent
// The device that holds the arrays.
static inline const ts_device *ts_params_device(const ts_params *params) {
    return params->kernels ? params->kernels->device : &ts_device_host;
}
// operand = value rounded to bf16; no-op in f32 mode. After loading or averaging weights, before ts_params_settle.
int ts_params_refresh_operands(ts_params *params);
// In bf16 mode gives back the f32 values of operands: 2 bytes a parameter are left, 4 of the few that kernels read in
// f32. For inference, and for training, whose optimizer keeps f32 values of its own. No-op in f32 mode.
int ts_params_settle(ts_params *params);

// ---- gradients
// Kernels add to f32 gradients. Kept in F32 they add to the sums themselves. Kept in BF16 (2 bytes a parameter) they
// add to memory that the blocks share, and ts_params_fold_grad adds that to the sums, when a group's backward pass is
// done and before that of the next one begins.
int ts_params_allocate_grad(ts_params *params, ts_dtype kept);
int ts_params_zero_grad(ts_params *params);
int ts_params_fold_grad(ts_params *params, int group);  // no-op in F32
// Elements of the shared memory: those of group 0 and of the largest other group.
int64_t ts_params_shared_grad_count(const ts_params *params);
// Where elements [first, first + count) of this rank's part lie in the whole tensor. Returns the number of pieces.
int ts_param_pieces(const ts_param *param, int64_t first, int64_t count, ts_piece piece[TS_MAX_PIECES]);

// ---- values, from and to host memory
// Elements [first, first + count) of this rank's part, which must not be settled away. Operands are not refreshed.
int ts_param_write(const ts_param *param, int64_t first, int64_t count, const float *from);
int ts_param_read(const ts_param *param, int64_t first, int64_t count, float *to);
// The same of the gradient.
int ts_param_read_grad(const ts_param *param, int64_t first, int64_t count, float *to);

// value = std * normal, keyed by (seed, TS_RNG_INIT, hash of the name) and the place in the whole tensor: the same on
// any rank, mesh, device and declaration order.
int ts_param_init_normal(ts_param *param, uint64_t seed, float std);
int ts_param_init_constant(ts_param *param, float value);

#endif
