// SPDX-License-Identifier: Apache-2.0
// The pca codec in use: encoding and decoding are products with tall matrices, done four blocks by eight columns at a
// time. Plain multiplications and additions in one order: the same bits on every processor and for any thread count.
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/model/codec/codec_pca.h"

enum { ROWS = 4, PANEL = 8, RUN = TS_CODEC_SPACE * TS_CODEC_COLOURS };

typedef float f32x4 __attribute__((vector_size(16)));

// ---- life

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

static bool transform_new(ts_codec_transform *t, int64_t channels, int64_t frames) {
    t->frames = frames;
    t->dims = frames * TS_CODEC_SPACE * RUN;
    const size_t dims = (size_t)t->dims, matrix = dims * (size_t)channels;
    t->mean = ts_aligned_alloc(dims * sizeof(float));
    t->axes = ts_aligned_alloc(matrix * sizeof(float));
    t->scale = ts_aligned_alloc((size_t)channels * sizeof(float));
    t->encode = ts_aligned_alloc(dims * (size_t)round_up(channels, PANEL) * sizeof(float));
    t->decode = ts_aligned_alloc(matrix * sizeof(float));
    return t->mean && t->axes && t->scale && t->encode && t->decode;
}

static void transform_free(ts_codec_transform *t) {
    free(t->mean);
    free(t->axes);
    free(t->scale);
    free(t->encode);
    free(t->decode);
}

int ts_codec_new(ts_codec **out, int64_t channels) {
    *out = NULL;
    if (channels < 1 || channels > TS_CODEC_MAX_CHANNELS) {
        return TS_FAIL(TS_EUSAGE, "codec pca: %lld channels were asked for; it has 1 to %d", (long long)channels,
                       TS_CODEC_MAX_CHANNELS);
    }
    ts_codec *codec = ts_calloc(1, sizeof *codec);
    if (!codec) {
        return TS_ERESOURCE;
    }
    codec->channels = channels;
    if (!transform_new(&codec->first, channels, 1) || !transform_new(&codec->later, channels, TS_CODEC_TIME)) {
        ts_codec_close(&codec);
        return TS_ERESOURCE;
    }
    *out = codec;
    return TS_OK;
}

void ts_codec_close(ts_codec **codec) {
    if (*codec) {
        transform_free(&(*codec)->first);
        transform_free(&(*codec)->later);
        free(*codec);
        *codec = NULL;
    }
}

ts_codec_info ts_codec_get_info(const ts_codec *codec) {
    return (ts_codec_info){.kind = "pca",
                           .channels = codec->channels,
                           .time_factor = TS_CODEC_TIME,
                           .space_factor = TS_CODEC_SPACE,
                           .explained = codec->explained,
                           .fingerprint = codec->fingerprint};
}

static void transform_prepare(ts_codec_transform *t, int64_t channels, XXH3_state_t *hash) {
    XXH3_64bits_update(hash, t->mean, (size_t)t->dims * sizeof(float));
    XXH3_64bits_update(hash, t->axes, (size_t)(t->dims * channels) * sizeof(float));
    XXH3_64bits_update(hash, t->scale, (size_t)channels * sizeof(float));
    memset(t->encode, 0, (size_t)(t->dims * round_up(channels, PANEL)) * sizeof(float));
    for (int64_t c = 0; c < channels; c++) {
        for (int64_t d = 0; d < t->dims; d++) {
            const float axis = t->axes[c * t->dims + d];
            t->encode[(c / PANEL * t->dims + d) * PANEL + c % PANEL] = axis * t->scale[c];
            t->decode[(d / PANEL * channels + c) * PANEL + d % PANEL] = axis / t->scale[c];
        }
    }
}

int ts_codec_prepare(ts_codec *codec) {
    XXH3_state_t *hash = XXH3_createState();
    if (!hash) {
        return TS_FAIL(TS_ERESOURCE, "codec pca: no memory for its fingerprint");
    }
    XXH3_64bits_reset(hash);
    XXH3_64bits_update(hash, &codec->channels, sizeof codec->channels);
    transform_prepare(&codec->first, codec->channels, hash);
    transform_prepare(&codec->later, codec->channels, hash);
    codec->fingerprint = XXH3_64bits_digest(hash);
    XXH3_freeState(hash);
    return TS_OK;
}

