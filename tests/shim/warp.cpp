// SPDX-License-Identifier: Apache-2.0
// What the lanes of a warp exchange, and reductions at a barrier.
#include <cstring>
#include <vector>

#include "tests/shim/private.h"

// ---- shuffles

namespace {
struct shuffle {
    const void *value;
    size_t bytes;
    int source;
    int line;
    const char *what;
    uint64_t result;
};
}  // namespace

static void exchange(void *const *operand, int count) {
    for (int lane = 0; lane < count; lane++) {
        shuffle *const mine = (shuffle *)operand[lane];
        if (!mine) {
            continue;
        }
        const shuffle *const other = (const shuffle *)operand[mine->source];
        if (!other) {
            ts_shim_die("%s (line %d): lane %d reads lane %d, which takes no part", mine->what, mine->line, lane,
                        mine->source);
        }
        std::memcpy(&mine->result, other->value, mine->bytes);
    }
}

void ts_shim_shuffle(unsigned mask, void *value, size_t bytes, int source, const char *what, int line) {
    shuffle mine = {value, bytes, source & 31, line, what, 0};
    ts_shim_meet(TS_SHIM_WARP, mask, what, line, &mine, exchange);
    std::memcpy(value, &mine.result, bytes);
}

void ts_shim_syncwarp(unsigned mask, int line) {
    ts_shim_meet(TS_SHIM_WARP, mask, "__syncwarp", line, nullptr, nullptr);
}

// ---- exchanges of any size

namespace {
struct deposit {
    const void *bytes;
    size_t count;
    std::vector<char> *all;  // of the warp
};
}  // namespace

static void gather(void *const *operand, int count) {
    const deposit *const first = (const deposit *)operand[0];
    for (int lane = 0; lane < count; lane++) {
        const deposit *const d = (const deposit *)operand[lane];
        if (!d || !first || d->count != first->count) {
            ts_shim_die("lane %d takes no part in an exchange of the whole warp, or with another size", lane);
        }
    }
    first->all->resize((size_t)count * first->count);
    for (int lane = 0; lane < count; lane++) {
        std::memcpy(first->all->data() + (size_t)lane * first->count, ((const deposit *)operand[lane])->bytes,
                    first->count);
    }
}

const void *ts_shim_warp_exchange(const void *mine, size_t bytes, const char *what, int line) {
    static thread_local std::vector<char> warps[1024 / 32];
    deposit d = {mine, bytes, &warps[ts_shim_thread() / 32]};
    ts_shim_meet(TS_SHIM_WARP, ~0u, what, line, &d, gather);
    return d.all->data();
}

// ---- votes and reductions

namespace {
struct vote {
    int predicate;
    unsigned result;
};
struct reduction {
    uint32_t value;
    ts_shim_reduction kind;
    bool is_signed;
    uint32_t result;
};
}  // namespace

static void count_votes(void *const *operand, int count) {
    unsigned votes = 0;
    for (int i = 0; i < count; i++) {
        votes |= operand[i] && ((const vote *)operand[i])->predicate ? 1u << i : 0;
    }
    for (int i = 0; i < count; i++) {
        if (operand[i]) {
            ((vote *)operand[i])->result = votes;
        }
    }
}

unsigned ts_shim_vote(unsigned mask, int predicate, int line) {
    vote mine = {predicate, 0};
    ts_shim_meet(TS_SHIM_WARP, mask, "a vote of the warp", line, &mine, count_votes);
    return mine.result;
}

static uint32_t combine(const reduction &r, uint32_t a, uint32_t b) {
    const bool less = r.is_signed ? (int32_t)a < (int32_t)b : a < b;
    switch (r.kind) {
    case TS_SHIM_ADD:
        return a + b;
    case TS_SHIM_MIN:
        return less ? a : b;
    case TS_SHIM_MAX:
        return less ? b : a;
    case TS_SHIM_AND:
        return a & b;
    case TS_SHIM_OR:
        return a | b;
    case TS_SHIM_XOR:
        return a ^ b;
    }
    return 0;
}

static void reduce(void *const *operand, int count) {
    const reduction *first = nullptr;
    uint32_t result = 0;
    for (int i = 0; i < count; i++) {
        const reduction *const r = (const reduction *)operand[i];
        if (r) {
            result = first ? combine(*r, result, r->value) : r->value;
            first = r;
        }
    }
    for (int i = 0; i < count; i++) {
        if (operand[i]) {
            ((reduction *)operand[i])->result = result;
        }
    }
}

uint32_t ts_shim_reduce(unsigned mask, uint32_t value, ts_shim_reduction kind, bool is_signed, int line) {
    reduction mine = {value, kind, is_signed, 0};
    ts_shim_meet(TS_SHIM_WARP, mask, "__reduce_sync", line, &mine, reduce);
    return mine.result;
}

// ---- barriers that reduce

namespace {
struct block_vote {
    int predicate, operation, result;
};
}  // namespace

static void reduce_block(void *const *operand, int count) {
    int sum = 0;
    for (int i = 0; i < count; i++) {
        sum += ((const block_vote *)operand[i])->predicate != 0;
    }
    for (int i = 0; i < count; i++) {
        block_vote *const v = (block_vote *)operand[i];
        v->result = v->operation == 0 ? sum == count : v->operation == 1 ? sum != 0 : sum;
    }
}

int ts_shim_syncthreads_reduce(int predicate, int operation, int line) {
    block_vote mine = {predicate, operation, 0};
    ts_shim_meet(TS_SHIM_BLOCK, ~0u, "__syncthreads with a predicate", line, &mine, reduce_block);
    return mine.result;
}
