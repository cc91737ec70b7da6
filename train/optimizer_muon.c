// SPDX-License-Identifier: Apache-2.0
// The optimizer's matrices with orthogonalised momentum, whole or cut over the tensor axis.
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "train/optimizer_private.h"

static int64_t rows_of(const ts_optimizer_run *run) {
    return run->matrix->whole.dim[0];
}

static int64_t columns_of(const ts_optimizer_run *run) {
    return run->matrix->whole.dim[1];
}

// What rank `rank` of the tensor axis holds of a cut matrix: indices of the dimension that is cut.
static ts_part slice_of(const ts_optimizer_run *run, const ts_comm *tensor, int rank) {
    const ts_param *m = run->matrix;
    const ts_part part = ts_split(m->whole.dim[m->cut] / m->unit, ts_comm_size(tensor), rank);
    return (ts_part){part.first * m->unit, part.count * m->unit};
}

static int64_t slice_elements(const ts_optimizer_run *run, const ts_comm *tensor, int rank) {
    return slice_of(run, tensor, rank).count * run->matrix->whole.dim[1 - run->matrix->cut];
}

// ---- opening

// The matrices among the runs, in their order, cut or not.
static void list(ts_muon_group *g, const ts_optimizer *o, bool cut) {
    for (int64_t i = 0; i < o->runs; i++) {
        const ts_param *m = o->run[i].matrix;
        if (m && (m->cut >= 0) == cut) {
            TS_ASSERT(m->whole.ndim == 2);
            g->run[g->runs++] = &o->run[i];
        }
    }
}

static int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static void measure(ts_muon_group *g) {
    const int64_t ranks = ts_comm_size(g->tensor);
    int64_t round = 0;
    for (int64_t i = 0; i < g->runs; i++) {
        const int64_t rows = rows_of(g->run[i]), columns = columns_of(g->run[i]);
        g->elements = most(g->elements, rows * columns);
        g->smaller = most(g->smaller, rows < columns ? rows : columns);
        round = i < g->uncut || (i - g->uncut) % ranks == 0 ? 0 : round;
        round += g->run[i]->count;
        g->slices = most(g->slices, round);
    }
}

int ts_muon_group_open(ts_muon_group **out, const ts_optimizer *o) {
    ts_muon_group *g = ts_calloc(1, sizeof *g);
    if (!g) {
        return TS_ERESOURCE;
    }
    g->tensor = ts_mesh_axis(o->weights->mesh, TS_AXIS_TENSOR);
    g->run = ts_calloc((size_t)o->runs + 1, sizeof(ts_optimizer_run *));
    const size_t ranks = (size_t)ts_comm_size(g->tensor);
    g->sent = ts_calloc(ranks, sizeof *g->sent);
    g->taken = ts_calloc(ranks, sizeof *g->taken);
    if (!g->run || !g->sent || !g->taken) {
        ts_muon_group_close(&g);
        return TS_ERESOURCE;
    }
    list(g, o, false);
    g->uncut = g->runs;
    list(g, o, true);
    measure(g);
    *out = g;
    return TS_OK;
}

int ts_muon_group_allocate(ts_muon_group *g, const ts_optimizer *o) {
    if (!g->runs) {
        return TS_OK;
    }
    const ts_device *device = o->kernels->device;
    const size_t bytes = (size_t)g->elements * sizeof(float);
    g->kernels = o->kernels;
    TS_TRY(ts_muon_open(&g->muon, o->kernels, o->weights->operand_dtype, g->elements, g->smaller));
    g->slice = device->allocate((size_t)g->slices * sizeof(float));
    if (g->runs > g->uncut) {
        g->received = device->allocate(bytes);
        g->whole = device->allocate(bytes);
    }
    return g->slice && (g->runs == g->uncut || (g->received && g->whole)) ? TS_OK : TS_ERESOURCE;
}

int64_t ts_muon_group_bytes(const ts_muon_group *g, ts_dtype operand) {
    const int64_t matrices = g->runs > g->uncut ? 2 : 0;
    return g->runs ? ts_muon_bytes(operand, g->elements, g->smaller) +
                         (int64_t)sizeof(float) * (g->slices + matrices * g->elements)
                   : 0;
}

void ts_muon_group_close(ts_muon_group **group) {
    ts_muon_group *g = *group;
    if (g) {
        ts_muon_close(&g->muon);
        if (g->kernels) {
            g->kernels->device->release(g->slice);
            g->kernels->device->release(g->received);
            g->kernels->device->release(g->whole);
        }
        free(g->run);
        free(g->sent);
        free(g->taken);
        free(g);
        *group = NULL;
    }
}

