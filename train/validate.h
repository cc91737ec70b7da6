// SPDX-License-Identifier: Apache-2.0
// Validation: fixed clips, fixed noise, fixed noise levels, so that two figures differ only by the weights.
//
// Level i of n is sigma = (i + 0.5) / n for all frames. The noise of (clip, level) is Philox keyed by (seed,
// TS_RNG_VALIDATION, clip * n + level). The loss is the mean squared error of the velocity per element.
//
// The other noise patterns that training has a weight for are measured when asked for, each at the price of the first:
// the same clips, levels and noise, but which frames are held, clean and without loss, is drawn for each clip as
// training draws it; where every frame has its own level, frame t takes those of the clip in another order, level
// (i + shift(t)) % n. A clip that is too short for a pattern is passed over in its mean.
//
// The yardstick is the best constant prediction, one number per channel: against v = eps - x0 that is minus the mean
// of x0 over the channel and leaves 1 + variance of x0 within the channel, averaged over channels. It does not depend
// on the level. A model that ignores its input cannot do better; `share` is loss / constant.
#ifndef TS_TRAIN_VALIDATE_H
#define TS_TRAIN_VALIDATE_H

#include <stdint.h>

#include "core/comm/mesh.h"
#include "core/model/model.h"
#include "core/store/dataset.h"
#include "train/objective.h"

typedef struct ts_validation ts_validation;

typedef struct ts_pattern_loss {
    bool measured;  // false: not asked for, without a weight in training, or no clip is long enough
    double weight;  // the pattern's share of training
    double loss;    // mean over levels and elements that are not held
    double share;   // loss / constant
} ts_pattern_loss;

typedef struct ts_validation_result {
    int64_t levels;
    const double *level_loss;                   // [levels] borrowed from the validation
    double loss;                                // mean over levels
    double constant;                            // loss of the best constant prediction
    double share;                               // loss / constant
    ts_pattern_loss pattern[TS_PATTERN_COUNT];  // TS_PATTERN_ALL is `loss`, always measured
} ts_validation_result;

typedef struct ts_validation_params {
    const int64_t *clips;  // [count] numbers in the data set, alike on all ranks
    int64_t count, levels;
    uint64_t seed;
    int64_t batch;                     // clips computed at once on a rank
    double pattern[TS_PATTERN_COUNT];  // weights, as those of ts_objective
} ts_validation_params;

// What one batch of clips of shape [T, H, W, C] needs besides the model.
typedef struct ts_validation_arrays {
    float *x0, *x, *target;            // [clips, T, H, W, C], on the tape's device
    float *sigma, *timestep, *weight;  // [clips, T], on the host
} ts_validation_arrays;
int ts_validation_allocate(ts_validation_arrays *out, ts_tape *tape, int64_t clips, ts_shape shape);

// Reads this rank's share of the clips, which are dealt out over the data axis; captions stay borrowed from the data
// set. Collective over `mesh`, which is borrowed.
int ts_validation_open(ts_validation **out, const ts_dataset *dataset, const ts_validation_params *params,
                       const ts_mesh *mesh);
void ts_validation_close(ts_validation **validation);
// Runs the model as it stands (its `value` and operands), on all patterns or only on TS_PATTERN_ALL. Resets `tape` and
// leaves it in record mode. Collective.
int ts_validation_run(ts_validation *validation, const ts_model *model, ts_tape *tape, bool all_patterns,
                      ts_validation_result *out);

#endif
