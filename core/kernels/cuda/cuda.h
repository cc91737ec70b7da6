// SPDX-License-Identifier: Apache-2.0
// Private to core/kernels/cuda and core/comm/nccl.c: the device's streams and scratch memory, and how kernels are
// launched.
//
// The same sources are compiled twice: by nvcc for GPUs, and by the host's compiler against the headers of tests/shim,
// which imitate the runtime and run kernels as host code. What differs is behind the TS_ macros below: no other file
// asks which of the two it is compiled by, but where a tensor-core instruction has no imitation.
#ifndef TS_KERNELS_CUDA_CUDA_H
#define TS_KERNELS_CUDA_CUDA_H

#include <cuda_runtime.h>

#ifdef __cplusplus
#define _Noreturn [[noreturn]]
extern "C" {
#endif

#include "core/base/status.h"
#include "core/comm/comm.h"
#include "core/kernels/kernels.h"

// TS_EPEER with CUDA's own words, and what to do about the likely ones, when `code` is not cudaSuccess.
int ts_cuda_check(cudaError_t code, const char *call);
#define TS_CUDA(call) TS_TRY(ts_cuda_check((call), #call))

// Chooses the GPU of this process: the one of its rank on the host, modulo their number. Once, first.
int ts_cuda_open(int local_rank);

// Everything of the kernel table, uploads and copies go here, in order.
cudaStream_t ts_cuda_stream(void);
// Collectives go here: ts_cuda_fork makes them wait for the work that the first stream has by now, ts_cuda_join makes
// the first stream wait for theirs.
cudaStream_t ts_cuda_communication_stream(void);
int ts_cuda_fork(void);
int ts_cuda_join(void);

typedef struct ts_cuda_properties {
    int major, minor;     // compute capability
    int multiprocessors;  // number of them
    size_t shared_bytes;  // of one block, opted in
    size_t memory_bytes;  // of the device
    char name[128];
} ts_cuda_properties;
const ts_cuda_properties *ts_cuda_get_properties(void);

// What a piece of working memory is for: kernels that call each other must not share one.
typedef enum {
    TS_CUDA_SCRATCH_REDUCE,   // partial sums
    TS_CUDA_SCRATCH_LIBRARY,  // cuBLASLt's own
    TS_CUDA_SCRATCH_OPERAND,  // converted operands
    TS_CUDA_SCRATCH_RESULT,   // a result on its way to where it is accumulated
    TS_CUDA_SCRATCH_ATTENTION,
    TS_CUDA_SCRATCH_CONVOLUTION,
    TS_CUDA_SCRATCH_EXCHANGE,  // parts on their way to their sum: on the communication stream alone
    TS_CUDA_SCRATCH_COUNT
} ts_cuda_scratch_use;
// Device memory, 256-byte aligned, uninitialised, until the same use asks again: for kernels on ts_cuda_stream, whose
// order keeps two uses apart. Grows by waiting for the device; NULL when memory is exhausted (error text set).
void *ts_cuda_scratch(ts_cuda_scratch_use use, size_t bytes);

// The entries, by the file that fills them in.
int ts_cuda_gemm_open(void);                           // gemm_plan.c: before the first product
int ts_cuda_gemm(const ts_gemm *p);                    // gemm.c
int ts_cuda_attention_forward(const ts_attention *p);  // attention.c: chooses the kernel
int ts_cuda_attention_backward(const ts_attention *p);
int ts_cuda_attention_merge(const ts_attention_merge *p);  // attention_merge.cu
int ts_cuda_conv3d_forward(const ts_conv3d *p);            // conv3d.cu
int ts_cuda_conv3d_backward(const ts_conv3d *p);
int ts_cuda_bias_gradient(const void *d_y, ts_dtype dtype, int64_t m, int64_t n, int64_t row_stride, float *d_bias);
int ts_cuda_cast(const void *from, ts_dtype from_dtype, void *to, ts_dtype to_dtype, int64_t n);  // flat.cu
int ts_cuda_gelu_forward(const void *x, void *y, ts_dtype dtype, int64_t n);                      // activation.cu
void ts_cuda_fill_rows(ts_kernels *kernels);  // rows.cu, loss.cu, norm.cu, rms_norm.cu: sums over rows and columns
void ts_cuda_fill_loss(ts_kernels *kernels);
void ts_cuda_fill_norm(ts_kernels *kernels);
void ts_cuda_fill_rms_norm(ts_kernels *kernels);
void ts_cuda_fill_flat(ts_kernels *kernels);  // flat.cu, activation.cu, optimizer.cu
void ts_cuda_fill_activation(ts_kernels *kernels);
void ts_cuda_fill_optimizer(ts_kernels *kernels);
void ts_cuda_fill_embed(ts_kernels *kernels);  // embed.cu: patches, embeddings, sinusoids, noise

// For core/comm/nccl.c: out[i] = part 0's [i] op part 1's [i] op .., as ts_reduce_parts does (core/comm/reduce.h), bit
// by bit. Part r lies at parts + r * stride elements, but that of `rank` at `own`, where `out` may be, too. On the
// communication stream.
typedef struct ts_cuda_parts {
    void *out;
    const void *own, *parts;
    int64_t stride, count;  // elements
    int rank, size;
} ts_cuda_parts;
int ts_cuda_reduce_parts(const ts_cuda_parts *p, ts_dtype dtype, ts_reduce_op op);  // reduce.cu

// Memory that is about to be given up: nccl.c may have registered it.
void ts_nccl_forget(const void *memory);
// Around what the host's main thread waits for: the watch of the ranks must know (core/comm/watch.h).
bool ts_nccl_begin_wait(void);
void ts_nccl_end_wait(bool began);

extern const ts_device ts_cuda_device;

#ifdef __cplusplus
}
#undef _Noreturn

// ---- kernels (.cu files)

// TS_LAUNCH(kernel, grid, block, shared_bytes, arguments ..) on ts_cuda_stream; an int status. Templates with a comma
// need parentheses: TS_LAUNCH((norm<float, 4>), ..). Arguments are copied now. TS_LAUNCH_ON: on another stream.
// TS_SHARED_BYTES(type, name) declares the launch's dynamic shared memory, 1024-byte aligned.
#define TS_LAUNCH(kernel, ...) TS_LAUNCH_ON(ts_cuda_stream(), kernel, __VA_ARGS__)
#ifdef TS_SHIM
#define TS_LAUNCH_ON(stream, kernel, grid, block, shared_bytes, ...)                                                   \
    ts_shim_launch(#kernel, dim3(grid), dim3(block), (shared_bytes), (stream), kernel, __VA_ARGS__)
#define TS_SHARED_BYTES(type, name) type *const name = (type *)ts_shim_dynamic_shared()
#else
#define TS_LAUNCH_ON(stream, kernel, grid, block, shared_bytes, ...)                                                   \
    (kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__), ts_cuda_check(cudaPeekAtLastError(), #kernel))
#define TS_SHARED_BYTES(type, name)                                                                                    \
    extern __shared__ __align__(1024) unsigned char ts_dynamic_shared[];                                               \
    type *const name = (type *)ts_dynamic_shared
#endif

#endif
#endif
