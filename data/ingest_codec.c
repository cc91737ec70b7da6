// SPDX-License-Identifier: Apache-2.0
#include "data/ingest_codec.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/base/status.h"

// What one rank has put into the fit.
typedef struct sample {
    ts_codec_fit *fit;
    int64_t clips;
    char reason[512];  // why the first file without a clip gave none
} sample;

// Adds up to `quota` clips of a file, spread over its length.
static int add_file(sample *s, const ts_ingest_config *config, const char *name, uint64_t number, int64_t quota) {
    char path[PATH_MAX];
    TS_TRY(ts_path_join(path, sizeof path, config->source, name));
    const ts_clip_params params = ts_ingest_clip_params(config);
    ts_clip_reader *reader;
    TS_TRY(ts_clip_reader_open(&reader, path, &params));
    const int64_t expected = ts_clip_reader_clips(reader);
    const int64_t step = expected > quota ? expected / quota : 1;
    // Index 0 of the purpose is the order of the files.
    const int64_t offset = (int64_t)ts_rng_below((uint64_t)config->seed, TS_RNG_CODEC, number + 1, 0, (uint64_t)step);
    ts_clip clip;
    int64_t taken = 0;
    int status = TS_OK;
    while (taken < quota && !(status = ts_clip_reader_next(reader, &clip))) {
        if (clip.index % step != offset) {
            continue;
        }
        const ts_bucket *b = &config->bucket[ts_clip_reader_bucket(reader)];
        status = ts_codec_fit_add(s->fit, clip.pixels, b->frames, b->height, b->width);
        if (status) {
            break;
        }
        taken++;
    }
    s->clips += taken;
    ts_clip_reader_close(&reader);
    if (status == TS_EOF && taken == 0) {
        return TS_FAIL(TS_EINPUT, "%s: too short for every bucket", path);
    }
    return status == TS_EOF ? TS_OK : status;
}

// This rank's part of the sample: every size-th file of the permuted list. Files that fail are left to the ingest to
// name.
static int add_sample(sample *s, const ts_ingest_config *config, const ts_captions *captions, ts_comm *world) {
    const int64_t files = captions->count < config->codec_sample ? captions->count : config->codec_sample;
    const int64_t quota = (config->codec_sample + files - 1) / files;
    int64_t *order = ts_malloc((size_t)captions->count * sizeof *order);
    if (!order) {
        return TS_ERESOURCE;
    }
    ts_rng_permutation(order, captions->count, (uint64_t)config->seed, TS_RNG_CODEC, 0);
    int status = TS_OK;
    ts_progress progress;
    ts_progress_begin(&progress, "codec", "files", files);
    for (int64_t i = ts_comm_rank(world); i < files && !status; i += ts_comm_size(world)) {
        status = add_file(s, config, captions->file[order[i]].path, (uint64_t)order[i], quota);
        if (status == TS_EINPUT) {
            TS_DEBUG("not in the codec's sample: %s", ts_error_text());
            if (!*s->reason) {
                snprintf(s->reason, sizeof s->reason, "%s", ts_error_text());
            }
            status = TS_OK;
        }
        const int64_t done = i + ts_comm_size(world);  // the others are about as far
        ts_progress_update(&progress, done < files ? done : files, NULL);
    }
    ts_progress_end(&progress, NULL);
    free(order);
    return status;
}

static int fit_codec(ts_codec **out, sample *s, const ts_ingest_config *config, const ts_captions *captions,
                     ts_comm *world) {
    TS_TRY(ts_agree(world, add_sample(s, config, captions, world)));
    int64_t clips = s->clips;
    TS_TRY(ts_all_reduce(world, &clips, 1, TS_I64, TS_SUM));
    if (clips == 0) {  // rank 0 had a file, so it has a reason
        return ts_agree(world, TS_FAIL(TS_EINPUT,
                                       "%s: nothing could be ingested: none of its %" PRId64
                                       " files gives a clip; the first reason: %s",
                                       config->source, captions->count, s->reason));
    }
    TS_TRY(ts_agree(world, ts_codec_fit_finish(s->fit, world, out)));
    TS_INFO("codec: %" PRId64 " channels fitted on %" PRId64 " clips keep %.2f %% of the pixels' variance",
            config->channels, clips, 100 * ts_codec_get_info(*out).explained);
    return TS_OK;
}

int ts_ingest_codec(ts_codec **out, const ts_ingest_config *config, const ts_captions *captions, ts_comm *world) {
    *out = NULL;
    char folder[PATH_MAX], file[PATH_MAX];
    TS_TRY(ts_path_join(folder, sizeof folder, config->out, "codec"));
    TS_TRY(ts_path_join(file, sizeof file, folder, "config.json"));  // written last: the codec is whole
    int64_t there = ts_comm_rank(world) == 0 && ts_path_exists(file);
    TS_TRY(ts_all_reduce(world, &there, 1, TS_I64, TS_MAX));
    if (there) {
        return ts_agree(world, ts_codec_load(out, folder));
    }
    sample s = {0};
    int status = ts_agree(world, ts_codec_fit_open(&s.fit, config->channels, config->scale_power));
    status = status ? status : fit_codec(out, &s, config, captions, world);
    ts_codec_fit_close(&s.fit);
    if (!status) {
        status = ts_agree(world, ts_comm_rank(world) == 0 ? ts_codec_save(*out, folder) : TS_OK);
    }
    return status;
}
