// SPDX-License-Identifier: Apache-2.0
// Parameters: named tensors that live in flat arrays, so that optimizer, moving average, gradient reduction and
// checkpoints work on ranges of numbers and not on a list of tensors.
#ifndef TS_NN_PARAM_H
#define TS_NN_PARAM_H

#include <stdbool.h>
#include <stdint.h>

#include "core/tensor/tensor.h"

typedef struct ts_param {
    const char *name;  // global, as in the checkpoint: "blocks.0.attn1.to_q.weight"
    ts_shape shape;    // as in the checkpoint
    int64_t offset;    // first element in the flat arrays; a multiple of 32
    int64_t count;
    bool decay;      // weight decay applies (matrices, not norms, biases and tables)
    bool hidden;     // a matrix inside a block: may have orthogonalised momentum (train/muon.h); default false
    float lr_scale;  // learning-rate factor of this tensor; 1 unless the model says otherwise
    float *value;    // = set->value + offset
    void *operand;   // what kernels read: bf16 copy, or value itself in f32 mode
    float *grad;     // NULL when the set holds no gradients
} ts_param;

// A growing list of parameters, then, after ts_params_allocate, flat arrays. Pointers to ts_param stay valid.
typedef struct ts_params {
    int64_t count;  // number of tensors
    ts_param **item;
    int64_t total;  // elements of the flat arrays, padding included (padding stays 0)
    ts_dtype operand_dtype;
    float *value;       // [total] f32 master weights
    uint16_t *operand;  // [total] bf16, or NULL in f32 mode
    float *grad;        // [total] f32, or NULL
} ts_params;

int ts_params_open(ts_params **out);
void ts_params_close(ts_params **params);

// Declares a tensor before allocation; NULL (error text set) when memory is exhausted or the name is taken.
ts_param *ts_params_add(ts_params *params, const char *name, ts_shape shape, bool decay);
// The same of the name PREFIX NAME, into *out, as a status.
int ts_params_declare(ts_param **out, ts_params *params, const char *prefix, const char *name, ts_shape shape,
                      bool decay);
// Allocates the flat arrays (zeroed, huge pages) and sets the pointers of every item. Once.
int ts_params_allocate(ts_params *params, ts_dtype operand_dtype, bool with_gradients);
ts_param *ts_params_find(const ts_params *params, const char *name);  // NULL when absent
void ts_params_zero_grad(ts_params *params);
// operand = value rounded to bf16; no-op in f32 mode. After loading or averaging weights.
void ts_params_refresh_operands(ts_params *params);
// value = std * normal, keyed by (seed, TS_RNG_INIT, hash of the name): the same on any rank and any declaration order.
void ts_param_init_normal(ts_param *param, uint64_t seed, float std);
void ts_param_init_constant(ts_param *param, float value);

#endif
