// SPDX-License-Identifier: Apache-2.0
// Kernels that need sums over rows: how a block of threads shares a row, and sums over rows by table row.
//
// A block takes a chunk of rows one after another. Where a row fits, its threads keep it in registers, so that memory
// is read once; what is in flight while one block waits for a sum is the rows of the other blocks.
#ifndef TS_KERNELS_CUDA_ROW_CUH
#define TS_KERNELS_CUDA_ROW_CUH

#include "core/kernels/cuda/number.cuh"

// ---- a thread's share of a row

// A thread has PACKS packs of V neighbouring numbers of each tile of a row. KEPT: the row is one tile of whole, aligned
// packs. Else of any width and alignment, in as many tiles as it takes, each number loaded by itself.
template <int V_, int PACKS_, int THREADS_, bool KEPT_> struct ts_row_form {
    static constexpr int V = V_, PACKS = PACKS_, THREADS = THREADS_, NUMBERS = V_ * PACKS_;
    static constexpr bool KEPT = KEPT_;
    static constexpr int BLOCKS = KEPT_ ? 768 / THREADS_ : 1;  // for so many there must be registers at a time
};
typedef ts_row_form<4, 2, 256, true> ts_row_short;  // up to 2,048 numbers
typedef ts_row_form<4, 4, 512, true> ts_row_long;   // up to 8,192
typedef ts_row_form<8, 2, 512, true> ts_row_bf16;   // up to 8,192, where all that is of a row's size is bf16
typedef ts_row_form<4, 2, 256, false> ts_row_any;   // all else
template <typename F> using ts_row_numbers = float[F::PACKS][F::V];

// Each warp has numbers that follow one another, pack after pack of all its lanes.
template <typename F> struct ts_row_share {
    int width, first, tile_width, tiles;  // first: of the thread

    // `strip`: of rows that several blocks share, the place of the block among them.
    __device__ __forceinline__ explicit ts_row_share(int64_t row_width, int strip = 0)
        : width((int)row_width), tile_width((int)blockDim.x * F::NUMBERS), tiles(1) {
        const int warp = (int)threadIdx.x / TS_WARP, lane = (int)threadIdx.x % TS_WARP;
        first = strip * tile_width + warp * TS_WARP * F::NUMBERS + lane * F::V;
        if (!F::KEPT) {
            tiles = (width + tile_width - 1) / tile_width;
        }
    }
    // The place in the row of the first number of a pack.
    __device__ __forceinline__ int at(int pack, int tile) const {
        return first + pack * TS_WARP * F::V + (F::KEPT ? 0 : tile * tile_width);
    }
    __device__ __forceinline__ bool has(int pack, int k, int tile) const {
        return at(pack, tile) + (F::KEPT ? 0 : k) < width;
    }
    // f(pack, k) for each of the thread's numbers, also those beyond the row's end.
    template <typename Function> __device__ __forceinline__ void each(Function f) const {
#pragma unroll
        for (int pack = 0; pack < F::PACKS; pack++) {
#pragma unroll
            for (int k = 0; k < F::V; k++) {
                f(pack, k);
            }
        }
    }
    // Numbers of a row of any type; 0 beyond its end.
    template <typename T>
    __device__ __forceinline__ void load(ts_row_numbers<F> &out, const T *row, int tile = 0) const {
#pragma unroll
        for (int pack = 0; pack < F::PACKS; pack++) {
            const int i = at(pack, tile);
            if (F::KEPT && i < width) {
                ts_load(out[pack], row + i);
            } else {
                ts_load_some(out[pack], row + i, F::KEPT ? 0 : width - i);
            }
        }
    }
    // Between passes over a row: what was kept need not be loaded.
    template <typename T>
    __device__ __forceinline__ void load_again(ts_row_numbers<F> &out, const T *row, int tile) const {
        if (!F::KEPT) {
            load(out, row, tile);
        }
    }
    // Begins to bring a row that is kept to the cache: what is loaded only after a sum, and the next row, whose way
    // from memory is then not idle while the block waits for that sum.
    template <typename T> __device__ __forceinline__ void prefetch(const T *row) const {
#pragma unroll
        for (int pack = 0; pack < F::PACKS; pack++) {
            if (F::KEPT && at(pack, 0) < width) {
                ts_prefetch(row + at(pack, 0));
            }
        }
    }
    template <typename T>
    __device__ __forceinline__ void store(T *row, const ts_row_numbers<F> &in, int tile = 0) const {
#pragma unroll
        for (int pack = 0; pack < F::PACKS; pack++) {
            const int i = at(pack, tile);
            if (F::KEPT && i < width) {
                ts_store(row + i, in[pack]);
            } else if (!F::KEPT) {
                ts_store_some(row + i, in[pack], width - i);
            }
        }
    }
};

static __device__ __forceinline__ int64_t ts_table_row(const int32_t *row_index, int64_t row) {
    return row_index ? row_index[row] : 0;
}

// The end of chunk `index` of `chunk` rows.
static __device__ __forceinline__ int64_t ts_chunk_end(int64_t index, int64_t chunk, int64_t rows) {
    return min((index + 1) * chunk, rows);
}

// ---- sums over rows, by table row

