// SPDX-License-Identifier: Apache-2.0
// tessera train CONFIG.yaml [--key=value ...]
#ifndef TS_TRAIN_TRAIN_H
#define TS_TRAIN_TRAIN_H

#include "core/comm/comm.h"

// Collective over `world`. argv[0] is "train". Returns a status; TS_ESTOPPED after a signal and a checkpoint.
int ts_command_train(ts_comm *world, int argc, char **argv);

#endif
