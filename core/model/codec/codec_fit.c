// SPDX-License-Identifier: Apache-2.0
// Fitting the pca codec. Pixels are whole numbers, so the sums behind the covariance are exact integers: the fit has
// the same bits for any number of ranks, any order of clips and any processor.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/model/codec/codec_pca.h"
#include "core/model/codec/eigen.h"

// Pixels are centred to -128..127: a product is at most 2^14, and a chunk's sum of products fits 32 bits with ease.
enum { CENTRE = 128, CHUNK = 512, JOINED = 4, RUN = TS_CODEC_SPACE * TS_CODEC_COLOURS };

// Standard deviations below the rounding of pixels count as this: such axes are noise and must not be blown up.
static const double SMALLEST_DEVIATION = 0.5;

typedef struct moments {
    int64_t frames, dims;
    int64_t count;     // of blocks in sum and product
    int64_t *sum;      // [dims]
    int64_t *product;  // [dims, dims], lower half: sum of x_i x_j
    int16_t *chunk;    // [dims, CHUNK]: blocks waiting to be added
    int64_t waiting;
} moments;

struct ts_codec_fit {
    int64_t channels;
    double scale_power;
    moments first, later;
    moments pair_first, pair;  // blocks that follow each other, as one
};

// ---- accumulation

static bool moments_new(moments *m, int64_t frames) {
    m->frames = frames;
    m->dims = frames * TS_CODEC_SPACE * RUN;
    m->sum = ts_calloc((size_t)m->dims, sizeof *m->sum);
    m->product = ts_calloc((size_t)(m->dims * m->dims), sizeof *m->product);
    m->chunk = ts_aligned_alloc((size_t)m->dims * CHUNK * sizeof *m->chunk);
    if (m->chunk) {
        memset(m->chunk, 0, (size_t)m->dims * CHUNK * sizeof *m->chunk);
    }
    return m->sum && m->product && m->chunk;
}

static void moments_free(moments *m) {
    free(m->sum);
    free(m->product);
    free(m->chunk);
}

int ts_codec_fit_open(ts_codec_fit **out, int64_t channels, double scale_power) {
    *out = NULL;
    if (channels < 1 || channels > TS_CODEC_MAX_CHANNELS || !(scale_power >= 0 && scale_power <= 1)) {
        return TS_FAIL(TS_EUSAGE,
                       "codec pca: %lld channels with scale power %g were asked for; it has 1 to %d and 0 to 1",
                       (long long)channels, scale_power, TS_CODEC_MAX_CHANNELS);
    }
    ts_codec_fit *fit = ts_calloc(1, sizeof *fit);
    if (!fit) {
        return TS_ERESOURCE;
    }
    fit->channels = channels;
    fit->scale_power = scale_power;
    if (!moments_new(&fit->first, 1) || !moments_new(&fit->later, TS_CODEC_TIME) ||
        !moments_new(&fit->pair_first, 1 + TS_CODEC_TIME) || !moments_new(&fit->pair, 2 * TS_CODEC_TIME)) {
        ts_codec_fit_close(&fit);
        return TS_ERESOURCE;
    }
    *out = fit;
    return TS_OK;
}

void ts_codec_fit_close(ts_codec_fit **fit) {
    if (*fit) {
        moments_free(&(*fit)->first);
        moments_free(&(*fit)->later);
        moments_free(&(*fit)->pair_first);
        moments_free(&(*fit)->pair);
        free(*fit);
        *fit = NULL;
    }
}

// Sums of products of one row of the chunk with four others.
static void dot4(const int16_t *restrict a, const int16_t *restrict b, int64_t n, int32_t out[JOINED]) {
    const int16_t *b0 = b, *b1 = b + CHUNK, *b2 = b + 2 * CHUNK, *b3 = b + 3 * CHUNK;
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (int64_t k = 0; k < n; k++) {
        s0 += a[k] * b0[k];
        s1 += a[k] * b1[k];
        s2 += a[k] * b2[k];
        s3 += a[k] * b3[k];
    }
    out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
}

