// SPDX-License-Identifier: Apache-2.0
#include <string.h>

#include "core/base/status.h"
#include "core/kernels/kernels.h"

// Defined by the CUDA backend (core/kernels/cuda/table.c), which a program is linked with or not.
__attribute__((weak)) int ts_kernels_cuda(const ts_kernels **out, int local_rank);
__attribute__((weak)) int ts_kernels_cuda_devices(void);

bool ts_kernels_have_cuda(void) {
    return ts_kernels_cuda != NULL;
}

int ts_kernels_open(const ts_kernels **out, const char *device, int local_rank) {
    const bool automatic = !device || strcmp(device, "auto") == 0;
    if (!automatic && strcmp(device, "cpu") != 0 && strcmp(device, "cuda") != 0) {
        return TS_FAIL(TS_EUSAGE, "device %.40s: use auto, cpu or cuda", device);
    }
    const bool cuda = automatic ? ts_kernels_cuda && ts_kernels_cuda_devices() > 0 : strcmp(device, "cuda") == 0;
    if (cuda && !ts_kernels_cuda) {
        return TS_FAIL(TS_EUSAGE, "device cuda: this program was built without CUDA; configure with -DTS_CUDA=ON where "
                                  "nvcc is, or use cpu");
    }
    return cuda ? ts_kernels_cuda(out, local_rank) : ts_kernels_cpu(out, "auto");
}
