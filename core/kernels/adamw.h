// SPDX-License-Identifier: Apache-2.0
// What the backends share of AdamW: its checks, and the factors of a step, made in f64 once. Formula: kernels.h.
#ifndef TS_KERNELS_ADAMW_H
#define TS_KERNELS_ADAMW_H

#include <math.h>

#include "core/base/status.h"
#include "core/kernels/kernels.h"

typedef struct ts_adamw_factors {
    float m_keep, m_take, v_keep, v_take;  // beta and 1 - beta
    float step_size, v_correction;         // lr / (1 - b1^step), 1 / (1 - b2^step)
    float shrink;                          // 1 - lr * weight_decay
} ts_adamw_factors;

static inline int ts_adamw_begin(const ts_adamw *p, ts_adamw_factors *out) {
    if (p->step < 1) {
        return TS_FAIL(TS_EINTERNAL, "adamw: step %lld, counted from 1", (long long)p->step);
    }
    const int64_t numbered = (int64_t)1 << 35;  // 8 of each of 2^32 draws
    if (p->operand && p->rounding == TS_ROUND_STOCHASTIC && (p->first < 0 || p->first > numbered - p->count)) {
        return TS_FAIL(TS_EINTERNAL, "adamw: numbers %lld to %lld are rounded; 2^35 of a step can be",
                       (long long)p->first, (long long)(p->first + p->count));
    }
    out->m_keep = p->beta1;
    out->m_take = (float)(1.0 - (double)p->beta1);
    out->v_keep = p->beta2;
    out->v_take = (float)(1.0 - (double)p->beta2);
    out->step_size = (float)((double)p->lr / (1.0 - pow((double)p->beta1, (double)p->step)));
    out->v_correction = (float)(1.0 / (1.0 - pow((double)p->beta2, (double)p->step)));
    out->shrink = (float)(1.0 - (double)p->lr * (double)p->weight_decay);
    return TS_OK;
}

#endif
