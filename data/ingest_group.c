// SPDX-License-Identifier: Apache-2.0
#include "data/ingest_group.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/status.h"
#include "core/store/dataset.h"

// The writer holds a shard in memory for a moment when it finishes.
static const int64_t MAX_SHARD_BYTES = (int64_t)256 << 20;

// The shards of one bucket, one open at a time.
typedef struct lane {
    ts_shape latent;  // [T, H, W, C]
    ts_shard_writer *writer;
    int64_t clips;  // in the open shard
    int parts;      // shards finished
} lane;

typedef struct work {
    const ts_ingest_group *group;
    ts_clip_params clip_params;
    int64_t channels;
    uint64_t codec_fingerprint;
    lane *lane;  // [bucket_count]
    int spool;
    float *latent;         // room for the largest bucket's
    double *sum, *square;  // [channels], of what the shards hold
    int64_t elements;      // of a channel
    int64_t kept, damaged;
    json_t *shards, *skipped;
} work;

static const char *source_folder(const work *w) {
    return w->group->config->source;
}

static int64_t shard_room(const work *w, const lane *l) {
    const int64_t fit = MAX_SHARD_BYTES / (ts_shape_count(l->latent) * 2);
    const int64_t wanted = w->group->config->clips_per_shard;
    return fit < 1 ? 1 : fit < wanted ? fit : wanted;
}

// ---- the spool: {start, end, latent} of each clip of the current file

static int open_spool(work *w) {
    char name[64], path[PATH_MAX];
    snprintf(name, sizeof name, "group-%06" PRId64 ".spool.tmp", w->group->number);
    TS_TRY(ts_path_join(path, sizeof path, w->group->config->out, name));
    w->spool = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (w->spool < 0) {
        return TS_FAIL(TS_ERESOURCE, "%s: cannot be created: %s", path, strerror(errno));
    }
    unlink(path);  // whatever happens, it leaves nothing behind
    return TS_OK;
}

typedef struct span {
    double start, end;
} span;

static int spool_clip(work *w, const ts_clip *clip, size_t latent_bytes) {
    const span s = {clip->start, clip->end};
    TS_TRY(ts_file_write_all(w->spool, &s, sizeof s, "spool"));
    return ts_file_write_all(w->spool, w->latent, latent_bytes, "spool");
}

static int read_spool(work *w, int64_t clip, size_t latent_bytes, span *s) {
    const int64_t offset = clip * (int64_t)(sizeof *s + latent_bytes);
    TS_TRY(ts_file_pread_all(w->spool, s, sizeof *s, offset, "spool"));
    return ts_file_pread_all(w->spool, w->latent, latent_bytes, offset + (int64_t)sizeof *s, "spool");
}

// ---- shards

static void shard_name(const work *w, int bucket, int part, char out[64]) {
    const ts_bucket *b = &w->group->config->bucket[bucket];
    snprintf(out, 64, "shard-%06" PRId64 "-%" PRId64 "x%" PRId64 "x%" PRId64 "-%03d.h5", w->group->number, b->width,
             b->height, b->frames, part);
}

static int finish_shard(work *w, int bucket) {
    lane *l = &w->lane[bucket];
    if (!l->writer) {
        return TS_OK;
    }
    char name[64], path[PATH_MAX], sum_text[17];
    int64_t count;
    uint64_t sum;
    TS_TRY(ts_shard_writer_commit(&l->writer, &count, &sum));
    shard_name(w, bucket, l->parts++, name);
    TS_TRY(ts_path_join(path, sizeof path, w->group->config->out, name));
    snprintf(sum_text, sizeof sum_text, "%016" PRIx64, sum);
    json_t *shard = json_pack("{s:s, s:i, s:[I,I,I,I], s:I, s:I, s:s}", "name", name, "bucket", bucket, "shape",
                              (json_int_t)l->latent.dim[0], (json_int_t)l->latent.dim[1], (json_int_t)l->latent.dim[2],
                              (json_int_t)l->latent.dim[3], "count", (json_int_t)count, "bytes",
                              (json_int_t)ts_path_bytes(path), "sum", sum_text);
    return json_array_append_new(w->shards, shard) ? TS_FAIL(TS_ERESOURCE, "out of memory") : TS_OK;
}

