// SPDX-License-Identifier: Apache-2.0
// manifest.json of a data set.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status.h"
#include "core/store/dataset.h"

enum { MAX_BYTES = 256 << 20, MAX_SHARDS = 1000000, MAX_EXTENT = 1 << 20 };

static int by_name(const void *a, const void *b) {
    return strcmp(((const ts_shard_info *)a)->name, ((const ts_shard_info *)b)->name);
}

// ---- writing

// 64-bit sums are written as 16 hexadecimal digits: JSON numbers are exact only to 53 bits for many readers.
static json_t *hex(uint64_t value) {
    char text[17];
    snprintf(text, sizeof text, "%016" PRIx64, value);
    return json_string(text);
}

static json_t *pack_shard(const ts_shard_info *s) {
    return json_pack("{s:s, s:[I, I, I, I], s:I, s:I, s:o}", "name", s->name, "shape", (json_int_t)s->shape.dim[0],
                     (json_int_t)s->shape.dim[1], (json_int_t)s->shape.dim[2], (json_int_t)s->shape.dim[3], "count",
                     (json_int_t)s->count, "bytes", (json_int_t)s->bytes, "sum", hex(s->sum));
}

int ts_manifest_write(const char *folder, const ts_manifest *manifest) {
    char path[TS_PATH_BYTES];
    TS_TRY(ts_path_join(path, sizeof path, folder, "manifest.json"));
    const size_t bytes = (size_t)manifest->shard_count * sizeof(ts_shard_info);
    ts_shard_info *sorted = ts_malloc(bytes + 1);
    if (!sorted) {
        return TS_ERESOURCE;
    }
    if (bytes) {
        memcpy(sorted, manifest->shard, bytes);
        qsort(sorted, (size_t)manifest->shard_count, sizeof *sorted, by_name);
    }
    json_t *shards = json_array();
    int failed = 0;
    for (int64_t i = 0; i < manifest->shard_count; i++) {
        failed |= json_array_append_new(shards, pack_shard(&sorted[i]));
    }
    free(sorted);
    json_t *root =
        json_pack("{s:i, s:o, s:o, s:o, s:I, s:f, s:o}", "version", TS_DATASET_VERSION, "codec_fingerprint",
                  hex(manifest->codec_fingerprint), "tokenizer_fingerprint", hex(manifest->tokenizer_fingerprint),
                  "transform_fingerprint", hex(manifest->transform_fingerprint), "skipped",
                  (json_int_t)manifest->skipped, "latent_variance", manifest->latent_variance, "shards", shards);
    const int status = failed || !root
                           ? TS_FAIL(TS_ERESOURCE, "%s: no memory for its JSON, or a value is not finite", path)
                           : ts_json_write_atomic(path, root);
    json_decref(root);
    return status;
}

// ---- reading

static int read_hex(const json_t *object, const char *key, const char *path, uint64_t *out) {
    const char *text;
    TS_TRY(ts_json_string(object, key, path, &text));
    if (strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16) {
        return TS_FAIL(TS_EINPUT, "%s: \"%s\" must be 16 hexadecimal digits; ingest again", path, key);
    }
    *out = strtoull(text, NULL, 16);
    return TS_OK;
}

static int read_shape(const json_t *object, const char *path, ts_shape *out) {
    const json_t *shape;
    TS_TRY(ts_json_array(object, "shape", path, &shape));
    *out = (ts_shape){.ndim = 4};
    for (int i = 0; i < 4; i++) {
        out->dim[i] = json_integer_value(json_array_get(shape, (size_t)i));
        if (out->dim[i] < 1 || out->dim[i] > MAX_EXTENT || json_array_size(shape) != 4) {
            return TS_FAIL(TS_EINPUT, "%s: \"shape\" must be four numbers of 1 to %d; ingest again", path, MAX_EXTENT);
        }
    }
    return TS_OK;
}

