// SPDX-License-Identifier: Apache-2.0
#include "train/reduce.h"

#include "core/base/status.h"

int ts_reduce_gradients(ts_comm *data, float *grad, int64_t count) {
    return ts_all_reduce(data, grad, count, TS_F32, TS_SUM);
}
