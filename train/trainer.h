// SPDX-License-Identifier: Apache-2.0
// A trainer: everything one training step needs, and the step itself. Loop, checkpoints and reports stand around it.
#ifndef TS_TRAIN_TRAINER_H
#define TS_TRAIN_TRAINER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/comm/mesh.h"
#include "core/model/model.h"
#include "core/store/checkpoint.h"
#include "data/loader.h"
#include "train/config.h"
#include "train/memory.h"
#include "train/objective.h"
#include "train/optimizer.h"
#include "train/schedule.h"
#include "train/validate.h"

typedef struct ts_trainer {
    const ts_train_config *config;  // borrowed
    ts_comm *world;                 // borrowed
    ts_mesh mesh;
    ts_comm *data;  // the ranks that share a batch; the model group reads the same samples
    const ts_kernels *kernels;
    ts_dataset *dataset;
    ts_loader *loader;
    ts_model *model;
    ts_optimizer *optimizer;
    ts_tape *tape;
    ts_memory_plan memory;  // of this rank
    ts_memory_limit limit;
    ts_validation *validation;  // NULL when validate.clips is 0
    ts_objective objective;
    ts_lr_schedule schedule;
    bool last_micro_batch;  // of the step
    uint16_t *bits;         // [batch] latents as stored, on the device; NULL where the host computes
    // On the device: squares of the gradients, then the loss of each micro-batch. Read once a step.
    double *sums;
    double *seen;  // the same, as the host reads it

    // What a checkpoint holds besides the arrays.
    int64_t step;      // steps done
    ts_cursor cursor;  // of the next batch
    double seconds;    // trained so far, over resumed runs

    ts_checkpoint_save *saving;  // under way, settled before each update; NULL: none
} ts_trainer;

// Why a run ends early; agreed by all ranks inside the step.
typedef enum { TS_STOP_NONE, TS_STOP_TIME, TS_STOP_SIGNAL } ts_stop;

typedef struct ts_step_result {
    double loss;       // mean over the global batch's elements that carry loss
    double grad_norm;  // global, before clipping
    double lr;
    bool finite;              // false: loss or gradient is not a number and nothing was updated
    ts_stop stop;             // the strongest wish of any rank
    int64_t samples, tokens;  // of the global batch
    double flops;             // of the model, forward and backward, over all ranks
    bool saving_idle;         // a checkpoint is under way and all ranks are ready to move it on
    double stall;             // seconds that this rank waited for a checkpoint to read its numbers
} ts_step_result;

// Loads data set, codec and tokenizer; makes or loads the model; allocates all that training needs. Collective:
// every rank returns the same status.
int ts_trainer_open(ts_trainer **out, const ts_train_config *config, ts_comm *world);
void ts_trainer_close(ts_trainer **trainer);

// One step. A failure of one rank is returned on that rank alone: the caller ends the job. Results are alike on all
// ranks; the update is skipped when not finite. A device is waited for once, when loss and norm are known: the update
// is then under way when this returns, and so are its failures.
int ts_trainer_step(ts_trainer *trainer, ts_stop wish, ts_step_result *out);

// Places the loader at trainer->cursor, after it was set from a checkpoint.
int ts_trainer_seek(ts_trainer *trainer);

// Validates the moving average of the weights, or the weights where none is kept; on all noise patterns or on one level
// for all frames only (train/validate.h). Collective.
int ts_trainer_validate(ts_trainer *trainer, bool all_patterns, ts_validation_result *out);

#endif
