// SPDX-License-Identifier: Apache-2.0
// What every backend's `combine` refuses.
#ifndef TS_KERNELS_COMBINE_H
#define TS_KERNELS_COMBINE_H

#include "core/base/status.h"
#include "core/kernels/kernels.h"

static inline int ts_combine_check(const ts_combine *p) {
    if (p->terms < 1 || p->terms > TS_MAX_TERMS) {
        return TS_FAIL(TS_EINTERNAL, "combine: %d terms, from 1 to %d can be summed", p->terms, TS_MAX_TERMS);
    }
    if (p->row_class && (p->width < 1 || p->n % p->width || !p->class_c)) {
        return TS_FAIL(TS_EINTERNAL, "combine: %lld numbers in rows of %lld, %s coefficients of classes",
                       (long long)p->n, (long long)p->width, p->class_c ? "with" : "without");
    }
    return TS_OK;
}

#endif
