// SPDX-License-Identifier: Apache-2.0
// A trainer's state to and from checkpoints: weights, their average, both moments, step and data cursor.
// A restored trainer goes on bit for bit as if it had never stopped, on the same mesh; on another one it goes on from
// the same bits.
#ifndef TS_TRAIN_STATE_H
#define TS_TRAIN_STATE_H

#include <stdbool.h>

#include "core/store/checkpoint.h"
#include "train/trainer.h"

// Begins to write folder/step-NNNNNNNN, and to drop what checkpoint.keep and keep_every let go. `config_json` is the
// text of ts_options_to_json. The trainer may go on at once, but settles the save before it changes a weight, a moment
// or the average. Collective.
int ts_state_save_start(ts_checkpoint_save **out, const ts_trainer *trainer, const char *folder,
                        const char *config_json);

// Reads the newest checkpoint of `folder` that is whole; *restored is false when there is none. Refuses one made with
// options or data that would train something else, and a folder whose checkpoints are all damaged. Collective.
int ts_state_restore(ts_trainer *trainer, const char *folder, const char *config_json, bool *restored);

#endif
