// SPDX-License-Identifier: Apache-2.0
// Imitated: wgmma, products of 64 rows by a warpgroup, with operands in shared memory that descriptors tell of.
#include <cstring>
#include <cuda_runtime.h>
#include <vector>

#include "core/tensor/tensor.h"
#include "ptx_sm90_shim.h"

namespace {

enum { ROWS = 64, K = 16, MOST_COLUMNS = 256, LANES = 128 };

// Of one thread: what it began, in order.
struct products {
    std::vector<ts_shim_product> begun;
    std::vector<size_t> group_end;  // places in `begun` behind each group that is committed
    bool fenced;                    // since the last wait
    uint64_t block;
};
thread_local std::vector<products> of_threads;

products &own_products() {
    const size_t thread = (size_t)ts_shim_thread();
    if (of_threads.size() <= thread) {
        of_threads.resize((size_t)ts_shim_threads());
    }
    products &own = of_threads[thread];
    if (own.block != ts_shim_block_number()) {
        if (!own.begun.empty()) {
            ts_shim_die("wgmma: a block before this ended without a wait for its products");
        }
        own = {{}, {}, false, ts_shim_block_number()};
    }
    return own;
}

// ---- operands in shared memory

// What a descriptor says, in bytes.
struct matrix {
    size_t start, leading, stride;
};

matrix decode(uint64_t descriptor) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) {
        ts_shim_die("wgmma: descriptor %#llx is not of the 128-byte swizzle with base offset 0",
                    (unsigned long long)descriptor);
    }
    return {(descriptor & 0x3fff) << 4, (descriptor >> 16 & 0x3fff) << 4, (descriptor >> 32 & 0x3fff) << 4};
}

// The element at an address before swizzling: bits 4 to 6 are exchanged by bits 7 to 9.
float element(size_t address) {
    address ^= (address >> 7 & 7) << 4;
    if (address + 2 > ts_shim_dynamic_shared_bytes()) {
        ts_shim_die("wgmma: reads byte %zu of shared memory, of which there are %zu", address,
                    ts_shim_dynamic_shared_bytes());
    }
    uint16_t bits;
    std::memcpy(&bits, (const unsigned char *)ts_shim_dynamic_shared() + address, sizeof bits);
    return ts_bf16_to_f32(bits);
}

// Element k of row i where k is innermost: 8 rows of 128 bytes, then `stride`.
float by_rows(const matrix &m, int i, int k) {
    return element(m.start + (size_t)(i % 8) * 128 + (size_t)(i / 8) * m.stride + (size_t)k * 2);
}

// Element i of row k where i is innermost: 64 of them, then `leading`; 8 rows of 128 bytes, then `stride`.
float by_columns(const matrix &m, int i, int k) {
    return element(m.start + (size_t)(i % 64) * 2 + (size_t)(i / 64) * m.leading + (size_t)(k % 8) * 128 +
                   (size_t)(k / 8) * m.stride);
}

// ---- products

struct operands {
    float a[ROWS][K], b[K][MOST_COLUMNS], d[ROWS][MOST_COLUMNS];
};

int row_of(int lane, int e) {
    return lane / 32 * 16 + lane % 32 / 4 + e / 2 % 2 * 8;
}

void load(operands *x, const ts_shim_product *const (&of)[LANES], int columns) {
    const ts_shim_product &p = *of[0];
    const matrix b = decode(p.matrix_b), a = p.a ? matrix{} : decode(p.matrix_a);
    for (int k = 0; k < K; k++) {
        for (int j = 0; j < columns; j++) {
            x->b[k][j] = p.a ? by_columns(b, j, k) : by_rows(b, j, k);
        }
    }
    for (int i = 0; i < ROWS && !p.a; i++) {
        for (int k = 0; k < K; k++) {
            x->a[i][k] = by_rows(a, i, k);
        }
    }
    for (int lane = 0; lane < LANES; lane++) {
        for (int e = 0; p.a && e < 8; e++) {  // register e / 2: rows g and g + 8, then the same 8 columns further
            const uint32_t pair = of[lane]->a[e / 2];
            x->a[row_of(lane, e)][2 * (lane % 4) + e % 2 + e / 4 * 8] =
                ts_bf16_to_f32((uint16_t)(e % 2 ? pair >> 16 : pair & 0xffff));
        }
        for (int e = 0; e < p.count; e++) {
            x->d[row_of(lane, e)][e / 4 * 8 + 2 * (lane % 4) + e % 2] = p.accumulate ? of[lane]->d[e] : 0.0f;
        }
    }
}

