// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,4 timeout=60
// Threads per rank: as asked, as the environment says, or a fair share of the processors.
#include <omp.h>

#include "core/comm/threads.h"
#include "tests/ts_test.h"

int main(int argc, char **argv) {
    ts_comm *world = NULL;
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_threads_set(world, 3));
    CHECK(omp_get_max_threads() == 3);
    setenv("OMP_NUM_THREADS", "5", 1);
    CHECK_OK(ts_threads_set(world, 0));
    CHECK(omp_get_max_threads() == 3);  // left as it is: the runtime read the environment at its start
    unsetenv("OMP_NUM_THREADS");
    CHECK_OK(ts_threads_set(world, 0));
    const int threads = omp_get_max_threads(), fair = omp_get_num_procs() / ts_comm_size(world);
    // The tests run unbound on one machine: everyone may use every processor.
    CHECK(threads == (fair > 1 ? fair : 1));
    ts_world_close(&world, 0);
    return ts_test_end();
}
