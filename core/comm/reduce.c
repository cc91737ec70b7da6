// SPDX-License-Identifier: Apache-2.0
#include "core/comm/reduce.h"

#include "core/base/status.h"

enum { BLOCK = 1024 };  // elements that stay in the first cache while the parts pass

// One pass over blocks: `load` the first part, `combine` the others, `store`. The pragma promises that elements are
// independent, which lets `out` be one of the parts.
#define DEFINE_REDUCE(name, element, wide, load, combine, store)                                                       \
    static void name(element *out, const void *const *part, int n, int64_t count) {                                    \
        wide sum[BLOCK];                                                                                               \
        for (int64_t first = 0; first < count; first += BLOCK) {                                                       \
            const int64_t m = count - first < BLOCK ? count - first : BLOCK;                                           \
            const element *x = (const element *)part[0] + first;                                                       \
            for (int64_t i = 0; i < m; i++) {                                                                          \
                sum[i] = load(x[i]);                                                                                   \
            }                                                                                                          \
            for (int p = 1; p < n; p++) {                                                                              \
                x = (const element *)part[p] + first;                                                                  \
                for (int64_t i = 0; i < m; i++) {                                                                      \
                    sum[i] = combine(sum[i], load(x[i]));                                                              \
                }                                                                                                      \
            }                                                                                                          \
            for (int64_t i = 0; i < m; i++) {                                                                          \
                out[first + i] = store(sum[i]);                                                                        \
            }                                                                                                          \
        }                                                                                                              \
    }

#define SAME(x)     (x)
#define ADD(a, b)   ((a) + (b))
#define MOST(a, b)  ((b) > (a) ? (b) : (a))
#define LEAST(a, b) ((b) < (a) ? (b) : (a))

#define DEFINE_REDUCES(suffix, element)                                                                                \
    DEFINE_REDUCE(sum_##suffix, element, element, SAME, ADD, SAME)                                                     \
    DEFINE_REDUCE(max_##suffix, element, element, SAME, MOST, SAME)                                                    \
    DEFINE_REDUCE(min_##suffix, element, element, SAME, LEAST, SAME)                                                   \
    static void reduce_##suffix(element *out, const void *const *part, int n, int64_t count, ts_reduce_op op) {        \
        (op == TS_SUM ? sum_##suffix : op == TS_MAX ? max_##suffix : min_##suffix)(out, part, n, count);               \
    }

DEFINE_REDUCES(f32, float)
DEFINE_REDUCES(f64, double)
DEFINE_REDUCES(i64, int64_t)
DEFINE_REDUCES(i32, int32_t)
DEFINE_REDUCE(sum_bf16, uint16_t, float, ts_bf16_to_f32, ADD, ts_f32_to_bf16)

void ts_reduce_parts(void *out, const void *const *part, int n, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    switch (dtype) {
    case TS_F32:
        reduce_f32(out, part, n, count, op);
        break;
    case TS_F64:
        reduce_f64(out, part, n, count, op);
        break;
    case TS_I64:
        reduce_i64(out, part, n, count, op);
        break;
    case TS_I32:
        reduce_i32(out, part, n, count, op);
        break;
    default:
        TS_ASSERT(dtype == TS_BF16 && op == TS_SUM);
        sum_bf16(out, part, n, count);
    }
}

int ts_reduce_check(ts_dtype dtype, bool bf16) {
    const bool number = dtype == TS_F32 || dtype == TS_F64 || dtype == TS_I64 || dtype == TS_I32;
    if (!number && !(bf16 && dtype == TS_BF16)) {
        return TS_FAIL(TS_EINTERNAL, "%s cannot be reduced; convert to F32 first", ts_dtype_name(dtype));
    }
    return TS_OK;
}
