// SPDX-License-Identifier: Apache-2.0
#include "infer/steer/state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/status.h"
#include "infer/steer/state_private.h"

// ---- places

int ts_state_split(const char *path, char store[TS_PATH_BYTES], const char **name) {
    *name = ts_path_base(path);
    const size_t length = (size_t)(*name - path);
    if (length >= TS_PATH_BYTES) {
        return TS_FAIL(TS_EINPUT, "%.80s...: the path is longer than %d bytes", path, TS_PATH_BYTES);
    }
    memcpy(store, path, length);
    store[length > 1 ? length - 1 : length] = '\0';  // "/" stays
    return TS_OK;
}

int ts_state_json_path(char path[TS_PATH_BYTES], const char *store, const char *name) {
    char within[160];
    snprintf(within, sizeof within, "states/%.120s.json", name);
    return ts_path_join(path, TS_PATH_BYTES, store, within);
}

static bool is_name(const char *text) {
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    const size_t length = strlen(text);
    return length > 0 && length <= TS_STATE_NAME_BYTES && *text != '.' && strspn(text, allowed) == length;
}

int ts_state_check_name(const char *option, const char *name) {
    return is_name(name)
               ? TS_OK
               : TS_FAIL(TS_EUSAGE, "%s %.80s: give a name without a folder, at most %d letters, digits and . _ -",
                         option, name, TS_STATE_NAME_BYTES);
}

int ts_state_check_path(const char *option, const char *path) {
    const char *name = ts_path_base(path);
    return name > path && is_name(name)
               ? TS_OK
               : TS_FAIL(TS_EUSAGE,
                         "%s %.80s: give STORE/NAME, a folder and a name of at most %d letters, digits and . _ -",
                         option, path, TS_STATE_NAME_BYTES);
}

// ---- the model

// The sum of a folder's files, added to `state` with their names.
static int add_folder(XXH3_state_t *state, const char *model, const char *part) {
    char folder[TS_PATH_BYTES], path[TS_PATH_BYTES], **names;
    int64_t count;
    TS_TRY(ts_path_join(folder, sizeof folder, model, part));
    TS_TRY(ts_folder_list(folder, &names, &count));
    int status = TS_OK;
    for (int64_t i = 0; i < count && !status; i++) {
        uint64_t sum = 0;
        status = ts_path_join(path, sizeof path, folder, names[i]);
        status = status ? status : ts_file_hash(path, &sum);
        XXH3_64bits_update(state, names[i], strlen(names[i]) + 1);
        XXH3_64bits_update(state, &sum, sizeof sum);
    }
    ts_folder_list_free(names, count);
    return status;
}

int ts_state_fingerprint(const char *model, uint64_t *out) {
    static const char *const parts[] = {"codec", "text_encoder", "tokenizer", "transformer"};
    XXH3_state_t *state = XXH3_createState();
    if (!state) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for a sum");
    }
    XXH3_64bits_reset(state);
    int status = TS_OK;
    for (size_t i = 0; i < sizeof parts / sizeof *parts && !status; i++) {
        status = add_folder(state, model, parts[i]);
    }
    *out = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return status;
}

// ---- lists of frames

int ts_state_lists(const ts_state *s) {
    return s->compiled.canvas.strength && s->step < s->steps ? TS_LIST_STRENGTH : 0;
}

const char *ts_state_list_name(int i) {
    static const char *const names[] = {"strength", "source",   "latents", "memory-0",
                                        "memory-1", "memory-2", "memory-3"};
    _Static_assert(sizeof names / sizeof *names == TS_DENOISER_ARRAYS - TS_LIST_STRENGTH, "a name for each list");
    return names[i - TS_LIST_STRENGTH];
}

float *ts_state_list_array(const ts_state *s, int i) {
    const ts_canvas *c = &s->compiled.canvas;
    return i == TS_LIST_STRENGTH ? c->strength : i == TS_LIST_SOURCE ? c->source : s->array[i];
}

int64_t ts_state_list_numbers(const ts_state *s, int i) {
    const ts_canvas *c = &s->compiled.canvas;
    return i == TS_LIST_STRENGTH ? c->rows * c->columns : ts_canvas_frame_numbers(c);
}

