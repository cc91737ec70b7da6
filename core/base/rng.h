// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11).
//
// A random number is a pure function of (seed, purpose, index, lane): no state, so any rank can draw any number.
// key = seed; counter = {lane, purpose, index low, index high}.
// Normals come from Box-Muller with our own logarithm and sine (rng_math.h) made of IEEE multiplications, additions,
// divisions and square roots, never fused, so that they are bitwise equal on every processor and compiler.
#ifndef TS_BASE_RNG_H
#define TS_BASE_RNG_H

#include <stdint.h>

// What a draw is for. Values are part of the reproducibility contract: never renumber.
typedef enum {
    TS_RNG_INIT = 1,        // initial weights; index = hash of the parameter's name
    TS_RNG_SHUFFLE = 2,     // sample order; index = epoch
    TS_RNG_NOISE = 3,       // training noise; index = global sample counter
    TS_RNG_SIGMA = 4,       // training noise level
    TS_RNG_PATTERN = 5,     // noise pattern and held frames
    TS_RNG_TEXT_DROP = 6,   // text dropout
    TS_RNG_SAMPLE = 7,      // starting noise of generation; index = prompt index
    TS_RNG_WORLD = 8,       // procedural corpora; index = clip
    TS_RNG_VALIDATION = 9,  // fixed validation noise
    TS_RNG_CODEC = 10,      // sample of clips for codec fitting
    TS_RNG_TEST = 11,
    TS_RNG_ROUND = 12,  // stochastic rounding; index = optimizer step
    TS_RNG_HEAD = 13,   // noise of the first frames of windows; index = that of the video
    TS_RNG_RENEW = 14   // noise between steps, where windows are joined; index = that of the video + 2^32 step
} ts_rng_purpose;

typedef struct ts_philox {
    uint32_t word[4];
} ts_philox;

ts_philox ts_philox_draw(uint64_t seed, uint32_t purpose, uint64_t index, uint32_t lane);

// Uniform in [0,1) with 24 random bits, and standard normal, for scalar uses: the lane-th number of the stream, which
// is word lane % 4 of draw lane / 4.
float ts_rng_uniform(uint64_t seed, uint32_t purpose, uint64_t index, uint32_t lane);
float ts_rng_normal(uint64_t seed, uint32_t purpose, uint64_t index, uint32_t lane);
// Uniform integer in [0, n), n > 0, without modulo bias beyond 2^-64; from draw `lane`.
uint64_t ts_rng_below(uint64_t seed, uint32_t purpose, uint64_t index, uint32_t lane, uint64_t n);

// out[i] = normal number (first + i) of stream (seed, purpose, index). Number e is element e % 4 of draw lane e / 4, so
// any slice of a noise tensor can be made by any rank. f32, host. first + n <= 2^34.
void ts_rng_normal_fill(float *out, int64_t n, uint64_t seed, uint32_t purpose, uint64_t index, int64_t first);

// order[0..n) = the permutation of 0..n-1 for (seed, purpose, index): Fisher-Yates. O(n), n < 2^32.
void ts_rng_permutation(int64_t *order, int64_t n, uint64_t seed, uint32_t purpose, uint64_t index);

#endif
