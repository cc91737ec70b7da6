// SPDX-License-Identifier: Apache-2.0
#include "train/reduce.h"

#include "core/base/status.h"

int ts_reduce_gradients(ts_comm *data, float *grad, int64_t count) {
    if (ts_comm_size(data) == 1) {
        return TS_OK;
    }
    ts_request *request[TS_REDUCE_IN_FLIGHT] = {NULL};
    const int64_t buckets = (count + TS_REDUCE_BUCKET - 1) / TS_REDUCE_BUCKET;
    // One ring of requests: slot b is waited for before bucket b + TS_REDUCE_IN_FLIGHT takes it.
    for (int64_t b = 0; b < buckets + TS_REDUCE_IN_FLIGHT; b++) {
        ts_request **slot = &request[b % TS_REDUCE_IN_FLIGHT];
        if (*slot) {
            TS_TRY(ts_wait(slot));
        }
        if (b < buckets) {
            const int64_t first = b * TS_REDUCE_BUCKET, left = count - first;
            TS_TRY(ts_all_reduce_start(data, grad + first, left < TS_REDUCE_BUCKET ? left : TS_REDUCE_BUCKET, slot));
        }
    }
    return TS_OK;
}
