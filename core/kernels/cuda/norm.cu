// SPDX-License-Identifier: Apache-2.0
// Layer norm with scale and shift. Formulas and the gradient contract: core/kernels/kernels.h.
#include "core/kernels/cuda/row.cuh"

// ---- forward

// scale_offset + scale and shift of table row t.
template <typename F>
static __device__ __forceinline__ void load_factors(const ts_layer_norm &p, int64_t t, const ts_row_share<F> &share,
                                                    int tile, ts_row_numbers<F> &factor) {
    if (p.scale) {
        share.load(factor, p.scale + t * p.table_stride, tile);
    }
    share.each([&](int pack, int k) { factor[pack][k] = p.scale ? p.scale_offset + factor[pack][k] : 1.0f; });
}
template <typename F>
static __device__ __forceinline__ void load_shifts(const ts_layer_norm &p, int64_t t, const ts_row_share<F> &share,
                                                   int tile, ts_row_numbers<F> &shift) {
    if (p.shift) {
        share.load(shift, p.shift + t * p.table_stride, tile);
    } else {
        share.each([&](int pack, int k) { shift[pack][k] = 0.0f; });
    }
}

// What is added up for mean and variance, in two passes: in one, a large mean would drown the variance.
template <typename F>
static __device__ __forceinline__ float sum_of_squares(const ts_row_share<F> &share, const ts_row_numbers<F> &x,
                                                       float mean, int tile) {
    float sum = 0.0f;
    share.each([&](int pack, int k) {
        const float centred = share.has(pack, k, tile) ? x[pack][k] - mean : 0.0f;
        sum += centred * centred;
    });
    return sum;
}

template <typename F, typename T>
static __global__ void __launch_bounds__(F::THREADS) layer_norm_forward(ts_layer_norm p, int64_t chunk) {
    __shared__ ts_block_memory<float, 1> memory;
    const ts_row_share<F> share(p.width);
    ts_row_numbers<F> x = {}, factor = {}, shift = {};
    int64_t loaded = -1;  // table row of factor and shift
    int turn = 0;
    const int64_t end = ts_chunk_end(blockIdx.x, chunk, p.rows);
    for (int64_t row = blockIdx.x * chunk; row < end; row++) {
        const float *x_row = p.x + row * p.width;
        float sum[1] = {0.0f};
        for (int tile = 0; tile < share.tiles; tile++) {
            share.load(x, x_row, tile);
            share.each([&](int pack, int k) { sum[0] += x[pack][k]; });
        }
        if (row + 1 < end) {
            share.prefetch(x_row + p.width);
        }
        ts_block_sum(sum, memory, turn);
        const float mean = sum[0] / (float)p.width;
        sum[0] = 0.0f;
        for (int tile = 0; tile < share.tiles; tile++) {
            share.load_again(x, x_row, tile);
            sum[0] += sum_of_squares(share, x, mean, tile);
        }
        ts_block_sum(sum, memory, turn);
        const float rstd = 1.0f / sqrtf(sum[0] / (float)p.width + p.eps);
        const int64_t t = ts_table_row(p.row_index, row);
        for (int tile = 0; tile < share.tiles; tile++) {
            share.load_again(x, x_row, tile);
            if (!F::KEPT || t != loaded) {
                load_factors(p, t, share, tile, factor);
                load_shifts(p, t, share, tile, shift);
                loaded = t;
            }
            share.each(
                [&](int pack, int k) { x[pack][k] = (x[pack][k] - mean) * rstd * factor[pack][k] + shift[pack][k]; });
            share.store((T *)p.y + row * p.width, x, tile);
        }
        if (threadIdx.x == 0 && p.mean) {
            p.mean[row] = mean;
        }
        if (threadIdx.x == 0 && p.rstd) {
            p.rstd[row] = rstd;
        }
    }
}

