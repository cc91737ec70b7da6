// SPDX-License-Identifier: Apache-2.0
// Checkpoints: DIR/step-00001234/ holding manifest.json and safetensors files, made in DIR/step-00001234.tmp, synced,
// renamed, then re-opened and verified. A checkpoint is acknowledged only after that, so a kill at any instant leaves
// the previous one whole.
#ifndef TS_STORE_CHECKPOINT_H
#define TS_STORE_CHECKPOINT_H

#include <jansson.h>
#include <stdint.h>

#include "core/comm/comm.h"
#include "core/store/safetensors.h"

// One named group of tensors and its file: "weights", "ema", "moment1", "moment2". data is F32.
typedef struct ts_checkpoint_group {
    const char *name;
    const ts_safetensors_item *items;
    int64_t count;
} ts_checkpoint_group;

// Collective over `world`: rank 0 writes (state is replicated over the data axis), all ranks return the same status.
// `state` is free-form JSON: step, data cursor, losses, RNG seed, mesh. Of the checkpoints up to `step` the newest
// `keep` stay; keep 0 = all. Those of later steps, which a run that had to start further back may find, are left alone.
int ts_checkpoint_save(const char *folder, int64_t step, const json_t *state, const ts_checkpoint_group *groups,
                       int64_t group_count, int64_t keep, ts_comm *world);

// Newest checkpoint in `folder` that verifies; damaged ones are named in a warning and passed over. *step -1 when none.
// Collective; rank 0 looks, all learn.
int ts_checkpoint_find(const char *folder, ts_comm *world, int64_t *step, char *path, size_t path_bytes);
// Checks the manifest, the sizes and the XXH3 sums of every file.
int ts_checkpoint_verify(const char *path);
int ts_checkpoint_read_state(const char *path, json_t **state);  // new reference
// Opens the group's file for ts_safetensors_read_f32.
int ts_checkpoint_open_group(const char *path, const char *group, ts_safetensors **out);

#endif
