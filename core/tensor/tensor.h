// SPDX-License-Identifier: Apache-2.0
// Tensors: a typed view of memory, row-major, last dimension fastest.
//
// Layouts used throughout: video and latents [B, T, H, W, C]; tokens [B, L, D] with L in (t, h, w) order, w fastest.
#ifndef TS_TENSOR_TENSOR_H
#define TS_TENSOR_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/base/arena.h"

enum { TS_MAX_DIMS = 8 };

typedef enum { TS_F32, TS_BF16, TS_F16, TS_F64, TS_I64, TS_I32, TS_U16, TS_U8, TS_BOOL } ts_dtype;

size_t ts_dtype_bytes(ts_dtype dtype);
const char *ts_dtype_name(ts_dtype dtype);  // safetensors spelling: "F32", "BF16", ...

typedef struct ts_shape {
    int ndim;
    int64_t dim[TS_MAX_DIMS];
} ts_shape;

typedef struct ts_tensor {
    ts_dtype dtype;
    ts_shape shape;
    void *data;  // contiguous, borrowed: the arena, the file map or the parameter set owns it
} ts_tensor;

#define TS_SHAPE(...)                                                                                                  \
    ((ts_shape){.ndim = (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), .dim = {__VA_ARGS__}})

int64_t ts_shape_count(ts_shape shape);  // product; 1 for a scalar
bool ts_shape_equal(ts_shape a, ts_shape b);
// "[2, 16, 3]" into out; returns out.
const char *ts_shape_text(ts_shape shape, char *out, size_t out_bytes);

size_t ts_tensor_bytes(const ts_tensor *tensor);
// Uninitialised tensor in `arena`; .data is NULL when memory is exhausted (error text set).
ts_tensor ts_tensor_new(ts_arena *arena, ts_dtype dtype, ts_shape shape);

// bf16 is the upper half of a float; rounding is to nearest even, NaN stays NaN.
static inline float ts_bf16_to_f32(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline uint16_t ts_f32_to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((bits >> 16) | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
float ts_f16_to_f32(uint16_t h);

// Converts n elements between F32, BF16, F16 (to F32 only), F64; any alignment. Host memory.
int ts_convert(void *to, ts_dtype to_dtype, const void *from, ts_dtype from_dtype, int64_t n);

#endif