int ts_codec_check_clip(int64_t frames, int64_t height, int64_t width) {
    const int64_t most = (int64_t)1 << 31;
    if (frames < 1 || height < TS_CODEC_SPACE || width < TS_CODEC_SPACE || (frames - 1) % TS_CODEC_TIME ||
        height % TS_CODEC_SPACE || width % TS_CODEC_SPACE || frames > most / height / width) {
        return TS_FAIL(TS_EUSAGE,
                       "codec pca: a clip of %lld frames of %lld x %lld pixels; frames must be 1 + a multiple of %d, "
                       "sides multiples of %d, and all pixels at most 2^31",
                       (long long)frames, (long long)width, (long long)height, TS_CODEC_TIME, TS_CODEC_SPACE);
    }
    return TS_OK;
}

// ---- the product

// out [ROWS, n] = a [ROWS, k] b [k, n]; rows of a and out are lda and ldo apart, b is packed in panels of 8 columns and
// padded with zeros to whole panels.
static void multiply(const float *a, int64_t lda, int64_t k, const float *b, int64_t n, float *out, int64_t ldo) {
    for (int64_t column = 0; column < n; column += PANEL, b += k * PANEL) {
        f32x4 sum[ROWS][2] = {{{0}}};
        for (int64_t i = 0; i < k; i++) {
            f32x4 left, right;
            memcpy(&left, b + i * PANEL, sizeof left);
            memcpy(&right, b + i * PANEL + 4, sizeof right);
            for (int r = 0; r < ROWS; r++) {
                const float x = a[r * lda + i];
                sum[r][0] += x * left;
                sum[r][1] += x * right;
            }
        }
        const int64_t width = n - column < PANEL ? n - column : PANEL;
        for (int r = 0; r < ROWS; r++) {
            memcpy(out + r * ldo + column, sum[r], (size_t)width * sizeof(float));
        }
    }
}

// ---- encoding

// x [dims] = pixels of the block at `from`, less the mean
static void gather(const ts_codec_transform *t, const uint8_t *from, int64_t height, int64_t width, float *x) {
    const float *mean = t->mean;
    for (int64_t frame = 0; frame < t->frames; frame++) {
        for (int64_t y = 0; y < TS_CODEC_SPACE; y++, x += RUN, mean += RUN) {
            const uint8_t *run = ts_codec_block_run(from, frame, y, width, height);
            for (int i = 0; i < RUN; i++) {
                x[i] = (float)run[i] - mean[i];
            }
        }
    }
}

// One row of blocks: pixels from `from` on -> latent [width / 8, C]
static void encode_row(const ts_codec *codec, const ts_codec_transform *t, const uint8_t *from, int64_t height,
                       int64_t width, float *latent) {
    float block[ROWS][TS_CODEC_LATER_DIMS], z[ROWS][TS_CODEC_MAX_CHANNELS];
    const int64_t blocks = width / TS_CODEC_SPACE, channels = codec->channels;
    for (int64_t done = 0; done < blocks; done += ROWS) {
        const int64_t part = blocks - done < ROWS ? blocks - done : ROWS;
        for (int64_t r = 0; r < ROWS; r++) {  // a short tile repeats its last block
            gather(t, from + (done + (r < part ? r : part - 1)) * RUN, height, width, block[r]);
        }
        multiply(block[0], TS_CODEC_LATER_DIMS, t->dims, t->encode, channels, z[0], TS_CODEC_MAX_CHANNELS);
        for (int64_t r = 0; r < part; r++) {
            memcpy(latent + (done + r) * channels, z[r], (size_t)channels * sizeof(float));
        }
    }
}

// Where row `y` of latent frame `frame` starts in the pixels: frame 0 is pixel frame 0, frame i is 1 + 4 (i - 1) on.
static int64_t pixel_row(int64_t frame, int64_t y, int64_t height, int64_t width) {
    const int64_t first = frame ? 1 + TS_CODEC_TIME * (frame - 1) : 0;
    return (first * height + y * TS_CODEC_SPACE) * width * TS_CODEC_COLOURS;
}

