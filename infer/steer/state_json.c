// SPDX-License-Identifier: Apache-2.0
// A state as JSON, and back with every number checked: a state may come from anywhere.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/memory.h"
#include "core/base/status.h"
#include "core/model/tokenizer.h"
#include "infer/steer/state_private.h"
#include "infer/timeline/prompts.h"

enum { VERSION = 1, MAX_SIDE = 1 << 16, MAX_LIST = 10000, MAX_PROMPT_WEIGHTS = 1 << 26 };
static const int64_t max_numbers = (int64_t)1 << 31;

// ---- writing

// Rows of numbers of each frame as runs of equal ones: [how many frames, number, number, ..].
static json_t *runs(const float *from, int64_t frames, int64_t width) {
    json_t *list = json_array();
    for (int64_t t = 0, count; t < frames; t += count) {
        const float *row = from + t * width;
        for (count = 1; t + count < frames; count++) {
            if (memcmp(row, row + count * width, (size_t)width * sizeof *row) != 0) {
                break;
            }
        }
        json_t *run = json_array();
        json_array_append_new(run, json_integer(count));
        for (int64_t i = 0; i < width; i++) {
            json_array_append_new(run, json_real((double)row[i]));
        }
        json_array_append_new(list, run);
    }
    return list;
}

static json_t *canvas_json(const ts_canvas *c, bool strength) {
    json_t *prompts = json_array();
    for (int64_t i = 0; i < c->prompts; i++) {
        json_array_append_new(prompts, json_string(c->prompt[i]));
    }
    return json_pack("{s:[I,I,I,I], s:[I,I], s:b, s:I, s:I, s:I, s:I, s:b, s:o, s:o, s:o, s:o}", "shape",
                     (json_int_t)c->frames, (json_int_t)c->height, (json_int_t)c->width, (json_int_t)c->channels,
                     "tokens", (json_int_t)c->rows, (json_int_t)c->columns, "loop", c->loop, "window",
                     (json_int_t)c->window, "overlap", (json_int_t)c->overlap, "context", (json_int_t)c->context,
                     "index", (json_int_t)c->index, "strength", strength, "prompts", prompts, "weights",
                     runs(c->weight, c->frames, c->prompts), "guidance", runs(c->guidance, c->frames, 1), "late",
                     runs(c->late, c->frames, 1));
}

int ts_state_to_json(const ts_state *s, json_t **out) {
    char fingerprint[20];
    snprintf(fingerprint, sizeof fingerprint, "%016llx", (unsigned long long)s->fingerprint);
    json_t *changes = json_array();
    for (int64_t i = 0; i < s->compiled.changes; i++) {
        const ts_change *c = &s->compiled.change[i];
        json_array_append_new(changes, json_pack("{s:I, s:I, s:s}", "step", (json_int_t)c->step, "first",
                                                 (json_int_t)c->first, "prompt", c->prompt));
    }
    *out = json_pack("{s:i, s:s?, s:s?, s:s?, s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:s, s:f, s:f, s:s?, s:i, s:o, s:o}",
                     "version", VERSION, "parent", s->parent, "change", s->change, "timeline", s->timeline, "model",
                     s->model, "fingerprint", fingerprint, "step", (json_int_t)s->step, "steps", (json_int_t)s->steps,
                     "seed", (json_int_t)s->seed, "frames", (json_int_t)s->frames, "grid", ts_grid_names[s->grid],
                     "solver", ts_solver_names[s->solver], "shift", s->shift, "fps", s->fps, "negative", s->negative,
                     "arrays", s->arrays, "changes", changes, "canvas",
                     canvas_json(&s->compiled.canvas, ts_state_lists(s) < 0));
    return *out ? TS_OK : TS_FAIL(TS_ERESOURCE, "out of memory for a state, or a text in it is not UTF-8");
}

// ---- reading

