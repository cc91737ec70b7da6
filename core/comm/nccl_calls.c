// SPDX-License-Identifier: Apache-2.0
// The calls of the transport over NCCL (nccl.c).
//
// What NCCL sends is what the formulas of comm.h count: even parts by its own collectives, uneven ones as messages
// between pairs of ranks or, across hosts, as one broadcast or reduction for each part; padding would send more.
//
// Sums "in order" are made here: parts travel to the rank that owns their sum, and a kernel adds them up in the order
// of the ranks. NCCL's own sums depend on its rings, and round bf16 at every hop.
#include <string.h>

#include "core/base/split.h"
#include "core/comm/nccl_private.h"

// All-reduces up to this share of the window, of all ranks together, are gathered whole by each of them.
enum { SMALL_SHARE = 256 };

typedef ts_nccl_message message;

// ---- messages

static bool are_even(const int64_t *counts, int n) {
    for (int i = 1; i < n; i++) {
        if (counts[i] != counts[0]) {
            return false;
        }
    }
    return true;
}

static int copy(void *to, const void *from, size_t bytes) {
    if (to != from && bytes > 0) {
        TS_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, ts_cuda_communication_stream()));
    }
    return TS_OK;
}

// One call of NCCL for all messages but the own one.
static int exchange(const ts_comm *comm) {
    const ts_nccl *const n = comm->nccl;
    cudaStream_t const stream = ts_cuda_communication_stream();
    TS_NCCL(n, ncclGroupStart());
    ncclResult_t code = ncclSuccess;
    for (int i = 1; i < comm->size; i++) {
        const int to = (comm->rank + i) % comm->size, from = (comm->rank + comm->size - i) % comm->size;
        const message *const out = &n->messages[to], *const in = &n->messages[from];
        if (out->out_bytes > 0 && code == ncclSuccess) {
            code = ncclSend(out->out, out->out_bytes, ncclInt8, to, n->comm, stream);
        }
        if (in->in_bytes > 0 && code == ncclSuccess) {
            code = ncclRecv(in->in, in->in_bytes, ncclInt8, from, n->comm, stream);
        }
    }
    const ncclResult_t ended = ncclGroupEnd();
    return ts_nccl_check(n, code == ncclSuccess ? ended : code, "messages");
}

static void clear_messages(const ts_comm *comm) {
    memset(comm->nccl->messages, 0, (size_t)comm->size * sizeof *comm->nccl->messages);
}

static int send_all(const ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                    const int64_t *receive_counts, size_t element) {
    const char *out = send;
    char *in = receive;
    for (int rank = 0; rank < comm->size; rank++) {
        const size_t out_bytes = (size_t)send_counts[rank] * element, in_bytes = (size_t)receive_counts[rank] * element;
        comm->nccl->messages[rank] = (message){out, in, out_bytes, in_bytes};
        if (rank == comm->rank) {
            TS_TRY(copy(in, out, in_bytes));
        }
        out += out_bytes;
        in += in_bytes;
    }
    return exchange(comm);
}

// ---- gathering

// A broadcast from each rank: across hosts every part then crosses the network as often as a ring does.
static int gather_by_broadcasts(const ts_comm *comm, const void *send, char *receive, const int64_t *counts,
                                size_t element) {
    const ts_nccl *const n = comm->nccl;
    TS_NCCL(n, ncclGroupStart());
    ncclResult_t code = ncclSuccess;
    for (int rank = 0; rank < comm->size; rank++) {
        const size_t bytes = (size_t)counts[rank] * element;
        if (bytes > 0 && code == ncclSuccess) {
            code = ncclBroadcast(rank == comm->rank ? send : receive, receive, bytes, ncclInt8, rank, n->comm,
                                 ts_cuda_communication_stream());
        }
        receive += bytes;
    }
    const ncclResult_t ended = ncclGroupEnd();
    return ts_nccl_check(n, code == ncclSuccess ? ended : code, "ncclBroadcast");
}

static int gather(const ts_comm *comm, const void *send, void *receive, const int64_t *counts, size_t element) {
    const ts_nccl *const n = comm->nccl;
    const size_t own_bytes = (size_t)counts[comm->rank] * element;
    if (are_even(counts, comm->size)) {
        if (own_bytes > 0) {
            TS_NCCL(n, ncclAllGather(send, receive, own_bytes, ncclInt8, n->comm, ts_cuda_communication_stream()));
        }
        return TS_OK;
    }
    if (!comm->one_host) {
        return gather_by_broadcasts(comm, send, receive, counts, element);
    }
    char *in = receive;
    for (int rank = 0; rank < comm->size; rank++) {
        n->messages[rank] = (message){send, in, own_bytes, (size_t)counts[rank] * element};
        if (rank == comm->rank) {
            TS_TRY(copy(in, send, own_bytes));
        }
        in += n->messages[rank].in_bytes;
    }
    return exchange(comm);
}

// ---- sums in the order of the ranks

