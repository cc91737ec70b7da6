// SPDX-License-Identifier: Apache-2.0
// This process's GPU: choosing it, its two streams, and scratch memory.
#include <stdio.h>
#include <string.h>

#include "core/kernels/cuda/cuda.h"
#include "core/kernels/cuda/recording.h"

enum { OLDEST_MAJOR = 8 };  // sm_80: bf16 tensor cores, asynchronous copies

static struct {
    bool is_open;
    int device;
    cudaStream_t compute, communication;
    cudaEvent_t forked, joined;
    ts_cuda_properties properties;
} gpu;

// ---- errors

int ts_cuda_check(cudaError_t code, const char *call) {
    if (code == cudaSuccess) {
        return TS_OK;
    }
    (void)cudaGetLastError();  // told here, and not again by the next launch
    const char *text = cudaGetErrorString(code);
    switch (code) {
    case cudaErrorMemoryAllocation:
        return TS_FAIL(TS_ERESOURCE,
                       "%.80s: %s on the GPU: use a smaller batch, shorter videos, recomputation, or more GPUs", call,
                       text);
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
        return TS_FAIL(TS_EPEER, "%.80s: %s: a kernel failed; compute-sanitizer tells which and where", call, text);
    case cudaErrorECCUncorrectable:
        return TS_FAIL(TS_EPEER, "%.80s: %s: the GPU's memory is damaged; run on another one", call, text);
    case cudaErrorNoKernelImageForDevice:
        return TS_FAIL(TS_EPEER, "%.80s: %s: this program was not built for this GPU's architecture", call, text);
    default:
        return TS_FAIL(TS_EPEER, "%.80s: %s (%s)", call, text, cudaGetErrorName(code));
    }
}

// ---- choosing the GPU

// Number of GPUs, or why there is none.
static int count_gpus(int *count) {
    *count = 0;
    const cudaError_t code = cudaGetDeviceCount(count);
    (void)cudaGetLastError();
    int driver = 0, runtime = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess) {
        driver = 0;
    }
    (void)cudaRuntimeGetVersion(&runtime);
    if (code != cudaSuccess && driver == 0) {
        return TS_FAIL(TS_EPEER,
                       "no NVIDIA driver on this machine: install one for CUDA %d or newer, or use the cpu "
                       "device",
                       runtime / 1000);
    }
    if (code == cudaErrorInsufficientDriver) {
        return TS_FAIL(TS_EPEER, "the NVIDIA driver is for CUDA %d.%d, this program for %d.%d: install a newer driver",
                       driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    if (code == cudaErrorNoDevice || (code == cudaSuccess && *count == 0)) {
        return TS_FAIL(TS_EPEER, "no GPU to be seen on this machine: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use "
                                 "the cpu device");
    }
    return ts_cuda_check(code, "cudaGetDeviceCount");
}

int ts_kernels_cuda_devices(void) {
    int count;
    return count_gpus(&count) ? 0 : count;
}

static int read_properties(void) {
    struct cudaDeviceProp p;
    TS_CUDA(cudaGetDeviceProperties(&p, gpu.device));
    gpu.properties = (ts_cuda_properties){.major = p.major,
                                          .minor = p.minor,
                                          .multiprocessors = p.multiProcessorCount,
                                          .shared_bytes = p.sharedMemPerBlockOptin,
                                          .memory_bytes = p.totalGlobalMem};
    snprintf(gpu.properties.name, sizeof gpu.properties.name, "%.120s", p.name);
    if (p.major < OLDEST_MAJOR) {
        return TS_FAIL(TS_EPEER, "GPU %d (%.60s) has compute capability %d.%d; %d.0 is the oldest that is supported",
                       gpu.device, p.name, p.major, p.minor, OLDEST_MAJOR);
    }
    return TS_OK;
}

int ts_cuda_open(int local_rank) {
    if (gpu.is_open) {
        return TS_OK;
    }
    int count;
    TS_TRY(count_gpus(&count));
    gpu.device = local_rank % count;
    TS_CUDA(cudaSetDevice(gpu.device));
    TS_TRY(read_properties());
    int least = 0, greatest = 0;  // collectives go first: somebody waits for them
    TS_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    TS_CUDA(cudaStreamCreateWithFlags(&gpu.compute, cudaStreamNonBlocking));
    TS_CUDA(cudaStreamCreateWithPriority(&gpu.communication, cudaStreamNonBlocking, greatest));
    TS_CUDA(cudaEventCreateWithFlags(&gpu.forked, cudaEventDisableTiming));
    TS_CUDA(cudaEventCreateWithFlags(&gpu.joined, cudaEventDisableTiming));
    gpu.is_open = true;
    return TS_OK;
}

int ts_cuda_use_here(void) {
    TS_CUDA(cudaSetDevice(gpu.device));
    return TS_OK;
}

const ts_cuda_properties *ts_cuda_get_properties(void) {
    return &gpu.properties;
}

const char *ts_kernels_cuda_device(void) {
    static char text[160];
    snprintf(text, sizeof text, "%s, %.0f GB", gpu.properties.name, 1e-9 * (double)gpu.properties.memory_bytes);
    return text;
}

// ---- streams

cudaStream_t ts_cuda_stream(void) {
    return gpu.compute;
}

cudaStream_t ts_cuda_communication_stream(void) {
    return gpu.communication;
}

// An event may be recorded anew while a stream waits for what it stood for before.
int ts_cuda_fork(void) {
    TS_CUDA(cudaEventRecord(gpu.forked, gpu.compute));
    TS_CUDA(cudaStreamWaitEvent(gpu.communication, gpu.forked, 0));
    return TS_OK;
}

int ts_cuda_join(void) {
    TS_CUDA(cudaEventRecord(gpu.joined, gpu.communication));
    TS_CUDA(cudaStreamWaitEvent(gpu.compute, gpu.joined, 0));
    return TS_OK;
}

// ---- scratch memory

typedef struct piece {
    void *data;
    size_t bytes;
} piece;

static piece scratch[TS_CUDA_SCRATCH_COUNT];

void *ts_cuda_scratch(ts_cuda_scratch_use use, size_t bytes) {
    piece *p = &scratch[use];
    if (p->data && bytes <= p->bytes) {
        return p->data;
    }
    if (ts_cuda_is_recording()) {
        (void)TS_FAIL(TS_EUSAGE,
                      "a kernel's working memory grew to %zu bytes while it was recorded: run the same calls "
                      "once before recording them",
                      bytes);
        return NULL;
    }
    const size_t grown = bytes + bytes / 4 + 4096;
    if (p->data && ts_cuda_give_up(p->data)) {
        return NULL;
    }
    *p = (piece){0};
    if (ts_cuda_check(cudaMalloc(&p->data, grown), "working memory of kernels")) {
        p->data = NULL;
        return NULL;
    }
    p->bytes = grown;
    return p->data;
}
