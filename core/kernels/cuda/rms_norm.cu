// SPDX-License-Identifier: Apache-2.0
// RMS norm with rotary embedding. Formulas and the gradient contract: core/kernels/kernels.h.
#include "core/kernels/cuda/row.cuh"

// ---- rotation

// Where the angles of a thread's numbers are in a row of the tables, and the row's.
template <typename F> struct rotation {
    int head_dim, angle[F::PACKS];  // angle: of kept rows, whose packs do not reach into the next head
    int64_t position, positions;
    const float *cosine, *sine;  // NULL: no rotation

    __device__ __forceinline__ rotation(const ts_rms_norm &p, const ts_row_share<F> &share, int64_t row)
        : head_dim((int)p.head_dim), position(0), positions(p.positions), cosine(p.cosine), sine(p.sine) {
        if (cosine) {
            position = row % positions;
#pragma unroll
            for (int pack = 0; pack < F::PACKS; pack++) {
                angle[pack] = share.at(pack, 0) % head_dim / 2;
            }
        }
    }
    __device__ __forceinline__ void next_row() {
        position = position + 1 == positions ? 0 : position + 1;
    }

    // (a, b) -> (a cos - b sin, a sin + b cos) for the pairs of u; direction -1 rotates back.
    __device__ __forceinline__ void turn(const ts_row_share<F> &share, int tile, float direction,
                                         ts_row_numbers<F> &u) const {
        if (!cosine) {
            return;
        }
        const int64_t row = position * (head_dim / 2);
#pragma unroll
        for (int pack = 0; pack < F::PACKS; pack++) {
            float c[F::V / 2], s[F::V / 2];
            if (F::KEPT && share.has(pack, 0, tile)) {
                ts_load(c, cosine + row + angle[pack]);
                ts_load(s, sine + row + angle[pack]);
            }
#pragma unroll
            for (int k = 0; k < F::V; k += 2) {
                if (!F::KEPT && share.has(pack, k, tile)) {
                    const int64_t place = row + (share.at(pack, tile) + k) % head_dim / 2;
                    c[k / 2] = cosine[place];
                    s[k / 2] = sine[place];
                }
                if (share.has(pack, k, tile)) {
                    const float a = u[pack][k], b = u[pack][k + 1], sine_k = direction * s[k / 2];
                    u[pack][k] = a * c[k / 2] - b * sine_k;
                    u[pack][k + 1] = a * sine_k + b * c[k / 2];
                }
            }
        }
    }
};

// ---- forward

template <typename F, typename X>
static __device__ __forceinline__ float sum_of_squares(const ts_row_share<F> &share, const X *x_row,
                                                       ts_row_numbers<F> &x) {
    float sum = 0.0f;
    for (int tile = 0; tile < share.tiles; tile++) {
        share.load(x, x_row, tile);
        share.each([&](int pack, int k) { sum += x[pack][k] * x[pack][k]; });
    }
    return sum;
}

template <typename F, typename X>
static __global__ void __launch_bounds__(F::THREADS) rms_norm_squares(ts_rms_norm p, int64_t chunk) {
    __shared__ ts_block_memory<float, 1> memory;
    const ts_row_share<F> share(p.width);
    ts_row_numbers<F> x;
    int turn = 0;
    for (int64_t row = blockIdx.x * chunk; row < ts_chunk_end(blockIdx.x, chunk, p.rows); row++) {
        float sum[1] = {sum_of_squares(share, (const X *)p.x + row * p.x_row, x)};
        ts_block_sum(sum, memory, turn);
        if (threadIdx.x == 0) {
            p.sums[row] = sum[0];
        }
    }
}

// The mean over a row: of the sum over this part, or of the whole row where that is given.
static __device__ __forceinline__ float mean_of(const ts_rms_norm &p, int64_t row, float part) {
    return p.sums ? p.sums[row] / (float)p.whole_width : part / (float)p.width;
}

