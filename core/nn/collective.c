// SPDX-License-Identifier: Apache-2.0
#include "core/nn/collective.h"

static bool sends(const ts_tape *tape, const ts_comm *comm) {
    return ts_tape_computes(tape) && !ts_comm_is_imagined(comm);
}

int ts_tape_all_reduce(ts_tape *tape, ts_comm *comm, void *data, int64_t count, ts_dtype dtype) {
    if (sends(tape, comm)) {
        return ts_all_reduce(comm, data, count, dtype, TS_SUM);
    }
    ts_comm_count(comm, TS_ALL_REDUCE, &count, dtype);
    return 0;
}

int ts_tape_all_gather(ts_tape *tape, ts_comm *comm, const void *send, void *receive, const int64_t *counts,
                       ts_dtype dtype) {
    if (sends(tape, comm)) {
        return ts_all_gather_v(comm, send, receive, counts, dtype);
    }
    ts_comm_count(comm, TS_ALL_GATHER, counts, dtype);
    return 0;
}

int ts_tape_reduce_scatter(ts_tape *tape, ts_comm *comm, const void *send, void *receive, const int64_t *counts,
                           ts_dtype dtype) {
    if (sends(tape, comm)) {
        return ts_reduce_scatter_v(comm, send, receive, counts, dtype);
    }
    ts_comm_count(comm, TS_REDUCE_SCATTER, counts, dtype);
    return 0;
}

int ts_tape_all_to_all(ts_tape *tape, ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                       const int64_t *receive_counts, ts_dtype dtype) {
    if (sends(tape, comm)) {
        return ts_all_to_all_v(comm, send, send_counts, receive, receive_counts, dtype);
    }
    ts_comm_count(comm, TS_ALL_TO_ALL, send_counts, dtype);
    return 0;
}

int ts_tape_ring_start(ts_tape *tape, ts_comm *comm, const void *send, int64_t send_count, void *receive,
                       int64_t receive_count, ts_dtype dtype, ts_request **out) {
    *out = NULL;
    if (sends(tape, comm)) {
        return ts_ring_start(comm, send, send_count, receive, receive_count, dtype, out);
    }
    ts_comm_count(comm, TS_RING, &send_count, dtype);
    return 0;
}
