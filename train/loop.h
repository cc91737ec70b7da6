// SPDX-License-Identifier: Apache-2.0
// The training run: run folder, resume, steps, validation, samples, checkpoints, signals, export.
#ifndef TS_TRAIN_LOOP_H
#define TS_TRAIN_LOOP_H

#include "core/base/arena.h"
#include "core/comm/comm.h"
#include "train/config.h"

// Trains to the end of the schedule, or goes on from the newest checkpoint of config->out. On SIGTERM, SIGUSR1 or
// SIGINT (on any rank) it writes a checkpoint within one step and returns TS_ESTOPPED. Collective.
int ts_train_run(const ts_train_config *config, ts_arena *arena, ts_comm *world);

#endif
