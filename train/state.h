// SPDX-License-Identifier: Apache-2.0
// A trainer's state to and from checkpoints: weights, their average, both moments, step and data cursor.
// A restored trainer goes on bit for bit as if it had never stopped.
#ifndef TS_TRAIN_STATE_H
#define TS_TRAIN_STATE_H

#include <stdbool.h>

#include "train/trainer.h"

// Writes folder/step-NNNNNNNN and drops all but the newest `keep`. First makes sure that all ranks hold the same
// weights. `config_json` is the text of ts_options_to_json. Collective.
int ts_state_save(const ts_trainer *trainer, const char *folder, const char *config_json, int64_t keep);

// Reads the newest checkpoint of `folder` that verifies; *restored is false when there is none. Refuses one made with
// options or data that would train something else, and a folder whose checkpoints are all damaged. Collective.
int ts_state_restore(ts_trainer *trainer, const char *folder, const char *config_json, bool *restored);

#endif
