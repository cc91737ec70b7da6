// SPDX-License-Identifier: Apache-2.0
#include "train/zero.h"

#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/split.h"
#include "core/base/status.h"

enum {
    UNIT = 32,      // elements that stay together: parameters begin at multiples of it
    UNDER_WAY = 2,  // groups whose gradients travel at a time
};

// ---- dealing out

// The items of a span: [first, end).
typedef struct item_range {
    int64_t first, end;
} item_range;

static item_range items_of(const ts_params *params, const ts_span *span, int64_t from) {
    item_range range = {from, from};
    while (range.end < params->count) {
        const ts_param *param = params->item[range.end];
        if (param->group != span->group || (param->cut >= 0) != span->cut || param->is_operand != span->is_operand) {
            break;
        }
        range.end++;
    }
    return range;
}

static bool any_hidden(const ts_params *params, item_range items) {
    for (int64_t i = items.first; i < items.end; i++) {
        if (params->item[i]->hidden) {
            return true;
        }
    }
    return false;
}

// Where part `rank` begins when parts end between items: at the item boundary nearest to an even share. It is measured
// on the whole tensors, so that all ranks of the tensor axis hold slices of the same ones.
static int64_t first_item(const ts_params *params, item_range items, int ranks, int rank) {
    int64_t total = 0, before = 0, i = items.first;
    for (int64_t j = items.first; j < items.end; j++) {
        total += ts_shape_count(params->item[j]->whole);
    }
    const int64_t wanted = rank == ranks ? total : ts_split_first(total, ranks, rank);
    for (; i < items.end; i++) {
        const int64_t size = ts_shape_count(params->item[i]->whole);
        if (before + size / 2 >= wanted) {
            break;
        }
        before += size;
    }
    return rank == ranks ? items.end : i;
}

static int64_t first_element(const ts_params *params, const ts_span *span, item_range items, bool whole, int ranks,
                             int rank) {
    if (whole) {
        const int64_t item = first_item(params, items, ranks, rank);
        return item < items.end ? params->item[item]->offset : span->first + span->count;
    }
    return span->first + UNIT * ts_split_first(span->count / UNIT, ranks, rank);
}

static int deal_out(const ts_params *params, ts_shard *shard, const ts_span *span, item_range items, bool whole) {
    const int ranks = ts_comm_size(shard->comm), rank = ts_comm_rank(shard->comm);
    shard->span = span;
    shard->counts = ts_calloc((size_t)ranks, sizeof *shard->counts);
    if (!shard->counts) {
        return TS_ERESOURCE;
    }
    for (int r = 0; r < ranks; r++) {
        const int64_t first = first_element(params, span, items, whole, ranks, r);
        shard->counts[r] = first_element(params, span, items, whole, ranks, r + 1) - first;
        shard->first = r == rank ? first : shard->first;
    }
    shard->count = shard->counts[rank];
    shard->item = whole ? first_item(params, items, ranks, rank) : items.first;
    shard->item_end = whole ? first_item(params, items, ranks, rank + 1) : items.end;
    while (!whole && shard->item < shard->item_end &&
           params->item[shard->item]->offset + params->item[shard->item]->count <= shard->first) {
        shard->item++;
    }
    while (!whole && shard->item < shard->item_end &&
           params->item[shard->item_end - 1]->offset >= shard->first + shard->count) {
        shard->item_end--;
    }
    return TS_OK;
}

int ts_zero_open(ts_zero **out, ts_params *params, bool whole_matrices) {
    ts_zero *z = ts_calloc(1, sizeof *z);
    if (!z) {
        return TS_ERESOURCE;
    }
    *z = (ts_zero){.params = params, .shard = ts_calloc((size_t)params->spans + 1, sizeof *z->shard)};
    int status = z->shard ? TS_OK : TS_ERESOURCE;
    int64_t from = 0;
    for (int s = 0; s < params->spans && !status; s++) {
        const ts_span *span = &params->span[s];
        const item_range items = items_of(params, span, from);
        ts_shard *shard = &z->shard[s];
        from = items.end;
        shard->comm = ts_mesh_axis(params->mesh, span->cut ? TS_AXIS_REPLICA : TS_AXIS_WORLD);
        status = deal_out(params, shard, span, items, whole_matrices && any_hidden(params, items));
        z->own += shard->count;
    }
    if (status) {
        ts_zero_close(&z);
        return status;
    }
    *out = z;
    return TS_OK;
}

