// SPDX-License-Identifier: Apache-2.0
// AdamW in one pass: everything that belongs to a number is read once and written once. Formula:
// core/kernels/kernels.h.
//
// A call is a flat range of a shard, in which all parameters with the same settings follow one another: there is no
// list of tensors to walk through.
#include "core/kernels/cuda/flat.cuh"

#include <float.h>

#include "core/base/rng.h"
#include "core/base/rng_math.h"
#include "core/kernels/adamw.h"

enum { N = 4 };  // of a thread: four loads of 16 bytes are on their way

// The random bits of number e of the stream: see ts_rounding.
struct round_draw {
    uint32_t lane, word[4];
    __device__ __forceinline__ explicit round_draw(const ts_adamw &p, int64_t e) : lane((uint32_t)(e / 8)) {
        ts_philox_words(p.seed, TS_RNG_ROUND, (uint64_t)p.step, lane, word);
    }
    // Of number e, which is in this draw; the words are chosen from without an address, so that they stay in registers.
    __device__ __forceinline__ uint32_t half(int64_t e) const {
        const uint32_t low = e & 2 ? word[1] : word[0], high = e & 2 ? word[3] : word[2];
        const uint32_t both = e & 4 ? high : low;
        return e & 1 ? both >> 16 : both & 0xffffu;
    }
};

// The bf16 copies of a thread's weights, of which a draw serves eight neighbours.
template <bool ALIGNED>
static __device__ __forceinline__ void store_stochastic(const ts_adamw &p, const float (&w)[N], int64_t i) {
    round_draw draw(p, p.first + i);
    float rounded[N];
#pragma unroll
    for (int k = 0; k < N; k++) {
        const int64_t e = p.first + i + k;
        if (k > 0 && e % 8 == 0) {
            draw = round_draw(p, e);
        }
        rounded[k] = __uint_as_float((uint32_t)ts_bf16_stochastic(w[k], draw.half(e)) << 16);
    }
    ts_flat_store<ALIGNED>((ts_bf16 *)p.operand, rounded, i, p.count);
}

// Moments of weights whose gradient stays 0 end as 0 and not as denormal numbers, as on the CPU.
static __device__ __forceinline__ float flushed(float x) {
    return fabsf(x) < FLT_MIN ? 0.0f : x;
}

template <bool ALIGNED>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) adamw(ts_adamw p, ts_adamw_factors f) {
    const int64_t i = ts_flat_first<N>();
    if (i >= p.count) {
        return;
    }
    float g[N], m[N], v[N], w[N], ema[N];
    ts_flat_load<ALIGNED>(g, p.grad, i, p.count);
    ts_flat_load<ALIGNED>(m, p.m, i, p.count);
    ts_flat_load<ALIGNED>(v, p.v, i, p.count);
    ts_flat_load<ALIGNED>(w, p.weight, i, p.count);
    if (p.ema) {
        ts_flat_load<ALIGNED>(ema, p.ema, i, p.count);
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float grad = g[k] * p.grad_scale;
        m[k] = flushed(f.m_keep * m[k] + f.m_take * grad);
        v[k] = flushed(f.v_keep * v[k] + f.v_take * (grad * grad));
        w[k] = f.shrink * w[k] - f.step_size * m[k] / (sqrtf(v[k] * f.v_correction) + p.eps);
        ema[k] = p.ema ? p.ema_decay * ema[k] + (1.0f - p.ema_decay) * w[k] : 0.0f;
    }
    ts_flat_store<ALIGNED>(p.m, m, i, p.count);
    ts_flat_store<ALIGNED>(p.v, v, i, p.count);
    ts_flat_store<ALIGNED>(p.weight, w, i, p.count);
    if (p.ema) {
        ts_flat_store<ALIGNED>(p.ema, ema, i, p.count);
    }
    if (p.operand && p.rounding == TS_ROUND_STOCHASTIC) {
        store_stochastic<ALIGNED>(p, w, i);
    } else if (p.operand) {
        ts_flat_store<ALIGNED>((ts_bf16 *)p.operand, w, i, p.count);
    }
}

static int adamw_entry(const ts_adamw *p) {
    ts_adamw_factors factors;
    TS_TRY(ts_adamw_begin(p, &factors));
    // Four bf16 numbers are moved at once, as 8 bytes.
    const bool aligned = ts_are_aligned(p->weight, p->m, p->v, p->grad, p->ema) && (uintptr_t)p->operand % 8 == 0;
    TS_FLAT("adamw", (adamw<ALIGNED>), aligned, p->count, N, *p, factors);
    return TS_OK;
}

void ts_cuda_fill_optimizer(ts_kernels *kernels) {
    kernels->adamw = adamw_entry;
}
