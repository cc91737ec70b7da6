// SPDX-License-Identifier: Apache-2.0
// The CUDA backend's kernel table.
#include "core/kernels/cuda/cuda.h"

static ts_kernels table = {
    .name = "cuda",
    .device = &ts_cuda_device,
    .gemm = ts_cuda_gemm,
    .conv3d_forward = ts_cuda_conv3d_forward,
    .conv3d_backward = ts_cuda_conv3d_backward,
    .attention_forward = ts_cuda_attention_forward,
    .attention_backward = ts_cuda_attention_backward,
    .attention_merge = ts_cuda_attention_merge,
};

int ts_kernels_cuda(const ts_kernels **out, int local_rank) {
    TS_TRY(ts_cuda_open(local_rank));
    TS_TRY(ts_cuda_gemm_open());
    ts_cuda_fill_rows(&table);
    ts_cuda_fill_loss(&table);
    ts_cuda_fill_norm(&table);
    ts_cuda_fill_rms_norm(&table);
    ts_cuda_fill_flat(&table);
    ts_cuda_fill_activation(&table);
    ts_cuda_fill_optimizer(&table);
    ts_cuda_fill_embed(&table);
    *out = &table;
    return TS_OK;
}