void ts_zero_close(ts_zero **zero) {
    ts_zero *z = *zero;
    if (z) {
        for (int s = 0; z->shard && s < z->params->spans; s++) {
            free(z->shard[s].counts);
        }
        free(z->shard);
        free(z);
        *zero = NULL;
    }
}

// ---- gradients

int ts_zero_begin(ts_zero *z) {
    z->pending = z->params->groups;
    return ts_params_zero_grad(z->params);
}

// Not what one rank holds alone, and not slices that are empty, on all ranks of the communicator alike.
static bool travels(const ts_shard *shard) {
    return ts_comm_size(shard->comm) > 1 && shard->span->count > 0;
}

static int wait_group(ts_zero *z, int group) {
    for (int s = 0; s < z->params->spans; s++) {
        if (z->shard[s].span->group == group) {
            TS_TRY(ts_wait(&z->shard[s].request));
        }
    }
    return TS_OK;
}

static int send_group(ts_zero *z, int group) {
    const ts_params *params = z->params;
    const ts_dtype dtype = params->grad_dtype;
    if (group + UNDER_WAY < params->groups) {
        TS_TRY(wait_group(z, group + UNDER_WAY));
    }
    for (int s = 0; s < params->spans; s++) {
        ts_shard *shard = &z->shard[s];
        if (shard->span->group != group || !travels(shard)) {
            continue;
        }
        char *grad = dtype == TS_F32 ? (char *)shard->span->grad : (char *)shard->span->kept_grad;
        char *own = grad + (size_t)(shard->first - shard->span->first) * ts_dtype_bytes(dtype);
        TS_TRY(ts_reduce_scatter_v_start(shard->comm, grad, own, shard->counts, dtype, &shard->request));
    }
    z->pending = group;
    return TS_OK;
}

int ts_zero_group_done(ts_zero *z, int group, bool last) {
    TS_TRY(ts_params_fold_grad(z->params, group));
    // A block that does not come in its turn waits for ts_zero_reduce: all ranks must send in one order.
    return last && group == z->pending - 1 ? send_group(z, group) : TS_OK;
}

int ts_zero_reduce(ts_zero *z) {
    while (z->pending > 0) {
        TS_TRY(send_group(z, z->pending - 1));
    }
    for (int s = 0; s < z->params->spans; s++) {
        TS_TRY(ts_wait(&z->shard[s].request));
    }
    return TS_OK;
}

int64_t ts_zero_exchange_bytes(const ts_zero *z, ts_dtype dtype) {
    int64_t most = 0;
    for (int group = 0; group < z->params->groups; group++) {
        int64_t bytes = 0;
        for (int s = 0; s < z->params->spans; s++) {
            const ts_shard *shard = &z->shard[s];
            const bool together = shard->span->group >= group && shard->span->group < group + UNDER_WAY;
            bytes += together ? ts_reduce_scatter_scratch(shard->comm, shard->counts, dtype) : 0;
        }
        most = bytes > most ? bytes : most;
    }
    return most;
}

// ---- weights

int ts_zero_gather_start(ts_zero *z, int s) {
    ts_shard *shard = &z->shard[s];
    const ts_span *span = shard->span;
    if (!travels(shard)) {
        return TS_OK;
    }
    const ts_dtype dtype = span->operand ? TS_BF16 : TS_F32;
    char *all = span->operand ? (char *)span->operand : (char *)span->value;
    const char *own = all + (size_t)(shard->first - span->first) * ts_dtype_bytes(dtype);
    return ts_all_gather_v_start(shard->comm, own, all, shard->counts, dtype, &shard->request);
}

int ts_zero_gather_wait(ts_zero *z) {
    for (int s = 0; s < z->params->spans; s++) {
        TS_TRY(ts_wait(&z->shard[s].request));
    }
    return TS_OK;
}
