// SPDX-License-Identifier: Apache-2.0
#include "train/objective.h"

#include <math.h>
#include <string.h>

#include "core/base/rng.h"
#include "core/base/status.h"
#include "core/nn/layer.h"

const char *const ts_pattern_names[TS_PATTERN_COUNT] = {
    [TS_PATTERN_ALL] = "all",
    [TS_PATTERN_PREFIX] = "prefix",
    [TS_PATTERN_SUFFIX] = "suffix",
    [TS_PATTERN_BOTH_ENDS] = "both_ends",
    [TS_PATTERN_SCATTERED] = "scattered",
    [TS_PATTERN_INDEPENDENT] = "independent",
};

ts_objective ts_objective_from_config(const ts_train_config *config) {
    return (ts_objective){
        .seed = (uint64_t)config->seed,
        .mean = config->noise.mean,
        .std = config->noise.std,
        .shift = config->noise.shift,
        .uniform_share = config->noise.uniform_share,
        .text_dropout = config->train.text_dropout,
        .pattern = {[TS_PATTERN_ALL] = config->patterns.all,
                    [TS_PATTERN_PREFIX] = config->patterns.prefix,
                    [TS_PATTERN_SUFFIX] = config->patterns.suffix,
                    [TS_PATTERN_BOTH_ENDS] = config->patterns.both_ends,
                    [TS_PATTERN_SCATTERED] = config->patterns.scattered,
                    [TS_PATTERN_INDEPENDENT] = config->patterns.independent},
    };
}

double ts_sigma_shift(double sigma, double shift) {
    return shift * sigma / (1.0 + (shift - 1.0) * sigma);
}

// ---- patterns

// Lanes of the pattern stream: the kind, two counts, then one for each frame.
enum { LANE_KIND = 0, LANE_COUNT = 1, LANE_SPLIT = 2, LANE_FRAME = 4 };

static ts_pattern draw_kind(const ts_objective *o, uint64_t sample, int64_t frames) {
    double total = 0;
    for (int i = 0; i < TS_PATTERN_COUNT; i++) {
        total += o->pattern[i];
    }
    double left = total * (double)ts_rng_uniform(o->seed, TS_RNG_PATTERN, sample, LANE_KIND);
    int kind = TS_PATTERN_ALL;
    for (int i = 0; i < TS_PATTERN_COUNT; i++) {
        if (o->pattern[i] > 0) {
            kind = i;  // the last one with a weight wins when rounding leaves a remainder
            if (left < o->pattern[i]) {
                break;
            }
            left -= o->pattern[i];
        }
    }
    const int64_t needed = kind == TS_PATTERN_ALL || kind == TS_PATTERN_INDEPENDENT ? 1
                           : kind == TS_PATTERN_BOTH_ENDS                           ? 3
                                                                                    : 2;
    return frames >= needed ? (ts_pattern)kind : TS_PATTERN_ALL;
}

static int64_t below(const ts_objective *o, uint64_t sample, int64_t lane, int64_t n) {
    return (int64_t)ts_rng_below(o->seed, TS_RNG_PATTERN, sample, (uint32_t)lane, (uint64_t)n);
}

ts_pattern ts_objective_held(const ts_objective *o, uint64_t sample, int64_t frames, bool *held) {
    memset(held, 0, (size_t)frames * sizeof *held);
    const ts_pattern kind = draw_kind(o, sample, frames);
    if (kind == TS_PATTERN_ALL || kind == TS_PATTERN_INDEPENDENT) {
        return kind;
    }
    int64_t head = 0, tail = 0;
    if (kind == TS_PATTERN_BOTH_ENDS) {
        const int64_t both = 2 + below(o, sample, LANE_COUNT, frames - 2);
        head = 1 + below(o, sample, LANE_SPLIT, both - 1);
        tail = both - head;
    } else {
        const int64_t count = 1 + below(o, sample, LANE_COUNT, frames - 1);
        head = kind == TS_PATTERN_PREFIX ? count : 0;
        tail = kind == TS_PATTERN_SUFFIX ? count : 0;
        // Selection sampling (Knuth, volume 2, algorithm S): each frame with probability wanted / left.
        for (int64_t f = 0, wanted = count; kind == TS_PATTERN_SCATTERED && f < frames; f++) {
            held[f] = below(o, sample, LANE_FRAME + f, frames - f) < wanted;
            wanted -= held[f];
        }
    }
    for (int64_t f = 0; f < frames; f++) {
        held[f] = held[f] || f < head || f >= frames - tail;
    }
    return kind;
}

int64_t ts_objective_loss_frames(const ts_objective *o, uint64_t first, int64_t count, int64_t frames) {
    bool held[TS_OBJECTIVE_MAX_FRAMES];
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++) {
        ts_objective_held(o, first + (uint64_t)i, frames, held);
        for (int64_t f = 0; f < frames; f++) {
            total += !held[f];
        }
    }
    return total;
}

// ---- noise levels

// Lanes of the level stream. Normals take words in groups of four, so the uniforms stand well apart from them.
enum { LANE_NORMAL = 0, LANE_IS_UNIFORM = 1 << 20, LANE_UNIFORM = 1 << 21 };