// ---- saving

// Frames of one array as objects; their names as a new list.
static int put_frames(ts_store *store, const float *array, int64_t frames, int64_t numbers, json_t *list) {
    char name[TS_OBJECT_NAME_BYTES];
    for (int64_t t = 0; t < frames; t++) {
        TS_TRY(ts_store_put(store, array + t * numbers, (size_t)numbers * sizeof *array, name));
        if (json_array_append_new(list, json_string(name))) {
            return TS_FAIL(TS_ERESOURCE, "out of memory for the names of a state");
        }
    }
    return TS_OK;
}

static int put_all(ts_store *store, const ts_state *s, json_t *object) {
    const ts_canvas *c = &s->compiled.canvas;
    json_t *objects = json_object();
    json_object_set_new(object, "objects", objects);
    for (int i = ts_state_lists(s); i < s->arrays; i++) {
        json_t *list = json_array();
        json_object_set_new(objects, ts_state_list_name(i), list);
        TS_TRY(put_frames(store, ts_state_list_array(s, i), c->frames, ts_state_list_numbers(s, i), list));
    }
    return TS_OK;
}

// Whether a write that failed, at the last moment then, has put it there all the same.
static bool is_written(const char *path, const json_t *object) {
    json_t *there = json_load_file(path, 0, NULL);
    const bool same = json_equal(there, object);
    json_decref(there);
    return same;
}

static int save(ts_store *store, const ts_state *s, const char *folder, const char *name) {
    char path[TS_PATH_BYTES];
    json_t *object = NULL;
    TS_TRY(ts_store_open(store, folder));
    TS_TRY(ts_state_json_path(path, folder, name));
    int status = ts_state_to_json(s, &object);
    status = status ? status : put_all(store, s, object);
    status = status ? status : ts_store_sync(store);
    status = status ? status : ts_json_write_atomic(path, object);
    if (status && !is_written(path, object)) {
        ts_store_take_back(store);
    }
    json_decref(object);
    return status;
}

int ts_state_save(const ts_state *state, const char *path) {
    char folder[TS_PATH_BYTES];
    const char *name;
    ts_store store = {.lock = -1};
    TS_TRY(ts_state_check_path("state", path));
    TS_TRY(ts_state_split(path, folder, &name));
    const int status = save(&store, state, folder, name);
    ts_store_close(&store);
    return status;
}

// ---- loading

static int get_frames(const char *store, const json_t *names, int64_t frames, int64_t numbers, float *out) {
    for (int64_t t = 0; t < frames; t++) {
        TS_TRY(ts_store_get(store, json_string_value(json_array_get(names, (size_t)t)), out + t * numbers,
                            (size_t)numbers * sizeof *out));
    }
    return TS_OK;
}

// Whether all objects are there, before memory is taken for them.
static int check_presence(const char *store, const json_t *names, int64_t frames, const char *place) {
    char path[TS_PATH_BYTES];
    for (int64_t t = 0; t < frames; t++) {
        TS_TRY(ts_store_object_path(path, store, json_string_value(json_array_get(names, (size_t)t))));
        if (!ts_path_exists(path)) {
            return TS_FAIL(TS_EINPUT, "%s: its object %s is missing; restore the whole store from a copy", place, path);
        }
    }
    return TS_OK;
}

static int allocate_arrays(ts_state *s, ts_arena *arena) {
    for (int i = 0; i < s->arrays; i++) {
        s->array[i] = ts_arena_alloc(arena, (size_t)ts_canvas_numbers(&s->compiled.canvas) * sizeof(float));
        TS_TRY(s->array[i] ? TS_OK : TS_ERESOURCE);
    }
    return TS_OK;
}

