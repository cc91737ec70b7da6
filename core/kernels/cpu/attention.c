// SPDX-License-Identifier: Apache-2.0
// Fused attention: checks, the choice of engine, and how the work is shared out.
#include <omp.h>
#include <stdatomic.h>
#include <xmmintrin.h>

#include "core/base/status.h"
#include "core/kernels/cpu/attention.h"
#include "core/kernels/cpu/cpu.h"

static int check_forward(const ts_attention *p) {
    if (p->batch < 1 || p->heads < 1 || p->queries < 1 || p->keys < 1) {
        return TS_FAIL(TS_EUSAGE, "attention: batch %lld, heads %lld, queries %lld and keys %lld must be at least 1",
                       (long long)p->batch, (long long)p->heads, (long long)p->queries, (long long)p->keys);
    }
    if (p->head_dim < 1 || p->head_dim > TS_ATTENTION_MAX_HEAD_DIM) {
        return TS_FAIL(TS_EUSAGE, "attention: head_dim %lld is outside 1..%d; use more or fewer heads",
                       (long long)p->head_dim, TS_ATTENTION_MAX_HEAD_DIM);
    }
    if (p->dtype != TS_F32 && p->dtype != TS_BF16) {
        return TS_FAIL(TS_EUSAGE, "attention: dtype %s is not supported; use F32 or BF16", ts_dtype_name(p->dtype));
    }
    if (!p->q || !p->k || !p->v || !p->out) {
        return TS_FAIL(TS_EUSAGE, "attention: q, k, v and out must be set");
    }
    for (int64_t b = 0; p->key_count && b < p->batch; b++) {
        if (p->key_count[b] < 1 || p->key_count[b] > p->keys) {
            return TS_FAIL(TS_EUSAGE, "attention: key_count[%lld] = %d is outside 1..%lld", (long long)b,
                           (int)p->key_count[b], (long long)p->keys);
        }
    }
    return 0;
}

static int check_backward(const ts_attention *p) {
    TS_TRY(check_forward(p));
    if (!p->lse || !p->d_out || !p->d_q || !p->d_k || !p->d_v) {
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
