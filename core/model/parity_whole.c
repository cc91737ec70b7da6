// SPDX-License-Identifier: Apache-2.0
// Parity: whole values from the parts that the ranks have. Each rank puts its part into zeros, and one sum over the
// world does the rest: a gradient's parts add up, everything else meets zeros only.
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/model/parity_private.h"

static int zeros(int64_t count, float **out) {
    *out = ts_calloc((size_t)count + 1, sizeof **out);
    return *out ? 0 : TS_ERESOURCE;
}

static int sum_over_world(const ts_parity *p, float *data, int64_t count) {
    return ts_all_reduce(p->world, data, count, TS_F32, TS_SUM);
}

// The shape of all samples.
static ts_shape whole_shape(const ts_parity *p, ts_parity_layout layout, ts_shape shape) {
    if (layout == PARITY_ROWS) {
        return TS_SHAPE(p->batch, p->tokens.tokens, shape.dim[shape.ndim - 1]);
    }
    if (layout != PARITY_ALIKE) {
        TS_ASSERT(p->samples.count == 0 ? shape.dim[0] == 0 : shape.dim[0] % p->samples.count == 0);
        shape.dim[0] = p->batch;
    }
    return shape;
}

static void put_rows(const ts_parity *p, const float *data, int64_t width, float *out) {
    const int64_t first = p->samples.first * p->tokens.tokens;
    for (int64_t r = 0; r < p->tokens.rows.count; r++) {
        memcpy(out + (first + ts_tokens_place(&p->tokens, r)) * width, data + r * width, (size_t)width * sizeof *out);
    }
}

int ts_parity_whole(const ts_parity *p, ts_parity_layout layout, const float *data, ts_shape shape, ts_shape *whole,
                    float **out) {
    *whole = whole_shape(p, layout, shape);
    const int64_t here = ts_shape_count(shape), count = ts_shape_count(*whole);
    const bool first_of_model = ts_comm_rank(ts_mesh_axis(&p->mesh, TS_AXIS_MODEL)) == 0;
    TS_TRY(zeros(count, out));
    if (layout == PARITY_ALIKE) {
        memcpy(*out, data, (size_t)count * sizeof **out);
        return 0;
    }
    if (layout == PARITY_ROWS) {
        put_rows(p, data, shape.dim[shape.ndim - 1], *out);
    } else if (layout == PARITY_PARTIAL || first_of_model) {
        memcpy(*out + p->samples.first * (count / p->batch), data, (size_t)here * sizeof **out);
    }
    return sum_over_world(p, *out, count);
}

int ts_parity_whole_gradient(const ts_parity *p, const ts_param *param, float **out) {
    const int64_t count = ts_shape_count(param->whole);
    ts_piece piece[TS_MAX_PIECES];
    int64_t own = 0;
    TS_TRY(zeros(count, out));
    const int pieces = ts_param_pieces(param, 0, param->count, piece);
    for (int i = 0; i < pieces; i++) {
        for (int64_t run = 0; run < piece[i].runs; run++, own += piece[i].length) {
            TS_TRY(ts_param_read_grad(param, own, piece[i].length, *out + piece[i].first + run * piece[i].stride));
        }
    }
    return sum_over_world(p, *out, count);
}