template <typename F, typename X, typename Y>
static __global__ void __launch_bounds__(F::THREADS) rms_norm_forward(ts_rms_norm p, int64_t chunk) {
    __shared__ ts_block_memory<float, 1> memory;
    const ts_row_share<F> share(p.width);
    const int64_t begin = blockIdx.x * chunk, end = ts_chunk_end(blockIdx.x, chunk, p.rows);
    rotation<F> angles(p, share, begin);
    ts_row_numbers<F> x = {}, weight = {};
    int turn = 0;
    if (F::KEPT) {
        share.load(weight, p.weight);
    }
    for (int64_t row = begin; row < end; row++, angles.next_row()) {
        const X *x_row = (const X *)p.x + row * p.x_row;
        float sum[1] = {0.0f};
        if (row + 1 < end) {
            share.prefetch(x_row + p.x_row);
        }
        if (!p.sums) {
            sum[0] = sum_of_squares(share, x_row, x);
            ts_block_sum(sum, memory, turn);
        }
        const float rstd = 1.0f / sqrtf(mean_of(p, row, sum[0]) + p.eps);
        if (threadIdx.x == 0 && p.rstd) {
            p.rstd[row] = rstd;
        }
        for (int tile = 0; tile < share.tiles; tile++) {
            if (!F::KEPT || p.sums) {
                share.load(x, x_row, tile);
            }
            share.load_again(weight, p.weight, tile);
            share.each([&](int pack, int k) { x[pack][k] *= rstd * weight[pack][k]; });
            angles.turn(share, tile, 1.0f, x);
            share.store((Y *)p.y + row * p.y_row, x, tile);
        }
    }
}

// ---- backward
//   d_u = d_y rotated back;   g = d_u weight;   d_x = rstd g - x rstd^3 mean(g x);   d_weight += d_u x rstd

template <typename F> struct gradient {
    ts_row_numbers<F> x, g, d_weight;
    float rstd;
};

template <typename F, typename X, typename Y>
static __device__ __forceinline__ void gather(const ts_rms_norm &p, int64_t row, const ts_row_share<F> &share,
                                              const rotation<F> &angles, int tile, gradient<F> &b) {
    b.rstd = p.rstd[row];
    share.load(b.x, (const X *)p.x + row * p.x_row, tile);
    share.load(b.g, (const Y *)p.d_y + row * p.y_row, tile);
    ts_row_numbers<F> weight;
    share.load(weight, p.weight, tile);
    angles.turn(share, tile, -1.0f, b.g);
    share.each([&](int pack, int k) {
        b.d_weight[pack][k] += b.g[pack][k] * b.x[pack][k] * b.rstd;
        b.g[pack][k] *= weight[pack][k];
    });
}

// The sum over the row of g x.
template <typename F, typename X, typename Y>
static __device__ __forceinline__ float reduce(const ts_rms_norm &p, int64_t row, const ts_row_share<F> &share,
                                               const rotation<F> &angles, gradient<F> &b,
                                               ts_block_memory<float, 1> &memory, int &turn) {
    float sum[1] = {0.0f};
    for (int tile = 0; tile < share.tiles; tile++) {
        gather<F, X, Y>(p, row, share, angles, tile, b);
        share.each([&](int pack, int k) { sum[0] += b.g[pack][k] * b.x[pack][k]; });
    }
    ts_block_sum(sum, memory, turn);
    return sum[0];
}

template <typename F, typename X, typename Y>
static __global__ void __launch_bounds__(F::THREADS) rms_norm_products(ts_rms_norm p, int64_t chunk) {
    __shared__ ts_block_memory<float, 1> memory;
    const ts_row_share<F> share(p.width);
    const int64_t begin = blockIdx.x * chunk;
    rotation<F> angles(p, share, begin);
    gradient<F> b = {};
    int turn = 0;
    for (int64_t row = begin; row < ts_chunk_end(blockIdx.x, chunk, p.rows); row++, angles.next_row()) {
        const float sum = reduce<F, X, Y>(p, row, share, angles, b, memory, turn);
        if (threadIdx.x == 0) {
            p.sums[row] = sum;
        }
    }
}

