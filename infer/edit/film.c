// SPDX-License-Identifier: Apache-2.0
#include "infer/edit/film.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/signal.h"
#include "core/base/status.h"
#include "core/media/image.h"
#include "infer/sampler/decode.h"
#include "infer/timeline/timeline.h"

enum { STRETCH_BYTES = 64 << 20, SHEET_COLUMNS = 9 };

int64_t ts_film_pixel_frames(const ts_codec *codec, const ts_film *film) {
    const int64_t factor = ts_codec_get_info(codec).time_factor;
    return ts_pixel_frame(film->frames, factor, film->loop);
}

// ---- to a file

typedef struct projector {
    const ts_codec *codec;
    const ts_film *film;
    ts_codec_info info;
    ts_comm *comm;
    int root;
    int64_t latent_numbers, pixel_bytes;  // of a frame
    float *circle;                        // [1 + stretch + 1, h, w, C] of a loop: frames where it closes, side by side
    uint8_t *pixels;                      // [4 stretch, H, W, 3] on the root
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
        p->circle = ts_malloc((size_t)((stretch + 2) * p->latent_numbers) * sizeof *p->circle);
        if (!p->circle) {
            return TS_ERESOURCE;
        }
    }
    if (ts_comm_rank(p->comm) != p->root) {
        return TS_OK;
    }
    p->pixels = ts_malloc((size_t)(stretch * p->info.time_factor * p->pixel_bytes));
    if (!p->pixels) {
        return TS_ERESOURCE;
    }
    const ts_video_writer_params params =
        ts_writer_params(f->width * p->info.space_factor, f->height * p->info.space_factor, f->fps, f->title);
    return ts_video_writer_open(&p->writer, path, &params);
}

// Latent frames [first, first + count) of a film, with a neighbour on either side that has one. In a loop all have:
// they are put side by side in `circle` [count + 2, h, w, C].
static ts_codec_stretch cut(const ts_film *f, int64_t channels, int64_t first, int64_t count, float *circle) {
    const int64_t numbers = f->height * f->width * channels;
    ts_codec_stretch s = {.h = f->height, .w = f->width, .t = count};
    if (f->loop) {
        for (int64_t i = 0; i < count + 2; i++) {
            const int64_t frame = (first + i - 1 + f->frames) % f->frames;
            memcpy(circle + i * numbers, f->latents + frame * numbers, (size_t)numbers * sizeof *circle);
        }
        s.groups = s.before = s.after = true;
        s.latent = circle;
    } else {
        s.before = first > 0;
        s.after = first + count < f->frames;
        s.groups = first > 1;
        s.latent = f->latents + (first - s.before) * numbers;
    }
    s.t += s.before + s.after;
    return s;
}

static int add_frames(projector *p, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        TS_TRY(ts_video_writer_add(p->writer, p->pixels + i * p->pixel_bytes));
    }
    return TS_OK;
}

static int project(projector *p) {
    const int64_t stretch = stretch_of(p);
    for (int64_t first = 0; first < p->film->frames; first += stretch) {
        const int64_t left = p->film->frames - first, count = left < stretch ? left : stretch;
        const ts_codec_stretch part = cut(p->film, p->info.channels, first, count, p->circle);
        TS_TRY(ts_codec_decode_stretch(p->codec, &part, p->comm, p->root, p->pixels));
        const bool opens = first == 0 && !p->film->loop;  // with the one frame that is no group
        int status = p->writer ? add_frames(p, opens + (count - opens) * p->info.time_factor) : TS_OK;
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
    free(p.circle);
    return ts_agree(comm, status);
}

// ---- to pictures

// What single frames are decoded in.
typedef struct scratch {
    float *circle;   // [3, h, w, C]
    uint8_t *group;  // [4, H, W, 3]
} scratch;

// One pixel frame: of the latent frame that holds it, and its neighbours.
static int decode_moment(const ts_codec *codec, const ts_film *f, int64_t frame, const scratch *s, uint8_t *rgb) {
    const ts_codec_info info = ts_codec_get_info(codec);
    const int64_t bytes = f->height * f->width * info.space_factor * info.space_factor * 3;
    const bool first = frame == 0 && !f->loop;
    const int64_t after = f->loop ? frame : frame - 1, latent = first ? 0 : after / info.time_factor + !f->loop;
    const ts_codec_stretch part = cut(f, info.channels, latent, 1, s->circle);
    TS_TRY(ts_codec_decode_stretch(codec, &part, NULL, 0, s->group));
    memcpy(rgb, s->group + (first ? 0 : after % info.time_factor) * bytes, (size_t)bytes);
    return TS_OK;
}

int ts_film_moments(const ts_codec *codec, const ts_film *film, int64_t columns, uint8_t *rgb) {
    const ts_codec_info info = ts_codec_get_info(codec);
    const int64_t bytes = film->height * film->width * info.space_factor * info.space_factor * 3;
    const int64_t frames = ts_film_pixel_frames(codec, film);
    const size_t latent_bytes = (size_t)(film->height * film->width * info.channels) * sizeof(float);
    const scratch s = {ts_malloc(3 * latent_bytes), ts_malloc((size_t)(info.time_factor * bytes))};
    int status = s.circle && s.group ? TS_OK : TS_ERESOURCE;
    for (int64_t i = 0; i < columns && !status; i++) {
        status = decode_moment(codec, film, ts_contact_sheet_frame(frames, columns, i), &s, rgb + i * bytes);
    }
    free(s.circle);
    free(s.group);
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
