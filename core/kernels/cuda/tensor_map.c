// SPDX-License-Identifier: Apache-2.0
// Maps of tensors for Hopper's copy engine. They are made by the driver, which is asked for the function: programs are
// not linked with libcuda, so that they start where there is none.
#include "core/kernels/cuda/tensor_map.h"

#include <string.h>

#include "core/kernels/cuda/cuda.h"

typedef __typeof__(&cuTensorMapEncodeTiled) encode_function;

static int find_encode(encode_function *out) {
    static encode_function found;
    if (!found) {
        void *function = NULL;
        enum cudaDriverEntryPointQueryResult result;
        TS_CUDA(
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result));
        if (result != cudaDriverEntryPointSuccess || !function) {
            return TS_FAIL(TS_EPEER, "the GPU's driver has no cuTensorMapEncodeTiled; update it to one for CUDA 12");
        }
        memcpy(&found, &function, sizeof found);
    }
    *out = found;
    return 0;
}

int ts_cuda_map_head_rows(CUtensorMap *map, const ts_head_rows *from, int box_rows) {
    enum { RANK = 5, COLUMNS = 64, BYTES = 2 };  // columns in 128 bytes
    encode_function encode = NULL;
    TS_TRY(find_encode(&encode));
    // One item's stride may be anything, also 0, which a map must not have.
    const int64_t batch_stride = from->batch > 1 ? from->batch_stride : COLUMNS;
    const cuuint64_t size[RANK] = {COLUMNS, (cuuint64_t)from->rows, (cuuint64_t)from->head_dim / COLUMNS,
                                   (cuuint64_t)from->heads, (cuuint64_t)from->batch};
    const cuuint64_t stride[RANK - 1] = {(cuuint64_t)from->row_stride * BYTES, COLUMNS * BYTES,
                                         (cuuint64_t)from->head_dim * BYTES, (cuuint64_t)batch_stride * BYTES};
    const cuuint32_t box[RANK] = {COLUMNS, (cuuint32_t)box_rows, (cuuint32_t)from->head_dim / COLUMNS, 1, 1};
    const cuuint32_t step[RANK] = {1, 1, 1, 1, 1};
    const CUresult code = encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, RANK, (void *)(uintptr_t)from->data, size,
                                 stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (code != CUDA_SUCCESS) {
        return TS_FAIL(TS_EPEER,
                       "cuTensorMapEncodeTiled: error %d for [%lld, %lld, %lld, %lld] with strides %lld and %lld",
                       (int)code, (long long)from->batch, (long long)from->rows, (long long)from->heads,
                       (long long)from->head_dim, (long long)from->batch_stride, (long long)from->row_stride);
    }
    return 0;
}
