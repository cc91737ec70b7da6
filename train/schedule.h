// SPDX-License-Identifier: Apache-2.0
// The learning rate and the moving average's decay as pure functions of the step, so that a resumed run needs no state.
#ifndef TS_TRAIN_SCHEDULE_H
#define TS_TRAIN_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct ts_lr_schedule {
    double peak;
    int64_t warmup, steps;
    double final_share;  // of the peak, at the last step
    bool constant;       // stay at the peak after the warm-up
} ts_lr_schedule;

// Learning rate of step 1..steps: peak * step / warmup while warming up, then half a cosine down to final_share * peak.
double ts_lr_at(const ts_lr_schedule *schedule, int64_t step);

// Decay of the moving average at step 1, 2, ...: min(decay, step / (step + warmup)), so that the average forgets the
// random start quickly.
double ts_ema_decay_at(double decay, int64_t warmup, int64_t step);

#endif
