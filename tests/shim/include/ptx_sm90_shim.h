// SPDX-License-Identifier: Apache-2.0
// The PTX instructions of core/kernels/cuda/ptx_sm90.h as host code, after the "PTX ISA".
#ifndef TS_SHIM_PTX_SM90_SHIM_H
#define TS_SHIM_PTX_SM90_SHIM_H

#include "cuda.h"
#include "tests/shim/shim.h"

// ---- registers, named barriers

template <int REGISTERS> static inline void ts_take_registers() {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256, "what setmaxnreg takes");
}
template <int REGISTERS> static inline void ts_give_registers() {
    ts_take_registers<REGISTERS>();
}

static inline void ts_barrier_sync(int barrier, int threads, int line = __builtin_LINE()) {
    ts_shim_barrier_sync(barrier, threads, line);
}
static inline void ts_barrier_arrive(int barrier, int threads, int line = __builtin_LINE()) {
    ts_shim_barrier_arrive(barrier, threads, line);
}

// ---- mbarriers and the copy engine (copy_engine.cpp)
// What a copy is to write is NaN from its start to the first wait for it, when it is done: who reads too early finds
// NaN, and so does who still reads what the copy goes over.

void ts_mbarrier_init(uint64_t *barrier, int arrivals);
void ts_mbarrier_arrive(uint64_t *barrier);
void ts_mbarrier_arrive_expect(uint64_t *barrier, int bytes);
void ts_mbarrier_wait(uint64_t *barrier, int parity);
static inline void ts_mbarrier_publish() {}

void ts_copy_box(void *to, const CUtensorMap *map, uint64_t *barrier, int x, int y, int z, int u, int v);
void ts_copy_bytes(void *to, const void *from, int bytes, uint64_t *barrier);

// ---- matrix products of a warpgroup (wgmma.cpp)
// They are done at the wait for them, and not before: who reads a sum too early finds what was there, and who goes over
// an operand too early spoils the product.

struct ts_shim_product {
    float *d;  // of this thread
    int count;
    const uint32_t *a;  // in registers, or NULL
    uint64_t matrix_a, matrix_b;
    bool accumulate;
};
void ts_shim_wgmma(const ts_shim_product &product);
void ts_shim_wgmma_wait(int groups, int line);
void ts_wgmma_fence();
void ts_wgmma_commit();
uint64_t ts_wgmma_matrix(const void *place, int leading, int stride);

static inline uint64_t ts_wgmma_matrix_at(uint64_t matrix, int bytes) {
    return matrix + (uint64_t)(bytes >> 4);
}
template <int GROUPS> static inline void ts_wgmma_wait(int line = __builtin_LINE()) {
    ts_shim_wgmma_wait(GROUPS, line);
}
template <typename T> static inline void ts_wgmma_pin(T &) {}
template <int COUNT>
static inline void ts_wgmma_rows(float (&d)[COUNT], uint64_t matrix_a, uint64_t matrix_b, bool accumulate) {
    ts_shim_wgmma({d, COUNT, nullptr, matrix_a, matrix_b, accumulate});
}
template <int COUNT>
static inline void ts_wgmma_columns(float (&d)[COUNT], const uint32_t (&x)[4], uint64_t matrix_b, bool accumulate) {
    ts_shim_wgmma({d, COUNT, x, 0, matrix_b, accumulate});
}

#endif
