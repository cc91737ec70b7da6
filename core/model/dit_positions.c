// SPDX-License-Identifier: Apache-2.0
// Rotary angles and absolute position features of a token grid.
#include <math.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/model/dit_private.h"

static const double PI = 3.14159265358979323846;

// Pairs of a head go to t first, then h, then w; each axis has a frequency ladder of its own:
//   angle of pair j of an axis with n pairs = position * 10000^(-j / n)
static void fill_rope(dit_positions *p, int64_t head_dim) {
    const int64_t side = head_dim / 6, pairs = head_dim / 2;
    const int64_t axis_pairs[3] = {pairs - 2 * side, side, side};
    for (int64_t token = 0; token < p->tokens; token++) {
        const int64_t at[3] = {token / (p->grid[1] * p->grid[2]), token / p->grid[2] % p->grid[1], token % p->grid[2]};
        int64_t pair = token * pairs;
        for (int axis = 0; axis < 3; axis++) {
            for (int64_t j = 0; j < axis_pairs[axis]; j++, pair++) {
                const double angle = (double)at[axis] * pow(10000.0, -(double)j / (double)axis_pairs[axis]);
                p->cosine[pair] = (float)cos(angle);
                p->sine[pair] = (float)sin(angle);
            }
        }
    }
}

// sqrt(2) cos(pi k u), k = 1, 2, .., u = (i + 1/2) / n the middle of the token on its axis: an orthonormal basis of
// smooth functions of the place, the same at any resolution.
static void fill_features(dit_positions *p) {
    for (int64_t token = 0; token < p->tokens; token++) {
        const int64_t at[3] = {token / (p->grid[1] * p->grid[2]), token / p->grid[2] % p->grid[1], token % p->grid[2]};
        float *f = p->features + token * DIT_POSITION_FEATURES;
        for (int axis = 0; axis < 3; axis++) {
            const double u = ((double)at[axis] + 0.5) / (double)p->grid[axis];
            for (int k = 1; k <= DIT_POSITION_WAVES; k++) {
                *f++ = (float)(sqrt(2.0) * cos(PI * k * u));
            }
        }
    }
}

static void free_tables(dit_positions *p) {
    free(p->features);
    free(p->sine);
    free(p->cosine);
    p->features = p->sine = p->cosine = NULL;
}

static int make_tables(dit_positions *p, const ts_dit_config *c) {
    const int64_t pairs = c->head_dim / 2;
    p->cosine = ts_aligned_alloc((size_t)(p->tokens * pairs) * sizeof(float));
    p->sine = ts_aligned_alloc((size_t)(p->tokens * pairs) * sizeof(float));
    p->features =
        c->absolute_positions ? ts_aligned_alloc((size_t)(p->tokens * DIT_POSITION_FEATURES) * sizeof(float)) : NULL;
    if (!p->cosine || !p->sine || (c->absolute_positions && !p->features)) {
        free_tables(p);
        return TS_ERESOURCE;
    }
    fill_rope(p, c->head_dim);
    if (c->absolute_positions) {
        fill_features(p);
    }
    return TS_OK;
}

static dit_positions *find_grid(const ts_dit *dit, const int64_t grid[3]) {
    for (dit_positions *p = *dit->positions; p; p = p->next) {
        if (!memcmp(p->grid, grid, sizeof p->grid)) {
            return p;
        }
    }
    dit_positions *p = ts_calloc(1, sizeof *p);
    if (p) {
        memcpy(p->grid, grid, sizeof p->grid);
        p->tokens = grid[0] * grid[1] * grid[2];
        p->next = *dit->positions;
        *dit->positions = p;
    }
    return p;
}

int dit_positions_get(const dit_positions **out, const ts_dit *dit, ts_shape video, bool tables) {
    int64_t grid[3];
    for (int i = 0; i < 3; i++) {
        grid[i] = video.dim[1 + i] / dit->config.patch[i];
    }
    dit_positions *p = find_grid(dit, grid);
    *out = p;
    if (!p) {
        return TS_ERESOURCE;
    }
    return tables && !p->cosine ? make_tables(p, &dit->config) : TS_OK;
}

void dit_positions_free(dit_positions *list) {
    while (list) {
        dit_positions *next = list->next;
        free_tables(list);
        free(list);
        list = next;
    }
}
