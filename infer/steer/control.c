// SPDX-License-Identifier: Apache-2.0
#include "infer/steer/control.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/log.h"
#include "core/base/signal.h"
#include "core/base/status.h"
#include "core/comm/watch.h"
#include "infer/steer/control_private.h"
#include "infer/timeline/timeline.h"

enum {
    MAX_EVENTS = 256,      // at once; what came beyond stays for the next time
    MAX_LOOKS = 256,       // before one step, when many clients come at once
    NAP_MILLISECONDS = 50  // between looks while a video is paused
};

// An event on its way from rank 0: this, then its text with a terminator.
typedef struct parcel {
    int64_t kind, first, bytes;
} parcel;
enum { PARCELS_BYTES = 1 << 20 };

// Who waits for the receipt of an event; rank 0's.
typedef struct debt {
    uint64_t serial;
    ts_control_client *client;
    json_t *id;
    ts_control_verb verb;
    int64_t from_frame;
} debt;

struct ts_control {
    ts_comm *world;
    ts_control_video video;
    bool is_root, paused, cancelled;
    int64_t step;
    char *parcels;  // [PARCELS_BYTES] those of the last poll; the events' texts lie here
    int64_t parcels_bytes;
    int count;
    ts_control_event event[MAX_EVENTS];
    char *line;  // [TS_CONTROL_LINE_BYTES]
    debt debt[MAX_EVENTS];
    ts_control_server server;
};

// ---- receipts: rank 0's

// [first, end) of pixel frames, or nothing when none is changed.
static json_t *receipt(const ts_control *c, ts_control_verb verb, int64_t first, json_t *id) {
    json_t *r =
        json_pack("{s:s, s:I, s:[]}", "event", ts_control_verb_names[verb], "step", (json_int_t)c->step, "frames");
    json_t *frames = json_object_get(r, "frames");
    if (verb == TS_VERB_PROMPT || verb == TS_VERB_CANCEL) {
        json_array_append_new(frames, json_integer(first));
        json_array_append_new(frames, json_integer(c->video.frames));
    }
    if (id) {
        json_object_set(r, "id", id);
    }
    return r;
}

static void forget_debts(ts_control *c) {
    for (int i = 0; i < c->count && c->is_root; i++) {
        json_decref(c->debt[i].id);
        c->debt[i].id = NULL;
    }
}

void ts_control_answer(ts_control *c, int i, int status) {
    TS_ASSERT(i >= 0 && i < c->count);
    debt *d = &c->debt[i];
    if (!c->is_root || d->client->serial != d->serial || d->client->fd < 0) {
        return;
    }
    if (status) {
        ts_control_send_error(d->client, d->id, ts_error_text());
    } else {
        ts_control_send(d->client, receipt(c, d->verb, d->from_frame, d->id));
    }
    d->client->unanswered--;
}

// ---- messages into events: rank 0's

// The latent frame from which on a change counts.
static int64_t latent_frame(const ts_control_video *v, int64_t frame) {
    const int64_t frames = v->loop ? v->frames / v->time_factor : 1 + (v->frames - 1) / v->time_factor;
    const ts_frame_span span = {(double)frame, (double)v->frames};
    bool moved;
    return ts_span_snap(span, v->time_factor, frames, v->loop, &moved).first;
}

static void queue(ts_control *c, ts_control_client *client, const ts_control_message *m) {
    const int64_t first = m->verb == TS_VERB_PROMPT ? latent_frame(&c->video, m->from_frame) : 0;
    const parcel p = {m->verb, first, (int64_t)strlen(m->text)};
    TS_ASSERT(c->parcels_bytes + (int64_t)sizeof p + p.bytes < PARCELS_BYTES);
    memcpy(c->parcels + c->parcels_bytes, &p, sizeof p);
    memcpy(c->parcels + c->parcels_bytes + sizeof p, m->text, (size_t)p.bytes + 1);
    c->parcels_bytes += (int64_t)sizeof p + p.bytes + 1;
    c->debt[c->count++] = (debt){client->serial, client, json_incref((json_t *)m->id), m->verb,
                                 ts_pixel_frame(first, c->video.time_factor, c->video.loop)};
    client->unanswered++;
    c->cancelled = c->cancelled || m->verb == TS_VERB_CANCEL;
}

static void take_message(ts_control *c, ts_control_client *client, const ts_control_message *m) {
    if (c->cancelled) {
        ts_control_send_error(client, m->id, "too late: the video was cancelled");
    } else if (m->verb == TS_VERB_PAUSE || m->verb == TS_VERB_RESUME) {
        c->paused = m->verb == TS_VERB_PAUSE;
        ts_control_send(client, receipt(c, m->verb, 0, (json_t *)m->id));
    } else {
        queue(c, client, m);
    }
}

static void take_line(ts_control *c, ts_control_client *client, size_t bytes) {
    ts_control_message m;
    client->heard = c->server.looks;
    if (ts_control_parse(&m, c->line, bytes, &c->video)) {
        ts_control_send_error(client, m.id, ts_error_text());
    } else {
        take_message(c, client, &m);
    }
    json_decref(m.object);
}

