// SPDX-License-Identifier: Apache-2.0
// Matrix products: what cuBLASLt fuses with them, and what it does not.
//
//   bias  in the type of C. A bf16 C takes the bias rounded to bf16.
//   GELU  never: cuBLASLt takes it of the sum in f32 and by an approximation of its own, but C must be gelu_forward of
//         the rounded sum bit by bit, or a layer made again for its backward pass would give other numbers than it did.
//         The kernel of gelu_forward follows, from before_gelu or in place.
//   else  f32 operands with a bf16 C, which cuBLASLt has not, go through f32 scratch; an address or a stride that is no
//         multiple of 16 bytes, which its epilogues want, gets the plain product. gemm_finish.cu does the rest.
#include <string.h>

#include "core/kernels/cuda/gemm.h"

static int check(const ts_gemm *p) {
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
    return TS_OK;
}

// What is left to do with a sum over k at `from`.
static int finish(const ts_gemm *p, const void *from, ts_dtype dtype, int64_t stride, const float *bias) {
    return ts_cuda_gemm_finish(&(ts_gemm_finish){.rows = p->m,
                                                 .columns = p->n,
                                                 .from = from,
                                                 .dtype_from = dtype,
                                                 .from_stride = stride,
                                                 .bias = bias,
                                                 .gelu = p->gelu,
                                                 .before_gelu = p->before_gelu,
                                                 .c = p->c,
                                                 .dtype_c = p->dtype_c,
                                                 .c_stride = p->ldc});
}

static int multiply_plainly(const ts_gemm *p) {
    bool done;
    TS_TRY(ts_gemm_multiply(p, NULL, &done));
    return done ? TS_OK
                : TS_FAIL(TS_EPEER,
                          "cuBLASLt %zu has no product of %lldx%lldx%lld %s -> %s on this GPU: use another "
                          "version of it, or the cpu device",
                          cublasLtGetVersion(), (long long)p->m, (long long)p->n, (long long)p->k,
                          ts_dtype_name(p->dtype_ab), ts_dtype_name(p->dtype_c));
}

// ---- bias

// Whether cuBLASLt may add the bias: its vector accesses are of 16 bytes.
static bool can_add_bias(const ts_gemm *p) {
    const int64_t row_bytes = p->ldc * (int64_t)ts_dtype_bytes(p->dtype_c);
    const bool bias = p->dtype_c == TS_BF16 || (uintptr_t)p->bias % 16 == 0;
    return bias && (uintptr_t)p->c % 16 == 0 && row_bytes % 16 == 0;
}

static int bias_operand(const ts_gemm *p, const void **out) {
    *out = p->bias;
    if (!p->bias || p->dtype_c == TS_F32) {
        return TS_OK;
    }
    void *rounded = ts_cuda_scratch(TS_CUDA_SCRATCH_OPERAND, (size_t)p->n * sizeof(uint16_t));
    *out = rounded;
    return rounded ? ts_cuda_cast(p->bias, TS_F32, rounded, TS_BF16, p->n) : TS_ERESOURCE;
}

// ---- the ways to C

// The sum with its bias from cuBLASLt, where it has both. `sum` is p with C where the sum is to be.
static int multiply_with_bias(const ts_gemm *sum, bool *done) {
    *done = false;
    if (sum->bias && !can_add_bias(sum)) {
        return TS_OK;
    }
    const void *bias;
    TS_TRY(bias_operand(sum, &bias));
    return ts_gemm_multiply(sum, bias, done);
}

// The sum in f32, in C itself if that is f32, and all else after it.
static int multiply_and_finish(const ts_gemm *p) {
    ts_gemm sum = *p;
    if (p->dtype_c != TS_F32) {
        sum.dtype_c = TS_F32;
        sum.ldc = p->n;
        sum.c = ts_cuda_scratch(TS_CUDA_SCRATCH_RESULT, (size_t)(p->m * p->n) * sizeof(float));
        if (!sum.c) {
            return TS_ERESOURCE;
        }
    }
    TS_TRY(multiply_plainly(&sum));
    const bool is_finished = sum.c == p->c && !p->bias && !p->gelu;
    return is_finished ? TS_OK : finish(p, sum.c, TS_F32, sum.ldc, p->bias);
}

// GELU of a sum that is rounded and has its bias.
static int gelu_of(const ts_gemm *p, const void *sum) {
    if (p->ldc == p->n && (!p->before_gelu || p->before_gelu == sum)) {
        return ts_cuda_gelu_forward(sum, p->c, p->dtype_c, p->m * p->n);
    }
    return finish(p, sum, p->dtype_c, p->ldc, NULL);
}

int ts_cuda_gemm(const ts_gemm *p) {
    TS_TRY(check(p));
    if (p->m == 0 || p->n == 0) {
        return TS_OK;
    }
    if (p->k == 0) {
        return finish(p, p->accumulate ? p->c : NULL, p->dtype_c, p->ldc, p->bias);
    }
    bool done = false;
    if (p->dtype_ab == p->dtype_c || p->dtype_c == TS_F32) {
        ts_gemm sum = *p;
        sum.c = p->before_gelu && !p->accumulate ? p->before_gelu : p->c;
        TS_TRY(multiply_with_bias(&sum, &done));
        if (done) {
            return p->gelu ? gelu_of(p, sum.c) : TS_OK;
        }
    }
    return multiply_and_finish(p);
}
