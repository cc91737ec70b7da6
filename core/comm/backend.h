// SPDX-License-Identifier: Apache-2.0
// The kernel table that the ranks of a run compute with.
#ifndef TS_COMM_BACKEND_H
#define TS_COMM_BACKEND_H

#include "core/comm/comm.h"
#include "core/kernels/kernels.h"

// ts_kernels_open for this rank's place on its host, agreed on: all ranks compute on the host, or none. TS_EUSAGE, with
// a rank of each kind named, when "auto" finds a GPU for some of them only. Collective over `world`, the same status on
// all ranks.
int ts_backend_open(const ts_kernels **out, ts_comm *world, const char *device);

#endif