void multiply(const ts_shim_product *const (&of)[LANES]) {
    static thread_local operands x;
    const int columns = of[0]->count * 2;
    load(&x, of, columns);
    for (int i = 0; i < ROWS; i++) {
        for (int k = 0; k < K; k++) {
            for (int j = 0; j < columns; j++) {
                x.d[i][j] += x.a[i][k] * x.b[k][j];
            }
        }
    }
    for (int lane = 0; lane < LANES; lane++) {
        for (int e = 0; e < of[0]->count; e++) {
            of[lane]->d[e] = x.d[row_of(lane, e)][e / 4 * 8 + 2 * (lane % 4) + e % 2];
        }
    }
}

struct wait {
    products *own;
    int groups;
};

// Does the groups that the wait is for, of all threads of the warpgroup.
void finish(void *const *operand, int) {
    const wait &first = *(const wait *)operand[0];
    const size_t groups = (size_t)first.groups, committed = first.own->group_end.size();
    const size_t end = committed > groups ? first.own->group_end[committed - groups - 1] : 0;
    for (size_t i = 0; i < end; i++) {
        const ts_shim_product *of[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            const products &theirs = *((const wait *)operand[lane])->own;
            if (theirs.begun.size() != first.own->begun.size() || theirs.group_end != first.own->group_end) {
                ts_shim_die("wgmma: thread %d of a warpgroup began other products than thread 0", lane);
            }
            of[lane] = &theirs.begun[i];
            if (of[lane]->count != of[0]->count || !of[lane]->a != !of[0]->a || of[lane]->matrix_a != of[0]->matrix_a ||
                of[lane]->matrix_b != of[0]->matrix_b || of[lane]->accumulate != of[0]->accumulate) {
                ts_shim_die("wgmma: thread %d of a warpgroup and thread 0 differ in shape or operands", lane);
            }
        }
        multiply(of);
    }
}

}  // namespace

uint64_t ts_wgmma_matrix(const void *place, int leading, int stride) {
    const size_t offset = (size_t)((const unsigned char *)place - (const unsigned char *)ts_shim_dynamic_shared());
    if (offset >= ts_shim_dynamic_shared_bytes() || offset % 16 != 0 || leading % 16 != 0 || stride % 16 != 0) {
        ts_shim_die("wgmma: an operand at byte %td of shared memory, strides %d and %d: multiples of 16 are needed",
                    (ptrdiff_t)offset, leading, stride);
    }
    return 1ull << 62 | (uint64_t)(stride >> 4) << 32 | (uint64_t)(leading >> 4) << 16 | offset >> 4;
}

void ts_wgmma_fence() {
    own_products().fenced = true;
}

void ts_shim_wgmma(const ts_shim_product &product) {
    products &own = own_products();
    if (!own.fenced) {
        ts_shim_die("wgmma.mma_async without a wgmma.fence behind the wait before it");
    }
    own.begun.push_back(product);
}

void ts_wgmma_commit() {
    products &own = own_products();
    own.group_end.push_back(own.begun.size());
}

void ts_shim_wgmma_wait(int groups, int line) {
    products &own = own_products();
    wait mine = {&own, groups};
    ts_shim_meet(TS_SHIM_WARPGROUP, ~0u, "wgmma.wait_group", line, &mine, finish);
    own.fenced = false;
    if (own.group_end.size() <= (size_t)groups) {
        return;
    }
    const size_t finished = own.group_end.size() - (size_t)groups, end = own.group_end[finished - 1];
    own.begun.erase(own.begun.begin(), own.begun.begin() + (ptrdiff_t)end);
    own.group_end.erase(own.group_end.begin(), own.group_end.begin() + (ptrdiff_t)finished);
    for (size_t &later : own.group_end) {
        later -= end;
    }
}