static void *take_scratch(int64_t elements, size_t element) {
    return ts_cuda_scratch(TS_CUDA_SCRATCH_EXCHANGE, (size_t)elements * element);
}

// Elements of a part in one round.
static int64_t window_of(const ts_comm *comm, int64_t element) {
    const int64_t elements = ts_nccl_window / element / comm->size;
    return elements > 0 ? elements : 1;
}

static int64_t in_round(int64_t count, int64_t first, int64_t chunk) {
    const int64_t left = count - first;
    return left < 0 ? 0 : left < chunk ? left : chunk;
}

// Elements [first, first + chunk) of every part go to the rank that owns it, which sums them.
static int reduce_round(const ts_comm *comm, const char *send, char *receive, const int64_t *counts, int64_t first,
                        const ts_cuda_parts *parts, ts_dtype dtype, ts_reduce_op op) {
    const size_t element = ts_dtype_bytes(dtype);
    const int64_t own = in_round(counts[comm->rank], first, parts->stride);
    ts_cuda_parts p = *parts;
    for (int rank = 0; rank < comm->size; rank++) {
        const char *const out = send + (size_t)first * element;
        char *const in = (char *)(uintptr_t)parts->parts + (size_t)(rank * parts->stride) * element;
        const int64_t theirs = in_round(counts[rank], first, parts->stride);
        comm->nccl->messages[rank] = (message){out, in, (size_t)theirs * element, (size_t)own * element};
        p.own = rank == comm->rank ? out : p.own;
        send += (size_t)counts[rank] * element;
    }
    TS_TRY(exchange(comm));
    p.out = receive + (size_t)first * element;
    p.count = own;
    return ts_cuda_reduce_parts(&p, dtype, op);
}

static int reduce_in_order(const ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                           ts_reduce_op op) {
    const int64_t element = (int64_t)ts_dtype_bytes(dtype);
    int64_t most = 0;
    for (int rank = 0; rank < comm->size; rank++) {
        most = counts[rank] > most ? counts[rank] : most;
    }
    const int64_t room = window_of(comm, element), chunk = most < room ? most : room;
    if (most == 0) {
        return TS_OK;
    }
    const ts_cuda_parts parts = {.parts = take_scratch(chunk * comm->size, (size_t)element),
                                 .stride = chunk,
                                 .rank = comm->rank,
                                 .size = comm->size};
    if (!parts.parts) {
        return TS_ERESOURCE;
    }
    for (int64_t first = 0; first < most; first += chunk) {
        TS_TRY(reduce_round(comm, send, receive, counts, first, &parts, dtype, op));
    }
    return TS_OK;
}

// One exchange instead of two: every rank gathers all data and sums all of it. With two ranks that sends no more.
static int all_reduce_whole(const ts_comm *comm, char *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const ts_nccl *const n = comm->nccl;
    const int64_t element = (int64_t)ts_dtype_bytes(dtype), room = window_of(comm, element);
    const int64_t chunk = count < room ? count : room;
    char *const parts = take_scratch(chunk * comm->size, (size_t)element);
    if (!parts) {
        return TS_ERESOURCE;
    }
    for (int64_t first = 0; first < count; first += chunk) {
        char *const at = data + (size_t)(first * element);
        const int64_t m = in_round(count, first, chunk);
        TS_NCCL(n, ncclAllGather(at, parts, (size_t)(m * element), ncclInt8, n->comm, ts_cuda_communication_stream()));
        const ts_cuda_parts p = {.out = at,
                                 .own = parts + (size_t)(comm->rank * m * element),
                                 .parts = parts,
                                 .stride = m,
                                 .count = m,
                                 .rank = comm->rank,
                                 .size = comm->size};
        TS_TRY(ts_cuda_reduce_parts(&p, dtype, op));
    }
    return TS_OK;
}

static int all_reduce_in_order(const ts_comm *comm, char *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const size_t element = ts_dtype_bytes(dtype);
    if (comm->size == 2 || count * (int64_t)element * comm->size <= ts_nccl_window / SMALL_SHARE) {
        return all_reduce_whole(comm, data, count, dtype, op);
    }
    for (int rank = 0; rank < comm->size; rank++) {
        comm->parts[rank] = ts_split(count, comm->size, rank).count;
    }
    char *const own = data + (size_t)ts_split_first(count, comm->size, comm->rank) * element;
    TS_TRY(reduce_in_order(comm, data, own, comm->parts, dtype, op));
    return gather(comm, own, data, comm->parts, element);
}

// ---- sums that NCCL makes

static ncclDataType_t type_of(ts_dtype dtype) {
    switch (dtype) {
    case TS_F32:
        return ncclFloat32;
    case TS_F64:
        return ncclFloat64;
    case TS_I64:
        return ncclInt64;
    default:
        TS_ASSERT(dtype == TS_I32);
        return ncclInt32;
    }
}

static ncclRedOp_t operation(ts_reduce_op op) {
    return op == TS_SUM ? ncclSum : op == TS_MAX ? ncclMax : ncclMin;
}