static int read_shard(const json_t *object, const char *path, ts_shard_info *out) {
    const char *name;
    TS_TRY(ts_json_string(object, "name", path, &name));
    if (!*name || *name == '.' || strchr(name, '/') || strlen(name) >= sizeof out->name) {
        return TS_FAIL(TS_EINPUT, "%s: shard \"%.80s\": must be the plain name of a file beside the manifest", path,
                       name);
    }
    strcpy(out->name, name);
    TS_TRY(read_shape(object, path, &out->shape));
    TS_TRY(ts_json_int(object, "count", path, 1, INT64_MAX, &out->count));
    TS_TRY(ts_json_int(object, "bytes", path, 1, INT64_MAX, &out->bytes));
    TS_TRY(read_hex(object, "sum", path, &out->sum));
    int64_t latents = out->count;
    bool overflow = __builtin_mul_overflow(latents, (int64_t)sizeof(uint16_t), &latents);
    for (int i = 0; i < 4; i++) {
        overflow = overflow || __builtin_mul_overflow(latents, out->shape.dim[i], &latents);
    }
    if (overflow || latents > out->bytes) {
        return TS_FAIL(TS_EINPUT, "%s: %lld clips of its shape do not fit in its %lld bytes; ingest again", path,
                       (long long)out->count, (long long)out->bytes);
    }
    return TS_OK;
}

static int read_shards(const json_t *root, const char *path, ts_manifest *out) {
    const json_t *shards;
    TS_TRY(ts_json_array(root, "shards", path, &shards));
    const size_t count = json_array_size(shards);
    if (count > MAX_SHARDS) {
        return TS_FAIL(TS_EINPUT, "%s: has %zu shards, the limit is %d", path, count, MAX_SHARDS);
    }
    out->shard = ts_calloc(count + 1, sizeof *out->shard);
    if (!out->shard) {
        return TS_ERESOURCE;
    }
    out->shard_count = (int64_t)count;
    for (size_t i = 0; i < count; i++) {
        char place[TS_PATH_BYTES + 64];
        snprintf(place, sizeof place, "%s: shard %zu", path, i);
        TS_TRY(read_shard(json_array_get(shards, i), place, &out->shard[i]));
        if (i && by_name(&out->shard[i - 1], &out->shard[i]) >= 0) {
            return TS_FAIL(TS_EINPUT, "%s: is out of order or there twice; ingest again", place);
        }
    }
    return TS_OK;
}

static int read_all(const json_t *root, const char *path, ts_manifest *out) {
    int64_t version;
    TS_TRY(ts_json_int(root, "version", path, INT64_MIN, INT64_MAX, &version));
    if (version != TS_DATASET_VERSION) {
        return TS_FAIL(TS_EINPUT, "%s: has version %" PRId64 ", this program reads version %d; ingest again", path,
                       version, TS_DATASET_VERSION);
    }
    TS_TRY(read_hex(root, "codec_fingerprint", path, &out->codec_fingerprint));
    TS_TRY(read_hex(root, "tokenizer_fingerprint", path, &out->tokenizer_fingerprint));
    TS_TRY(read_hex(root, "transform_fingerprint", path, &out->transform_fingerprint));
    TS_TRY(ts_json_int(root, "skipped", path, 0, INT64_MAX, &out->skipped));
    TS_TRY(ts_json_real_or(root, "latent_variance", path, 0, &out->latent_variance));
    return read_shards(root, path, out);
}

int ts_manifest_read(const char *folder, ts_manifest *out) {
    char path[TS_PATH_BYTES];
    json_t *root = NULL;
    *out = (ts_manifest){0};
    TS_TRY(ts_path_join(path, sizeof path, folder, "manifest.json"));
    TS_TRY(ts_json_read(path, MAX_BYTES, &root));
    const int status = read_all(root, path, out);
    json_decref(root);
    if (status) {
        ts_manifest_free(out);
    }
    return status;
}

void ts_manifest_free(ts_manifest *manifest) {
    free(manifest->shard);
    *manifest = (ts_manifest){0};
}
