// SPDX-License-Identifier: Apache-2.0
// Private to core/kernels/cuda: maps of tensors for Hopper's copy engine.
#ifndef TS_KERNELS_CUDA_TENSOR_MAP_H
#define TS_KERNELS_CUDA_TENSOR_MAP_H

#include <cuda.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Rows of heads in bf16: element (b, l, h, i) is at b * batch_stride + l * row_stride + h * head_dim + i, strides in
// elements. `data` and the strides are multiples of 16 bytes, head_dim is a multiple of 64.
typedef struct ts_head_rows {
    const void *data;
    int64_t batch, rows, heads, head_dim;
    int64_t row_stride, batch_stride;
} ts_head_rows;

// Maps boxes of `box_rows` (at most 256) rows of a head. In shared memory they are [head_dim / 64][box_rows][64], rows
// of 128 bytes in the 128-byte swizzle, zeros for rows that there are not. Coordinates of a box, innermost first: 0,
// row, 0, head, batch item.
int ts_cuda_map_head_rows(CUtensorMap *map, const ts_head_rows *from, int box_rows);

#ifdef __cplusplus
}
#endif

#endif