// A list of `count` whole numbers, min..max each.
static int read_list(const json_t *object, const char *key, const char *name, int64_t count, int64_t min, int64_t max,
                     int64_t *out) {
    const json_t *list;
    TS_TRY(ts_json_array(object, key, name, &list));
    for (int64_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(list, (size_t)i);
        out[i] = json_integer_value(item);
        if (!json_is_integer(item) || out[i] < min || out[i] > max || (int64_t)json_array_size(list) != count) {
            return TS_FAIL(TS_EINPUT, "%s: \"%s\" must be %lld whole numbers from %lld to %lld", name, key,
                           (long long)count, (long long)min, (long long)max);
        }
    }
    return TS_OK;
}

// The rows of `frames` frames, from runs; or nothing when they are none.
static bool expand(const json_t *list, int64_t frames, int64_t width, float *out) {
    int64_t t = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *run = json_array_get(list, i), *first = json_array_get(run, 0);
        const int64_t count = json_integer_value(first);
        if ((int64_t)json_array_size(run) != 1 + width || count < 1 || count > frames - t) {
            return false;
        }
        for (int64_t k = 0; k < count * width; k++) {
            const json_t *number = json_array_get(run, 1 + (size_t)(k % width));
            out[t * width + k] = (float)json_number_value(number);
            if (!json_is_number(number) || !isfinite(out[t * width + k])) {
                return false;
            }
        }
        t += count;
    }
    return t == frames;
}

static int read_runs(const json_t *object, const char *key, const char *name, int64_t frames, int64_t width,
                     float *out) {
    const json_t *list;
    TS_TRY(ts_json_array(object, key, name, &list));
    return expand(list, frames, width, out)
               ? TS_OK
               : TS_FAIL(TS_EINPUT, "%s: \"%s\" must be runs of %lld frames in all, with %lld numbers each", name, key,
                         (long long)frames, (long long)width);
}

static int read_text(const json_t *object, const char *key, const char *name, ts_arena *arena, const char **out) {
    const char *text;
    TS_TRY(ts_json_string_or(object, key, name, NULL, &text));
    *out = text ? ts_arena_strdup(arena, text) : NULL;
    return !text || *out ? TS_OK : TS_ERESOURCE;
}

// The index of a name among NULL-terminated ones.
static int read_choice(const json_t *object, const char *key, const char *name, const char *const *choices, int *out) {
    const char *text;
    TS_TRY(ts_json_string(object, key, name, &text));
    for (*out = 0; choices[*out]; ++*out) {
        if (strcmp(choices[*out], text) == 0) {
            return TS_OK;
        }
    }
    return TS_FAIL(TS_EINPUT, "%s: \"%s\" is \"%.40s\", which this version does not know", name, key, text);
}

static int read_prompts(ts_canvas *c, const json_t *object, const char *name, ts_arena *arena) {
    const json_t *list;
    TS_TRY(ts_json_array(object, "prompts", name, &list));
    const int64_t count = (int64_t)json_array_size(list);
    if (count < 1 || count > MAX_LIST || c->frames * count > MAX_PROMPT_WEIGHTS) {
        return TS_FAIL(TS_EINPUT, "%s: %lld prompts for %lld latent frames; a canvas has 1 to %d, and %d weights", name,
                       (long long)count, (long long)c->frames, MAX_LIST, MAX_PROMPT_WEIGHTS);
    }
    free(c->prompt);
    free(c->weight);
    c->prompts = count;
    c->prompt = ts_calloc((size_t)count, sizeof *c->prompt);
    c->weight = ts_malloc((size_t)(c->frames * count) * sizeof *c->weight);
    if (!c->prompt || !c->weight) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < count; i++) {
        const char *text = json_string_value(json_array_get(list, (size_t)i));
        if (!text || strlen(text) > TS_MAX_PROMPT_BYTES) {
            return TS_FAIL(TS_EINPUT, "%s: prompt %lld is no text, or longer than %d bytes", name, (long long)i,
                           TS_MAX_PROMPT_BYTES);
        }
        c->prompt[i] = ts_arena_strdup(arena, text);
        TS_TRY(c->prompt[i] ? TS_OK : TS_ERESOURCE);
    }
    return TS_OK;
}