// target[k][t, i] += sum of a number of the rows whose table row is t, for up to two numbers k.
//
// Table rows do not decrease from row to row, so only the first and the last that a chunk meets can be in other chunks
// too: their sums go to the chunk's own memory, and ts_cuda_run_sums_finish adds those up, in an order that depends on
// the shape alone. All others are this chunk's and are added in place.
struct ts_run_sums {
    int64_t rows, width, chunk;  // chunk: rows of a block, set by plans
    const int32_t *row_index;    // [rows] or NULL
    int64_t table_stride, table_rows;
    int count;         // of numbers
    float *target[2];  // NULL: not wanted
    float *part;       // [chunks, first or last, count, width]; NULL where there is one chunk or nothing is wanted
    int row_numbers;   // working memory for each row that a kernel wants beside
    float *of_rows;    // [rows, row_numbers]
};

static inline bool ts_run_sums_wanted(const ts_run_sums *s) {
    return s->target[0] || s->target[1];
}
static __device__ __host__ __forceinline__ int ts_run_sums_ends(const ts_run_sums &s) {
    return s.row_index ? 2 : 1;
}
static __device__ __forceinline__ float *ts_run_sums_part(const ts_run_sums &s, int64_t chunk, int end, int which) {
    return s.part + ((chunk * ts_run_sums_ends(s) + end) * s.count + which) * s.width;
}

// Hands in a thread's sums over the rows of table row `run` in a chunk, and begins new ones.
template <typename F>
static __device__ __forceinline__ void ts_run_sums_take(const ts_run_sums &s, int64_t chunk, int which, int64_t run,
                                                        const ts_row_share<F> &share, ts_row_numbers<F> &sum,
                                                        int tile) {
    float *target = s.target[which];
    if (target) {
        const bool is_first = run == ts_table_row(s.row_index, chunk * s.chunk);
        const bool is_last = run == ts_table_row(s.row_index, ts_chunk_end(chunk, s.chunk, s.rows) - 1);
        if (s.part && (is_first || is_last)) {
            share.store(ts_run_sums_part(s, chunk, is_first ? 0 : 1, which), sum, tile);
        } else {
            target += run * s.table_stride;
            ts_row_numbers<F> before;
            share.load(before, target, tile);
            share.each([&](int pack, int k) { sum[pack][k] += before[pack][k]; });
            share.store(target, sum, tile);
        }
    }
    share.each([&](int pack, int k) { sum[pack][k] = 0.0f; });
}

// Takes working memory (TS_CUDA_SCRATCH_REDUCE); then the kernel is launched; then the chunks' sums are added up.
int ts_cuda_run_sums_open(ts_run_sums *s);
int ts_cuda_run_sums_finish(const ts_run_sums *s);

// ---- the form of a call, chosen by the host

struct ts_row_plan {
    unsigned threads, blocks;
    int64_t chunk;  // rows of a block: they depend on the shape alone
};

// Whether packs of V numbers of every row can be loaded at once. NULL is not loaded.
template <int V> static inline bool ts_row_is_aligned(const void *data, int64_t stride, ts_dtype dtype) {
    const size_t number = ts_dtype_bytes(dtype), pack = V * number < 16 ? V * number : 16;
    return !data || ((uintptr_t)data | (uintptr_t)stride * number) % pack == 0;
}

template <typename F> static ts_row_plan ts_row_plan_of(int64_t rows, int64_t width, bool sums) {
    const int64_t least = 4, numbers = 2048;  // of rows, and of numbers that are worth a block
    // With sums over rows, each chunk writes a row of them: few, but enough that their threads fill a GPU.
    const int64_t summing_threads = 96 * 1024;
    const int64_t warps = (width + F::NUMBERS * TS_WARP - 1) / (F::NUMBERS * TS_WARP);
    ts_row_plan plan;
    plan.threads = (unsigned)(TS_WARP * (warps < 1 ? 1 : warps * TS_WARP < F::THREADS ? warps : F::THREADS / TS_WARP));
    plan.chunk = least;
    if (sums && rows * plan.threads > least * summing_threads) {
        plan.chunk = (rows * plan.threads + summing_threads - 1) / summing_threads;
    } else if (!sums && width * least < numbers) {
        plan.chunk = numbers / (width < 1 ? 1 : width);
    }
    if ((rows + plan.chunk - 1) / plan.chunk > INT32_MAX) {
        plan.chunk = (rows + INT32_MAX - 1) / INT32_MAX;
    }
    plan.blocks = (unsigned)((rows + plan.chunk - 1) / plan.chunk);
    return plan;
}

// Calls launch(form, plan) with the form of rows of `width` numbers. V is 8 where all that is of a row's size is bf16,
// else 4; `aligned` says that packs of V begin where they can be loaded.
template <int V, typename Launch>
static int ts_by_row_form(const char *entry, int64_t rows, int64_t width, bool aligned, bool sums, Launch launch) {
    if (width > 1 << 30) {
        return TS_FAIL(TS_EINTERNAL, "%s: rows of %lld numbers, up to 2^30 can be taken", entry, (long long)width);
    }
    if (aligned && width % V == 0 && width > 0) {
        if constexpr (V == 8) {
            if (width <= ts_row_bf16::NUMBERS * ts_row_bf16::THREADS) {
                return launch(ts_row_bf16(), ts_row_plan_of<ts_row_bf16>(rows, width, sums));
            }
        } else if (width <= ts_row_short::NUMBERS * ts_row_short::THREADS) {
            return launch(ts_row_short(), ts_row_plan_of<ts_row_short>(rows, width, sums));
        } else if (width <= ts_row_long::NUMBERS * ts_row_long::THREADS) {
            return launch(ts_row_long(), ts_row_plan_of<ts_row_long>(rows, width, sums));
        }
    }
    return launch(ts_row_any(), ts_row_plan_of<ts_row_any>(rows, width, sums));
}

#endif
