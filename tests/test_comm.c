// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=60
// Every collective on exactly representable inputs, uneven and empty parts, with MPI's counts ample and tiny; the mesh;
// the byte counters against their formulas, and what is gathered of them.
#include "core/base/rng.h"
#include "core/comm/traffic.h"
#include "core/comm/transport.h"
#include "tests/ts_test.h"

enum { MAX_RANKS = 8, N = 1000 };

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

// Sums that round: a second run must give the same bits.
static void test_repeatable(void) {
    enum { COUNT = 50000 };
    static float first[COUNT], again[COUNT];
    for (int turn = 0; turn < 2; turn++) {
        float *const data = turn ? again : first;
        ts_rng_normal_fill(data, COUNT, 1, TS_RNG_TEST, (uint64_t)rank, 0);
        CHECK_OK(ts_all_reduce(world, data, COUNT, TS_F32, TS_SUM));
    }
    CHECK(memcmp(first, again, sizeof first) == 0);
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

// The sum of world ranks over a group tells who is in it.
static void check_members(ts_comm *comm, int expected_size, int64_t expected_sum) {
    int64_t sum = rank;
    CHECK(ts_comm_size(comm) == expected_size);
    CHECK_OK(ts_all_reduce(comm, &sum, 1, TS_I64, TS_SUM));
    CHECK(sum == expected_sum);
}

static void test_mesh_of(ts_degrees d) {
    ts_mesh mesh, imagined;
    const int degree[TS_AXIS_GRID] = {d.data, d.cfg, d.ring, d.ulysses, d.tensor};
    CHECK_OK(ts_mesh_open(&mesh, world, &d));
    CHECK_OK(ts_mesh_imagine(&imagined, &d, rank));
    int stride = 1;
    for (int axis = TS_AXIS_TENSOR; axis >= TS_AXIS_DATA; axis--) {
        const int at = rank / stride % degree[axis];
        int64_t expected = 0;
        for (int c = 0; c < degree[axis]; c++) {
            expected += rank + (c - at) * stride;
        }
        CHECK(ts_comm_rank(mesh.axis[axis]) == at);
        check_members(mesh.axis[axis], degree[axis], expected);
        stride *= degree[axis];
    }
    // Groups against their definition: ranks that agree in the other coordinates.
    const int model = d.ring * d.ulysses * d.tensor, first = rank / model * model;
    check_members(mesh.axis[TS_AXIS_MODEL], model, (int64_t)model * first + model * (model - 1) / 2);
    const int replica = size / d.tensor, at = rank % d.tensor;
    check_members(mesh.axis[TS_AXIS_REPLICA], replica,
                  (int64_t)replica * at + (int64_t)d.tensor * replica * (replica - 1) / 2);
    CHECK(ts_comm_size(mesh.axis[TS_AXIS_SEQUENCE]) == d.ring * d.ulysses);
    CHECK(ts_comm_rank(mesh.axis[TS_AXIS_SEQUENCE]) ==
          ts_comm_rank(mesh.axis[TS_AXIS_RING]) * d.ulysses + ts_comm_rank(mesh.axis[TS_AXIS_ULYSSES]));
    CHECK(mesh.axis[TS_AXIS_WORLD] == world);
    for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
        CHECK(ts_comm_rank(mesh.axis[axis]) == ts_comm_rank(imagined.axis[axis]));
        CHECK(ts_comm_size(mesh.axis[axis]) == ts_comm_size(imagined.axis[axis]));
    }
    ts_mesh_close(&imagined);
    ts_mesh_close(&mesh);
    CHECK(mesh.axis[TS_AXIS_DATA] == NULL);
}

// Over imagined ranks nothing can be sent, but bytes can be counted.
static void test_imagined(void) {
    ts_mesh mesh;
    CHECK_OK(ts_mesh_imagine(&mesh, &(ts_degrees){2, 1, 1, 3, 1}, 4));
    ts_comm *comm = mesh.axis[TS_AXIS_ULYSSES];
    ts_request *request;
    char data[24] = {0}, out[24];
    const int64_t counts[3] = {1, 2, 3};
    CHECK(ts_comm_bytes(comm, TS_ALL_GATHER, counts, TS_F32) == 2 * 4 * 2);
    CHECK_FAILS(ts_all_reduce(comm, data, 1, TS_F32, TS_SUM), TS_EINTERNAL, "all-reduce over 3 imagined ranks");
    CHECK_FAILS(ts_broadcast(comm, data, 1, 0), TS_EINTERNAL, "imagined");
    CHECK_FAILS(ts_all_gather_v(comm, data, out, counts, TS_F32), TS_EINTERNAL, "imagined");
    CHECK_FAILS(ts_reduce_scatter_v(comm, data, out, counts, TS_F32), TS_EINTERNAL, "imagined");
    CHECK_FAILS(ts_all_to_all_v(comm, data, counts, out, counts, TS_F32), TS_EINTERNAL, "imagined");
    CHECK_FAILS(ts_barrier(comm), TS_EINTERNAL, "barrier");
    CHECK_FAILS(ts_reduce_scatter_v_start(comm, data, out, counts, TS_F32, &request), TS_EINTERNAL, "imagined");
    CHECK_FAILS(ts_all_gather_v_start(comm, data, out, counts, TS_F32, &request), TS_EINTERNAL, "imagined");
    CHECK_FAILS(ts_ring_start(comm, data, 1, out, 1, TS_F32, &request), TS_EINTERNAL, "ring over 3");
    CHECK_OK(ts_wait(&request));
    CHECK_OK(ts_all_reduce(mesh.axis[TS_AXIS_TENSOR], data, 1, TS_F32, TS_SUM));  // a lone rank needs nobody
    ts_mesh_close(&mesh);
}

