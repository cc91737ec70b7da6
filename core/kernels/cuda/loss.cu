// SPDX-License-Identifier: Apache-2.0
// Softmax, the loss, and norms of vectors. Formulas: core/kernels/kernels.h.
#include "core/kernels/cuda/row.cuh"

// ---- softmax

template <typename F>
static __global__ void __launch_bounds__(F::THREADS)
    softmax_rows(const float *x, float *y, int64_t rows, int64_t width, int64_t chunk) {
    __shared__ ts_block_memory<float, 1> memory;
    const ts_row_share<F> share(width);
    ts_row_numbers<F> v;
    int turn = 0;
    for (int64_t row = blockIdx.x * chunk; row < ts_chunk_end(blockIdx.x, chunk, rows); row++) {
        float largest[1] = {-INFINITY}, sum[1] = {0.0f};
        for (int tile = 0; tile < share.tiles; tile++) {
            share.load(v, x + row * width, tile);
            share.each([&](int pack, int k) {
                largest[0] = share.has(pack, k, tile) ? fmaxf(largest[0], v[pack][k]) : largest[0];
            });
        }
        ts_block_reduce(largest, -INFINITY, ts_larger(), memory, turn);
        for (int tile = 0; tile < share.tiles; tile++) {
            share.load_again(v, x + row * width, tile);
            share.each([&](int pack, int k) {
                v[pack][k] = share.has(pack, k, tile) ? expf(v[pack][k] - largest[0]) : 0.0f;
                sum[0] += v[pack][k];
            });
        }
        ts_block_sum(sum, memory, turn);
        const float inverse = 1.0f / sum[0];
        for (int tile = 0; tile < share.tiles; tile++) {
            if (!F::KEPT) {
                share.load(v, x + row * width, tile);
                share.each([&](int pack, int k) { v[pack][k] = expf(v[pack][k] - largest[0]); });
            }
            share.each([&](int pack, int k) { v[pack][k] *= inverse; });
            share.store(y + row * width, v, tile);
        }
    }
}

static int softmax(const float *x, float *y, int64_t rows, int64_t width) {
    if (rows <= 0 || width <= 0) {
        return TS_OK;
    }
    const bool aligned = ts_row_is_aligned<4>(x, width, TS_F32) && ts_row_is_aligned<4>(y, width, TS_F32);
    return ts_by_row_form<4>("softmax", rows, width, aligned, false, [&](auto form, ts_row_plan plan) {
        typedef decltype(form) F;
        return TS_LAUNCH(softmax_rows<F>, plan.blocks, plan.threads, 0, x, y, rows, width, plan.chunk);
    });
}

// ---- sums in f64

enum { SUMMING = 512 };

// *sum = (*sum, where it is added to) + factor (x[0] + x[1] + ..), in an order that depends on n alone. One block.
static __global__ void __launch_bounds__(SUMMING)
    add_doubles(const double *x, int64_t n, double factor, bool add, double *sum) {
    __shared__ ts_block_memory<double, 1> memory;
    double total[1] = {0.0};
    int turn = 0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < n; i += SUMMING) {
        total[0] += x[i];
    }
    ts_block_sum(total, memory, turn);
    if (threadIdx.x == 0) {
        *sum = (add ? *sum : 0.0) + factor * total[0];
    }
}

enum { SQUARES_CHUNK = 65536 };

template <bool WHOLE>
static __global__ void __launch_bounds__(SUMMING) square_chunks(const float *x, int64_t n, double *part) {
    __shared__ ts_block_memory<double, 1> memory;
    const int64_t begin = (int64_t)blockIdx.x * SQUARES_CHUNK, end = min(begin + SQUARES_CHUNK, n);
    double total[1] = {0.0};
    int turn = 0;
#pragma unroll 4
    for (int64_t i = begin + threadIdx.x * 4; i < end; i += SUMMING * 4) {
        float v[4];
        if (WHOLE && i + 4 <= end) {
            ts_load(v, x + i);
        } else {
            ts_load_some(v, x + i, end - i);
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            total[0] += (double)v[k] * (double)v[k];
        }
    }
    ts_block_sum(total, memory, turn);
    if (threadIdx.x == 0) {
        part[blockIdx.x] = total[0];
    }
}

static int sum_squares(const float *x, int64_t n, double *sum) {
    if (n <= 0) {
        return TS_OK;
    }
    const int64_t chunks = (n + SQUARES_CHUNK - 1) / SQUARES_CHUNK;
    double *part = (double *)ts_cuda_scratch(TS_CUDA_SCRATCH_REDUCE, (size_t)chunks * sizeof *part);
    if (!part) {
        return TS_ERESOURCE;
    }
    const unsigned blocks = (unsigned)chunks, threads = SUMMING;
    TS_TRY(ts_is_aligned(x) ? TS_LAUNCH(square_chunks<true>, blocks, threads, 0, x, n, part)
                            : TS_LAUNCH(square_chunks<false>, blocks, threads, 0, x, n, part));
    return TS_LAUNCH(add_doubles, 1, threads, 0, (const double *)part, chunks, 1.0, true, sum);
}

