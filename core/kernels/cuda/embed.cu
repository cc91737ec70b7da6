// SPDX-License-Identifier: Apache-2.0
// Patches, embeddings, sinusoids and noise. Formulas: core/kernels/kernels.h.
#include "core/base/rng_math.h"
#include "core/kernels/cuda/flat.cuh"

// ---- patches

// Numbers of a whole in mixed radix, from the last digit on.
static __device__ __forceinline__ int64_t take_digit(int64_t &number, int64_t radix) {
    const int64_t digit = number % radix;
    number /= radix;
    return digit;
}

// A thread has one feature of one token: neighbours write neighbouring features, and the channels of a pixel that they
// read are found in the cache by those that come next.
template <bool TO_TOKENS, typename T>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) copy_patches(ts_patchify p, int64_t n) {
    const int64_t i = ts_flat_first<1>();
    if (i >= n) {
        return;
    }
    int64_t rest = i, c = 0;
    if (!p.channels_first) {
        c = take_digit(rest, p.channels);
    }
    const int64_t in_w = take_digit(rest, p.patch_w), in_h = take_digit(rest, p.patch_h);
    const int64_t in_t = take_digit(rest, p.patch_t);
    if (p.channels_first) {
        c = take_digit(rest, p.channels);
    }
    const int64_t w = take_digit(rest, p.width / p.patch_w) * p.patch_w + in_w;
    const int64_t h = take_digit(rest, p.height / p.patch_h) * p.patch_h + in_h;
    const int64_t frame = rest * p.patch_t + in_t;  // of all samples: frames come in whole patches
    float *pixel = p.video + ((frame * p.height + h) * p.width + w) * p.channels + c;
    T *feature = (T *)p.tokens + i;
    if (TO_TOKENS) {
        *feature = ts_from_f32<T>(*pixel);
    } else {
        *pixel = ts_to_f32(*feature);
    }
}

template <bool TO_TOKENS> static int patches_entry(const ts_patchify *p) {
    const bool whole = p->patch_t > 0 && p->patch_h > 0 && p->patch_w > 0 && p->frames % p->patch_t == 0 &&
                       p->height % p->patch_h == 0 && p->width % p->patch_w == 0;
    if (!whole) {
        return TS_FAIL(TS_EINTERNAL, "patchify: %lldx%lldx%lld is not whole patches of %lldx%lldx%lld",
                       (long long)p->frames, (long long)p->height, (long long)p->width, (long long)p->patch_t,
                       (long long)p->patch_h, (long long)p->patch_w);
    }
    return ts_by_dtype("patchify", p->dtype_tokens, [&](auto number) {
        typedef decltype(number) T;
        const int64_t n = p->batch * p->frames * p->height * p->width * p->channels;
        unsigned blocks = 0;
        TS_TRY(ts_flat_blocks("patchify", n, 1, &blocks));
        return blocks ? TS_LAUNCH((copy_patches<TO_TOKENS, T>), blocks, TS_FLAT_THREADS, 0, *p, n) : (int)TS_OK;
    });
}

// ---- embeddings

enum { ROW_THREADS = 128, IDS = 128 };

// A block has one token.
static __global__ void __launch_bounds__(ROW_THREADS)
    embedding_forward(const float *table, const int32_t *id, float *y, int64_t width) {
    const float *from = table + id[blockIdx.x] * width;
    float *to = y + blockIdx.x * width;
    for (int64_t c = threadIdx.x; c < width; c += ROW_THREADS) {
        to[c] = from[c];
    }
}

// The block of an id's first token adds all its tokens, in order, to the id's row; the other blocks have nothing to do.
static __global__ void __launch_bounds__(ROW_THREADS)
    embedding_backward(const float *d_y, const int32_t *id, float *d_table, int64_t n, int64_t width) {
    __shared__ bool same[IDS];
    const int64_t first = blockIdx.x;
    const int32_t mine = id[first];
    bool seen = false;
    for (int64_t i = threadIdx.x; i < first; i += ROW_THREADS) {
        seen = seen || id[i] == mine;
    }
    if (__syncthreads_or(seen)) {
        return;
    }
    float *row = d_table + mine * width;
    for (int64_t begin = first; begin < n; begin += IDS) {
        const int64_t i = begin + threadIdx.x;
        const bool is_same = i < n && id[i] == mine;
        same[threadIdx.x] = is_same;
        if (!__syncthreads_or(is_same)) {
            continue;
        }
        for (int64_t c = threadIdx.x; c < width; c += ROW_THREADS) {
            float sum = row[c];
            for (int k = 0; k < IDS; k++) {
                if (same[k]) {
                    sum += d_y[(begin + k) * width + c];
                }
            }
            row[c] = sum;
        }
        __syncthreads();  // before `same` is written again
    }
}

