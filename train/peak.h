// SPDX-License-Identifier: Apache-2.0
// The machine's peak as training sees it: what share of it a run achieves is the figure that travels between machines.
#ifndef TS_TRAIN_PEAK_H
#define TS_TRAIN_PEAK_H

#include "core/comm/comm.h"
#include "core/kernels/kernels.h"

// FLOP/s of a square matrix product that fits the caches, best of many, on all ranks at once and summed over them.
// A fifth of a second. Collective.
int ts_peak_measure(const ts_kernels *kernels, ts_dtype dtype, ts_comm *world, double *flops_per_second);

#endif
