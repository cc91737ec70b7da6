// SPDX-License-Identifier: Apache-2.0
// Flow matching with a noise level for every latent frame.
//
//   x_sigma = (1 - sigma) x0 + sigma eps        target v = eps - x0
//
// Lipman et al. 2023, "Flow matching for generative modeling"; logit-normal levels: Esser et al. 2024, "Scaling
// rectified flow transformers". Held frames are given clean (sigma 0) and carry no loss, so that one model learns to
// generate, animate, extend and in-fill.
//
// Every draw is Philox keyed by the global sample number: any rank can draw for any sample, and the number of frames
// that carry loss in a global batch needs no message.
#ifndef TS_TRAIN_OBJECTIVE_H
#define TS_TRAIN_OBJECTIVE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/nn/tape.h"
#include "train/config.h"

// Values index the weights; a pattern that needs more frames than a sample has falls back to TS_PATTERN_ALL.
typedef enum {
    TS_PATTERN_ALL,          // one level
    TS_PATTERN_PREFIX,       // the first 1..T-1 frames held
    TS_PATTERN_SUFFIX,       // the last 1..T-1 frames held
    TS_PATTERN_BOTH_ENDS,    // some of both; needs T >= 3
    TS_PATTERN_SCATTERED,    // 1..T-1 frames held, any subset equally likely for its size
    TS_PATTERN_INDEPENDENT,  // a level for each frame
    TS_PATTERN_COUNT
} ts_pattern;
extern const char *const ts_pattern_names[TS_PATTERN_COUNT];  // as patterns.* spells them

typedef struct ts_objective {
    uint64_t seed;
    double mean, std, shift, uniform_share;  // of the noise levels
    double text_dropout;
    double pattern[TS_PATTERN_COUNT];  // weights, not all 0
} ts_objective;

enum { TS_OBJECTIVE_MAX_FRAMES = 4096 };  // latent frames of a sample

ts_objective ts_objective_from_config(const ts_train_config *config);

// sigma' = s sigma / (1 + (s - 1) sigma)
double ts_sigma_shift(double sigma, double shift);

// Which frames of a sample are held: held [frames].
ts_pattern ts_objective_held(const ts_objective *objective, uint64_t sample, int64_t frames, bool *held);
// sigma, weight [frames]: 0 and 0 where held, else the level and 1.
ts_pattern ts_objective_levels(const ts_objective *objective, uint64_t sample, int64_t frames, float *sigma,
                               float *weight);
bool ts_objective_drops_text(const ts_objective *objective, uint64_t sample);
// Frames that carry loss among samples [first, first + count).
int64_t ts_objective_loss_frames(const ts_objective *objective, uint64_t first, int64_t count, int64_t frames);

// The samples of one micro-batch as they are stored.
typedef struct ts_clean {
    int64_t count;
    ts_shape shape;              // [T, H, W, C] of one
    const void *latent;          // [count, T, H, W, C], memory of the tape's device
    ts_dtype dtype;              // of it: F32 or BF16
    const char *const *caption;  // [count]
    uint64_t first;              // the samples are numbered first, first + 1, ...
} ts_clean;

// Inputs and targets of it, which live as long as the tape's variables.
typedef struct ts_noisy {
    // memory of the device
    float *x;       // [B, T, H, W, C]
    float *target;  // [B, T, H, W, C]
    // memory of the host
    float *timestep;      // [B, T] 1000 sigma
    float *weight;        // [B, T]
    const char **prompt;  // [B] the caption, or "" where dropped
} ts_noisy;
// In the count modes of the tape nothing is looked at but count, shape and dtype.
int ts_objective_prepare(const ts_objective *objective, ts_tape *tape, const ts_clean *clean, ts_noisy *out);

#endif