static bool has_room(const ts_control *c) {
    return c->count < MAX_EVENTS &&
           c->parcels_bytes + (int64_t)sizeof(parcel) + TS_CONTROL_LINE_BYTES <= (int64_t)PARCELS_BYTES;
}

// What came in, a line of each client in turn, so that none keeps the others from being heard.
static void take_lines(ts_control *c) {
    bool more = true;
    while (more) {
        more = false;
        for (int i = 0; i < TS_CONTROL_CLIENTS && has_room(c); i++) {
            size_t bytes;
            if (ts_control_next_line(&c->server.client[i], c->line, &bytes)) {
                take_line(c, &c->server.client[i], bytes);
                more = true;
            }
        }
    }
    ts_control_tidy(&c->server);
}

// A video that was cancelled does not wait for being resumed.
static void gather(ts_control *c) {
    bool more = ts_control_receive(&c->server, c->paused ? NAP_MILLISECONDS : 0);
    take_lines(c);
    for (int i = 1; more && i < MAX_LOOKS && has_room(c); i++) {
        more = ts_control_receive(&c->server, 0);
        take_lines(c);
    }
    c->paused = c->paused && !c->cancelled;
}

// ---- events to all ranks

static void unpack(ts_control *c) {
    c->count = 0;
    for (int64_t at = 0; at < c->parcels_bytes; c->count++) {
        parcel p;
        memcpy(&p, c->parcels + at, sizeof p);
        at += (int64_t)sizeof p;
        c->event[c->count] = (ts_control_event){(ts_control_kind)p.kind, p.first, c->parcels + at};
        at += p.bytes + 1;
    }
}

// One look. What rank 0 saw, and a signal to any rank, become all ranks'.
static int look(ts_control *c, bool *stopped) {
    if (c->is_root) {
        gather(c);
    } else if (c->paused) {
        usleep(NAP_MILLISECONDS * 1000);
    }
    int64_t news[] = {ts_signal_pending() != NULL, c->is_root ? c->parcels_bytes : 0, c->is_root && c->paused};
    TS_TRY(ts_all_reduce(c->world, news, sizeof news / sizeof *news, TS_I64, TS_MAX));
    c->parcels_bytes = news[1];
    c->paused = news[2];
    *stopped = news[0];
    if (c->parcels_bytes) {
        TS_TRY(ts_broadcast(c->world, c->parcels, c->parcels_bytes, 0));
        unpack(c);
    }
    return TS_OK;
}

int ts_control_poll(ts_control *c, int64_t step, const ts_control_event **event, int *count) {
    const bool again = step == c->step && !c->paused;
    bool stopped = false;
    forget_debts(c);
    *event = c->event;
    *count = c->count = 0;
    c->parcels_bytes = 0;
    c->step = step;
    if (again) {
        return TS_OK;
    }
    do {
        const bool was_paused = c->paused;
        TS_TRY(look(c, &stopped));
        ts_watch_note(c->paused ? "paused" : NULL);
        if (c->paused != was_paused) {
            TS_INFO("%s before step %lld", c->paused ? "paused" : "resumed", (long long)step);
        }
        if (stopped && c->paused) {
            return TS_FAIL(TS_ESTOPPED, "stopped by a signal while paused before step %lld", (long long)step);
        }
    } while (c->paused && !c->count);
    *count = c->count;
    return TS_OK;
}

// ---- opening and closing

int ts_control_open(ts_control **out, ts_comm *world, const char *path, const ts_control_video *video) {
    ts_control *c = *out = ts_calloc(1, sizeof *c);
    int status = c ? TS_OK : TS_ERESOURCE;
    if (c) {
        *c = (ts_control){.world = world, .video = *video, .is_root = ts_comm_rank(world) == 0, .step = -1};
        c->server.fd = -1;
        c->parcels = ts_malloc(PARCELS_BYTES);
        c->line = ts_malloc(TS_CONTROL_LINE_BYTES);
        status = c->parcels && c->line ? TS_OK : TS_ERESOURCE;
        status = status || !c->is_root ? status : ts_control_listen(&c->server, path);
    }
    status = ts_agree(world, status);
    if (status) {
        ts_control_close(out);
    }
    return status;
}

// Whoever wrote after the last poll learns that it had no effect.
static void refuse_late(ts_control *c) {
    size_t bytes;
    ts_control_receive(&c->server, 0);
    for (int i = 0; i < TS_CONTROL_CLIENTS; i++) {
        while (ts_control_next_line(&c->server.client[i], c->line, &bytes)) {
            ts_control_send_error(&c->server.client[i], NULL, "too late: the last step has been taken");
        }
    }
}

void ts_control_close(ts_control **control) {
    ts_control *c = *control;
    if (!c) {
        return;
    }
    forget_debts(c);
    if (c->server.fd >= 0) {
        refuse_late(c);
    }
    ts_control_shut(&c->server);
    free(c->parcels);
    free(c->line);
    free(c);
    *control = NULL;
}
