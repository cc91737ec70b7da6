// SPDX-License-Identifier: Apache-2.0
// A grid of communicators over the world.
#include "core/base/status.h"
#include "core/comm/transport.h"

enum { GRID_AXES = TS_AXIS_WORLD };  // the axes before it form the grid, the last one fastest

static int check_degrees(const ts_comm *world, const int degree[TS_AXIS_COUNT]) {
    int64_t product = 1;
    for (int axis = 0; axis < GRID_AXES; axis++) {
        if (degree[axis] < 1 || degree[axis] > world->size) {
            product = 0;
            break;
        }
        product *= degree[axis];
        product = product > world->size ? 0 : product;
    }
    if (product != world->size) {
        return TS_FAIL(TS_EUSAGE,
                       "mesh data=%d cfg=%d sequence=%d tensor=%d does not fit: the product must be %d, the "
                       "number of ranks",
                       degree[TS_AXIS_DATA], degree[TS_AXIS_CFG], degree[TS_AXIS_SEQUENCE], degree[TS_AXIS_TENSOR],
                       world->size);
    }
    return TS_OK;
}

// Ranks that differ only in this axis's coordinate come together, ordered by it.
static int open_axis(ts_comm **out, const ts_comm *world, int degree, int stride) {
    if (degree == 1) {
        return ts_comm_new(out, MPI_COMM_NULL);
    }
    const int coordinate = world->rank / stride % degree;
    MPI_Comm split;
    TS_TRY(ts_mpi_check(MPI_Comm_split(world->mpi, world->rank - coordinate * stride, coordinate, &split),
                        "MPI_Comm_split"));
    return ts_comm_new(out, split);
}

int ts_mesh_open(ts_mesh *out, ts_comm *world, const int degree[TS_AXIS_COUNT]) {
    *out = (ts_mesh){.world = world};
    TS_TRY(check_degrees(world, degree));
    out->axis[TS_AXIS_WORLD] = world;
    int stride = 1;
    for (int axis = GRID_AXES - 1; axis >= 0; axis--) {
        const int status = open_axis(&out->axis[axis], world, degree[axis], stride);
        if (status) {
            ts_mesh_close(out);
            return status;
        }
        stride *= degree[axis];
    }
    return TS_OK;
}

void ts_mesh_close(ts_mesh *mesh) {
    for (int axis = 0; axis < GRID_AXES; axis++) {
        ts_comm_delete(&mesh->axis[axis]);
    }
    *mesh = (ts_mesh){0};
}
