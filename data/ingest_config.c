// SPDX-License-Identifier: Apache-2.0
#include "data/ingest_config.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status.h"
#include "core/config/command.h"

enum { CLIPS_VERSION = 1, GROUPS = 64, MAX_GROUP = 1024 };  // raise the version when clips.c or media changes pixels

#define FIELD(name) offsetof(ts_ingest_config, name)
const ts_option ts_ingest_options[] = {
    {"source", TS_OPTION_STRING, FIELD(source), NULL,
     "folder of videos with metadata.jsonl, a CSV with path and text, or a.txt beside a.mp4", 0, 0, NULL, true},
    {"out", TS_OPTION_STRING, FIELD(out), NULL, "folder of the data set: new, empty, or one to go on with", 0, 0, NULL,
     true},
    {"buckets", TS_OPTION_LIST, FIELD(bucket_names), "64x64x17",
     "sizes and lengths of clips: WIDTHxHEIGHTxFRAMES, sides multiples of 8, frames 1 + 4k", 0, 0, NULL, true},
    {"fps", TS_OPTION_REAL, FIELD(fps), "8", "frames a second of the clips", 0.01, 1000, NULL, false},
    {"stride", TS_OPTION_REAL, FIELD(stride), "0",
     "seconds from one clip's start to the next; 0: the clip's length, so that clips neither overlap nor leave gaps; "
     "clips that overlap share frames between training and validation",
     0, 1e6, NULL, false},
    {"channels", TS_OPTION_INT, FIELD(channels), "16", "channels of the pca codec", 1, 192, NULL, false},
    {"scale_power", TS_OPTION_REAL, FIELD(scale_power), "0.5",
     "channels are divided by their deviation to this power: 0 keeps their weight, 1 makes all alike", 0, 1, NULL,
     false},
    {"codec_sample", TS_OPTION_INT, FIELD(codec_sample), "500", "clips that the codec is fitted on", 1, 1e6, NULL,
     false},
    {"max_damaged_share", TS_OPTION_REAL, FIELD(max_damaged_share), "0.1",
     "a file with a larger share of damaged frames is skipped", 0, 1, NULL, false},
    {"max_pixels", TS_OPTION_INT, FIELD(max_pixels), "16777216", "a file with larger frames is skipped", 64, 1e9, NULL,
     false},
    {"tokenizer.max_words", TS_OPTION_INT, FIELD(tokenizer.max_words), "8192", "words of the vocabulary, at most", 0,
     1e6, NULL, false},
    {"tokenizer.min_count", TS_OPTION_INT, FIELD(tokenizer.min_count), "2",
     "captions must use a word this often to make it part of the vocabulary", 1, 1e9, NULL, false},
    {"clips_per_shard", TS_OPTION_INT, FIELD(clips_per_shard), "1000", "clips of a shard, at most", 1, 1e6, NULL,
     false},
    {"files_per_group", TS_OPTION_INT, FIELD(files_per_group), "0",
     "files whose clips share shards, and the unit of resuming; 0: about 64 groups", 0, 1e6, NULL, false},
    {"seed", TS_OPTION_INT, FIELD(seed), "1", "seed of the codec's sample", 0, 9e15, NULL, false},
    {0}};

static int parse_buckets(ts_ingest_config *c, ts_arena *arena) {
    if (c->bucket_names.count > 1000) {
        return TS_FAIL(TS_EUSAGE, "buckets: more than 1000; leave the ones that are used");
    }
    c->bucket_count = (int)c->bucket_names.count;
    c->bucket = ts_arena_alloc(arena, (size_t)c->bucket_count * sizeof *c->bucket);
    if (!c->bucket) {
        return TS_ERESOURCE;
    }
    for (int i = 0; i < c->bucket_count; i++) {
        TS_TRY(ts_bucket_parse(c->bucket_names.items[i], &c->bucket[i]));
        for (int j = 0; j < i; j++) {
            if (memcmp(&c->bucket[i], &c->bucket[j], sizeof *c->bucket) == 0) {
                return TS_FAIL(TS_EUSAGE, "buckets: %s is there twice; take one out", c->bucket_names.items[i]);
            }
        }
    }
    return TS_OK;
}

int ts_ingest_config_read(ts_ingest_config *out, ts_arena *arena, int argc, char **argv, bool *help) {
    static const ts_command command = {
        .usage =
            "tessera ingest CONFIG.yaml [--key=value ...]\n"
            "Makes a data set of latents from a folder of captioned videos. Run it again to go on where it stopped.",
        .table = ts_ingest_options,
        .takes_file = true,
    };
    *out = (ts_ingest_config){0};
    TS_TRY(ts_command_read(&command, out, arena, argc, argv, help));
    return *help ? TS_OK : parse_buckets(out, arena);
}

