// SPDX-License-Identifier: Apache-2.0
// The mesh: a grid over the world's ranks. What was sent along its axes is gathered and printed by traffic.h.
//
// The tensor axis is fastest, then ulysses, ring, cfg, data: ranks that talk most are neighbours.
//
//   tensor    heads and widths of the layers are split; between pairs of layers, tokens
//   ulysses   tokens are split; attention exchanges them for heads
//   ring      tokens are split; keys and values travel round
//   cfg       the two branches of guidance, when sampling
//   data      samples
#ifndef TS_COMM_MESH_H
#define TS_COMM_MESH_H

#include "core/comm/comm.h"

typedef enum {
    TS_AXIS_DATA,
    TS_AXIS_CFG,
    TS_AXIS_RING,
    TS_AXIS_ULYSSES,
    TS_AXIS_TENSOR,
    TS_AXIS_GRID,                     // number of the axes above; below are groups of them
    TS_AXIS_SEQUENCE = TS_AXIS_GRID,  // ring x ulysses: ranks that share the tokens of a sample
    TS_AXIS_MODEL,                    // ring x ulysses x tensor: ranks that compute the same samples
    TS_AXIS_VIDEO,                    // cfg x model: ranks that sample the same videos
    TS_AXIS_REPLICA,                  // data x cfg x ring x ulysses: ranks that hold the same slices of parameters
    TS_AXIS_WORLD,
    TS_AXIS_COUNT
} ts_axis;

typedef struct ts_degrees {
    int data, cfg, ring, ulysses, tensor;
} ts_degrees;

typedef struct ts_mesh {
    ts_comm *world;
    ts_degrees degree;
    ts_comm *axis[TS_AXIS_COUNT];  // communicator of this rank along each axis and group; those of size 1 too
    // Set by the owner after opening: layers that can pay with time or memory give the bits of one rank. Forward only.
    bool reproducible;
} ts_mesh;

// Collective. TS_EUSAGE on every rank when the product of the degrees is not the world's size.
int ts_mesh_open(ts_mesh *out, ts_comm *world, const ts_degrees *degree);
// A mesh without ranks behind it, as rank `rank` of it would see it: for counting and planning. Its communicators know
// their rank and size; a collective on one of more than one rank is an error.
int ts_mesh_imagine(ts_mesh *out, const ts_degrees *degree, int rank);
void ts_mesh_close(ts_mesh *mesh);
// The communicator along an axis or group; NULL, a lone rank, of a NULL mesh.
static inline ts_comm *ts_mesh_axis(const ts_mesh *mesh, ts_axis axis) {
    return mesh ? mesh->axis[axis] : NULL;
}

// "tensor=2,ulysses=2": axis=degree with commas between, 1 where left out; "sequence=4" leaves its split into ulysses
// and ring to ts_degrees_sequence. TS_EUSAGE for anything else. `sequence` is 0 when not given.
int ts_degrees_parse(ts_degrees *out, int *sequence, const char *text);
// The mesh that `text` asks for on `ranks` ranks: parsed, the sequence degree split for a model of `heads` heads, and
// the ranks that are left given to the data axis when the text does not name it. TS_EUSAGE when the product is not
// `ranks`.
int ts_degrees_read(ts_degrees *out, const char *text, int64_t heads, int ranks);
// Splits a sequence degree: the largest ulysses degree that divides it and leaves each rank a head, the rest ring.
void ts_degrees_sequence(ts_degrees *degree, int sequence, int64_t heads);
// "data=2 tensor=2", axes of degree 1 left out; "1 rank" when all are. Returns `out`.
const char *ts_degrees_text(const ts_degrees *degree, char *out, size_t bytes);
const char *ts_axis_name(ts_axis axis);  // "data", ...

#endif
