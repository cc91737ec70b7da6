// SPDX-License-Identifier: Apache-2.0
// Decoding shared out over ranks. Every rank has all latents, so parts need no halo, and each rank gives finished
// pixels, a quarter of the bytes of f32.
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/model/codec/codec_pca.h"

// The first row that begins at or after strip `strip`.
static int64_t row_at(int64_t strip, int64_t h) {
    return strip < h ? strip : h + (strip - h + TS_CODEC_TIME - 1) / TS_CODEC_TIME;
}

// The rows of one rank: parts of equal work, which is that of their strips.
static ts_part rows_of(ts_part all, int64_t h, int size, int rank) {
    const int64_t before = ts_codec_strips(all.first, h), strips = ts_codec_strips(all.first + all.count, h) - before;
    const int64_t first = row_at(before + ts_split_first(strips, size, rank), h);
    return (ts_part){first, row_at(before + ts_split_first(strips, size, rank + 1), h) - first};
}

static int64_t bytes_of(ts_part rows, int64_t h, int64_t strip_bytes) {
    return (ts_codec_strips(rows.first + rows.count, h) - ts_codec_strips(rows.first, h)) * strip_bytes;
}

// Packed pixels of some rows to their places among those of all; returns where the packed pixels end.
static const uint8_t *unpack(const uint8_t *packed, ts_part rows, ts_part all, int64_t h, int64_t strip_bytes,
                             uint8_t *pixels) {
    const int64_t before = ts_codec_strips(all.first, h);
    for (int64_t row = rows.first; row < rows.first + rows.count;) {
        const ts_part band = ts_codec_band(rows, h, row / h);
        const int64_t frames = row < h ? 1 : TS_CODEC_TIME, first_strip = ts_codec_strips(row / h * h, h) - before;
        const size_t bytes = (size_t)(band.count * strip_bytes);
        for (int64_t frame = 0; frame < frames; frame++, packed += bytes) {
            memcpy(pixels + (first_strip + frame * h + row % h) * strip_bytes, packed, bytes);
        }
        row += band.count;
    }
    return packed;
}

typedef struct shared_decode {
    uint8_t *own, *all;       // packed pixels of this rank; on the root, of every rank, one after the other
    int64_t *send, *receive;  // [ranks] bytes
} shared_decode;

static void shared_decode_close(shared_decode *d) {
    free(d->own);
    free(d->all);
    free(d->send);
}

static int shared_decode_open(shared_decode *d, ts_part all, int64_t h, int64_t strip_bytes, const ts_comm *comm,
                              int root) {
    const int size = ts_comm_size(comm), rank = ts_comm_rank(comm);
    const int64_t own = bytes_of(rows_of(all, h, size, rank), h, strip_bytes);
    *d = (shared_decode){.own = ts_malloc((size_t)own + 1), .send = ts_calloc(2 * (size_t)size, sizeof *d->send)};
    d->all = rank == root ? ts_malloc((size_t)bytes_of(all, h, strip_bytes)) : NULL;
    if (!d->own || !d->send || (rank == root && !d->all)) {
        return TS_ERESOURCE;
    }
    d->receive = d->send + size;
    d->send[root] = own;
    for (int r = 0; r < size && rank == root; r++) {
        d->receive[r] = bytes_of(rows_of(all, h, size, r), h, strip_bytes);
    }
    return TS_OK;
}

int ts_codec_decode_stretch(const ts_codec *codec, const ts_codec_stretch *s, ts_comm *comm, int root,
                            uint8_t *pixels) {
    const int size = ts_comm_size(comm), rank = ts_comm_rank(comm);
    TS_TRY(ts_codec_check_stretch(s));
    const ts_part all = ts_codec_stretch_rows(s);
    if (size == 1) {
        ts_codec_decode_rows(codec, s, all, pixels);
        return TS_OK;
    }
    const int64_t strip_bytes = TS_CODEC_SPACE * s->w * TS_CODEC_SPACE * TS_CODEC_COLOURS;
    shared_decode d;
    int status = ts_agree(comm, shared_decode_open(&d, all, s->h, strip_bytes, comm, root));
    if (!status) {
        ts_codec_decode_rows(codec, s, rows_of(all, s->h, size, rank), d.own);
        status = ts_all_to_all_v(comm, d.own, d.send, d.all, d.receive, TS_U8);
    }
    const uint8_t *packed = d.all;
    for (int r = 0; r < size && !status && rank == root; r++) {
        packed = unpack(packed, rows_of(all, s->h, size, r), all, s->h, strip_bytes, pixels);
    }
    shared_decode_close(&d);
    return status;
}

int ts_codec_decode_shared(const ts_codec *codec, const float *latent, int64_t t, int64_t h, int64_t w, ts_comm *comm,
                           int root, uint8_t *pixels) {
    const ts_codec_stretch all = {latent, t, h, w, false, false, false};
    return ts_codec_decode_stretch(codec, &all, comm, root, pixels);
}