// Adds the waiting blocks. The lower half of `product` is filled in strips of four columns, a little beyond the
// diagonal.
static void flush(moments *m) {
    const int64_t n = m->waiting;
#pragma omp parallel for schedule(static, 1)
    for (int64_t i = 0; i < m->dims; i++) {
        const int16_t *row = m->chunk + i * CHUNK;
        for (int64_t k = 0; k < n; k++) {
            m->sum[i] += row[k];
        }
        for (int64_t j = 0; j <= i; j += JOINED) {
            int32_t part[JOINED];
            dot4(row, m->chunk + j * CHUNK, n, part);
            for (int64_t r = 0; r < JOINED; r++) {
                m->product[i * m->dims + j + r] += part[r];
            }
        }
    }
    m->count += n;
    m->waiting = 0;
}

static void add_block(moments *m, const uint8_t *from, int64_t height, int64_t width) {
    int16_t *to = m->chunk + m->waiting;
    for (int64_t frame = 0; frame < m->frames; frame++) {
        for (int64_t y = 0; y < TS_CODEC_SPACE; y++) {
            const uint8_t *run = ts_codec_block_run(from, frame, y, width, height);
            for (int i = 0; i < RUN; i++, to += CHUNK) {
                *to = (int16_t)(run[i] - CENTRE);
            }
        }
    }
    if (++m->waiting == CHUNK) {
        flush(m);
    }
}

int ts_codec_fit_add(ts_codec_fit *fit, const uint8_t *pixels, int64_t frames, int64_t height, int64_t width) {
    TS_TRY(ts_codec_check_clip(frames, height, width));
    for (int64_t t = 0; t < frames; t += t ? TS_CODEC_TIME : 1) {
        moments *m = t ? &fit->later : &fit->first, *pair = t ? &fit->pair : &fit->pair_first;
        for (int64_t y = 0; y < height; y += TS_CODEC_SPACE) {
            for (int64_t x = 0; x < width; x += TS_CODEC_SPACE) {
                const uint8_t *from = pixels + ((t * height + y) * width + x) * TS_CODEC_COLOURS;
                add_block(m, from, height, width);
                if (t + pair->frames <= frames) {
                    add_block(pair, from, height, width);
                }
            }
        }
    }
    return TS_OK;
}

// ---- from moments to axes

static int reduce(moments *m, ts_comm *comm) {
    flush(m);
    TS_TRY(ts_all_reduce(comm, &m->count, 1, TS_I64, TS_SUM));
    TS_TRY(ts_all_reduce(comm, m->sum, m->dims, TS_I64, TS_SUM));
    return ts_all_reduce(comm, m->product, m->dims * m->dims, TS_I64, TS_SUM);
}

// Principal axes of one kind of block.
typedef struct analysis {
    double *value;   // [dims] variances, falling
    double *vector;  // [dims, dims] rows
    double total;    // sum of variances
} analysis;

static int analyse(const moments *m, float *mean, analysis *out) {
    const int64_t n = m->dims;
    const double count = (double)m->count;
    double *covariance = ts_malloc((size_t)(n * n) * sizeof *covariance);
    out->value = ts_malloc((size_t)n * sizeof(double));
    out->vector = ts_malloc((size_t)(n * n) * sizeof(double));
    if (!covariance || !out->value || !out->vector) {
        free(covariance);
        return TS_ERESOURCE;
    }
    out->total = 0;
    for (int64_t i = 0; i < n; i++) {
        const double mean_i = (double)m->sum[i] / count;
        mean[i] = (float)(mean_i + CENTRE);
        for (int64_t j = 0; j <= i; j++) {
            const double mean_j = (double)m->sum[j] / count;
            covariance[i * n + j] = (double)m->product[i * n + j] / count - mean_i * mean_j;
            covariance[j * n + i] = covariance[i * n + j];
        }
        out->total += covariance[i * n + i];
    }
    const int status = ts_eigen_symmetric(covariance, n, out->value, out->vector);
    free(covariance);
    return status;
}

