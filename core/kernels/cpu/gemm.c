// SPDX-License-Identifier: Apache-2.0
// Matrix products: checks, and the way each combination of dtypes and instruction set is computed.
//
// BF16 operands are multiplied on AMX tiles by gemm_amx.c where there are any. Else oneDNN multiplies F32 -> F32, and
// BF16 on AVX-512 processors; what remains is converted to F32 first. There GELU is a pass of our own over C: oneDNN's
// fused one costs more than that pass.
#include <string.h>

#include "core/base/status.h"
#include "core/kernels/cpu/cpu.h"
#include "core/kernels/cpu/gemm_amx.h"
#include "core/kernels/cpu/onednn.h"

static int check_gemm(const ts_gemm *p) {
    const bool operands = p->dtype_ab == TS_F32 || p->dtype_ab == TS_BF16;
    const bool results = p->dtype_c == TS_F32 || (p->dtype_c == TS_BF16 && !p->accumulate);
    const bool strides =
        p->lda >= (p->transpose_a ? p->m : p->k) && p->ldb >= (p->transpose_b ? p->k : p->n) && p->ldc >= p->n;
    if (!operands || !results || !strides || p->m < 0 || p->n < 0 || p->k < 0 || (p->before_gelu && !p->gelu)) {
        return TS_FAIL(TS_EINTERNAL, "gemm: m %lld n %lld k %lld ld %lld %lld %lld %s -> %s%s: not a product",
                       (long long)p->m, (long long)p->n, (long long)p->k, (long long)p->lda, (long long)p->ldb,
                       (long long)p->ldc, ts_dtype_name(p->dtype_ab), ts_dtype_name(p->dtype_c),
                       p->accumulate ? " accumulate" : "");
    }
    return 0;
}

// Makes a stored [rows, columns] operand contiguous F32 at `to`.
static int widen(const void *from, ts_dtype dtype, int64_t rows, int64_t columns, int64_t ld, float *to) {
    if (ld == columns) {
        return ts_cpu_table()->cast(from, dtype, to, TS_F32, rows * columns);
    }
    for (int64_t row = 0; row < rows; row++) {
        const void *line = (const char *)from + (size_t)(row * ld) * ts_dtype_bytes(dtype);
        TS_TRY(ts_cpu_table()->cast(line, dtype, to + row * columns, TS_F32, columns));
    }
    return 0;
}

// C = the product, computed in F32 throughout and rounded to dtype_c at the end.
static int product_through_f32(const ts_gemm *p) {
    ts_gemm wide = *p;
    wide.dtype_ab = wide.dtype_c = TS_F32;
    if (p->dtype_ab == TS_BF16) {
        const int64_t a_rows = p->transpose_a ? p->k : p->m, b_rows = p->transpose_b ? p->n : p->k;
        wide.lda = p->transpose_a ? p->m : p->k;
        wide.ldb = p->transpose_b ? p->k : p->n;
        float *operands = ts_cpu_scratch(TS_SCRATCH_OPERAND, (size_t)((p->m + p->n) * p->k) * sizeof *operands);
        if (!operands) {
            return TS_ERESOURCE;
        }
        TS_TRY(widen(p->a, TS_BF16, a_rows, wide.lda, p->lda, operands));
        TS_TRY(widen(p->b, TS_BF16, b_rows, wide.ldb, p->ldb, operands + p->m * p->k));
        wide.a = operands;
        wide.b = operands + p->m * p->k;
    }
    if (p->dtype_c == TS_F32) {
        return ts_onednn_matmul(&wide);
    }
    wide.ldc = p->n;
    wide.c = ts_cpu_scratch(TS_SCRATCH_RESULT, (size_t)(p->m * p->n) * sizeof(float));
    if (!wide.c) {
        return TS_ERESOURCE;
    }
    TS_TRY(ts_onednn_matmul(&wide));
    for (int64_t row = 0; row < p->m; row++) {
        TS_TRY(ts_cpu_table()->cast((const float *)wide.c + row * p->n, TS_F32, (uint16_t *)p->c + row * p->ldc,
                                    TS_BF16, p->n));
    }
    return 0;
}

// The sum of no products: 0, or C itself when accumulating, and the bias.
static int empty_product(const ts_gemm *p) {
    const ts_kernels *k = ts_cpu_table();
    for (int64_t row = 0; row < p->m; row++) {
        char *c = (char *)p->c + (size_t)(row * p->ldc) * ts_dtype_bytes(p->dtype_c);
        if (p->accumulate && p->bias) {
            TS_TRY(k->axpy(1.0f, p->bias, (float *)(void *)c, p->n));
        } else if (p->bias) {
            TS_TRY(k->cast(p->bias, TS_F32, c, p->dtype_c, p->n));
        } else if (!p->accumulate) {
            memset(c, 0, (size_t)p->n * ts_dtype_bytes(p->dtype_c));
        }
    }
    return 0;
}

static int product(const ts_gemm *p) {
    if (p->k == 0) {
        return empty_product(p);
    }
    const bool direct =
        p->dtype_ab == TS_F32 ? p->dtype_c == TS_F32 : ts_cpu_isa() >= TS_ISA_AVX512 && ts_onednn_multiplies_bf16();
    return direct ? ts_onednn_matmul(p) : product_through_f32(p);
}

// c = gelu(from), both [m, n] with row stride ldc.
static int gelu_rows(const ts_gemm *p, const void *from) {
    const ts_kernels *k = ts_cpu_table();
    if (p->ldc == p->n) {
        return k->gelu_forward(from, p->c, p->dtype_c, p->m * p->n);
    }
    const size_t row_bytes = (size_t)p->ldc * ts_dtype_bytes(p->dtype_c);
    for (int64_t row = 0; row < p->m; row++) {
        const size_t at = (size_t)row * row_bytes;
        TS_TRY(k->gelu_forward((const char *)from + at, (char *)p->c + at, p->dtype_c, p->n));
    }
    return 0;
}

int ts_cpu_gemm(const ts_gemm *p) {
    TS_TRY(check_gemm(p));
    if (p->m == 0 || p->n == 0) {
        return 0;
    }
    if (p->dtype_ab == TS_BF16 && p->k > 0 && ts_cpu_isa() >= TS_ISA_AMX) {
        return ts_amx_gemm(p);
    }
    if (!p->gelu) {
        return product(p);
    }
    ts_gemm before = *p;
    before.gelu = false;
    before.before_gelu = NULL;
    if (p->before_gelu && !p->accumulate) {
        before.c = p->before_gelu;
    }
    TS_TRY(product(&before));
    if (p->before_gelu && p->accumulate) {
        for (int64_t row = 0; row < p->m; row++) {
            const size_t at = (size_t)(row * p->ldc) * sizeof(float);
            TS_TRY(ts_cpu_table()->cast((const char *)p->c + at, TS_F32, (char *)p->before_gelu + at, TS_F32, p->n));
        }
    }
    return gelu_rows(p, before.c);
}
