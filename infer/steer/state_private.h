// SPDX-License-Identifier: Apache-2.0
// Inside infer/steer/state*.c, branch.c and tree.c only: the store's files, and the JSON of a state.
#ifndef TS_INFER_STATE_PRIVATE_H
#define TS_INFER_STATE_PRIVATE_H

#include "core/base/file.h"
#include "core/base/json.h"
#include "infer/steer/state.h"

// ---- objects (infer/steer/state_store.c)

enum { TS_OBJECT_NAME_BYTES = 33 };  // 32 hexadecimal digits and a terminator

typedef struct ts_store {
    char path[TS_PATH_BYTES];
    int lock;      // -1: it is only read
    json_t *made;  // names of the objects that were put and not there before
} ts_store;

// Makes the folders, keeps other writers away and removes what a killed one left half written.
int ts_store_open(ts_store *store, const char *path);
// What was put, by whomever, is on the disk when this returns; of the rest of its file system as well.
int ts_store_sync(ts_store *store);
// After a failure: removes what was put and is of no use now, so that a full disk is no fuller.
void ts_store_take_back(ts_store *store);
void ts_store_close(ts_store *store);

int ts_store_object_path(char path[TS_PATH_BYTES], const char *store, const char *name);
// The name of `bytes` bytes, which are written unless they are there already. A damaged object is written anew.
int ts_store_put(ts_store *store, const void *data, size_t bytes, char name[TS_OBJECT_NAME_BYTES]);
bool ts_store_is_name(const char *text);
// Whether an object is there and is what its name says. TS_EINPUT.
int ts_store_verify(const char *store, const char *name);
// The objects that are there, by their names, unsorted: calls `visit` for each, until it fails.
int ts_store_visit(const char *store, int (*visit)(void *user, const char *name), void *user);
// Reads and verifies. TS_EINPUT when it is missing, of another size, or damaged.
int ts_store_get(const char *store, const char *name, void *data, size_t bytes);

// ---- places

// STORE and NAME of STORE/NAME.
int ts_state_split(const char *path, char store[TS_PATH_BYTES], const char **name);
int ts_state_json_path(char path[TS_PATH_BYTES], const char *store, const char *name);

// ---- JSON (infer/steer/state_json.c)

enum { TS_STATE_JSON_BYTES = 64 << 20, TS_STATE_NAME_BYTES = 100 };

// All but the objects' names; a new reference.
int ts_state_to_json(const ts_state *state, json_t **out);
// All but the canvas, its changes and the arrays: what a list of states tells. Nothing of it is to be closed.
// TS_EINPUT.
int ts_state_head_from_json(ts_state *out, const json_t *object, const char *name, ts_arena *arena);
// All but the arrays and strengths; for these there is room then. `name` opens messages. Whatever the status,
// ts_state_close is to follow. TS_EINPUT.
int ts_state_from_json(ts_state *out, const json_t *object, const char *name, ts_arena *arena);
// ---- lists of frames: what a state keeps of each, an object a frame

// From the first one that there is to state->arrays - 1: those of the canvas, while it is under work, and the arrays.
enum { TS_LIST_STRENGTH = -2, TS_LIST_SOURCE = -1 };
int ts_state_lists(const ts_state *state);
const char *ts_state_list_name(int i);                        // its key in "objects"
float *ts_state_list_array(const ts_state *state, int i);     // borrowed
int64_t ts_state_list_numbers(const ts_state *state, int i);  // of a frame

// Whether a list under `key` holds nothing but names of objects. TS_EINPUT.
int ts_state_check_object_names(const json_t *list, const char *place, const char *key);
// The names of a list's objects: `frames` texts, checked.
int ts_state_object_names(const json_t *object, const char *name, int i, int64_t frames, const json_t **out);

#endif
