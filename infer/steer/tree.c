// SPDX-License-Identifier: Apache-2.0
// `tessera tree`: the states of a store as a tree of choices, and what each takes on the disk.
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/status.h"
#include "core/config/command.h"
#include "infer/steer/state_private.h"

typedef struct options {
    const char *store;
    bool json, check, prune;
} options;

#define FIELD(name) offsetof(options, name)
// clang-format off
static const ts_option table[] = {
    {"store", TS_OPTION_STRING, FIELD(store), NULL, "folder of the states: STORE of --save-state STORE/NAME", 0, 0, NULL, true},
    {"json", TS_OPTION_BOOL, FIELD(json), "false", "print one JSON object", 0, 0, NULL, false},
    {"check", TS_OPTION_BOOL, FIELD(check), "false", "read and verify everything; what is broken is listed, and makes the exit code 3", 0, 0, NULL, false},
    {"prune", TS_OPTION_BOOL, FIELD(prune), "false", "remove objects that no state names", 0, 0, NULL, false},
    {0},
};
// clang-format on
#undef FIELD

typedef struct entry {
    const char *name, *parent, *change, *problem;  // problem: why it cannot be read, or NULL
    int64_t step, steps, frames;
    int64_t own, shared;  // bytes: of objects that no other state has, and its JSON; of the others
    json_t *objects;      // names, each once
    bool told;
} entry;

typedef struct tree {
    const options *options;
    ts_arena *arena;
    int64_t count;
    entry *item;                   // [count] in the order of their names
    json_t *users;                 // object name -> how many states have it
    json_t *broken;                // what --check found, a text each
    int64_t unreadable;            // states
    int64_t unused, unused_bytes;  // objects that no state names
} tree;

// ---- reading

// Notes the objects of a state, each once.
static int note_objects(tree *t, entry *e, const json_t *object, const char *place) {
    const json_t *objects, *list, *name;
    const char *key;
    size_t i;
    TS_TRY(ts_json_object(object, "objects", place, &objects));
    json_object_foreach((json_t *)objects, key, list) {
        TS_TRY(ts_state_check_object_names(list, place, key));
        json_array_foreach(list, i, name) {
            const char *text = json_string_value(name);
            if (!json_object_get(e->objects, text)) {
                const json_int_t users = json_integer_value(json_object_get(t->users, text));
                json_object_set_new(e->objects, text, json_true());
                json_object_set_new(t->users, text, json_integer(users + 1));
            }
        }
    }
    return TS_OK;
}

// What was changed, or what it shows from the beginning.
static int read_change(tree *t, entry *e, const ts_state *s, const json_t *object, const char *place) {
    const json_t *canvas, *prompts;
    TS_TRY(ts_json_object(object, "canvas", place, &canvas));
    TS_TRY(ts_json_array(canvas, "prompts", place, &prompts));
    const char *first = json_string_value(json_array_get(prompts, 0));
    if (!s->change && !first) {
        return TS_FAIL(TS_EINPUT, "%s: has no prompt", place);
    }
    e->change = s->change ? s->change : ts_arena_strdup(t->arena, first);
    return e->change ? TS_OK : TS_ERESOURCE;
}

// All that would be read to go on from it, but for the objects.
static int check_entry(const tree *t, const json_t *object, const char *place) {
    const json_t *names;
    ts_state s = {0};
    int status = ts_state_from_json(&s, object, place, t->arena);
    for (int i = status ? 0 : ts_state_lists(&s); i < s.arrays && !status; i++) {
        status = ts_state_object_names(object, place, i, s.compiled.canvas.frames, &names);
    }
    ts_state_close(&s);
    return status;
}

static int read_entry(tree *t, entry *e) {
    char place[TS_PATH_BYTES];
    json_t *object = NULL;
    ts_state s = {0};
    TS_TRY(ts_state_json_path(place, t->options->store, e->name));
    int status = ts_json_read(place, TS_STATE_JSON_BYTES, &object);
    status = status ? status : ts_state_head_from_json(&s, object, place, t->arena);
    status = status ? status : note_objects(t, e, object, place);
    status = status ? status : read_change(t, e, &s, object, place);
    status = status || !t->options->check ? status : check_entry(t, object, place);
    e->parent = s.parent;
    e->step = s.step;
    e->steps = s.steps;
    e->frames = s.frames;
    e->own = ts_path_bytes(place);
    json_decref(object);
    return status;
}

