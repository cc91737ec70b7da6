// SPDX-License-Identifier: Apache-2.0
// Imitated PTX: ldmatrix, mma.sync and cp.async.
#include <cuda_runtime.h>
#include <vector>

#include "core/tensor/tensor.h"
#include "ptx_shim.h"

// ---- ldmatrix

namespace {

struct matrices {
    uint32_t *m;
    const unsigned char *row;
};

// What lane `lane` gets of the matrix whose row r is at row(r).
template <typename Row> uint32_t fragment(int lane, bool transposed, const Row &row) {
    uint16_t pair[2];
    for (int i = 0; i < 2; i++) {
        const int along = 2 * (lane % 4) + i, across = lane / 4;
        const unsigned char *from = transposed ? row(along) + 2 * across : row(across) + 2 * along;
        std::memcpy(&pair[i], from, sizeof pair[i]);
    }
    return (uint32_t)pair[1] << 16 | pair[0];
}

template <bool TRANSPOSED> void load_matrices(void *const *operands, int) {
    const auto of = [&](int lane) { return (const matrices *)operands[lane]; };
    for (int lane = 0; lane < 32; lane++) {
        if (!operands[lane]) {
            ts_shim_die("ldmatrix: lane %d is not there; it needs the whole warp", lane);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4; i++) {
            of(lane)->m[i] = fragment(lane, TRANSPOSED, [&](int r) { return of(8 * i + r)->row; });
        }
    }
}

}  // namespace

void ts_shim_ldmatrix_x4(uint32_t (&m)[4], const void *row, bool transposed, int line) {
    if ((uintptr_t)row % 16 != 0) {
        ts_shim_die("ldmatrix (line %d): address %p is not a multiple of 16", line, row);
    }
    matrices mine = {m, (const unsigned char *)row};
    ts_shim_meet(TS_SHIM_WARP, 0xffffffffu, "ldmatrix", line, &mine,
                 transposed ? load_matrices<true> : load_matrices<false>);
}

// ---- mma

namespace {

struct product {
    float *c;
    const uint32_t *a;
    uint32_t b[2];
};

float half_of(uint32_t pair, int high) {
    return ts_bf16_to_f32((uint16_t)(high ? pair >> 16 : pair & 0xffff));
}

// c[i][j] += sum over k, in f32
void multiply(void *const *operands, int) {
    float a[16][16], b[16][8], c[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto *mine = (const product *)operands[lane];
        if (!mine) {
            ts_shim_die("mma.sync: lane %d is not there; it needs the whole warp", lane);
        }
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 8; i++) {  // a register's number is, from its lowest bit, the row's half and the column's
            a[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = half_of(mine->a[i / 2], i % 2);
        }
        for (int i = 0; i < 4; i++) {
            b[2 * t + i % 2 + i / 2 * 8][g] = half_of(mine->b[i / 2], i % 2);
            c[g + i / 2 * 8][2 * t + i % 2] = mine->c[i];
        }
    }
    for (int row = 0; row < 16; row++) {
        float sum[8] = {};
        for (int k = 0; k < 16; k++) {
            for (int column = 0; column < 8; column++) {
                sum[column] += a[row][k] * b[k][column];
            }
        }
        for (int column = 0; column < 8; column++) {
            c[row][column] += sum[column];
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4; i++) {
            ((const product *)operands[lane])->c[i] = c[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
        }
    }
}

}  // namespace

void ts_shim_mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line) {
    product mine = {c, a, {b0, b1}};
    ts_shim_meet(TS_SHIM_WARP, 0xffffffffu, "mma.sync", line, &mine, multiply);
}

// ---- cp.async

namespace {

struct copy {
    unsigned char *to;
    const unsigned char *from;  // NULL: zeros
    size_t bytes;
};

// Of one thread of the block that this thread of the host runs.
struct copies {
    std::vector<copy> begun;
    std::vector<size_t> group_end;  // places in `begun` behind each group that is committed
    uint64_t block;
};

thread_local std::vector<copies> of_threads;

copies &own_copies() {
    const size_t thread = (size_t)ts_shim_thread();
    if (of_threads.size() <= thread) {
        of_threads.resize(thread + 1);
    }
    copies &own = of_threads[thread];
    if (own.block != ts_shim_block_number()) {
        if (!own.begun.empty()) {
            ts_shim_die("cp.async: an earlier block of this kernel or another ended without waiting for its copies");
        }
        own.group_end.clear();
        own.block = ts_shim_block_number();
    }
    return own;
}

}  // namespace

void ts_shim_cp_async(void *to, const void *from, size_t bytes, bool there) {
    if ((uintptr_t)to % bytes || (there && (uintptr_t)from % bytes)) {
        ts_shim_die("cp.async of %zu bytes from %p to %p: both must be multiples of %zu", bytes, from, to, bytes);
    }
    std::memset(to, 0xff, bytes);
    own_copies().begun.push_back({(unsigned char *)to, there ? (const unsigned char *)from : nullptr, bytes});
}

void ts_cp_async_commit() {
    copies &own = own_copies();
    own.group_end.push_back(own.begun.size());
}

void ts_shim_cp_async_wait(size_t groups) {
    copies &own = own_copies();
    if (own.group_end.size() <= groups) {
        return;
    }
    const size_t finished = own.group_end.size() - groups, end = own.group_end[finished - 1];
    for (size_t i = 0; i < end; i++) {
        const copy &c = own.begun[i];
        if (c.from) {
            std::memcpy(c.to, c.from, c.bytes);
        } else {
            std::memset(c.to, 0, c.bytes);
        }
    }
    own.begun.erase(own.begun.begin(), own.begun.begin() + (ptrdiff_t)end);
    own.group_end.erase(own.group_end.begin(), own.group_end.begin() + (ptrdiff_t)finished);
    for (size_t &later : own.group_end) {
        later -= end;
    }
}
