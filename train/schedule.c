// SPDX-License-Identifier: Apache-2.0
#include "train/schedule.h"

#include <math.h>

double ts_lr_at(const ts_lr_schedule *schedule, int64_t step) {
    if (step < schedule->warmup) {
        return schedule->peak * (double)step / (double)schedule->warmup;
    }
    if (schedule->constant) {
        return schedule->peak;
    }
    const int64_t length = schedule->steps - schedule->warmup;
    double done = length > 0 ? (double)(step - schedule->warmup) / (double)length : 1.0;
    done = fmin(done, 1.0);
    const double half_cosine = 0.5 * (1.0 + cos(3.14159265358979323846 * done));
    return schedule->peak * (schedule->final_share + (1.0 - schedule->final_share) * half_cosine);
}

double ts_ema_decay_at(double decay, int64_t warmup, int64_t step) {
    return fmin(decay, (double)step / (double)(step + warmup));
}
