// SPDX-License-Identifier: Apache-2.0
// The ways over which ranks can talk, for tests that walk all of them.
#ifndef TS_COMM_SETUPS_H
#define TS_COMM_SETUPS_H

#include "core/comm/mesh.h"
#include "core/comm/transport.h"
#include "tests/ts_test.h"

typedef struct comm_setup {
    const char *name;
    ts_transport_choice transport;
    bool may_read;
    int64_t mpi_chunk, shared_chunk;  // 0: as it is
} comm_setup;

static const comm_setup COMM_SETUPS[] = {
    {"mpi", TS_TRANSPORT_MPI, false, 0, 0},
    {"mpi in small messages", TS_TRANSPORT_MPI, false, 37, 0},
    {"shared", TS_TRANSPORT_SHARED, true, 0, 0},
    {"shared without reading", TS_TRANSPORT_SHARED, false, 0, 0},
    {"shared in small steps", TS_TRANSPORT_SHARED, false, 0, 200},
};
enum { COMM_SETUP_COUNT = sizeof COMM_SETUPS / sizeof *COMM_SETUPS };

// A communicator of all ranks over the setup: along an axis of `mesh`, which the caller closes.
static inline ts_comm *comm_setup_open(ts_mesh *mesh, ts_comm *world, const comm_setup *setup) {
    static int64_t mpi_chunk, shared_chunk;
    mpi_chunk = mpi_chunk ? mpi_chunk : ts_mpi_chunk;
    shared_chunk = shared_chunk ? shared_chunk : ts_shared_chunk;
    ts_mpi_chunk = setup->mpi_chunk ? setup->mpi_chunk : mpi_chunk;
    ts_shared_chunk = setup->shared_chunk ? setup->shared_chunk : shared_chunk;
    ts_transport_wanted = setup->transport;
    ts_shared_may_read = setup->may_read;
    CHECK_OK(ts_mesh_open(mesh, world, &(ts_degrees){ts_comm_size(world), 1, 1, 1, 1}));
    return mesh->axis[TS_AXIS_DATA];
}

#endif
