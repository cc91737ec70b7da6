// SPDX-License-Identifier: Apache-2.0
// A grid of communicators over the world, its groups, and the text it is written as.
#include "core/comm/mesh.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/status.h"
#include "core/comm/transport.h"

static const char *const NAMES[TS_AXIS_COUNT] = {
    [TS_AXIS_DATA] = "data",       [TS_AXIS_CFG] = "cfg",       [TS_AXIS_RING] = "ring",
    [TS_AXIS_ULYSSES] = "ulysses", [TS_AXIS_TENSOR] = "tensor", [TS_AXIS_SEQUENCE] = "sequence",
    [TS_AXIS_MODEL] = "model",     [TS_AXIS_VIDEO] = "video",   [TS_AXIS_REPLICA] = "replica",
    [TS_AXIS_WORLD] = "world"};

// Which axes of the grid each axis and group spans.
static const bool SPANS[TS_AXIS_COUNT][TS_AXIS_GRID] = {
    [TS_AXIS_DATA] = {[TS_AXIS_DATA] = true},
    [TS_AXIS_CFG] = {[TS_AXIS_CFG] = true},
    [TS_AXIS_RING] = {[TS_AXIS_RING] = true},
    [TS_AXIS_ULYSSES] = {[TS_AXIS_ULYSSES] = true},
    [TS_AXIS_TENSOR] = {[TS_AXIS_TENSOR] = true},
    [TS_AXIS_SEQUENCE] = {[TS_AXIS_RING] = true, [TS_AXIS_ULYSSES] = true},
    [TS_AXIS_MODEL] = {[TS_AXIS_RING] = true, [TS_AXIS_ULYSSES] = true, [TS_AXIS_TENSOR] = true},
    [TS_AXIS_VIDEO] = {[TS_AXIS_CFG] = true, [TS_AXIS_RING] = true, [TS_AXIS_ULYSSES] = true, [TS_AXIS_TENSOR] = true},
    [TS_AXIS_REPLICA] = {[TS_AXIS_DATA] = true, [TS_AXIS_CFG] = true, [TS_AXIS_RING] = true, [TS_AXIS_ULYSSES] = true},
};

const char *ts_axis_name(ts_axis axis) {
    return NAMES[axis];
}

// The degrees in the order of the axes.
static void list_degrees(const ts_degrees *d, int out[TS_AXIS_GRID]) {
    const int degree[TS_AXIS_GRID] = {d->data, d->cfg, d->ring, d->ulysses, d->tensor};
    memcpy(out, degree, sizeof degree);
}

// Number of ranks, or 0 when a degree is below 1 or the product is beyond `most`.
static int count_ranks(const int degree[TS_AXIS_GRID], int most) {
    int64_t product = 1;
    for (int axis = 0; axis < TS_AXIS_GRID; axis++) {
        if (degree[axis] < 1 || degree[axis] > most) {
            return 0;
        }
        product *= degree[axis];
        if (product > most) {
            return 0;
        }
    }
    return (int)product;
}

// ---- opening

// This rank's number within its group along `axis`, the group's size, and the world rank of the group's first.
typedef struct place {
    int rank, size, first;
} place;

static place place_in(const int degree[TS_AXIS_GRID], int world_rank, int axis) {
    place p = {0, 1, world_rank};
    int stride = 1, group_stride = 1;
    for (int g = TS_AXIS_GRID - 1; g >= 0; g--) {
        if (SPANS[axis][g]) {
            const int coordinate = world_rank / stride % degree[g];
            p.rank += coordinate * group_stride;
            p.first -= coordinate * stride;
            group_stride *= degree[g];
        }
        stride *= degree[g];
    }
    p.size = group_stride;
    return p;
}

static int open_axis(ts_comm **out, const ts_comm *world, place p, int axis) {
    if (p.size == 1) {
        return ts_comm_new(out, MPI_COMM_NULL);
    }
    MPI_Comm split;
    TS_TRY(ts_mpi_check(MPI_Comm_split(world->mpi, p.first, p.rank, &split), "MPI_Comm_split"));
    TS_TRY(ts_comm_new(out, split));
    return ts_watch_register(*out, NAMES[axis]);
}

int ts_mesh_open(ts_mesh *out, ts_comm *world, const ts_degrees *degrees) {
    int degree[TS_AXIS_GRID];
    list_degrees(degrees, degree);
    *out = (ts_mesh){0};
    if (count_ranks(degree, world->size) != world->size) {
        return TS_FAIL(TS_EUSAGE,
                       "mesh data=%d cfg=%d ring=%d ulysses=%d tensor=%d does not fit: the product must be %d, the "
                       "number of ranks",
                       degrees->data, degrees->cfg, degrees->ring, degrees->ulysses, degrees->tensor, world->size);
    }
    *out = (ts_mesh){.world = world, .degree = *degrees, .axis = {[TS_AXIS_WORLD] = world}};
    for (int axis = 0; axis < TS_AXIS_WORLD; axis++) {
        const int status = open_axis(&out->axis[axis], world, place_in(degree, world->rank, axis), axis);
        if (status) {
            ts_mesh_close(out);
            return status;
        }
    }
    return TS_OK;
}

