// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=60
// Every blocking collective over every transport: exactly representable inputs, uneven and empty parts, large and small
// messages; sums that round, bit by bit.
#include "core/base/rng.h"
#include "tests/comm_setups.h"

enum { MAX_RANKS = 4, N = 1000 };

static ts_comm *world;
static int rank, size;

static uint64_t bytes_sent(void) {
    return ts_comm_total(world).bytes_sent;
}

static void test_all_reduce(void) {
    float f[N];
    int64_t i64[5];
    int32_t i32[1];
    double f64[3];
    for (int i = 0; i < N; i++) {
        f[i] = (float)(i * (rank + 1)) * 0.25f;
    }
    const uint64_t before = bytes_sent();
    CHECK_OK(ts_all_reduce(world, f, N, TS_F32, TS_SUM));
    CHECK(bytes_sent() - before == (uint64_t)(size == 1 ? 0 : 2 * (N * 4 * (size - 1) / size)));
    const int ranks_sum = size * (size + 1) / 2;
    for (int i = 0; i < N; i++) {
        CHECK(f[i] == (float)(i * ranks_sum) * 0.25f);
    }
    for (int i = 0; i < 5; i++) {
        i64[i] = ((int64_t)1 << 40) * i + rank;
    }
    CHECK_OK(ts_all_reduce(world, i64, 5, TS_I64, TS_MAX));
    CHECK(i64[4] == ((int64_t)1 << 42) + size - 1);
    i32[0] = rank - 7;
    CHECK_OK(ts_all_reduce(world, i32, 1, TS_I32, TS_MIN));
    CHECK(i32[0] == -7);
    for (int i = 0; i < 3; i++) {
        f64[i] = 0x1p-30 * (rank + i);
    }
    CHECK_OK(ts_all_reduce(world, f64, 3, TS_F64, TS_SUM));
    CHECK(f64[2] == 0x1p-30 * (ranks_sum - size + 2 * size));
    CHECK_OK(ts_all_reduce(world, f, 0, TS_F32, TS_SUM));
    if (size > 1) {
        CHECK_FAILS(ts_all_reduce(world, f, 1, TS_BF16, TS_SUM), TS_EINTERNAL, "BF16 cannot be reduced");
    }
}

// Sums that round, of sizes that take different ways: on every transport the bits of 0 + 1 + 2 .., made here.
static void test_large(int setup) {
    enum { MOST = 600000 };
    static float data[MOST], sum[MOST], given[MOST];
    const int sizes[] = {300, 20000, MOST};
    for (int s = 0; s < (setup % 2 ? 2 : 3); s++) {  // small messages take long for large data
        const int n = sizes[s];
        for (int r = 0; r < size; r++) {
            ts_rng_normal_fill(given, n, 1, TS_RNG_TEST, (uint64_t)r, 0);
            for (int i = 0; i < n; i++) {
                sum[i] = r == 0 ? given[i] : sum[i] + given[i];
            }
            if (r == rank) {
                memcpy(data, given, (size_t)n * sizeof *data);
            }
        }
        CHECK_OK(ts_all_reduce(world, data, n, TS_F32, TS_SUM));
        CHECK(memcmp(data, sum, (size_t)n * sizeof *data) == 0);
    }
}

static void test_broadcast(void) {
    unsigned char data[30001];
    for (int root = 0; root < size; root++) {
        for (int bytes = 333; bytes <= 30001; bytes += 30001 - 333) {
            memset(data, rank == root ? 7 + root : 0, sizeof data);
            CHECK_OK(ts_broadcast(world, data, bytes, root));
            CHECK(data[0] == 7 + root && data[bytes - 1] == 7 + root);
            CHECK(bytes == 30001 || rank == root || data[bytes] == 0);
        }
    }
    CHECK_OK(ts_broadcast(world, NULL, 0, 0));
}

// Part sizes of pattern p: even, uneven, with empty parts, all on one rank, all empty.
static int64_t part(int pattern, int of_rank) {
    switch (pattern) {
    case 0:
        return 6;
    case 1:
        return 3 * of_rank + 1;
    case 2:
        return of_rank % 2 ? 0 : 11;
    case 3:
        return of_rank == size - 1 ? 17 : 0;
    default:
        return 0;
    }
}
enum { PATTERNS = 5 };