ts_clip_params ts_ingest_clip_params(const ts_ingest_config *c) {
    ts_clip_params params = {.buckets = c->bucket,
                             .bucket_count = c->bucket_count,
                             .fps = c->fps,
                             .stride = c->stride,
                             .limits = ts_video_limits_default()};
    params.limits.max_pixels = c->max_pixels;
    params.limits.max_damaged_share = c->max_damaged_share;
    return params;
}

int64_t ts_ingest_group_size(const ts_ingest_config *c, int64_t files) {
    const int64_t size = (files + GROUPS - 1) / GROUPS;
    return c->files_per_group ? c->files_per_group : size < 1 ? 1 : size > MAX_GROUP ? MAX_GROUP : size;
}

// ---- what must not change

static int hash_files(const ts_ingest_config *c, const ts_captions *captions, char out[17]) {
    XXH3_state_t *state = XXH3_createState();
    if (!state) {
        return TS_FAIL(TS_ERESOURCE, "out of memory");
    }
    XXH3_64bits_reset(state);
    int status = TS_OK;
    for (int64_t i = 0; i < captions->count && !status; i++) {
        char path[PATH_MAX];
        status = ts_path_join(path, sizeof path, c->source, captions->file[i].path);
        const int64_t bytes = status ? 0 : ts_path_bytes(path);
        XXH3_64bits_update(state, captions->file[i].path, strlen(captions->file[i].path) + 1);
        XXH3_64bits_update(state, captions->file[i].caption, strlen(captions->file[i].caption) + 1);
        XXH3_64bits_update(state, &bytes, sizeof bytes);
    }
    snprintf(out, 17, "%016" PRIx64, (uint64_t)XXH3_64bits_digest(state));
    XXH3_freeState(state);
    return status;
}

int ts_ingest_state(const ts_ingest_config *c, const ts_captions *captions, ts_arena *arena, json_t **out) {
    *out = NULL;
    char sum[17];
    TS_TRY(hash_files(c, captions, sum));
    const char *text = ts_options_to_json(ts_ingest_options, c, arena);
    if (!text) {
        return TS_ERESOURCE;
    }
    json_t *options;
    TS_TRY(ts_json_parse(text, strlen(text), "options", &options));
    json_object_del(options, "source");
    json_object_del(options, "out");
    *out = json_pack("{s:i, s:o, s:I, s:s}", "version", CLIPS_VERSION, "options", options, "files",
                     (json_int_t)captions->count, "files_sum", sum);
    return *out ? TS_OK : TS_FAIL(TS_ERESOURCE, "out of memory");
}

static int compare_member(const json_t *begun, const json_t *now, const char *key, const char *folder) {
    if (json_equal(json_object_get(begun, key), json_object_get(now, key))) {
        return TS_OK;
    }
    char *before = json_dumps(json_object_get(begun, key), JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(8));
    char *after = json_dumps(json_object_get(now, key), JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(8));
    const int status = TS_FAIL(TS_EUSAGE,
                               "%s: was begun with %s %s and cannot go on with %s; give another folder for out, or "
                               "remove this one",
                               folder, key, before ? before : "unset", after ? after : "unset");
    free(before);
    free(after);
    return status;
}

int ts_ingest_check_state(const json_t *begun, const json_t *now, const char *folder) {
    const json_t *options = json_object_get(now, "options");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)options, key, value) {
        TS_TRY(compare_member(json_object_get(begun, "options"), options, key, folder));
    }
    TS_TRY(compare_member(begun, now, "version", folder));
    TS_TRY(compare_member(begun, now, "files", folder));
    if (compare_member(begun, now, "files_sum", folder)) {
        return TS_FAIL(TS_EUSAGE,
                       "%s: the source's files or captions have changed since it was begun; give another "
                       "folder for out, or remove this one",
                       folder);
    }
    return TS_OK;
}

uint64_t ts_ingest_transform_fingerprint(const ts_ingest_config *c) {
    char text[128];
    int length = snprintf(text, sizeof text, "clips %d fps %.17g stride %.17g", CLIPS_VERSION, c->fps, c->stride);
    uint64_t sum = XXH3_64bits(text, (size_t)length);
    for (int i = 0; i < c->bucket_count; i++) {
        const ts_bucket *b = &c->bucket[i];
        length = snprintf(text, sizeof text, "%016" PRIx64 " %" PRId64 "x%" PRId64 "x%" PRId64, sum, b->width,
                          b->height, b->frames);
        sum = XXH3_64bits(text, (size_t)length);
    }
    return sum;
}
