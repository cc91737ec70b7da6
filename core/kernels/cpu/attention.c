// SPDX-License-Identifier: Apache-2.0
// Fused attention: checks, the choice of engine, and how the work is shared out.
#include <math.h>
#include <omp.h>
#include <stdatomic.h>
#include <string.h>
#include <xmmintrin.h>

#include "core/base/status.h"
#include "core/kernels/cpu/attention.h"
#include "core/kernels/cpu/cpu.h"

static bool has_queries(const ts_attention *p) {
    return p->batch > 0 && p->heads > 0 && p->queries > 0;
}

static bool has_keys(const ts_attention *p) {
    return p->batch > 0 && p->heads > 0 && p->keys > 0;
}

static int check_forward(const ts_attention *p) {
    if (p->batch < 0 || p->heads < 0 || p->queries < 0 || p->keys < 0) {
        return TS_FAIL(TS_EUSAGE, "attention: batch %lld, heads %lld, queries %lld and keys %lld must not be negative",
                       (long long)p->batch, (long long)p->heads, (long long)p->queries, (long long)p->keys);
    }
    if (p->head_dim < 1 || p->head_dim > TS_ATTENTION_MAX_HEAD_DIM) {
        return TS_FAIL(TS_EUSAGE, "attention: head_dim %lld is outside 1..%d; use more or fewer heads",
                       (long long)p->head_dim, TS_ATTENTION_MAX_HEAD_DIM);
    }
    if (p->dtype != TS_F32 && p->dtype != TS_BF16) {
        return TS_FAIL(TS_EUSAGE, "attention: dtype %s is not supported; use F32 or BF16", ts_dtype_name(p->dtype));
    }
    if ((has_queries(p) && (!p->q || !p->out)) || (has_keys(p) && (!p->k || !p->v))) {
        return TS_FAIL(TS_EUSAGE, "attention: q, k, v and out must be set");
    }
    for (int64_t b = 0; p->key_count && p->keys > 0 && b < p->batch; b++) {
        if (p->key_count[b] < 1 || p->key_count[b] > p->keys) {
            return TS_FAIL(TS_EUSAGE, "attention: key_count[%lld] = %d is outside 1..%lld", (long long)b,
                           (int)p->key_count[b], (long long)p->keys);
        }
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

static const ts_attention_engine *engine_for(const ts_attention *p) {
    const ts_isa isa = ts_cpu_isa();
    if (p->dtype == TS_BF16 && p->head_dim <= 128 && !p->bias_strip && p->scale >= 0) {
        if (isa >= TS_ISA_AMX) {
            return &ts_attention_amx;
        }
        if (isa >= TS_ISA_AVX512BF16) {
            return &ts_attention_avx512bf16;
        }
    }
    return isa >= TS_ISA_AVX512 ? &ts_attention_avx512
           : isa >= TS_ISA_AVX2 ? &ts_attention_avx2
                                : &ts_attention_generic;
}

// ---- calls without queries or without keys

static void zero_result(const ts_attention *p, void *to, int64_t row_stride, int64_t batch_stride, int64_t rows) {
    const ts_dtype dtype = attention_result(p);
    const size_t row_bytes = (size_t)(p->heads * p->head_dim) * ts_dtype_bytes(dtype);
    for (int64_t b = 0; row_bytes > 0 && b < p->batch; b++) {
        for (int64_t row = 0; row < rows; row++) {
            memset(attention_at_mutable(to, dtype, b * batch_stride + row * row_stride), 0, row_bytes);
        }
    }
}

static int forward_without_keys(const ts_attention *p) {
    zero_result(p, p->out, p->out_row, p->out_batch, p->queries);
    for (int64_t i = 0; p->lse && i < p->batch * p->heads * p->queries; i++) {
        p->lse[i] = -INFINITY;
    }
    return 0;
}

static int backward_without_scores(const ts_attention *p) {
    zero_result(p, p->d_q, p->q_row, p->q_batch, p->queries);
    zero_result(p, p->d_k, p->k_row, p->k_batch, p->keys);
    zero_result(p, p->d_v, p->v_row, p->v_batch, p->keys);
    return 0;
}

// ---- threads

typedef struct thread_state {
    void *scratch;
    unsigned rounding;  // of the SSE unit as found
} thread_state;

// Probabilities underflow to zero: subnormal numbers, slow on most processors, would carry nothing.
static thread_state thread_begin(const ts_attention_engine *engine, size_t bytes) {
    const thread_state state = {ts_cpu_scratch(TS_SCRATCH_ATTENTION, bytes), _mm_getcsr()};
    _mm_setcsr(state.rounding | 0x8040u);  // flush to zero, subnormals are zero
    if (engine->thread_begin) {
        engine->thread_begin();
    }
    return state;
}

static void thread_end(const ts_attention_engine *engine, thread_state state) {
    if (engine->thread_end) {
        engine->thread_end();
    }
    _mm_setcsr(state.rounding);
}

static int out_of_memory(const ts_attention *p, size_t bytes) {
    return TS_FAIL(TS_ERESOURCE, "attention: no memory for %zu bytes of scratch (%lld queries, %lld keys)", bytes,
                   (long long)p->queries, (long long)p->keys);
}

// Heads are cut into slices of queries only as far as the threads need it: each slice packs K and V anew. The result
// of a query does not depend on the slice it is in.
enum { SLICE_UNIT = 96 };  // whole query blocks of every engine

static int64_t slices_per_head(const ts_attention *p) {
    const int64_t pairs = p->batch * p->heads, threads = omp_get_max_threads();
    int64_t slices = 1;
    while (pairs * slices % threads != 0 && pairs * slices < 4 * threads && p->queries >= (slices + 1) * SLICE_UNIT) {
        slices++;
    }
    return slices;
}

int ts_cpu_attention_forward(const ts_attention *p) {
    TS_TRY(check_forward(p));
    if (!has_queries(p) || !has_keys(p)) {
        return forward_without_keys(p);
    }
    const ts_attention_engine *engine = engine_for(p);
    const size_t bytes = engine->forward_bytes(p);
    const int64_t slices = slices_per_head(p), units = p->batch * p->heads * slices;
    const int64_t slice = attention_round_up((p->queries + slices - 1) / slices, SLICE_UNIT);
    atomic_bool failed = false;
#pragma omp parallel if (units > 1)
    {
        const thread_state state = thread_begin(engine, bytes);
        if (!state.scratch) {
            failed = true;
        }
#pragma omp for schedule(static)
        for (int64_t u = 0; u < units; u++) {
            const int64_t pair = u / slices, first = u % slices * slice;
            const int64_t last = attention_min(first + slice, p->queries);
            if (state.scratch && first < last) {
                engine->forward(p, pair / p->heads, pair % p->heads, first, last, state.scratch);
            }
        }
        thread_end(engine, state);
    }
    return failed ? out_of_memory(p, bytes) : 0;
}

// d_bias_strip[head] sums over the batch: one thread then takes all of a head, in order of batch.
int ts_cpu_attention_backward(const ts_attention *p) {
    TS_TRY(check_backward(p));
    if (!has_queries(p) || !has_keys(p)) {
        return backward_without_scores(p);
    }
    const ts_attention_engine *engine = engine_for(p);
    const size_t bytes = engine->backward_bytes(p);
    const int64_t run = p->d_bias_strip ? p->batch : 1, units = p->batch * p->heads / run;
    atomic_bool failed = false;
#pragma omp parallel if (units > 1)
    {
        const thread_state state = thread_begin(engine, bytes);
        if (!state.scratch) {
            failed = true;
        }
#pragma omp for schedule(static)
        for (int64_t u = 0; u < units; u++) {
            const int64_t head = u % p->heads, first = u / p->heads;
            for (int64_t b = first; state.scratch && b < first + run; b++) {
                engine->backward(p, b, head, state.scratch);
            }
        }
        thread_end(engine, state);
    }
    return failed ? out_of_memory(p, bytes) : 0;
}

// ---- merging

// The weights of two parts with statistics a and b, and the merged statistic; without keys on either side both
// weights are 0.
static float merge_weights(float a, float b, float *weight_a, float *weight_b) {
    const float top = a > b ? a : b;
    if (top == -INFINITY) {
        *weight_a = *weight_b = 0;
        return top;
    }
    const float merged = top + logf(expf(a - top) + expf(b - top));
    *weight_a = expf(a - merged);
    *weight_b = expf(b - merged);
    return merged;
}

int ts_cpu_attention_merge(const ts_attention_merge *p) {
    const int64_t d = p->head_dim;
#pragma omp parallel for schedule(static) if (p->batch * p->queries * p->heads * d > 16384)
    for (int64_t row = 0; row < p->batch * p->queries; row++) {
        const int64_t batch = row / p->queries, query = row % p->queries;
        for (int64_t head = 0; head < p->heads; head++) {
            const int64_t at = (batch * p->heads + head) * p->queries + query;
            float *restrict out = p->out + (row * p->heads + head) * d;
            const float *restrict part = p->part + (row * p->heads + head) * d;
            float own, other;
            p->lse[at] = merge_weights(p->lse[at], p->part_lse[at], &own, &other);
            for (int64_t i = 0; i < d; i++) {
                out[i] = own * out[i] + other * part[i];
            }
        }
    }
    return 0;
}