// A name that no state has may do to a terminal what it likes; with this one it is found to be none.
static const char *printable(char *name) {
    for (char *c = name; c && *c; c++) {
        *c = (signed char)*c < ' ' || *c == 0x7f ? '?' : *c;
    }
    return name;
}

// A state that cannot be read is listed with the reason.
static int read_entries(tree *t, char *const *names, int64_t count) {
    t->item = ts_arena_zalloc(t->arena, (size_t)(count + 1) * sizeof *t->item);
    t->users = json_object();
    TS_TRY(t->item && t->users ? TS_OK : TS_ERESOURCE);
    for (int64_t i = 0; i < count; i++) {
        const size_t length = strlen(names[i]);
        if (length < 6 || strcmp(names[i] + length - 5, ".json") != 0) {
            continue;
        }
        entry *e = &t->item[t->count++];
        e->name = printable(ts_arena_printf(t->arena, "%.*s", (int)(length - 5), names[i]));
        e->objects = json_object();
        TS_TRY(e->name && e->objects ? TS_OK : TS_ERESOURCE);
        const int status = read_entry(t, e);
        if (status) {
            TS_TRY(status == TS_EINPUT ? TS_OK : status);
            e->problem = ts_arena_strdup(t->arena, ts_error_text());
            TS_TRY(e->problem ? TS_OK : TS_ERESOURCE);
            t->unreadable++;
            if (t->options->check) {
                json_array_append_new(t->broken, json_string(e->problem));
            }
        }
    }
    return TS_OK;
}

// What each has alone and what it shares; an object that is not there makes the state one with a problem.
static int weigh(tree *t) {
    char path[TS_PATH_BYTES];
    for (int64_t i = 0; i < t->count; i++) {
        entry *e = &t->item[i];
        const char *name;
        json_t *value;
        json_object_foreach(e->objects, name, value) {
            TS_TRY(ts_store_object_path(path, t->options->store, name));
            const int64_t bytes = ts_path_bytes(path);
            const bool alone = json_integer_value(json_object_get(t->users, name)) == 1;
            *(alone ? &e->own : &e->shared) += bytes > 0 ? bytes : 0;
            if (bytes < 0 && !e->problem) {
                e->problem = ts_arena_printf(t->arena, "%s is missing", path);
            }
        }
    }
    return TS_OK;
}

// ---- objects: those that are broken, and those that no state names

static void find_broken(tree *t) {
    const char *name;
    json_t *value;
    json_object_foreach(t->users, name, value) {
        if (ts_store_verify(t->options->store, name)) {
            json_array_append_new(t->broken, json_string(ts_error_text()));
        }
    }
}

static int note_unused(void *user, const char *name) {
    tree *t = user;
    char path[TS_PATH_BYTES];
    if (json_object_get(t->users, name)) {
        return TS_OK;
    }
    TS_TRY(ts_store_object_path(path, t->options->store, name));
    const int64_t bytes = ts_path_bytes(path);
    if (t->options->prune && unlink(path)) {
        return TS_FILE_FAIL(path, "remove");
    }
    t->unused++;
    t->unused_bytes += bytes > 0 ? bytes : 0;
    return TS_OK;
}

// A state that cannot be read may need any of them.
static int find_unused(tree *t) {
    if (t->unreadable) {
        return t->options->prune
                   ? TS_FAIL(TS_EINPUT,
                             "%s: states that cannot be read may need what no other names; mend or delete those "
                             "first, nothing was removed",
                             t->options->store)
                   : TS_OK;
    }
    return ts_store_visit(t->options->store, note_unused, t);
}

