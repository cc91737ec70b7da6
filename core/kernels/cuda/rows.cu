// SPDX-License-Identifier: Apache-2.0
// Kernels over rows whose columns are independent: gated residual, sums over rows, broadcasts, copies. Formulas and the
// gradient contract: core/kernels/kernels.h.
//
// Blocks share rows in strips of columns. A thread has one pack of columns, and the loads of ROWS rows on their way
// before it waits for the first.
#include "core/kernels/cuda/row.cuh"

enum { ROWS = 4, STRIP = 128 };

// ---- element by element

// STRIP threads as `x` packs by `y` rows; a block takes ROWS * y rows.
struct strip_plan {
    dim3 threads;
    int64_t strips;
    unsigned blocks;
};

static int plan_strips(const char *entry, int64_t rows, int64_t packs, strip_plan *plan) {
    unsigned x = 1;
    while (x < STRIP && x < packs) {
        x *= 2;
    }
    plan->threads = dim3(x, STRIP / x);
    plan->strips = (packs + x - 1) / x;
    const int64_t tall = ROWS * (STRIP / x), blocks = plan->strips * ((rows + tall - 1) / tall);
    if (blocks > INT32_MAX) {
        return TS_FAIL(TS_EINTERNAL, "%s: %lld rows are too many", entry, (long long)rows);
    }
    plan->blocks = (unsigned)blocks;
    return TS_OK;
}

// The first row and the pack of a thread.
struct strip_place {
    int64_t row, pack;
    __device__ __forceinline__ explicit strip_place(int64_t strips) {
        row = blockIdx.x / strips * ROWS * blockDim.y + threadIdx.y;
        pack = blockIdx.x % strips * blockDim.x + threadIdx.x;
    }
};

// Packs that are whole and aligned at once, others number by number.
template <bool WHOLE, typename T>
static __device__ __forceinline__ void load_pack(float (&out)[4], const T *from, int64_t count) {
    if (WHOLE && count > 0) {
        ts_load(out, from);
    } else {
        ts_load_some(out, from, WHOLE ? 0 : count);
    }
}
template <bool WHOLE, typename T>
static __device__ __forceinline__ void store_pack(T *to, const float (&in)[4], int64_t count) {
    if (WHOLE && count > 0) {
        ts_store(to, in);
    } else if (!WHOLE) {
        ts_store_some(to, in, count);
    }
}

// out = x + y gate[t]
template <bool WHOLE, typename T>
static __global__ void __launch_bounds__(STRIP) gated_residual_forward(ts_gated_residual p, int64_t strips) {
    const strip_place place(strips);
    const int64_t column = place.pack * 4, count = p.width - column;
    float x[ROWS][4], y[ROWS][4];
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
        const int64_t row = place.row + (int64_t)j * blockDim.y, at = row * p.width + column;
        load_pack<WHOLE>(x[j], p.x + at, row < p.rows ? count : 0);
        load_pack<WHOLE>(y[j], (const T *)p.y + at, row < p.rows ? count : 0);
    }
    float gate[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    int64_t loaded = -1;
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
        const int64_t row = place.row + (int64_t)j * blockDim.y;
        if (row < p.rows) {
            const int64_t t = ts_table_row(p.row_index, row);
            if (p.gate && t != loaded) {
                load_pack<WHOLE>(gate, p.gate + t * p.table_stride + column, count);
                loaded = t;
            }
#pragma unroll
            for (int k = 0; k < 4; k++) {
                x[j][k] += y[j][k] * gate[k];
            }
            store_pack<WHOLE>(p.out + row * p.width + column, x[j], count);
        }
    }
}

static int gated_forward(const ts_gated_residual *p) {
    return ts_by_dtype("gated_residual", p->dtype_y, [&](auto number) {
        typedef decltype(number) T;
        if (p->rows <= 0 || p->width <= 0) {
            return (int)TS_OK;
        }
        strip_plan plan = {};
        TS_TRY(plan_strips("gated_residual", p->rows, (p->width + 3) / 4, &plan));
        const bool whole = p->width % 4 == 0 && ts_row_is_aligned<4>(p->x, p->width, TS_F32) &&
                           ts_row_is_aligned<4>(p->y, p->width, p->dtype_y) &&
                           ts_row_is_aligned<4>(p->out, p->width, TS_F32) &&
                           ts_row_is_aligned<4>(p->gate, p->table_stride, TS_F32);
        return whole ? TS_LAUNCH((gated_residual_forward<true, T>), plan.blocks, plan.threads, 0, *p, plan.strips)
                     : TS_LAUNCH((gated_residual_forward<false, T>), plan.blocks, plan.threads, 0, *p, plan.strips);
    });
}

