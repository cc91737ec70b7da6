// SPDX-License-Identifier: Apache-2.0
// The GPU's memory, and what moves between it and the host's.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/kernels/cuda/recording.h"

static int refuse_while_recording(const char *what) {
    return ts_cuda_is_recording() ? TS_FAIL(TS_EUSAGE, "%s waits for the GPU, which cannot be recorded", what) : TS_OK;
}

// ---- memory

static void *allocate(size_t bytes) {
    void *memory = NULL;
    if (ts_cuda_check(cudaMalloc(&memory, bytes ? bytes : 1), "cudaMalloc")) {
        return NULL;
    }
    if (ts_device_note(&ts_cuda_device, memory, bytes)) {
        (void)cudaFree(memory);
        return NULL;
    }
    return memory;
}

static void release(void *memory) {
    if (memory) {
        ts_device_forget(memory);
        ts_nccl_forget(memory);
        (void)ts_cuda_give_up(memory);
    }
}

// Ordinary memory that is page-locked afterwards, not the driver's: other processes on this host may read it
// (process_vm_readv), as MPI does.
static void *allocate_host(size_t bytes) {
    void *memory = ts_aligned_alloc(bytes ? bytes : 1);
    if (memory &&
        ts_cuda_check(cudaHostRegister(memory, bytes ? bytes : 1, cudaHostRegisterDefault), "cudaHostRegister")) {
        free(memory);
        memory = NULL;
    }
    return memory;
}

static void release_host(void *memory) {
    if (memory) {
        (void)ts_cuda_check(cudaHostUnregister(memory), "cudaHostUnregister");
        free(memory);
    }
}

// ---- uploads: through page-locked blocks, so that nobody waits for the copy

enum { STAGING_BLOCKS = 4 };
static const size_t staging_bytes = (size_t)4 << 20;

static struct {
    char *memory;
    cudaEvent_t copied[STAGING_BLOCKS];  // when a block's last copy is done
    int block;                           // the one being filled, up to `used`
    size_t used;
} staging;

static int open_staging(void) {
    if (staging.memory) {
        return TS_OK;
    }
    for (int i = 0; i < STAGING_BLOCKS; i++) {
        TS_CUDA(cudaEventCreateWithFlags(&staging.copied[i], cudaEventDisableTiming));
    }
    staging.memory = allocate_host(STAGING_BLOCKS * staging_bytes);
    return staging.memory ? TS_OK : TS_ERESOURCE;
}

// On to the next block, whose copies were given to the GPU three blocks ago.
static int next_block(void) {
    TS_CUDA(cudaEventRecord(staging.copied[staging.block], ts_cuda_stream()));
    staging.block = (staging.block + 1) % STAGING_BLOCKS;
    staging.used = 0;
    TS_CUDA(cudaEventSynchronize(staging.copied[staging.block]));
    return TS_OK;
}

static int upload(void *to, const void *from, size_t bytes) {
    if (ts_cuda_is_recording()) {
        return ts_cuda_record_upload(to, from, bytes);
    }
    TS_TRY(open_staging());
    for (size_t done = 0; done < bytes;) {
        if (staging.used == staging_bytes) {
            TS_TRY(next_block());
        }
        const size_t room = staging_bytes - staging.used;
        const size_t part = bytes - done < room ? bytes - done : room;
        char *stage = staging.memory + (size_t)staging.block * staging_bytes + staging.used;
        memcpy(stage, (const char *)from + done, part);
        TS_CUDA(cudaMemcpyAsync((char *)to + done, stage, part, cudaMemcpyHostToDevice, ts_cuda_stream()));
        staging.used += part;
        done += part;
    }
    return TS_OK;
}

static int upload_held(void *to, const void *from, size_t bytes) {
    if (ts_cuda_is_recording()) {
        return ts_cuda_record_upload(to, from, bytes);
    }
    TS_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, ts_cuda_stream()));
    return TS_OK;
}

// ---- downloads

// Other ranks may be late, and the device with them.
static int wait_for(cudaStream_t stream) {
    const bool began = ts_nccl_begin_wait();
    const cudaError_t code = cudaStreamSynchronize(stream);
    ts_nccl_end_wait(began);
    return ts_cuda_check(code, "cudaStreamSynchronize");
}

static int download(void *to, const void *from, size_t bytes) {
    TS_TRY(refuse_while_recording("a download"));
    TS_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, ts_cuda_stream()));
    return wait_for(ts_cuda_stream());
}

static int finish(void) {
    TS_TRY(refuse_while_recording("finish"));
    TS_TRY(wait_for(ts_cuda_communication_stream()));
    return wait_for(ts_cuda_stream());
}

static int tell_memory(size_t *free_bytes, size_t *total) {
    TS_CUDA(cudaMemGetInfo(free_bytes, total));
    return TS_OK;
}

static struct {
    pthread_mutex_t lock;
    cudaStream_t stream;
} fetching = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int fetch_alone(void *to, const void *from, size_t bytes) {
    TS_TRY(ts_cuda_use_here());
    if (!fetching.stream) {
        TS_CUDA(cudaStreamCreateWithFlags(&fetching.stream, cudaStreamNonBlocking));
    }
    TS_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, fetching.stream));
    TS_CUDA(cudaStreamSynchronize(fetching.stream));
    return TS_OK;
}

static int fetch(void *to, const void *from, size_t bytes) {
    pthread_mutex_lock(&fetching.lock);
    const int status = fetch_alone(to, from, bytes);
    pthread_mutex_unlock(&fetching.lock);
    return status;
}

// ---- within the GPU

static int copy(void *to, const void *from, size_t bytes) {
    TS_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, ts_cuda_stream()));
    return TS_OK;
}

static int zero(void *to, size_t bytes) {
    TS_CUDA(cudaMemsetAsync(to, 0, bytes, ts_cuda_stream()));
    return TS_OK;
}

#ifdef TS_SHIM
static void spoil(void *memory, size_t bytes) {
    (void)ts_cuda_check(ts_shim_spoil(memory, bytes, ts_cuda_stream()), "spoil");
}
#endif

const ts_device ts_cuda_device = {
    .name = "cuda",
    .is_host = false,
    .allocate = allocate,
    .release = release,
    .allocate_host = allocate_host,
    .release_host = release_host,
    .upload = upload,
    .upload_held = upload_held,
    .download = download,
    .fetch = fetch,
    .copy = copy,
    .zero = zero,
    .finish = finish,
    .memory = tell_memory,
#ifdef TS_SHIM
    .spoil = spoil,
#endif
    .record_begin = ts_cuda_record_begin,
    .record_end = ts_cuda_record_end,
    .recording_restage = ts_cuda_recording_restage,
    .recording_run = ts_cuda_recording_run,
    .recording_close = ts_cuda_recording_close,
};