static double deviation(double variance) {
    return fmax(sqrt(fmax(variance, 0)), SMALLEST_DEVIATION);
}

// Cosine between axis i of the first frame and axis j of the groups averaged over its four frames.
static double likeness(const double *first, const double *later) {
    double sum = 0;
    for (int64_t i = 0; i < TS_CODEC_FIRST_DIMS; i++) {
        double average = 0;
        for (int64_t t = 0; t < TS_CODEC_TIME; t++) {
            average += later[t * TS_CODEC_FIRST_DIMS + i];
        }
        sum += first[i] * average;
    }
    return sum / sqrt(TS_CODEC_TIME);
}

// The first frame's axes are put in the order and sign of the groups' axes they look like, the best pair first, so that
// a channel means nearly the same at every latent position. like [C, C]; channel j is axis source[j] times sign[j].
static void match(const double *like, int64_t channels, int64_t *source, double *sign) {
    bool used[TS_CODEC_MAX_CHANNELS] = {false}, filled[TS_CODEC_MAX_CHANNELS] = {false};
    for (int64_t pairs = 0; pairs < channels; pairs++) {
        int64_t best = -1;
        for (int64_t k = 0; k < channels * channels; k++) {
            if (!used[k / channels] && !filled[k % channels] && (best < 0 || fabs(like[k]) > fabs(like[best]))) {
                best = k;
            }
        }
        const int64_t i = best / channels, j = best % channels;
        used[i] = filled[j] = true;
        source[j] = i;
        sign[j] = like[best] < 0 ? -1 : 1;
    }
}

static void set_channel(ts_codec_transform *t, int64_t channel, const double *axis, double sign, double scale) {
    for (int64_t d = 0; d < t->dims; d++) {
        t->axes[channel * t->dims + d] = (float)(sign * axis[d]);
    }
    t->scale[channel] = (float)scale;
}

static int fill_axes(const ts_codec_fit *fit, const analysis *first, const analysis *later, ts_codec *codec) {
    const int64_t channels = fit->channels;
    double *like = ts_malloc((size_t)(channels * channels) * sizeof *like), sign[TS_CODEC_MAX_CHANNELS];
    int64_t source[TS_CODEC_MAX_CHANNELS] = {0};
    if (!like) {
        return TS_ERESOURCE;
    }
    for (int64_t k = 0; k < channels * channels; k++) {
        like[k] = likeness(first->vector + k / channels * TS_CODEC_FIRST_DIMS,
                           later->vector + k % channels * TS_CODEC_LATER_DIMS);
    }
    match(like, channels, source, sign);
    free(like);
    // A first frame counts as a group of four equal frames: its coefficients and deviations are twice as large, so that
    // a picture that stands still has latents of one size.
    const double repeat = sqrt(TS_CODEC_TIME), power = -fit->scale_power;
    double first_scale[TS_CODEC_MAX_CHANNELS], later_scale[TS_CODEC_MAX_CHANNELS], variance = 0, kept = 0;
    for (int64_t c = 0; c < channels; c++) {
        const double variance_first = fmax(first->value[source[c]], 0), variance_later = fmax(later->value[c], 0);
        first_scale[c] = repeat * pow(repeat * deviation(variance_first), power);
        later_scale[c] = pow(deviation(variance_later), power);
        variance += (double)fit->first.count * first_scale[c] * first_scale[c] * variance_first +
                    (double)fit->later.count * later_scale[c] * later_scale[c] * variance_later;
        kept += (double)fit->first.count * variance_first + (double)fit->later.count * variance_later;
    }
    const double total = (double)fit->first.count * first->total + (double)fit->later.count * later->total;
    if (!(variance > 0)) {
        return TS_FAIL(TS_EINPUT, "codec pca: all clips are one still colour, there is nothing to fit; add others");
    }
    const double common = sqrt((double)(channels * (fit->first.count + fit->later.count)) / variance);
    for (int64_t c = 0; c < channels; c++) {
        set_channel(&codec->first, c, first->vector + source[c] * TS_CODEC_FIRST_DIMS, sign[c],
                    common * first_scale[c]);
        set_channel(&codec->later, c, later->vector + c * TS_CODEC_LATER_DIMS, 1, common * later_scale[c]);
    }
    codec->explained = fmin(kept / total, 1);
    return TS_OK;
}

