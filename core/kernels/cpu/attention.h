// SPDX-License-Identifier: Apache-2.0
// Private to attention*.c: what an instruction set provides, and small helpers of the packed layouts.
//
// The scheme is that of Dao et al. 2022, "FlashAttention": blocks of scores live in scratch that fits the cache, the
// softmax is computed online with f32 statistics, and the backward pass recomputes P = exp(S - lse). Everything a head
// reads is first packed into the thread's scratch: there the layout suits the multiplication at hand, bf16 or f32,
// whatever the strides of the caller.
#ifndef TS_KERNELS_CPU_ATTENTION_H
#define TS_KERNELS_CPU_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#include "core/kernels/kernels.h"

enum { TS_ATTENTION_MAX_HEAD_DIM = 256 };

// One way of computing attention. Forward serves the queries [first, last) of one (batch, head), backward a whole
// (batch, head); neither depends on which thread runs it. `scratch` holds at least the bytes asked for, 64-byte
// aligned.
typedef struct ts_attention_engine {
    size_t (*forward_bytes)(const ts_attention *p);
    size_t (*backward_bytes)(const ts_attention *p);
    void (*forward)(const ts_attention *p, int64_t batch, int64_t head, int64_t first, int64_t last, void *scratch);
    void (*backward)(const ts_attention *p, int64_t batch, int64_t head, void *scratch);
    void (*thread_begin)(void);  // NULL, or prepares the processor's state in each thread
    void (*thread_end)(void);
} ts_attention_engine;

// f32 arithmetic (bf16 operands are widened while packing): any head_dim, bias.
extern const ts_attention_engine ts_attention_generic, ts_attention_avx2, ts_attention_avx512;
// bf16 products with f32 sums: bf16 operands, head_dim up to 128, no bias, scale >= 0.
extern const ts_attention_engine ts_attention_avx512bf16, ts_attention_amx;

static inline int64_t attention_round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

static inline int64_t attention_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// Of out in a forward, of the gradients in a backward.
static inline ts_dtype attention_result(const ts_attention *p) {
    return p->f32_results ? TS_F32 : p->dtype;
}

// Keys of this batch item that take part.
static inline int64_t attention_keys(const ts_attention *p, int64_t batch) {
    return p->key_count ? p->key_count[batch] : p->keys;
}

// Element offset of (batch, row 0, head, 0).
static inline int64_t attention_offset(const ts_attention *p, int64_t batch, int64_t head, int64_t batch_stride) {
    return batch * batch_stride + head * p->head_dim;
}

// Address of an element offset in a tensor.
static inline const void *attention_at(const void *base, ts_dtype dtype, int64_t offset) {
    return (const char *)base + offset * (dtype == TS_BF16 ? 2 : 4);
}
static inline void *attention_at_mutable(void *base, ts_dtype dtype, int64_t offset) {
    return (char *)base + offset * (dtype == TS_BF16 ? 2 : 4);
}

// The next `count` elements of the scratch; with a NULL-based cursor only sizes are counted.
static inline void *attention_carve(uintptr_t *cursor, int64_t count, size_t element_bytes) {
    const uintptr_t at = *cursor;
    *cursor += ((uintptr_t)count * element_bytes + 63) & ~(uintptr_t)63;
    return (void *)at;
}

#endif
