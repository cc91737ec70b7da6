// SPDX-License-Identifier: Apache-2.0
// Kernels and calls with one mistake each, which the imitated GPU must find (tests/test_shim.sh), and the same without.
//   shim-faults NAME   runs one; no mistake found: 0
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/kernels/cuda/cuda.h"
#include "tests/shim/faults.h"

#define CALL(call)                                                                                                     \
    do {                                                                                                               \
        if (ts_cuda_check((call), #call)) {                                                                            \
            fprintf(stderr, "%s\n", ts_error_text());                                                                  \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define RUN(launch)                                                                                                    \
    do {                                                                                                               \
        if (launch) {                                                                                                  \
            fprintf(stderr, "%s\n", ts_error_text());                                                                  \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

// ---- kernels

static __global__ void fill(float *out, float value, int n) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        out[i] = value;
    }
}

static __global__ void add_one(float *out, int n) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        out[i] += 1.0f;
    }
}

// out[block] = sum of the block's part of x.
static __global__ void sum_with_barriers(const float *x, float *out, int n, bool all_barriers) {
    __shared__ float part[256];
    const int i = (int)(blockIdx.x * 256 + threadIdx.x);
    part[threadIdx.x] = i < n ? x[i] : 0;
    __syncthreads();
    for (unsigned half = 128; half; half /= 2) {
        if (threadIdx.x < half) {
            part[threadIdx.x] += part[threadIdx.x + half];
        }
        if (all_barriers) {
            __syncthreads();
        }
    }
    if (threadIdx.x == 0) {
        out[blockIdx.x] = part[0];
    }
}

// Sums over the block of x and of twice x; the second overwrites what others may not have read yet.
static __global__ void sum_twice(float *out, bool all_barriers) {
    __shared__ float of_warp[4];
    float sum[2];
    for (int turn = 0; turn < 2; turn++) {
        float mine = (float)(turn + 1);
        for (int by = 16; by; by /= 2) {
            mine += __shfl_xor_sync(~0u, mine, by);
        }
        if (threadIdx.x % 32 == 0) {
            of_warp[threadIdx.x / 32] = mine;
        }
        __syncthreads();
        sum[turn] = of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3];
        if (all_barriers) {
            __syncthreads();
        }
    }
    out[threadIdx.x] = sum[0] == 128 && sum[1] == 256 ? 1.0f : 0.0f;
}

static __global__ void sum_with_shuffles(const float *x, float *out, int n, int lanes) {
    float sum = 0;
    if ((int)threadIdx.x >= lanes) {
        return;
    }
    for (int i = (int)threadIdx.x; i < n; i += lanes) {
        sum += x[i];
    }
    for (int by = 16; by; by /= 2) {
        sum += __shfl_xor_sync(~0u, sum, by);
    }
    if (threadIdx.x == 0) {
        *out = sum;
    }
}

static __global__ void part_waits(float *out, int waiting) {
    if ((int)threadIdx.x < waiting) {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}

static __global__ void two_barriers(float *out, bool divergent) {
    if (divergent && threadIdx.x % 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}

static __global__ void exchange_elsewhere(float *out) {
    out[threadIdx.x] = threadIdx.x % 2 ? __shfl_xor_sync(~0u, 1.0f, 1) : __shfl_sync(~0u, 1.0f, 0);
}

static __global__ void read_at(const float *x, float *out, long at) {
    out[0] = x[at];
}

static __global__ void write_at(float *x, long at) {
    x[at] = 1;
}

struct reading {
    long at;
    const float *x;
    float *out;
};
static __global__ void read_from(reading r) {
    r.out[0] = r.x[r.at];
}

static __global__ void write_shared(float *out, int at) {
    TS_SHARED_BYTES(float, shared);
    shared[at] = 1;
    out[0] = shared[at];
}

// ---- helpers

static float *device_floats(int n) {
    void *memory;
    CALL(cudaMalloc(&memory, (size_t)n * sizeof(float)));
    return (float *)memory;
}

static std::vector<float> fetched(const float *x, int n) {
    std::vector<float> out((size_t)n);
    CALL(cudaMemcpyAsync(out.data(), x, (size_t)n * sizeof(float), cudaMemcpyDeviceToHost, ts_cuda_stream()));
    CALL(cudaStreamSynchronize(ts_cuda_stream()));
    return out;
}

static int expect(bool holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "wrong result: %s\n", what);
    }
    return holds ? 0 : 3;
}

static int sums(bool all_barriers) {
    const int n = 1000;
    float *x = device_floats(n), *out = device_floats(4);
    int code = 0;
    for (int turn = 0; turn < 4; turn++) {
        RUN(TS_LAUNCH(fill, 4, 256, 0, x, 1.0f, n));
        RUN(TS_LAUNCH(sum_with_barriers, 4, 256, 0, x, out, n, all_barriers));
        const std::vector<float> got = fetched(out, 4);
        code |= expect(got[0] == 256 && got[1] == 256 && got[2] == 256 && got[3] == 232, "sums over blocks");
    }
    CALL(cudaFree(x));
    CALL(cudaFree(out));
    return code;
}