static int add_to_shard(work *w, int bucket, const ts_clip_record *record) {
    lane *l = &w->lane[bucket];
    if (l->writer && l->clips >= shard_room(w, l)) {
        TS_TRY(finish_shard(w, bucket));
    }
    if (!l->writer) {
        char name[64], path[PATH_MAX];
        shard_name(w, bucket, l->parts, name);
        TS_TRY(ts_path_join(path, sizeof path, w->group->config->out, name));
        TS_TRY(ts_shard_writer_open(&l->writer, path, l->latent, w->codec_fingerprint));
        l->clips = 0;
    }
    TS_TRY(ts_shard_writer_add(l->writer, w->latent, record));
    l->clips++;
    const int64_t positions = ts_shape_count(l->latent) / w->channels;
    for (int64_t i = 0; i < positions; i++) {
        for (int64_t c = 0; c < w->channels; c++) {
            const double stored = (double)ts_bf16_to_f32(ts_f32_to_bf16(w->latent[i * w->channels + c]));
            w->sum[c] += stored;
            w->square[c] += stored * stored;
        }
    }
    w->elements += positions;
    return TS_OK;
}

// ---- one file

static int skip_file(work *w, const ts_captioned_file *file, const char *kind, const char *reason) {
    TS_DEBUG("skipped: %s", reason);
    json_t *text = json_string(reason);
    text = text ? text : json_string("its message was cut within a letter");
    json_t *entry = json_pack("{s:s, s:s, s:o}", "file_name", file->path, "kind", kind, "reason", text);
    return json_array_append_new(w->skipped, entry) ? TS_FAIL(TS_ERESOURCE, "out of memory") : TS_OK;
}

// Reads and encodes the whole file into the spool.
static int spool_file(work *w, ts_clip_reader *reader, int64_t *clips) {
    if (ftruncate(w->spool, 0) || lseek(w->spool, 0, SEEK_SET)) {
        return TS_FAIL(TS_ERESOURCE, "spool: %s", strerror(errno));
    }
    ts_clip clip;
    int status;
    while (!(status = ts_clip_reader_next(reader, &clip))) {
        const int bucket = ts_clip_reader_bucket(reader);
        const ts_bucket *b = &w->group->config->bucket[bucket];
        TS_TRY(ts_codec_encode(w->group->codec, clip.pixels, b->frames, b->height, b->width, w->latent));
        TS_TRY(spool_clip(w, &clip, (size_t)ts_shape_count(w->lane[bucket].latent) * sizeof(float)));
        ++*clips;
    }
    return status == TS_EOF ? TS_OK : status;
}

static int keep_clips(work *w, const ts_captioned_file *file, int bucket, int64_t clips) {
    const size_t latent_bytes = (size_t)ts_shape_count(w->lane[bucket].latent) * sizeof(float);
    for (int64_t i = 0; i < clips; i++) {
        span s;
        TS_TRY(read_spool(w, i, latent_bytes, &s));
        const ts_clip_record record = {.source = file->path,
                                       .caption = file->caption,
                                       .start = s.start,
                                       .end = s.end,
                                       .fps = w->group->config->fps};
        TS_TRY(add_to_shard(w, bucket, &record));
    }
    return TS_OK;
}