static int solve(const ts_codec_fit *fit, ts_codec *codec) {
    if (!fit->first.count || !fit->later.count) {
        return TS_FAIL(TS_EINPUT, "codec pca: %s; give it clips of at least %d frames",
                       fit->first.count ? "all clips have a single frame" : "there are no clips to fit",
                       1 + TS_CODEC_TIME);
    }
    analysis first = {0}, later = {0};
    int status = analyse(&fit->first, codec->first.mean, &first);
    if (!status) {
        status = analyse(&fit->later, codec->later.mean, &later);
    }
    if (!status) {
        status = fill_axes(fit, &first, &later, codec);
    }
    free(first.value);
    free(first.vector);
    free(later.value);
    free(later.vector);
    return status;
}

static int fit_joins(const ts_codec_fit *fit, ts_codec *codec) {
    const moments *p = &fit->pair, *f = &fit->pair_first;
    const ts_codec_pairs pairs = {p->count, p->dims, p->sum, p->product, CENTRE};
    const ts_codec_pairs pairs_first = {f->count, f->dims, f->sum, f->product, CENTRE};
    TS_TRY(ts_codec_join_fit(codec, TS_CODEC_BEGIN_FIRST, &pairs_first));
    TS_TRY(ts_codec_join_fit(codec, TS_CODEC_BEGIN, &pairs));
    return ts_codec_join_fit(codec, TS_CODEC_END, &pairs);
}

static int share(ts_codec_transform *t, int64_t channels, ts_comm *comm) {
    TS_TRY(ts_broadcast(comm, t->mean, t->dims * (int64_t)sizeof(float), 0));
    TS_TRY(ts_broadcast(comm, t->axes, t->dims * channels * (int64_t)sizeof(float), 0));
    return ts_broadcast(comm, t->scale, channels * (int64_t)sizeof(float), 0);
}

int ts_codec_fit_finish(ts_codec_fit *fit, ts_comm *comm, ts_codec **out) {
    *out = NULL;
    TS_TRY(reduce(&fit->first, comm));
    TS_TRY(reduce(&fit->later, comm));
    TS_TRY(reduce(&fit->pair_first, comm));
    TS_TRY(reduce(&fit->pair, comm));
    int status = ts_codec_new(out, fit->channels);
    if (!status && ts_comm_rank(comm) == 0) {
        status = solve(fit, *out);
        status = status ? status : fit_joins(fit, *out);
    }
    status = ts_agree(comm, status);
    if (!status) {
        (*out)->scale_power = fit->scale_power;
        TS_TRY_GOTO(status, ts_broadcast(comm, &(*out)->explained, sizeof(double), 0), done);
        TS_TRY_GOTO(status, share(&(*out)->first, fit->channels, comm), done);
        TS_TRY_GOTO(status, share(&(*out)->later, fit->channels, comm), done);
        for (int k = 0; k < TS_CODEC_JOINS; k++) {
            const int64_t bytes = TS_CODEC_HALF_DIMS * 2 * fit->channels * (int64_t)sizeof(float);
            TS_TRY_GOTO(status, ts_broadcast(comm, (*out)->join[k].matrix, bytes, 0), done);
        }
        status = ts_codec_prepare(*out);
    }
done:
    if (status) {
        ts_codec_close(out);
    }
    return status;
}
