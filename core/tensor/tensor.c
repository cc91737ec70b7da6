// SPDX-License-Identifier: Apache-2.0
#include "core/tensor/tensor.h"

#include <stdio.h>

#include "core/base/status.h"

static const struct {
    size_t bytes;
    const char *name;
} dtypes[] = {
    [TS_F32] = {4, "F32"}, [TS_BF16] = {2, "BF16"}, [TS_F16] = {2, "F16"},
    [TS_F64] = {8, "F64"}, [TS_I64] = {8, "I64"},   [TS_I32] = {4, "I32"},
    [TS_U16] = {2, "U16"}, [TS_U8] = {1, "U8"},     [TS_BOOL] = {1, "BOOL"},
};

size_t ts_dtype_bytes(ts_dtype dtype) {
    return dtypes[dtype].bytes;
}

const char *ts_dtype_name(ts_dtype dtype) {
    return dtypes[dtype].name;
}

// Saturates: shapes come from files, and an allocation of INT64_MAX fails where a wrapped product would not.
int64_t ts_shape_count(ts_shape shape) {
    int64_t count = 1;
    bool empty = false, too_large = false;
    for (int i = 0; i < shape.ndim; i++) {
        empty |= shape.dim[i] == 0;
        too_large |= __builtin_mul_overflow(count, shape.dim[i], &count);
    }
    return empty ? 0 : too_large ? INT64_MAX : count;
}

bool ts_shape_equal(ts_shape a, ts_shape b) {
    return a.ndim == b.ndim && memcmp(a.dim, b.dim, (size_t)a.ndim * sizeof a.dim[0]) == 0;
}

const char *ts_shape_text(ts_shape shape, char *out, size_t out_bytes) {
    size_t used = (size_t)snprintf(out, out_bytes, "[");
    for (int i = 0; i < shape.ndim && used < out_bytes; i++) {
        used += (size_t)snprintf(out + used, out_bytes - used, "%s%lld", i ? ", " : "", (long long)shape.dim[i]);
    }
    if (used < out_bytes) {
        snprintf(out + used, out_bytes - used, "]");
    }
    return out;
}

size_t ts_tensor_bytes(const ts_tensor *tensor) {
    size_t bytes;
    const size_t count = (size_t)ts_shape_count(tensor->shape);
    return __builtin_mul_overflow(count, ts_dtype_bytes(tensor->dtype), &bytes) ? SIZE_MAX : bytes;
}

ts_tensor ts_tensor_new(ts_arena *arena, ts_dtype dtype, ts_shape shape) {
    ts_tensor tensor = {.dtype = dtype, .shape = shape};
    tensor.data = ts_arena_alloc(arena, ts_tensor_bytes(&tensor));
    return tensor;
}

float ts_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    // The half's exponent and fraction moved into a float's fields read as value * 2^-112; a multiplication mends the
    // exponent and normalises subnormals at once. Infinity and NaN need the largest exponent.
    uint32_t bits = magnitude << 13;
    float f;
    memcpy(&f, &bits, sizeof f);
    f *= 0x1p112f;
    memcpy(&bits, &f, sizeof bits);
    if (magnitude >= 0x7c00u) {
        bits |= 0x7f800000u;
    }
    bits |= sign;
    memcpy(&f, &bits, sizeof f);
    return f;
}

// ---- conversion: every pair goes through a block of floats, which is exact or rounds once

enum { BLOCK = 512 };

// `from` may be unaligned (a file map), so elements are copied out before use.
static void decode(float *to, const char *from, ts_dtype dtype, int n) {
    switch (dtype) {
    case TS_BF16:
        for (int i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, from + 2 * i, sizeof h);
            to[i] = ts_bf16_to_f32(h);
        }
        break;
    case TS_F16:
        for (int i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, from + 2 * i, sizeof h);
            to[i] = ts_f16_to_f32(h);
        }
        break;
    case TS_F64:
        for (int i = 0; i < n; i++) {
            double d;
            memcpy(&d, from + 8 * i, sizeof d);
            to[i] = (float)d;
        }
        break;
    default:
        memcpy(to, from, (size_t)n * sizeof *to);
    }
}

static void encode(char *to, ts_dtype dtype, const float *from, int n) {
    switch (dtype) {
    case TS_BF16:
        for (int i = 0; i < n; i++) {
            const uint16_t h = ts_f32_to_bf16(from[i]);
            memcpy(to + 2 * i, &h, sizeof h);
        }
        break;
    case TS_F64:
        for (int i = 0; i < n; i++) {
            const double d = from[i];
            memcpy(to + 8 * i, &d, sizeof d);
        }
        break;
    default:
        memcpy(to, from, (size_t)n * sizeof *from);
    }
}

static bool is_real(ts_dtype dtype) {
    return dtype == TS_F32 || dtype == TS_BF16 || dtype == TS_F64;
}

int ts_convert(void *to, ts_dtype to_dtype, const void *from, ts_dtype from_dtype, int64_t n) {
    if (to_dtype == from_dtype) {
        memcpy(to, from, (size_t)n * ts_dtype_bytes(to_dtype));
        return TS_OK;
    }
    if (!is_real(to_dtype) || !(is_real(from_dtype) || (from_dtype == TS_F16 && to_dtype == TS_F32))) {
        return TS_FAIL(TS_EINPUT, "cannot convert %s to %s; convert the file to F32 or BF16", ts_dtype_name(from_dtype),
                       ts_dtype_name(to_dtype));
    }
    const char *source = from;
    char *target = to;
    float block[BLOCK];
    for (int64_t done = 0; done < n; done += BLOCK) {
        const int count = n - done < BLOCK ? (int)(n - done) : BLOCK;
        decode(block, source + done * (int64_t)ts_dtype_bytes(from_dtype), from_dtype, count);
        encode(target + done * (int64_t)ts_dtype_bytes(to_dtype), to_dtype, block, count);
    }
    return TS_OK;
}