static void test_all_gather(int pattern) {
    int64_t counts[MAX_RANKS], total = 0, own = 0;
    for (int r = 0; r < size; r++) {
        counts[r] = part(pattern, r);
        own += r < rank ? counts[r] : 0;
        total += counts[r];
    }
    uint16_t send[64], receive[256];
    memset(receive, 0xee, sizeof receive);
    for (int i = 0; i < counts[rank]; i++) {
        send[i] = (uint16_t)(1000 * rank + i);
    }
    const uint64_t before = bytes_sent();
    CHECK_OK(ts_all_gather_v(world, send, receive, counts, TS_BF16));
    CHECK(bytes_sent() - before == (uint64_t)(counts[rank] * 2 * (size - 1)));
    for (int in_place = 0; in_place < 2; in_place++) {
        for (int r = 0, at = 0; r < size; r++) {
            for (int i = 0; i < counts[r]; i++, at++) {
                CHECK(receive[at] == 1000 * r + i);
            }
        }
        CHECK(receive[total] == 0xeeee);
        memset(receive, 0xee, sizeof receive);
        memcpy(receive + own, send, (size_t)counts[rank] * 2);
        CHECK_OK(ts_all_gather_v(world, receive + own, receive, counts, TS_BF16));
    }
}

static void test_reduce_scatter(int pattern) {
    int64_t counts[MAX_RANKS], own = 0, total = 0;
    for (int r = 0; r < size; r++) {
        counts[r] = part(pattern, r);
        own += r < rank ? counts[r] : 0;
        total += counts[r];
    }
    float send[256], receive[64];
    for (int i = 0; i < total; i++) {
        send[i] = (float)(i + 100 * rank);
    }
    receive[counts[rank]] = -1;
    const uint64_t before = bytes_sent();
    CHECK_OK(ts_reduce_scatter_v(world, send, receive, counts, TS_F32));
    CHECK(bytes_sent() - before == (uint64_t)((total - counts[rank]) * 4));
    for (int i = 0; i < counts[rank]; i++) {
        CHECK(receive[i] == (float)((own + i) * size + 100 * (size * (size - 1) / 2)));
    }
    CHECK(receive[counts[rank]] == -1);
}

// Rank a sends to rank b as many numbers as this, some none.
static int64_t traffic(int pattern, int a, int b) {
    return pattern == 0 ? 4 : pattern == 4 ? 0 : (a * 5 + b * 3 + pattern) % 7;
}

static void test_all_to_all(int pattern, int scale) {
    int64_t out[MAX_RANKS], in[MAX_RANKS];
    static int32_t send[6 * 9000 * MAX_RANKS], receive[6 * 9000 * MAX_RANKS];
    int64_t at = 0;
    for (int r = 0; r < size; r++) {
        out[r] = traffic(pattern, rank, r) * scale;
        in[r] = traffic(pattern, r, rank) * scale;
        for (int i = 0; i < out[r]; i++) {
            send[at++] = 10000000 * rank + 100000 * r + i;
        }
    }
    const uint64_t before = bytes_sent();
    CHECK_OK(ts_all_to_all_v(world, send, out, receive, in, TS_I32));
    CHECK(bytes_sent() - before == (uint64_t)((at - out[rank]) * 4));
    at = 0;
    for (int r = 0; r < size; r++) {
        for (int i = 0; i < in[r]; i++) {
            CHECK(receive[at++] == 10000000 * r + 100000 * rank + i);
        }
    }
}

int main(int argc, char **argv) {
    ts_comm *everybody;
    ts_mesh mesh;
    CHECK_OK(ts_world_open(&everybody, &argc, &argv));
    rank = ts_comm_rank(everybody);
    size = ts_comm_size(everybody);
    CHECK(size == atoi(getenv("TESSERA_TEST_RANKS") ? getenv("TESSERA_TEST_RANKS") : "1"));
    CHECK(ts_comm_local_rank(everybody) == rank && ts_comm_local_rank(NULL) == 0);  // all on one host
    for (int i = 0; i < COMM_SETUP_COUNT; i++) {
        const int failures = ts_test_failures;
        world = comm_setup_open(&mesh, everybody, &COMM_SETUPS[i]);
        test_all_reduce();
        test_large(i);
        test_broadcast();
        for (int pattern = 0; pattern < PATTERNS; pattern++) {
            test_all_gather(pattern);
            test_reduce_scatter(pattern);
            test_all_to_all(pattern, 1);
            test_all_to_all(pattern, COMM_SETUPS[i].mpi_chunk ? 100 : 9000);
        }
        CHECK_OK(ts_barrier(world));
        CHECK(size == 1 || ts_comm_get_counters(world, TS_BARRIER).calls == 1);
        ts_mesh_close(&mesh);
        if (ts_test_failures > failures) {
            fprintf(stderr, "rank %d: the failures above are of transport %s\n", rank, COMM_SETUPS[i].name);
        }
    }
    ts_world_close(&everybody, ts_test_failures ? TS_EINTERNAL : TS_OK);
    CHECK(everybody == NULL);
    return ts_test_end();
}