static float draw_level(const ts_objective *o, uint64_t sample, int64_t frame) {
    const uint32_t lane = (uint32_t)frame;
    double u;
    if ((double)ts_rng_uniform(o->seed, TS_RNG_SIGMA, sample, LANE_IS_UNIFORM + lane) < o->uniform_share) {
        u = (double)ts_rng_uniform(o->seed, TS_RNG_SIGMA, sample, LANE_UNIFORM + lane);
    } else {
        const double z = (double)ts_rng_normal(o->seed, TS_RNG_SIGMA, sample, LANE_NORMAL + lane);
        u = 1.0 / (1.0 + exp(-(o->mean + o->std * z)));
    }
    return (float)ts_sigma_shift(u, o->shift);
}

ts_pattern ts_objective_levels(const ts_objective *o, uint64_t sample, int64_t frames, float *sigma, float *weight) {
    bool held[TS_OBJECTIVE_MAX_FRAMES];
    const ts_pattern kind = ts_objective_held(o, sample, frames, held);
    const float common = draw_level(o, sample, 0);
    for (int64_t f = 0; f < frames; f++) {
        const float level = kind == TS_PATTERN_INDEPENDENT ? draw_level(o, sample, f) : common;
        sigma[f] = held[f] ? 0.0f : level;
        weight[f] = held[f] ? 0.0f : 1.0f;
    }
    return kind;
}

bool ts_objective_drops_text(const ts_objective *o, uint64_t sample) {
    return (double)ts_rng_uniform(o->seed, TS_RNG_TEXT_DROP, sample, 0) < o->text_dropout;
}

// ---- inputs and targets

// timestep, weight and prompt; the levels go to sigma [B, T].
static void draw(const ts_objective *o, const ts_clean *clean, float *sigma, ts_noisy *out) {
    const int64_t frames = clean->shape.dim[0];
    for (int64_t i = 0; i < clean->count; i++) {
        const uint64_t sample = clean->first + (uint64_t)i;
        ts_objective_levels(o, sample, frames, sigma + i * frames, out->weight + i * frames);
        for (int64_t row = i * frames; row < (i + 1) * frames; row++) {
            out->timestep[row] = 1000.0f * sigma[row];
        }
        out->prompt[i] = ts_objective_drops_text(o, sample) ? "" : clean->caption[i];
    }
}

static int add_noise(const ts_objective *o, const ts_kernels *kernels, const ts_clean *clean, const float *x0,
                     const float *sigma, const ts_noisy *out) {
    const int64_t size = ts_shape_count(clean->shape), frames = clean->shape.dim[0];
    for (int64_t i = 0; i < clean->count; i++) {
        const uint64_t sample = clean->first + (uint64_t)i;
        TS_TRY(kernels->noise(out->target + i * size, size, o->seed, TS_RNG_NOISE, sample, 0));
    }
    return kernels->mix(&(ts_mix){.rows = clean->count * frames,
                                  .width = size / frames,
                                  .x0 = x0,
                                  .sigma = sigma,
                                  .x = out->x,
                                  .eps_to_target = out->target});
}

int ts_objective_prepare(const ts_objective *o, ts_tape *tape, const ts_clean *clean, ts_noisy *out) {
    ts_arena *arena = ts_tape_arena(tape);
    const size_t rows = (size_t)(clean->count * clean->shape.dim[0]);
    const size_t elements = (size_t)(clean->count * ts_shape_count(clean->shape));
    float *sigma = ts_tape_object(tape, rows * sizeof *sigma);
    *out = (ts_noisy){.x = ts_arena_alloc(arena, elements * sizeof *out->x),
                      .target = ts_arena_alloc(arena, elements * sizeof *out->target),
                      .timestep = ts_tape_object(tape, rows * sizeof *out->timestep),
                      .weight = ts_tape_object(tape, rows * sizeof *out->weight),
                      .prompt = ts_tape_object(tape, (size_t)clean->count * sizeof *out->prompt)};
    if (!sigma || !out->x || !out->target || !out->timestep || !out->weight || !out->prompt) {
        return TS_ERESOURCE;
    }
    const bool computes = ts_tape_computes(tape);
    if (computes) {
        draw(o, clean, sigma, out);
    }
    const float *levels = ts_tape_upload(tape, sigma, rows * sizeof *sigma), *x0 = clean->latent;
    TS_TRY(ts_tape_status(tape));
    // Latents as stored are widened in memory that the model's values then take.
    const ts_arena_mark mark = ts_arena_save(arena);
    if (clean->dtype != TS_F32) {
        float *wide = ts_arena_alloc(arena, elements * sizeof *wide);
        x0 = wide;
        TS_TRY(wide ? TS_OK : TS_ERESOURCE);
        TS_TRY(computes ? ts_tape_kernels(tape)->cast(clean->latent, clean->dtype, wide, TS_F32, (int64_t)elements)
                        : TS_OK);
    }
    TS_TRY(computes ? add_noise(o, ts_tape_kernels(tape), clean, x0, levels, out) : TS_OK);
    ts_arena_release(arena, mark);
    return TS_OK;
}
