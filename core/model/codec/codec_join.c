// SPDX-License-Identifier: Apache-2.0
// Joins of neighbours: the pixels of half a group, foretold from the latents of the group and of its neighbour by least
// squares. With z = axes' (x - mean), axes' = scale * axes, and K the second moments of both blocks' pixels about the
// means that the codec has:
//   join = K[half, both] axes'^T (axes' K axes'^T + ridge)^-1
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/model/codec/codec_pca.h"

// Added to each latent's variance, in units of the mean variance: about the error of what a model makes. Without it the
// join is exact for latents of real clips and makes too much of the small disagreements of made ones.
static const double RIDGE = 5e-2;

typedef struct join_fit {
    const ts_codec *codec;
    const ts_codec_transform *earlier;
    const ts_codec_pairs *pairs;
    int64_t inputs;   // 2 C
    int64_t split;    // pixels of the earlier block
    int64_t first;    // pixel of both blocks where the half begins
    double *mean;     // [D] less the centre of the sums
    double *project;  // [inputs, D] axes' K
    double *gram;     // [inputs, inputs]
} join_fit;

// Second moment of pixels i and j about the codec's means.
static double second_moment(const join_fit *f, int64_t i, int64_t j) {
    const ts_codec_pairs *p = f->pairs;
    const double n = (double)p->count, mean_i = f->mean[i], mean_j = f->mean[j];
    const double product = (double)(i > j ? p->product[i * p->dims + j] : p->product[j * p->dims + i]);
    return (product - mean_i * (double)p->sum[j] - mean_j * (double)p->sum[i]) / n + mean_i * mean_j;
}

// Row `input` of axes': *first is the pixel where its block begins.
static const float *axis_of(const join_fit *f, int64_t input, int64_t *first, int64_t *dims, double *scale) {
    const int64_t channels = f->codec->channels, c = input % channels;
    const ts_codec_transform *t = input < channels ? f->earlier : &f->codec->later;
    *first = input < channels ? 0 : f->split;
    *dims = t->dims;
    *scale = (double)t->scale[c];
    return t->axes + c * t->dims;
}

static double project(const join_fit *f, int64_t input, const double *column) {
    int64_t first, dims;
    double scale, dot = 0;
    const float *axis = axis_of(f, input, &first, &dims, &scale);
    for (int64_t d = 0; d < dims; d++) {
        dot += (double)axis[d] * column[first + d];
    }
    return scale * dot;
}

static int make_moments(join_fit *f) {
    const int64_t dims = f->pairs->dims;
    double *row = ts_malloc((size_t)dims * sizeof *row);
    if (!row) {
        return TS_ERESOURCE;
    }
    for (int64_t j = 0; j < dims; j++) {
        const float *mean = j < f->split ? f->earlier->mean + j : f->codec->later.mean + (j - f->split);
        f->mean[j] = (double)*mean - f->pairs->centre;
    }
    for (int64_t j = 0; j < dims; j++) {
        for (int64_t i = 0; i < dims; i++) {
            row[i] = second_moment(f, i, j);
        }
        for (int64_t input = 0; input < f->inputs; input++) {
            f->project[input * dims + j] = project(f, input, row);
        }
    }
    double trace = 0;
    for (int64_t a = 0; a < f->inputs; a++) {
        for (int64_t b = 0; b < f->inputs; b++) {
            f->gram[a * f->inputs + b] = project(f, b, f->project + a * dims);
        }
        trace += f->gram[a * f->inputs + a];
    }
    for (int64_t a = 0; a < f->inputs; a++) {
        f->gram[a * f->inputs + a] += RIDGE * trace / (double)f->inputs;
    }
    free(row);
    return TS_OK;
}

// a [n, n] symmetric and positive becomes its Cholesky factor, lower half: a = l l^T. False when it is not positive.
static bool factor(double *a, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        for (int64_t i = j; i < n; i++) {
            double sum = a[i * n + j];
            for (int64_t k = 0; k < j; k++) {
                sum -= a[i * n + k] * a[j * n + k];
            }
            if (i == j && !(sum > 0)) {
                return false;
            }
            a[i * n + j] = i == j ? sqrt(sum) : sum / a[j * n + j];
        }
    }
    return true;
}

// x [n] becomes the solution of l l^T y = x.
static void substitute(const double *l, int64_t n, double *x) {
    for (int64_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < i; k++) {
            x[i] -= l[i * n + k] * x[k];
        }
        x[i] /= l[i * n + i];
    }
    for (int64_t i = n - 1; i >= 0; i--) {
        for (int64_t k = i + 1; k < n; k++) {
            x[i] -= l[k * n + i] * x[k];
        }
        x[i] /= l[i * n + i];
    }
}

static int solve(join_fit *f, float *matrix) {
    double x[2 * TS_CODEC_MAX_CHANNELS];
    TS_TRY(make_moments(f));
    if (!factor(f->gram, f->inputs)) {
        return TS_FAIL(TS_EINPUT, "codec pca: neighbouring frames have no variance to fit; add other clips");
    }
    for (int64_t d = 0; d < TS_CODEC_HALF_DIMS; d++) {
        for (int64_t input = 0; input < f->inputs; input++) {
            x[input] = f->project[input * f->pairs->dims + f->first + d];
        }
        substitute(f->gram, f->inputs, x);
        for (int64_t input = 0; input < f->inputs; input++) {
            matrix[d * f->inputs + input] = (float)x[input];
        }
    }
    return TS_OK;
}

// The group alone: nothing of the neighbour.
static void fill_alone(const ts_codec *codec, ts_codec_join_kind kind, float *matrix) {
    const int64_t channels = codec->channels, first = kind == TS_CODEC_END ? TS_CODEC_HALF_DIMS : 0;
    const int64_t own = kind == TS_CODEC_END ? 0 : channels;
    memset(matrix, 0, (size_t)(TS_CODEC_HALF_DIMS * 2 * channels) * sizeof *matrix);
    for (int64_t d = 0; d < TS_CODEC_HALF_DIMS; d++) {
        for (int64_t c = 0; c < channels; c++) {
            matrix[d * 2 * channels + own + c] =
                codec->later.axes[c * codec->later.dims + first + d] / codec->later.scale[c];
        }
    }
}

int ts_codec_join_fit(ts_codec *codec, ts_codec_join_kind kind, const ts_codec_pairs *pairs) {
    float *matrix = codec->join[kind].matrix;
    if (!pairs->count) {
        fill_alone(codec, kind, matrix);
        return TS_OK;
    }
    join_fit f = {.codec = codec, .pairs = pairs, .inputs = 2 * codec->channels};
    f.earlier = kind == TS_CODEC_BEGIN_FIRST ? &codec->first : &codec->later;
    f.split = f.earlier->dims;
    f.first = kind == TS_CODEC_END ? TS_CODEC_HALF_DIMS : f.split;
    f.mean = ts_malloc((size_t)pairs->dims * sizeof *f.mean);
    f.project = ts_malloc((size_t)(f.inputs * pairs->dims) * sizeof *f.project);
    f.gram = ts_malloc((size_t)(f.inputs * f.inputs) * sizeof *f.gram);
    const int status = f.mean && f.project && f.gram ? solve(&f, matrix) : TS_ERESOURCE;
    free(f.mean);
    free(f.project);
    free(f.gram);
    return status;
}
