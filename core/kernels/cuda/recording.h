// SPDX-License-Identifier: Apache-2.0
// Private to core/kernels/cuda: sequences of calls as CUDA graphs (ts_device's recordings).
#ifndef TS_KERNELS_CUDA_RECORDING_H
#define TS_KERNELS_CUDA_RECORDING_H

#include "core/kernels/cuda/cuda.h"

// Makes this process's GPU that of the calling thread.
int ts_cuda_use_here(void);

bool ts_cuda_is_recording(void);
// An upload while recording: the bytes are kept, and copied whenever the recording runs.
int ts_cuda_record_upload(void *to, const void *from, size_t bytes);
// Frees device memory that recordings may still use: at once, or with the last of them.
int ts_cuda_give_up(void *memory);

int ts_cuda_record_begin(void);
int ts_cuda_record_end(ts_recording **out);
int ts_cuda_recording_restage(ts_recording *recording, int index, const void *from, size_t bytes);
int ts_cuda_recording_run(ts_recording *recording);
void ts_cuda_recording_close(ts_recording **recording);

#endif
