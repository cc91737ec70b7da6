// SPDX-License-Identifier: Apache-2.0
// `tessera check checkpoint DIR`: is every byte what was written?
//
// DIR is a run, its folder of checkpoints, or one checkpoint. One row is printed for each checkpoint: step, the mesh
// that wrote it, tensors, bytes, and whether it is whole or what of it is damaged. On several ranks each reads a share.
#ifndef TS_STORE_CHECKPOINT_CHECK_H
#define TS_STORE_CHECKPOINT_CHECK_H

#include "core/comm/comm.h"

// TS_EINPUT when one is damaged, or when there is none. Collective over `world`.
int ts_command_check_checkpoint(ts_comm *world, int argc, char **argv);

#endif
