// SPDX-License-Identifier: Apache-2.0
// Orthogonalised momentum for the matrices inside the blocks (Jordan et al. 2024, "Muon: an optimizer for hidden layers
// in neural networks"; scaling of tall matrices as there).
//
//   m = momentum * m + g;   u = g + momentum * m;   W -= lr * sqrt(max(1, rows / columns)) * orthogonal(u)
//
// orthogonal(u) is u with its singular values brought near 1, by five steps of a quintic Newton-Schulz iteration:
//   X <- a X + (b A + c A A) X,  A = X X^T,  from X = u / |u|
// On the shapes world it learns far sooner than AdamW: configs/shapes-model/README.md has the comparison.
#ifndef TS_TRAIN_MUON_H
#define TS_TRAIN_MUON_H

#include <stdint.h>

#include "core/kernels/kernels.h"

typedef struct ts_muon ts_muon;

// Scratch for matrices of up to `elements` elements whose smaller side is up to `smaller`. Products are taken in
// `operand` precision (F32 or BF16).
int ts_muon_open(ts_muon **out, const ts_kernels *kernels, ts_dtype operand, int64_t elements, int64_t smaller);
void ts_muon_close(ts_muon **muon);

// moment[i] = momentum * moment[i] + grad[i] * grad_scale, for n numbers.
void ts_muon_advance(const float *grad, float grad_scale, float momentum, int64_t n, float *moment);

// update [rows, columns] `=` the direction to subtract, scaled for tall matrices but not by lr, from the gradient and
// the moment advanced with it. Not collective. A zero gradient with zero moment gives a zero update.
int ts_muon_direction(ts_muon *muon, const float *grad, float grad_scale, float momentum, int64_t rows, int64_t columns,
                      const float *moment, float *update);

#endif
