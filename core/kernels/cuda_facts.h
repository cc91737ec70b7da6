// SPDX-License-Identifier: Apache-2.0
// What the CUDA backend finds on this machine, for people to read: tessera doctor.
#ifndef TS_KERNELS_CUDA_FACTS_H
#define TS_KERNELS_CUDA_FACTS_H

#include <stdbool.h>
#include <stddef.h>

typedef struct ts_gpu_facts {
    char name[128];
    int major, minor;  // compute capability
    int multiprocessors;
    size_t memory_bytes;
    bool supported;
    const char *code;  // of our kernels that it runs: "sm_90a", "sm_80", "PTX of sm_80"
} ts_gpu_facts;

enum { TS_MAX_GPU_FACTS = 16 };

typedef struct ts_cuda_facts {
    int runtime, driver;  // versions, 1000 major + 10 minor; driver 0: there is none
    size_t cublaslt;      // its version number
    int nccl;             // likewise
    int gpus;             // that can be seen; the first TS_MAX_GPU_FACTS are told of
    char problem[512];    // why none can be used, and what to do about it; "" when there is none
    ts_gpu_facts gpu[TS_MAX_GPU_FACTS];
} ts_cuda_facts;

// Linked in with the CUDA backend (core/kernels/cuda/facts.c); NULL in a program without it. Opens nothing: no memory
// of a GPU is taken.
__attribute__((weak)) void ts_cuda_facts_read(ts_cuda_facts *out);

#endif
