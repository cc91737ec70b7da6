// SPDX-License-Identifier: Apache-2.0
// The CUDA backend's kernel table.
#include "core/kernels/cuda/cuda.h"

static ts_kernels table = {.name = "cuda", .device = &ts_cuda_device};

int ts_kernels_cuda(const ts_kernels **out, int local_rank) {
    TS_TRY(ts_cuda_open(local_rank));
    *out = &table;
    return TS_OK;
}
