// SPDX-License-Identifier: Apache-2.0
// Runs the kernels of a device on blocks of the host's memory, so that a test of kernels is the same program for the
// CPU and for a GPU: each call uploads the blocks that it names, and downloads them afterwards.
//
// A block's copy lies between two strips of NaN: reading beyond an end shows in the results, writing there is told.
#ifndef TS_BRIDGE_H
#define TS_BRIDGE_H

#include <stdint.h>

#include "core/kernels/kernels.h"
#include "tests/ts_test.h"

// ---- blocks

enum { BRIDGE_MAX_BLOCKS = 64, BRIDGE_STRIP = 512 };

// The block of host memory around `place`: its size, and its first byte in *first. Ends the test when there is none.
typedef size_t (*bridge_finder)(const void *place, char **first);

typedef struct bridge_block {
    char *host, *device;  // device: the strip before the copy
    size_t bytes;
} bridge_block;

static struct {
    const ts_kernels *kernels;
    bridge_finder find;
    bridge_block block[BRIDGE_MAX_BLOCKS];  // of the call in progress
    int count;
    ts_kernels table;
} bridge;

static inline size_t bridge_bytes(const bridge_block *b) {
    return b->bytes + 2 * BRIDGE_STRIP;
}

// An upload and a download of a block with its strips.
static inline void bridge_upload(bridge_block *b) {
    const ts_device *device = bridge.kernels->device;
    char *copy = malloc(bridge_bytes(b));
    b->device = device->allocate(bridge_bytes(b));
    if (!copy || !b->device) {
        abort();
    }
    memset(copy, 0xff, bridge_bytes(b));
    memcpy(copy + BRIDGE_STRIP, b->host, b->bytes);
    CHECK_OK(device->upload(b->device, copy, bridge_bytes(b)));
    free(copy);
}

static inline void bridge_download(bridge_block *b) {
    const ts_device *device = bridge.kernels->device;
    char *copy = malloc(bridge_bytes(b));
    if (!copy) {
        abort();
    }
    CHECK_OK(device->download(copy, b->device, bridge_bytes(b)));
    int64_t beyond = 0;
    for (size_t i = 0; i < BRIDGE_STRIP; i++) {
        beyond += (copy[i] & 0xff) != 0xff;
        beyond += (copy[BRIDGE_STRIP + b->bytes + i] & 0xff) != 0xff;
    }
    CHECK(beyond == 0);
    memcpy(b->host, copy + BRIDGE_STRIP, b->bytes);
    device->release(b->device);
    free(copy);
}

// Where the device has what is at `place` on the host, for the call in progress.
static inline void *bridge_map(const void *place) {
    if (!place) {
        return NULL;
    }
    char *first;
    const size_t bytes = bridge.find(place, &first);
    const size_t offset = (size_t)((const char *)place - first);
    for (int i = 0; i < bridge.count; i++) {
        if (bridge.block[i].host == first) {
            return bridge.block[i].device + BRIDGE_STRIP + offset;
        }
    }
    if (bridge.count == BRIDGE_MAX_BLOCKS) {
        abort();
    }
    bridge_block *b = &bridge.block[bridge.count++];
    *b = (bridge_block){.host = first, .bytes = bytes};
    bridge_upload(b);
    return b->device + BRIDGE_STRIP + offset;
}

#define MAP(pointer) ((pointer) = bridge_map(pointer))

// The end of a call that returned `status`.
static inline int bridge_end(int status) {
    CHECK_OK(bridge.kernels->device->finish());
    for (int i = 0; i < bridge.count; i++) {
        bridge_download(&bridge.block[i]);
    }
    bridge.count = 0;
    return status;
}

// ---- entries with a struct: a function that maps its pointers, and one for each entry

#define BRIDGE_STRUCT(entry, type, map)                                                                                \
    static inline int bridge_##entry(const type *p) {                                                                  \
        type q = *p;                                                                                                   \
        map(&q);                                                                                                       \
        return bridge_end(bridge.kernels->entry(&q));                                                                  \
    }

static inline void bridge_map_gemm(ts_gemm *p) {
    MAP(p->a), MAP(p->b), MAP(p->c), MAP(p->bias), MAP(p->before_gelu);
}
BRIDGE_STRUCT(gemm, ts_gemm, bridge_map_gemm)

