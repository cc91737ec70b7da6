// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2 timeout=180
// Real files with the quirks of real files: all four of the golden folder ingest, and their latents decode to them.
#include <limits.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/comm/comm.h"
#include "core/model/codec.h"
#include "core/store/dataset.h"
#include "data/clips.h"
#include "data/ingest.h"
#include "tests/ts_test.h"

static ts_comm *world;
static char folder[64], source[PATH_MAX];

static double psnr(const uint8_t *a, const uint8_t *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (a[i] - b[i]) * (a[i] - b[i]);
    }
    return 10 * log10(255.0 * 255.0 * (double)n / (sum + 1e-9));
}

// The first clip of each file, read again, against what its latent decodes to.
static void check_first_clips(const ts_dataset *d, const ts_codec *codec) {
    static const ts_bucket bucket = {96, 72, 17};
    static const char *const names[] = {"cup.mp4", "montage.mp4", "tree.avi", "vtest.avi"};
    static const int64_t clips[] = {3, 8, 10, 26};  // 8.1, 24.5, 29.6 and 79.5 seconds, one clip every 3
    int64_t first = 0;
    for (int f = 0; f < 4; f++) {
        char path[PATH_MAX + 16];
        snprintf(path, sizeof path, "%s/%s", source, names[f]);
        const ts_clip_params params = {
            .buckets = &bucket, .bucket_count = 1, .fps = 8, .stride = 3, .limits = ts_video_limits_default()};
        ts_clip_reader *reader;
        ts_clip clip;
        CHECK_OK(ts_clip_reader_open(&reader, path, &params));
        CHECK_OK(ts_clip_reader_next(reader, &clip));
        CHECK(strcmp(ts_dataset_source(d, first), names[f]) == 0);
        CHECK(f == 3 || strcmp(ts_dataset_source(d, first + clips[f]), names[f + 1]) == 0);
        enum { CELLS = 5 * 9 * 12 * 32, PIXELS = 17 * 72 * 96 * 3 };
        uint16_t *latent = malloc(CELLS * sizeof *latent);
        float *values = malloc(CELLS * sizeof *values);
        uint8_t *pixels = malloc(PIXELS);
        CHECK_OK(ts_dataset_read_latent(d, first, latent));
        CHECK_OK(ts_convert(values, TS_F32, latent, TS_BF16, CELLS));
        CHECK_OK(ts_codec_decode(codec, values, 5, 9, 12, pixels));
        CHECK(psnr(pixels, clip.pixels, PIXELS) > 20);
        free(latent);
        free(values);
        free(pixels);
        ts_clip_reader_close(&reader);
        first += clips[f];
    }
    CHECK(ts_dataset_clips(d) == first);
}

int main(int argc, char **argv) {
    snprintf(source, sizeof source, "%s/videos", ts_test_shared());
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    ts_log_set_level(TS_LOG_WARN);
    strcpy(folder, "/tmp/tessera-videos-XXXXXX");
    if (ts_comm_rank(world) == 0) {
        CHECK(mkdtemp(folder) != NULL);
    }
    CHECK_OK(ts_broadcast(world, folder, sizeof folder, 0));
    char from[PATH_MAX + 16], out[PATH_MAX];
    snprintf(from, sizeof from, "--source=%s", source);
    snprintf(out, sizeof out, "--out=%s/data", folder);
    char *arguments[] = {(char[]){"ingest"},     (char[]){"configs/videos-ingest.yaml"}, from, out,
                         (char[]){"--stride=3"}, (char[]){"--buckets=96x72x17"},         NULL};
    CHECK_OK(ts_command_ingest(world, 6, arguments));
    if (ts_comm_rank(world) == 0) {
        ts_dataset *dataset;
        ts_codec *codec;
        CHECK_OK(ts_dataset_open(&dataset, out + 6, true));
        snprintf(from, sizeof from, "%s/codec", out + 6);
        CHECK_OK(ts_codec_load(&codec, from));
        CHECK(ts_dataset_manifest(dataset)->skipped == 0);
        CHECK(ts_codec_get_info(codec).channels == 32);
        check_first_clips(dataset, codec);
        ts_codec_close(&codec);
        ts_dataset_close(&dataset);
    }
    CHECK_OK(ts_barrier(world));
    if (ts_comm_rank(world) == 0) {
        CHECK_OK(ts_folder_remove(folder));
    }
    const int result = ts_test_end();
    ts_world_close(&world, result);
    return result;
}
