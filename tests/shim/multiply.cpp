// SPDX-License-Identifier: Apache-2.0
#include "tests/shim/multiply.h"

#include <algorithm>
#include <vector>

extern "C" {
#include "core/tensor/tensor.h"
}

namespace shim {

float matrix::at(int64_t i, int64_t j) const {
    const int64_t place = i * row + j * column;
    return bf16 ? ts_bf16_to_f32(((const uint16_t *)data)[place]) : ((const float *)data)[place];
}

namespace {
constexpr int64_t ROWS = 16, COLUMNS = 4;  // of what is summed in registers
}  // namespace

// Rows of a, or columns of b, in groups: [groups][k][width] with zeros behind the last.
static std::vector<float> pack(const matrix &x, bool by_row, int64_t count, int64_t k, int64_t width) {
    const int64_t groups = (count + width - 1) / width;
    std::vector<float> packed((size_t)(groups * k * width));
#pragma omp parallel for schedule(static) if (groups * k > 4096)
    for (int64_t g = 0; g < groups; g++) {
        float *to = packed.data() + g * k * width;
        const int64_t here = std::min(width, count - g * width);
        for (int64_t p = 0; p < k; p++) {
            for (int64_t i = 0; i < here; i++) {
                to[p * width + i] = by_row ? x.at(g * width + i, p) : x.at(p, g * width + i);
            }
        }
    }
    return packed;
}

#if defined(__x86_64__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
__attribute__((target_clones("default", "arch=haswell"), optimize("O3")))
#endif
static void
multiply_group(const float *a, const float *b, int64_t k, float (*sum)[ROWS]) {
    float s[COLUMNS][ROWS] = {};
    for (int64_t p = 0; p < k; p++) {
        for (int64_t j = 0; j < COLUMNS; j++) {
            for (int64_t i = 0; i < ROWS; i++) {
                s[j][i] += a[p * ROWS + i] * b[p * COLUMNS + j];
            }
        }
    }
    std::copy(&s[0][0], &s[0][0] + COLUMNS * ROWS, &sum[0][0]);
}

void multiply(const matrix &a, const matrix &b, int64_t m, int64_t n, int64_t k, float *out) {
    const std::vector<float> left = pack(a, true, m, k, ROWS), right = pack(b, false, n, k, COLUMNS);
    const int64_t row_groups = (m + ROWS - 1) / ROWS, column_groups = (n + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for schedule(static) if (m * n * k > 100000)
    for (int64_t g = 0; g < column_groups; g++) {
        for (int64_t r = 0; r < row_groups; r++) {
            float sum[COLUMNS][ROWS];
            multiply_group(left.data() + r * k * ROWS, right.data() + g * k * COLUMNS, k, sum);
            for (int64_t j = g * COLUMNS; j < std::min(n, (g + 1) * COLUMNS); j++) {
                std::copy(sum[j % COLUMNS], sum[j % COLUMNS] + std::min(ROWS, m - r * ROWS), out + j * m + r * ROWS);
            }
        }
    }
}

}  // namespace shim
