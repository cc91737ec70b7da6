// SPDX-License-Identifier: Apache-2.0
#include "core/comm/backend.h"

#include "core/base/status.h"

int ts_backend_open(const ts_kernels **out, ts_comm *world, const char *device) {
    TS_TRY(ts_agree(world, ts_kernels_open(out, device, ts_comm_local_rank(world))));
    // The lowest rank that computes on the host, and the lowest that does not; past the last rank where there is none.
    const int64_t ranks = ts_comm_size(world), rank = ts_comm_rank(world);
    const bool is_host = (*out)->device->is_host;
    int64_t lowest[2] = {is_host ? rank : ranks, is_host ? ranks : rank};
    TS_TRY(ts_all_reduce(world, lowest, 2, TS_I64, TS_MIN));
    if (lowest[0] < ranks && lowest[1] < ranks) {
        return TS_FAIL(TS_EUSAGE,
                       "rank %lld has no GPU that it can use, and rank %lld has one; start ranks only where there are "
                       "GPUs, or use device=cpu",
                       (long long)lowest[0], (long long)lowest[1]);
    }
    return TS_OK;
}