// out = a + b, of numbers as they follow one another: `period` of b, then the same again.
template <bool WHOLE>
static __global__ void __launch_bounds__(STRIP)
    add_periods(const float *a, const float *b, float *out, int64_t n, int64_t period, int64_t strips) {
    const strip_place place(strips);
    const int64_t column = place.pack * 4, count = period - column;
    float x[ROWS][4], added[4];
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
        const int64_t at = (place.row + (int64_t)j * blockDim.y) * period + column;
        load_pack<WHOLE>(x[j], a + at, min(count, n - at));
    }
    load_pack<WHOLE>(added, b + column, count);
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
        const int64_t at = (place.row + (int64_t)j * blockDim.y) * period + column;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            x[j][k] += added[k];
        }
        store_pack<WHOLE>(out + at, x[j], min(count, n - at));
    }
}

static int add_rows(const float *a, const float *b, float *out, int64_t rows, int64_t b_rows, int64_t width) {
    const int64_t n = rows * width, period = b_rows * width;
    if (n <= 0) {
        return TS_OK;
    }
    strip_plan plan = {};
    TS_TRY(plan_strips("add_rows", (n + period - 1) / period, (period + 3) / 4, &plan));
    const bool whole = width % 4 == 0 && ts_is_aligned(a) && ts_is_aligned(b) && ts_is_aligned(out);
    return whole ? TS_LAUNCH(add_periods<true>, plan.blocks, plan.threads, 0, a, b, out, n, period, plan.strips)
                 : TS_LAUNCH(add_periods<false>, plan.blocks, plan.threads, 0, a, b, out, n, period, plan.strips);
}

// Rows of `words` words each; strides in words.
template <typename W>
static __global__ void __launch_bounds__(STRIP) copy_words(const W *from, int64_t from_stride, W *to, int64_t to_stride,
                                                           int64_t rows, int64_t words, int64_t strips) {
    const strip_place place(strips);
    if (place.pack >= words) {
        return;
    }
    W word[ROWS];
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
        const int64_t row = place.row + (int64_t)j * blockDim.y;
        if (row < rows) {
            word[j] = from[row * from_stride + place.pack];
        }
    }
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
        const int64_t row = place.row + (int64_t)j * blockDim.y;
        if (row < rows) {
            to[row * to_stride + place.pack] = word[j];
        }
    }
}

template <typename W>
static int copy_by(const void *from, int64_t from_stride, void *to, int64_t to_stride, int64_t rows, int64_t bytes) {
    const int64_t size = sizeof(W);
    strip_plan plan = {};
    TS_TRY(plan_strips("copy_rows", rows, bytes / size, &plan));
    return TS_LAUNCH(copy_words<W>, plan.blocks, plan.threads, 0, (const W *)from, from_stride / size, (W *)to,
                     to_stride / size, rows, bytes / size, plan.strips);
}

static int copy_rows(const void *from, int64_t from_stride, void *to, int64_t to_stride, int64_t rows,
                     int64_t row_bytes) {
    if (rows <= 0 || row_bytes <= 0) {
        return TS_OK;
    }
    if (rows == 1 || (from_stride == row_bytes && to_stride == row_bytes)) {
        TS_CUDA(cudaMemcpyAsync(to, from, (size_t)(rows * row_bytes), cudaMemcpyDeviceToDevice, ts_cuda_stream()));
        return TS_OK;
    }
    const uintptr_t shared =
        (uintptr_t)from | (uintptr_t)to | (uintptr_t)from_stride | (uintptr_t)to_stride | (uintptr_t)row_bytes;
    switch (shared & (~shared + 1) & 15) {  // the largest power of two that divides all, where it is below 16
    case 0:
        return copy_by<ts_words<16>>(from, from_stride, to, to_stride, rows, row_bytes);
    case 8:
        return copy_by<ts_words<8>>(from, from_stride, to, to_stride, rows, row_bytes);
    case 4:
        return copy_by<ts_words<4>>(from, from_stride, to, to_stride, rows, row_bytes);
    case 2:
        return copy_by<uint16_t>(from, from_stride, to, to_stride, rows, row_bytes);
    default:
        return copy_by<uint8_t>(from, from_stride, to, to_stride, rows, row_bytes);
    }
}

