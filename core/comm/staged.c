// SPDX-License-Identifier: Apache-2.0
// The transport of device memory through the host: down into page-locked memory, over the host's transport, up again.
// It serves every device and any number of ranks on one.
//
// Blocking calls go in pieces through two blocks of memory, so that one piece moves up while the next comes down. What
// was started comes down whole and is sent at once; ts_wait moves it up.
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/comm/request.h"

int64_t ts_staged_piece = 8 << 20;

// ---- page-locked memory

// A block, and what is to become of it when its messages have arrived.
typedef struct block {
    const ts_device *device;
    char *memory;
    size_t bytes;
    bool busy;
    struct block *next;
    struct {
        void *to;
        const void *from;
        size_t bytes;  // 0: nothing goes
    } up[2];
} block;

// Of all communicators: blocking calls come one at a time.
static struct {
    block *first;
    bool uploading;  // since the device was last waited for, from blocks that are free again
} pool;

// Waits until the device has read what it was told to.
static int settle(const ts_device *device) {
    if (!pool.uploading) {
        return TS_OK;
    }
    pool.uploading = false;
    return device->finish();
}

static bool serves_better(const block *a, const block *b, size_t bytes) {
    const bool a_fits = a->bytes >= bytes, b_fits = b->bytes >= bytes;
    return a_fits != b_fits ? a_fits : a_fits ? a->bytes < b->bytes : a->bytes > b->bytes;
}

static int take(block **out, const ts_device *device, size_t bytes) {
    block *best = NULL;
    TS_TRY(settle(device));
    for (block *b = pool.first; b; b = b->next) {
        best = !b->busy && b->device == device && (!best || serves_better(b, best, bytes)) ? b : best;
    }
    if (!best) {
        best = ts_calloc(1, sizeof *best);
        if (!best) {
            return TS_ERESOURCE;
        }
        best->device = device;
        best->next = pool.first;
        pool.first = best;
    }
    if (best->bytes < bytes) {
        device->release_host(best->memory);
        best->bytes = 0;
        best->memory = device->allocate_host(bytes);
        if (!best->memory) {
            return TS_ERESOURCE;
        }
        best->bytes = bytes;
    }
    best->busy = true;
    memset(best->up, 0, sizeof best->up);
    *out = best;
    return TS_OK;
}

static void give(block *b) {
    if (b) {
        b->busy = false;
    }
}

void ts_staged_release(void) {
    if (pool.first) {
        (void)settle(pool.first->device);
    }
    for (block *b = pool.first, *next; b; b = next) {
        next = b->next;
        b->device->release_host(b->memory);
        free(b);
    }
    pool.first = NULL;
}

// ---- pieces

static int64_t sum_of(const int64_t *counts, int n) {
    int64_t sum = 0;
    for (int i = 0; i < n; i++) {
        sum += counts[i];
    }
    return sum;
}

// A call in pieces. Piece k carries elements [k * step, (k + 1) * step) of every part, or of data without parts.
typedef struct pieces {
    ts_comm *comm;
    size_t element;
    int64_t first, step, most;  // of the piece at hand; elements of a part in one; of the largest part
    int64_t *counts;            // [size] of the piece at hand; NULL for data without parts
    block *block[2];
    int turn;
} pieces;

static int64_t in_piece(const pieces *p, int64_t count) {
    const int64_t left = count - p->first;
    return left < 0 ? 0 : left < p->step ? left : p->step;
}

static int begin_pieces(pieces *p, ts_comm *comm, const int64_t *counts, int64_t most, size_t element) {
    const int parts = counts ? comm->size : 1;
    const int64_t step = ts_staged_piece / (int64_t)element / parts;
    *p = (pieces){.comm = comm, .element = element, .most = most};
    if (counts) {
        p->counts = ts_malloc((size_t)parts * sizeof *p->counts);
        if (!p->counts) {
            return TS_ERESOURCE;
        }
    }
    for (int rank = 0; counts && rank < parts; rank++) {
        p->most = counts[rank] > p->most ? counts[rank] : p->most;
    }
    p->step = step < 1 ? 1 : step < p->most ? step : p->most;
    const bool several = p->step < p->most;
    const size_t bytes = (size_t)(p->step * parts) * element;
    TS_TRY(take(&p->block[0], comm->device, bytes));
    return several ? take(&p->block[1], comm->device, bytes) : TS_OK;
}

static int end_pieces(pieces *p, int status) {
    give(p->block[0]);
    give(p->block[1]);
    free(p->counts);
    return status;
}

// Goes on to the next piece; false when there is none.
static bool next_piece(pieces *p) {
    p->first += p->step;
    p->turn = !p->turn;
    return p->first < p->most;
}

static char *memory_of(const pieces *p) {
    return p->block[p->turn]->memory;
}

// The first piece waits for the work before it, and so the next ones need not.
static int come_down(const pieces *p, void *to, const void *from, int64_t count) {
    const ts_device *const device = p->comm->device;
    const size_t bytes = (size_t)count * p->element;
    return bytes == 0 ? TS_OK : (p->first == 0 ? device->download : device->fetch)(to, from, bytes);
}

