// SPDX-License-Identifier: Apache-2.0
#include <stdio.h>
#include <string.h>

#include "core/base/status.h"
#include "core/kernels/kernels.h"

// Defined by the CUDA backend (core/kernels/cuda/table.c), which a program is linked with or not.
__attribute__((weak)) int ts_kernels_cuda(const ts_kernels **out, int local_rank);
__attribute__((weak)) int ts_kernels_cuda_devices(void);
__attribute__((weak)) const char *ts_kernels_cuda_device(void);

const char *const ts_device_names[] = {"auto", "cpu", "cuda", NULL};

bool ts_kernels_have_cuda(void) {
    return ts_kernels_cuda != NULL;
}

const char *ts_kernels_describe(const ts_kernels *kernels, char *text, size_t text_bytes) {
    const char *with = kernels->device->is_host ? ts_kernels_cpu_instruction_set()
                       : ts_kernels_cuda_device ? ts_kernels_cuda_device()
                                                : "";
    snprintf(text, text_bytes, "%s%s%s", kernels->name, *with ? ": " : "", with);
    return text;
}

int ts_kernels_gpus(void) {
    return ts_kernels_cuda_devices ? ts_kernels_cuda_devices() : 0;
}

int ts_kernels_open(const ts_kernels **out, const char *device, int local_rank) {
    const bool automatic = !device || strcmp(device, "auto") == 0;
    if (!automatic && strcmp(device, "cpu") != 0 && strcmp(device, "cuda") != 0) {
        return TS_FAIL(TS_EUSAGE, "device %.40s: use auto, cpu or cuda", device);
    }
    const bool cuda = automatic ? ts_kernels_gpus() > 0 : strcmp(device, "cuda") == 0;
    if (cuda && !ts_kernels_cuda) {
        return TS_FAIL(TS_EUSAGE, "device cuda: this program was built without CUDA; configure with -DTS_CUDA=ON where "
                                  "nvcc is, or use cpu");
    }
    return cuda ? ts_kernels_cuda(out, local_rank) : ts_kernels_cpu(out, "auto");
}
