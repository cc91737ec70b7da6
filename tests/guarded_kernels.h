// SPDX-License-Identifier: Apache-2.0
// The CPU's kernels on memory that the host cannot touch (tests/guarded_device.h): what looks through a pointer to a
// device's numbers crashes, and a kernel that is given a pointer to the host's says which one and stops the test.
#ifndef TS_TEST_GUARDED_KERNELS_H
#define TS_TEST_GUARDED_KERNELS_H

#include <stdio.h>

#include "core/kernels/kernels.h"
#include "tests/guarded_device.h"

static const ts_kernels *guarded_cpu;

// Opens or closes the blocks that these pointers lie in.
static inline void guarded_blocks(const void *const *pointer, size_t count, int access) {
    for (int i = 0; i < GUARDED_BLOCKS; i++) {
        const uintptr_t first = (uintptr_t)guarded_block[i].first, end = first + guarded_block[i].bytes;
        bool wanted = false;
        for (size_t p = 0; p < count && first; p++) {
            wanted = wanted || ((uintptr_t)pointer[p] >= first && (uintptr_t)pointer[p] < end);
        }
        if (wanted) {
            mprotect(guarded_block[i].first, guarded_block[i].bytes, access);
        }
    }
}

static inline void guarded_open(const char *entry, const void *const *pointer, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (pointer[i] && ts_device_of(pointer[i]) != &guarded_device) {
            fprintf(stderr, "kernel %s: pointer %zu is no memory of the device\n", entry, i);
            abort();
        }
    }
    pthread_mutex_lock(&guarded_lock);
    guarded_blocks(pointer, count, PROT_READ | PROT_WRITE);
}

static inline void guarded_close(const void *const *pointer, size_t count) {
    guarded_blocks(pointer, count, PROT_NONE);
    pthread_mutex_unlock(&guarded_lock);
}

// An entry whose parameters are in parentheses, then its arguments, then the pointers among them.
#define GUARDED(entry, parameters, arguments, ...)                                                                     \
    static int guarded_##entry parameters {                                                                            \
        const void *const pointer[] = {__VA_ARGS__};                                                                   \
        guarded_open(#entry, pointer, sizeof pointer / sizeof *pointer);                                               \
        const int status = guarded_cpu->entry arguments;                                                               \
        guarded_close(pointer, sizeof pointer / sizeof *pointer);                                                      \
        return status;                                                                                                 \
    }
#define GUARDED_CALL(entry, type, ...) GUARDED(entry, (const type *p), (p), __VA_ARGS__)

// clang-format off
GUARDED_CALL(gemm, ts_gemm, p->a, p->b, p->c, p->bias, p->before_gelu)
GUARDED(bias_gradient, (const void *d_y, ts_dtype dtype, int64_t m, int64_t n, int64_t row_stride, float *d_bias),
        (d_y, dtype, m, n, row_stride, d_bias), d_y, d_bias)
GUARDED_CALL(attention_forward, ts_attention, p->q, p->k, p->v, p->out, p->lse, p->bias_strip, p->key_count)
GUARDED_CALL(attention_backward, ts_attention, p->q, p->k, p->v, p->out, p->lse, p->bias_strip, p->key_count, p->d_out,
             p->d_q, p->d_k, p->d_v, p->d_bias_strip)
GUARDED_CALL(attention_merge, ts_attention_merge, p->out, p->lse, p->part, p->part_lse)
GUARDED_CALL(layer_norm_forward, ts_layer_norm, p->x, p->y, p->scale, p->shift, p->row_index, p->mean, p->rstd)
GUARDED_CALL(layer_norm_backward, ts_layer_norm, p->x, p->scale, p->row_index, p->mean, p->rstd, p->d_y, p->d_x,
             p->d_scale, p->d_shift)
