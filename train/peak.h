// SPDX-License-Identifier: Apache-2.0
// The machine's peak as training sees it: what share of it a run achieves is the figure that travels between machines.
#ifndef TS_TRAIN_PEAK_H
#define TS_TRAIN_PEAK_H

#include "core/comm/comm.h"
#include "core/kernels/kernels.h"

// FLOP/s of a square matrix product, best of many, on all ranks at once and summed over them. On the host it fits the
// caches; on a GPU it is as large as fills the chip, 4096 on a side at most. A fifth of a second. Collective.
int ts_peak_measure(const ts_kernels *kernels, ts_dtype dtype, ts_comm *world, double *flops_per_second);

#endif
