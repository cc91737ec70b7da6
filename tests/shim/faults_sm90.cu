// SPDX-License-Identifier: Apache-2.0
// A product by wgmma of tiles that the copy engine brings, right and with one mistake (faults.cu).
#include "core/kernels/cuda/cuda.h"
#include "core/kernels/cuda/ptx_sm90.h"
#include "core/kernels/cuda/tensor_map.h"
#include "tests/shim/faults.h"

namespace {

enum { ROWS = 64, COLUMNS = 64, NUMBERS = ROWS * COLUMNS };

struct tiles {
    alignas(1024) uint16_t x[NUMBERS];
    uint64_t full, full_again;
};

__global__ void fill(uint16_t *x) {
    for (int i = (int)threadIdx.x; i < NUMBERS; i += 128) {
        x[i] = (uint16_t)(i % COLUMNS == i / COLUMNS ? 0x4000 : 0);  // 2 on the diagonal
    }
}

// out = x x^T
__global__ void multiply(const __grid_constant__ CUtensorMap map, float *out, product_fault fault) {
    TS_SHARED_BYTES(tiles, shared);
    float d[COLUMNS / 2] = {};
    if (threadIdx.x == 0) {
        ts_mbarrier_init(&shared->full, 1);
        ts_mbarrier_init(&shared->full_again, 1);
        ts_mbarrier_publish();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        ts_mbarrier_arrive_expect(&shared->full, (int)sizeof shared->x + (fault == TOO_MANY_BYTES ? 16 : 0));
        ts_copy_box(shared->x, &map, &shared->full, 0, 0, 0, 0, 0);
    }
    if (fault != NO_WAIT_FOR_COPY) {
        ts_mbarrier_wait(&shared->full, 0);
    }
    if (fault != NO_FENCE) {
        ts_wgmma_fence();
    }
    const uint64_t x = ts_wgmma_matrix(shared->x, 16, fault == WRONG_STRIDE ? 512 : 1024);
    for (int k = 0; k < COLUMNS / 16; k++) {
        ts_wgmma_rows(d, ts_wgmma_matrix_at(x, 32 * k), ts_wgmma_matrix_at(x, 32 * k), k > 0);
    }
    ts_wgmma_commit();
    if (fault == EARLY_REFILL && threadIdx.x == 0) {
        ts_mbarrier_arrive_expect(&shared->full_again, (int)sizeof shared->x);
        ts_copy_box(shared->x, &map, &shared->full_again, 0, 0, 0, 0, 0);
    }
    if (fault != NO_WAIT_FOR_PRODUCT) {
        ts_wgmma_wait<0>();
    }
    const int row = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4, column = 2 * ((int)threadIdx.x % 4);
    for (int i = 0; i < COLUMNS / 2; i++) {
        out[(row + i / 2 % 2 * 8) * COLUMNS + i / 4 * 8 + column + i % 2] = d[i];
    }
}

}  // namespace

// Whether the product came out right.
bool product_is_right(product_fault fault) {
    void *x, *memory;
    static float host[NUMBERS];
    CUtensorMap map;
    const bool ready = !cudaMalloc(&x, NUMBERS * sizeof(uint16_t)) && !cudaMalloc(&memory, sizeof host);
    const ts_head_rows rows = {x, 1, ROWS, 1, COLUMNS, COLUMNS, 0};
    if (!ready || ts_cuda_map_head_rows(&map, &rows, ROWS) || TS_LAUNCH(fill, 1, 128, 0, (uint16_t *)x) ||
        TS_LAUNCH(multiply, 1, 128, sizeof(tiles), map, (float *)memory, fault) ||
        cudaMemcpyAsync(host, memory, sizeof host, cudaMemcpyDeviceToHost, ts_cuda_stream()) ||
        cudaStreamSynchronize(ts_cuda_stream())) {
        return false;
    }
    for (int i = 0; i < NUMBERS; i++) {
        if (host[i] != (i % COLUMNS == i / COLUMNS ? 4.0f : 0.0f)) {
            return false;
        }
    }
    return true;
}
