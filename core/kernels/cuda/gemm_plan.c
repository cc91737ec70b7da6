// SPDX-License-Identifier: Apache-2.0
// A product as cuBLASLt is told of it. Its matrices are column-major: a row-major C [m, n] is its C^T [n, m] =
// op(B)^T op(A)^T, so our B comes first and both keep their transposition. Its bias, one number a row of [n, m], is
// then ours, one a column.
//
// Sums over k are made in f32, never in TF32. Descriptions are made once for each kind of product and kept.
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/arena.h"
#include "core/kernels/cuda/gemm.h"

enum { TABLE_SIZE = 4096, TABLE_FULL = 3072 };

static cublasLtHandle_t handle;
static ts_gemm_plan *table[TABLE_SIZE];  // open addressing
static int table_used;

int ts_cublas_check(cublasStatus_t status, const char *call) {
    if (status == CUBLAS_STATUS_SUCCESS) {
        return TS_OK;
    }
    return TS_FAIL(status == CUBLAS_STATUS_ALLOC_FAILED ? TS_ERESOURCE : TS_EPEER, "%.60s: %s", call,
                   cublasLtGetStatusName(status));
}

cublasLtHandle_t ts_gemm_handle(void) {
    return handle;
}

int ts_cuda_gemm_open(void) {
    if (!handle) {
        TS_CUBLAS(cublasLtCreate(&handle));
        ts_gemm_search_open();
    }
    return TS_OK;
}

// ---- descriptions

static int32_t alignment_of(const void *data) {
    const uintptr_t place = (uintptr_t)data | 16;
    return (int32_t)(place & (~place + 1));
}

static ts_gemm_key key_of(const ts_gemm *p, bool bias) {
    ts_gemm_key key;
    memset(&key, 0, sizeof key);
    key.m = p->m, key.n = p->n, key.k = p->k;
    key.lda = p->lda, key.ldb = p->ldb, key.ldc = p->ldc;
    key.align_a = alignment_of(p->a);
    key.align_b = alignment_of(p->b);
    key.align_c = alignment_of(p->c);
    key.transpose_a = p->transpose_a;
    key.transpose_b = p->transpose_b;
    key.bf16_ab = p->dtype_ab == TS_BF16;
    key.bf16_c = p->dtype_c == TS_BF16;
    key.accumulate = p->accumulate;
    key.bias = bias;
    return key;
}

static int set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t what, const void *value, size_t bytes) {
    TS_CUBLAS(cublasLtMatmulDescSetAttribute(operation, what, value, bytes));
    return TS_OK;
}

static int describe_operation(ts_gemm_plan *plan) {
    const cublasOperation_t transpose[] = {CUBLAS_OP_N, CUBLAS_OP_T};
    const cublasLtEpilogue_t epilogue = plan->key.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    TS_CUBLAS(cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    TS_TRY(set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transpose[plan->key.transpose_b], sizeof *transpose));
    TS_TRY(set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, &transpose[plan->key.transpose_a], sizeof *transpose));
    return set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
}

// A row-major matrix as stored.
static int describe_matrix(cublasLtMatrixLayout_t *out, bool bf16, int64_t rows, int64_t columns, int64_t stride) {
    TS_CUBLAS(
        cublasLtMatrixLayoutCreate(out, bf16 ? CUDA_R_16BF : CUDA_R_32F, (uint64_t)columns, (uint64_t)rows, stride));
    return TS_OK;
}

static int describe(ts_gemm_plan *plan) {
    const ts_gemm_key *key = &plan->key;
    const bool ta = key->transpose_a, tb = key->transpose_b;
    TS_TRY(describe_operation(plan));
    TS_TRY(describe_matrix(&plan->a, key->bf16_ab, ta ? key->k : key->m, ta ? key->m : key->k, key->lda));
    TS_TRY(describe_matrix(&plan->b, key->bf16_ab, tb ? key->n : key->k, tb ? key->k : key->n, key->ldb));
    return describe_matrix(&plan->c, key->bf16_c, key->m, key->n, key->ldc);
}

static void plan_free(ts_gemm_plan *plan) {
    const cublasLtMatrixLayout_t matrix[] = {plan->a, plan->b, plan->c};
    for (int i = 0; i < 3; i++) {
        if (matrix[i]) {
            (void)cublasLtMatrixLayoutDestroy(matrix[i]);
        }
    }
    if (plan->operation) {
        (void)cublasLtMatmulDescDestroy(plan->operation);
    }
    free(plan);
}

// ---- the table

static ts_gemm_plan **slot_of(const ts_gemm_key *key) {
    uint64_t at = XXH3_64bits(key, sizeof *key) % TABLE_SIZE;
    while (table[at] && memcmp(&table[at]->key, key, sizeof *key) != 0) {
        at = (at + 1) % TABLE_SIZE;
    }
    return &table[at];
}

// Programs with ever new shapes start over now and then; algorithms stay known (gemm_cache.c).
static void clear_when_full(void) {
    for (int i = 0; table_used >= TABLE_FULL && i < TABLE_SIZE; i++) {
        if (table[i]) {
            plan_free(table[i]);
            table[i] = NULL;
        }
    }
    table_used = table_used >= TABLE_FULL ? 0 : table_used;
}

static int make_plan(const ts_gemm_key *key, const ts_gemm *p, const void *bias, ts_gemm_plan **out) {
    ts_gemm_plan *plan = ts_calloc(1, sizeof *plan);
    if (!plan) {
        return TS_ERESOURCE;
    }
    plan->key = *key;
    int status = describe(plan);
    if (!status && bias) {  // proposals depend on its alignment
        status = set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
    }
    status = status ? status : ts_gemm_choose(plan, p);
    if (status) {
        plan_free(plan);
        return status;
    }
    clear_when_full();
    *slot_of(key) = *out = plan;
    table_used++;
    return TS_OK;
}

int ts_gemm_multiply(const ts_gemm *p, const void *bias, bool *done) {
    const ts_gemm_key key = key_of(p, bias != NULL);
    ts_gemm_plan *plan = *slot_of(&key);
    *done = false;
    if (!plan) {
        TS_TRY(make_plan(&key, p, bias, &plan));
    }
    if (!plan->possible) {
        return TS_OK;
    }
    if (bias) {
        TS_TRY(set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    }
    TS_TRY(ts_gemm_run(plan, p, p->c, &plan->algorithm, plan->workspace));
    *done = true;
    return TS_OK;
}

int ts_gemm_run(const ts_gemm_plan *plan, const ts_gemm *p, void *d, const cublasLtMatmulAlgo_t *algorithm,
                size_t workspace) {
    const float one = 1.0f, beta = p->accumulate ? 1.0f : 0.0f;
    // All of it at once: it must not grow while calls are recorded.
    void *const work = ts_cuda_scratch(TS_CUDA_SCRATCH_LIBRARY, TS_GEMM_WORKSPACE);
    if (!work) {
        return TS_ERESOURCE;
    }
    const void *const c = p->accumulate ? p->c : d;
    TS_CUBLAS(cublasLtMatmul(handle, plan->operation, &one, p->b, plan->b, p->a, plan->a, &beta, c, plan->c, d, plan->c,
                             algorithm, work, workspace, ts_cuda_stream()));
    return TS_OK;
}
