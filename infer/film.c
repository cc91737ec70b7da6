// SPDX-License-Identifier: Apache-2.0
#include "infer/film.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/signal.h"
#include "core/base/status.h"
#include "core/media/image.h"
#include "infer/decode.h"

enum { STRETCH_BYTES = 64 << 20, SHEET_COLUMNS = 9 };

int64_t ts_film_pixel_frames(const ts_codec *codec, const ts_film *film) {
    const int64_t factor = ts_codec_get_info(codec).time_factor;
    return film->loop ? film->frames * factor : 1 + (film->frames - 1) * factor;
}

// ---- to a file

typedef struct projector {
    const ts_codec *codec;
    const ts_film *film;
    ts_codec_info info;
    ts_comm *comm;
    int root;
    int64_t latent_numbers, pixel_bytes;  // of a frame
    float *opening;                       // [stretch + 1, h, w, C] of a loop: one more frame before the first ones
    uint8_t *pixels;                      // [1 + 4 stretch, H, W, 3] on the root
    ts_video_writer *writer;              // on the root
} projector;

static int64_t stretch_of(const projector *p) {
    const int64_t fit = p->film->stretch ? p->film->stretch : STRETCH_BYTES / (p->pixel_bytes * p->info.time_factor);
    return fit < 1 ? 1 : fit < p->film->frames ? fit : p->film->frames;
}

static int projector_open(projector *p, const char *path) {
    const ts_film *f = p->film;
    const int64_t stretch = stretch_of(p);
    if (f->loop) {
        p->opening = ts_malloc((size_t)((stretch + 1) * p->latent_numbers) * sizeof *p->opening);
        if (!p->opening) {
            return TS_ERESOURCE;
        }
    }
    if (ts_comm_rank(p->comm) != p->root) {
        return TS_OK;
    }
    p->pixels = ts_malloc((size_t)((1 + stretch * p->info.time_factor) * p->pixel_bytes));
    if (!p->pixels) {
        return TS_ERESOURCE;
    }
    const ts_video_writer_params params =
        ts_writer_params(f->width * p->info.space_factor, f->height * p->info.space_factor, f->fps, f->title);
    return ts_video_writer_open(&p->writer, path, &params);
}

// Latents to decode for frames [first, first + count): a group's pixels are in no other's, so that a stretch may begin
// with any frame in front, whose one pixel frame is dropped. *dropped is whether there is one.
static const float *stretch_latents(projector *p, int64_t first, int64_t count, bool *dropped) {
    const float *latents = p->film->latents;
    *dropped = first > 0 || p->film->loop;
    if (first == 0 && p->film->loop) {
        const size_t frame = (size_t)p->latent_numbers * sizeof *latents;
        memcpy(p->opening, latents, frame);
        memcpy(p->opening + p->latent_numbers, latents, (size_t)count * frame);
        return p->opening;
    }
    return latents + (first - *dropped) * p->latent_numbers;
}

static int add_frames(projector *p, int64_t first, int64_t count) {
    for (int64_t i = first; i < count; i++) {
        TS_TRY(ts_video_writer_add(p->writer, p->pixels + i * p->pixel_bytes));
    }
    return TS_OK;
}

static int project(projector *p) {
    const int64_t stretch = stretch_of(p);
    for (int64_t first = 0; first < p->film->frames; first += stretch) {
        const int64_t left = p->film->frames - first, count = left < stretch ? left : stretch;
        bool dropped;
        const float *latents = stretch_latents(p, first, count, &dropped);
        TS_TRY(ts_codec_decode_shared(p->codec, latents, count + dropped, p->film->height, p->film->width, p->comm,
                                      p->root, p->pixels));
        int status = p->writer ? add_frames(p, dropped, 1 + (count + dropped - 1) * p->info.time_factor) : TS_OK;
        if (!status && ts_signal_pending()) {
            status = TS_FAIL(TS_ESTOPPED, "stopped by %s while the video was written", ts_signal_pending());
        }
        TS_TRY(ts_agree(p->comm, status));
    }
    return TS_OK;
}

int ts_film_write(const ts_codec *codec, const ts_film *film, ts_comm *comm, int root, const char *path) {
    projector p = {.codec = codec, .film = film, .info = ts_codec_get_info(codec), .comm = comm, .root = root};
    p.latent_numbers = film->height * film->width * p.info.channels;
    p.pixel_bytes = film->height * film->width * p.info.space_factor * p.info.space_factor * 3;
    int status = ts_agree(comm, projector_open(&p, path));
    status = status ? status : project(&p);
    if (p.writer && !status) {
        status = ts_video_writer_commit(&p.writer);
    }
    ts_video_writer_abandon(&p.writer);
    free(p.pixels);
    free(p.opening);
    return ts_agree(comm, status);
}

// ---- to pictures

// One pixel frame: of the latent frame that holds it, alone.
static int decode_moment(const ts_codec *codec, const ts_film *f, int64_t frame, uint8_t *group, uint8_t *rgb) {
    const ts_codec_info info = ts_codec_get_info(codec);
    const int64_t bytes = f->height * f->width * info.space_factor * info.space_factor * 3;
    if (frame == 0 && !f->loop) {
        return ts_codec_decode(codec, f->latents, 1, f->height, f->width, rgb);
    }
    const int64_t after = f->loop ? frame : frame - 1, latent = after / info.time_factor + !f->loop;
    TS_TRY(ts_codec_decode_groups(codec, f->latents + latent * f->height * f->width * info.channels, 1, f->height,
                                  f->width, group));
    memcpy(rgb, group + after % info.time_factor * bytes, (size_t)bytes);
    return TS_OK;
}

int ts_film_moments(const ts_codec *codec, const ts_film *film, int64_t columns, uint8_t *rgb) {
    const ts_codec_info info = ts_codec_get_info(codec);
    const int64_t bytes = film->height * film->width * info.space_factor * info.space_factor * 3;
    const int64_t frames = ts_film_pixel_frames(codec, film);
    uint8_t *group = ts_malloc((size_t)(info.time_factor * bytes));
    int status = group ? TS_OK : TS_ERESOURCE;
    for (int64_t i = 0; i < columns && !status; i++) {
        status = decode_moment(codec, film, ts_contact_sheet_frame(frames, columns, i), group, rgb + i * bytes);
    }
    free(group);
    return status;
}

int ts_film_write_sheet(const ts_codec *codec, const ts_film *film, int64_t n, const char *path) {
    const int64_t space = ts_codec_get_info(codec).space_factor;
    const int64_t bytes = film->height * film->width * space * space * 3;
    uint8_t *rgb = ts_malloc((size_t)(n * SHEET_COLUMNS * bytes));
    ts_contact_row *row = ts_calloc((size_t)n, sizeof *row);
    int status = rgb && row ? TS_OK : TS_ERESOURCE;
    for (int64_t i = 0; i < n && !status; i++) {
        uint8_t *own = rgb + i * SHEET_COLUMNS * bytes;
        row[i] = (ts_contact_row){own, SHEET_COLUMNS, film->height * space, film->width * space, film[i].title};
        status = ts_film_moments(codec, &film[i], SHEET_COLUMNS, own);
    }
    status = status ? status : ts_contact_sheet_write(path, row, n, SHEET_COLUMNS);
    free(row);
    free(rgb);
    return status;
}
