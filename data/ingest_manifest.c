// SPDX-License-Identifier: Apache-2.0
#include "data/ingest_manifest.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/status.h"
#include "core/model/tokenizer.h"
#include "core/store/dataset.h"

enum { MAX_RECORD_BYTES = 1 << 28, MAX_KINDS = 16 };

int ts_ingest_record_path(const ts_ingest_config *config, int64_t group, char *out, size_t out_bytes) {
    char name[64];
    snprintf(name, sizeof name, "groups/%06" PRId64 ".json", group);
    return ts_path_join(out, out_bytes, config->out, name);
}

static int read_shard(const json_t *entry, const char *record, ts_shard_info *out) {
    const char *name, *sum;
    const json_t *shape;
    char *end;
    TS_TRY(ts_json_string(entry, "name", record, &name));
    TS_TRY(ts_json_string(entry, "sum", record, &sum));
    TS_TRY(ts_json_int(entry, "count", record, 1, INT32_MAX, &out->count));
    TS_TRY(ts_json_int(entry, "bytes", record, 1, INT64_MAX, &out->bytes));
    TS_TRY(ts_json_array(entry, "shape", record, &shape));
    out->sum = strtoull(sum, &end, 16);
    if (strlen(name) >= sizeof out->name || strchr(name, '/') || *end || json_array_size(shape) != 4) {
        return TS_FAIL(TS_EINPUT, "%s: not a group's record; remove it", record);
    }
    strcpy(out->name, name);
    out->shape.ndim = 4;
    for (size_t i = 0; i < 4; i++) {
        out->shape.dim[i] = json_integer_value(json_array_get(shape, i));
    }
    return TS_OK;
}

bool ts_ingest_record_is_whole(const ts_ingest_config *config, int64_t group) {
    char path[PATH_MAX], shard_path[PATH_MAX];
    json_t *record;
    if (ts_ingest_record_path(config, group, path, sizeof path) || ts_json_read(path, MAX_RECORD_BYTES, &record)) {
        return false;
    }
    const json_t *shards;
    bool whole = ts_json_array(record, "shards", path, &shards) == TS_OK;
    for (size_t i = 0; whole && i < json_array_size(shards); i++) {
        ts_shard_info shard;
        whole = !read_shard(json_array_get(shards, i), path, &shard) &&
                !ts_path_join(shard_path, sizeof shard_path, config->out, shard.name) &&
                ts_path_bytes(shard_path) == shard.bytes;
    }
    json_decref(record);
    return whole;
}

// ---- the sum of all records

typedef struct kind_count {
    const char *kind;  // borrowed from the records
    int64_t count;
} kind_count;

typedef struct totals {
    json_t *records;  // all groups', so that texts borrowed from them stay
    ts_shard_info *shard;
    int64_t shard_count, shard_room;
    int64_t *bucket_clips;  // [bucket_count]
    int64_t clips, kept, damaged, skipped, elements;
    kind_count kind[MAX_KINDS];
    int64_t channels;
    double *sum, *square;  // [channels]
    FILE *skipped_lines;   // skipped.jsonl in memory
} totals;

static int note_skipped(totals *t, const char *path, const char *kind, const char *reason) {
    for (int i = 0; i < MAX_KINDS; i++) {
        if (!t->kind[i].kind || strcmp(t->kind[i].kind, kind) == 0) {
            t->kind[i] = (kind_count){kind, t->kind[i].count + 1};
            break;
        }
    }
    t->skipped++;
    json_t *line = json_pack("{s:s, s:s, s:s}", "file_name", path, "kind", kind, "reason", reason);
    const bool written = line && !json_dumpf(line, t->skipped_lines, 0) && fputc('\n', t->skipped_lines) != EOF;
    json_decref(line);
    return written ? TS_OK : TS_FAIL(TS_ERESOURCE, "out of memory for the list of skipped files");
}

static int add_shards(totals *t, const ts_ingest_config *config, const json_t *shards, const char *path) {
    for (size_t i = 0; i < json_array_size(shards); i++) {
        if (t->shard_count == t->shard_room) {
            t->shard_room = 2 * t->shard_room + 64;
            ts_shard_info *larger = realloc(t->shard, (size_t)t->shard_room * sizeof *larger);
            if (!larger) {
                return TS_FAIL(TS_ERESOURCE, "out of memory for the manifest");
            }
            t->shard = larger;
        }
        ts_shard_info *shard = &t->shard[t->shard_count];
        int64_t bucket;
        *shard = (ts_shard_info){0};
        TS_TRY(read_shard(json_array_get(shards, i), path, shard));
        TS_TRY(ts_json_int(json_array_get(shards, i), "bucket", path, 0, config->bucket_count - 1, &bucket));
        t->bucket_clips[bucket] += shard->count;
        t->clips += shard->count;
        t->shard_count++;
    }
    return TS_OK;
}

