// SPDX-License-Identifier: Apache-2.0
#include "core/tensor/tensor.h"

size_t ts_dtype_bytes(ts_dtype dtype) {
    static const size_t bytes[] = {
        [TS_F32] = 4, [TS_BF16] = 2, [TS_F16] = 2, [TS_F64] = 8,  [TS_I64] = 8,
        [TS_I32] = 4, [TS_U16] = 2,  [TS_U8] = 1,  [TS_BOOL] = 1,
    };
    return bytes[dtype];
}
