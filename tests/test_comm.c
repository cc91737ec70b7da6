// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=60
// Every collective on exactly representable inputs, uneven and empty parts, with MPI's counts ample and tiny; the mesh;
// the byte counters against their formulas.
#include "core/comm/comm.h"

#include "core/base/rng.h"
#include "core/comm/transport.h"
#include "tests/ts_test.h"

enum { MAX_RANKS = 8, N = 1000 };

static ts_comm *world;
static int rank, size;

static uint64_t bytes_sent(void) {
    return ts_comm_get_counters(world).bytes_sent;
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

// Sums that round: a second run must give the same bits, blocking and under way.
static void test_repeatable(void) {
    enum { COUNT = 50000 };
    static float first[COUNT], again[COUNT], started[COUNT], started_again[COUNT];
    for (int turn = 0; turn < 2; turn++) {
        float *const blocking = turn ? again : first, *const background = turn ? started_again : started;
        ts_rng_normal_fill(blocking, COUNT, 1, TS_RNG_TEST, (uint64_t)rank, 0);
        memcpy(background, blocking, sizeof first);
        CHECK_OK(ts_all_reduce(world, blocking, COUNT, TS_F32, TS_SUM));
        ts_request *a = NULL, *b = NULL;
        CHECK_OK(ts_all_reduce_start(world, background, COUNT / 2, &a));
        CHECK_OK(ts_all_reduce_start(world, background + COUNT / 2, COUNT - COUNT / 2, &b));
        CHECK_OK(ts_wait(&b));
        CHECK_OK(ts_wait(&a));
        CHECK(!a && !b);
        CHECK_OK(ts_wait(&a));
    }
    CHECK(memcmp(first, again, sizeof first) == 0);
    CHECK(memcmp(started, started_again, sizeof started) == 0);
    for (int i = 0; i < COUNT; i++) {
        CHECK_NEAR(first[i], started[i], 1e-5);
    }
}

static void test_broadcast(void) {
    unsigned char data[333];
    for (int root = 0; root < size; root++) {
        memset(data, rank == root ? 7 + root : 0, sizeof data);
        CHECK_OK(ts_broadcast(world, data, sizeof data, root));
        CHECK(data[0] == 7 + root && data[332] == 7 + root);
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

static void test_all_to_all(int pattern) {
    int64_t out[MAX_RANKS], in[MAX_RANKS];
    int32_t send[64], receive[64];
    int at = 0;
    for (int r = 0; r < size; r++) {
        out[r] = traffic(pattern, rank, r);
        in[r] = traffic(pattern, r, rank);
        for (int i = 0; i < out[r]; i++) {
            send[at++] = 10000 * rank + 100 * r + i;
        }
    }
    const uint64_t before = bytes_sent();
    CHECK_OK(ts_all_to_all_v(world, send, out, receive, in, TS_I32));
    CHECK(bytes_sent() - before == (uint64_t)((at - out[rank]) * 4));
    at = 0;
    for (int r = 0; r < size; r++) {
        for (int i = 0; i < in[r]; i++) {
            CHECK(receive[at++] == 10000 * r + 100 * rank + i);
        }
    }
}

static void test_mesh_of(int data, int cfg, int sequence, int tensor) {
    ts_mesh mesh;
    const int degree[TS_AXIS_COUNT] = {data, cfg, sequence, tensor, 0};
    CHECK_OK(ts_mesh_open(&mesh, world, degree));
    int stride = 1;
    for (int axis = TS_AXIS_TENSOR; axis >= TS_AXIS_DATA; axis--) {
        ts_comm *comm = mesh.axis[axis];
        CHECK(ts_comm_size(comm) == degree[axis] && ts_comm_rank(comm) == rank / stride % degree[axis]);
        // The sum of world ranks along the axis tells who is in it.
        int64_t sum = rank, expected = 0;
        CHECK_OK(ts_all_reduce(comm, &sum, 1, TS_I64, TS_SUM));
        for (int c = 0; c < degree[axis]; c++) {
            expected += rank + (c - ts_comm_rank(comm)) * stride;
        }
        CHECK(sum == expected);
        stride *= degree[axis];
    }
    CHECK(mesh.axis[TS_AXIS_WORLD] == world);
    ts_mesh_close(&mesh);
    CHECK(mesh.axis[TS_AXIS_DATA] == NULL);
}

static void test_mesh(void) {
    test_mesh_of(size, 1, 1, 1);
    test_mesh_of(1, size, 1, 1);
    test_mesh_of(1, 1, 1, size);
    if (size == 4) {
        test_mesh_of(2, 1, 1, 2);
        test_mesh_of(1, 2, 2, 1);
    }
    ts_mesh mesh;
    CHECK_FAILS(ts_mesh_open(&mesh, world, (int[]){size + 1, 1, 1, 1, 1}), TS_EUSAGE, "does not fit");
    CHECK_FAILS(ts_mesh_open(&mesh, world, (int[]){0, 1, 1, 1, 1}), TS_EUSAGE, "does not fit");
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    rank = ts_comm_rank(world);
    size = ts_comm_size(world);
    CHECK(size == atoi(getenv("TESSERA_TEST_RANKS") ? getenv("TESSERA_TEST_RANKS") : "1"));
    const int64_t ample = ts_mpi_chunk;
    for (int tiny = 0; tiny < 2; tiny++) {
        ts_mpi_chunk = tiny ? 5 : ample;
        test_all_reduce();
        test_broadcast();
        for (int pattern = 0; pattern < PATTERNS; pattern++) {
            test_all_gather(pattern);
            test_reduce_scatter(pattern);
            test_all_to_all(pattern);
        }
    }
    ts_mpi_chunk = ample;
    test_repeatable();
    ts_mpi_chunk = 5000;
    test_repeatable();
    test_mesh();
    CHECK_OK(ts_barrier(world));
    CHECK(size == 1 || ts_comm_get_counters(world).calls > 0);
    ts_world_close(&world, ts_test_failures ? TS_EINTERNAL : TS_OK);
    CHECK(world == NULL);
    return ts_test_end();
}
