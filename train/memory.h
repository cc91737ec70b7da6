// SPDX-License-Identifier: Apache-2.0
// The memory plan of a training run: what one rank will need, counted before anything of it is allocated. Nothing here
// asks for ranks: the mesh may be an imagined one (core/comm/mesh.h), the model is declared and not allocated.
//
// On a GPU the parts are its memory, and what stays on the host is one figure beside them. Not counted there are the
// driver's context, which is no longer free when the limit is asked for, the buffers of NCCL, and samples that are made
// while training (sample.every).
#ifndef TS_TRAIN_MEMORY_H
#define TS_TRAIN_MEMORY_H

#include "core/comm/mesh.h"
#include "core/model/dit.h"
#include "core/model/text.h"
#include "core/nn/tape.h"
#include "train/config.h"

typedef enum {
    TS_MEMORY_WEIGHTS,      // what kernels read: operands, and f32 values of the rest
    TS_MEMORY_MASTERS,      // f32 values that the optimizer updates, where kernels read others
    TS_MEMORY_GRADIENTS,    // of parameters
    TS_MEMORY_MOMENTS,      // of the optimizer
    TS_MEMORY_AVERAGE,      // the moving average of the weights
    TS_MEMORY_UPDATE,       // working memory of gradients and optimizer
    TS_MEMORY_ACTIVATIONS,  // what the forward pass leaves to the backward pass
    TS_MEMORY_BACKWARD,     // what that takes besides: gradients of activations, a block that is made again
    TS_MEMORY_EXCHANGE,     // buffers of collectives
    TS_MEMORY_KERNELS,      // working memory of kernels
    TS_MEMORY_DATA,         // batches read ahead, validation clips, tables of positions
    TS_MEMORY_PROCESS,      // program, libraries, index of the data set
    TS_MEMORY_OPENING,      // what opening a run takes at its peak beyond all that
    TS_MEMORY_PARTS
} ts_memory_part;

// What a run is, as far as memory is concerned.
typedef struct ts_memory_run {
    const ts_train_config *config;
    ts_dit_config dit;
    ts_text_config text;
    const ts_mesh *mesh;        // as the rank in question sees it; NULL: one rank
    const ts_kernels *kernels;  // that it computes with, NULL when they are not here: counted as the CPU's
    bool on_device;             // a GPU holds the numbers
    const ts_shape *latent;     // [latents] shapes [T, H, W, C] of the samples
    int latents;
    int64_t clips;    // of the data set
    int64_t process;  // bytes of program and libraries on the host, as found
} ts_memory_run;

typedef struct ts_memory_plan {
    ts_recompute recompute;
    int64_t parameters;  // that this rank's tensor slice holds
    int64_t bytes[TS_MEMORY_PARTS], total;
    int64_t host;       // beside that, where a GPU holds the numbers: what the rank needs of the host's memory
    ts_tape_room room;  // for ts_tape_reserve
} ts_memory_plan;

// Counts a run with one kind of recompute. Errors are those of the model: shapes that do not fit it.
int ts_memory_count(ts_memory_plan *out, const ts_memory_run *run, ts_recompute recompute);
// The kind of recompute that config->train.recompute asks for: `auto` is the fastest one whose total is at most
// `available`. TS_ERESOURCE, with the numbers and what would help, when it is more.
int ts_memory_plan_make(ts_memory_plan *out, const ts_memory_run *run, int64_t available);
// The table that is printed at the start of a run.
void ts_memory_print(const ts_memory_plan *plan, int64_t available);

// What each rank may use, and what was there before there was a model: the same on all ranks.
typedef struct ts_memory_limit {
    int64_t available;
    int64_t process;  // bytes that the largest process has of its host's memory
    int64_t device;   // bytes that a rank's share of its GPU had free; 0 where the host computes
} ts_memory_limit;
// What a rank may use is train.memory_gib, or this rank's share of what its machine has free with what the process has
// already, or of what its GPU has free; the least over all ranks. Collective.
int ts_memory_share(ts_comm *world, const ts_train_config *config, const ts_kernels *kernels, ts_memory_limit *out);
// One line at the end of a run: planned against measured, of the rank that needed most; of GPUs what is not free any
// more, since a run keeps all that it takes. Collective.
int ts_memory_report(ts_comm *world, const ts_memory_plan *plan, const ts_kernels *kernels,
                     const ts_memory_limit *limit);

// How many of a rank's `samples`, each of `tokens` tokens, are computed at once. Unless told, the share is cut into
// equal parts of about 384 tokens on a rank: their activations stay in the caches (80 tokens a sample, width 128, batch
// 32: a fifth less time than all at once). On a GPU, which many tokens keep busy, of about 16,384.
int64_t ts_micro_batch(const ts_train_config *config, const ts_mesh *mesh, bool on_device, int64_t samples,
                       int64_t tokens);
// The same of validation clips, which need no memory for a backward pass: 16, or about 2048 tokens on a rank; on a GPU
// 64, or about 16,384. `tokens`: those of the largest clip.
int64_t ts_validation_batch(const ts_train_config *config, const ts_mesh *mesh, bool on_device, int64_t tokens);

#endif
