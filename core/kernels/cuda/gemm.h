// SPDX-License-Identifier: Apache-2.0
// Private to core/kernels/cuda/gemm*: matrix products by cuBLASLt, and what follows them.
//
//   gemm.c         what of a ts_gemm cuBLASLt fuses, and what a kernel of ours does after it
//   gemm_plan.c    a product as cuBLASLt is told of it, and the algorithm that makes it
//   gemm_search.c  which algorithm: the library's proposals, timed
//   gemm_cache.c   what was found, in memory and on disk
//   gemm_finish.cu bias, GELU and rounding after a product
//
// What is reproducible: within a process one algorithm makes all products of a kind (shape, strides, types, transposes,
// epilogue, alignment up to 16 bytes), and sums in a fixed order, so the same operands give the same bits. Processes
// that share the file of algorithms take the same ones, now and in later runs; with TESSERA_GEMM_SEARCH=off all take
// cuBLASLt's first proposal, which follows from the kind of product, the GPU and the library alone.
#ifndef TS_KERNELS_CUDA_GEMM_H
#define TS_KERNELS_CUDA_GEMM_H

#include <cublasLt.h>

#include "core/kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

// TS_ERESOURCE or TS_EPEER, with the name of the status, when it is not success.
int ts_cublas_check(cublasStatus_t status, const char *call);
#define TS_CUBLAS(call) TS_TRY(ts_cublas_check((call), #call))

// ---- plans

// What algorithms depend on. Zeroed before it is filled in: compared by bytes.
typedef struct ts_gemm_key {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t align_a, align_b, align_c;  // the largest power of two up to 16 that divides the address
    int32_t transpose_a, transpose_b, bf16_ab, bf16_c, accumulate, bias;
    int32_t unused;
} ts_gemm_key;

typedef struct ts_gemm_plan {
    ts_gemm_key key;
    bool possible;  // else cuBLASLt has no algorithm, and what follows is empty
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c;  // ours: cuBLASLt's A is our B, see gemm_plan.c
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace;
} ts_gemm_plan;

enum { TS_GEMM_WORKSPACE = 32 << 20 };  // what cuBLASLt advises for Hopper

cublasLtHandle_t ts_gemm_handle(void);
// C = op(A) op(B) [+ C] [+ bias] by cuBLASLt; `bias` NULL or [n] in C's type, gelu and p->bias are not looked at.
// *done false, and nothing is written, when it has no algorithm for that.
int ts_gemm_multiply(const ts_gemm *p, const void *bias, bool *done);
// Runs a plan with an algorithm on ts_cuda_stream, D into `d`: p->c, or elsewhere when algorithms are tried out.
int ts_gemm_run(const ts_gemm_plan *plan, const ts_gemm *p, void *d, const cublasLtMatmulAlgo_t *algorithm,
                size_t workspace);

// ---- algorithms

// Chooses plan->algorithm: what was found before, or the fastest of cuBLASLt's proposals, each timed on `p`, or (with
// TESSERA_GEMM_SEARCH=off, and while calls are recorded, when nothing can be timed) its first proposal.
// plan->possible false when it proposes none.
int ts_gemm_choose(ts_gemm_plan *plan, const ts_gemm *p);

// Reads TESSERA_GEMM_SEARCH, and opens what is remembered unless it is off.
void ts_gemm_search_open(void);

// Opens what is remembered for this GPU and library: the file
// ${XDG_CACHE_HOME:-~/.cache}/tessera/gemm-GPU-VERSION.json. A file that is damaged or of another GPU is told of once,
// and replaced with the next algorithm that is found.
void ts_gemm_cache_open(void);
// The algorithm found for products of a kind, or NULL.
const cublasLtMatmulAlgo_t *ts_gemm_cache_find(const ts_gemm_key *key);
// Between lock and unlock no other process searches, so that ranks neither disturb each other's times nor find
// different algorithms; what others have found by now is read. False when the folder cannot be locked.
bool ts_gemm_cache_lock(void);
void ts_gemm_cache_unlock(void);
// Remembers an algorithm, in the file too when locked.
int ts_gemm_cache_add(const ts_gemm_key *key, const cublasLtMatmulAlgo_t *algorithm, bool in_file);
// Forgets one that cuBLASLt refused.
void ts_gemm_cache_refuse(const ts_gemm_key *key);

// ---- after the product

// c = gelu?(before_gelu = rounded(from [+ bias]))
typedef struct ts_gemm_finish {
    int64_t rows, columns;
    const void *from;     // [rows, columns], or NULL: zeros; may be c or before_gelu
    ts_dtype dtype_from;  // F32 or dtype_c
    int64_t from_stride;
    const float *bias;  // [columns] or NULL
    bool gelu;
    void *before_gelu;  // [rows, columns] dtype_c, stride c_stride, or NULL
    void *c;            // [rows, columns] dtype_c
    ts_dtype dtype_c;
    int64_t c_stride;
} ts_gemm_finish;
int ts_cuda_gemm_finish(const ts_gemm_finish *p);  // gemm_finish.cu

#ifdef __cplusplus
}
#endif

#endif
