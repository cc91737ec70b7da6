// SPDX-License-Identifier: Apache-2.0
// Fused attention: checks, and the choice of the kernel.
#include "core/kernels/cuda/attention.h"

#include <limits.h>

static bool has_queries(const ts_attention *p) {
    return p->batch > 0 && p->heads > 0 && p->queries > 0;
}

static bool has_keys(const ts_attention *p) {
    return p->batch > 0 && p->heads > 0 && p->keys > 0;
}

static int check_counts(const ts_attention *p) {
    if (p->batch < 0 || p->heads < 0 || p->queries < 0 || p->keys < 0) {
        return TS_FAIL(TS_EUSAGE, "attention: batch %lld, heads %lld, queries %lld and keys %lld must not be negative",
                       (long long)p->batch, (long long)p->heads, (long long)p->queries, (long long)p->keys);
    }
    // Rows are counted in 32 bits, and a grid has as many blocks at most: one for 8 rows of a head or more.
    const int64_t rows = p->queries > p->keys ? p->queries : p->keys;
    int64_t pairs = 0, blocks = 0;
    if (rows > INT_MAX / 2 || __builtin_mul_overflow(p->batch, p->heads, &pairs) ||
        __builtin_mul_overflow(pairs, rows / 8 + 1, &blocks) || blocks > INT_MAX) {
        return TS_FAIL(TS_EUSAGE,
                       "attention: batch %lld, heads %lld, queries %lld, keys %lld are too many for one call",
                       (long long)p->batch, (long long)p->heads, (long long)p->queries, (long long)p->keys);
    }
    return 0;
}

// What key_count holds is not seen from here: kernels keep within `keys` whatever it says.
static int check_forward(const ts_attention *p) {
    enum { MAX_HEAD_DIM = 256 };
    TS_TRY(check_counts(p));
    if (p->head_dim < 1 || p->head_dim > MAX_HEAD_DIM) {
        return TS_FAIL(TS_EUSAGE, "attention: head_dim %lld is outside 1..%d; use more or fewer heads",
                       (long long)p->head_dim, MAX_HEAD_DIM);
    }
    if (p->dtype != TS_F32 && p->dtype != TS_BF16) {
        return TS_FAIL(TS_EUSAGE, "attention: dtype %s is not supported; use F32 or BF16", ts_dtype_name(p->dtype));
    }
    if ((has_queries(p) && (!p->q || !p->out)) || (has_keys(p) && (!p->k || !p->v))) {
        return TS_FAIL(TS_EUSAGE, "attention: q, k, v and out must be set");
    }
    return 0;
}

static int check_backward(const ts_attention *p) {
    TS_TRY(check_forward(p));
    if ((has_queries(p) && (!p->lse || !p->d_out || !p->d_q)) || (has_keys(p) && (!p->d_k || !p->d_v))) {
        return TS_FAIL(TS_EUSAGE, "attention backward: lse, d_out, d_q, d_k and d_v must be set");
    }
    if (p->d_bias_strip && !p->bias_strip) {
        return TS_FAIL(TS_EUSAGE, "attention backward: d_bias_strip without bias_strip");
    }
    return 0;
}

bool ts_cuda_attention_takes_mma(const ts_attention *p, bool backward) {
    return p->dtype == TS_BF16 && p->head_dim <= 128 && !p->bias_strip && p->scale > 0 && has_queries(p) &&
           has_keys(p) && ts_cuda_get_properties()->major >= 8 && ts_attention_is_aligned(p, backward);
}

// Maps for the copy engine have strides of less than 2^40 bytes, of a batch of one any
// (core/kernels/cuda/tensor_map.c).
static bool has_mapped_strides(const ts_attention *p) {
    const int64_t most = (int64_t)1 << 38;
    const int64_t row[] = {p->q_row, p->k_row, p->v_row, p->out_row};
    const int64_t batch[] = {p->q_batch, p->k_batch, p->v_batch, p->out_batch};
    bool fine = true;
    for (int i = 0; i < 4; i++) {
        fine = fine && row[i] > 0 && row[i] < most && (p->batch == 1 || (batch[i] > 0 && batch[i] < most));
    }
    return fine;
}

// Its kernels know two head sizes and no masks, and are for this one architecture.
bool ts_cuda_attention_takes_sm90(const ts_attention *p, bool backward) {
    const ts_cuda_properties *device = ts_cuda_get_properties();
    return device->major == 9 && device->minor == 0 && (p->head_dim == 64 || p->head_dim == 128) && !p->key_count &&
           ts_cuda_attention_takes_mma(p, backward) && has_mapped_strides(p);
}

int ts_cuda_attention_forward(const ts_attention *p) {
    TS_TRY(check_forward(p));
    if (ts_cuda_attention_takes_sm90(p, false)) {
        return ts_cuda_attention_forward_sm90(p);
    }
    if (ts_cuda_attention_takes_mma(p, false)) {
        return ts_cuda_attention_forward_mma(p);
    }
    return ts_cuda_attention_forward_general(p);
}

int ts_cuda_attention_backward(const ts_attention *p) {
    TS_TRY(check_backward(p));
    if (ts_cuda_attention_takes_sm90(p, true)) {
        return ts_cuda_attention_backward_sm90(p);
    }
    if (ts_cuda_attention_takes_mma(p, true)) {
        return ts_cuda_attention_backward_mma(p);
    }
    return ts_cuda_attention_backward_general(p);
}
