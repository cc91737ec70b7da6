// SPDX-License-Identifier: Apache-2.0
// Gradient reduction over the data axis.
#ifndef TS_TRAIN_REDUCE_H
#define TS_TRAIN_REDUCE_H

#include <stdint.h>

#include "core/comm/comm.h"

// grad [count] becomes its sum over the ranks of `data`. Collective; nothing happens on one rank.
int ts_reduce_gradients(ts_comm *data, float *grad, int64_t count);

#endif