// ---- sums over rows

// One pack of columns a thread; of bf16 twice as many numbers, where no other operand is f32.
template <int V, bool WHOLE> using strip_form = ts_row_form<V, 1, STRIP, WHOLE>;

struct sum_plan {
    unsigned threads, blocks;
    int strips;
};

// Few chunks, but enough that their threads fill a GPU; their rows depend on the shape alone.
static int plan_sums(const char *entry, int pack, ts_run_sums *s, sum_plan *plan) {
    const int64_t filling_threads = 96 * 1024, least = 8;
    if (s->width > 1 << 30) {
        return TS_FAIL(TS_EINTERNAL, "%s: rows of %lld numbers, up to 2^30 can be taken", entry, (long long)s->width);
    }
    const int64_t warps = (s->width + pack * TS_WARP - 1) / (pack * TS_WARP), most = STRIP / TS_WARP;
    plan->threads = (unsigned)((warps < most ? warps : most) * TS_WARP);
    plan->strips = (int)((warps + most - 1) / most);
    const int64_t wanted = (s->rows * plan->threads * plan->strips + filling_threads - 1) / filling_threads;
    s->chunk = wanted > least ? wanted : least;
    const int64_t chunks = (s->rows + s->chunk - 1) / s->chunk;  // at most filling_threads / threads
    plan->blocks = (unsigned)(chunks * plan->strips);
    return TS_OK;
}

template <int V, bool WHOLE, typename T>
static __global__ void __launch_bounds__(STRIP) sum_columns(const T *x, int64_t row_stride, ts_run_sums s, int strips) {
    typedef strip_form<V, WHOLE> F;
    const ts_row_share<F> share(s.width, (int)blockIdx.x % strips);
    const int64_t chunk = (int64_t)blockIdx.x / strips, end = ts_chunk_end(chunk, s.chunk, s.rows);
    ts_row_numbers<F> sum = {};
    int64_t row = chunk * s.chunk;
    for (; row + ROWS <= end; row += ROWS) {
        ts_row_numbers<F> v[ROWS];
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            share.load(v[j], x + (row + j) * row_stride);
        }
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            share.each([&](int pack, int k) { sum[pack][k] += v[j][pack][k]; });
        }
    }
    for (; row < end; row++) {
        ts_row_numbers<F> v;
        share.load(v, x + row * row_stride);
        share.each([&](int pack, int k) { sum[pack][k] += v[pack][k]; });
    }
    ts_run_sums_take(s, chunk, 0, 0, share, sum, 0);
}

template <int V, typename T>
static int sum_columns_of(const T *d_y, ts_dtype dtype, int64_t row_stride, ts_run_sums *s) {
    const bool whole = s->width % V == 0 && ts_row_is_aligned<V>(d_y, row_stride, dtype) && ts_is_aligned(s->target[0]);
    sum_plan plan = {};
    TS_TRY(plan_sums("bias_gradient", V, s, &plan));
    TS_TRY(ts_cuda_run_sums_open(s));
    if (whole) {
        TS_TRY(TS_LAUNCH((sum_columns<V, true, T>), plan.blocks, plan.threads, 0, d_y, row_stride, *s, plan.strips));
    } else {
        TS_TRY(TS_LAUNCH((sum_columns<V, false, T>), plan.blocks, plan.threads, 0, d_y, row_stride, *s, plan.strips));
    }
    return ts_cuda_run_sums_finish(s);
}

int ts_cuda_bias_gradient(const void *d_y, ts_dtype dtype, int64_t m, int64_t n, int64_t row_stride, float *d_bias) {
    return ts_by_dtype("bias_gradient", dtype, [&](auto number) {
        typedef decltype(number) T;
        if (m <= 0 || n <= 0) {
            return (int)TS_OK;
        }
        ts_run_sums s = {};
        s.rows = m;
        s.width = n;
        s.count = 1;
        s.target[0] = d_bias;
        return sum_columns_of<16 / sizeof(T)>((const T *)d_y, dtype, row_stride, &s);
    });
}

