// SPDX-License-Identifier: Apache-2.0
// The loader: batches as a pure function of (data set, seed, epoch), independent of the number of ranks.
//
// Global batch k of an epoch holds `batch` clips of one bucket (latent shape): clips of each bucket are permuted, cut
// into full batches, and the batches of all buckets are permuted. What does not fill a batch waits for the next epoch.
// Rank r of n takes items [r*batch/n, (r+1)*batch/n) (uneven counts are fine). Latents are read ahead by one thread, in
// the form that the device wants which will compute with them: f32 for the host; for another as stored, half the bytes
// to send, in memory that it reads by itself.
#ifndef TS_DATA_LOADER_H
#define TS_DATA_LOADER_H

#include <stdint.h>

#include "core/store/dataset.h"

typedef struct ts_loader_params {
    int64_t batch;  // global
    uint64_t seed;
    int rank, size;           // of the data axis
    int64_t held_out;         // clips of the validation set, taken off the training order (chosen by seed)
    const ts_device *device;  // that batches are for; NULL: the host
} ts_loader_params;

// Which batch comes next: saved in checkpoints.
typedef struct ts_cursor {
    int64_t epoch, batch;  // batch within the epoch
    int64_t samples;       // global samples consumed: the index of noise draws
} ts_cursor;

typedef struct ts_batch {
    int64_t count;  // local items; may be 0 on some ranks
    int64_t global_count;
    int64_t first_sample;  // global sample number of the first local item: keys its noise
    int bucket;
    ts_shape shape;  // [T, H, W, C] of one item
    // [count, T, H, W, C], borrowed until the next call: f32 where they are for the host ..
    const float *latent;
    const uint16_t *bits;        // .. else bf16, of the device's allocate_host, for upload_held; the other one is NULL
    const int64_t *clip;         // [count] clip numbers
    const char *const *caption;  // [count] borrowed from the data set
    ts_cursor cursor, next;      // of this batch, and of the one after it
} ts_batch;

typedef struct ts_loader ts_loader;
// `dataset` is borrowed.
int ts_loader_open(ts_loader **out, const ts_dataset *dataset, const ts_loader_params *params);
void ts_loader_close(ts_loader **loader);
// Starts (or goes on) at `cursor`; its epoch and batch decide, samples is carried along.
int ts_loader_seek(ts_loader *loader, ts_cursor cursor);
// Next batch; rolls over into the next epoch. Not collective.
int ts_loader_next(ts_loader *loader, ts_batch *out);
// Seconds spent waiting for data since the last call of this function.
double ts_loader_wait_seconds(ts_loader *loader);
int64_t ts_loader_batches_per_epoch(const ts_loader *loader);
// The validation clips, in a fixed order, all ranks alike.
int64_t ts_loader_validation(const ts_loader *loader, const int64_t **clips);

#endif
