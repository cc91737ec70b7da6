// SPDX-License-Identifier: Apache-2.0
// What stands in the same tokens becomes one: weighted means, kept up to date entry by entry. The first entry of a
// token is copied, so that a token with one source has that source's bits.
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "infer/timeline/compile_private.h"

int ts_mixture_open(ts_mixture *out, ts_canvas *canvas, const ts_codec *codec) {
    const size_t tokens = (size_t)(canvas->frames * canvas->rows * canvas->columns);
    const int64_t time_factor = ts_codec_get_info(codec).time_factor;
    *out = (ts_mixture){.canvas = canvas,
                        .codec = codec,
                        .time_factor = time_factor,
                        .by_frame = ts_calloc(tokens * (size_t)time_factor, sizeof *out->by_frame),
                        .among = ts_calloc((size_t)time_factor, sizeof *out->among),
                        .total = ts_calloc(tokens, sizeof *out->total),
                        .largest = ts_calloc(tokens, sizeof *out->largest),
                        .loose = ts_calloc(tokens, sizeof *out->loose),
                        .black = ts_calloc(tokens, sizeof *out->black)};
    if (!out->total || !out->by_frame || !out->among || !out->largest || !out->loose || !out->black) {
        ts_mixture_close(out);
        return TS_ERESOURCE;
    }
    return TS_OK;
}

void ts_mixture_close(ts_mixture *mixture) {
    free(mixture->total);
    free(mixture->by_frame);
    free(mixture->among);
    free(mixture->largest);
    free(mixture->loose);
    free(mixture->black);
    *mixture = (ts_mixture){0};
}

// A part of a frame's latents: the rows and columns of positions that are one token.
typedef struct patch {
    int64_t first, height, numbers, stride;  // numbers of a row of it, and from row to row
} patch;

static patch patch_of(const ts_canvas *c, int64_t row, int64_t column) {
    const int64_t height = c->height / c->rows, width = c->width / c->columns;
    return (patch){.first = (row * height * c->width + column * width) * c->channels,
                   .height = height,
                   .numbers = width * c->channels,
                   .stride = c->width * c->channels};
}

static void copy_patch(float *to, const float *from, patch p) {
    for (int64_t y = 0; y < p.height; y++) {
        const int64_t first = p.first + y * p.stride;
        memcpy(to + first, from + first, (size_t)p.numbers * sizeof *to);
    }
}

static void blend_patch(float *to, const float *from, patch p, float share) {
    for (int64_t y = 0; y < p.height; y++) {
        for (int64_t i = p.first + y * p.stride, end = i + p.numbers; i < end; i++) {
            to[i] += share * (from[i] - to[i]);
        }
    }
}

// The same where one goes over into the other within a group of pixel frames.
static void cross_patch(const ts_mixture *m, float *to, const float *from, patch p) {
    for (int64_t y = 0; y < p.height; y++) {
        const int64_t first = p.first + y * p.stride;
        ts_codec_cross(m->codec, m->among, from + first, p.numbers / m->canvas->channels, to + first);
    }
}

// Sets `among` to what an entry's weights [time_factor] are of all the weights so far, its own included. Returns
// whether that is one number throughout.
static bool add_weights(ts_mixture *m, int64_t token, const float *weight, float times) {
    float *sum = m->by_frame + token * m->time_factor, *share = m->among;
    bool alike = true;
    for (int64_t k = 0; k < m->time_factor; k++) {
        sum[k] += times * weight[k];
        share[k] = sum[k] > 0 ? times * weight[k] / sum[k] : 0;
        alike = alike && share[k] == share[0];
    }
    return alike;
}

// An entry as a token sees it.
typedef struct part {
    const float *latent;  // [H, W, C]
    const float *weight;  // [time_factor]
    float mean_weight, share, strength;
} part;

// One token: a weighted mean of what stood there and the new one.
static void add_token(ts_mixture *m, int64_t token, float *to, part e, patch p) {
    const bool black = e.share <= 0;
    float *mean = &m->canvas->strength[token];
    if (black && m->total[token] > 0 && !m->black[token]) {
        return;
    }
    if (!black && m->black[token]) {
        m->total[token] = 0;
    }
    const float times = black ? 1 : e.share, counts = times * e.mean_weight;
    if (m->total[token] <= 0) {
        memset(m->by_frame + token * m->time_factor, 0, (size_t)m->time_factor * sizeof *m->by_frame);
        add_weights(m, token, e.weight, times);
        copy_patch(to, e.latent, p);
        *mean = e.strength * e.share;
        m->total[token] = m->largest[token] = counts;
        m->black[token] = black;
        return;
    }
    m->total[token] += counts;
    m->largest[token] = m->largest[token] > counts ? m->largest[token] : counts;
    if (add_weights(m, token, e.weight, times)) {
        blend_patch(to, e.latent, p, m->among[0]);
    } else {
        cross_patch(m, to, e.latent, p);
    }
    *mean += counts / m->total[token] * (e.strength * e.share - *mean);
}

void ts_mixture_add(ts_mixture *m, int64_t t, const float *latent, const float *weight, double strength,
                    const float *share) {
    const ts_canvas *c = m->canvas;
    float *to = c->source + t * c->height * c->width * c->channels;
    float mean = 0;
    for (int64_t k = 0; k < m->time_factor; k++) {
        mean += weight[k] / (float)m->time_factor;
    }
    for (int64_t row = 0, i = 0; row < c->rows; row++) {
        for (int64_t column = 0; column < c->columns; column++, i++) {
            const part entry = {latent, weight, mean, share[i], (float)strength};
            add_token(m, t * c->rows * c->columns + i, to, entry, patch_of(c, row, column));
        }
    }
}

void ts_mixture_loosen(ts_mixture *m, int64_t t, double strength, const float *share) {
    const int64_t tokens = m->canvas->rows * m->canvas->columns;
    for (int64_t i = 0; i < tokens; i++) {
        float *loose = &m->loose[t * tokens + i];
        const float asked = (float)strength * share[i];
        *loose = *loose > asked ? *loose : asked;
    }
}

void ts_mixture_finish(ts_mixture *m, double mix) {
    const ts_canvas *c = m->canvas;
    for (int64_t i = 0; i < c->frames * c->rows * c->columns; i++) {
        if (m->total[i] <= 0) {
            continue;  // free: nothing stands there
        }
        const float mixed = 2 * (1 - m->largest[i] / m->total[i]);
        const float least = (float)mix * (mixed < 1 ? mixed : 1);
        float *strength = &c->strength[i];
        *strength = *strength > least ? *strength : least;
        *strength = *strength > m->loose[i] ? *strength : m->loose[i];
        *strength = *strength < 1 ? *strength : 1;
    }
}
