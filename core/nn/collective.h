// SPDX-License-Identifier: Apache-2.0
// Collectives inside layers. In the count modes, and over an imagined mesh (core/comm/mesh.h) in all modes, nothing is
// sent and the communicator's counters get what would be: they then hold the traffic of a step. Arguments as in
// core/comm/comm.h; a NULL or lone communicator copies and counts nothing.
#ifndef TS_NN_COLLECTIVE_H
#define TS_NN_COLLECTIVE_H

#include "core/comm/comm.h"
#include "core/nn/layer.h"

int ts_tape_all_reduce(ts_tape *tape, ts_comm *comm, void *data, int64_t count, ts_dtype dtype);  // sum
int ts_tape_all_gather(ts_tape *tape, ts_comm *comm, const void *send, void *receive, const int64_t *counts,
                       ts_dtype dtype);
int ts_tape_reduce_scatter(ts_tape *tape, ts_comm *comm, const void *send, void *receive, const int64_t *counts,
                           ts_dtype dtype);
int ts_tape_all_to_all(ts_tape *tape, ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                       const int64_t *receive_counts, ts_dtype dtype);
// *out is NULL where nothing is sent; ts_wait takes that.
int ts_tape_ring_start(ts_tape *tape, ts_comm *comm, const void *send, int64_t send_count, void *receive,
                       int64_t receive_count, ts_dtype dtype, ts_request **out);

#endif