static int load_objects(ts_state *s, const json_t *object, const char *store, const char *place, ts_arena *arena) {
    const json_t *names;
    const ts_canvas *c = &s->compiled.canvas;
    for (int i = ts_state_lists(s); i < s->arrays; i++) {
        TS_TRY(ts_state_object_names(object, place, i, c->frames, &names));
        TS_TRY(check_presence(store, names, c->frames, place));
    }
    TS_TRY(allocate_arrays(s, arena));
    for (int i = ts_state_lists(s); i < s->arrays; i++) {
        TS_TRY(ts_state_object_names(object, place, i, c->frames, &names));
        TS_TRY(get_frames(store, names, c->frames, ts_state_list_numbers(s, i), ts_state_list_array(s, i)));
    }
    return ts_canvas_check(c) ? ts_fail_context(TS_EINPUT, "%s", place) : TS_OK;
}

int ts_state_load(ts_state *out, const char *path, ts_arena *arena) {
    char store[TS_PATH_BYTES], place[TS_PATH_BYTES];
    const char *name;
    json_t *object = NULL;
    *out = (ts_state){0};
    TS_TRY(ts_state_check_path("state", path));
    TS_TRY(ts_state_split(path, store, &name));
    TS_TRY(ts_state_json_path(place, store, name));
    if (!ts_path_exists(place)) {
        return TS_FAIL(TS_EINPUT, "%s: there is no such state; see tessera tree %s", path, store);
    }
    int status = ts_json_read(place, TS_STATE_JSON_BYTES, &object);
    status = status ? status : ts_state_from_json(out, object, place, arena);
    status = status ? status : load_objects(out, object, store, place, arena);
    json_decref(object);
    if (!status && !(out->name = ts_arena_strdup(arena, name))) {
        status = TS_ERESOURCE;
    }
    if (status) {
        ts_state_close(out);
    }
    return status;
}

void ts_state_close(ts_state *state) {
    ts_compiled_close(&state->compiled);
    *state = (ts_state){0};
}

// ---- to other ranks

// The JSON of rank `root`, new text on every rank.
static int share_text(const ts_state *s, ts_comm *comm, int root, char **text, int64_t *bytes) {
    json_t *object = NULL;
    const bool mine = ts_comm_rank(comm) == root;
    int status = mine ? ts_state_to_json(s, &object) : TS_OK;
    if (mine && !status) {
        json_object_set_new(object, "name", json_string(s->name));
        *text = json_dumps(object, JSON_COMPACT);
        *bytes = *text ? (int64_t)strlen(*text) : 0;
        status = *text ? TS_OK : TS_FAIL(TS_ERESOURCE, "out of memory for a state");
    }
    json_decref(object);
    TS_TRY(ts_agree(comm, status));
    TS_TRY(ts_broadcast(comm, bytes, sizeof *bytes, root));
    *text = mine ? *text : ts_malloc((size_t)*bytes + 1);
    TS_TRY(ts_agree(comm, *text ? TS_OK : TS_ERESOURCE));
    return ts_broadcast(comm, *text, *bytes, root);
}

static int rebuild(ts_state *s, ts_arena *arena, const char *text, int64_t bytes) {
    json_t *object = NULL;
    const char *name = NULL;
    *s = (ts_state){0};
    int status = ts_json_parse(text, (size_t)bytes, "state", &object);
    status = status ? status : ts_state_from_json(s, object, "state", arena);
    status = status ? status : ts_json_string(object, "name", "state", &name);
    if (!status && !(s->name = ts_arena_strdup(arena, name))) {
        status = TS_ERESOURCE;
    }
    json_decref(object);
    return status ? status : allocate_arrays(s, arena);
}

static int share_arrays(ts_state *s, ts_comm *comm, int root) {
    for (int i = ts_state_lists(s); i < s->arrays; i++) {
        const int64_t numbers = s->compiled.canvas.frames * ts_state_list_numbers(s, i);
        TS_TRY(ts_broadcast(comm, ts_state_list_array(s, i), numbers * (int64_t)sizeof(float), root));
    }
    return TS_OK;
}

int ts_state_share(ts_state *state, ts_arena *arena, ts_comm *comm, int root) {
    char *text = NULL;
    int64_t bytes = 0;
    int status = share_text(state, comm, root, &text, &bytes);
    if (!status) {
        status = ts_agree(comm, ts_comm_rank(comm) == root ? TS_OK : rebuild(state, arena, text, bytes));
    }
    free(text);
    return status ? status : share_arrays(state, comm, root);
}