static int check_tokens(const char *entry, int64_t n) {
    return n < 0 || n > INT32_MAX ? TS_FAIL(TS_EINTERNAL, "%s: %lld tokens", entry, (long long)n) : TS_OK;
}

static int embedding(const float *table, const int32_t *id, float *y, int64_t n, int64_t width) {
    TS_TRY(check_tokens("embedding", n));
    return n > 0 && width > 0 ? TS_LAUNCH(embedding_forward, (unsigned)n, ROW_THREADS, 0, table, id, y, width) : TS_OK;
}

static int embedding_gradient(const float *d_y, const int32_t *id, float *d_table, int64_t n, int64_t width) {
    TS_TRY(check_tokens("embedding", n));
    return n > 0 && width > 0 ? TS_LAUNCH(embedding_backward, (unsigned)n, ROW_THREADS, 0, d_y, id, d_table, n, width)
                              : TS_OK;
}

// ---- sinusoids

static __global__ void __launch_bounds__(TS_FLAT_THREADS) sinusoid(const float *t, float *y, int64_t half, int64_t n) {
    const int64_t at = ts_flat_first<1>();
    if (at >= n) {
        return;
    }
    const int64_t row = at / half, i = at % half;
    const double angle = (double)t[row] * exp(-log(10000.0) * (double)i / (double)half);
    y[row * 2 * half + i] = (float)cos(angle);
    y[row * 2 * half + half + i] = (float)sin(angle);
}

static int sinusoid_entry(const float *t, float *y, int64_t rows, int64_t half) {
    unsigned blocks = 0;
    TS_TRY(ts_flat_blocks("sinusoid", rows * half, 1, &blocks));
    return blocks ? TS_LAUNCH(sinusoid, blocks, TS_FLAT_THREADS, 0, t, y, half, rows * half) : TS_OK;
}

// ---- noise: the CPU's, bit by bit

// Where numbers come from: by value, since a seed is no pointer.
struct noise_stream {
    uint64_t seed, index;
    uint32_t purpose;
    int64_t first;
};

// A thread has the four numbers of a draw, of which some may lie before the first or beyond the last.
template <bool ALIGNED>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) noise(float *out, int64_t n, noise_stream stream) {
    const int64_t lane = stream.first / 4 + ts_flat_first<1>(), i = lane * 4 - stream.first;
    if (i >= n) {
        return;
    }
    uint32_t word[4];
    float normal[4];
    ts_philox_words(stream.seed, stream.purpose, stream.index, (uint32_t)lane, word);
    ts_rng_box_muller(word[0], word[1], &normal[0], &normal[1]);
    ts_rng_box_muller(word[2], word[3], &normal[2], &normal[3]);
    if (ALIGNED && i + 4 <= n) {
        ts_store(out + i, normal);
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (i + k >= 0 && i + k < n) {
            out[i + k] = normal[k];
        }
    }
}

static int noise_entry(float *out, int64_t n, uint64_t seed, uint32_t purpose, uint64_t index, int64_t first) {
    if (n < 0 || first < 0 || first > ((int64_t)1 << 34) - n) {
        return TS_FAIL(TS_EINTERNAL, "noise: numbers %lld to %lld of a stream; it has 2^34", (long long)first,
                       (long long)(first + n));
    }
    const noise_stream stream = {seed, index, purpose, first};
    const int64_t draws = n ? (first + n + 3) / 4 - first / 4 : 0;
    TS_FLAT("noise", (noise<ALIGNED>), first % 4 == 0 && ts_is_aligned(out), draws, 1, out, n, stream);
    return TS_OK;
}

void ts_cuda_fill_embed(ts_kernels *kernels) {
    kernels->patchify = patches_entry<true>;
    kernels->unpatchify = patches_entry<false>;
    kernels->embedding_forward = embedding;
    kernels->embedding_backward = embedding_gradient;
    kernels->sinusoid = sinusoid_entry;
    kernels->noise = noise_entry;
}