int ts_codec_encode(const ts_codec *codec, const uint8_t *pixels, int64_t frames, int64_t height, int64_t width,
                    float *latent) {
    TS_TRY(ts_codec_check_clip(frames, height, width));
    const int64_t h = height / TS_CODEC_SPACE, w = width / TS_CODEC_SPACE, t = 1 + (frames - 1) / TS_CODEC_TIME;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < t * h; row++) {
        const ts_codec_transform *transform = row < h ? &codec->first : &codec->later;
        encode_row(codec, transform, pixels + pixel_row(row / h, row % h, height, width), height, width,
                   latent + row * w * codec->channels);
    }
    return TS_OK;
}

// ---- decoding

static void scatter(const ts_codec_transform *t, const float *x, uint8_t *to, int64_t height, int64_t width) {
    const float *mean = t->mean;
    for (int64_t frame = 0; frame < t->frames; frame++) {
        for (int64_t y = 0; y < TS_CODEC_SPACE; y++, x += RUN, mean += RUN) {
            uint8_t *run = to + (frame * height + y) * width * TS_CODEC_COLOURS;
            for (int i = 0; i < RUN; i++) {
                const float value = x[i] + mean[i] + 0.5f;
                run[i] = (uint8_t)(value > 0 ? (value < 255 ? value : 255) : 0);  // NaN gives 0
            }
        }
    }
}

// One row of blocks: latent [width / 8, C] -> pixels from `to` on
static void decode_row(const ts_codec *codec, const ts_codec_transform *t, const float *latent, int64_t height,
                       int64_t width, uint8_t *to) {
    float block[ROWS][TS_CODEC_LATER_DIMS], z[ROWS][TS_CODEC_MAX_CHANNELS];
    const int64_t blocks = width / TS_CODEC_SPACE, channels = codec->channels;
    for (int64_t done = 0; done < blocks; done += ROWS) {
        const int64_t part = blocks - done < ROWS ? blocks - done : ROWS;
        for (int64_t r = 0; r < ROWS; r++) {
            memcpy(z[r], latent + (done + (r < part ? r : part - 1)) * channels, (size_t)channels * sizeof(float));
        }
        multiply(z[0], TS_CODEC_MAX_CHANNELS, channels, t->decode, t->dims, block[0], TS_CODEC_LATER_DIMS);
        for (int64_t r = 0; r < part; r++) {
            scatter(t, block[r], to + (done + r) * RUN, height, width);
        }
    }
}

int ts_codec_check_latent(int64_t t, int64_t h, int64_t w) {
    const int64_t most = (int64_t)1 << 31;
    if (t < 1 || h < 1 || w < 1 || t > most || h > most || w > most) {
        return TS_FAIL(TS_EUSAGE, "codec pca: a latent of %lld x %lld x %lld positions cannot be decoded", (long long)t,
                       (long long)h, (long long)w);
    }
    return ts_codec_check_clip(1 + TS_CODEC_TIME * (t - 1), h * TS_CODEC_SPACE, w * TS_CODEC_SPACE);
}

ts_part ts_codec_band(ts_part rows, int64_t h, int64_t frame) {
    const int64_t first = rows.first > frame * h ? rows.first : frame * h;
    const int64_t end = rows.first + rows.count < (frame + 1) * h ? rows.first + rows.count : (frame + 1) * h;
    return (ts_part){first, end - first};
}

void ts_codec_decode_rows(const ts_codec *codec, const float *latent, int64_t h, int64_t w, ts_part rows,
                          uint8_t *pixels) {
    const int64_t width = w * TS_CODEC_SPACE, line = width * TS_CODEC_COLOURS;
    const int64_t before = ts_codec_strips(rows.first, h);
#pragma omp parallel for schedule(static)
    for (int64_t row = rows.first; row < rows.first + rows.count; row++) {
        const ts_part band = ts_codec_band(rows, h, row / h);
        uint8_t *to = pixels + ((ts_codec_strips(band.first, h) - before) + (row - band.first)) * TS_CODEC_SPACE * line;
        decode_row(codec, row < h ? &codec->first : &codec->later, latent + row * w * codec->channels,
                   band.count * TS_CODEC_SPACE, width, to);
    }
}

int ts_codec_decode(const ts_codec *codec, const float *latent, int64_t t, int64_t h, int64_t w, uint8_t *pixels) {
    TS_TRY(ts_codec_check_latent(t, h, w));
    ts_codec_decode_rows(codec, latent, h, w, (ts_part){0, t * h}, pixels);
    return TS_OK;
}
