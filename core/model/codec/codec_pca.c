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
enum { MANY = 1 << 17 };  // multiplications below which threads cost more than they bring

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
    for (int k = 0; k < TS_CODEC_JOINS; k++) {
        const size_t bytes = (size_t)(TS_CODEC_HALF_DIMS * 2 * channels) * sizeof(float);
        codec->join[k] = (ts_codec_join){ts_aligned_alloc(bytes), ts_aligned_alloc(bytes)};
        if (!codec->join[k].matrix || !codec->join[k].decode) {
            ts_codec_close(&codec);
            return TS_ERESOURCE;
        }
    }
    codec->last_first = ts_aligned_alloc((size_t)(channels * round_up(channels, PANEL)) * sizeof(float));
    codec->last_offset = ts_aligned_alloc((size_t)channels * sizeof(float));
    if (!transform_new(&codec->first, channels, 1) || !transform_new(&codec->later, channels, TS_CODEC_TIME) ||
        !codec->last_first || !codec->last_offset) {
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
        for (int k = 0; k < TS_CODEC_JOINS; k++) {
            free((*codec)->join[k].matrix);
            free((*codec)->join[k].decode);
        }
        free((*codec)->last_first);
        free((*codec)->last_offset);
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

static void join_prepare(ts_codec_join *join, int64_t inputs) {
    for (int64_t d = 0; d < TS_CODEC_HALF_DIMS; d++) {
        for (int64_t c = 0; c < inputs; c++) {
            join->decode[(d / PANEL * inputs + c) * PANEL + d % PANEL] = join->matrix[d * inputs + c];
        }
    }
}

uint64_t ts_codec_join_sum(const ts_codec *codec) {
    uint64_t sum = 0;
    for (int k = 0; k < TS_CODEC_JOINS; k++) {
        const size_t bytes = (size_t)(TS_CODEC_HALF_DIMS * 2 * codec->channels) * sizeof(float);
        sum = XXH3_64bits_withSeed(codec->join[k].matrix, bytes, sum);
    }
    return sum;
}

// The last pixel frame x of a group g, and of that a first frame:
//   x = mean' + sum_c g[c] / scale'[c] axes'[c]      of the later transform, its last quarter
//   first[j] = scale[j] axes[j] . (x - mean)
static void prepare_last_first(ts_codec *codec) {
    const int64_t channels = codec->channels, dims = codec->first.dims, last = codec->later.dims - dims;
    memset(codec->last_first, 0, (size_t)(channels * round_up(channels, PANEL)) * sizeof(float));
    for (int64_t j = 0; j < channels; j++) {
        const float *axis = codec->first.axes + j * dims;
        const double scale = codec->first.scale[j];
        double offset = 0;
        for (int64_t d = 0; d < dims; d++) {
            offset += (double)axis[d] * ((double)codec->later.mean[last + d] - (double)codec->first.mean[d]);
        }
        codec->last_offset[j] = (float)(scale * offset);
        for (int64_t c = 0; c < channels; c++) {
            const float *later_axis = codec->later.axes + c * codec->later.dims + last;
            double dot = 0;
            for (int64_t d = 0; d < dims; d++) {
                dot += (double)axis[d] * (double)later_axis[d];
            }
            codec->last_first[(j / PANEL * channels + c) * PANEL + j % PANEL] =
                (float)(scale * dot / (double)codec->later.scale[c]);
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
    prepare_last_first(codec);
    for (int k = 0; k < TS_CODEC_JOINS; k++) {
        join_prepare(&codec->join[k], 2 * codec->channels);
    }
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

// The same for groups alone, a clip of no first frame.
static int check_groups(int64_t groups, int64_t height, int64_t width) {
    const int64_t most = ((int64_t)1 << 31) / TS_CODEC_TIME;
    if (groups < 1 || groups >= most) {
        return TS_FAIL(TS_EUSAGE, "codec pca: %lld groups of frames; there may be 1 to %lld", (long long)groups,
                       (long long)(most - 1));
    }
    return ts_codec_check_clip(1 + TS_CODEC_TIME * groups, height, width);
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

// Latent frames: `singles` of one pixel frame each, then `groups`.
static void encode_frames(const ts_codec *codec, const uint8_t *pixels, int64_t singles, int64_t groups, int64_t height,
                          int64_t width, float *latent) {
    const int64_t h = height / TS_CODEC_SPACE, w = width / TS_CODEC_SPACE, line = width * TS_CODEC_COLOURS;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < (singles + groups) * h; row++) {
        const int64_t frame = row / h, y = row % h * TS_CODEC_SPACE;
        const int64_t first = frame < singles ? frame : singles + TS_CODEC_TIME * (frame - singles);
        encode_row(codec, frame < singles ? &codec->first : &codec->later, pixels + (first * height + y) * line, height,
                   width, latent + row * w * codec->channels);
    }
}

int ts_codec_encode(const ts_codec *codec, const uint8_t *pixels, int64_t frames, int64_t height, int64_t width,
                    float *latent) {
    TS_TRY(ts_codec_check_clip(frames, height, width));
    encode_frames(codec, pixels, 1, (frames - 1) / TS_CODEC_TIME, height, width, latent);
    return TS_OK;
}

int ts_codec_encode_groups(const ts_codec *codec, const uint8_t *pixels, int64_t groups, int64_t height, int64_t width,
                           float *latent) {
    TS_TRY(check_groups(groups, height, width));
    encode_frames(codec, pixels, 0, groups, height, width, latent);
    return TS_OK;
}

// ---- decoding

// `frames` frames of a block to where its first pixel goes: mean + x, rounded.
static void scatter(const float *mean, const float *x, int64_t frames, uint8_t *to, int64_t height, int64_t width) {
    for (int64_t frame = 0; frame < frames; frame++) {
        for (int64_t y = 0; y < TS_CODEC_SPACE; y++, x += RUN, mean += RUN) {
            uint8_t *run = to + (frame * height + y) * width * TS_CODEC_COLOURS;
            for (int i = 0; i < RUN; i++) {
                const float value = x[i] + mean[i] + 0.5f;
                run[i] = (uint8_t)(value > 0 ? (value < 255 ? value : 255) : 0);  // NaN gives 0
            }
        }
    }
}

// Some frames of a row of blocks: from latents `a` [width / 8, C] and, where there is one, the neighbour's `b`.
typedef struct decoding {
    const float *a, *b;   // b: NULL or the later one's
    const float *matrix;  // packed
    const float *mean;    // [frames * 8 * RUN]
    int64_t frames;
} decoding;

static void decode_blocks(const decoding *d, int64_t channels, int64_t height, int64_t width, uint8_t *to) {
    float block[ROWS][TS_CODEC_LATER_DIMS], z[ROWS][2 * TS_CODEC_MAX_CHANNELS];
    const int64_t blocks = width / TS_CODEC_SPACE, inputs = d->b ? 2 * channels : channels;
    for (int64_t done = 0; done < blocks; done += ROWS) {
        const int64_t part = blocks - done < ROWS ? blocks - done : ROWS;
        for (int64_t r = 0; r < ROWS; r++) {  // a short tile repeats its last block
            const int64_t place = (done + (r < part ? r : part - 1)) * channels;
            memcpy(z[r], d->a + place, (size_t)channels * sizeof(float));
            if (d->b) {
                memcpy(z[r] + channels, d->b + place, (size_t)channels * sizeof(float));
            }
        }
        multiply(z[0], 2 * TS_CODEC_MAX_CHANNELS, inputs, d->matrix, d->frames * TS_CODEC_SPACE * RUN, block[0],
                 TS_CODEC_LATER_DIMS);
        for (int64_t r = 0; r < part; r++) {
            scatter(d->mean, block[r], d->frames, to + (done + r) * RUN, height, width);
        }
    }
}

// Half of a row of a group: from the group and its neighbour on that side, or from the group alone.
static decoding half_of_group(const ts_codec *codec, const float *group, const float *neighbour, bool begin,
                              bool neighbour_first) {
    const ts_codec_transform *t = &codec->later;
    const int64_t first = begin ? 0 : TS_CODEC_HALF_DIMS;
    decoding d = {.a = group, .matrix = t->decode + first * codec->channels, .mean = t->mean + first};
    d.frames = TS_CODEC_TIME / 2;
    if (neighbour) {
        const ts_codec_join_kind kind = !begin ? TS_CODEC_END : neighbour_first ? TS_CODEC_BEGIN_FIRST : TS_CODEC_BEGIN;
        d.a = begin ? neighbour : group;
        d.b = begin ? group : neighbour;
        d.matrix = codec->join[kind].decode;
    }
    return d;
}

int ts_codec_check_stretch(const ts_codec_stretch *s) {
    const int64_t most = (int64_t)1 << 31;
    if (s->t < 1 + s->before + s->after || s->h < 1 || s->w < 1 || s->t > most || s->h > most || s->w > most) {
        return TS_FAIL(TS_EUSAGE, "codec pca: a latent of %lld x %lld x %lld positions cannot be decoded",
                       (long long)s->t, (long long)s->h, (long long)s->w);
    }
    return ts_codec_check_clip(1 + TS_CODEC_TIME * (s->t - !s->groups), s->h * TS_CODEC_SPACE, s->w * TS_CODEC_SPACE);
}

ts_part ts_codec_band(ts_part rows, int64_t h, int64_t frame) {
    const int64_t first = rows.first > frame * h ? rows.first : frame * h;
    const int64_t end = rows.first + rows.count < (frame + 1) * h ? rows.first + rows.count : (frame + 1) * h;
    return (ts_part){first, end - first};
}

// One row of blocks to pixels from `to` on, whose frames are `height` lines apart.
static void decode_row(const ts_codec *codec, const ts_codec_stretch *s, int64_t row, int64_t height, uint8_t *to) {
    const int64_t h = s->h, channels = codec->channels, width = s->w * TS_CODEC_SPACE;
    const int64_t first = s->groups * h, end = first + s->t * h, frame = h * s->w * channels;
    const float *z = s->latent + (row - first) * s->w * channels;
    if (row < h) {
        const decoding d = {z, NULL, codec->first.decode, codec->first.mean, 1};
        decode_blocks(&d, channels, height, width, to);
        return;
    }
    const float *left = row - h >= first ? z - frame : NULL, *right = row + h < end ? z + frame : NULL;
    const decoding begin = half_of_group(codec, z, left, true, row < 2 * h && !s->groups);
    const decoding rest = half_of_group(codec, z, right, false, false);
    decode_blocks(&begin, channels, height, width, to);
    decode_blocks(&rest, channels, height, width, to + begin.frames * height * width * TS_CODEC_COLOURS);
}

void ts_codec_decode_rows(const ts_codec *codec, const ts_codec_stretch *s, ts_part rows, uint8_t *pixels) {
    const int64_t h = s->h, line = s->w * TS_CODEC_SPACE * TS_CODEC_COLOURS;
    const int64_t before = ts_codec_strips(rows.first, h);
#pragma omp parallel for schedule(static)
    for (int64_t row = rows.first; row < rows.first + rows.count; row++) {
        const ts_part band = ts_codec_band(rows, h, row / h);
        uint8_t *to = pixels + ((ts_codec_strips(band.first, h) - before) + (row - band.first)) * TS_CODEC_SPACE * line;
        decode_row(codec, s, row, band.count * TS_CODEC_SPACE, to);
    }
}

int ts_codec_decode(const ts_codec *codec, const float *latent, int64_t t, int64_t h, int64_t w, uint8_t *pixels) {
    const ts_codec_stretch all = {latent, t, h, w, false, false, false};
    return ts_codec_decode_stretch(codec, &all, NULL, 0, pixels);
}

int ts_codec_decode_groups(const ts_codec *codec, const float *latent, int64_t groups, int64_t h, int64_t w,
                           uint8_t *pixels) {
    const ts_codec_stretch all = {latent, groups, h, w, true, false, false};
    return ts_codec_decode_stretch(codec, &all, NULL, 0, pixels);
}

static int check_group_latent(int64_t groups, int64_t h, int64_t w) {
    const ts_codec_stretch one = {NULL, 1, h, w, true, false, false};
    TS_TRY(ts_codec_check_stretch(&one));  // so that sides in pixels are numbers
    return check_groups(groups, h * TS_CODEC_SPACE, w * TS_CODEC_SPACE);
}

// One position: pixels of the difference, frame by frame as they are shared, and back. Dots in double, in one order.
static void cross_position(const ts_codec *codec, const float *share, const float *from, float *to) {
    const ts_codec_transform *t = &codec->later;
    const int64_t channels = codec->channels, frame = t->dims / t->frames;
    float x[TS_CODEC_LATER_DIMS] = {0};
    for (int64_t c = 0; c < channels; c++) {
        const float z = (from[c] - to[c]) / t->scale[c];
        for (int64_t d = 0; d < t->dims; d++) {
            x[d] += z * t->axes[c * t->dims + d];
        }
    }
    for (int64_t j = 0; j < channels; j++) {
        double sum = 0;
        for (int64_t k = 0; k < t->frames; k++) {
            double dot = 0;
            for (int64_t d = k * frame; d < (k + 1) * frame; d++) {
                dot += (double)t->axes[j * t->dims + d] * (double)x[d];
            }
            sum += (double)share[k] * dot;
        }
        to[j] += t->scale[j] * (float)sum;
    }
}

void ts_codec_cross(const ts_codec *codec, const float *share, const float *from, int64_t count, float *to) {
#pragma omp parallel for schedule(static) if (count * codec->channels * codec->later.dims > MANY)
    for (int64_t i = 0; i < count; i++) {
        cross_position(codec, share, from + i * codec->channels, to + i * codec->channels);
    }
}

int ts_codec_first_of(const ts_codec *codec, const float *group, int64_t count, int64_t h, int64_t w, float *first) {
    TS_TRY(count == 0 ? TS_OK : check_group_latent(count, h, w));
    const int64_t positions = count * h * w, channels = codec->channels;
#pragma omp parallel for schedule(static) if (positions * channels * channels > MANY)
    for (int64_t done = 0; done < positions; done += ROWS) {
        float from[ROWS][TS_CODEC_MAX_CHANNELS], to[ROWS][TS_CODEC_MAX_CHANNELS];
        const int64_t part = positions - done < ROWS ? positions - done : ROWS;
        for (int64_t r = 0; r < ROWS; r++) {  // a short tile repeats its last position
            memcpy(from[r], group + (done + (r < part ? r : part - 1)) * channels, (size_t)channels * sizeof(float));
        }
        multiply(from[0], TS_CODEC_MAX_CHANNELS, channels, codec->last_first, channels, to[0], TS_CODEC_MAX_CHANNELS);
        for (int64_t r = 0; r < part; r++) {
            for (int64_t c = 0; c < channels; c++) {
                first[(done + r) * channels + c] = to[r][c] + codec->last_offset[c];
            }
        }
    }
    return TS_OK;
}