static int two_sums(bool all_barriers) {
    float *x = device_floats(128);
    int code = 0;
    for (int turn = 0; turn < 4; turn++) {
        RUN(TS_LAUNCH(sum_twice, 1, 128, 0, x, all_barriers));
        float least = 1;
        for (const float right : fetched(x, 128)) {
            least = right < least ? right : least;
        }
        code |= expect(least == 1, "two sums over a block");
    }
    return code;
}

static int shuffles(int threads, int lanes) {
    const int n = 100;
    float *x = device_floats(n), *out = device_floats(1);
    RUN(TS_LAUNCH(fill, 1, 128, 0, x, 1.0f, n));
    RUN(TS_LAUNCH(sum_with_shuffles, 1, (unsigned)threads, 0, x, out, n, lanes));
    return expect(fetched(out, 1)[0] == 100, "sum over a warp");
}

// The communication stream changes x between two kernels of the compute stream.
static int streams(bool forked, bool is_joined) {
    const int n = 64;
    float *x = device_floats(n);
    int code = 0;
    for (int turn = 0; turn < 8; turn++) {
        RUN(TS_LAUNCH(fill, 1, 64, 0, x, 1.0f, n));
        if (forked) {
            RUN(ts_cuda_fork());
        }
        CALL(ts_shim_launch_on("add_one", 1, 64, 0, ts_cuda_communication_stream(), add_one, x, n));
        if (is_joined) {
            RUN(ts_cuda_join());
        }
        RUN(TS_LAUNCH(add_one, 1, 64, 0, x, n));
        code |= expect(fetched(x, n)[0] == 3, "kernels on two streams");
    }
    return code;
}

static int page_locked(bool waits) {
    const int n = 64;
    float *x = device_floats(n);
    void *memory;
    CALL(cudaHostAlloc(&memory, (size_t)n * sizeof(float), cudaHostAllocDefault));
    float *host = (float *)memory;
    for (int i = 0; i < n; i++) {
        host[i] = 1;
    }
    CALL(cudaMemcpyAsync(x, host, (size_t)n * sizeof(float), cudaMemcpyHostToDevice, ts_cuda_stream()));
    if (waits) {
        CALL(cudaStreamSynchronize(ts_cuda_stream()));
    }
    host[0] = 2;
    const int code = expect(fetched(x, n)[0] == 1, "an upload from page-locked memory");
    CALL(cudaFreeHost(memory));
    return code;
}

static int early_read(bool waits) {
    const int n = 64;
    float *x = device_floats(n);
    void *memory;
    CALL(cudaHostAlloc(&memory, (size_t)n * sizeof(float), cudaHostAllocDefault));
    const float *host = (const float *)memory;
    RUN(TS_LAUNCH(fill, 1, 64, 0, x, 1.0f, n));
    CALL(cudaMemcpyAsync(memory, x, (size_t)n * sizeof(float), cudaMemcpyDeviceToHost, ts_cuda_stream()));
    if (waits) {
        CALL(cudaStreamSynchronize(ts_cuda_stream()));
    }
    const int code = expect(host[5] == 1, "a download to page-locked memory");
    CALL(cudaFreeHost(memory));
    return code;
}

static int touch(int how) {
    const int n = 100;
    float *x = device_floats(n), *out = device_floats(1);
    RUN(TS_LAUNCH(fill, 1, 128, 0, x, 1.0f, n));
    switch (how) {
    case 0:
        RUN(TS_LAUNCH(read_at, 1, 1, 0, x, out, 99L));
        break;
    case 1:
        RUN(TS_LAUNCH(write_at, 1, 1, 0, x, 100L));
        break;
    case 2:
        RUN(TS_LAUNCH(read_at, 1, 1, 0, x, out, 2000L));
        break;
    case 3:
        CALL(cudaFree(x));
        RUN(TS_LAUNCH(read_at, 1, 1, 0, x, out, 0L));
        break;
    case 4:
        CALL(cudaDeviceSynchronize());
        return x[0] > 0;
    case 5:
        RUN(TS_LAUNCH(read_at, 1, 1, 0, (const float *)&n, out, 0L));
        break;
    case 6:
        CALL(cudaFree(x));
        CALL(cudaMemcpyAsync(out, x, sizeof(float), cudaMemcpyDeviceToDevice, ts_cuda_stream()));
        break;
    case 7: {
        const float one = 1;
        RUN(TS_LAUNCH(read_from, 1, 1, 0, (reading{0, &one, out})));
        break;
    }
    case 8:
        RUN(TS_LAUNCH(read_from, 1, 1, 0, (reading{0, x, out})));
        break;
    default:
        break;
    }
    return expect(fetched(out, 1)[0] == 1, "a number read");
}

static int fresh_memory(void) {
    float *x = device_floats(10);
    return expect(fetched(x, 10)[3] == 0, "memory that nobody wrote");
}

static int launch(int threads, size_t shared) {
    float *x = device_floats(10);
    RUN(TS_LAUNCH(fill, 1, (unsigned)threads, shared, x, 1.0f, 10));
    return expect(fetched(x, 10)[9] == 1, "a fill");
}