static int ingest_file(work *w, const ts_captioned_file *file, int64_t *clips) {
    char path[PATH_MAX];
    TS_TRY(ts_path_join(path, sizeof path, source_folder(w), file->path));
    *clips = 0;
    ts_clip_reader *reader;
    int status = ts_clip_reader_open(&reader, path, &w->clip_params);
    if (status) {
        return status == TS_EINPUT ? skip_file(w, file, "unreadable", ts_error_text()) : status;
    }
    status = spool_file(w, reader, clips);
    const int64_t damaged = ts_clip_reader_damaged(reader);
    const int bucket = ts_clip_reader_bucket(reader);
    ts_clip_reader_close(&reader);
    if (status == TS_EINPUT) {
        *clips = 0;
        return skip_file(w, file, damaged ? "damaged" : "unreadable", ts_error_text());
    }
    TS_TRY(status);
    if (*clips == 0) {
        char reason[PATH_MAX + 64];
        snprintf(reason, sizeof reason, "%s: too short for every bucket at %g frames a second", path,
                 w->group->config->fps);
        return skip_file(w, file, "short", reason);
    }
    w->kept++;
    w->damaged += damaged;
    return keep_clips(w, file, bucket, *clips);
}

// ---- the group

static int open_work(work *w, const ts_ingest_group *group) {
    const ts_ingest_config *config = group->config;
    const ts_codec_info codec = ts_codec_get_info(group->codec);
    *w = (work){.group = group,
                .clip_params = ts_ingest_clip_params(config),
                .channels = codec.channels,
                .codec_fingerprint = codec.fingerprint,
                .spool = -1,
                .lane = ts_calloc((size_t)config->bucket_count, sizeof(lane)),
                .sum = ts_calloc((size_t)codec.channels, sizeof(double)),
                .square = ts_calloc((size_t)codec.channels, sizeof(double)),
                .shards = json_array(),
                .skipped = json_array()};
    if (!w->lane || !w->sum || !w->square || !w->shards || !w->skipped) {
        return TS_FAIL(TS_ERESOURCE, "out of memory");
    }
    int64_t largest = 0;
    for (int i = 0; i < config->bucket_count; i++) {
        const ts_bucket *b = &config->bucket[i];
        w->lane[i].latent = TS_SHAPE(1 + (b->frames - 1) / codec.time_factor, b->height / codec.space_factor,
                                     b->width / codec.space_factor, codec.channels);
        const int64_t count = ts_shape_count(w->lane[i].latent);
        largest = count > largest ? count : largest;
    }
    w->latent = ts_aligned_alloc((size_t)largest * sizeof *w->latent);
    return w->latent ? open_spool(w) : TS_ERESOURCE;
}

static void close_work(work *w) {
    for (int i = 0; w->lane && i < w->group->config->bucket_count; i++) {
        ts_shard_writer_abandon(&w->lane[i].writer);
    }
    if (w->spool >= 0) {
        close(w->spool);
    }
    free(w->lane);
    free(w->latent);
    free(w->sum);
    free(w->square);
    json_decref(w->shards);
    json_decref(w->skipped);
}

static json_t *real_array(const double *values, int64_t count) {
    json_t *array = json_array();
    for (int64_t i = 0; i < count; i++) {
        json_array_append_new(array, json_real(values[i]));
    }
    return array;
}

static int make_record(const work *w, json_t **record) {
    *record = json_pack("{s:I, s:I, s:O, s:O, s:{s:I, s:o, s:o}}", "kept", (json_int_t)w->kept, "damaged",
                        (json_int_t)w->damaged, "shards", w->shards, "skipped", w->skipped, "latent", "count",
                        (json_int_t)w->elements, "sum", real_array(w->sum, w->channels), "square",
                        real_array(w->square, w->channels));
    return *record ? TS_OK : TS_FAIL(TS_ERESOURCE, "out of memory");
}

int ts_ingest_group_run(const ts_ingest_group *group, void (*on_file)(void *context, int64_t clips), void *context,
                        json_t **record) {
    *record = NULL;
    work w;
    int status = open_work(&w, group);
    for (int64_t i = 0; i < group->count && !status; i++) {
        int64_t clips;
        status = ingest_file(&w, &group->file[i], &clips);
        if (!status) {
            on_file(context, clips);
        }
    }
    for (int i = 0; i < group->config->bucket_count && !status; i++) {
        status = finish_shard(&w, i);
    }
    status = status ? status : make_record(&w, record);
    close_work(&w);
    return status;
}
