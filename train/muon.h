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

// Scratch, of the kernels' device, for matrices of up to `elements` elements whose smaller side is up to `smaller`.
// Products are taken in `operand` precision (F32 or BF16).
int ts_muon_open(ts_muon **out, const ts_kernels *kernels, ts_dtype operand, int64_t elements, int64_t smaller);
void ts_muon_close(ts_muon **muon);
int64_t ts_muon_bytes(ts_dtype operand, int64_t elements, int64_t smaller);

// After the momentum (ts_kernels.momentum, elementwise, so slices of a matrix will do) has made u of the gradient:
// u [rows, columns] becomes the direction to subtract, scaled for tall matrices but not by lr. u = 0 stays 0.
int ts_muon_direction(ts_muon *muon, int64_t rows, int64_t columns, float *u);

#endif
