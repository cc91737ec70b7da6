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

typedef struct place {
    char host[256];
    cpu_set_t processors;
} place;

// Ranks of an equal place, this one included. Collective.
static int count_neighbours(ts_comm *world, const place *here, int64_t *neighbours) {
    const int size = ts_comm_size(world);
    const int64_t own = (int64_t)XXH3_64bits(here, sizeof *here);
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

int ts_ranks_on_host(ts_comm *world, int64_t *ranks) {
    place here;
    memset(&here, 0, sizeof here);
    gethostname(here.host, sizeof here.host - 1);
    return count_neighbours(world, &here, ranks);
}

// Ranks that may use the same processors of one machine share these out.
int ts_threads_set(ts_comm *world, int64_t wanted) {
    int64_t neighbours = 1;
    place here;
    memset(&here, 0, sizeof here);
    gethostname(here.host, sizeof here.host - 1);
    sched_getaffinity(0, sizeof here.processors, &here.processors);
    TS_TRY(count_neighbours(world, &here, &neighbours));
    if (wanted <= 0 && getenv("OMP_NUM_THREADS")) {
        return TS_OK;
    }
    const int64_t fair = omp_get_num_procs() / neighbours;
    const int64_t threads = wanted > 0 ? wanted : fair > 0 ? fair : 1;
    omp_set_num_threads((int)threads);
    TS_DEBUG("%lld threads", (long long)threads);
    return TS_OK;
}
