// SPDX-License-Identifier: Apache-2.0
// The data set as one list of clips over its shards.
#include "core/store/dataset.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/file.h"
#include "core/base/status.h"
#include "core/store/shard.h"

struct ts_dataset {
    ts_manifest manifest;
    ts_shard *shard;  // [opened]
    int64_t opened;   // shards that are open
    int64_t *first;   // [shards + 1]: number of each shard's first clip
    int *bucket;      // [shards]
    ts_shape *shape;  // [buckets]
    int buckets;
    char *folder;
    uint64_t fingerprint;
};

// ---- opening

static uint64_t hash_manifest(const ts_manifest *m) {
    uint64_t hash = TS_DATASET_VERSION;
    const uint64_t parts[3] = {m->codec_fingerprint, m->tokenizer_fingerprint, m->transform_fingerprint};
    hash = XXH3_64bits_withSeed(parts, sizeof parts, hash);
    for (int64_t i = 0; i < m->shard_count; i++) {
        const ts_shard_info *s = &m->shard[i];
        const uint64_t facts[6] = {(uint64_t)s->count,        (uint64_t)s->shape.dim[0], (uint64_t)s->shape.dim[1],
                                   (uint64_t)s->shape.dim[2], (uint64_t)s->shape.dim[3], s->sum};
        hash = XXH3_64bits_withSeed(s->name, strlen(s->name), hash);
        hash = XXH3_64bits_withSeed(facts, sizeof facts, hash);
    }
    return hash;
}

static int verify_sum(const char *path, const ts_shard_info *info) {
    uint64_t sum;
    TS_TRY(ts_file_hash(path, &sum));
    if (sum != info->sum) {
        return TS_FAIL(TS_EINPUT,
                       "%s: its sum is %016" PRIx64 ", the manifest says %016" PRIx64 "; it is damaged: ingest again",
                       path, sum, info->sum);
    }
    return TS_OK;
}

static void assign_bucket(ts_dataset *d, int64_t shard) {
    int b = 0;
    while (b < d->buckets && !ts_shape_equal(d->shape[b], d->manifest.shard[shard].shape)) {
        b++;
    }
    if (b == d->buckets) {
        d->shape[d->buckets++] = d->manifest.shard[shard].shape;
    }
    d->bucket[shard] = b;
}

static int open_shards(ts_dataset *d, bool verify_sums) {
    char path[TS_PATH_BYTES];
    for (int64_t i = 0; i < d->manifest.shard_count; i++) {
        const ts_shard_info *info = &d->manifest.shard[i];
        TS_TRY(ts_path_join(path, sizeof path, d->folder, info->name));
        if (verify_sums && ts_path_bytes(path) == info->bytes) {  // another size is told by ts_shard_open
            TS_TRY(verify_sum(path, info));
        }
        TS_TRY(ts_shard_open(&d->shard[i], path, info, d->manifest.codec_fingerprint));
        d->opened++;
        d->first[i + 1] = d->first[i] + info->count;
        assign_bucket(d, i);
    }
    return TS_OK;
}

static int open_all(ts_dataset *d, const char *folder, bool verify_sums) {
    TS_TRY(ts_manifest_read(folder, &d->manifest));
    if (!d->manifest.shard_count) {
        return TS_FAIL(TS_EINPUT, "%s: the data set holds no clips; ingest videos into it first", folder);
    }
    const size_t shards = (size_t)d->manifest.shard_count;
    d->folder = strdup(folder);
    d->shard = ts_calloc(shards, sizeof *d->shard);
    d->first = ts_calloc(shards + 1, sizeof *d->first);
    d->bucket = ts_calloc(shards, sizeof *d->bucket);
    d->shape = ts_calloc(shards, sizeof *d->shape);
    if (!d->folder || !d->shard || !d->first || !d->bucket || !d->shape) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory for %zu shards", folder, shards);
    }
    d->fingerprint = hash_manifest(&d->manifest);
    return open_shards(d, verify_sums);
}

int ts_dataset_open(ts_dataset **out, const char *folder, bool verify_sums) {
    *out = NULL;
    ts_dataset *d = ts_calloc(1, sizeof *d);
    if (!d) {
        return TS_ERESOURCE;
    }
    const int status = open_all(d, folder, verify_sums);
    if (status) {
        ts_dataset_close(&d);
    }
    *out = d;
    return status;
}

void ts_dataset_close(ts_dataset **dataset) {
    ts_dataset *d = *dataset;
    if (!d) {
        return;
    }
    for (int64_t i = 0; i < d->opened; i++) {
        ts_shard_close(&d->shard[i]);
    }
    ts_manifest_free(&d->manifest);
    free(d->shard);
    free(d->first);
    free(d->bucket);
    free(d->shape);
    free(d->folder);
    free(d);
    *dataset = NULL;
}

// ---- looking and reading

const ts_manifest *ts_dataset_manifest(const ts_dataset *d) {
    return &d->manifest;
}

int64_t ts_dataset_clips(const ts_dataset *d) {
    return d->first[d->manifest.shard_count];
}

int ts_dataset_buckets(const ts_dataset *d) {
    return d->buckets;
}

ts_shape ts_dataset_bucket_shape(const ts_dataset *d, int bucket) {
    return d->shape[bucket];
}

uint64_t ts_dataset_fingerprint(const ts_dataset *d) {
    return d->fingerprint;
}

// The shard of a clip, and the clip's row in it.
static int64_t find_shard(const ts_dataset *d, int64_t clip, int64_t *row) {
    int64_t low = 0, high = d->manifest.shard_count;
    TS_ASSERT(clip >= 0 && clip < d->first[high]);
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        *(clip < d->first[middle] ? &high : &low) = middle;
    }
    *row = clip - d->first[low];
    return low;
}

int ts_dataset_bucket_of(const ts_dataset *d, int64_t clip) {
    int64_t row;
    return d->bucket[find_shard(d, clip, &row)];
}

const char *ts_dataset_caption(const ts_dataset *d, int64_t clip) {
    int64_t row;
    const ts_shard *s = &d->shard[find_shard(d, clip, &row)];
    return s->caption + s->caption_offset[row];
}

const char *ts_dataset_source(const ts_dataset *d, int64_t clip) {
    int64_t row;
    const ts_shard *s = &d->shard[find_shard(d, clip, &row)];
    return s->source + s->source_offset[row];
}

double ts_dataset_fps(const ts_dataset *d, int64_t clip) {
    int64_t row;
    return d->shard[find_shard(d, clip, &row)].fps[row];
}

int ts_dataset_read_latent(const ts_dataset *d, int64_t clip, uint16_t *latent) {
    int64_t row;
    const int64_t index = find_shard(d, clip, &row);
    const ts_shard *s = &d->shard[index];
    return ts_file_pread_all(s->fd, latent, (size_t)s->clip_bytes, s->latent_offset + row * s->clip_bytes,
                             d->manifest.shard[index].name);
}
