// SPDX-License-Identifier: Apache-2.0
// A compiled timeline from one rank to the others: numbers of fixed size first, then what they count.
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "infer/timeline/compile_private.h"

typedef struct header {
    int64_t frames, height, width, channels, patch_h, patch_w, window, overlap, context;
    int64_t prompts, changes, text_bytes;
    uint64_t index;
    int64_t loop, source;
} header;

// The strings, one after the other: prompts of the canvas, then of the changes.
static const char *string_at(const ts_compiled *c, int64_t i) {
    return i < c->canvas.prompts ? c->canvas.prompt[i] : c->change[i - c->canvas.prompts].prompt;
}

static int pack(header *out, char **text, const ts_compiled *c) {
    const ts_canvas *canvas = &c->canvas;
    *out = (header){.frames = canvas->frames,
                    .height = canvas->height,
                    .width = canvas->width,
                    .channels = canvas->channels,
                    .patch_h = canvas->height / canvas->rows,
                    .patch_w = canvas->width / canvas->columns,
                    .window = canvas->window,
                    .overlap = canvas->overlap,
                    .context = canvas->context,
                    .prompts = canvas->prompts,
                    .changes = c->changes,
                    .index = canvas->index,
                    .loop = canvas->loop,
                    .source = canvas->source != NULL};
    for (int64_t i = 0; i < canvas->prompts + c->changes; i++) {
        out->text_bytes += (int64_t)strlen(string_at(c, i)) + 1;
    }
    *text = ts_malloc((size_t)out->text_bytes);
    if (!*text) {
        return TS_ERESOURCE;
    }
    char *to = *text;
    for (int64_t i = 0; i < canvas->prompts + c->changes; i++) {
        to = stpcpy(to, string_at(c, i)) + 1;
    }
    return TS_OK;
}

// Room for what `h` counts, in a compiled timeline of zeros.
static int unpack(const header *h, ts_compiled *c) {
    TS_TRY(ts_canvas_open(&c->canvas, h->frames, h->height, h->width, h->channels, h->patch_h, h->patch_w, "", 0));
    c->canvas.loop = h->loop;
    c->canvas.window = h->window;
    c->canvas.overlap = h->overlap;
    c->canvas.context = h->context;
    c->canvas.index = h->index;
    TS_TRY(ts_compile_room(&c->canvas, h->prompts));
    if (h->source) {
        TS_TRY(ts_canvas_add_source(&c->canvas));
    }
    c->changes = h->changes;
    c->change = ts_calloc((size_t)h->changes + 1, sizeof *c->change);
    c->text = ts_malloc((size_t)h->text_bytes);
    return c->change && c->text ? TS_OK : TS_ERESOURCE;
}

static void unpack_strings(ts_compiled *c) {
    const char *from = c->text;
    for (int64_t i = 0; i < c->canvas.prompts + c->changes; i++, from += strlen(from) + 1) {
        *(i < c->canvas.prompts ? &c->canvas.prompt[i] : &c->change[i - c->canvas.prompts].prompt) = from;
    }
}

static int send_arrays(const header *h, const ts_compiled *c, char *text, ts_comm *comm, int root) {
    const ts_canvas *canvas = &c->canvas;
    const int64_t frame = h->height * h->width * h->channels, tokens = canvas->rows * canvas->columns;
    const int64_t number = (int64_t)sizeof(float);
    TS_TRY(ts_broadcast(comm, canvas->weight, h->frames * h->prompts * number, root));
    TS_TRY(ts_broadcast(comm, canvas->guidance, h->frames * number, root));
    if (h->source) {
        TS_TRY(ts_broadcast(comm, canvas->source, h->frames * frame * number, root));
        TS_TRY(ts_broadcast(comm, canvas->strength, h->frames * tokens * number, root));
    }
    TS_TRY(ts_broadcast(comm, c->change, h->changes * (int64_t)sizeof *c->change, root));
    return ts_broadcast(comm, text, h->text_bytes, root);
}

int ts_compiled_share(ts_compiled *compiled, ts_comm *comm, int root) {
    header h = {0};
    char *text = NULL;
    const bool mine = ts_comm_rank(comm) == root;
    if (!mine) {
        *compiled = (ts_compiled){0};
    }
    int status = mine ? pack(&h, &text, compiled) : TS_OK;
    TS_TRY_GOTO(status, ts_agree(comm, status), done);
    TS_TRY_GOTO(status, ts_broadcast(comm, &h, sizeof h, root), done);
    status = mine ? TS_OK : unpack(&h, compiled);
    TS_TRY_GOTO(status, ts_agree(comm, status), done);
    TS_TRY_GOTO(status, send_arrays(&h, compiled, mine ? text : compiled->text, comm, root), done);
    if (!mine) {
        unpack_strings(compiled);  // pointers of the root came with the changes
    }
done:
    free(text);
    if (status) {
        ts_compiled_close(compiled);
    }
    return status;
}
