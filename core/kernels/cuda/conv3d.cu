// SPDX-License-Identifier: Apache-2.0
// Causal 3-D convolution as matrix products. The patches that rows of the output see are gathered into scratch, some
// rows at a time so that it stays bounded, and multiplied by the weights:
//
//   y        [rows, Co]       = patches of x [rows, taps Ci] weight^T
//   d_weight [Co, taps Ci]   += d_y^T patches of x
//   d_x      [rows, Ci]       = patches of d_y [rows, Co taps], taps mirrored, times weight as stored [Co taps, Ci]
//
// Pieces follow one another in a fixed order, and so do the sums of d_weight.
#include "core/kernels/cuda/flat.cuh"

static const int64_t patch_bytes = (int64_t)64 << 20;

// ---- gathering

// Patches of an image with `channels` channels. Forward: a row is (tap, channel), and tap (dt, dh, dw) of output (t, h,
// w) lies at (t + dt - (kt - 1), h + dh - kh/2, w + dw - kw/2). Mirrored: a row is (channel, tap), and lies at the
// opposite side: where input (t, h, w) was seen from.
struct patches {
    ts_conv3d c;
    const float *from;
    int64_t channels, first, rows;  // of all B T H W, those of this piece
    bool mirrored;
};

// Where a tap of a row lies: its place among B T H W, or -1 in the padding.
static __device__ __forceinline__ int64_t place_of(const patches &p, int64_t row, int64_t tap) {
    const ts_conv3d &c = p.c;
    const int64_t dw = tap % c.kernel_w - (c.kernel_w - 1) / 2;
    const int64_t dh = tap / c.kernel_w % c.kernel_h - (c.kernel_h - 1) / 2;
    const int64_t dt = tap / c.kernel_w / c.kernel_h - (c.kernel_t - 1);
    const int64_t sign = p.mirrored ? -1 : 1;
    const int64_t w = row % c.width + sign * dw, h = row / c.width % c.height + sign * dh;
    const int64_t frame = row / c.width / c.height, t = frame % c.frames + sign * dt;
    const bool inside = w >= 0 && w < c.width && h >= 0 && h < c.height && t >= 0 && t < c.frames;
    return inside ? ((frame - frame % c.frames + t) * c.height + h) * c.width + w : -1;
}

// A thread has N neighbouring numbers of one row: with N 4 the channels of one tap.
template <int N>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) gather_patches(patches p, float *out, int64_t n) {
    const int64_t i = ts_flat_first<N>();
    if (i >= n) {
        return;
    }
    const int64_t taps = p.c.kernel_t * p.c.kernel_h * p.c.kernel_w, width = taps * p.channels;
    const int64_t row = i / width, column = i % width;
    const int64_t tap = p.mirrored ? column % taps : column / p.channels;
    const int64_t channel = p.mirrored ? column / taps : column % p.channels;
    const int64_t place = place_of(p, p.first + row, tap);
    float x[N] = {};
    if (place >= 0) {
        ts_load(x, p.from + place * p.channels + channel);
    }
    ts_store(out + i, x);
}

static int gather(const patches *p, float *out) {
    const int64_t n = p->rows * p->c.kernel_t * p->c.kernel_h * p->c.kernel_w * p->channels;
    const bool by_four = !p->mirrored && p->channels % 4 == 0 && ts_is_aligned(p->from);
    unsigned blocks = 0;
    TS_TRY(ts_flat_blocks("conv3d", n, by_four ? 4 : 1, &blocks));
    if (blocks == 0) {
        return TS_OK;
    }
    return by_four ? TS_LAUNCH((gather_patches<4>), blocks, TS_FLAT_THREADS, 0, *p, out, n)
                   : TS_LAUNCH((gather_patches<1>), blocks, TS_FLAT_THREADS, 0, *p, out, n);
}

// ---- pieces

static int check(const ts_conv3d *c) {
    if (c->kernel_h % 2 == 0 || c->kernel_w % 2 == 0 || c->kernel_t < 1) {
        return TS_FAIL(TS_EINTERNAL, "conv3d: kernel %lldx%lldx%lld; height and width must be odd",
                       (long long)c->kernel_t, (long long)c->kernel_h, (long long)c->kernel_w);
    }
    return TS_OK;
}