// Refuses, before any of it is allocated, what memory cannot hold: source, strengths, and the arrays.
static int check_memory(const int64_t shape[4], const char *name) {
    const double numbers = (double)(shape[0] * shape[1]) * (double)(shape[2] * shape[3]);
    const double bytes = numbers * sizeof(float) * (2 + TS_DENOISER_ARRAYS);
    const int64_t available = ts_memory_available();
    return available >= 0 && bytes > (double)available
               ? TS_FAIL(TS_EINPUT, "%s: needs %.1f GB, and %.1f GB are free; take a machine with more", name,
                         bytes / 1e9, (double)available / 1e9)
               : TS_OK;
}

static int read_canvas(ts_canvas *c, const json_t *object, const char *name, ts_arena *arena) {
    int64_t shape[4], tokens[2];
    bool strength;
    TS_TRY(read_list(object, "shape", name, 4, 1, MAX_SIDE, shape));
    TS_TRY(read_list(object, "tokens", name, 2, 1, MAX_SIDE, tokens));
    if (shape[1] % tokens[0] || shape[2] % tokens[1] || shape[0] * shape[1] > max_numbers / (shape[2] * shape[3])) {
        return TS_FAIL(TS_EINPUT, "%s: latents of %lldx%lldx%lldx%lld in %lldx%lld tokens a frame are none", name,
                       (long long)shape[0], (long long)shape[1], (long long)shape[2], (long long)shape[3],
                       (long long)tokens[0], (long long)tokens[1]);
    }
    TS_TRY(check_memory(shape, name));
    TS_TRY(
        ts_canvas_open(c, shape[0], shape[1], shape[2], shape[3], shape[1] / tokens[0], shape[2] / tokens[1], "", 1));
    int64_t index;
    TS_TRY(ts_json_bool_or(object, "loop", name, false, &c->loop));
    TS_TRY(ts_json_bool_or(object, "strength", name, false, &strength));
    TS_TRY(ts_json_int(object, "window", name, 1, MAX_SIDE, &c->window));
    TS_TRY(ts_json_int(object, "overlap", name, 0, MAX_SIDE, &c->overlap));
    TS_TRY(ts_json_int(object, "context", name, 0, MAX_SIDE, &c->context));
    TS_TRY(ts_json_int(object, "index", name, 0, INT64_MAX, &index));
    c->index = (uint64_t)index;
    TS_TRY(read_prompts(c, object, name, arena));
    TS_TRY(read_runs(object, "weights", name, c->frames, c->prompts, c->weight));
    TS_TRY(read_runs(object, "guidance", name, c->frames, 1, c->guidance));
    TS_TRY(read_runs(object, "late", name, c->frames, 1, c->late));
    return strength ? ts_canvas_add_source(c) : TS_OK;
}

static int read_changes(ts_state *s, const json_t *object, const char *name, ts_arena *arena) {
    const json_t *list;
    TS_TRY(ts_json_array(object, "changes", name, &list));
    const int64_t count = (int64_t)json_array_size(list);
    if (count > MAX_LIST) {
        return TS_FAIL(TS_EINPUT, "%s: %lld changes; at most %d are read", name, (long long)count, MAX_LIST);
    }
    s->compiled.change = ts_calloc((size_t)count + 1, sizeof *s->compiled.change);
    TS_TRY(s->compiled.change ? TS_OK : TS_ERESOURCE);
    for (s->compiled.changes = 0; s->compiled.changes < count; s->compiled.changes++) {
        const json_t *item = json_array_get(list, (size_t)s->compiled.changes);
        ts_change *c = &s->compiled.change[s->compiled.changes];
        TS_TRY(ts_json_int(item, "step", name, 0, s->steps, &c->step));
        TS_TRY(ts_json_int(item, "first", name, 0, s->compiled.canvas.frames - 1, &c->first));
        TS_TRY(read_text(item, "prompt", name, arena, &c->prompt));
        TS_TRY(c->prompt ? ts_prompt_check(c->prompt, name) : TS_FAIL(TS_EINPUT, "%s: a change without prompt", name));
    }
    return TS_OK;
}