// ---- the update

// u of this rank's slice, with its moment advanced.
static int advance(const ts_optimizer *o, const ts_optimizer_run *run, double grad_scale, float *u) {
    const ts_kernels *k = o->kernels;
    const float *grad;
    TS_TRY(ts_run_gradient(o, run, 0, run->count, u, &grad));
    if (grad != u) {
        TS_TRY(k->device->copy(u, grad, (size_t)run->count * sizeof *u));
    }
    return k->momentum((float)grad_scale, (float)o->params.muon_momentum, run->moment1, u, run->count);
}

static int apply(const ts_optimizer *o, const ts_optimizer_run *run, const float *direction, const ts_update *update) {
    const ts_kernels *k = o->kernels;
    const double rate = update->lr * (double)run->lr_scale * o->params.muon_lr_scale;
    TS_TRY(k->axpy((float)-rate, direction, run->weight, run->count));
    if (run->average) {
        TS_TRY(k->scale((float)update->average_decay, run->average, run->count));
        TS_TRY(k->axpy((float)(1.0 - update->average_decay), run->weight, run->average, run->count));
    }
    return run->operand ? k->cast(run->weight, TS_F32, run->operand, TS_BF16, run->count) : TS_OK;
}

// Between g->received, slices one after another as they travel, and the matrix [rows, columns] in g->whole, which is
// cut along its columns.
static int move_columns(const ts_muon_group *g, const ts_optimizer_run *run, bool join) {
    const int64_t rows = rows_of(run), width = columns_of(run) * (int64_t)sizeof(float);
    float *slice = g->received;
    for (int rank = 0; rank < ts_comm_size(g->tensor); rank++) {
        const ts_part part = slice_of(run, g->tensor, rank);
        const int64_t bytes = part.count * (int64_t)sizeof(float);
        float *inside = g->whole + part.first;
        TS_TRY(join ? g->kernels->copy_rows(slice, bytes, inside, width, rows, bytes)
                    : g->kernels->copy_rows(inside, width, slice, bytes, rows, bytes));
        slice += rows * part.count;
    }
    return TS_OK;
}

// The direction of this rank's matrix of a round, from its received slices and into them.
static int direct_received(const ts_muon_group *g, const ts_optimizer_run *run) {
    if (run->matrix->cut == 0) {
        return ts_muon_direction(g->muon, rows_of(run), columns_of(run), g->received);
    }
    TS_TRY(move_columns(g, run, true));
    TS_TRY(ts_muon_direction(g->muon, rows_of(run), columns_of(run), g->whole));
    return move_columns(g, run, false);
}

// Matrices run[0 .. n - 1], cut over n or more ranks: number r is made whole on rank r.
static int update_round(const ts_optimizer *o, ts_optimizer_run *const *run, int64_t n, const ts_update *update) {
    const ts_muon_group *g = o->muon;
    const int ranks = ts_comm_size(g->tensor), me = ts_comm_rank(g->tensor);
    float *at = g->slice;
    for (int rank = 0; rank < ranks; rank++) {
        g->sent[rank] = rank < n ? run[rank]->count : 0;
        g->taken[rank] = me < n ? slice_elements(run[me], g->tensor, rank) : 0;
        if (rank < n) {
            TS_TRY(advance(o, run[rank], update->grad_scale, at));
            at += run[rank]->count;
        }
    }
    TS_TRY(ts_all_to_all_v(g->tensor, g->slice, g->sent, g->received, g->taken, TS_F32));
    TS_TRY(me < n ? direct_received(g, run[me]) : TS_OK);
    TS_TRY(ts_all_to_all_v(g->tensor, g->received, g->taken, g->slice, g->sent, TS_F32));
    at = g->slice;
    for (int64_t i = 0; i < n; i++) {
        TS_TRY(apply(o, run[i], at, update));
        at += run[i]->count;
    }
    return TS_OK;
}

int ts_muon_group_update(const ts_optimizer *o, const ts_update *update) {
    const ts_muon_group *g = o->muon;
    for (int64_t i = 0; i < g->uncut; i++) {
        TS_TRY(advance(o, g->run[i], update->grad_scale, g->slice));
        TS_TRY(ts_muon_direction(g->muon, rows_of(g->run[i]), columns_of(g->run[i]), g->slice));
        TS_TRY(apply(o, g->run[i], g->slice, update));
    }
    const int64_t ranks = ts_comm_size(g->tensor);
    for (int64_t i = g->uncut; i < g->runs; i += ranks) {
        TS_TRY(update_round(o, g->run + i, g->runs - i < ranks ? g->runs - i : ranks, update));
    }
    return TS_OK;
}