static int64_t total_bytes(const tree *t) {
    char path[TS_PATH_BYTES];
    const char *name;
    json_t *value;
    int64_t sum = 0;
    json_object_foreach(t->users, name, value) {
        const int64_t bytes = ts_store_object_path(path, t->options->store, name) ? 0 : ts_path_bytes(path);
        sum += bytes > 0 ? bytes : 0;
    }
    for (int64_t i = 0; i < t->count; i++) {
        const int64_t bytes = ts_state_json_path(path, t->options->store, t->item[i].name) ? 0 : ts_path_bytes(path);
        sum += bytes > 0 ? bytes : 0;
    }
    return sum;
}

// ---- printing

static const char *size_text(int64_t bytes, char out[16]) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1024 && unit < 4) {
        value /= 1024;
        unit++;
    }
    snprintf(out, 16, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return out;
}

enum { NAME_COLUMNS = 32, INDENT_BYTES = 512 };

// Names differ in width, and the lines in front of them are three bytes a column.
static void print_name(const char *indent, int depth, const char *name) {
    const int used = 3 * depth + (int)strlen(name);
    printf("%s%s%*s", indent, name, used < NAME_COLUMNS ? NAME_COLUMNS - used : 1, "");
}

static void print_entry(const entry *e, const char *indent, int depth) {
    char step[48], own[16], shared[16], change[160];
    print_name(indent, depth, e->name);
    if (e->problem) {
        printf("cannot be used: %s\n", e->problem);
        return;
    }
    snprintf(step, sizeof step, e->step == e->steps ? "done" : "%lld/%lld", (long long)e->step, (long long)e->steps);
    snprintf(change, sizeof change, "%.150s", e->change);
    ts_make_one_line(change);
    printf("%8s %6lld  %10s %10s  %s\n", step, (long long)e->frames, size_text(e->own, own),
           size_text(e->shared, shared), change);
}

static bool is_child(const tree *t, int64_t i, const char *parent) {
    const entry *e = &t->item[i];
    return !e->told && e->parent && strcmp(e->parent, parent) == 0;
}

// Of the children of `parent`, whether one comes behind item i.
static bool is_last_child(const tree *t, int64_t i, const char *parent) {
    for (int64_t k = i + 1; k < t->count; k++) {
        if (is_child(t, k, parent)) {
            return false;
        }
    }
    return true;
}

// What was made of an entry, and of that. `lines` [INDENT_BYTES] stand in front, and are given back as they were; what
// lies deeper than they have room for is indented no further. States that go round in a circle are told once.
static void print_below(tree *t, int64_t i, char *lines, int depth) {
    const size_t length = strlen(lines);
    const bool fits = length + sizeof "├─ " <= INDENT_BYTES;
    const char *name = t->item[i].name;
    for (int64_t k = 0; k < t->count; k++) {
        if (!is_child(t, k, name)) {
            continue;
        }
        const bool last = is_last_child(t, k, name);
        t->item[k].told = true;
        strcpy(lines + length, !fits ? "" : last ? "└─ " : "├─ ");
        print_entry(&t->item[k], lines, depth + 1);
        strcpy(lines + length, !fits ? "" : last ? "   " : "│  ");
        print_below(t, k, lines, depth + 1);
        lines[length] = '\0';
    }
}

static bool has_parent_here(const tree *t, const entry *e) {
    for (int64_t i = 0; i < t->count && e->parent; i++) {
        if (strcmp(t->item[i].name, e->parent) == 0) {
            return true;
        }
    }
    return false;
}

static void print_tree(tree *t) {
    char size[16], lines[INDENT_BYTES] = "";
    printf("%-*s%8s %6s  %10s %10s  %s\n", NAME_COLUMNS, "state", "step", "frames", "own", "shared", "change");
    for (int pass = 0; pass < 2; pass++) {  // then what goes round in a circle
        for (int64_t i = 0; i < t->count; i++) {
            if (!t->item[i].told && (pass || !has_parent_here(t, &t->item[i]))) {
                t->item[i].told = true;
                print_entry(&t->item[i], "", 0);
                print_below(t, i, lines, 0);
            }
        }
    }
    printf("%lld state%s, %s\n", (long long)t->count, t->count == 1 ? "" : "s", size_text(total_bytes(t), size));
    if (t->unused) {
        printf("%lld object%s that no state names, %s: %s\n", (long long)t->unused, t->unused == 1 ? "" : "s",
               size_text(t->unused_bytes, size), t->options->prune ? "removed" : "--prune removes them");
    }
    for (size_t i = 0; i < json_array_size(t->broken); i++) {
        printf("broken: %s\n", json_string_value(json_array_get(t->broken, i)));
    }
}

