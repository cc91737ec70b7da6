// SPDX-License-Identifier: Apache-2.0
#include "train/objective.h"

#include <math.h>
#include <string.h>

#include "core/base/rng.h"
#include "core/base/status.h"

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

void ts_objective_mix(const float *x0, float sigma, float *x, float *eps_to_target, int64_t n) {
#pragma omp parallel for simd schedule(static) if (n > 16384)
    for (int64_t i = 0; i < n; i++) {
        const float eps = eps_to_target[i];
        x[i] = (1.0f - sigma) * x0[i] + sigma * eps;
        eps_to_target[i] = eps - x0[i];
    }
}

int ts_objective_prepare(const ts_objective *o, const ts_kernels *kernels, const float *latent,
                         const char *const *caption, uint64_t first, int64_t count, ts_shape shape, ts_arena *arena,
                         ts_noisy *out) {
    const int64_t frames = shape.dim[0], frame_size = ts_shape_count(shape) / frames;
    const size_t bytes = (size_t)(count * frames * frame_size) * sizeof(float);
    const size_t row_bytes = (size_t)(count * frames) * sizeof(float);
    out->x = ts_arena_alloc(arena, bytes);
    out->target = ts_arena_alloc(arena, bytes);
    out->timestep = ts_arena_alloc(arena, row_bytes);
    out->weight = ts_arena_alloc(arena, row_bytes);
    out->prompt = ts_arena_alloc(arena, (size_t)count * sizeof *out->prompt);
    if (!out->x || !out->target || !out->timestep || !out->weight || !out->prompt) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < count && !ts_arena_counting(arena); i++) {
        const uint64_t sample = first + (uint64_t)i;
        float *sigma = out->timestep + i * frames;
        ts_objective_levels(o, sample, frames, sigma, out->weight + i * frames);
        float *target = out->target + i * frames * frame_size;
        TS_TRY(kernels->noise(target, frames * frame_size, o->seed, TS_RNG_NOISE, sample, 0));
        for (int64_t f = 0; f < frames; f++) {
            const int64_t at = (i * frames + f) * frame_size;
            ts_objective_mix(latent + at, sigma[f], out->x + at, out->target + at, frame_size);
            sigma[f] *= 1000.0f;
        }
        out->prompt[i] = ts_objective_drops_text(o, sample) ? "" : caption[i];
    }
    return TS_OK;
}
