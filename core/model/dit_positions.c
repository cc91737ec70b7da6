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
static void fill_rope(const dit_positions *p, int64_t head_dim) {
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
static void fill_features(const dit_positions *p) {
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
    p->device->release(p->features);
    p->device->release(p->sine);
    p->device->release(p->cosine);
    p->features = p->sine = p->cosine = NULL;
}

// Memory of a device for each of the tables; all or none.
static int allocate_tables(dit_positions *p, const ts_device *device, const ts_dit_config *c) {
    const size_t angles = (size_t)(p->tokens * (c->head_dim / 2)) * sizeof(float);
    const size_t features = (size_t)(p->tokens * DIT_POSITION_FEATURES) * sizeof(float);
    p->device = device;
    p->cosine = device->allocate(angles);
    p->sine = device->allocate(angles);
    p->features = c->absolute_positions ? device->allocate(features) : NULL;
    if (!p->cosine || !p->sine || (c->absolute_positions && !p->features)) {
        free_tables(p);
        return TS_ERESOURCE;
    }
    return TS_OK;
}

static void fill_tables(const dit_positions *p, const ts_dit_config *c) {
    fill_rope(p, c->head_dim);
    if (c->absolute_positions) {
        fill_features(p);
    }
}

static int upload_tables(dit_positions *p, const dit_positions *host, const ts_dit_config *c) {
    const size_t angles = (size_t)(p->tokens * (c->head_dim / 2)) * sizeof(float);
    TS_TRY(p->device->upload(p->cosine, host->cosine, angles));
    TS_TRY(p->device->upload(p->sine, host->sine, angles));
    return c->absolute_positions ? p->device->upload(p->features, host->features,
                                                     (size_t)(p->tokens * DIT_POSITION_FEATURES) * sizeof(float))
                                 : TS_OK;
}

// The host makes them, where they stay or in memory that a device copies.
static int make_tables(dit_positions *p, const ts_dit_config *c) {
    TS_TRY(allocate_tables(p, p->device, c));
    if (p->device->is_host) {
        fill_tables(p, c);
        return TS_OK;
    }
    dit_positions host = *p;
    int status = allocate_tables(&host, &ts_device_host, c);
    if (!status) {
        fill_tables(&host, c);
        status = upload_tables(p, &host, c);
        free_tables(&host);
    }
    if (status) {
        free_tables(p);
    }
    return status;
}

static dit_positions *find_grid(const ts_dit *dit, const ts_device *device, const int64_t grid[3]) {
    for (dit_positions *p = *dit->positions; p; p = p->next) {
        if (p->device == device && !memcmp(p->grid, grid, sizeof p->grid)) {
            return p;
        }
    }
    dit_positions *p = ts_calloc(1, sizeof *p);
    if (p) {
        p->device = device;
        memcpy(p->grid, grid, sizeof p->grid);
        p->tokens = grid[0] * grid[1] * grid[2];
        p->next = *dit->positions;
        *dit->positions = p;
    }
    return p;
}

int dit_positions_get(const dit_positions **out, const ts_dit *dit, ts_shape video, const ts_tape *tape) {
    int64_t grid[3];
    for (int i = 0; i < 3; i++) {
        grid[i] = video.dim[1 + i] / dit->config.patch[i];
    }
    dit_positions *p = find_grid(dit, ts_tape_device(tape), grid);
    *out = p;
    if (!p) {
        return TS_ERESOURCE;
    }
    return ts_tape_computes(tape) && !p->cosine ? make_tables(p, &dit->config) : TS_OK;
}

void dit_positions_free(dit_positions *list) {
    while (list) {
        dit_positions *next = list->next;
        free_tables(list);
        free(list);
        list = next;
    }
}
