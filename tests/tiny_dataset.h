// SPDX-License-Identifier: Apache-2.0
// A data set of a few moving squares in two lengths, made without video files, for tests of what comes after ingest.
#ifndef TS_TEST_TINY_DATASET_H
#define TS_TEST_TINY_DATASET_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/status.h"
#include "core/comm/comm.h"
#include "core/model/codec.h"
#include "core/model/tokenizer.h"
#include "core/store/dataset.h"

enum {
    TINY_CLIPS = 48,
    TINY_SHORT_CLIPS = 16,
    TINY_SIDE = 32,
    TINY_FRAMES = 9,
    TINY_SHORT_FRAMES = 5,
    TINY_CHANNELS = 8
};

static const char *const TINY_COLOURS[3] = {"red", "green", "blue"};

// Clip i: a square of one primary colour that moves left or right, its row and speed set by i.
static void tiny_pixels(int i, uint8_t *rgb, char caption[64]) {
    const int colour = i % 3, right = (i / 3) % 2, row = 2 + (i * 5) % 20, speed = 1 + i % 2;
    snprintf(caption, 64, "a %s square moves %s", TINY_COLOURS[colour], right ? "right" : "left");
    memset(rgb, 16, (size_t)TINY_FRAMES * TINY_SIDE * TINY_SIDE * 3);
    for (int f = 0; f < TINY_FRAMES; f++) {
        const int column = right ? 2 + f * speed : 22 - f * speed;
        for (int y = row; y < row + 8; y++) {
            for (int x = column; x < column + 8; x++) {
                rgb[((f * TINY_SIDE + y) * TINY_SIDE + x) * 3 + colour] = 230;
            }
        }
    }
}

// One shard: the first `frames` frames of the first `clips` clips.
static int tiny_shard(const char *folder, const ts_codec *codec, int64_t frames, int clips, ts_shard_info *shard) {
    static uint8_t rgb[TINY_FRAMES * TINY_SIDE * TINY_SIDE * 3];
    static float latent[3 * 4 * 4 * TINY_CHANNELS];
    char caption[64], path[4096];
    ts_shard_writer *writer = NULL;
    shard->shape = TS_SHAPE(1 + (frames - 1) / 4, TINY_SIDE / 8, TINY_SIDE / 8, TINY_CHANNELS);
    TS_TRY(ts_path_join(path, sizeof path, folder, shard->name));
    TS_TRY(ts_shard_writer_open(&writer, path, shard->shape, ts_codec_get_info(codec).fingerprint));
    for (int i = 0; i < clips; i++) {
        tiny_pixels(i, rgb, caption);
        TS_TRY(ts_codec_encode(codec, rgb, frames, TINY_SIDE, TINY_SIDE, latent));
        TS_TRY(ts_shard_writer_add(
            writer, latent, &(ts_clip_record){.source = "tiny", .caption = caption, .start = 0, .end = 1, .fps = 8}));
    }
    TS_TRY(ts_shard_writer_commit(&writer, &shard->count, &shard->sum));
    shard->bytes = ts_path_bytes(path);
    return TS_OK;
}

static int tiny_fit(ts_comm *solo, ts_codec **codec) {
    static uint8_t rgb[TINY_FRAMES * TINY_SIDE * TINY_SIDE * 3];
    char caption[64];
    ts_codec_fit *fit = NULL;
    TS_TRY(ts_codec_fit_open(&fit, TINY_CHANNELS, 0.5));
    for (int i = 0; i < TINY_CLIPS; i++) {
        tiny_pixels(i, rgb, caption);
        TS_TRY(ts_codec_fit_add(fit, rgb, TINY_FRAMES, TINY_SIDE, TINY_SIDE));
    }
    TS_TRY(ts_codec_fit_finish(fit, solo, codec));
    ts_codec_fit_close(&fit);
    return TS_OK;
}

static int tiny_tokenizer(ts_tokenizer **tokenizer) {
    static uint8_t rgb[TINY_FRAMES * TINY_SIDE * TINY_SIDE * 3];
    static char text[TINY_CLIPS][64];
    const char *captions[TINY_CLIPS];
    for (int i = 0; i < TINY_CLIPS; i++) {
        tiny_pixels(i, rgb, text[i]);
        captions[i] = text[i];
    }
    return ts_tokenizer_build(tokenizer, captions, TINY_CLIPS, 100, 1);
}

// Writes the data set into `folder` (exists). `solo`: a communicator of this rank alone. Not collective.
static int tiny_dataset_write(const char *folder, ts_comm *solo) {
    char path[4096];
    ts_codec *codec = NULL;
    ts_tokenizer *tokenizer = NULL;
    ts_shard_info shard[2] = {{.name = "shard-0.h5"}, {.name = "shard-1.h5"}};
    TS_TRY(tiny_fit(solo, &codec));
    TS_TRY(tiny_tokenizer(&tokenizer));
    TS_TRY(ts_path_join(path, sizeof path, folder, "codec"));
    TS_TRY(ts_folder_make(path));
    TS_TRY(ts_codec_save(codec, path));
    TS_TRY(ts_path_join(path, sizeof path, folder, "tokenizer"));
    TS_TRY(ts_folder_make(path));
    TS_TRY(ts_tokenizer_save(tokenizer, path));
    TS_TRY(tiny_shard(folder, codec, TINY_FRAMES, TINY_CLIPS, &shard[0]));
    TS_TRY(tiny_shard(folder, codec, TINY_SHORT_FRAMES, TINY_SHORT_CLIPS, &shard[1]));
    const ts_manifest manifest = {.codec_fingerprint = ts_codec_get_info(codec).fingerprint,
                                  .tokenizer_fingerprint = ts_tokenizer_fingerprint(tokenizer),
                                  .shard_count = 2,
                                  .shard = shard,
                                  .latent_variance = 1};
    ts_codec_close(&codec);
    ts_tokenizer_close(&tokenizer);
    return ts_manifest_write(folder, &manifest);
}

// A temporary folder holding the data set as folder/data, the same name on every rank. Collective.
static int tiny_dataset_make(char folder[64], ts_comm *world, ts_comm *solo) {
    int status = TS_OK;
    if (ts_comm_rank(world) == 0) {
        char path[80];
        snprintf(folder, 64, "/tmp/tessera-train-XXXXXX");
        status = mkdtemp(folder) ? TS_OK : TS_FAIL(TS_ERESOURCE, "no temporary folder");
        snprintf(path, sizeof path, "%s/data", folder);
        status = status ? status : ts_folder_make(path);
        status = status ? status : tiny_dataset_write(path, solo);
    }
    TS_TRY(ts_agree(world, status));
    return ts_broadcast(world, folder, 64, 0);
}

#endif