// While this piece goes up, the next one comes down into the block of the one before, which must be up by then.
static int go_up(const pieces *p, void *to, const void *from, int64_t count) {
    const ts_device *const device = p->comm->device;
    TS_TRY(settle(device));
    pool.uploading = count > 0;
    return count > 0 ? device->upload_held(to, from, (size_t)count * p->element) : TS_OK;
}

// ---- blocking forms

static int reduce_piece(pieces *p, char *data, ts_dtype dtype, ts_reduce_op op) {
    const int64_t n = in_piece(p, p->most);
    char *const at = data + (size_t)p->first * p->element, *const host = memory_of(p);
    TS_TRY(come_down(p, host, at, n));
    TS_TRY(p->comm->transport->all_reduce(p->comm, host, n, dtype, op));
    return go_up(p, at, host, n);
}

static int all_reduce(ts_comm *comm, void *data, int64_t count, ts_dtype dtype, ts_reduce_op op) {
    pieces p;
    int status = begin_pieces(&p, comm, NULL, count, ts_dtype_bytes(dtype));
    for (bool more = count > 0; more && !status; more = next_piece(&p)) {
        status = reduce_piece(&p, data, dtype, op);
    }
    return end_pieces(&p, status);
}

static int broadcast_piece(pieces *p, char *data, int root) {
    const int64_t n = in_piece(p, p->most);
    char *const at = data + p->first, *const host = memory_of(p);
    if (p->comm->rank == root) {
        TS_TRY(come_down(p, host, at, n));
    }
    TS_TRY(p->comm->transport->broadcast(p->comm, host, n, root));
    return p->comm->rank == root ? TS_OK : go_up(p, at, host, n);
}

static int broadcast(ts_comm *comm, void *data, int64_t bytes, int root) {
    pieces p;
    int status = begin_pieces(&p, comm, NULL, bytes, 1);
    for (bool more = bytes > 0; more && !status; more = next_piece(&p)) {
        status = broadcast_piece(&p, data, root);
    }
    return end_pieces(&p, status);
}

// Fills in the counts of the piece at hand; returns where the own part lies in its memory.
static char *cut_piece(pieces *p, const int64_t *counts) {
    for (int rank = 0; rank < p->comm->size; rank++) {
        p->counts[rank] = in_piece(p, counts[rank]);
    }
    return memory_of(p) + (size_t)sum_of(p->counts, p->comm->rank) * p->element;
}

static int gather_piece(pieces *p, const char *send, char *receive, const int64_t *counts, ts_dtype dtype) {
    const size_t at = (size_t)p->first * p->element;
    char *const own = cut_piece(p, counts), *host = memory_of(p);
    TS_TRY(come_down(p, own, send + at, p->counts[p->comm->rank]));
    TS_TRY(p->comm->transport->all_gather_v(p->comm, own, host, p->counts, dtype));
    TS_TRY(settle(p->comm->device));
    for (int rank = 0; rank < p->comm->size; rank++) {
        if (rank != p->comm->rank && p->counts[rank] > 0) {
            pool.uploading = true;
            TS_TRY(p->comm->device->upload_held(receive + at, host, (size_t)p->counts[rank] * p->element));
        }
        host += (size_t)p->counts[rank] * p->element;
        receive += (size_t)counts[rank] * p->element;
    }
    return TS_OK;
}

// Puts this rank's part into its place among all.
static int place_own(const ts_comm *comm, const char *send, char *receive, const int64_t *counts, size_t element) {
    char *const own = receive + (size_t)sum_of(counts, comm->rank) * element;
    const size_t bytes = (size_t)counts[comm->rank] * element;
    return send == own || bytes == 0 ? TS_OK : comm->device->copy(own, send, bytes);
}

static int all_gather_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    pieces p;
    TS_TRY(place_own(comm, send, receive, counts, ts_dtype_bytes(dtype)));
    int status = begin_pieces(&p, comm, counts, 0, ts_dtype_bytes(dtype));
    for (bool more = p.most > 0; more && !status; more = next_piece(&p)) {
        status = gather_piece(&p, send, receive, counts, dtype);
    }
    return end_pieces(&p, status);
}

static int scatter_piece(pieces *p, const char *send, char *receive, const int64_t *counts, ts_dtype dtype) {
    const size_t at = (size_t)p->first * p->element;
    char *const own = cut_piece(p, counts), *host = memory_of(p);
    for (int rank = 0; rank < p->comm->size; rank++) {
        TS_TRY(come_down(p, host, send + at, p->counts[rank]));
        host += (size_t)p->counts[rank] * p->element;
        send += (size_t)counts[rank] * p->element;
    }
    TS_TRY(p->comm->transport->reduce_scatter_v(p->comm, memory_of(p), own, p->counts, dtype));
    return go_up(p, receive + at, own, p->counts[p->comm->rank]);
}

