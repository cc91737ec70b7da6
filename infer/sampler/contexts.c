// SPDX-License-Identifier: Apache-2.0
#include "infer/sampler/contexts.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"

typedef struct context {
    const char *prompt;
    const float *value;  // [text rows, text width]
} context;

struct ts_contexts {
    const ts_model *model;
    const ts_kernels *kernels;
    ts_tape *tape;
    int64_t batch, numbers, count, room;
    context *item;
    ts_arena *names, *values;
};

int ts_contexts_open(ts_contexts **out, const ts_model *model, ts_tape *tape, int64_t batch) {
    const ts_dit_config *dit = ts_dit_get_config(model->dit);
    ts_contexts *c = ts_calloc(1, sizeof *c);
    if (!c) {
        return TS_ERESOURCE;
    }
    *c = (ts_contexts){.model = model, .kernels = ts_tape_kernels(tape), .tape = tape, .batch = batch};
    c->numbers = dit->text_rows * dit->text_dim;
    int status = ts_arena_open(&c->names, "prompts", 1 << 12, false);
    status = status ? status : ts_arena_open_on(&c->values, c->kernels->device, "contexts", 1, false);
    if (status) {
        ts_contexts_close(&c);
        return status;
    }
    *out = c;
    return TS_OK;
}

void ts_contexts_close(ts_contexts **contexts) {
    ts_contexts *c = *contexts;
    if (c) {
        ts_arena_close(&c->values);
        ts_arena_close(&c->names);
        free(c->item);
        free(c);
        *contexts = NULL;
    }
}

int64_t ts_contexts_numbers(const ts_contexts *c) {
    return c->numbers;
}

static const context *find(const ts_contexts *c, const char *prompt) {
    for (int64_t i = 0; i < c->count; i++) {
        if (strcmp(c->item[i].prompt, prompt) == 0) {
            return &c->item[i];
        }
    }
    return NULL;
}

// ---- encoding

// Lists those of `prompt` that are new, without values.
static int list_new(ts_contexts *c, const char *const *prompt, int64_t n) {
    if (c->count + n > c->room) {
        context *item = realloc(c->item, (size_t)(c->count + n) * sizeof *item);
        if (!item) {
            return TS_FAIL(TS_ERESOURCE, "out of memory for %lld prompts", (long long)(c->count + n));
        }
        c->item = item;
        c->room = c->count + n;
    }
    for (int64_t i = 0; i < n; i++) {
        if (!find(c, prompt[i])) {
            const char *name = ts_arena_strdup(c->names, prompt[i]);
            if (!name) {
                return TS_ERESOURCE;
            }
            c->item[c->count++] = (context){.prompt = name};
        }
    }
    return TS_OK;
}

// Encodes items [first, first + n), all at once.
static int encode(ts_contexts *c, int64_t first, int64_t n) {
    const size_t bytes = (size_t)(n * c->numbers) * sizeof(float);
    const char **prompt = ts_malloc((size_t)n * sizeof *prompt);
    float *value = ts_arena_alloc(c->values, bytes);
    if (!prompt || !value) {
        free(prompt);
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < n; i++) {
        prompt[i] = c->item[first + i].prompt;
        c->item[first + i].value = value + i * c->numbers;
    }
    ts_tape_reset(c->tape);
    const ts_var *encoded = ts_model_encode_text(c->tape, c->model, prompt, n);
    free(prompt);
    TS_TRY(ts_tape_status(c->tape));
    return c->kernels->device->copy(value, encoded->value.data, bytes);
}

int ts_contexts_add(ts_contexts *c, const char *const *prompt, int64_t n) {
    const int64_t before = c->count;
    int status = list_new(c, prompt, n);
    for (int64_t i = before; i < c->count && !status; i += c->batch) {
        status = encode(c, i, c->count - i < c->batch ? c->count - i : c->batch);
    }
    c->count = status ? before : c->count;
    return status;
}

// ---- mixing

int ts_contexts_mix(const ts_contexts *c, const char *const *prompt, const float *weight, int64_t n, float *out) {
    ts_combine sum = {.n = c->numbers, .out = out};
    for (int64_t i = 0; i < n; i++) {
        if (weight[i] == 0.0f) {
            continue;
        }
        if (sum.terms == TS_MAX_TERMS) {  // what there is becomes the first term of the rest
            TS_TRY(c->kernels->combine(&sum));
            sum.terms = 1;
            sum.c[0] = 1.0;
            sum.x[0] = out;
        }
        const context *item = find(c, prompt[i]);
        TS_ASSERT(item);
        sum.c[sum.terms] = (double)weight[i];
        sum.x[sum.terms++] = item->value;
    }
    TS_ASSERT(sum.terms > 0);
    return c->kernels->combine(&sum);
}
