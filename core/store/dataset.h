// SPDX-License-Identifier: Apache-2.0
// The data set on disk: manifest.json and *.h5 shards of one latent shape each: contiguous bf16 latents, a byte heap of
// captions, a table of clips. Readers take latents by pread at the place that HDF5 tells.
//
//   DIR/manifest.json       version, fingerprints, shards with counts, shapes and XXH3 sums, counts of skipped sources
//   DIR/codec/              the codec that made the latents
//   DIR/tokenizer/          the tokenizer built from the captions
//   DIR/shard-*.h5          /latents u16 (bf16) [N, T, H, W, C]; /caption/bytes u8, /caption/offsets i64 [N+1];
//                           /clip: id, source, start, end (seconds), fps
#ifndef TS_STORE_DATASET_H
#define TS_STORE_DATASET_H

#include <stdint.h>

#include "core/tensor/tensor.h"

enum { TS_DATASET_VERSION = 1 };

// ---- one shard being written (serial HDF5, one owner)
typedef struct ts_clip_record {
    const char *source;   // path relative to the corpus
    const char *caption;  // UTF-8
    double start, end;    // seconds in the source
    double fps;           // of the clip as encoded
} ts_clip_record;

typedef struct ts_shard_writer ts_shard_writer;
// latent_shape: [T, H, W, C]. Writes to path.tmp.
int ts_shard_writer_open(ts_shard_writer **out, const char *path, ts_shape latent_shape, uint64_t codec_fingerprint);
int ts_shard_writer_add(ts_shard_writer *writer, const float *latent, const ts_clip_record *clip);
// Finishes: writes the file, syncs, renames. *count clips and the file's XXH3; no clips, no file. On failure or abandon
// nothing remains.
int ts_shard_writer_commit(ts_shard_writer **writer, int64_t *count, uint64_t *sum);
void ts_shard_writer_abandon(ts_shard_writer **writer);

// ---- the manifest
typedef struct ts_shard_info {
    char name[64];
    ts_shape shape;  // [T, H, W, C] of each clip
    int64_t count;
    int64_t bytes;
    uint64_t sum;  // XXH3-64 of the file
} ts_shard_info;

typedef struct ts_manifest {
    uint64_t codec_fingerprint, tokenizer_fingerprint, transform_fingerprint;
    int64_t shard_count;
    ts_shard_info *shard;    // sorted by name
    int64_t skipped;         // sources or clips left out, with reasons in skipped.jsonl
    double latent_variance;  // mean over elements; what the best constant prediction of x0 leaves
} ts_manifest;
int ts_manifest_write(const char *folder, const ts_manifest *manifest);
int ts_manifest_read(const char *folder, ts_manifest *out);
void ts_manifest_free(ts_manifest *manifest);

// ---- reading
typedef struct ts_dataset ts_dataset;
// Opens every shard: sizes, shapes, version and fingerprints are checked before anything is allocated from them;
// external storage, links and filters are refused. verify_sums also hashes the files.
int ts_dataset_open(ts_dataset **out, const char *folder, bool verify_sums);
void ts_dataset_close(ts_dataset **dataset);
const ts_manifest *ts_dataset_manifest(const ts_dataset *dataset);
int64_t ts_dataset_clips(const ts_dataset *dataset);
// Clips are numbered 0..clips-1 in manifest order. The shape's index counts the distinct shapes ("buckets").
int ts_dataset_buckets(const ts_dataset *dataset);
ts_shape ts_dataset_bucket_shape(const ts_dataset *dataset, int bucket);
int ts_dataset_bucket_of(const ts_dataset *dataset, int64_t clip);
const char *ts_dataset_caption(const ts_dataset *dataset, int64_t clip);  // NUL-terminated, borrowed
const char *ts_dataset_source(const ts_dataset *dataset, int64_t clip);
double ts_dataset_fps(const ts_dataset *dataset, int64_t clip);
// latent: [T, H, W, C] bf16. Thread-safe.
int ts_dataset_read_latent(const ts_dataset *dataset, int64_t clip, uint16_t *latent);
// Hash of manifest content: what the sample order depends on.
uint64_t ts_dataset_fingerprint(const ts_dataset *dataset);

#endif
