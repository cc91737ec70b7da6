// SPDX-License-Identifier: Apache-2.0
#include "core/comm/threads.h"

#include <omp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/arena.h"
#include "core/base/log.h"
#include "core/base/status.h"

// Equal on two ranks when they run on one machine and may use the same processors of it.
static int64_t place_key(void) {
    struct {
        char host[256];
        cpu_set_t processors;
    } place;
    memset(&place, 0, sizeof place);
    gethostname(place.host, sizeof place.host - 1);
    sched_getaffinity(0, sizeof place.processors, &place.processors);
    return (int64_t)XXH3_64bits(&place, sizeof place);
}

// Ranks that share this rank's place, itself included. Collective.
static int count_neighbours(ts_comm *world, int64_t *neighbours) {
    const int size = ts_comm_size(world);
    const int64_t own = place_key();
    int64_t *key = ts_calloc((size_t)size, 2 * sizeof *key), *count = key ? key + size : NULL;
    int status = ts_agree(world, key ? TS_OK : TS_ERESOURCE);
    for (int i = 0; i < size && !status; i++) {
        count[i] = 1;
    }
    if (!status) {
        status = ts_all_gather_v(world, &own, key, count, TS_I64);
    }
    *neighbours = 0;
    for (int i = 0; i < size && !status; i++) {
        *neighbours += key[i] == own;
    }
    free(key);
    return status;
}

int ts_threads_set(ts_comm *world, int64_t wanted) {
    int64_t neighbours = 1;
    TS_TRY(count_neighbours(world, &neighbours));
    if (wanted <= 0 && getenv("OMP_NUM_THREADS")) {
        return TS_OK;
    }
    const int64_t fair = omp_get_num_procs() / neighbours;
    const int64_t threads = wanted > 0 ? wanted : fair > 0 ? fair : 1;
    omp_set_num_threads((int)threads);
    TS_DEBUG("%lld threads", (long long)threads);
    return TS_OK;
}
