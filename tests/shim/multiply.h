// SPDX-License-Identifier: Apache-2.0
// Products of small matrices, quick enough for whole training steps in tests.
#ifndef TS_SHIM_MULTIPLY_H
#define TS_SHIM_MULTIPLY_H

#include <cstddef>
#include <cstdint>

namespace shim {

// A matrix of f32 or bf16: element (i, j) is at i * row + j * column.
struct matrix {
    const void *data;
    bool bf16;
    int64_t row, column;

    float at(int64_t i, int64_t j) const;
};

// out [n][m] (the sum for row i and column j at j * m + i) = a [m, k] b [k, n], summed in f32, in order of k.
void multiply(const matrix &a, const matrix &b, int64_t m, int64_t n, int64_t k, float *out);

}  // namespace shim

#endif
