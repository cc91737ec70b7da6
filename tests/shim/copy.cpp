// SPDX-License-Identifier: Apache-2.0
// Copies and fills, as late as their stream's other work. Page-locked host memory is read then, and holds 0xff from the
// call until it is written; other host memory is read in the call, and written before it returns.
#include <cstring>
#include <vector>

#include "tests/shim/private.h"

using namespace shim;

#define HOLD const std::lock_guard<std::recursive_mutex> hold(lock)

namespace {
struct copy {
    char *to;
    const char *from;
    size_t to_pitch, from_pitch, width, height;

    void run() const {
        for (size_t y = 0; y < height; y++) {
            std::memmove(to + y * to_pitch, from + y * from_pitch, width);
        }
    }
    size_t to_bytes() const { return height ? (height - 1) * to_pitch + width : 0; }
    size_t from_bytes() const { return height ? (height - 1) * from_pitch + width : 0; }
};
}  // namespace

static bool fits(cudaMemcpyKind kind, place to, place from) {
    switch (kind) {
    case cudaMemcpyHostToHost:
        return to != place::device && from != place::device;
    case cudaMemcpyHostToDevice:
        return to == place::device && from != place::device;
    case cudaMemcpyDeviceToHost:
        return to != place::device && from == place::device;
    case cudaMemcpyDeviceToDevice:
        return to == place::device && from == place::device;
    case cudaMemcpyDefault:
        return true;
    }
    return false;
}

static cudaError_t enqueue(copy c, cudaMemcpyKind kind, cudaStream_t stream) {
    if (c.width == 0 || c.height == 0) {
        return cudaSuccess;
    }
    place to, from;
    if (!c.to || !c.from || !look_up(c.to, c.to_bytes(), &to) || !look_up(c.from, c.from_bytes(), &from) ||
        !fits(kind, to, from)) {
        return told(cudaErrorInvalidValue);
    }
    if (from == place::pageable && !capturing(stream)) {
        const std::vector<char> kept(c.from, c.from + c.from_bytes());
        put(stream, "a copy from the host", [c, kept] {
            copy later = c;
            later.from = kept.data();
            later.run();
        });
    } else {
        if (to == place::pinned) {
            for (size_t y = 0; y < c.height; y++) {
                std::memset(c.to + y * c.to_pitch, 0xff, c.width);
            }
        }
        put(stream, "a copy", [c] { c.run(); });
    }
    // To memory that is not page-locked, the call returns when the copy is done.
    return to == place::pageable ? cudaStreamSynchronize(stream) : cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    HOLD;
    return enqueue({(char *)to, (const char *)from, bytes, bytes, bytes, 1}, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    HOLD;
    if (width > to_pitch || width > from_pitch) {
        return told(cudaErrorInvalidValue);
    }
    return enqueue({(char *)to, (const char *)from, to_pitch, from_pitch, width, height}, kind, stream);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    HOLD;
    const cudaError_t code = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return code ? code : cudaStreamSynchronize(nullptr);
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    HOLD;
    place where;
    if (bytes && (!to || !look_up(to, bytes, &where) || where == place::pageable)) {
        return told(cudaErrorInvalidValue);
    }
    if (bytes) {
        put(stream, "cudaMemset", [=] { std::memset(to, value, bytes); });
    }
    return cudaSuccess;
}

cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    return cudaMemsetAsync(to, value, bytes, nullptr);
}

cudaError_t ts_shim_spoil(void *memory, size_t bytes, cudaStream_t stream) {
    return cudaMemsetAsync(memory, 0xff, bytes, stream);
}