// Calls use(first, rows, patches) for piece after piece of the rows, with their gathered patches.
template <typename Use>
static int for_pieces(const ts_conv3d *c, const float *from, int64_t channels, bool mirrored, Use use) {
    const int64_t width = c->kernel_t * c->kernel_h * c->kernel_w * channels;
    const int64_t rows = c->batch * c->frames * c->height * c->width, row_bytes = width * (int64_t)sizeof(float);
    if (rows == 0 || width == 0) {
        return TS_OK;
    }
    const int64_t most = row_bytes < patch_bytes ? patch_bytes / row_bytes : 1, each = rows < most ? rows : most;
    float *gathered = (float *)ts_cuda_scratch(TS_CUDA_SCRATCH_CONVOLUTION, (size_t)(each * row_bytes));
    if (!gathered) {
        return TS_ERESOURCE;
    }
    for (int64_t first = 0; first < rows; first += each) {
        const int64_t count = rows - first < each ? rows - first : each;
        const patches p = {*c, from, channels, first, count, mirrored};
        TS_TRY(gather(&p, gathered));
        TS_TRY(use(first, count, (const float *)gathered));
    }
    return TS_OK;
}

static ts_gemm product_of(int64_t m, int64_t n, int64_t k) {
    ts_gemm p = {};
    p.m = m;
    p.n = n;
    p.k = k;
    p.dtype_ab = p.dtype_c = TS_F32;
    return p;
}

int ts_cuda_conv3d_forward(const ts_conv3d *c) {
    TS_TRY(check(c));
    const int64_t width = c->kernel_t * c->kernel_h * c->kernel_w * c->in_channels;
    return for_pieces(c, c->x, c->in_channels, false, [&](int64_t first, int64_t rows, const float *patch) {
        ts_gemm p = product_of(rows, c->out_channels, width);
        p.a = patch;
        p.b = c->weight;
        p.c = c->y + first * c->out_channels;
        p.lda = p.ldb = width;
        p.ldc = c->out_channels;
        p.transpose_b = true;
        p.bias = c->bias;
        return ts_cuda_gemm(&p);
    });
}

static int weight_gradient(const ts_conv3d *c) {
    const int64_t width = c->kernel_t * c->kernel_h * c->kernel_w * c->in_channels;
    return for_pieces(c, c->x, c->in_channels, false, [&](int64_t first, int64_t rows, const float *patch) {
        ts_gemm p = product_of(c->out_channels, width, rows);
        p.a = c->d_y + first * c->out_channels;
        p.b = patch;
        p.c = c->d_weight;
        p.lda = c->out_channels;
        p.ldb = p.ldc = width;
        p.transpose_a = true;
        p.accumulate = true;
        return ts_cuda_gemm(&p);
    });
}

static int input_gradient(const ts_conv3d *c) {
    const int64_t width = c->kernel_t * c->kernel_h * c->kernel_w * c->out_channels;
    return for_pieces(c, c->d_y, c->out_channels, true, [&](int64_t first, int64_t rows, const float *patch) {
        ts_gemm p = product_of(rows, c->in_channels, width);
        p.a = patch;
        p.b = c->weight;
        p.c = c->d_x + first * c->in_channels;
        p.lda = width;
        p.ldb = p.ldc = c->in_channels;
        return ts_cuda_gemm(&p);
    });
}

int ts_cuda_conv3d_backward(const ts_conv3d *c) {
    TS_TRY(check(c));
    if (c->d_x) {
        TS_TRY(input_gradient(c));
    }
    if (c->d_weight) {
        TS_TRY(weight_gradient(c));
    }
    const int64_t rows = c->batch * c->frames * c->height * c->width;
    return c->d_bias ? ts_cuda_bias_gradient(c->d_y, TS_F32, rows, c->out_channels, c->out_channels, c->d_bias) : TS_OK;
}
