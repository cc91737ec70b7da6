// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=2,3,4 timeout=60 backend=cuda
// Fewer GPUs than ranks: along an axis whose ranks have a GPU each, device memory travels over NCCL, along one where
// some share a GPU through the host, on all ranks alike; NCCL is refused there when it is insisted on.
#include "core/comm/mesh.h"
#include "core/comm/transport.h"
#include "core/kernels/kernels.h"
#include "tests/ts_test.h"

enum { COUNT = 3000, MAX_RANKS = 4 };

static const ts_device *device;
static float *data;

// Whether some ranks of an axis have the same GPU, known by its place on the bus.
static bool share(ts_comm *comm) {
    char names[MAX_RANKS][64] = {{0}};
    int64_t counts[MAX_RANKS] = {64, 64, 64, 64};
    char *const own = names[ts_comm_rank(comm)];
    CHECK_OK(ts_nccl_backend.name_gpu(own, 64));
    CHECK_OK(ts_all_gather_v(comm, own, names, counts, TS_U8));
    bool same = false;
    for (int a = 0; a < ts_comm_size(comm); a++) {
        for (int b = 0; b < a; b++) {
            same = same || !strcmp(names[a], names[b]);
        }
    }
    return same;
}

static void test_axis(ts_comm *comm) {
    static float host[COUNT];
    const int size = ts_comm_size(comm);
    if (size == 1) {
        return;
    }
    for (int i = 0; i < COUNT; i++) {
        host[i] = (float)(i + ts_comm_rank(comm));
    }
    CHECK_OK(device->upload(data, host, sizeof host));
    CHECK(!ts_comm_records(comm));
    CHECK_OK(ts_all_reduce(comm, data, COUNT, TS_F32, TS_SUM));
    CHECK_OK(device->download(host, data, sizeof host));
    for (int i = 0; i < COUNT; i++) {
        CHECK(host[i] == (float)(i * size + size * (size - 1) / 2));
    }
    CHECK((comm->device_transport == &ts_staged_transport) == share(comm));
    CHECK(ts_comm_records(comm) == !share(comm));
}

static void test_mesh(ts_comm *world, int data_degree) {
    ts_mesh mesh;
    ts_device_wanted = TS_DEVICE_TRANSPORT_AUTO;
    CHECK_OK(ts_mesh_open(&mesh, world, &(ts_degrees){data_degree, 1, 1, 1, ts_comm_size(world) / data_degree}));
    test_axis(mesh.axis[TS_AXIS_TENSOR]);
    test_axis(mesh.axis[TS_AXIS_DATA]);
    test_axis(mesh.axis[TS_AXIS_MODEL]);
    ts_mesh_close(&mesh);
}

static void test_insisting(ts_comm *world) {
    ts_mesh mesh;
    ts_device_wanted = TS_DEVICE_TRANSPORT_NCCL;
    CHECK_OK(ts_mesh_open(&mesh, world, &(ts_degrees){1, 1, 1, 1, ts_comm_size(world)}));
    ts_comm *const comm = mesh.axis[TS_AXIS_TENSOR];
    if (share(comm)) {
        CHECK_FAILS(ts_all_reduce(comm, data, COUNT, TS_F32, TS_SUM), TS_EUSAGE, " ranks share GPU ");
    } else {
        CHECK_OK(ts_all_reduce(comm, data, COUNT, TS_F32, TS_SUM));
    }
    ts_mesh_close(&mesh);
}

// The imitation refuses what NCCL refuses, so that it would show if nobody looked before.
static void test_refusal(ts_comm *world) {
    ts_mesh mesh;
    CHECK_OK(ts_mesh_open(&mesh, world, &(ts_degrees){1, 1, 1, 1, ts_comm_size(world)}));
    ts_comm *const comm = mesh.axis[TS_AXIS_TENSOR];
    CHECK_FAILS(ts_nccl_backend.open(comm), TS_EPEER, "Duplicate GPU detected");
    ts_mesh_close(&mesh);
}

int main(int argc, char **argv) {
    const ts_kernels *kernels;
    ts_comm *world;
    setenv("TESSERA_SHIM_DEVICES", atoi(getenv("TESSERA_TEST_RANKS")) > 2 ? "2" : "1", 0);
    if (strcmp(ts_test_backend(), "cpu") == 0) {
        ts_test_skip("needs a device");
    }
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    const int status = ts_kernels_open(&kernels, "cuda", ts_comm_local_rank(world));
    if (status == TS_EPEER) {
        ts_world_close(&world, TS_OK);
        ts_test_skip(ts_error_text());
    }
    CHECK_OK(status);
    device = kernels->device;
    data = device->allocate(COUNT * sizeof *data);
    CHECK(data && ts_nccl_is_there());
    test_mesh(world, 1);
    if (ts_comm_size(world) == 4) {
        test_mesh(world, 2);
    }
    test_insisting(world);
    if (!strcmp(getenv("TESSERA_BACKEND"), "shim")) {
        test_refusal(world);
    }
    device->release(data);
    ts_world_close(&world, ts_test_failures ? TS_EINTERNAL : TS_OK);
    return ts_test_end();
}