static int reduce_scatter_v(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype) {
    pieces p;
    int status = begin_pieces(&p, comm, counts, 0, ts_dtype_bytes(dtype));
    for (bool more = p.most > 0; more && !status; more = next_piece(&p)) {
        status = scatter_piece(&p, send, receive, counts, dtype);
    }
    return end_pieces(&p, status);
}

// Whole: how many pieces there are only the senders know.
static int all_to_all_v(ts_comm *comm, const void *send, const int64_t *send_counts, void *receive,
                        const int64_t *receive_counts, ts_dtype dtype) {
    const size_t element = ts_dtype_bytes(dtype);
    const size_t out_bytes = (size_t)sum_of(send_counts, comm->size) * element;
    const size_t in_bytes = (size_t)sum_of(receive_counts, comm->size) * element;
    block *out = NULL, *in = NULL;
    int status = take(&out, comm->device, out_bytes);
    status = status ? status : take(&in, comm->device, in_bytes);
    if (!status && out_bytes > 0) {
        status = comm->device->download(out->memory, send, out_bytes);
    }
    if (!status) {
        status = comm->transport->all_to_all_v(comm, out->memory, send_counts, in->memory, receive_counts, dtype);
    }
    if (!status && in_bytes > 0) {
        pool.uploading = true;
        status = comm->device->upload_held(receive, in->memory, in_bytes);
    }
    give(out);
    give(in);
    return status;
}

// ---- asynchronous forms

// The messages have arrived: what they brought goes up.
static int land(void *context) {
    block *const b = context;
    int status = TS_OK;
    for (int i = 0; i < 2 && !status; i++) {
        if (b->up[i].bytes > 0) {
            pool.uploading = true;
            status = b->device->upload_held(b->up[i].to, b->up[i].from, b->up[i].bytes);
        }
    }
    give(b);
    return status;
}

static int down(block *b, size_t at, const void *from, size_t bytes) {
    return bytes > 0 ? b->device->download(b->memory + at, from, bytes) : TS_OK;
}

// Sums into the own part of what came down.
static int reduce_scatter_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                                  ts_request **out) {
    const size_t element = ts_dtype_bytes(dtype), bytes = (size_t)sum_of(counts, comm->size) * element;
    block *b;
    TS_TRY(take(&b, comm->device, bytes));
    TS_TRY(down(b, 0, send, bytes));
    char *const own = b->memory + (size_t)sum_of(counts, comm->rank) * element;
    TS_TRY(comm->transport->reduce_scatter_v_start(comm, b->memory, own, counts, dtype, out));
    b->up[0].to = receive;
    b->up[0].from = own;
    b->up[0].bytes = (size_t)counts[comm->rank] * element;
    ts_request_then(*out, land, b);
    return TS_OK;
}

static int all_gather_v_start(ts_comm *comm, const void *send, void *receive, const int64_t *counts, ts_dtype dtype,
                              ts_request **out) {
    const size_t element = ts_dtype_bytes(dtype), bytes = (size_t)sum_of(counts, comm->size) * element;
    const size_t own = (size_t)sum_of(counts, comm->rank) * element, end = own + (size_t)counts[comm->rank] * element;
    block *b;
    TS_TRY(take(&b, comm->device, bytes));
    TS_TRY(down(b, own, send, end - own));
    TS_TRY(place_own(comm, send, receive, counts, element));
    TS_TRY(comm->transport->all_gather_v_start(comm, b->memory + own, b->memory, counts, dtype, out));
    b->up[0].to = receive;
    b->up[0].from = b->memory;
    b->up[0].bytes = own;
    b->up[1].to = (char *)receive + end;
    b->up[1].from = b->memory + end;
    b->up[1].bytes = bytes - end;
    ts_request_then(*out, land, b);
    return TS_OK;
}

static int ring_start(ts_comm *comm, const void *send, int64_t send_count, void *receive, int64_t receive_count,
                      ts_dtype dtype, ts_request **out) {
    const size_t element = ts_dtype_bytes(dtype);
    const size_t out_bytes = (size_t)send_count * element, in_bytes = (size_t)receive_count * element;
    block *b;
    TS_TRY(take(&b, comm->device, out_bytes + in_bytes));
    TS_TRY(down(b, 0, send, out_bytes));
    char *const in = b->memory + out_bytes;
    TS_TRY(comm->transport->ring_start(comm, b->memory, send_count, in, receive_count, dtype, out));
    b->up[0].to = receive;
    b->up[0].from = in;
    b->up[0].bytes = in_bytes;
    ts_request_then(*out, land, b);
    return TS_OK;
}

const ts_transport ts_staged_transport = {
    .all_reduce = all_reduce,
    .broadcast = broadcast,
    .all_gather_v = all_gather_v,
    .reduce_scatter_v = reduce_scatter_v,
    .all_to_all_v = all_to_all_v,
    .reduce_scatter_v_start = reduce_scatter_v_start,
    .all_gather_v_start = all_gather_v_start,
    .ring_start = ring_start,
};