GUARDED_CALL(rms_norm_forward, ts_rms_norm, p->x, p->y, p->weight, p->rstd, p->cosine, p->sine, p->sums)
GUARDED_CALL(rms_norm_backward, ts_rms_norm, p->x, p->weight, p->rstd, p->cosine, p->sine, p->sums, p->d_y, p->d_x,
             p->d_weight)
GUARDED_CALL(rms_norm_squares, ts_rms_norm, p->x, p->sums)
GUARDED_CALL(rms_norm_products, ts_rms_norm, p->x, p->weight, p->cosine, p->sine, p->sums, p->d_y, p->rstd)
GUARDED_CALL(gated_residual_forward, ts_gated_residual, p->x, p->y, p->out, p->gate, p->row_index)
GUARDED_CALL(gated_residual_backward, ts_gated_residual, p->y, p->gate, p->row_index, p->d_out, p->d_y, p->d_gate)
GUARDED_CALL(patchify, ts_patchify, p->video, p->tokens)
GUARDED_CALL(unpatchify, ts_patchify, p->video, p->tokens)
GUARDED(gelu_forward, (const void *x, void *y, ts_dtype dtype, int64_t n), (x, y, dtype, n), x, y)
GUARDED(gelu_backward, (const void *x, const void *d_y, void *d_x, ts_dtype dtype, int64_t n), (x, d_y, d_x, dtype, n),
        x, d_y, d_x)
GUARDED(gelu_erf_forward, (const float *x, float *y, int64_t n), (x, y, n), x, y)
GUARDED(gelu_erf_backward, (const float *x, const float *d_y, float *d_x, int64_t n), (x, d_y, d_x, n), x, d_y, d_x)
GUARDED(gated_gelu_forward, (const void *a, const void *b, void *y, ts_dtype dtype, int64_t n), (a, b, y, dtype, n), a,
        b, y)
GUARDED(gated_gelu_backward,
        (const void *a, const void *b, const void *d_y, void *d_a, void *d_b, ts_dtype dtype, int64_t n),
        (a, b, d_y, d_a, d_b, dtype, n), a, b, d_y, d_a, d_b)
GUARDED(silu_forward, (const float *x, float *y, int64_t n), (x, y, n), x, y)
GUARDED(silu_backward, (const float *x, const float *d_y, float *d_x, int64_t n), (x, d_y, d_x, n), x, d_y, d_x)
GUARDED(softmax, (const float *x, float *y, int64_t rows, int64_t width), (x, y, rows, width), x, y)
GUARDED(embedding_forward, (const float *table, const int32_t *id, float *y, int64_t n, int64_t width),
        (table, id, y, n, width), table, id, y)
GUARDED(embedding_backward, (const float *d_y, const int32_t *id, float *d_table, int64_t n, int64_t width),
        (d_y, id, d_table, n, width), d_y, id, d_table)
GUARDED(sinusoid, (const float *t, float *y, int64_t rows, int64_t half), (t, y, rows, half), t, y)
GUARDED(add_rows, (const float *a, const float *b, float *out, int64_t rows, int64_t b_rows, int64_t width),
        (a, b, out, rows, b_rows, width), a, b, out)
GUARDED(sum_rows, (const float *d_out, float *d_b, int64_t rows, int64_t b_rows, int64_t width),
        (d_out, d_b, rows, b_rows, width), d_out, d_b)
GUARDED(copy_rows, (const void *from, int64_t from_stride, void *to, int64_t to_stride, int64_t rows, int64_t bytes),
        (from, from_stride, to, to_stride, rows, bytes), from, to)
GUARDED(axpy, (float alpha, const float *x, float *y, int64_t n), (alpha, x, y, n), x, y)
GUARDED(scale, (float alpha, float *x, int64_t n), (alpha, x, n), x)
GUARDED(cast, (const void *from, ts_dtype from_dtype, void *to, ts_dtype to_dtype, int64_t n),
        (from, from_dtype, to, to_dtype, n), from, to)
