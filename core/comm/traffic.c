// SPDX-License-Identifier: Apache-2.0
#include "core/comm/traffic.h"

#include "core/base/status.h"

enum { ITEMS = TS_AXIS_COUNT * TS_COLLECTIVE_COUNT };

// ---- gathering

int ts_mesh_traffic(const ts_mesh *mesh, ts_traffic *out) {
    int64_t most[2 * ITEMS], sum[ITEMS];
    double seconds_most[ITEMS], seconds_sum[ITEMS];
    for (int i = 0; i < ITEMS; i++) {
        const ts_comm *comm = mesh->axis[i / TS_COLLECTIVE_COUNT];
        const ts_comm_counters c = ts_comm_get_counters(comm, (ts_collective)(i % TS_COLLECTIVE_COUNT));
        most[i] = (int64_t)c.calls;
        most[ITEMS + i] = sum[i] = (int64_t)c.bytes_sent;
        seconds_most[i] = seconds_sum[i] = c.seconds;
    }
    ts_comm *const world = mesh->axis[TS_AXIS_WORLD];
    TS_TRY(ts_all_reduce(world, most, 2 * ITEMS, TS_I64, TS_MAX));
    TS_TRY(ts_all_reduce(world, sum, ITEMS, TS_I64, TS_SUM));
    TS_TRY(ts_all_reduce(world, seconds_most, ITEMS, TS_F64, TS_MAX));
    TS_TRY(ts_all_reduce(world, seconds_sum, ITEMS, TS_F64, TS_SUM));
    out->ranks = ts_comm_size(world);
    for (int i = 0; i < ITEMS; i++) {
        out->item[i / TS_COLLECTIVE_COUNT][i % TS_COLLECTIVE_COUNT] =
            (ts_traffic_item){.calls = most[i],
                              .bytes_most = most[ITEMS + i],
                              .bytes_sum = sum[i],
                              .seconds_most = seconds_most[i],
                              .seconds_mean = seconds_sum[i] / out->ranks};
    }
    return TS_OK;
}

void ts_mesh_reset_counters(const ts_mesh *mesh) {
    for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
        ts_comm_reset_counters(mesh->axis[axis]);
    }
}

// ---- telling

void ts_traffic_print(const ts_traffic *traffic, FILE *out) {
    bool any = false;
    for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
        for (int kind = 0; kind < TS_COLLECTIVE_COUNT; kind++) {
            const ts_traffic_item *t = &traffic->item[axis][kind];
            if (t->calls == 0) {
                continue;
            }
            if (!any) {
                fprintf(out, "%-9s %-15s %10s %18s %18s %10s %10s\n", "axis", "collective", "calls", "bytes, most",
                        "bytes, all ranks", "s, mean", "s, most");
            }
            any = true;
            fprintf(out, "%-9s %-15s %10lld %18lld %18lld %10.4f %10.4f\n", ts_axis_name((ts_axis)axis),
                    ts_collective_name((ts_collective)kind), (long long)t->calls, (long long)t->bytes_most,
                    (long long)t->bytes_sum, t->seconds_mean, t->seconds_most);
        }
    }
    if (!any) {
        fprintf(out, "nothing was sent between ranks\n");
    }
}

json_t *ts_traffic_json(const ts_traffic *traffic) {
    json_t *axes = json_object();
    for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
        json_t *kinds = json_object();
        for (int kind = 0; kind < TS_COLLECTIVE_COUNT; kind++) {
            const ts_traffic_item *t = &traffic->item[axis][kind];
            if (t->calls > 0) {
                json_object_set_new(kinds, ts_collective_name((ts_collective)kind),
                                    json_pack("{s:I, s:I, s:I, s:f, s:f}", "calls", (json_int_t)t->calls, "bytes_most",
                                              (json_int_t)t->bytes_most, "bytes_sum", (json_int_t)t->bytes_sum,
                                              "seconds_most", t->seconds_most, "seconds_mean", t->seconds_mean));
            }
        }
        if (json_object_size(kinds) > 0) {
            json_object_set(axes, ts_axis_name((ts_axis)axis), kinds);
        }
        json_decref(kinds);
    }
    return json_pack("{s:i, s:o}", "ranks", traffic->ranks, "axes", axes);
}