static int add_record(totals *t, const ts_ingest_config *config, int64_t group) {
    char path[PATH_MAX];
    json_t *record;
    const json_t *shards, *skipped, *latent, *sum, *square;
    int64_t kept, damaged, elements;
    TS_TRY(ts_ingest_record_path(config, group, path, sizeof path));
    TS_TRY(ts_json_read(path, MAX_RECORD_BYTES, &record));
    if (json_array_append_new(t->records, record)) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for the manifest");
    }
    TS_TRY(ts_json_int(record, "kept", path, 0, INT64_MAX, &kept));
    TS_TRY(ts_json_int(record, "damaged", path, 0, INT64_MAX, &damaged));
    TS_TRY(ts_json_array(record, "shards", path, &shards));
    TS_TRY(ts_json_array(record, "skipped", path, &skipped));
    TS_TRY(ts_json_object(record, "latent", path, &latent));
    TS_TRY(ts_json_int(latent, "count", path, 0, INT64_MAX, &elements));
    TS_TRY(ts_json_array(latent, "sum", path, &sum));
    TS_TRY(ts_json_array(latent, "square", path, &square));
    TS_TRY(add_shards(t, config, shards, path));
    for (size_t i = 0; i < json_array_size(skipped); i++) {
        const char *file, *kind, *reason;
        TS_TRY(ts_json_string(json_array_get(skipped, i), "file_name", path, &file));
        TS_TRY(ts_json_string(json_array_get(skipped, i), "kind", path, &kind));
        TS_TRY(ts_json_string(json_array_get(skipped, i), "reason", path, &reason));
        TS_TRY(note_skipped(t, file, kind, reason));
    }
    for (int64_t c = 0; c < t->channels; c++) {
        t->sum[c] += json_number_value(json_array_get(sum, (size_t)c));
        t->square[c] += json_number_value(json_array_get(square, (size_t)c));
    }
    t->kept += kept;
    t->damaged += damaged;
    t->elements += elements;
    return TS_OK;
}

static int add_all(totals *t, const ts_ingest_config *config, const ts_captions *captions, int64_t groups) {
    for (int64_t i = 0; i < captions->skipped_count; i++) {
        const ts_skipped_file *s = &captions->skipped[i];
        TS_TRY(note_skipped(t, s->path, s->kind, s->reason));
    }
    for (int64_t group = 0; group < groups; group++) {
        TS_TRY(add_record(t, config, group));
    }
    return TS_OK;
}

// Mean over the channels of their variance: what is left when each is predicted by its mean.
static double latent_variance(const totals *t) {
    double variance = 0;
    for (int64_t c = 0; c < t->channels; c++) {
        const double mean = t->sum[c] / (double)t->elements;
        variance += t->square[c] / (double)t->elements - mean * mean;
    }
    return variance / (double)t->channels;
}

// ---- what is written

// The vocabulary of the captions of all files that gave clips.
static int make_tokenizer(const totals *t, const ts_ingest_config *config, const ts_captions *captions,
                          uint64_t *fingerprint) {
    json_t *out = json_object();  // the skipped paths, as a set
    const char **caption = ts_malloc((size_t)captions->count * sizeof *caption);
    size_t i, j;
    json_t *record, *entry;
    json_array_foreach(t->records, i, record) {
        json_array_foreach(json_object_get(record, "skipped"), j, entry) {
            json_object_set_new(out, json_string_value(json_object_get(entry, "file_name")), json_true());
        }
    }
    int64_t count = 0;
    for (int64_t k = 0; caption && k < captions->count; k++) {
        if (!json_object_get(out, captions->file[k].path)) {
            caption[count++] = captions->file[k].caption;
        }
    }
    json_decref(out);
    char folder[PATH_MAX];
    ts_tokenizer *tokenizer = NULL;
    int status = caption ? ts_path_join(folder, sizeof folder, config->out, "tokenizer") : TS_ERESOURCE;
    status = status ? status
                    : ts_tokenizer_build(&tokenizer, caption, count, config->tokenizer.max_words,
                                         config->tokenizer.min_count);
    status = status ? status : ts_folder_make(folder);
    status = status ? status : ts_tokenizer_save(tokenizer, folder);
    if (!status) {
        *fingerprint = ts_tokenizer_fingerprint(tokenizer);
        TS_INFO("tokenizer: %" PRId64 " ids", ts_tokenizer_vocabulary(tokenizer));
    }
    ts_tokenizer_close(&tokenizer);
    free(caption);
    return status;
}

