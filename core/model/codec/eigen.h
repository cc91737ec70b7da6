// SPDX-License-Identifier: Apache-2.0
// Eigenvalues and eigenvectors of a symmetric matrix, with the same bits on every processor.
#ifndef TS_MODEL_CODEC_EIGEN_H
#define TS_MODEL_CODEC_EIGEN_H

#include <stdint.h>

// a [n, n] symmetric, destroyed. value [n] falling; vector [n, n]: row i is the unit eigenvector of value i, its
// component of largest magnitude positive. Error: a few n * 2^-52 * |a|.
int ts_eigen_symmetric(double *a, int64_t n, double *value, double *vector);

#endif