// x *= 1 / (sqrt(*squares) + 1e-20): the factor once for each thread, whose numbers are `step` apart.
template <bool WHOLE>
static __global__ void __launch_bounds__(SUMMING) normalize_numbers(const double *squares, float *x, int64_t n) {
    const float factor = (float)(1.0 / (sqrt(*squares) + 1e-20));
    const int64_t step = (int64_t)gridDim.x * SUMMING * 4;
#pragma unroll 4
    for (int64_t i = ((int64_t)blockIdx.x * SUMMING + threadIdx.x) * 4; i < n; i += step) {
        float v[4];
        const bool at_once = WHOLE && i + 4 <= n;
        if (at_once) {
            ts_load(v, x + i);
        } else {
            ts_load_some(v, x + i, n - i);
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            v[k] *= factor;
        }
        if (at_once) {
            ts_store(x + i, v);
        } else {
            ts_store_some(x + i, v, n - i);
        }
    }
}

static int normalize(const double *squares, float *x, int64_t n) {
    if (n <= 0) {
        return TS_OK;
    }
    const int64_t wanted = (n + SUMMING * 4 - 1) / (SUMMING * 4);
    const int64_t resident = (int64_t)ts_cuda_get_properties()->multiprocessors * 2048 / SUMMING;
    const unsigned blocks = (unsigned)(wanted < resident ? wanted : resident), threads = SUMMING;
    return ts_is_aligned(x) ? TS_LAUNCH(normalize_numbers<true>, blocks, threads, 0, squares, x, n)
                            : TS_LAUNCH(normalize_numbers<false>, blocks, threads, 0, squares, x, n);
}

// ---- squared error

template <typename F> static __global__ void __launch_bounds__(F::THREADS) mse_rows(ts_mse p, int64_t chunk) {
    __shared__ ts_block_memory<double, 1> memory;
    const ts_row_share<F> share(p.width);
    ts_row_numbers<F> v, target;
    int turn = 0;
    for (int64_t row = blockIdx.x * chunk; row < ts_chunk_end(blockIdx.x, chunk, p.rows); row++) {
        const double weight = p.weight ? (double)p.weight[row] : 1.0;
        const float factor = (float)(2.0 * p.scale * weight);
        double sum[1] = {0.0};
        for (int tile = 0; tile < share.tiles; tile++) {
            share.load(v, p.v + row * p.width, tile);
            share.load(target, p.target + row * p.width, tile);
            share.each([&](int pack, int k) {
                v[pack][k] -= target[pack][k];
                sum[0] += (double)v[pack][k] * (double)v[pack][k];
                v[pack][k] *= factor;
            });
            if (p.d_v) {
                share.store(p.d_v + row * p.width, v, tile);
            }
        }
        ts_block_sum(sum, memory, turn);
        if (threadIdx.x == 0) {
            p.row_loss[row] = weight * sum[0];
        }
    }
}

static int mse(const ts_mse *p) {
    ts_mse rows = *p;
    if (!rows.row_loss) {
        rows.row_loss = (double *)ts_cuda_scratch(TS_CUDA_SCRATCH_REDUCE, (size_t)(p->rows + 1) * sizeof(double));
        if (!rows.row_loss) {
            return TS_ERESOURCE;
        }
    }
    if (p->rows > 0) {
        const bool aligned = ts_row_is_aligned<4>(p->v, p->width, TS_F32) &&
                             ts_row_is_aligned<4>(p->target, p->width, TS_F32) &&
                             ts_row_is_aligned<4>(p->d_v, p->width, TS_F32);
        TS_TRY(ts_by_row_form<4>("mse", p->rows, p->width, aligned, false, [&](auto form, ts_row_plan plan) {
            typedef decltype(form) F;
            return TS_LAUNCH(mse_rows<F>, plan.blocks, plan.threads, 0, rows, plan.chunk);
        }));
    }
    const unsigned threads = SUMMING;
    return TS_LAUNCH(add_doubles, 1, threads, 0, (const double *)rows.row_loss, p->rows, p->scale, false, p->loss);
}

void ts_cuda_fill_loss(ts_kernels *kernels) {
    kernels->softmax = softmax;
    kernels->sum_squares = sum_squares;
    kernels->normalize = normalize;
    kernels->mse = mse;
}