static int reduce_by_nccl(const ts_comm *comm, const char *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    const ts_nccl *const n = comm->nccl;
    cudaStream_t const stream = ts_cuda_communication_stream();
    if (are_even(counts, comm->size)) {
        if (counts[0] > 0) {
            TS_NCCL(n, ncclReduceScatter(send, receive, (size_t)counts[0], type_of(dtype), ncclSum, n->comm, stream));
        }
        return TS_OK;
    }
    TS_NCCL(n, ncclGroupStart());
    ncclResult_t code = ncclSuccess;
    for (int rank = 0; rank < comm->size; rank++) {
        if (counts[rank] > 0 && code == ncclSuccess) {
            code = ncclReduce(send, rank == comm->rank ? receive : NULL, (size_t)counts[rank], type_of(dtype), ncclSum,
                              rank, n->comm, stream);
        }
        send += (size_t)counts[rank] * ts_dtype_bytes(dtype);
    }
    const ncclResult_t ended = ncclGroupEnd();
    return ts_nccl_check(n, code == ncclSuccess ? ended : code, "ncclReduce");
}

static int reduce_scatter(const ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    return comm->nccl->ordered || dtype == TS_BF16 ? reduce_in_order(comm, send, receive, counts, dtype, TS_SUM)
                                                   : reduce_by_nccl(comm, send, receive, counts, dtype);
}

// ---- the table

static int all_reduce(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    const ts_nccl *const n = comm->nccl;
    if (count == 0) {
        return TS_OK;
    }
    TS_TRY(ts_nccl_enter(comm, data, data));
    if (n->ordered) {
        TS_TRY(all_reduce_in_order(comm, data, count, dtype, op));
    } else {
        TS_NCCL(n, ncclAllReduce(data, data, (size_t)count, type_of(dtype), operation(op), n->comm,
                                 ts_cuda_communication_stream()));
    }
    return ts_cuda_join();
}

static int broadcast(ts_comm *comm, void *data, int64_t bytes, int root) {
    const ts_nccl *const n = comm->nccl;
    if (bytes == 0) {
        return TS_OK;
    }
    TS_TRY(ts_nccl_enter(comm, data, data));
    TS_NCCL(n, ncclBroadcast(data, data, (size_t)bytes, ncclInt8, root, n->comm, ts_cuda_communication_stream()));
    return ts_cuda_join();
}

static int all_gather_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    TS_TRY(ts_nccl_enter(comm, send, receive));
    TS_TRY(gather(comm, send, receive, counts, ts_dtype_bytes(dtype)));
    return ts_cuda_join();
}

static int reduce_scatter_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    TS_TRY(ts_nccl_enter(comm, send, receive));
    TS_TRY(reduce_scatter(comm, send, receive, counts, dtype));
    return ts_cuda_join();
}

static int all_to_all_v(ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                        const int64_t *receive_counts, ts_dtype dtype) {
    TS_TRY(ts_nccl_enter(comm, send, receive));
    TS_TRY(send_all(comm, send, send_counts, receive, receive_counts, ts_dtype_bytes(dtype)));
    return ts_cuda_join();
}

static int reduce_scatter_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                                  ts_request **out) {
    TS_TRY(ts_nccl_enter(comm, send, receive));
    TS_TRY(reduce_scatter(comm, send, receive, counts, dtype));
    return ts_nccl_leave_started(comm, TS_REDUCE_SCATTER, out);
}

static int all_gather_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                              ts_request **out) {
    TS_TRY(ts_nccl_enter(comm, send, receive));
    TS_TRY(gather(comm, send, receive, counts, ts_dtype_bytes(dtype)));
    return ts_nccl_leave_started(comm, TS_ALL_GATHER, out);
}

static int ring_start(ts_comm *comm, const void *send, int64_t send_count, void *receive, int64_t receive_count,
                      ts_dtype dtype, ts_request **out) {
    const int next = (comm->rank + 1) % comm->size, previous = (comm->rank + comm->size - 1) % comm->size;
    message *const messages = comm->nccl->messages;
    TS_TRY(ts_nccl_enter(comm, send, receive));
    clear_messages(comm);
    messages[next].out = send;
    messages[next].out_bytes = (size_t)send_count * ts_dtype_bytes(dtype);
    messages[previous].in = receive;
    messages[previous].in_bytes = (size_t)receive_count * ts_dtype_bytes(dtype);
    TS_TRY(exchange(comm));
    return ts_nccl_leave_started(comm, TS_RING, out);
}

const ts_transport ts_nccl_transport = {
    .all_reduce = all_reduce,
    .broadcast = broadcast,
    .all_gather_v = all_gather_v,
    .reduce_scatter_v = reduce_scatter_v,
    .all_to_all_v = all_to_all_v,
    .reduce_scatter_v_start = reduce_scatter_v_start,
    .all_gather_v_start = all_gather_v_start,
    .ring_start = ring_start,
};