static inline void bridge_map_attention(ts_attention *p) {
    MAP(p->q), MAP(p->k), MAP(p->v), MAP(p->out), MAP(p->lse), MAP(p->bias_strip), MAP(p->key_count);
    MAP(p->d_out), MAP(p->d_q), MAP(p->d_k), MAP(p->d_v), MAP(p->d_bias_strip);
}
BRIDGE_STRUCT(attention_forward, ts_attention, bridge_map_attention)
BRIDGE_STRUCT(attention_backward, ts_attention, bridge_map_attention)

static inline void bridge_map_merge(ts_attention_merge *p) {
    MAP(p->out), MAP(p->lse), MAP(p->part), MAP(p->part_lse);
}
BRIDGE_STRUCT(attention_merge, ts_attention_merge, bridge_map_merge)

static inline void bridge_map_layer_norm(ts_layer_norm *p) {
    MAP(p->x), MAP(p->y), MAP(p->scale), MAP(p->shift), MAP(p->row_index), MAP(p->mean), MAP(p->rstd);
    MAP(p->d_y), MAP(p->d_x), MAP(p->d_scale), MAP(p->d_shift);
}
BRIDGE_STRUCT(layer_norm_forward, ts_layer_norm, bridge_map_layer_norm)
BRIDGE_STRUCT(layer_norm_backward, ts_layer_norm, bridge_map_layer_norm)

static inline void bridge_map_rms_norm(ts_rms_norm *p) {
    MAP(p->x), MAP(p->y), MAP(p->weight), MAP(p->rstd), MAP(p->cosine), MAP(p->sine), MAP(p->sums);
    MAP(p->d_y), MAP(p->d_x), MAP(p->d_weight);
}
BRIDGE_STRUCT(rms_norm_forward, ts_rms_norm, bridge_map_rms_norm)
BRIDGE_STRUCT(rms_norm_backward, ts_rms_norm, bridge_map_rms_norm)
BRIDGE_STRUCT(rms_norm_squares, ts_rms_norm, bridge_map_rms_norm)
BRIDGE_STRUCT(rms_norm_products, ts_rms_norm, bridge_map_rms_norm)

static inline void bridge_map_gated_residual(ts_gated_residual *p) {
    MAP(p->x), MAP(p->y), MAP(p->out), MAP(p->gate), MAP(p->row_index), MAP(p->d_out), MAP(p->d_y), MAP(p->d_gate);
}
BRIDGE_STRUCT(gated_residual_forward, ts_gated_residual, bridge_map_gated_residual)
BRIDGE_STRUCT(gated_residual_backward, ts_gated_residual, bridge_map_gated_residual)

static inline void bridge_map_patchify(ts_patchify *p) {
    MAP(p->video), MAP(p->tokens);
}
BRIDGE_STRUCT(patchify, ts_patchify, bridge_map_patchify)
BRIDGE_STRUCT(unpatchify, ts_patchify, bridge_map_patchify)

static inline void bridge_map_combine(ts_combine *p) {
    for (int i = 0; i < p->terms && i < TS_MAX_TERMS; i++) {
        MAP(p->x[i]);
    }
    MAP(p->out), MAP(p->row_class), MAP(p->class_c);
}
BRIDGE_STRUCT(combine, ts_combine, bridge_map_combine)

static inline void bridge_map_mix(ts_mix *p) {
    MAP(p->x0), MAP(p->sigma), MAP(p->x), MAP(p->eps_to_target);
}
BRIDGE_STRUCT(mix, ts_mix, bridge_map_mix)

static inline void bridge_map_mse(ts_mse *p) {
    MAP(p->v), MAP(p->target), MAP(p->weight), MAP(p->loss), MAP(p->row_loss), MAP(p->d_v);
}
BRIDGE_STRUCT(mse, ts_mse, bridge_map_mse)

static inline void bridge_map_adamw(ts_adamw *p) {
    MAP(p->weight), MAP(p->m), MAP(p->v), MAP(p->grad), MAP(p->operand), MAP(p->ema);
}
BRIDGE_STRUCT(adamw, ts_adamw, bridge_map_adamw)

static inline void bridge_map_conv3d(ts_conv3d *p) {
    MAP(p->x), MAP(p->weight), MAP(p->bias), MAP(p->y), MAP(p->d_y), MAP(p->d_x), MAP(p->d_weight), MAP(p->d_bias);
}
BRIDGE_STRUCT(conv3d_forward, ts_conv3d, bridge_map_conv3d)
BRIDGE_STRUCT(conv3d_backward, ts_conv3d, bridge_map_conv3d)