static bool is_aligned(const ts_layer_norm *p) {
    return ts_row_is_aligned<4>(p->x, p->width, TS_F32) && ts_row_is_aligned<4>(p->scale, p->table_stride, TS_F32) &&
           ts_row_is_aligned<4>(p->shift, p->table_stride, TS_F32);
}

static int forward(const ts_layer_norm *p) {
    if (p->rows <= 0) {
        return TS_OK;
    }
    return ts_by_dtype("layer_norm", p->dtype_y, [&](auto number) {
        typedef decltype(number) T;
        const bool aligned = is_aligned(p) && ts_row_is_aligned<4>(p->y, p->width, p->dtype_y);
        return ts_by_row_form<4>("layer_norm", p->rows, p->width, aligned, false, [&](auto form, ts_row_plan plan) {
            typedef decltype(form) F;
            return TS_LAUNCH((layer_norm_forward<F, T>), plan.blocks, plan.threads, 0, *p, plan.chunk);
        });
    });
}

// ---- backward
//   g = d_y (offset + scale);   d_x = rstd (g - mean(g) - normal mean(g normal)),  normal = (x - mean) rstd
//   d_scale += d_y normal;   d_shift += d_y

template <typename F> struct gradient {
    ts_row_numbers<F> normal, g, d_scale, d_shift;
    float rstd;
};

// normal and g of a row; d_y normal and d_y are added to the sums over rows.
template <typename F, typename T>
static __device__ __forceinline__ void gather(const ts_layer_norm &p, int64_t row, const ts_row_share<F> &share,
                                              int tile, gradient<F> &b) {
    const float mean = p.mean[row], rstd = p.rstd[row];
    b.rstd = rstd;
    if (p.accumulate_d_x) {
        share.prefetch(p.d_x + row * p.width);
    }
    share.load(b.normal, p.x + row * p.width, tile);
    share.load(b.g, (const T *)p.d_y + row * p.width, tile);
    ts_row_numbers<F> factor;
    load_factors(p, ts_table_row(p.row_index, row), share, tile, factor);
    share.each([&](int pack, int k) {
        b.normal[pack][k] = (b.normal[pack][k] - mean) * rstd;
        b.d_scale[pack][k] += b.g[pack][k] * b.normal[pack][k];
        b.d_shift[pack][k] += b.g[pack][k];
        b.g[pack][k] *= factor[pack][k];
    });
}

template <typename F>
static __device__ __forceinline__ void scatter(const ts_layer_norm &p, int64_t row, const ts_row_share<F> &share,
                                               int tile, gradient<F> &b, float mean_g, float mean_gx) {
    float *d_x = p.d_x + row * p.width;
    share.each([&](int pack, int k) { b.g[pack][k] = b.rstd * (b.g[pack][k] - mean_g - b.normal[pack][k] * mean_gx); });
    if (p.accumulate_d_x) {
        share.load(b.normal, d_x, tile);
        share.each([&](int pack, int k) { b.g[pack][k] += b.normal[pack][k]; });
    }
    share.store(d_x, b.g, tile);
}

// The sums over the row of g and g normal, over its width.
template <typename F, typename T>
static __device__ __forceinline__ void reduce(const ts_layer_norm &p, int64_t row, const ts_row_share<F> &share,
                                              gradient<F> &b, ts_block_memory<float, 2> &memory, int &turn,
                                              float (&mean)[2]) {
    mean[0] = mean[1] = 0.0f;
    for (int tile = 0; tile < share.tiles; tile++) {
        gather<F, T>(p, row, share, tile, b);
        share.each([&](int pack, int k) {
            mean[0] += b.g[pack][k];
            mean[1] += b.g[pack][k] * b.normal[pack][k];
        });
    }
    ts_block_sum(mean, memory, turn);
    mean[0] /= (float)p.width;
    mean[1] /= (float)p.width;
}

