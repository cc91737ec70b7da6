// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=60
// The mesh: its axes and groups, degrees as text, imagined ranks, and what is gathered of the counters.
#include "core/comm/mesh.h"

#include "core/comm/traffic.h"
#include "tests/ts_test.h"

enum { MAX_RANKS = 4 };

static ts_comm *world;
static int rank, size;

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
    CHECK_FAILS(ts_agree(comm, TS_OK), TS_EINTERNAL, "agreement over 3 imagined ranks");
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
    CHECK_FAILS(ts_degrees_parse(&d, &sequence, "tensor=2,ring=2,tensor=4"), TS_EUSAGE, "tensor is given twice");
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    rank = ts_comm_rank(world);
    size = ts_comm_size(world);
    test_mesh();
    test_degrees();
    test_imagined();
    test_traffic();
    ts_world_close(&world, ts_test_failures ? TS_EINTERNAL : TS_OK);
    CHECK(world == NULL);
    return ts_test_end();
}
