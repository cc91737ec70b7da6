// SPDX-License-Identifier: Apache-2.0
// Recordings are CUDA graphs, captured from the compute stream. What is uploaded while recording goes to memory of the
// recording's own on the GPU, from where the graph copies it to its place; restaging is an ordinary upload there, so it
// keeps its place among the runs and nothing waits.
#include "core/kernels/cuda/recording.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"

typedef struct stage {
    void *device;
    void *bytes_at_first;  // of the host, until the recording has ended
    size_t bytes;
} stage;

struct ts_recording {
    cudaGraphExec_t graph;
    stage *stage;
    int count, capacity;
};

static ts_recording *open_recording;  // between begin and end

// Memory that recordings made while it was in use may still work in.
static struct {
    int recordings;
    void **memory;
    int count, capacity;
} given_up;

bool ts_cuda_is_recording(void) {
    return open_recording != NULL;
}

// ---- memory while recording

// Allocations are refused while a stream is captured, unless the thread says that it knows.
static int allocate_stage(void **device, size_t bytes) {
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    TS_CUDA(cudaThreadExchangeStreamCaptureMode(&mode));
    const int status = ts_cuda_check(cudaMalloc(device, bytes), "memory of a recording");
    TS_CUDA(cudaThreadExchangeStreamCaptureMode(&mode));
    return status;
}

static int grow_stages(ts_recording *recording) {
    if (recording->count < recording->capacity) {
        return TS_OK;
    }
    const int capacity = recording->capacity ? 2 * recording->capacity : 8;
    stage *grown = realloc(recording->stage, (size_t)capacity * sizeof *grown);
    if (!grown) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for the uploads of a recording");
    }
    recording->stage = grown;
    recording->capacity = capacity;
    return TS_OK;
}

int ts_cuda_record_upload(void *to, const void *from, size_t bytes) {
    ts_recording *r = open_recording;
    TS_TRY(grow_stages(r));
    stage *s = &r->stage[r->count];
    *s = (stage){.bytes = bytes, .bytes_at_first = ts_malloc(bytes ? bytes : 1)};
    if (!s->bytes_at_first) {
        return TS_ERESOURCE;
    }
    r->count++;
    if (bytes == 0) {
        return TS_OK;
    }
    memcpy(s->bytes_at_first, from, bytes);
    TS_TRY(allocate_stage(&s->device, bytes));
    TS_CUDA(cudaMemcpyAsync(to, s->device, bytes, cudaMemcpyDeviceToDevice, ts_cuda_stream()));
    return TS_OK;
}

int ts_cuda_give_up(void *memory) {
    if (given_up.recordings == 0) {
        return ts_cuda_check(cudaFree(memory), "cudaFree");
    }
    if (given_up.count == given_up.capacity) {
        const int capacity = given_up.capacity ? 2 * given_up.capacity : 8;
        void **grown = realloc(given_up.memory, (size_t)capacity * sizeof *grown);
        if (!grown) {
            return TS_FAIL(TS_ERESOURCE, "out of memory for the list of a recording's memory");
        }
        given_up.memory = grown;
        given_up.capacity = capacity;
    }
    given_up.memory[given_up.count++] = memory;
    return TS_OK;
}

static void free_given_up(void) {
    for (int i = 0; i < given_up.count; i++) {
        (void)cudaFree(given_up.memory[i]);
    }
    free(given_up.memory);
    given_up.memory = NULL;
    given_up.count = given_up.capacity = 0;
}

// ---- recording

int ts_cuda_record_begin(void) {
    if (open_recording) {
        return TS_FAIL(TS_EUSAGE, "a recording begins within another");
    }
    open_recording = ts_calloc(1, sizeof *open_recording);
    if (!open_recording) {
        return TS_ERESOURCE;
    }
    given_up.recordings++;
    const int status = ts_cuda_check(cudaStreamBeginCapture(ts_cuda_stream(), cudaStreamCaptureModeThreadLocal),
                                     "cudaStreamBeginCapture");
    if (status) {
        ts_cuda_recording_close(&open_recording);
    }
    return status;
}

static int fill_stages(ts_recording *recording) {
    for (int i = 0; i < recording->count; i++) {
        stage *s = &recording->stage[i];
        TS_TRY(ts_cuda_device.upload(s->device, s->bytes_at_first, s->bytes));
        free(s->bytes_at_first);
        s->bytes_at_first = NULL;
    }
    return TS_OK;
}

int ts_cuda_record_end(ts_recording **out) {
    *out = NULL;
    if (!open_recording) {
        return TS_FAIL(TS_EUSAGE, "a recording ends that did not begin");
    }
    ts_recording *r = open_recording;
    open_recording = NULL;
    cudaGraph_t graph = NULL;
    int status = ts_cuda_check(cudaStreamEndCapture(ts_cuda_stream(), &graph), "cudaStreamEndCapture");
    if (!status) {
        status = ts_cuda_check(cudaGraphInstantiate(&r->graph, graph, 0), "cudaGraphInstantiate");
        (void)cudaGraphDestroy(graph);
    }
    if (!status) {
        status = fill_stages(r);
    }
    if (status) {
        ts_cuda_recording_close(&r);
    }
    *out = r;
    return status;
}

int ts_cuda_recording_restage(ts_recording *recording, int index, const void *from, size_t bytes) {
    if (index < 0 || index >= recording->count || bytes != recording->stage[index].bytes) {
        return TS_FAIL(TS_EUSAGE, "upload %d of a recording with %zu bytes: it has %d uploads, this one of %zu bytes",
                       index, bytes, recording->count,
                       index >= 0 && index < recording->count ? recording->stage[index].bytes : 0);
    }
    return ts_cuda_device.upload(recording->stage[index].device, from, bytes);
}

int ts_cuda_recording_run(ts_recording *recording) {
    TS_CUDA(cudaGraphLaunch(recording->graph, ts_cuda_stream()));
    return TS_OK;
}

void ts_cuda_recording_close(ts_recording **recording) {
    ts_recording *r = *recording;
    if (!r) {
        return;
    }
    (void)cudaStreamSynchronize(ts_cuda_stream());
    if (r->graph) {
        (void)cudaGraphExecDestroy(r->graph);
    }
    for (int i = 0; i < r->count; i++) {
        (void)cudaFree(r->stage[i].device);
        free(r->stage[i].bytes_at_first);
    }
    free(r->stage);
    free(r);
    *recording = NULL;
    if (--given_up.recordings == 0) {
        free_given_up();
    }
}
