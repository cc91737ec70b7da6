// SPDX-License-Identifier: Apache-2.0
// What each token is told: its noise level, and which context it sees.
#include "core/base/arena.h"
#include "core/model/dit_private.h"

// ---- checks

static int check_image(const ts_dit_config *c, const ts_shape *image, int64_t batch) {
    if (image->ndim != 3 || image->dim[0] != batch || image->dim[1] < 1 || image->dim[2] != c->image_dim) {
        return TS_FAIL(TS_EINPUT, "the transformer wants image features [%lld, rows, %lld]", (long long)batch,
                       (long long)c->image_dim);
    }
    if (c->image_positions && image->dim[1] != c->image_positions) {
        return TS_FAIL(TS_EINPUT, "the transformer wants %lld rows of image features, and has %lld",
                       (long long)c->image_positions, (long long)image->dim[1]);
    }
    return 0;
}

static int check_frame_contexts(const int32_t *context, int64_t frames, int64_t contexts) {
    if (!context) {
        return contexts == frames ? TS_OK
                                  : TS_FAIL(TS_EINPUT,
                                            "%lld contexts for each sample: wanted 1, or one for each of %lld "
                                            "frames",
                                            (long long)contexts, (long long)frames);
    }
    for (int64_t f = 0; f < frames; f++) {
        if (context[f] < (f > 0 ? context[f - 1] : 0) || context[f] >= contexts) {
            return TS_FAIL(TS_EINPUT, "frame %lld sees context %d of %lld: they must not fall from frame to frame",
                           (long long)f, context[f], (long long)contexts);
        }
    }
    return TS_OK;
}

static int check_contexts(const ts_dit_config *c, const ts_dit_input *in, int64_t batch, int64_t frames) {
    const ts_shape *text = &in->context->value.shape;
    const int64_t contexts = in->contexts_per_sample;
    if (contexts > 1) {
        TS_TRY(check_frame_contexts(in->frame_context, frames, contexts));
    }
    const bool several = contexts > 1, counted = !several || (text->ndim == 4 && text->dim[1] == contexts);
    if (contexts < 0 || text->ndim != 3 + several || !counted || text->dim[0] != batch || text->dim[1 + several] < 1 ||
        text->dim[2 + several] != c->text_dim) {
        return several ? TS_FAIL(TS_EINPUT, "the transformer wants contexts [%lld, %lld, rows, %lld]", (long long)batch,
                                 (long long)contexts, (long long)c->text_dim)
                       : TS_FAIL(TS_EINPUT, "the transformer wants a context [%lld, rows, %lld]", (long long)batch,
                                 (long long)c->text_dim);
    }
    return TS_OK;
}

int dit_check_condition(const ts_dit_config *c, const ts_dit_input *in) {
    const ts_shape *s = &in->latent->value.shape;
    const int64_t frames = s->dim[1] / c->patch[0];
    const int64_t tokens = frames * (s->dim[2] / c->patch[1]) * (s->dim[3] / c->patch[2]);
    const int64_t n = in->timesteps_per_sample;
    TS_TRY(check_contexts(c, in, s->dim[0], frames));
    if (n != 1 && n != frames && n != tokens) {
        return TS_FAIL(TS_EINPUT, "%lld timesteps for each sample: wanted 1, %lld (frames) or %lld (tokens)",
                       (long long)n, (long long)frames, (long long)tokens);
    }
    if (!in->image != !c->image_dim) {
        return TS_FAIL(TS_EINPUT, c->image_dim ? "this transformer wants image features"
                                               : "this transformer takes no image features");
    }
    return in->image ? check_image(c, &in->image->value.shape, s->dim[0]) : 0;
}

// ---- noise levels

// The different levels seen so far, found by their bits. Once half of the places are taken new levels are no longer
// remembered, so that a search always comes to an end.
enum { LEVEL_BITS = 11, LEVEL_PLACES = 1 << LEVEL_BITS };
typedef struct level_table {
    int32_t row_after[LEVEL_PLACES];  // row + 1 of the level that has this place; 0: none
    int64_t rows;
    float *t;  // [rows]
} level_table;

// The row of a level, a new one if need be.
static int32_t level_row(level_table *table, float level) {
    uint32_t bits;
    memcpy(&bits, &level, sizeof bits);
    uint32_t place = bits * 2654435761u >> (32 - LEVEL_BITS);  // Knuth's multiplicative hash
    while (table->row_after[place] && table->t[table->row_after[place] - 1] != level) {
        place = (place + 1) % LEVEL_PLACES;
    }
    if (!table->row_after[place]) {
        table->t[table->rows++] = level;
        if (table->rows > LEVEL_PLACES / 2) {
            return (int32_t)(table->rows - 1);
        }
        table->row_after[place] = (int32_t)table->rows;
    }
    return table->row_after[place] - 1;
}

// Equal timesteps share a row of the modulation table: one noise level for each sample costs B rows, not B L. A
// backward pass sums over runs of rows, so that only neighbours share one there; where none follows all that are equal
// do: held and free tokens may take turns.
int64_t dit_levels(ts_tape *tape, const ts_dit_input *in, int32_t *level, float *t) {
    const int64_t count = in->latent->value.shape.dim[0] * in->timesteps_per_sample;
    const bool runs = ts_tape_keeps(tape);
    level_table table = {.t = t};
    for (int64_t i = 0; i < count; i++) {
        // Without values (counting) every timestep is taken as different.
        const float value = in->timestep ? in->timestep[i] : 0.0f;
        if (in->timestep && i > 0 && value == in->timestep[i - 1]) {
            level[i] = level[i - 1];
        } else if (in->timestep && !runs) {
            level[i] = level_row(&table, value);
        } else {
            t[table.rows] = value;
            level[i] = (int32_t)table.rows++;
        }
    }
    return table.rows;
}

// ---- contexts

// Tokens of `part` that lie before token `place` of the sample.
static int64_t before(ts_part part, int64_t place) {
    const int64_t count = place - part.first;
    return count < 0 ? 0 : count > part.count ? part.count : count;
}

int dit_contexts(ts_tape *tape, const ts_dit_input *in, const ts_tokens *tokens, int64_t frames,
                 ts_attention_contexts *out) {
    *out = (ts_attention_contexts){1, NULL};
    if (in->contexts_per_sample <= 1) {
        return TS_OK;
    }
    const int64_t contexts = in->contexts_per_sample, tokens_per_frame = tokens->tokens / frames;
    int64_t *first = ts_tape_object(tape, (size_t)(contexts + 1) * sizeof *first);
    if (!first) {
        return ts_tape_status(tape);
    }
    for (int64_t c = 0, frame = 0; c <= contexts; c++) {
        while (frame < frames && (in->frame_context ? in->frame_context[frame] : frame) < c) {
            frame++;
        }
        first[c] = before(tokens->part, frame * tokens_per_frame);
    }
    *out = (ts_attention_contexts){contexts, first};
    return TS_OK;
}