int ts_mesh_imagine(ts_mesh *out, const ts_degrees *degrees, int rank) {
    int degree[TS_AXIS_GRID];
    list_degrees(degrees, degree);
    *out = (ts_mesh){0};
    const int ranks = count_ranks(degree, 1 << 20);
    if (rank < 0 || rank >= ranks) {
        return TS_FAIL(TS_EUSAGE, "mesh data=%d cfg=%d ring=%d ulysses=%d tensor=%d has no rank %d", degrees->data,
                       degrees->cfg, degrees->ring, degrees->ulysses, degrees->tensor, rank);
    }
    out->degree = *degrees;
    for (int axis = 0; axis <= TS_AXIS_WORLD; axis++) {
        const place p = axis == TS_AXIS_WORLD ? (place){rank, ranks, 0} : place_in(degree, rank, axis);
        const int status = ts_comm_imagine(&out->axis[axis], p.rank, p.size);
        if (status) {
            ts_mesh_close(out);
            return status;
        }
    }
    return TS_OK;
}

void ts_mesh_close(ts_mesh *mesh) {
    for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
        if (mesh->axis[axis] != mesh->world) {
            ts_comm_delete(&mesh->axis[axis]);
        }
    }
    *mesh = (ts_mesh){0};
}

// ---- text

// `said`: a bit for each axis that came before.
static int parse_item(const char *item, size_t length, ts_degrees *out, int *sequence, unsigned *said) {
    int *const slot[] = {&out->data, &out->cfg, &out->ring, &out->ulysses, &out->tensor, sequence};
    for (int i = 0; i <= TS_AXIS_GRID; i++) {
        const char *const name = NAMES[i];  // the sequence group follows the axes
        const size_t n = strlen(name);
        if (length > n && !strncmp(item, name, n) && item[n] == '=') {
            char *end;
            const long value = strtol(item + n + 1, &end, 10);
            if (end != item + length || end == item + n + 1 || value < 1 || value > 1 << 20) {
                return TS_FAIL(TS_EUSAGE, "mesh '%.*s': the degree must be a whole number from 1", (int)length, item);
            }
            if (*said & 1U << i) {
                return TS_FAIL(TS_EUSAGE, "mesh '%.*s': %s is given twice", (int)length, item, name);
            }
            *said |= 1U << i;
            *slot[i] = (int)value;
            return TS_OK;
        }
    }
    return TS_FAIL(TS_EUSAGE,
                   "mesh '%.*s': write axis=degree with commas between, axis one of data, cfg, ring, ulysses, "
                   "sequence, tensor",
                   (int)length, item);
}

int ts_degrees_parse(ts_degrees *out, int *sequence, const char *text) {
    *out = (ts_degrees){1, 1, 1, 1, 1};
    *sequence = 0;
    unsigned said = 0;
    for (const char *at = text; *at;) {
        const size_t length = strcspn(at, ",");
        TS_TRY(parse_item(at, length, out, sequence, &said));
        at += length + (at[length] == ',');
    }
    if (*sequence && (out->ring > 1 || out->ulysses > 1)) {
        return TS_FAIL(TS_EUSAGE, "mesh '%s': give sequence, or ring and ulysses", text);
    }
    return TS_OK;
}

int ts_degrees_read(ts_degrees *out, const char *text, int64_t heads, int ranks) {
    int sequence, degree[TS_AXIS_GRID];
    TS_TRY(ts_degrees_parse(out, &sequence, text));
    if (sequence) {
        ts_degrees_sequence(out, sequence, heads);
    }
    list_degrees(out, degree);
    const int product = count_ranks(degree, 1 << 20);
    if (product && ranks % product == 0 && !strstr(text, "data=")) {
        out->data = ranks / product;
    } else if (product != ranks) {
        return TS_FAIL(TS_EUSAGE, "mesh '%s' does not fit: the product of its degrees must be %d, the number of ranks",
                       text, ranks);
    }
    return TS_OK;
}

void ts_degrees_sequence(ts_degrees *degree, int sequence, int64_t heads) {
    int ulysses = sequence;
    while (sequence % ulysses || ulysses > heads) {
        ulysses--;
    }
    degree->ulysses = ulysses;
    degree->ring = sequence / ulysses;
}

const char *ts_degrees_text(const ts_degrees *degrees, char *out, size_t bytes) {
    int degree[TS_AXIS_GRID];
    list_degrees(degrees, degree);
    size_t used = 0;
    snprintf(out, bytes, "1 rank");
    for (int axis = 0; axis < TS_AXIS_GRID; axis++) {
        if (degree[axis] > 1 && used < bytes) {
            used += (size_t)snprintf(out + used, bytes - used, "%s%s=%d", used ? " " : "", NAMES[axis], degree[axis]);
        }
    }
    return out;
}
