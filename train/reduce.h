// SPDX-License-Identifier: Apache-2.0
// Gradient reduction over the data axis, in buckets of the flat array.
#ifndef TS_TRAIN_REDUCE_H
#define TS_TRAIN_REDUCE_H

#include <stdint.h>

#include "core/comm/comm.h"

// A reduction under way. Buckets are started in order and a few are kept in flight, so the transport overlaps them.
enum { TS_REDUCE_BUCKET = 1 << 22, TS_REDUCE_IN_FLIGHT = 4 };

// grad [count] becomes its sum over the ranks of `data`. Collective; nothing happens on one rank.
int ts_reduce_gradients(ts_comm *data, float *grad, int64_t count);

#endif