static int read_sampling(ts_state *s, const json_t *object, const char *name) {
    const char *fingerprint;
    char *end;
    int64_t arrays;
    TS_TRY(ts_json_string(object, "fingerprint", name, &fingerprint));
    s->fingerprint = strtoull(fingerprint, &end, 16);
    TS_TRY(ts_json_int(object, "steps", name, 1, TS_MAX_STEPS, &s->steps));
    TS_TRY(ts_json_int(object, "step", name, 0, s->steps, &s->step));
    TS_TRY(ts_json_int(object, "seed", name, 0, INT64_MAX, &s->seed));
    TS_TRY(ts_json_int(object, "frames", name, 1, INT32_MAX, &s->frames));
    TS_TRY(ts_json_int(object, "arrays", name, 0, TS_DENOISER_ARRAYS, &arrays));
    TS_TRY(ts_json_real_or(object, "shift", name, 0, &s->shift));
    TS_TRY(ts_json_real_or(object, "fps", name, 0, &s->fps));
    s->arrays = (int)arrays;
    if (*end || strlen(fingerprint) != 16 || (s->step == s->steps && arrays != 1) || !(s->shift > 0) ||
        !(s->fps > 0 && s->fps <= 1000)) {
        return TS_FAIL(TS_EINPUT, "%s: fingerprint, arrays, shift or fps make no sense", name);
    }
    TS_TRY(read_choice(object, "grid", name, ts_grid_names, &s->grid));
    return read_choice(object, "solver", name, ts_solver_names, &s->solver);
}

int ts_state_head_from_json(ts_state *s, const json_t *object, const char *name, ts_arena *arena) {
    int64_t version;
    TS_TRY(ts_json_int(object, "version", name, VERSION, VERSION, &version));
    TS_TRY(read_text(object, "parent", name, arena, &s->parent));
    TS_TRY(read_text(object, "change", name, arena, &s->change));
    TS_TRY(read_text(object, "timeline", name, arena, &s->timeline));
    TS_TRY(read_text(object, "negative", name, arena, &s->negative));
    TS_TRY(read_text(object, "model", name, arena, &s->model));
    return s->model ? read_sampling(s, object, name) : TS_FAIL(TS_EINPUT, "%s: \"model\" is missing", name);
}

int ts_state_from_json(ts_state *s, const json_t *object, const char *name, ts_arena *arena) {
    const json_t *canvas;
    TS_TRY(ts_state_head_from_json(s, object, name, arena));
    TS_TRY(ts_json_object(object, "canvas", name, &canvas));
    TS_TRY(read_canvas(&s->compiled.canvas, canvas, name, arena));
    return read_changes(s, object, name, arena);
}

// ---- names of objects

int ts_state_check_object_names(const json_t *list, const char *place, const char *key) {
    const json_t *item;
    size_t i;
    json_array_foreach(list, i, item) {
        const char *text = json_string_value(item);
        if (!text || !ts_store_is_name(text)) {
            return TS_FAIL(TS_EINPUT, "%s: \"%.20s\" names what is no object", place, key);
        }
    }
    return TS_OK;
}

int ts_state_object_names(const json_t *object, const char *name, int i, int64_t frames, const json_t **out) {
    const json_t *objects;
    TS_TRY(ts_json_object(object, "objects", name, &objects));
    TS_TRY(ts_json_array(objects, ts_state_list_name(i), name, out));
    if ((int64_t)json_array_size(*out) != frames) {
        return TS_FAIL(TS_EINPUT, "%s: \"%s\" must name %lld objects", name, ts_state_list_name(i), (long long)frames);
    }
    return ts_state_check_object_names(*out, name, ts_state_list_name(i));
}