GUARDED(sum_squares, (const float *x, int64_t n, double *sum), (x, n, sum), x, sum)
GUARDED(normalize, (const double *squares, float *x, int64_t n), (squares, x, n), squares, x)
GUARDED_CALL(combine, ts_combine, p->out, p->x[0], p->terms > 1 ? p->x[1] : NULL, p->terms > 2 ? p->x[2] : NULL,
             p->terms > 3 ? p->x[3] : NULL, p->terms > 4 ? p->x[4] : NULL, p->terms > 5 ? p->x[5] : NULL,
             p->row_class, p->class_c)
GUARDED_CALL(mix, ts_mix, p->x0, p->sigma, p->x, p->eps_to_target)
GUARDED(fold, (float *grad, uint16_t *kept, int64_t n), (grad, kept, n), grad, kept)
GUARDED(momentum, (float grad_scale, float decay, float *m, float *u, int64_t n), (grad_scale, decay, m, u, n), m, u)
GUARDED(newton_schulz, (float a, float b, float c, const float *gram, float *square, int64_t side),
        (a, b, c, gram, square, side), gram, square)
GUARDED_CALL(mse, ts_mse, p->v, p->target, p->weight, p->loss, p->row_loss, p->d_v)
GUARDED_CALL(adamw, ts_adamw, p->weight, p->m, p->v, p->grad, p->operand, p->ema)
GUARDED(noise, (float *out, int64_t n, uint64_t seed, uint32_t purpose, uint64_t index, int64_t first),
        (out, n, seed, purpose, index, first), out)
GUARDED_CALL(conv3d_forward, ts_conv3d, p->x, p->weight, p->bias, p->y)
GUARDED_CALL(conv3d_backward, ts_conv3d, p->x, p->weight, p->d_y, p->d_x, p->d_weight, p->d_bias)
// clang-format on

#define ENTRY(name) .name = guarded_##name
static const ts_kernels guarded_kernels = {
    .name = "guarded",
    .device = &guarded_device,
    ENTRY(gemm),
    ENTRY(bias_gradient),
    ENTRY(attention_forward),
    ENTRY(attention_backward),
    ENTRY(attention_merge),
    ENTRY(layer_norm_forward),
    ENTRY(layer_norm_backward),
    ENTRY(rms_norm_forward),
    ENTRY(rms_norm_backward),
    ENTRY(rms_norm_squares),
    ENTRY(rms_norm_products),
    ENTRY(gated_residual_forward),
    ENTRY(gated_residual_backward),
    ENTRY(patchify),
    ENTRY(unpatchify),
    ENTRY(gelu_forward),
    ENTRY(gelu_backward),
    ENTRY(gelu_erf_forward),
    ENTRY(gelu_erf_backward),
    ENTRY(gated_gelu_forward),
    ENTRY(gated_gelu_backward),
    ENTRY(silu_forward),
    ENTRY(silu_backward),
    ENTRY(softmax),
    ENTRY(embedding_forward),
    ENTRY(embedding_backward),
    ENTRY(sinusoid),
    ENTRY(add_rows),
    ENTRY(sum_rows),
    ENTRY(copy_rows),
    ENTRY(axpy),
    ENTRY(scale),
    ENTRY(cast),
    ENTRY(sum_squares),
    ENTRY(normalize),
    ENTRY(combine),
    ENTRY(mix),
    ENTRY(fold),
    ENTRY(momentum),
    ENTRY(newton_schulz),
    ENTRY(mse),
    ENTRY(adamw),
    ENTRY(noise),
    ENTRY(conv3d_forward),
    ENTRY(conv3d_backward),
};
#undef ENTRY

// The table, over that of the CPU.
static inline int guarded_kernels_open(const ts_kernels **out) {
    TS_TRY(ts_kernels_cpu(&guarded_cpu, ts_kernels_cpu_instruction_set()));
    *out = &guarded_kernels;
    return TS_OK;
}

#endif
