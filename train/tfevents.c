// SPDX-License-Identifier: Apache-2.0
#include "train/tfevents.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/base/status.h"

struct ts_tfevents {
    FILE *file;
    char path[4096];
};

// ---- CRC-32C

uint32_t ts_crc32c(const void *data, size_t bytes) {
    const uint8_t *p = data;
    uint32_t crc = ~0u;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1u)));
        }
    }
    return ~crc;
}

uint32_t ts_crc32c_masked(const void *data, size_t bytes) {
    const uint32_t crc = ts_crc32c(data, bytes);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

// ---- protocol buffers: a message grows in a fixed buffer

typedef struct message {
    uint8_t *data;
    size_t used, capacity;
} message;

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

static void put(message *m, const void *data, size_t bytes) {
    TS_ASSERT(m->used + bytes <= m->capacity);
    memcpy(m->data + m->used, data, bytes);
    m->used += bytes;
}

static void put_varint(message *m, uint64_t value) {
    do {
        const uint8_t byte = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        put(m, &byte, 1);
        value >>= 7;
    } while (value);
}

static void put_key(message *m, uint32_t field, uint32_t wire) {
    put_varint(m, field << 3 | wire);
}

static void put_bytes(message *m, uint32_t field, const void *data, size_t bytes) {
    put_key(m, field, WIRE_BYTES);
    put_varint(m, bytes);
    put(m, data, bytes);
}

static void put_integer(message *m, uint32_t field, int64_t value) {
    put_key(m, field, WIRE_VARINT);
    put_varint(m, (uint64_t)value);
}

// ---- records

static void put_little_endian(uint8_t *to, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) {
        to[i] = (uint8_t)(value >> (8 * i));
    }
}

static int write_record(ts_tfevents *events, const message *m) {
    uint8_t head[12], tail[4];
    put_little_endian(head, m->used, 8);
    put_little_endian(head + 8, ts_crc32c_masked(head, 8), 4);
    put_little_endian(tail, ts_crc32c_masked(m->data, m->used), 4);
    if (fwrite(head, 1, sizeof head, events->file) != sizeof head ||
        fwrite(m->data, 1, m->used, events->file) != m->used ||
        fwrite(tail, 1, sizeof tail, events->file) != sizeof tail) {
        return TS_FAIL(TS_ERESOURCE, "%s: %s; free disk space", events->path, strerror(errno));
    }
    return TS_OK;
}

static void begin_event(message *event, int64_t step) {
    const double now = ts_clock_unix_seconds();
    put_key(event, 1, WIRE_64);
    put(event, &now, sizeof now);
    put_integer(event, 2, step);
}

int ts_tfevents_open(ts_tfevents **out, const char *folder) {
    ts_tfevents *events = ts_calloc(1, sizeof *events);
    if (!events) {
        return TS_ERESOURCE;
    }
    char host[256] = "host";
    gethostname(host, sizeof host - 1);
    const int n = snprintf(events->path, sizeof events->path, "%s/events.out.tfevents.%.6f.%s", folder,
                           ts_clock_unix_seconds(), host);
    int status = TS_OK;
    if (n < 0 || (size_t)n >= sizeof events->path || !(events->file = fopen(events->path, "wb"))) {
        status = TS_FAIL(TS_ERESOURCE, "%s: cannot write: %s", events->path, strerror(errno));
        free(events);
        return status;
    }
    uint8_t bytes[64];
    message event = {bytes, 0, sizeof bytes};
    begin_event(&event, 0);
    put_bytes(&event, 3, "brain.Event:2", 13);
    status = write_record(events, &event);
    if (status) {
        ts_tfevents_close(&events);
        return status;
    }
    *out = events;
    return TS_OK;
}

void ts_tfevents_close(ts_tfevents **events) {
    if (*events) {
        fclose((*events)->file);
        free(*events);
        *events = NULL;
    }
}

// Wraps a Value into Summary and Event and writes it.
static int write_value(ts_tfevents *events, int64_t step, const message *value, size_t room) {
    uint8_t *bytes = ts_malloc(room);
    if (!bytes) {
        return TS_ERESOURCE;
    }
    // Summary is one field holding the value: key, length, value.
    message summary = {bytes, 0, room / 2}, event = {bytes + room / 2, 0, room / 2};
    put_bytes(&summary, 1, value->data, value->used);
    begin_event(&event, step);
    put_bytes(&event, 5, summary.data, summary.used);
    const int status = write_record(events, &event);
    free(bytes);
    return status;
}

enum { FRAMING = 64 };  // keys and lengths around a value never take more

int ts_tfevents_scalar(ts_tfevents *events, int64_t step, const char *tag, double value) {
    uint8_t bytes[256];
    message m = {bytes, 0, sizeof bytes};
    const float number = (float)value;
    TS_ASSERT(strlen(tag) < 200);
    put_bytes(&m, 1, tag, strlen(tag));
    put_key(&m, 2, WIRE_32);
    put(&m, &number, sizeof number);
    return write_value(events, step, &m, 2 * (m.used + FRAMING));
}

int ts_tfevents_png(ts_tfevents *events, int64_t step, const char *tag, const uint8_t *png, size_t bytes,
                    int64_t height, int64_t width) {
    const size_t room = bytes + strlen(tag) + 2 * FRAMING;
    uint8_t *space = ts_malloc(2 * room);
    if (!space) {
        return TS_ERESOURCE;
    }
    message image = {space, 0, room}, value = {space + room, 0, room};
    put_integer(&image, 1, height);
    put_integer(&image, 2, width);
    put_integer(&image, 3, 3);  // RGB
    put_bytes(&image, 4, png, bytes);
    put_bytes(&value, 1, tag, strlen(tag));
    put_bytes(&value, 4, image.data, image.used);
    const int status = write_value(events, step, &value, 2 * (value.used + FRAMING));
    free(space);
    return status;
}

int ts_tfevents_flush(ts_tfevents *events) {
    if (fflush(events->file)) {
        return TS_FAIL(TS_ERESOURCE, "%s: %s; free disk space", events->path, strerror(errno));
    }
    return TS_OK;
}
