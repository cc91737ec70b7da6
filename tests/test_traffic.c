// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=60
// Bytes that the counters count against the formulas of core/comm/README.md, written out here once more: for every
// collective, blocking and started, on even, uneven and partly empty data. Prints the table; any difference fails.
#include "core/base/split.h"
#include "core/comm/traffic.h"
#include "tests/ts_test.h"

enum { MAX_RANKS = 8, MOST = 4096 };

static ts_comm *world;
static int rank, size;
_Alignas(64) static char a[MAX_RANKS * MOST * 8];
_Alignas(64) static char b[MAX_RANKS * MOST * 8];

typedef struct amounts {
    const char *name;
    int64_t total;                       // elements of a call that has no parts
    int64_t part[MAX_RANKS];             // of each rank
    int64_t pair[MAX_RANKS][MAX_RANKS];  // from one rank to another
} amounts;

static amounts make_amounts(int pattern) {
    static const char *const names[] = {"even", "uneven", "partly empty"};
    amounts m = {.name = names[pattern]};
    for (int r = 0; r < size; r++) {
        const int64_t parts[] = {120, ts_split(1003, size, r).count + 7 * r, r % 2 ? 0 : 611};
        m.part[r] = parts[pattern];
        m.total += m.part[r];
        for (int to = 0; to < size; to++) {
            const int64_t pairs[] = {30, 5 * r + 11 * to + 1, (r + to) % 2 ? 0 : 17 * to};
            m.pair[r][to] = pairs[pattern];
        }
    }
    return m;
}

// ---- calls, and what their formulas say

static int64_t others(const int64_t *counts) {
    int64_t sum = 0;
    for (int r = 0; r < size; r++) {
        sum += r == rank ? 0 : counts[r];
    }
    return sum;
}

static int call_all_reduce(const amounts *m) {
    return ts_all_reduce(world, a, m->total, TS_F32, TS_SUM);
}
static int64_t formula_all_reduce(const amounts *m) {
    return 2 * (4 * m->total * (size - 1) / size);
}
static int call_broadcast(const amounts *m) {
    return ts_broadcast(world, a, m->total, size - 1);
}
static int64_t formula_broadcast(const amounts *m) {
    return m->total * (size - 1) / size;
}
static int call_all_gather(const amounts *m) {
    return ts_all_gather_v(world, b, a, m->part, TS_BF16);
}
static int start_all_gather(const amounts *m) {
    ts_request *request;
    TS_TRY(ts_all_gather_v_start(world, b, a, m->part, TS_BF16, &request));
    return ts_wait(&request);
}
static int64_t formula_all_gather(const amounts *m) {
    return 2 * m->part[rank] * (size - 1);
}
static int call_reduce_scatter(const amounts *m) {
    return ts_reduce_scatter_v(world, a, b, m->part, TS_F32);
}
static int start_reduce_scatter(const amounts *m) {
    ts_request *request;
    TS_TRY(ts_reduce_scatter_v_start(world, a, b, m->part, TS_F32, &request));
    return ts_wait(&request);
}
static int64_t formula_reduce_scatter(const amounts *m) {
    return 4 * others(m->part);
}
static int call_all_to_all(const amounts *m) {
    int64_t in[MAX_RANKS];
    for (int r = 0; r < size; r++) {
        in[r] = m->pair[r][rank];
    }
    return ts_all_to_all_v(world, a, m->pair[rank], b, in, TS_I64);
}
static int64_t formula_all_to_all(const amounts *m) {
    return 8 * others(m->pair[rank]);
}
static int call_ring(const amounts *m) {
    ts_request *request;
    TS_TRY(ts_ring_start(world, a, m->part[rank], b, m->part[(rank + size - 1) % size], TS_BF16, &request));
    return ts_wait(&request);
}
static int64_t formula_ring(const amounts *m) {
    return size > 1 ? 2 * m->part[rank] : 0;
}
static int call_barrier(const amounts *m) {
    (void)m;
    return ts_barrier(world);
}
static int64_t formula_barrier(const amounts *m) {
    (void)m;
    return 0;
}

static const struct {
    ts_collective kind;
    const char *how, *formula;
    int (*call)(const amounts *m);
    int64_t (*bytes)(const amounts *m);
} ROWS[] = {
    {TS_ALL_REDUCE, "", "2 (n-1)/n c e", call_all_reduce, formula_all_reduce},
    {TS_BROADCAST, "", "(n-1)/n c e", call_broadcast, formula_broadcast},
    {TS_ALL_GATHER, "", "(n-1) c_r e", call_all_gather, formula_all_gather},
    {TS_ALL_GATHER, "started", "(n-1) c_r e", start_all_gather, formula_all_gather},
    {TS_REDUCE_SCATTER, "", "(c - c_r) e", call_reduce_scatter, formula_reduce_scatter},
    {TS_REDUCE_SCATTER, "started", "(c - c_r) e", start_reduce_scatter, formula_reduce_scatter},
    {TS_ALL_TO_ALL, "", "(c - c_rr) e", call_all_to_all, formula_all_to_all},
    {TS_RING, "started", "c e", call_ring, formula_ring},
    {TS_BARRIER, "", "0", call_barrier, formula_barrier},
};
enum { ROW_COUNT = sizeof ROWS / sizeof *ROWS };

// ---- the table

static void test_row(int row, const amounts *m) {
    const ts_collective kind = ROWS[row].kind;
    const ts_comm_counters before = ts_comm_get_counters(world, kind);
    CHECK_OK(ROWS[row].call(m));
    const ts_comm_counters after = ts_comm_get_counters(world, kind);
    const int64_t counted = (int64_t)(after.bytes_sent - before.bytes_sent), said = ROWS[row].bytes(m);
    CHECK(counted == said);
    CHECK(after.calls - before.calls == (size > 1));
    CHECK(after.seconds >= before.seconds);
    int64_t sums[2] = {said, counted};
    CHECK_OK(ts_all_reduce(world, sums, 2, TS_I64, TS_SUM));
    if (rank == 0) {
        printf("%-15s %-8s %-14s %-13s %10lld %10lld\n", ts_collective_name(kind), ROWS[row].how, ROWS[row].formula,
               m->name, (long long)sums[0], (long long)sums[1]);
    }
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    rank = ts_comm_rank(world);
    size = ts_comm_size(world);
    if (rank == 0) {
        printf("Bytes that %d ranks send together: %-22s by formula    counted\n", size, "");
    }
    for (int row = 0; row < ROW_COUNT; row++) {
        for (int pattern = 0; pattern < 3; pattern++) {
            const amounts m = make_amounts(pattern);
            CHECK(m.total <= MAX_RANKS * MOST);
            test_row(row, &m);
        }
    }
    ts_world_close(&world, ts_test_failures ? TS_EINTERNAL : TS_OK);
    return ts_test_end();
}
