// SPDX-License-Identifier: Apache-2.0
// Private to core/kernels/cuda/attention*: the kernels among which attention.c chooses.
//
//   general   f32 arithmetic on CUDA cores: every call
//   mma       bf16 on tensor cores with mma.sync: sm_80 and newer
//   sm90      bf16 on tensor cores with wgmma, fed by the copy engine: sm_90
//
// attention.c has checked a call before it hands it on; mma and sm90 get those alone that their takes_ function
// accepts, and none without queries, keys or heads. Working memory is TS_CUDA_SCRATCH_ATTENTION, of which a call takes
// all it needs at once. Sums are taken in a fixed order, without atomics: the same call gives the same bits.
#ifndef TS_KERNELS_CUDA_ATTENTION_H
#define TS_KERNELS_CUDA_ATTENTION_H

#include "core/kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

int ts_cuda_attention_forward_general(const ts_attention *p);
int ts_cuda_attention_backward_general(const ts_attention *p);

bool ts_cuda_attention_takes_mma(const ts_attention *p, bool backward);
int ts_cuda_attention_forward_mma(const ts_attention *p);
int ts_cuda_attention_backward_mma(const ts_attention *p);

bool ts_cuda_attention_takes_sm90(const ts_attention *p, bool backward);
int ts_cuda_attention_forward_sm90(const ts_attention *p);
int ts_cuda_attention_backward_sm90(const ts_attention *p);

// What every backward pass begins with: delta [batch, heads, queries] = sum over head_dim of d_out * out.
int ts_cuda_attention_delta(const ts_attention *p, float *delta);

// Whether all rows that forward, or backward, reads and writes begin at multiples of 16 bytes: what 16-byte copies, be
// they a thread's or the copy engine's, need.
static inline bool ts_attention_is_aligned(const ts_attention *p, bool backward) {
    const int64_t strides =
        p->q_row | p->k_row | p->v_row | p->out_row | p->q_batch | p->k_batch | p->v_batch | p->out_batch | p->head_dim;
    uintptr_t addresses = (uintptr_t)p->q | (uintptr_t)p->k | (uintptr_t)p->v | (uintptr_t)p->out;
    if (backward) {
        addresses |= (uintptr_t)p->d_out | (uintptr_t)p->d_q | (uintptr_t)p->d_k | (uintptr_t)p->d_v;
    }
    return strides % 8 == 0 && addresses % 16 == 0;
}

#ifdef __cplusplus
}
#endif

#endif
