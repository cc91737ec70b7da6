// SPDX-License-Identifier: Apache-2.0
// Saved states: a video under work, or done, that can be gone on with elsewhere; a tree of choices.
//
// STORE/objects/ab/cdef..   one latent frame of one array, named by the XXH3-128 of its bytes: equal frames are stored
//                           once, whichever states hold them
// STORE/states/NAME.json    version, model, sampling, step, canvas, arrays as lists of objects, parent and what was
//                           changed from it
// STORE/objects/unfinished  the object that is being written
// A state is written objects first, its JSON last and atomically; so one that is listed is whole. It needs none of the
// files that its timeline was made of. Nothing else in STORE is touched.
#ifndef TS_INFER_STATE_H
#define TS_INFER_STATE_H

#include "core/base/arena.h"
#include "core/comm/comm.h"
#include "infer/sampler/denoise.h"
#include "infer/timeline/compile.h"

typedef struct ts_state {
    const char *name;      // within its store
    const char *parent;    // in the same store, or NULL
    const char *change;    // what was changed from the parent, in words; or NULL
    const char *timeline;  // YAML, for readers; or NULL
    const char *model;     // folder
    uint64_t fingerprint;  // of the model: ts_state_fingerprint
    int64_t step, steps;   // the next one; == steps: done
    int64_t seed, frames;  // frames: pixel frames of the video
    int grid, solver;
    double shift, fps;
    const char *negative;  // or NULL
    ts_compiled compiled;  // the canvas as it stands, steered, and the changes to come
    // [T, H, W, C] each, as ts_denoiser_save gives them; 1, the latents, when it is done; 0 while nothing has moved.
    int arrays;
    float *array[TS_DENOISER_ARRAYS];
} ts_state;

// XXH3 of the names and bytes of all that a model computes with: its transformer, text encoder, tokenizer and codec.
int ts_state_fingerprint(const char *model, uint64_t *out);

// TS_EUSAGE unless `name` is letters, digits and . _ -, and does not begin with a dot (`option` opens the message).
int ts_state_check_name(const char *option, const char *name);
// The same unless `path` is STORE/NAME.
int ts_state_check_path(const char *option, const char *path);

// Whether states may be saved in a folder: it is a store, empty, or to be made where folders can be. TS_EINPUT or
// TS_EUSAGE, "option: ...".
int ts_state_check_store(const char *option, const char *store);
// Both: whether a state may be saved at `path`.
int ts_state_check_place(const char *option, const char *path);

// `path` is STORE/NAME; the store is made, and a state of that name replaced. Several processes may write to one store;
// what a killed one left half written is cleaned up, and so is what was written when it fails. Not collective: rank 0
// saves.
int ts_state_save(const ts_state *state, const char *path);
// Every object is verified against its name before anything is made of it. Strings and arrays live in `arena`, the
// canvas is the state's own. Strengths and source are kept while it is under work. TS_EINPUT "path: ...". Not
// collective.
int ts_state_load(ts_state *out, const char *path, ts_arena *arena);
// From rank `root` to all. Collective over comm.
int ts_state_share(ts_state *state, ts_arena *arena, ts_comm *comm, int root);
void ts_state_close(ts_state *state);  // of one that was loaded or shared; of zeros: nothing

// tessera branch STORE/NAME --prompt TEXT [--from FRAME] [--extend FRAMES] --save NAME --out FILE.mp4
int ts_command_branch(ts_comm *world, int argc, char **argv);
// tessera tree STORE [--check] [--prune]
int ts_command_tree(ts_comm *world, int argc, char **argv);

#endif
