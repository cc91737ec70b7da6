// SPDX-License-Identifier: Apache-2.0
// Sums over rows by table row: their second half, over chunks.
#include "core/kernels/cuda/row.cuh"

int ts_cuda_run_sums_open(ts_run_sums *s) {
    const int64_t chunks = (s->rows + s->chunk - 1) / s->chunk;
    const bool parts = chunks > 1 && ts_run_sums_wanted(s);
    const size_t part = parts ? (size_t)(chunks * ts_run_sums_ends(*s) * s->count * s->width) : 0;
    const size_t of_rows = (size_t)(s->rows * s->row_numbers);
    s->part = s->of_rows = NULL;
    if (part + of_rows) {
        float *memory = (float *)ts_cuda_scratch(TS_CUDA_SCRATCH_REDUCE, (part + of_rows) * sizeof(float));
        if (!memory) {
            return TS_ERESOURCE;
        }
        s->part = parts ? memory : NULL;
        s->of_rows = memory + part;
    }
    return TS_OK;
}

// The first row whose table row is t or a later one; `rows` when there is none. A warp looks for it together: its lanes
// look at the ends of 32 sections, of which it leaves one.
static __device__ int64_t find_run(const int32_t *row_index, int64_t rows, int64_t t) {
    const int lane = (int)threadIdx.x % TS_WARP;
    int64_t low = 0, high = rows;
    while (low < high) {
        const int64_t section = (high - low + TS_WARP - 1) / TS_WARP, end = low + (lane + 1) * section;
        const int before = __popc(__ballot_sync(0xffffffffu, end <= high && row_index[end - 1] < t));
        high = min(high, low + (before + 1) * section - 1);
        low = min(low + before * section, high);
    }
    return low;
}

// A block adds up what the chunks have of one table row, for TS_WARP columns. Its warps share out the chunks.
static __global__ void __launch_bounds__(1024) add_chunks(ts_run_sums s, int64_t tiles) {
    __shared__ float of_warp[TS_WARP][TS_WARP];
    const int warp = (int)threadIdx.x / TS_WARP, lane = (int)threadIdx.x % TS_WARP, warps = (int)blockDim.x / TS_WARP;
    const int64_t column = blockIdx.x % tiles * TS_WARP + lane;
    const int which = (int)(blockIdx.x / tiles % s.count);
    const int64_t t = blockIdx.x / tiles / s.count;
    float *target = which ? s.target[1] : s.target[0];
    const int64_t begin = s.row_index ? find_run(s.row_index, s.rows, t) : 0;
    const int64_t end = s.row_index ? find_run(s.row_index, s.rows, t + 1) : s.rows;
    if (!target || begin == end) {
        return;
    }
    float sum = 0.0f;
#pragma unroll 4
    for (int64_t chunk = begin / s.chunk + warp; chunk <= (end - 1) / s.chunk; chunk += warps) {
        const bool is_first = begin <= chunk * s.chunk, is_last = end >= min((chunk + 1) * s.chunk, s.rows);
        if (column < s.width && (is_first || is_last)) {
            sum += ts_run_sums_part(s, chunk, is_first ? 0 : 1, which)[column];
        }
    }
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < s.width) {
        for (int i = 1; i < warps; i++) {
            sum += of_warp[i][lane];
        }
        target[t * s.table_stride + column] += sum;
    }
}

int ts_cuda_run_sums_finish(const ts_run_sums *s) {
    if (!s->part || s->width == 0) {
        return TS_OK;
    }
    const int64_t chunks = (s->rows + s->chunk - 1) / s->chunk, tiles = (s->width + TS_WARP - 1) / TS_WARP;
    const int64_t blocks = (s->row_index ? s->table_rows : 1) * tiles * s->count;
    const int64_t most = 32, warps = chunks < 4 ? 1 : chunks / 4 < most ? chunks / 4 : most;
    if (blocks > INT32_MAX) {
        return TS_FAIL(TS_EINTERNAL, "sums over rows: %lld table rows of %lld numbers are too many",
                       (long long)s->table_rows, (long long)s->width);
    }
    return blocks ? TS_LAUNCH(add_chunks, (unsigned)blocks, (unsigned)(warps * TS_WARP), 0, *s, tiles) : TS_OK;
}
