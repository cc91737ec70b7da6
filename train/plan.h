// SPDX-License-Identifier: Apache-2.0
// Planning: which mesh trains a model soonest on N devices. Every mesh of N ranks is counted (train/plan_step.h), its
// step's time foretold from a hardware file (train/plan_hardware.h), and the quickest one that fits is recommended.
//
//   step = kernel calls + waiting + messages - share of the gradients' reduce-scatter that hides under the backward
//   pass
//
// of rank 0, which has no fewer samples, tokens, heads and parameters than any other: the others wait for it.
#ifndef TS_TRAIN_PLAN_H
#define TS_TRAIN_PLAN_H

#include "train/plan_hardware.h"
#include "train/plan_step.h"

// Where the time of a step goes, seconds.
typedef struct ts_plan_time {
    double compute;    // forward and backward passes
    double waiting;    // of the ranks for each other, at messages
    double optimizer;  // clearing, norm, update
    double message[TS_AXIS_COUNT];
    double hidden;  // of the messages
    double total;
} ts_plan_time;

typedef struct ts_plan_item {
    ts_plan_step step;
    ts_plan_time time;
    bool fits;
} ts_plan_item;

typedef struct ts_plan {
    int devices;
    ts_plan_item *item;  // [items], owned: those that fit first, of each the quickest first
    int64_t items, fitting;
} ts_plan;

// Seconds of a counted step. TS_EUSAGE when the file lacks a figure that it takes. Like all here but the command: not
// collective.
int ts_plan_predict(ts_plan_time *out, const ts_hardware *hardware, const ts_plan_step *step);

// All meshes whose ranks have work: no more data ranks than samples, no more tensor x ulysses ranks than heads, no more
// sequence ranks than tokens. With each kind of recompute.
int ts_plan_make(ts_plan *out, const ts_plan_run *run, const ts_hardware *hardware, int devices);
void ts_plan_free(ts_plan *plan);

// A mesh of `devices` ranks after another; begin with *degree all 0. False when there are no more.
bool ts_plan_next_mesh(const ts_plan_run *run, int devices, ts_degrees *degree);

// tessera plan CONFIG.yaml --devices N; rank 0 plans, the status is the same on all. Collective.
int ts_command_plan(ts_comm *world, int argc, char **argv);

// What is planned, from a training configuration: the data set tells the shape of latents and the vocabulary where
// `latent` ("TxHxWxC") and `vocabulary` do not (NULL, 0).
int ts_plan_run_open(ts_plan_run *out, const ts_train_config *config, const char *latent, int64_t vocabulary);

#endif