template <typename F, typename X>
static __device__ __forceinline__ void scatter(const ts_rms_norm &p, int64_t row, const ts_row_share<F> &share,
                                               int tile, gradient<F> &b, float sum) {
    X *d_x = (X *)p.d_x + row * p.x_row;
    const float factor = b.rstd * b.rstd * b.rstd * mean_of(p, row, sum);
    share.each([&](int pack, int k) { b.g[pack][k] = b.g[pack][k] * b.rstd - b.x[pack][k] * factor; });
    if (p.accumulate_d_x) {
        share.load(b.x, d_x, tile);
        share.each([&](int pack, int k) { b.g[pack][k] += b.x[pack][k]; });
    }
    share.store(d_x, b.g, tile);
}

// Rows that are kept are read once. Of others, first the sums are found, then tile by tile the rest.
template <typename F, typename X, typename Y>
static __global__ void __launch_bounds__(F::THREADS) rms_norm_backward(ts_rms_norm p, ts_run_sums s) {
    __shared__ ts_block_memory<float, 1> memory;
    const ts_row_share<F> share(p.width);
    const int64_t begin = blockIdx.x * s.chunk, end = ts_chunk_end(blockIdx.x, s.chunk, p.rows);
    rotation<F> angles(p, share, begin);
    gradient<F> b = {};
    int turn = 0;
    if (!F::KEPT && !p.sums) {
        for (int64_t row = begin; row < end; row++, angles.next_row()) {
            const float sum = reduce<F, X, Y>(p, row, share, angles, b, memory, turn);
            if (threadIdx.x == 0) {
                s.of_rows[row] = sum;
            }
        }
        __syncthreads();
        b = {};
    }
    for (int tile = 0; tile < share.tiles; tile++) {
        angles.position = p.cosine ? begin % p.positions : 0;
        for (int64_t row = begin; row < end; row++, angles.next_row()) {
            float sum = 0.0f;
            if (F::KEPT && row + 1 < end) {
                share.prefetch((const X *)p.x + (row + 1) * p.x_row);
                share.prefetch((const Y *)p.d_y + (row + 1) * p.y_row);
            }
            if (F::KEPT && !p.sums) {
                sum = reduce<F, X, Y>(p, row, share, angles, b, memory, turn);
            } else {
                gather<F, X, Y>(p, row, share, angles, tile, b);
                sum = p.sums ? 0.0f : s.of_rows[row];
            }
            scatter<F, X>(p, row, share, tile, b, sum);
        }
        ts_run_sums_take(s, blockIdx.x, 0, 0, share, b.d_weight, tile);
    }
}

// ---- entries

static int check(const ts_rms_norm *p) {
    const bool turns = p->cosine && p->rows > 0;
    if (turns && (p->head_dim < 2 || p->head_dim % 2 || p->width % p->head_dim || p->positions < 1)) {
        return TS_FAIL(TS_EINTERNAL, "rms_norm: rotation with head_dim %lld, width %lld, %lld positions",
                       (long long)p->head_dim, (long long)p->width, (long long)p->positions);
    }
    return TS_OK;
}

// What forward and backward have in common.
template <int V> static bool is_aligned(const ts_rms_norm *p) {
    const bool turns = p->cosine != NULL;
    return ts_row_is_aligned<V>(p->x, p->x_row, p->dtype_x) && ts_row_is_aligned<V>(p->weight, 0, TS_F32) &&
           (!turns || (p->head_dim % V == 0 && ts_row_is_aligned<V / 2>(p->cosine, p->head_dim / 2, TS_F32) &&
                       ts_row_is_aligned<V / 2>(p->sine, p->head_dim / 2, TS_F32)));
}

