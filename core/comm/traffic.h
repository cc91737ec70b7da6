// SPDX-License-Identifier: Apache-2.0
// What a run sent: the counters of every axis of a mesh, gathered from all ranks. A table for people (--report comm),
// an object for programs (--json).
//
// Of the bytes one wants two figures: the most that a rank sent, which bounds the time, and the sum, which is what the
// network carried. Seconds are those inside calls and waits; a mean well below the most tells of ranks that wait for a
// late one.
#ifndef TS_COMM_TRAFFIC_H
#define TS_COMM_TRAFFIC_H

#include <jansson.h>
#include <stdio.h>

#include "core/comm/mesh.h"

typedef struct ts_traffic_item {
    int64_t calls;                  // the most by a rank
    int64_t bytes_most, bytes_sum;  // sent: the most by a rank, and by all ranks together
    double seconds_most, seconds_mean;
} ts_traffic_item;

typedef struct ts_traffic {
    int ranks;
    ts_traffic_item item[TS_AXIS_COUNT][TS_COLLECTIVE_COUNT];
} ts_traffic;

// Collective over the mesh's world: all ranks get the same. What this call itself sends is not in it.
int ts_mesh_traffic(const ts_mesh *mesh, ts_traffic *out);
void ts_mesh_reset_counters(const ts_mesh *mesh);  // of all axes; not collective

// One line for each axis and collective that was called; "nothing was sent" for none.
void ts_traffic_print(const ts_traffic *traffic, FILE *out);
// {"ranks": 4, "axes": {"tensor": {"all-gather": {"calls": .., "bytes_most": .., "bytes_sum": .., "seconds_most": ..,
// "seconds_mean": ..}, ..}, ..}}: only what was called. The caller owns it; NULL when memory is exhausted.
json_t *ts_traffic_json(const ts_traffic *traffic);

#endif