static int shared_write(int at) {
    float *x = device_floats(1);
    RUN(TS_LAUNCH(write_shared, 1, 1, 400, x, at));
    return expect(fetched(x, 1)[0] == 1, "a number in shared memory");
}

static int barriers(int waiting, bool divergent) {
    float *x = device_floats(64);
    RUN(TS_LAUNCH(part_waits, 1, 64, 0, x, waiting));
    RUN(TS_LAUNCH(two_barriers, 1, 64, 0, x, divergent));
    return expect(fetched(x, 64)[63] == 1, "marks behind barriers");
}

static int elsewhere(void) {
    float *x = device_floats(64);
    RUN(TS_LAUNCH(exchange_elsewhere, 1, 64, 0, x));
    return expect(fetched(x, 64)[63] == 1, "an exchange");
}

// A recorded pair of kernels, which fails when something waits meanwhile or a stream is not joined.
static int graph(bool waits, bool is_joined) {
    float *x = device_floats(64);
    RUN(TS_LAUNCH(fill, 1, 64, 0, x, 1.0f, 64));
    CALL(cudaStreamBeginCapture(ts_cuda_stream(), cudaStreamCaptureModeThreadLocal));
    RUN(ts_cuda_fork());
    CALL(ts_shim_launch_on("add_one", 1, 64, 0, ts_cuda_communication_stream(), add_one, x, 64));
    if (waits) {
        (void)cudaStreamSynchronize(ts_cuda_stream());
    }
    if (is_joined) {
        RUN(ts_cuda_join());
    }
    cudaGraph_t captured;
    CALL(cudaStreamEndCapture(ts_cuda_stream(), &captured));
    cudaGraphExec_t ready;
    CALL(cudaGraphInstantiate(&ready, captured, 0));
    CALL(cudaGraphDestroy(captured));
    for (int i = 0; i < 3; i++) {
        CALL(cudaGraphLaunch(ready, ts_cuda_stream()));
    }
    CALL(cudaGraphExecDestroy(ready));
    return expect(fetched(x, 64)[63] == 4, "a graph that ran three times");
}

static int product(product_fault fault) {
    return expect(product_is_right(fault), "a product of a warpgroup");
}

// ---- the list

int main(int argc, char **argv) {
    const char *name = argc == 2 ? argv[1] : "";
    RUN(ts_cuda_open(0));
    const struct {
        const char *name;
        int (*run)();
    } cases[] = {
        {"none",
         [] {
             return sums(true) | two_sums(true) | shuffles(32, 32) | streams(true, true) | page_locked(true) |
                    early_read(true) | touch(0) | touch(8) | shared_write(99) | launch(1024, 48 << 10) |
                    barriers(64, false) | graph(false, true) | product(NO_FAULT);
         }},
        {"missing-barrier", [] { return sums(false); }},
        {"early-rewrite", [] { return two_sums(false); }},
        {"missing-lanes", [] { return shuffles(32, 31); }},
        {"missing-fork", [] { return streams(false, true); }},
        {"missing-join", [] { return streams(true, false); }},
        {"early-reuse", [] { return page_locked(false); }},
        {"early-read", [] { return early_read(false); }},
        {"write-behind-end", [] { return touch(1); }},
        {"read-far-behind-end", [] { return touch(2); }},
        {"freed-argument", [] { return touch(3); }},
        {"host-reads-device", [] { return touch(4); }},
        {"kernel-gets-host-pointer", [] { return touch(5); }},
        {"struct-holds-host-pointer", [] { return touch(7); }},
        {"copy-of-freed", [] { return touch(6); }},
        {"write-behind-shared", [] { return shared_write(100); }},
        {"write-far-behind-shared", [] { return shared_write(300); }},
        {"unwritten", fresh_memory},
        {"too-many-threads", [] { return launch(1025, 0); }},
        {"too-much-shared-memory", [] { return launch(128, 100 << 10); }},
        {"barrier-for-some", [] { return barriers(32, false); }},
        {"barriers-diverge", [] { return barriers(64, true); }},
        {"exchanges-diverge", elsewhere},
        {"wait-in-recording", [] { return graph(true, true); }},
        {"recording-not-joined", [] { return graph(false, false); }},
        {"no-wait-for-copy", [] { return product(NO_WAIT_FOR_COPY); }},
        {"no-wait-for-product", [] { return product(NO_WAIT_FOR_PRODUCT); }},
        {"no-wgmma-fence", [] { return product(NO_FENCE); }},
        {"early-refill", [] { return product(EARLY_REFILL); }},
        {"too-many-bytes", [] { return product(TOO_MANY_BYTES); }},
        {"wrong-stride", [] { return product(WRONG_STRIDE); }},
    };
    for (const auto &c : cases) {
        if (std::strcmp(name, c.name) == 0) {
            return c.run();
        }
    }
    for (const auto &c : cases) {
        puts(c.name);
    }
    return argc == 1 ? 0 : 2;
}
