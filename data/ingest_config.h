// SPDX-License-Identifier: Apache-2.0
// The options of `tessera ingest`, and what must not change between a start and its continuation.
#ifndef TS_DATA_INGEST_CONFIG_H
#define TS_DATA_INGEST_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/config/option.h"
#include "data/captions.h"
#include "data/clips.h"

typedef struct ts_ingest_config {
    const char *source, *out;
    ts_string_list bucket_names;
    double fps, stride, scale_power, max_damaged_share;
    int64_t channels, codec_sample, max_pixels, clips_per_shard, files_per_group, seed;
    struct {
        int64_t max_words, min_count;
    } tokenizer;
    // Made of the above:
    ts_bucket *bucket;
    int bucket_count;
} ts_ingest_config;

extern const ts_option ts_ingest_options[];

// CONFIG.yaml, then --key=value; --help prints. Strings and buckets live in `arena`.
int ts_ingest_config_read(ts_ingest_config *out, ts_arena *arena, int argc, char **argv, bool *help);
ts_clip_params ts_ingest_clip_params(const ts_ingest_config *config);

// Files of a group when the configuration leaves it open: about 64 groups, whatever the number of ranks.
int64_t ts_ingest_group_size(const ts_ingest_config *config, int64_t files);

// What the data set depends on, as JSON: all options but the folders, and the files with their sizes and captions.
// The caller owns *out.
int ts_ingest_state(const ts_ingest_config *config, const ts_captions *captions, ts_arena *arena, json_t **out);
// TS_EUSAGE that names the first difference when the data set in `folder` was begun with another state.
int ts_ingest_check_state(const json_t *begun, const json_t *now, const char *folder);
// Of how pixels become clips, for the manifest.
uint64_t ts_ingest_transform_fingerprint(const ts_ingest_config *config);

#endif
