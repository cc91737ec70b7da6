// SPDX-License-Identifier: Apache-2.0
// Arithmetic over flat ranges: sums, casts, the path between data and noise, the steps of samplers and of Muon.
// Formulas: core/kernels/kernels.h.
#include "core/kernels/cuda/flat.cuh"

#include "core/kernels/combine.h"

enum { N = ts_flat_count<float>::N };

// ---- sums and products

template <bool ALIGNED>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) axpy(float alpha, const float *x, float *y, int64_t n) {
    const int64_t i = ts_flat_first<N>();
    float vx[N], vy[N];
    ts_flat_load<ALIGNED>(vx, x, i, n);
    ts_flat_load<ALIGNED>(vy, y, i, n);
#pragma unroll
    for (int k = 0; k < N; k++) {
        vy[k] += alpha * vx[k];
    }
    ts_flat_store<ALIGNED>(y, vy, i, n);
}

template <bool ALIGNED>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) scale(float alpha, float *x, int64_t n) {
    const int64_t i = ts_flat_first<N>();
    float v[N];
    ts_flat_load<ALIGNED>(v, x, i, n);
#pragma unroll
    for (int k = 0; k < N; k++) {
        v[k] *= alpha;
    }
    ts_flat_store<ALIGNED>(x, v, i, n);
}

// The terms in order and never fused, so that a sampler's step has the CPU's bits.
template <bool ALIGNED> static __global__ void __launch_bounds__(TS_FLAT_THREADS) combine(ts_combine p) {
    const int64_t i = ts_flat_first<N>();
    double sum[N];
#pragma unroll  // so that terms have constant places among the arguments
    for (int term = 0; term < TS_MAX_TERMS; term++) {
        if (term < p.terms) {
            float v[N];
            ts_flat_load<ALIGNED>(v, p.x[term], i, p.n);
#pragma unroll
            for (int k = 0; k < N; k++) {
                const double product = __dmul_rn(p.c[term], (double)v[k]);
                sum[k] = term ? __dadd_rn(sum[k], product) : product;
            }
        }
    }
    float out[N];
#pragma unroll
    for (int k = 0; k < N; k++) {
        out[k] = (float)sum[k];
    }
    ts_flat_store<ALIGNED>(p.out, out, i, p.n);
}

// The same with the coefficients of each row's class, where terms of coefficient 0 are left out. Aligned: rows are
// whole N, so that a thread has numbers of one row.
template <bool ALIGNED> static __global__ void __launch_bounds__(TS_FLAT_THREADS) combine_rows(ts_combine p) {
    const int64_t i = ts_flat_first<N>();
    if (i >= p.n) {
        return;
    }
    const double *class_c = p.class_c + (int64_t)p.row_class[i / p.width] * TS_MAX_TERMS, *c[N];
    double sum[N];
    bool begun[N];
#pragma unroll
    for (int k = 0; k < N; k++) {
        c[k] = ALIGNED || i + k >= p.n ? class_c : p.class_c + (int64_t)p.row_class[(i + k) / p.width] * TS_MAX_TERMS;
        sum[k] = 0.0;
        begun[k] = false;
    }
#pragma unroll
    for (int term = 0; term < TS_MAX_TERMS; term++) {
        if (term < p.terms) {
            float v[N];
            ts_flat_load<ALIGNED>(v, p.x[term], i, p.n);
#pragma unroll
            for (int k = 0; k < N; k++) {
                const double factor = c[k][term], product = __dmul_rn(factor, (double)v[k]);
                if (factor != 0.0) {
                    sum[k] = begun[k] ? __dadd_rn(sum[k], product) : product;
                    begun[k] = true;
                }
            }
        }
    }
    float out[N];
#pragma unroll
    for (int k = 0; k < N; k++) {
        out[k] = (float)sum[k];
    }
    ts_flat_store<ALIGNED>(p.out, out, i, p.n);
}

static int axpy_entry(float alpha, const float *x, float *y, int64_t n) {
    TS_FLAT("axpy", (axpy<ALIGNED>), ts_are_aligned(x, y), n, N, alpha, x, y, n);
    return TS_OK;
}

static int scale_entry(float alpha, float *x, int64_t n) {
    TS_FLAT("scale", (scale<ALIGNED>), ts_are_aligned(x), n, N, alpha, x, n);
    return TS_OK;
}

static int combine_entry(const ts_combine *p) {
    TS_TRY(ts_combine_check(p));
    bool aligned = ts_is_aligned(p->out);
    for (int term = 0; term < p->terms; term++) {
        aligned = aligned && ts_is_aligned(p->x[term]);
    }
    if (p->row_class) {
        TS_FLAT("combine", (combine_rows<ALIGNED>), aligned && p->width % N == 0, p->n, N, *p);
    } else {
        TS_FLAT("combine", (combine<ALIGNED>), aligned, p->n, N, *p);
    }
    return TS_OK;
}

// ---- casts

template <bool ALIGNED, typename From, typename To>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) cast(const From *from, To *to, int64_t n) {
    const int64_t i = ts_flat_first<N>();
    float v[N];
    ts_flat_load<ALIGNED>(v, from, i, n);
    ts_flat_store<ALIGNED>(to, v, i, n);
}

