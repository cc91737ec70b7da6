// SPDX-License-Identifier: Apache-2.0
// Inside core/comm only: sums over ranks, taken in the order of the ranks.
#ifndef TS_COMM_REDUCE_H
#define TS_COMM_REDUCE_H

#include "core/comm/comm.h"

// out[i] = part[0][i] op part[1][i] op .. part[n - 1][i], from left to right; BF16 is summed in f32 and rounded once.
// `out` may be one of the parts, and must not overlap them otherwise. The bits depend on nothing but the parts.
void ts_reduce_parts(void *out, const void *const *part, int n, int64_t count, ts_dtype dtype, ts_reduce_op op);
// TS_EINTERNAL for a dtype that is not F32, F64, I64 or I32, or BF16 where `bf16` allows it.
int ts_reduce_check(ts_dtype dtype, bool bf16);

#endif