// ---- entries with arguments: BRIDGE_CALL(entry, (parameters), what to map, (arguments))

#define BRIDGE_CALL(entry, parameters, map, arguments)                                                                 \
    static inline int bridge_##entry parameters {                                                                      \
        map;                                                                                                           \
        return bridge_end(bridge.kernels->entry arguments);                                                            \
    }
#define BRIDGE_X_Y(entry) BRIDGE_CALL(entry, (const float *x, float *y, int64_t n), (MAP(x), MAP(y)), (x, y, n))
#define BRIDGE_X_DY_DX(entry)                                                                                          \
    BRIDGE_CALL(entry, (const float *x, const float *d_y, float *d_x, int64_t n), (MAP(x), MAP(d_y), MAP(d_x)),        \
                (x, d_y, d_x, n))

BRIDGE_CALL(bias_gradient, (const void *d_y, ts_dtype dtype, int64_t m, int64_t n, int64_t row_stride, float *d_bias),
            (MAP(d_y), MAP(d_bias)), (d_y, dtype, m, n, row_stride, d_bias))
BRIDGE_CALL(gelu_forward, (const void *x, void *y, ts_dtype dtype, int64_t n), (MAP(x), MAP(y)), (x, y, dtype, n))
BRIDGE_CALL(gelu_backward, (const void *x, const void *d_y, void *d_x, ts_dtype dtype, int64_t n),
            (MAP(x), MAP(d_y), MAP(d_x)), (x, d_y, d_x, dtype, n))
BRIDGE_X_Y(gelu_erf_forward)
BRIDGE_X_DY_DX(gelu_erf_backward)
BRIDGE_CALL(gated_gelu_forward, (const void *a, const void *b, void *y, ts_dtype dtype, int64_t n),
            (MAP(a), MAP(b), MAP(y)), (a, b, y, dtype, n))
BRIDGE_CALL(gated_gelu_backward,
            (const void *a, const void *b, const void *d_y, void *d_a, void *d_b, ts_dtype dtype, int64_t n),
            (MAP(a), MAP(b), MAP(d_y), MAP(d_a), MAP(d_b)), (a, b, d_y, d_a, d_b, dtype, n))
BRIDGE_X_Y(silu_forward)
BRIDGE_X_DY_DX(silu_backward)
BRIDGE_CALL(softmax, (const float *x, float *y, int64_t rows, int64_t width), (MAP(x), MAP(y)), (x, y, rows, width))
BRIDGE_CALL(embedding_forward, (const float *table, const int32_t *id, float *y, int64_t n, int64_t width),
            (MAP(table), MAP(id), MAP(y)), (table, id, y, n, width))
BRIDGE_CALL(embedding_backward, (const float *d_y, const int32_t *id, float *d_table, int64_t n, int64_t width),
            (MAP(d_y), MAP(id), MAP(d_table)), (d_y, id, d_table, n, width))
BRIDGE_CALL(sinusoid, (const float *t, float *y, int64_t rows, int64_t half), (MAP(t), MAP(y)), (t, y, rows, half))
BRIDGE_CALL(add_rows, (const float *a, const float *b, float *out, int64_t rows, int64_t b_rows, int64_t width),
            (MAP(a), MAP(b), MAP(out)), (a, b, out, rows, b_rows, width))
BRIDGE_CALL(sum_rows, (const float *d_out, float *d_b, int64_t rows, int64_t b_rows, int64_t width),
            (MAP(d_out), MAP(d_b)), (d_out, d_b, rows, b_rows, width))
BRIDGE_CALL(copy_rows,
            (const void *from, int64_t from_stride, void *to, int64_t to_stride, int64_t rows, int64_t row_bytes),
            (MAP(from), MAP(to)), (from, from_stride, to, to_stride, rows, row_bytes))
BRIDGE_CALL(axpy, (float alpha, const float *x, float *y, int64_t n), (MAP(x), MAP(y)), (alpha, x, y, n))
BRIDGE_CALL(scale, (float alpha, float *x, int64_t n), MAP(x), (alpha, x, n))
BRIDGE_CALL(cast, (const void *from, ts_dtype from_dtype, void *to, ts_dtype to_dtype, int64_t n), (MAP(from), MAP(to)),
            (from, from_dtype, to, to_dtype, n))
