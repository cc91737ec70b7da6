// SPDX-License-Identifier: Apache-2.0
// `tessera check`: does what we compute equal what it should?
//
//   tessera check parity --model DIR --io FILE [--grads FILE] [--mesh MESH] [--device D]
//                                                                             a component against its reference
//   tessera check checkpoint DIR                                                core/store/checkpoint_check.h
//
// DIR of the first is a component's folder in diffusers' or transformers' layout; config.json tells which. FILE holds
// its inputs and any of its outputs and intermediates under the names of the probes (see dit.h and text.h), in the
// reference's layouts ([B, C, T, H, W] for video). One row is printed for each tensor compared.
//
// On several ranks a transformer is sharded as --mesh says: samples are dealt out over the data axis, and what the
// ranks have of a value or a gradient is put together before it is compared.
#ifndef TS_MODEL_PARITY_H
#define TS_MODEL_PARITY_H

#include "core/comm/comm.h"

// TS_EINPUT when a tensor exceeds the tolerance. Collective over `world`.
int ts_command_check(ts_comm *world, int argc, char **argv);

#endif