// Rows b_rows apart are below one another in a matrix that is b_rows as wide; its last row may be short.
static int sum_rows(const float *d_out, float *d_b, int64_t rows, int64_t b_rows, int64_t width) {
    if (rows <= 0) {
        return TS_OK;
    }
    const int64_t whole = rows / b_rows, period = b_rows * width;
    TS_TRY(ts_cuda_bias_gradient(d_out, TS_F32, whole, period, period, d_b));
    return ts_cuda_bias_gradient(d_out + whole * period, TS_F32, 1, (rows - whole * b_rows) * width, period, d_b);
}

// ---- gradient of the gated residual

// d_y = d_out gate[t];   d_gate[t] += d_out y
template <bool WHOLE, typename T>
static __global__ void __launch_bounds__(STRIP)
    gated_residual_backward(ts_gated_residual p, ts_run_sums s, int strips) {
    typedef strip_form<4, WHOLE> F;
    const ts_row_share<F> share(p.width, (int)blockIdx.x % strips);
    const int64_t chunk = (int64_t)blockIdx.x / strips, begin = chunk * s.chunk,
                  end = ts_chunk_end(chunk, s.chunk, p.rows);
    ts_row_numbers<F> sum = {}, gate;
    share.each([&](int pack, int k) { gate[pack][k] = 1.0f; });
    int64_t run = -1;
    for (int64_t first = begin; first < end; first += ROWS) {
        ts_row_numbers<F> d[ROWS], y[ROWS];
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            const int64_t row = min(first + j, end - 1);
            share.load(d[j], p.d_out + row * p.width);
            share.load(y[j], (const T *)p.y + row * p.width);
        }
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            const int64_t row = first + j;
            if (row < end) {
                const int64_t t = ts_table_row(p.row_index, row);
                if (t != run) {
                    if (run >= 0) {
                        ts_run_sums_take(s, chunk, 0, run, share, sum, 0);
                    }
                    run = t;
                    if (p.gate) {
                        share.load(gate, p.gate + t * p.table_stride);
                    }
                }
                share.each([&](int pack, int k) {
                    sum[pack][k] += d[j][pack][k] * y[j][pack][k];
                    d[j][pack][k] *= gate[pack][k];
                });
                share.store((T *)p.d_y + row * p.width, d[j]);
            }
        }
    }
    ts_run_sums_take(s, chunk, 0, run, share, sum, 0);
}

static int gated_backward(const ts_gated_residual *p) {
    return ts_by_dtype("gated_residual", p->dtype_y, [&](auto number) {
        typedef decltype(number) T;
        if (p->rows <= 0 || p->width <= 0) {
            return (int)TS_OK;
        }
        ts_run_sums s = {};
        s.rows = p->rows;
        s.width = p->width;
        s.row_index = p->row_index;
        s.table_stride = p->table_stride;
        s.table_rows = p->table_rows;
        s.count = 1;
        s.target[0] = p->d_gate;
        sum_plan plan = {};
        TS_TRY(plan_sums("gated_residual", 4, &s, &plan));
        const bool whole = p->width % 4 == 0 && ts_row_is_aligned<4>(p->d_out, p->width, TS_F32) &&
                           ts_row_is_aligned<4>(p->y, p->width, p->dtype_y) &&
                           ts_row_is_aligned<4>(p->d_y, p->width, p->dtype_y) &&
                           ts_row_is_aligned<4>(p->gate, p->table_stride, TS_F32) &&
                           ts_row_is_aligned<4>(p->d_gate, p->table_stride, TS_F32);
        TS_TRY(ts_cuda_run_sums_open(&s));
        if (whole) {
            TS_TRY(TS_LAUNCH((gated_residual_backward<true, T>), plan.blocks, plan.threads, 0, *p, s, plan.strips));
        } else {
            TS_TRY(TS_LAUNCH((gated_residual_backward<false, T>), plan.blocks, plan.threads, 0, *p, s, plan.strips));
        }
        return ts_cuda_run_sums_finish(&s);
    });
}

void ts_cuda_fill_rows(ts_kernels *kernels) {
    kernels->gated_residual_forward = gated_forward;
    kernels->gated_residual_backward = gated_backward;
    kernels->bias_gradient = ts_cuda_bias_gradient;
    kernels->sum_rows = sum_rows;
    kernels->add_rows = add_rows;
    kernels->copy_rows = copy_rows;
}