BRIDGE_CALL(sum_squares, (const float *x, int64_t n, double *sum), (MAP(x), MAP(sum)), (x, n, sum))
BRIDGE_CALL(normalize, (const double *squares, float *x, int64_t n), (MAP(squares), MAP(x)), (squares, x, n))
BRIDGE_CALL(fold, (float *grad, uint16_t *kept, int64_t n), (MAP(grad), MAP(kept)), (grad, kept, n))
BRIDGE_CALL(momentum, (float grad_scale, float decay, float *m, float *u, int64_t n), (MAP(m), MAP(u)),
            (grad_scale, decay, m, u, n))
BRIDGE_CALL(newton_schulz, (float a, float b, float c, const float *gram, float *square, int64_t side),
            (MAP(gram), MAP(square)), (a, b, c, gram, square, side))
BRIDGE_CALL(noise, (float *out, int64_t n, uint64_t seed, uint32_t purpose, uint64_t index, int64_t first), MAP(out),
            (out, n, seed, purpose, index, first))

// The table of `kernels`, whose device is not the host, for pointers to the host's blocks. One at a time.
static inline const ts_kernels *bridge_open(const ts_kernels *kernels, bridge_finder find) {
    bridge.kernels = kernels;
    bridge.find = find;
    bridge.table = (ts_kernels){.name = kernels->name, .device = &ts_device_host};
#define BRIDGE_ENTRY(entry) bridge.table.entry = kernels->entry ? bridge_##entry : NULL;
    BRIDGE_ENTRY(gemm)
    BRIDGE_ENTRY(bias_gradient)
    BRIDGE_ENTRY(attention_forward)
    BRIDGE_ENTRY(attention_backward)
    BRIDGE_ENTRY(attention_merge)
    BRIDGE_ENTRY(layer_norm_forward)
    BRIDGE_ENTRY(layer_norm_backward)
    BRIDGE_ENTRY(rms_norm_forward)
    BRIDGE_ENTRY(rms_norm_backward)
    BRIDGE_ENTRY(rms_norm_squares)
    BRIDGE_ENTRY(rms_norm_products)
    BRIDGE_ENTRY(gated_residual_forward)
    BRIDGE_ENTRY(gated_residual_backward)
    BRIDGE_ENTRY(patchify)
    BRIDGE_ENTRY(unpatchify)
    BRIDGE_ENTRY(gelu_forward)
    BRIDGE_ENTRY(gelu_backward)
    BRIDGE_ENTRY(gelu_erf_forward)
    BRIDGE_ENTRY(gelu_erf_backward)
    BRIDGE_ENTRY(gated_gelu_forward)
    BRIDGE_ENTRY(gated_gelu_backward)
    BRIDGE_ENTRY(silu_forward)
    BRIDGE_ENTRY(silu_backward)
    BRIDGE_ENTRY(softmax)
    BRIDGE_ENTRY(embedding_forward)
    BRIDGE_ENTRY(embedding_backward)
    BRIDGE_ENTRY(sinusoid)
    BRIDGE_ENTRY(add_rows)
    BRIDGE_ENTRY(sum_rows)
    BRIDGE_ENTRY(copy_rows)
    BRIDGE_ENTRY(axpy)
    BRIDGE_ENTRY(scale)
    BRIDGE_ENTRY(cast)
    BRIDGE_ENTRY(sum_squares)
    BRIDGE_ENTRY(normalize)
    BRIDGE_ENTRY(combine)
    BRIDGE_ENTRY(mix)
    BRIDGE_ENTRY(fold)
    BRIDGE_ENTRY(momentum)
    BRIDGE_ENTRY(newton_schulz)
    BRIDGE_ENTRY(mse)
    BRIDGE_ENTRY(adamw)
    BRIDGE_ENTRY(noise)
    BRIDGE_ENTRY(conv3d_forward)
    BRIDGE_ENTRY(conv3d_backward)
#undef BRIDGE_ENTRY
    return &bridge.table;
}

#undef MAP
#undef BRIDGE_STRUCT
#undef BRIDGE_CALL
#undef BRIDGE_X_Y
#undef BRIDGE_X_DY_DX

#endif
