// SPDX-License-Identifier: Apache-2.0
// The guided velocity of a batch of windows (Ho & Salimans 2022, "Classifier-free diffusion guidance"):
//
//   v = v_without + guidance (v_with - v_without),  a guidance for each latent frame
//
// The branches of a rank go through the transformer as one batch; two ranks of the cfg axis take one each. Where both
// are known to be equal, or all guidance is 1, a rank computes one.
#ifndef TS_INFER_VELOCITY_H
#define TS_INFER_VELOCITY_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/split.h"
#include "core/comm/comm.h"
#include "core/model/dit.h"

// The branches, by their number.
enum { TS_BRANCH_WITH, TS_BRANCH_WITHOUT, TS_BRANCHES };

// Which branches rank `rank` of a cfg axis of `size` ranks computes.
ts_part ts_velocity_branches(bool guided, int size, int rank);

typedef struct ts_velocity_params {
    const ts_dit *dit;
    ts_tape *tape;  // in run mode; each pass resets it
    ts_comm *cfg;   // or NULL
    bool guided;    // else all guidance is 1 and branch `with` is the velocity
    // Whether the device may record a pass and run the record from then on, where it can (core/base/device.h): the same
    // numbers with fewer calls. Only where a pass sends nothing.
    bool record;
} ts_velocity_params;

// What goes through the transformer together. The first fields are asked for; ts_velocity_begin sets the others, which
// the caller then fills, all of them, for each pass.
typedef struct ts_velocity_batch {
    int64_t n, frames, height, width;  // windows; latent
    int64_t levels;                    // of a window: 1, frames or tokens
    int64_t contexts;                  // of a window, each seen by the frames of a run
    bool unguided;                     // guidance changes nothing: branch `with` is the velocity
    float *latent;                     // [n, T, H, W, C] device memory
    float *context[TS_BRANCHES];       // [n, contexts, text rows, text width] device memory; NULL: not computed here
    int32_t *frame_context;            // [T] which of them each frame sees, 0 .. contexts-1 and never falling, alike
                                       //   in all windows; host memory; of one context not read
    float *timestep;                   // [n, levels] 1000 * level, host memory
    float *guidance;                   // [n, T] host memory
} ts_velocity_batch;

typedef struct ts_velocity ts_velocity;

// TS_EUSAGE when the ranks of the cfg axis cannot share the branches.
int ts_velocity_open(ts_velocity **out, const ts_velocity_params *params);
void ts_velocity_close(ts_velocity **velocity);

// Room for a batch. Ranks that share the branches compute both of an unguided one, too. Memory is kept from one to the
// next, and grows only. Not collective.
int ts_velocity_begin(ts_velocity *velocity, ts_velocity_batch *batch);
// *out [n, T, H, W, C] f32 device memory, until the next pass; the device's work may not be done. Collective over the
// cfg axis, which sends n T H W C numbers a rank, and over the mesh of the transformer's parameters.
int ts_velocity_take(ts_velocity *velocity, const ts_velocity_batch *batch, const float **out);
// Before anything else uses the tape: a recorded pass holds on to its memory.
void ts_velocity_forget(ts_velocity *velocity);

#endif
