// SPDX-License-Identifier: Apache-2.0
#include "core/kernels/cuda_facts.h"

#include <cublasLt.h>
#include <nccl.h>
#include <stdio.h>

#include "core/kernels/cuda/cuda.h"

// Our kernels are built for sm_80 and sm_90a, and as PTX of sm_80, which newer drivers compile for newer GPUs.
static const char *code_for(int major, int minor) {
    return major == 9 && minor == 0 ? "sm_90a" : major == 8 ? "sm_80" : major > 8 ? "PTX of sm_80" : NULL;
}

static void read_gpu(int device, ts_gpu_facts *out) {
    struct cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, device) != cudaSuccess) {
        snprintf(out->name, sizeof out->name, "GPU %d, which does not answer", device);
        return;
    }
    *out = (ts_gpu_facts){.major = p.major,
                          .minor = p.minor,
                          .multiprocessors = p.multiProcessorCount,
                          .memory_bytes = p.totalGlobalMem,
                          .code = code_for(p.major, p.minor)};
    out->supported = out->code != NULL;
    snprintf(out->name, sizeof out->name, "%.120s", p.name);
}

void ts_cuda_facts_read(ts_cuda_facts *out) {
    *out = (ts_cuda_facts){.cublaslt = cublasLtGetVersion()};
    (void)cudaRuntimeGetVersion(&out->runtime);
    (void)cudaDriverGetVersion(&out->driver);
    (void)ncclGetVersion(&out->nccl);
    out->gpus = ts_kernels_cuda_devices();
    if (out->gpus == 0) {
        snprintf(out->problem, sizeof out->problem, "%s", ts_error_text());
    }
    for (int i = 0; i < out->gpus && i < TS_MAX_GPU_FACTS; i++) {
        read_gpu(i, &out->gpu[i]);
    }
}
