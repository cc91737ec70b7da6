// SPDX-License-Identifier: Apache-2.0
// How many threads a rank should run: ranks that may use the same processors share them out.
#ifndef TS_COMM_THREADS_H
#define TS_COMM_THREADS_H

#include <stdint.h>

#include "core/comm/comm.h"

// Sets the OpenMP thread count of this rank: `wanted` when positive; else OMP_NUM_THREADS when set; else the processors
// this rank is bound to, divided by the ranks bound to the same ones. Collective over `world`; call once, at start.
int ts_threads_set(ts_comm *world, int64_t wanted);

// Ranks that run on this rank's machine, itself included. Collective over `world`.
int ts_ranks_on_host(ts_comm *world, int64_t *ranks);

#endif
