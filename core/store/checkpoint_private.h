// SPDX-License-Identifier: Apache-2.0
// Inside the checkpoint: what saving, loading and checking share.
#ifndef TS_STORE_CHECKPOINT_PRIVATE_H
#define TS_STORE_CHECKPOINT_PRIVATE_H

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/store/checkpoint.h"

// ---- the folder (checkpoint_folder.c)

int ts_checkpoint_step_path(char out[TS_PATH_BYTES], const char *folder, int64_t step, const char *ending);
// The step of "step-00001234", or -1 for any other name.
int64_t ts_checkpoint_parse_name(const char *name);
// Steps that have a folder, rising. The caller frees *out. A missing folder has none.
int ts_checkpoint_list(const char *folder, int64_t **out, int64_t *count);
// The same as rank 0 sees it, on all ranks. Collective.
int ts_checkpoint_list_all(const char *folder, ts_comm *world, int64_t **out, int64_t *count);
// What interrupted saves and removals left behind.
int ts_checkpoint_remove_temporaries(const char *folder);
int ts_checkpoint_retain(const char *folder, int64_t newest, int64_t keep, int64_t keep_every);

// ---- one checkpoint (checkpoint_manifest.c)

// A tensor in an open file, and what its numbers should sum to.
typedef struct ts_stored_tensor {
    const char *name;
    ts_slice_file file;
    int64_t count;
    uint64_t sum;
} ts_stored_tensor;

typedef struct ts_stored_file {
    char name[128];  // "weights.safetensors"
    ts_safetensors *content;
    int64_t first;  // of its tensors, which are in the order of ts_safetensors_at
} ts_stored_file;

// A checkpoint whose manifest and headers are what they were; whether the numbers are is not yet known.
typedef struct ts_stored {
    ts_arena *arena;
    json_t *manifest;
    ts_stored_file *file;
    int files;
    ts_stored_tensor *tensor;
    int64_t tensors;
} ts_stored;

int ts_stored_open(ts_stored **out, const char *path);
void ts_stored_close(ts_stored **stored);
// Adds the element sums of share `part` of `parts` of all numbers to sum [tensors].
int ts_stored_sum_share(const ts_stored_tensor *tensor, int64_t tensors, int part, int parts, uint64_t *sum);

// Adds up the sums of all ranks, modulo 2^64, for each of them. Collective.
int ts_checkpoint_add_sums(uint64_t *sum, int64_t count, ts_comm *world);

// What the manifest says of one file.
typedef struct ts_manifest_file {
    const char *group;
    int64_t bytes, tensors;
    uint64_t header_sum;
    const ts_stored_tensor *tensor;
} ts_manifest_file;
int ts_checkpoint_write_manifest(const char *folder, int64_t step, json_t *state, const ts_manifest_file *file,
                                 int files);
// Whether two checkpoints hold the same files; what their states say may differ in a clock.
int ts_checkpoint_same_files(const char *path, const char *other, bool *same);

#endif