static int print_json(const tree *t) {
    json_t *list = json_array();
    for (int64_t i = 0; i < t->count; i++) {
        const entry *e = &t->item[i];
        json_array_append_new(list, json_pack("{s:s, s:s?, s:s?, s:s?, s:I, s:I, s:I, s:I, s:I}", "name", e->name,
                                              "parent", e->parent, "change", e->change, "problem", e->problem, "step",
                                              (json_int_t)e->step, "steps", (json_int_t)e->steps, "frames",
                                              (json_int_t)e->frames, "own", (json_int_t)e->own, "shared",
                                              (json_int_t)e->shared));
    }
    json_t *object =
        json_pack("{s:o, s:I, s:I, s:I, s:O}", "states", list, "bytes", (json_int_t)total_bytes(t), "unused",
                  (json_int_t)t->unused, "unused_bytes", (json_int_t)t->unused_bytes, "broken", t->broken);
    char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    if (!text) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for the list of states");
    }
    printf("%s\n", text);
    free(text);
    return TS_OK;
}

// ---- the command

static int read_store(tree *t) {
    char folder[TS_PATH_BYTES], **names;
    int64_t count;
    TS_TRY(ts_path_join(folder, sizeof folder, t->options->store, "states"));
    TS_TRY(ts_folder_list(folder, &names, &count));
    int status = read_entries(t, names, count);
    ts_folder_list_free(names, count);
    status = status ? status : weigh(t);
    if (!status && t->options->check) {
        find_broken(t);
    }
    return status ? status : find_unused(t);
}

static int print(tree *t) {
    const size_t broken = json_array_size(t->broken);
    if (t->options->json) {
        TS_TRY(print_json(t));
    } else {
        print_tree(t);
    }
    return broken ? TS_FAIL(TS_EINPUT, "%s: %zu of its states and objects are broken, as listed", t->options->store,
                            broken)
                  : TS_OK;
}

// While objects are removed nobody may write some.
static int list_store(tree *t) {
    char folder[TS_PATH_BYTES];
    ts_store store = {.lock = -1};
    TS_TRY(ts_path_join(folder, sizeof folder, t->options->store, "states"));
    if (!ts_path_is_folder(folder)) {
        return TS_FAIL(TS_EINPUT, "%s: is no store of states; --save-state STORE/NAME makes one", t->options->store);
    }
    t->broken = json_array();
    int status = t->options->prune ? ts_store_open(&store, t->options->store) : TS_OK;
    status = status ? status : read_store(t);
    ts_store_close(&store);
    status = status ? status : print(t);
    for (int64_t i = 0; i < t->count; i++) {
        json_decref(t->item[i].objects);
    }
    json_decref(t->users);
    json_decref(t->broken);
    return status;
}

int ts_command_tree(ts_comm *world, int argc, char **argv) {
    static const char *const arguments[] = {"store", NULL};
    static const ts_command command = {
        .usage = "tessera tree STORE [--check] [--prune] [--json]\n"
                 "Lists saved states, each below the one it goes on from: its step, its frames, the bytes that are its "
                 "own and those that other states have too, and what was changed.",
        .table = table,
        .arguments = arguments,
    };
    ts_arena *arena = NULL;
    options o = {0};
    bool help = false;
    TS_TRY(ts_arena_open(&arena, "tree", 1 << 16, false));
    tree t = {.options = &o, .arena = arena};
    int status = ts_agree(world, ts_command_read(&command, &o, arena, argc, argv, &help));
    if (!status && !help) {
        status = ts_agree(world, ts_comm_rank(world) == 0 ? list_store(&t) : TS_OK);
    }
    ts_arena_close(&arena);
    return status;
}
