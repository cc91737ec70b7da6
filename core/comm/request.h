// SPDX-License-Identifier: Apache-2.0
// Inside core/comm only: operations under way, as messages between pairs of ranks.
//
// A request is taken, given its messages (or a reduction, which makes its own), and waited for. Every one has a tag of
// its own, so that the messages of several never meet. Requests and their memory are recycled: a step of training
// allocates nothing after the first.
#ifndef TS_COMM_REQUEST_H
#define TS_COMM_REQUEST_H

#include "core/comm/transport.h"

// A request of `comm` with room for `messages` and `scratch` bytes. Collective: ranks take requests in the same order.
int ts_request_take(ts_request **out, ts_comm *comm, ts_collective kind, int64_t messages, size_t scratch);
void *ts_request_scratch(ts_request *request);  // its scratch bytes, 64-byte aligned
ts_comm *ts_request_comm(const ts_request *request);
ts_collective ts_request_kind(const ts_request *request);
const ts_watch_ticket *ts_request_ticket(const ts_request *request);  // of the call that took it
// Messages that ts_request_send and ts_request_receive make of `count` elements: each has no more than ts_mpi_chunk.
int64_t ts_request_messages(int64_t count);
int ts_request_send(ts_request *request, const void *data, int64_t count, ts_dtype dtype, int to);
int ts_request_receive(ts_request *request, void *data, int64_t count, ts_dtype dtype, int from);

// A request for the sum of parts as ts_reduce_scatter_v says. It travels in rounds of bounded size, of which as many
// are under way as fit into `window` bytes (two at least); arrived rounds are summed whenever somebody waits or starts.
int ts_request_reduce(ts_request **out, ts_comm *comm, const void *send, void *receive, const int64_t *counts,
                      ts_dtype dtype, ts_reduce_op op, int64_t window);

int64_t ts_request_scratch_bytes(int size, const int64_t *counts, ts_dtype dtype, int64_t window);

// What ts_request_wait does last, when all messages have arrived: once the request is given back.
void ts_request_then(ts_request *request, int (*after)(void *context), void *context);

int ts_request_wait(ts_request *request);
// Moves everything under way on, of all communicators, without waiting.
int ts_request_progress(void);
bool ts_request_busy(void);                     // whether anything is under way
size_t ts_request_memory(const ts_comm *comm);  // bytes that its requests hold, idle ones too
void ts_request_delete_all(ts_comm *comm);

#endif
