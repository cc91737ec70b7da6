// SPDX-License-Identifier: Apache-2.0
// Linear layers:  y = x W^T + b      x [.., in], W [out, in], b [out], y [.., out]
//
// Operands are bf16 or f32 as the tape says, or f32 always for a `precise` layer (the time path). Accumulation, bias
// and gradients of parameters are f32.
//
// Several layers of one input (to_q, to_k, to_v) can be joined into one ts_linear whose output has their columns side
// by side. Declared one after the other their weights lie side by side in memory and one GEMM serves all of them; where
// the padding between parameters forbids it, each is a GEMM of its own into its columns.
//
// Over the tensor axis of the parameters' mesh (Shoeybi et al. 2019, "Megatron-LM") a layer may be cut: by output
// features, so that each rank makes columns of y from all of x; or by input features, so that each rank makes a part of
// the sum from its columns of x, and ts_nn_linear_scatter adds the parts up. The bias of the latter is held by all and
// enters the part of tensor rank 0 alone. Parts may be uneven, and empty.
#ifndef TS_NN_LINEAR_H
#define TS_NN_LINEAR_H

#include "core/nn/rows.h"

enum { TS_LINEAR_MAX_PIECES = 3 };

// One GEMM: consecutive output columns.
typedef struct ts_linear_piece {
    const ts_param *weight, *bias;  // of the first layer in the piece; bias NULL: none
    int64_t first, out;             // columns [first, first + out)
} ts_linear_piece;

typedef struct ts_linear {
    int64_t in, out;  // of this rank's part
    bool precise;
    bool again;  // elementwise recompute makes the output again rather than keep it: a cheap product
    int pieces;
    ts_linear_piece piece[TS_LINEAR_MAX_PIECES];
    int layers;  // as declared: what initialisation and checkpoints see
    ts_param *weight[TS_LINEAR_MAX_PIECES], *bias[TS_LINEAR_MAX_PIECES];
} ts_linear;

// What a rank of the tensor axis has of a layer.
typedef enum { TS_LINEAR_WHOLE, TS_LINEAR_CUT_OUT, TS_LINEAR_CUT_IN } ts_linear_cut;

typedef struct ts_linear_shape {
    int64_t in, features;  // of the whole
    bool bias;
    ts_linear_cut cut;
    int64_t unit;  // features that are never parted: head_dim, or 1
} ts_linear_shape;

// Declares PREFIX.NAME.weight [out, in] and PREFIX.NAME.bias [out].
int ts_linear_open(ts_linear *out, ts_params *params, const char *prefix, const char *name, int64_t in,
                   int64_t features, bool bias);
// Declares `count` layers of the same sizes, joined.
int ts_linear_open_joined(ts_linear *out, ts_params *params, const char *prefix, const char *const *names, int count,
                          int64_t in, int64_t features, bool bias);
// The same of layers that may be cut; each of joined layers is cut for itself.
int ts_linear_open_as(ts_linear *out, ts_params *params, const char *prefix, const char *const *names, int count,
                      const ts_linear_shape *shape);
// Weights normal with deviation gain * sqrt(2 / (in + out)) (Glorot & Bengio 2010), biases 0.
int ts_linear_init(ts_linear *linear, uint64_t seed, double gain);
// Marks the weights as matrices inside a block (ts_param.hidden).
void ts_linear_mark_hidden(ts_linear *linear);
// Makes the layer precise, before ts_params_allocate.
void ts_linear_mark_precise(ts_linear *linear);

// y in dtype_y (F32, or the tape's operand dtype). Of a layer cut by input features it is one part of the sum.
ts_var *ts_nn_linear(ts_tape *tape, const ts_linear *linear, ts_var *x, ts_dtype dtype_y);
// gelu_tanh(x W^T + b), in the layer's operand dtype.
ts_var *ts_nn_linear_gelu(ts_tape *tape, const ts_linear *linear, ts_var *x);
// Own rows [own, out] of the sum, over the ranks of rows.comm, of x W^T + b; x [rows.total, in] a layer's part. In the
// operand dtype, summed in f32 and rounded once. Collective: a reduce-scatter forward, an all-gather backward (bytes:
// core/nn/rows.h). Elementwise recompute keeps the result. Reproducible, forward: an all-to-all of x and an all-gather
// of W give own rows of x and the whole of W instead.
ts_var *ts_nn_linear_scatter(ts_tape *tape, const ts_linear *linear, ts_var *x, ts_rows rows);

#endif
