// SPDX-License-Identifier: Apache-2.0
// Private to core/kernels/cpu: the instruction-set levels, and the functions that fill the CPU's ts_kernels.
//
// A level includes all lower ones. Files named *_avx2.c, *_avx512.c, *_avx512bf16.c and *_amx.c are compiled for their
// level and must be entered only when ts_cpu_isa() is at least that level.
#ifndef TS_KERNELS_CPU_CPU_H
#define TS_KERNELS_CPU_CPU_H

#include "core/kernels/kernels.h"

typedef enum {
    TS_ISA_GENERIC,     // x86-64-v2
    TS_ISA_AVX2,        // + AVX2, FMA, F16C, BMI2
    TS_ISA_AVX512,      // + AVX-512 F, BW, VL, DQ
    TS_ISA_AVX512BF16,  // + AVX512-BF16
    TS_ISA_AMX,         // + AMX tiles with bf16, permitted by the kernel
    TS_ISA_COUNT
} ts_isa;

// The level in use: that of the last ts_kernels_cpu, or the processor's own before the first call.
ts_isa ts_cpu_isa(void);
// The highest level of this processor and operating system.
ts_isa ts_cpu_isa_available(void);
void ts_cpu_isa_set(ts_isa level);  // by ts_kernels_cpu alone

// What a piece of working memory is for: kernels that call each other must not share one.
typedef enum {
    TS_SCRATCH_REDUCE,   // partial sums
    TS_SCRATCH_OPERAND,  // converted or packed operands
    TS_SCRATCH_LIBRARY,  // oneDNN's own
    TS_SCRATCH_RESULT,   // a result on its way to where it is accumulated
    TS_SCRATCH_ATTENTION,
    TS_SCRATCH_COUNT
} ts_scratch;

// 64-byte aligned, uninitialised, valid until the calling thread asks again for the same use. NULL when memory is
// exhausted (the error text is set).
void *ts_cpu_scratch(ts_scratch use, size_t bytes);

// Set the entries written with vectors (vector_*.c), for a level.
void ts_cpu_fill_generic(ts_kernels *kernels);
void ts_cpu_fill_avx2(ts_kernels *kernels);
void ts_cpu_fill_avx512(ts_kernels *kernels);
void ts_cpu_fill_avx512bf16(ts_kernels *kernels);
// The table of the level in use.
const ts_kernels *ts_cpu_table(void);

// Sets the entries that gain nothing from vectors (plain.c).
void ts_cpu_fill_plain(ts_kernels *kernels);
// Sets those that the compiler makes vectors of by itself (flat.c).
void ts_cpu_fill_flat(ts_kernels *kernels);

// The stochastically rounded bf16 copies of weights begin .. end - 1, for adamw (flat.c).
void ts_cpu_round(const ts_adamw *p, int64_t begin, int64_t end);

// Matrix products (gemm.c) and convolution (onednn.c).
int ts_cpu_gemm(const ts_gemm *p);
int ts_cpu_conv3d_forward(const ts_conv3d *p);
int ts_cpu_conv3d_backward(const ts_conv3d *p);

// Attention (attention*.c): dispatches on ts_cpu_isa() itself.
int ts_cpu_attention_forward(const ts_attention *p);
int ts_cpu_attention_backward(const ts_attention *p);
int ts_cpu_attention_merge(const ts_attention_merge *p);

#endif