int ts_cuda_cast(const void *from, ts_dtype from_dtype, void *to, ts_dtype to_dtype, int64_t n) {
    const bool known = (from_dtype == TS_F32 || from_dtype == TS_BF16) && (to_dtype == TS_F32 || to_dtype == TS_BF16);
    if (!known) {
        return TS_FAIL(TS_EINTERNAL, "cast: %s to %s; on the GPU there are F32 and BF16: convert it on the host",
                       ts_dtype_name(from_dtype), ts_dtype_name(to_dtype));
    }
    if (from_dtype == to_dtype) {
        return from == to ? TS_OK : ts_cuda_device.copy(to, from, (size_t)n * ts_dtype_bytes(to_dtype));
    }
    if (from_dtype == TS_F32) {
        TS_FLAT("cast", (cast<ALIGNED, float, ts_bf16>), ts_are_aligned(from, to), n, N, (const float *)from,
                (ts_bf16 *)to, n);
    } else {
        TS_FLAT("cast", (cast<ALIGNED, ts_bf16, float>), ts_are_aligned(from, to), n, N, (const ts_bf16 *)from,
                (float *)to, n);
    }
    return TS_OK;
}

template <bool ALIGNED>
static __global__ void __launch_bounds__(TS_FLAT_THREADS) fold(float *grad, ts_bf16 *kept, int64_t n) {
    const int64_t i = ts_flat_first<N>();
    float sum[N], g[N];
    ts_flat_load<ALIGNED>(sum, kept, i, n);
    ts_flat_load<ALIGNED>(g, grad, i, n);
#pragma unroll
    for (int k = 0; k < N; k++) {
        sum[k] += g[k];
        g[k] = 0.0f;
    }
    ts_flat_store<ALIGNED>(kept, sum, i, n);
    ts_flat_store<ALIGNED>(grad, g, i, n);
}

static int fold_entry(float *grad, uint16_t *kept, int64_t n) {
    TS_FLAT("fold", (fold<ALIGNED>), ts_are_aligned(grad, kept), n, N, grad, (ts_bf16 *)kept, n);
    return TS_OK;
}

// ---- the path between data and noise

// Four numbers a thread, which share a row where rows are whole fours.
enum { MIXED = 4 };
template <bool ALIGNED> static __global__ void __launch_bounds__(TS_FLAT_THREADS) mix(ts_mix p, int64_t n) {
    const int64_t i = ts_flat_first<MIXED>();
    if (i >= n) {
        return;
    }
    float x0[MIXED], eps[MIXED], x[MIXED];
    ts_flat_load<ALIGNED>(x0, p.x0, i, n);
    ts_flat_load<ALIGNED>(eps, p.eps_to_target, i, n);
    const int64_t row = i / p.width;
    float sigma = p.sigma[row];
#pragma unroll
    for (int k = 0; k < MIXED; k++) {
        if (!ALIGNED && k > 0 && i + k < n) {
            sigma = p.sigma[(i + k) / p.width];
        }
        x[k] = (1.0f - sigma) * x0[k] + sigma * eps[k];
        eps[k] -= x0[k];
    }
    ts_flat_store<ALIGNED>(p.x, x, i, n);
    ts_flat_store<ALIGNED>(p.eps_to_target, eps, i, n);
}

static int mix_entry(const ts_mix *p) {
    const int64_t n = p->rows * p->width;
    const bool aligned = p->width % MIXED == 0 && ts_are_aligned(p->x0, p->x, p->eps_to_target);
    TS_FLAT("mix", (mix<ALIGNED>), aligned, n, MIXED, *p, n);
    return TS_OK;
}

// ---- Muon

template <bool ALIGNED>
static __global__ void __launch_bounds__(TS_FLAT_THREADS)
    momentum(float grad_scale, float decay, float *m, float *u, int64_t n) {
    const int64_t i = ts_flat_first<N>();
    float vm[N], vu[N];
    ts_flat_load<ALIGNED>(vm, m, i, n);
    ts_flat_load<ALIGNED>(vu, u, i, n);
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float grad = vu[k] * grad_scale;
        vm[k] = decay * vm[k] + grad;
        vu[k] = grad + decay * vm[k];
    }
    ts_flat_store<ALIGNED>(m, vm, i, n);
    ts_flat_store<ALIGNED>(u, vu, i, n);
}

// Number i of a square is on its diagonal where side + 1 divides i.
template <bool ALIGNED>
static __global__ void __launch_bounds__(TS_FLAT_THREADS)
    newton_schulz(float a, float b, float c, const float *gram, float *square, int64_t side) {
    const int64_t i = ts_flat_first<N>(), n = side * side;
    if (i >= n) {
        return;
    }
    float g[N], s[N];
    ts_flat_load<ALIGNED>(g, gram, i, n);
    ts_flat_load<ALIGNED>(s, square, i, n);
    const int64_t after = i % (side + 1);
    int64_t to_diagonal = after ? side + 1 - after : 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
        s[k] = b * g[k] + c * s[k] + (to_diagonal == 0 ? a : 0.0f);
        to_diagonal = to_diagonal == 0 ? side : to_diagonal - 1;
    }
    ts_flat_store<ALIGNED>(square, s, i, n);
}

static int momentum_entry(float grad_scale, float decay, float *m, float *u, int64_t n) {
    TS_FLAT("momentum", (momentum<ALIGNED>), ts_are_aligned(m, u), n, N, grad_scale, decay, m, u, n);
    return TS_OK;
}

static int newton_schulz_entry(float a, float b, float c, const float *gram, float *square, int64_t side) {
    TS_FLAT("newton_schulz", (newton_schulz<ALIGNED>), ts_are_aligned(gram, square), side * side, N, a, b, c, gram,
            square, side);
    return TS_OK;
}

void ts_cuda_fill_flat(ts_kernels *kernels) {
    kernels->axpy = axpy_entry;
    kernels->scale = scale_entry;
    kernels->cast = ts_cuda_cast;
    kernels->combine = combine_entry;
    kernels->mix = mix_entry;
    kernels->fold = fold_entry;
    kernels->momentum = momentum_entry;
    kernels->newton_schulz = newton_schulz_entry;
}
