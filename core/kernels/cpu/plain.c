// SPDX-License-Identifier: Apache-2.0
// Kernels that move data or run rarely: patches, rows, embeddings, sinusoids, noise, exact GELU. Formulas:
// core/kernels/kernels.h.
#include <math.h>
#include <string.h>

#include "core/base/rng.h"
#include "core/base/status.h"
#include "core/kernels/cpu/cpu.h"

// ---- patches

static int check_patchify(const ts_patchify *p) {
    const bool whole = p->patch_t > 0 && p->patch_h > 0 && p->patch_w > 0 && p->frames % p->patch_t == 0 &&
                       p->height % p->patch_h == 0 && p->width % p->patch_w == 0;
    if (!whole || (p->dtype_tokens != TS_F32 && p->dtype_tokens != TS_BF16)) {
        return TS_FAIL(TS_EINTERNAL, "patchify: %lldx%lldx%lld is not whole patches of %lldx%lldx%lld, or dtype %s",
                       (long long)p->frames, (long long)p->height, (long long)p->width, (long long)p->patch_t,
                       (long long)p->patch_h, (long long)p->patch_w, ts_dtype_name(p->dtype_tokens));
    }
    return 0;
}

// One token's copy, in either direction. `video` is the patch's first element, `token` the first feature.
static void copy_patch(const ts_patchify *p, float *video, void *token, bool to_tokens) {
    const int64_t volume = p->patch_t * p->patch_h * p->patch_w;
    int64_t place = 0;  // (pt, ph, pw) in order
    for (int64_t t = 0; t < p->patch_t; t++) {
        for (int64_t h = 0; h < p->patch_h; h++) {
            for (int64_t w = 0; w < p->patch_w; w++, place++) {
                float *pixel = video + ((t * p->height + h) * p->width + w) * p->channels;
                for (int64_t c = 0; c < p->channels; c++) {
                    const int64_t feature = p->channels_first ? c * volume + place : place * p->channels + c;
                    if (p->dtype_tokens == TS_F32) {
                        float *f = (float *)token + feature;
                        *(to_tokens ? f : pixel + c) = *(to_tokens ? pixel + c : f);
                    } else if (to_tokens) {
                        ((uint16_t *)token)[feature] = ts_f32_to_bf16(pixel[c]);
                    } else {
                        pixel[c] = ts_bf16_to_f32(((const uint16_t *)token)[feature]);
                    }
                }
            }
        }
    }
}

static int copy_patches(const ts_patchify *p, bool to_tokens) {
    TS_TRY(check_patchify(p));
    const int64_t nt = p->frames / p->patch_t, nh = p->height / p->patch_h, nw = p->width / p->patch_w;
    const int64_t features = p->patch_t * p->patch_h * p->patch_w * p->channels;
    const size_t token_bytes = (size_t)features * ts_dtype_bytes(p->dtype_tokens);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < p->batch * nt * nh; row++) {  // row = (b, t, h) of patches
        const int64_t h = row % nh, bt = row / nh;            // frames come in whole patches: b and t are one index
        for (int64_t w = 0; w < nw; w++) {
            float *video =
                p->video + ((bt * p->patch_t * p->height + h * p->patch_h) * p->width + w * p->patch_w) * p->channels;
            copy_patch(p, video, (char *)p->tokens + (size_t)(row * nw + w) * token_bytes, to_tokens);
        }
    }
    return 0;
}

static int patchify(const ts_patchify *p) {
    return copy_patches(p, true);
}

static int unpatchify(const ts_patchify *p) {
    return copy_patches(p, false);
}

// ---- rows

static int copy_rows(const void *from, int64_t from_stride, void *to, int64_t to_stride, int64_t rows,
                     int64_t row_bytes) {
#pragma omp parallel for schedule(static) if (rows * row_bytes > 65536)
    for (int64_t row = 0; row < rows; row++) {
        memcpy((char *)to + row * to_stride, (const char *)from + row * from_stride, (size_t)row_bytes);
    }
    return 0;
}

// ---- embedding

static int embedding_forward(const float *table, const int32_t *id, float *y, int64_t n, int64_t width) {
#pragma omp parallel for schedule(static) if (n * width > 16384)
    for (int64_t i = 0; i < n; i++) {
        memcpy(y + i * width, table + id[i] * width, (size_t)width * sizeof *y);
    }
    return 0;
}

// Threads share out the columns, so a token that occurs twice is added in order.
static int embedding_backward(const float *d_y, const int32_t *id, float *d_table, int64_t n, int64_t width) {
    enum { COLUMNS = 64 };
#pragma omp parallel for schedule(static) if (n * width > 16384)
    for (int64_t begin = 0; begin < width; begin += COLUMNS) {
        const int64_t end = begin + COLUMNS < width ? begin + COLUMNS : width;
        for (int64_t i = 0; i < n; i++) {
            float *to = d_table + id[i] * width;
            const float *from = d_y + i * width;
            for (int64_t c = begin; c < end; c++) {
                to[c] += from[c];
            }
        }
    }
    return 0;
}

// ---- sinusoid and noise

static int sinusoid(const float *t, float *y, int64_t rows, int64_t half) {
#pragma omp parallel for schedule(static) if (rows * half > 1024)
    for (int64_t i = 0; i < half; i++) {
        const double frequency = exp(-log(10000.0) * (double)i / (double)half);
        for (int64_t row = 0; row < rows; row++) {
            const double angle = (double)t[row] * frequency;
            y[row * 2 * half + i] = (float)cos(angle);
            y[row * 2 * half + half + i] = (float)sin(angle);
        }
    }
    return 0;
}

static int noise(float *out, int64_t n, uint64_t seed, uint32_t purpose, uint64_t index, int64_t first) {
    enum { CHUNK = 4096 };
#pragma omp parallel for schedule(static) if (n > CHUNK)
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        const int64_t count = n - begin < CHUNK ? n - begin : CHUNK;
        ts_rng_normal_fill(out + begin, count, seed, purpose, index, first + begin);
    }
    return 0;
}

// ---- exact GELU

static double normal_distribution(double x) {
    return 0.5 * (1.0 + erf(x * 0.70710678118654752440));
}

static int gelu_erf_forward(const float *x, float *y, int64_t n) {
#pragma omp parallel for schedule(static) if (n > 4096)
    for (int64_t i = 0; i < n; i++) {
        y[i] = (float)(x[i] * normal_distribution(x[i]));
    }
    return 0;
}

static int gelu_erf_backward(const float *x, const float *d_y, float *d_x, int64_t n) {
#pragma omp parallel for schedule(static) if (n > 4096)
    for (int64_t i = 0; i < n; i++) {
        const double u = x[i], density = 0.39894228040143267794 * exp(-0.5 * u * u);
        d_x[i] = (float)(d_y[i] * (normal_distribution(u) + u * density));
    }
    return 0;
}

void ts_cpu_fill_plain(ts_kernels *kernels) {
    kernels->patchify = patchify;
    kernels->unpatchify = unpatchify;
    kernels->copy_rows = copy_rows;
    kernels->embedding_forward = embedding_forward;
    kernels->embedding_backward = embedding_backward;
    kernels->gelu_erf_forward = gelu_erf_forward;
    kernels->gelu_erf_backward = gelu_erf_backward;
    kernels->sinusoid = sinusoid;
    kernels->noise = noise;
}