static int compare_shards(const void *a, const void *b) {
    return strcmp(((const ts_shard_info *)a)->name, ((const ts_shard_info *)b)->name);
}

static int write_manifest(totals *t, const ts_ingest_config *config, const ts_captions *captions,
                          const ts_codec *codec) {
    ts_manifest manifest = {.codec_fingerprint = ts_codec_get_info(codec).fingerprint,
                            .transform_fingerprint = ts_ingest_transform_fingerprint(config),
                            .shard_count = t->shard_count,
                            .shard = t->shard,
                            .skipped = t->skipped,
                            .latent_variance = latent_variance(t)};
    qsort(t->shard, (size_t)t->shard_count, sizeof *t->shard, compare_shards);
    TS_TRY(make_tokenizer(t, config, captions, &manifest.tokenizer_fingerprint));
    TS_TRY(ts_manifest_write(config->out, &manifest));
    ts_dataset *dataset;
    TS_TRY(ts_dataset_open(&dataset, config->out, false));
    const bool whole = ts_dataset_clips(dataset) == t->clips;
    ts_dataset_close(&dataset);
    return whole ? TS_OK
                 : TS_FAIL(TS_EINTERNAL, "%s: its shards do not hold the %" PRId64 " clips they should", config->out,
                           t->clips);
}

static void print_summary(const totals *t, const ts_ingest_config *config, const ts_captions *captions) {
    TS_INFO("%s: %" PRId64 " clips in %" PRId64 " shards, from %" PRId64 " of %" PRId64 " files; latent variance %.4g",
            config->out, t->clips, t->shard_count, t->kept, captions->count + captions->skipped_count,
            t->clips ? latent_variance(t) : 0);
    for (int i = 0; i < config->bucket_count; i++) {
        TS_INFO("  %-16s %8" PRId64 " clips  %5.1f %%", config->bucket_names.items[i], t->bucket_clips[i],
                t->clips ? 100.0 * (double)t->bucket_clips[i] / (double)t->clips : 0);
    }
    for (int i = 0; i < MAX_KINDS && t->kind[i].kind; i++) {
        TS_INFO("  skipped: %-12s %3" PRId64 " files; see %s/skipped.jsonl", t->kind[i].kind, t->kind[i].count,
                config->out);
    }
    if (t->damaged) {
        TS_INFO("  damaged frames passed over in the files kept: %" PRId64, t->damaged);
    }
}

static int finish(totals *t, const ts_ingest_config *config, const ts_captions *captions, const ts_codec *codec,
                  int64_t groups) {
    t->channels = ts_codec_get_info(codec).channels;
    t->records = json_array();
    t->bucket_clips = ts_calloc((size_t)config->bucket_count, sizeof *t->bucket_clips);
    t->sum = ts_calloc((size_t)t->channels, sizeof *t->sum);
    t->square = ts_calloc((size_t)t->channels, sizeof *t->square);
    char *lines = NULL, path[PATH_MAX];
    size_t bytes = 0;
    t->skipped_lines = open_memstream(&lines, &bytes);
    if (!t->records || !t->bucket_clips || !t->sum || !t->square || !t->skipped_lines) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for the manifest");
    }
    int status = add_all(t, config, captions, groups);
    fclose(t->skipped_lines);  // fills `lines`
    status = status ? status : ts_path_join(path, sizeof path, config->out, "skipped.jsonl");
    status = status ? status : ts_file_write_atomic(path, lines, bytes);
    free(lines);
    TS_TRY(status);
    print_summary(t, config, captions);
    if (t->clips == 0) {
        return TS_FAIL(TS_EINPUT, "%s: nothing could be ingested; %s says why", config->source, path);
    }
    return write_manifest(t, config, captions, codec);
}

int ts_ingest_finish(const ts_ingest_config *config, const ts_captions *captions, const ts_codec *codec,
                     int64_t groups) {
    totals t = {0};
    const int status = finish(&t, config, captions, codec, groups);
    json_decref(t.records);
    free(t.shard);
    free(t.bucket_clips);
    free(t.sum);
    free(t.square);
    return status;
}
