// SPDX-License-Identifier: Apache-2.0
// A finished video on its way from latents to a file, a stretch at a time: memory does not grow with its length.
#ifndef TS_INFER_FILM_H
#define TS_INFER_FILM_H

#include <stdbool.h>

#include "core/comm/comm.h"
#include "core/model/codec.h"

typedef struct ts_film {
    const float *latents;           // [frames, height, width, C] f32, borrowed
    int64_t frames, height, width;  // latent
    bool loop;                      // every latent frame is a group; else the first stands for one pixel frame
    int64_t stretch;                // latent frames decoded together; 0: what makes 64 MiB of pixels
    double fps;
    const char *title;  // of the file, or NULL
} ts_film;

int64_t ts_film_pixel_frames(const ts_codec *codec, const ts_film *film);

// Decodes on all ranks of `comm`, each of which has the latents, and writes PATH, an MP4, on rank `root`; nothing is
// left where it fails, nor when a signal to stop comes (TS_ESTOPPED). The pixels are those of ts_codec_decode, bit for
// bit; in a loop every group has both its neighbours, those on the other side of the seam, too. Collective, the same
// status on all ranks.
int ts_film_write(const ts_codec *codec, const ts_film *film, ts_comm *comm, int root, const char *path);

// The frames that a contact sheet shows: rgb [columns, 8 height, 8 width, 3] u8. Decodes those alone. Not collective.
int ts_film_moments(const ts_codec *codec, const ts_film *film, int64_t columns, uint8_t *rgb);
// A contact sheet of such frames of n films of one size, a row each under its title. Not collective.
int ts_film_write_sheet(const ts_codec *codec, const ts_film *film, int64_t n, const char *path);

#endif
