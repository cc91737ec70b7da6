// SPDX-License-Identifier: Apache-2.0
// Imitated: mbarriers, tensor maps, and the copies of Hopper's copy engine that are counted at mbarriers.
#include <cstring>
#include <cuda_runtime.h>
#include <vector>

#include "ptx_sm90_shim.h"

// ---- tensor maps

namespace {

enum { RANK = 5 };

struct tensor_map {
    const unsigned char *data;
    uint64_t stride[RANK - 1];  // bytes
    uint32_t size[RANK], box[RANK];
    uint32_t rank;
};
static_assert(sizeof(tensor_map) <= sizeof(CUtensorMap), "fits");

bool is_fine(cuuint32_t rank, const void *data, const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
             const cuuint32_t *step) {
    bool fine = rank == RANK && (uintptr_t)data % 16 == 0 && box[0] * 2 <= 128 && box[0] * 2 % 16 == 0;
    for (cuuint32_t i = 0; fine && i < rank; i++) {
        fine = size[i] >= 1 && size[i] <= 1ull << 32 && box[i] >= 1 && box[i] <= 256 && step[i] == 1 &&
               (i == 0 || (stride[i - 1] % 16 == 0 && stride[i - 1] < 1ull << 40));
    }
    return fine;
}

}  // namespace

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *data,
                                const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
                                const cuuint32_t *step, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
    if ((uintptr_t)map % 64 != 0 || type != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 ||
        interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || swizzle != CU_TENSOR_MAP_SWIZZLE_128B ||
        fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE || !is_fine(rank, data, size, stride, box, step)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    tensor_map out = {};
    out.data = (const unsigned char *)data;
    out.rank = rank;
    for (cuuint32_t i = 0; i < rank; i++) {
        out.size[i] = (uint32_t)size[i];
        out.box[i] = box[i];
        if (i > 0) {
            out.stride[i - 1] = stride[i - 1];
        }
    }
    std::memset(map, 0, sizeof *map);
    std::memcpy(map, &out, sizeof out);
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned, unsigned long long,
                                             enum cudaDriverEntryPointQueryResult *result) {
    const bool known = std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *function = known ? (void *)cuTensorMapEncodeTiled : nullptr;
    *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

// ---- copies

namespace {

struct copy {
    uint64_t *barrier;
    unsigned char *to;
    size_t bytes;
    const unsigned char *from;  // bytes that follow one another, or NULL: a box of
    tensor_map map;
    int64_t at[RANK];
};

// Begun and not done, of the block that this thread of the host runs.
struct copies {
    std::vector<copy> begun;
    uint64_t block;
};
thread_local copies own;

std::vector<copy> &begun_copies() {
    if (own.block != ts_shim_block_number()) {
        if (!own.begun.empty()) {
            ts_shim_die("the copy engine: a block before this ended before its copies did");
        }
        own.block = ts_shim_block_number();
    }
    return own.begun;
}

void check_shared(const char *what, const void *place, size_t bytes, size_t alignment) {
    const unsigned char *const shared = (const unsigned char *)ts_shim_dynamic_shared();
    const size_t offset = (size_t)((const unsigned char *)place - shared);
    if (!shared || offset > ts_shim_dynamic_shared_bytes() || bytes > ts_shim_dynamic_shared_bytes() - offset ||
        offset % alignment != 0) {
        ts_shim_die("%s: %zu bytes at byte %td of shared memory, of which there are %zu; a multiple of %zu is needed",
                    what, bytes, (ptrdiff_t)offset, ts_shim_dynamic_shared_bytes(), alignment);
    }
}

// Rows of box[0] elements one after another, 128 bytes apart where they are that long; in each, 16-byte piece i is at
// place i ^ (bits 7 to 9 of the row's address).
void copy_box(const copy &c) {
    const tensor_map &map = c.map;
    const size_t row_bytes = map.box[0] * 2, rows = c.bytes / row_bytes;
    for (size_t row = 0; row < rows; row++) {
        const unsigned char *from = map.data;
        bool there = true;
        size_t left = row;
        for (int i = 1; i < RANK; i++) {
            const int64_t place = c.at[i] + (int64_t)(left % map.box[i]);
            left /= map.box[i];
            there = there && place >= 0 && place < (int64_t)map.size[i];
            from += place * (int64_t)map.stride[i - 1];
        }
        for (size_t byte = 0; byte < row_bytes; byte += 2) {
            const int64_t column = c.at[0] + (int64_t)byte / 2;
            const size_t linear = row * row_bytes + byte, swizzled = linear ^ (linear >> 7 & 7) << 4;
            if (there && column >= 0 && column < (int64_t)map.size[0]) {
                std::memcpy(c.to + swizzled, from + column * 2, 2);
            } else {
                std::memset(c.to + swizzled, 0, 2);
            }
        }
    }
}

void begin(const copy &c) {
    std::memset(c.to, 0xff, c.bytes);
    begun_copies().push_back(c);
}

}  // namespace

void ts_copy_box(void *to, const CUtensorMap *map, uint64_t *barrier, int x, int y, int z, int u, int v) {
    copy c = {barrier, (unsigned char *)to, 2, nullptr, {}, {x, y, z, u, v}};
    std::memcpy(&c.map, map, sizeof c.map);
    if (c.map.rank != RANK) {
        ts_shim_die("cp.async.bulk.tensor: the map is of rank %u, not %d", c.map.rank, RANK);
    }
    for (uint32_t edge : c.map.box) {
        c.bytes *= edge;
    }
    check_shared("cp.async.bulk.tensor", to, c.bytes, 1024);
    begin(c);
}

void ts_copy_bytes(void *to, const void *from, int bytes, uint64_t *barrier) {
    check_shared("cp.async.bulk", to, (size_t)bytes, 16);
    if ((uintptr_t)from % 16 != 0 || bytes % 16 != 0) {
        ts_shim_die("cp.async.bulk of %d bytes from %p: both must be multiples of 16", bytes, from);
    }
    begin({barrier, (unsigned char *)to, (size_t)bytes, (const unsigned char *)from, {}, {}});
}

// ---- mbarriers

namespace {

struct barrier_state {
    uint64_t parity : 1;  // of the phase that goes on
    uint64_t arrivals : 15, missing : 16;
    uint64_t bytes : 32;  // told of and not there yet, modulo 2^32
};
static_assert(sizeof(barrier_state) == sizeof(uint64_t), "the size of an mbarrier");

barrier_state &state_of(uint64_t *barrier, const char *what) {
    check_shared(what, barrier, sizeof *barrier, 8);
    if (*barrier == ~0ull) {
        ts_shim_die("%s: the mbarrier was not initialised", what);
    }
    return *(barrier_state *)(void *)barrier;
}

void end_phase_if_due(barrier_state &b) {
    if (b.missing == 0 && b.bytes == 0) {
        b.parity ^= 1;
        b.missing = b.arrivals;
    }
}

void arrive(uint64_t *barrier, int bytes) {
    barrier_state &b = state_of(barrier, "mbarrier.arrive");
    if (b.missing == 0) {
        ts_shim_die("mbarrier.arrive: the phase has had its %d arrivals", (int)b.arrivals);
    }
    b.bytes = (b.bytes + (uint64_t)bytes) & 0xffffffff;
    b.missing = (b.missing - 1) & 0xffff;
    end_phase_if_due(b);
}

// Does the copies that are counted at the barrier.
void finish_copies(uint64_t *barrier) {
    std::vector<copy> &all = begun_copies();
    for (size_t i = 0; i < all.size(); i++) {
        const copy c = all[i];
        if (c.barrier != barrier) {
            continue;
        }
        if (c.from) {
            std::memcpy(c.to, c.from, c.bytes);
        } else {
            copy_box(c);
        }
        all.erase(all.begin() + (ptrdiff_t)i--);
        barrier_state &b = state_of(barrier, "the copy engine");
        b.bytes = (b.bytes - c.bytes) & 0xffffffff;
        end_phase_if_due(b);
    }
}

struct question {
    uint64_t *barrier;
    int parity;
};

bool has_ended(void *argument) {
    const question &q = *(const question *)argument;
    finish_copies(q.barrier);
    return state_of(q.barrier, "mbarrier.try_wait").parity != (uint64_t)q.parity;
}

}  // namespace

void ts_mbarrier_init(uint64_t *barrier, int arrivals) {
    begun_copies();
    check_shared("mbarrier.init", barrier, sizeof *barrier, 8);
    const barrier_state fresh = {0, (uint64_t)arrivals & 0x7fff, (uint64_t)arrivals & 0xffff, 0};
    std::memcpy(barrier, &fresh, sizeof fresh);
}

void ts_mbarrier_arrive(uint64_t *barrier) {
    arrive(barrier, 0);
}

void ts_mbarrier_arrive_expect(uint64_t *barrier, int bytes) {
    arrive(barrier, bytes);
}

void ts_mbarrier_wait(uint64_t *barrier, int parity) {
    question q = {barrier, parity};
    ts_shim_wait(has_ended, &q, "mbarrier.try_wait");
}
