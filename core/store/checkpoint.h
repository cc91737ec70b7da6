// SPDX-License-Identifier: Apache-2.0
// Checkpoints that open on any mesh: whole tensors under their global names, written by all ranks, each its own
// numbers, in the same bytes whatever mesh wrote them.
//
//   DIR/step-00001234/GROUP.safetensors   "weights", "ema", "moment1", "moment2"; F32
//   DIR/step-00001234/manifest.json       its own sum, version, step, state; of each file the bytes, the sum of its
//                                         header and the element sum of every tensor
//
// A checkpoint is made in DIR/step-00001234.tmp, synced, read back, renamed. It is acknowledged only after that, so a
// kill at any instant leaves the one before it whole. The sums are taken from memory; every byte of the folder is under
// one of them, so damage is found wherever it is.
#ifndef TS_STORE_CHECKPOINT_H
#define TS_STORE_CHECKPOINT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/comm/comm.h"
#include "core/store/safetensors.h"
#include "core/store/slice.h"

// One named group of tensors and its file: whole shapes, F32; their data is not looked at.
typedef struct ts_checkpoint_group {
    const char *name;
    const ts_safetensors_item *items;
    int64_t count;
} ts_checkpoint_group;

// Numbers of this rank: part of an item of a group.
typedef struct ts_checkpoint_part {
    int group;
    int64_t item;
    ts_slice slice;
} ts_checkpoint_part;

// The groups are alike on all ranks; every element of them is in exactly one part of one rank.
typedef struct ts_checkpoint_content {
    const ts_checkpoint_group *group;
    int groups;
    const ts_checkpoint_part *part;
    int64_t parts;
} ts_checkpoint_content;

// ---- saving

typedef struct ts_checkpoint_params {
    const char *folder;
    int64_t step;
    // Free-form JSON, of rank 0: step, data cursor, RNG seed, mesh. Must not change until the save is over.
    json_t *state;
    // Of the checkpoints up to `step`, the newest `keep` stay (0: all), and those whose step is a multiple of
    // `keep_every` (0: none). Those of later steps, which a run that had to start further back may find, are left
    // alone.
    int64_t keep, keep_every;
    ts_comm *world;
} ts_checkpoint_params;

typedef struct ts_checkpoint_save ts_checkpoint_save;

// Begins a save and returns when the files are there; a thread of each rank reads the numbers, writes and checks.
// `params` and `content` are copied, but for the names and the numbers, which must stay. Collective.
int ts_checkpoint_save_start(ts_checkpoint_save **out, const ts_checkpoint_params *params,
                             const ts_checkpoint_content *content);
// Waits until this rank's numbers have been read: from now on they may change. NULL is none under way. Not collective.
void ts_checkpoint_save_settle(ts_checkpoint_save *save);
// Whether this rank has nothing left to do before the ranks move the save on together. Not collective.
bool ts_checkpoint_save_idle(const ts_checkpoint_save *save);
// Moves the save on, when all ranks are idle or to wait until they are. *done: it is acknowledged and closed. So it is
// after an error, the same on all ranks, which leaves the folder as it was. Collective.
int ts_checkpoint_save_advance(ts_checkpoint_save **save, bool *done);
// Waits for the end, and closes. Collective.
int ts_checkpoint_save_finish(ts_checkpoint_save **save);
// Gives up what is not acknowledged. Not collective.
void ts_checkpoint_save_close(ts_checkpoint_save **save);
int64_t ts_checkpoint_save_bytes(const ts_checkpoint_save *save);  // of all files
int64_t ts_checkpoint_save_step(const ts_checkpoint_save *save);

// Start and finish at once. Collective.
int ts_checkpoint_save_now(const ts_checkpoint_params *params, const ts_checkpoint_content *content);

// ---- loading

// Whether this state may be gone on from, and its taking over; `path` for messages. The same answer on all ranks.
typedef int ts_checkpoint_accept(void *context, const json_t *state, const char *path);
// Fills the numbers of `content` from the newest checkpoint that is whole; damaged ones are named in a warning and
// passed over. What `accept` refuses, and a whole checkpoint of other tensors, is an error. *step is -1 when the folder
// has no checkpoints; when none of them is whole, TS_EINPUT. Collective.
int ts_checkpoint_restore(const char *folder, const ts_checkpoint_content *content, ts_checkpoint_accept *accept,
                          void *context, ts_comm *world, int64_t *step);

// Newest checkpoint in `folder` that verifies; damaged ones are named in a warning and passed over. *step -1 when none.
// Collective.
int ts_checkpoint_find(const char *folder, ts_comm *world, int64_t *step, char *path, size_t path_bytes);
// Compares every byte with the sums; each rank reads a share. TS_EINPUT when damaged. `damaged`, when not NULL, is a
// JSON array to which a text is added for each thing that is. Collective.
int ts_checkpoint_verify(const char *path, ts_comm *world, json_t *damaged);
int ts_checkpoint_read_state(const char *path, json_t **state);  // new reference
// Opens the group's file for ts_safetensors_read_f32.
int ts_checkpoint_open_group(const char *path, const char *group, ts_safetensors **out);

#endif