template <typename F>
static __device__ __forceinline__ void take_sums(const ts_run_sums &s, int64_t run, const ts_row_share<F> &share,
                                                 int tile, gradient<F> &b) {
    ts_run_sums_take(s, blockIdx.x, 0, run, share, b.d_scale, tile);
    ts_run_sums_take(s, blockIdx.x, 1, run, share, b.d_shift, tile);
}

// Rows that are kept are read once. Of others, first the means are found, then tile by tile the rest.
template <typename F, typename T>
static __global__ void __launch_bounds__(F::THREADS, F::BLOCKS) layer_norm_backward(ts_layer_norm p, ts_run_sums s) {
    __shared__ ts_block_memory<float, 2> memory;
    const ts_row_share<F> share(p.width);
    const int64_t begin = blockIdx.x * s.chunk, end = ts_chunk_end(blockIdx.x, s.chunk, p.rows);
    gradient<F> b = {};
    float mean[2];
    int turn = 0;
    if (!F::KEPT) {
        for (int64_t row = begin; row < end; row++) {
            reduce<F, T>(p, row, share, b, memory, turn, mean);
            if (threadIdx.x == 0) {
                s.of_rows[2 * row] = mean[0];
                s.of_rows[2 * row + 1] = mean[1];
            }
        }
        __syncthreads();
        b = {};
    }
    for (int tile = 0; tile < share.tiles; tile++) {
        int64_t run = ts_table_row(p.row_index, begin);
        for (int64_t row = begin; row < end; row++) {
            const int64_t t = ts_table_row(p.row_index, row);
            if (t != run) {
                take_sums(s, run, share, tile, b);
                run = t;
            }
            if (F::KEPT) {
                if (row + 1 < end) {
                    share.prefetch(p.x + (row + 1) * p.width);
                    share.prefetch((const T *)p.d_y + (row + 1) * p.width);
                }
                reduce<F, T>(p, row, share, b, memory, turn, mean);
            } else {
                gather<F, T>(p, row, share, tile, b);
                mean[0] = s.of_rows[2 * row];
                mean[1] = s.of_rows[2 * row + 1];
            }
            scatter(p, row, share, tile, b, mean[0], mean[1]);
        }
        take_sums(s, run, share, tile, b);
    }
}

static int backward(const ts_layer_norm *p) {
    if (p->rows <= 0) {
        return TS_OK;
    }
    return ts_by_dtype("layer_norm", p->dtype_y, [&](auto number) {
        typedef decltype(number) T;
        const bool aligned = is_aligned(p) && ts_row_is_aligned<4>(p->d_y, p->width, p->dtype_y) &&
                             ts_row_is_aligned<4>(p->d_x, p->width, TS_F32) &&
                             ts_row_is_aligned<4>(p->d_scale, p->table_stride, TS_F32) &&
                             ts_row_is_aligned<4>(p->d_shift, p->table_stride, TS_F32);
        const bool sums = p->d_scale || p->d_shift;
        return ts_by_row_form<4>("layer_norm", p->rows, p->width, aligned, sums, [&](auto form, ts_row_plan plan) {
            typedef decltype(form) F;
            ts_run_sums s = {};
            s.rows = p->rows;
            s.width = p->width;
            s.chunk = plan.chunk;
            s.row_index = p->row_index;
            s.table_stride = p->table_stride;
            s.table_rows = p->table_rows;
            s.count = 2;
            s.target[0] = p->d_scale;
            s.target[1] = p->d_shift;
            s.row_numbers = F::KEPT ? 0 : 2;
            TS_TRY(ts_cuda_run_sums_open(&s));
            TS_TRY(TS_LAUNCH((layer_norm_backward<F, T>), plan.blocks, plan.threads, 0, *p, s));
            return ts_cuda_run_sums_finish(&s);
        });
    });
}

void ts_cuda_fill_norm(ts_kernels *kernels) {
    kernels->layer_norm_forward = forward;
    kernels->layer_norm_backward = backward;
}