// Ranks send different amounts along one axis: the gathered figures know the most and the sum.
static void test_traffic(void) {
    ts_mesh mesh;
    ts_traffic traffic;
    int64_t counts[MAX_RANKS], total = 0;
    char data[64] = {0}, text[2000] = "";
    for (int r = 0; r < size; r++) {
        total += counts[r] = r + 1;
    }
    CHECK_OK(ts_mesh_open(&mesh, world, &(ts_degrees){1, 1, 1, 1, size}));
    ts_mesh_reset_counters(&mesh);
    CHECK_OK(ts_all_gather_v(mesh.axis[TS_AXIS_TENSOR], data + 32, data, counts, TS_U8));
    CHECK_OK(ts_mesh_traffic(&mesh, &traffic));
    const ts_traffic_item *item = &traffic.item[TS_AXIS_TENSOR][TS_ALL_GATHER];
    CHECK(traffic.ranks == size && item->calls == (size > 1));
    CHECK(item->bytes_most == size * (size - 1) && item->bytes_sum == total * (size - 1));
    CHECK(item->seconds_mean <= item->seconds_most && (item->seconds_mean > 0) == (size > 1));
    CHECK(traffic.item[TS_AXIS_WORLD][TS_ALL_REDUCE].calls == 0);
    FILE *out = fmemopen(text, sizeof text, "w");
    ts_traffic_print(&traffic, out);
    fclose(out);
    CHECK(strstr(text, size > 1 ? "tensor    all-gather" : "nothing was sent") != NULL);
    json_t *json = ts_traffic_json(&traffic), *axes = json_object_get(json, "axes");
    const json_t *sum = json_object_get(json_object_get(json_object_get(axes, "tensor"), "all-gather"), "bytes_sum");
    CHECK(json_object_size(axes) == (size > 1) && json_integer_value(sum) == item->bytes_sum);
    json_decref(json);
    ts_mesh_close(&mesh);
}

static void test_mesh(void) {
    test_mesh_of((ts_degrees){size, 1, 1, 1, 1});
    test_mesh_of((ts_degrees){1, size, 1, 1, 1});
    test_mesh_of((ts_degrees){1, 1, 1, 1, size});
    if (size == 4) {
        test_mesh_of((ts_degrees){2, 1, 1, 1, 2});
        test_mesh_of((ts_degrees){1, 2, 1, 2, 1});
        test_mesh_of((ts_degrees){1, 1, 2, 2, 1});
        test_mesh_of((ts_degrees){1, 1, 2, 1, 2});
    }
    ts_mesh mesh;
    CHECK_FAILS(ts_mesh_open(&mesh, world, &(ts_degrees){size + 1, 1, 1, 1, 1}), TS_EUSAGE, "does not fit");
    CHECK_FAILS(ts_mesh_open(&mesh, world, &(ts_degrees){0, 1, 1, 1, 1}), TS_EUSAGE, "does not fit");
}

static void test_degrees(void) {
    ts_degrees d;
    int sequence;
    char text[64];
    CHECK_OK(ts_degrees_parse(&d, &sequence, "tensor=2,ring=3"));
    CHECK(d.data == 1 && d.cfg == 1 && d.ring == 3 && d.ulysses == 1 && d.tensor == 2 && sequence == 0);
    CHECK(!strcmp(ts_degrees_text(&d, text, sizeof text), "ring=3 tensor=2"));
    CHECK_OK(ts_degrees_parse(&d, &sequence, "sequence=6"));
    CHECK(sequence == 6);
    ts_degrees_sequence(&d, 6, 4);
    CHECK(d.ulysses == 3 && d.ring == 2);
    CHECK_OK(ts_degrees_parse(&d, &sequence, ""));
    CHECK(!strcmp(ts_degrees_text(&d, text, sizeof text), "1 rank"));
    CHECK_FAILS(ts_degrees_parse(&d, &sequence, "tensor=0"), TS_EUSAGE, "whole number from 1");
    CHECK_FAILS(ts_degrees_parse(&d, &sequence, "tensor=2x"), TS_EUSAGE, "whole number from 1");
    CHECK_FAILS(ts_degrees_parse(&d, &sequence, "pipeline=2"), TS_EUSAGE, "axis=degree");
    CHECK_FAILS(ts_degrees_parse(&d, &sequence, "sequence=4,ring=2"), TS_EUSAGE, "give sequence");
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
    test_degrees();
    test_imagined();
    test_traffic();
    CHECK_OK(ts_barrier(world));
    CHECK(size == 1 || ts_comm_total(world).calls > 0);
    ts_world_close(&world, ts_test_failures ? TS_EINTERNAL : TS_OK);
    CHECK(world == NULL);
    return ts_test_end();
}