// Calls launch(form, X, Y, plan) for the types and the form of the call. `of_y` are the pointers of y's shape, `of_x`
// those of x's that are used beside x.
template <typename Launch>
static int by_types(const ts_rms_norm *p, const void *of_y, const void *of_x, bool sums, Launch launch) {
    TS_TRY(check(p));
    return ts_by_dtype("rms_norm", p->dtype_x, [&](auto x) {
        return ts_by_dtype("rms_norm", p->dtype_y, [&](auto y) {
            typedef decltype(x) X;
            typedef decltype(y) Y;
            constexpr int V = sizeof(X) + sizeof(Y) == 4 ? 8 : 4;
            const bool aligned = is_aligned<V>(p) && ts_row_is_aligned<V>(of_y, p->y_row, p->dtype_y) &&
                                 ts_row_is_aligned<V>(of_x, p->x_row, p->dtype_x) &&
                                 ts_row_is_aligned<V>(p->d_weight, 0, TS_F32);
            if (p->rows <= 0) {
                return (int)TS_OK;
            }
            return ts_by_row_form<V>("rms_norm", p->rows, p->width, aligned, sums,
                                     [&](auto form, ts_row_plan plan) { return launch(form, x, y, plan); });
        });
    });
}

static int forward(const ts_rms_norm *p) {
    return by_types(p, p->y, NULL, false, [&](auto form, auto x, auto y, ts_row_plan plan) {
        typedef decltype(form) F;
        typedef decltype(x) X;
        typedef decltype(y) Y;
        return TS_LAUNCH((rms_norm_forward<F, X, Y>), plan.blocks, plan.threads, 0, *p, plan.chunk);
    });
}

static int squares(const ts_rms_norm *p) {
    ts_rms_norm of_x = *p;  // all that is read is x
    of_x.dtype_y = p->dtype_x;
    return by_types(&of_x, NULL, NULL, false, [&](auto form, auto x, auto y, ts_row_plan plan) {
        typedef decltype(form) F;
        typedef decltype(x) X;
        if constexpr (sizeof x == sizeof y) {
            return TS_LAUNCH((rms_norm_squares<F, X>), plan.blocks, plan.threads, 0, *p, plan.chunk);
        } else {
            return (int)TS_OK;
        }
    });
}

static int products(const ts_rms_norm *p) {
    return by_types(p, p->d_y, NULL, false, [&](auto form, auto x, auto y, ts_row_plan plan) {
        typedef decltype(form) F;
        typedef decltype(x) X;
        typedef decltype(y) Y;
        return TS_LAUNCH((rms_norm_products<F, X, Y>), plan.blocks, plan.threads, 0, *p, plan.chunk);
    });
}

static int backward(const ts_rms_norm *p) {
    if (p->accumulate_d_x && p->dtype_x != TS_F32) {
        return TS_FAIL(TS_EINTERNAL, "rms_norm: accumulating d_x needs F32");
    }
    return by_types(p, p->d_y, p->d_x, p->d_weight, [&](auto form, auto x, auto y, ts_row_plan plan) {
        typedef decltype(form) F;
        typedef decltype(x) X;
        typedef decltype(y) Y;
        ts_run_sums s = {};
        s.rows = p->rows;
        s.width = p->width;
        s.chunk = plan.chunk;
        s.count = 1;
        s.target[0] = p->d_weight;
        s.row_numbers = F::KEPT || p->sums ? 0 : 1;
        TS_TRY(ts_cuda_run_sums_open(&s));
        TS_TRY(TS_LAUNCH((rms_norm_backward<F, X, Y>), plan.blocks, plan.threads, 0, *p, s));
        return ts_cuda_run_sums_finish(&s);
    });
}

void ts_cuda_fill_rms_norm(ts_kernels *kernels) {
    kernels->rms_norm_forward = forward;
    kernels->rms_norm_backward = backward;
    kernels->rms_norm_squares = squares;
    kernels->rms_norm_products = products;
}
