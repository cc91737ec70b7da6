// SPDX-License-Identifier: Apache-2.0
#include "core/base/rng.h"

#include <string.h>

#include "core/base/rng_math.h"
#include "core/base/status.h"

__extension__ typedef unsigned __int128 wide;

enum { BLOCK = 16 };  // BLOCK draws are made side by side, in vector registers

ts_philox ts_philox_draw(uint64_t seed, uint32_t purpose, uint64_t index, uint32_t lane) {
    ts_philox c;
    ts_philox_words(seed, purpose, index, lane, c.word);
    return c;
}

float ts_rng_uniform(uint64_t seed, uint32_t purpose, uint64_t index, uint32_t lane) {
    const ts_philox draw = ts_philox_draw(seed, purpose, index, lane / 4);
    return (float)(draw.word[lane % 4] >> 8) * 0x1p-24f;
}

float ts_rng_normal(uint64_t seed, uint32_t purpose, uint64_t index, uint32_t lane) {
    float out;
    ts_rng_normal_fill(&out, 1, seed, purpose, index, lane);
    return out;
}

uint64_t ts_rng_below(uint64_t seed, uint32_t purpose, uint64_t index, uint32_t lane, uint64_t n) {
    TS_ASSERT(n > 0);
    const ts_philox draw = ts_philox_draw(seed, purpose, index, lane);
    const uint64_t bits = (uint64_t)draw.word[1] << 32 | draw.word[0];
    return (uint64_t)(((wide)bits * n) >> 64);
}

// The 4 * BLOCK normals of draws first_lane .. first_lane + BLOCK - 1.
static void normal_block(float out[4 * BLOCK], uint64_t seed, uint32_t purpose, uint64_t index, uint32_t first_lane) {
    uint32_t c0[BLOCK], c1[BLOCK], c2[BLOCK], c3[BLOCK];
    for (uint32_t i = 0; i < BLOCK; i++) {
        c0[i] = first_lane + i;
        c1[i] = purpose;
        c2[i] = (uint32_t)index;
        c3[i] = (uint32_t)(index >> 32);
    }
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < TS_PHILOX_ROUNDS; round++) {
        for (int i = 0; i < BLOCK; i++) {
            ts_philox_round(&c0[i], &c1[i], &c2[i], &c3[i], key0, key1);
        }
        key0 += TS_PHILOX_WEYL0;
        key1 += TS_PHILOX_WEYL1;
    }
    for (int i = 0; i < BLOCK; i++) {
        ts_rng_box_muller(c0[i], c1[i], &out[4 * i], &out[4 * i + 1]);
        ts_rng_box_muller(c2[i], c3[i], &out[4 * i + 2], &out[4 * i + 3]);
    }
}

void ts_rng_normal_fill(float *out, int64_t n, uint64_t seed, uint32_t purpose, uint64_t index, int64_t first) {
    TS_ASSERT(n >= 0 && first >= 0 && first <= ((int64_t)1 << 34) - n);
    int64_t lane = first / 4, done = 0;
    int64_t skip = first % 4;  // numbers of the first draw that lie before `first`
    while (done < n) {
        if (skip == 0 && n - done >= 4 * BLOCK) {
            normal_block(out + done, seed, purpose, index, (uint32_t)lane);
            done += 4 * BLOCK;
        } else {
            float block[4 * BLOCK];
            normal_block(block, seed, purpose, index, (uint32_t)lane);
            const int64_t room = 4 * BLOCK - skip, take = n - done < room ? n - done : room;
            memcpy(out + done, block + skip, (size_t)take * sizeof *out);
            done += take;
        }
        skip = 0;
        lane += BLOCK;
    }
}

void ts_rng_permutation(int64_t *order, int64_t n, uint64_t seed, uint32_t purpose, uint64_t index) {
    TS_ASSERT(n >= 0 && n <= UINT32_MAX);
    for (int64_t i = 0; i < n; i++) {
        order[i] = i;
    }
    for (int64_t i = n - 1; i > 0; i--) {
        const int64_t j = (int64_t)ts_rng_below(seed, purpose, index, (uint32_t)i, (uint64_t)i + 1);
        const int64_t kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}
