// SPDX-License-Identifier: Apache-2.0
// The imitated GPU's properties, errors, launches, and the list of kernels that were launched.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>

#include "tests/shim/private.h"

namespace shim {

// ---- choices and chance

order chosen_order() {
    static const order chosen = [] {
        const char *name = std::getenv("TESSERA_SHIM_ORDER");
        const std::string wanted = name ? name : "alternate";
        const char *const names[] = {"alternate", "forward", "reverse", "warps", "random"};
        for (int i = 0; i < 5; i++) {
            if (wanted == names[i]) {
                return (order)i;
            }
        }
        ts_shim_die("TESSERA_SHIM_ORDER %.40s: use alternate, forward, reverse, warps or random", wanted.c_str());
    }();
    return chosen;
}

unsigned dice::below(unsigned n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((state >> 33) % n);
}

static int number_of(const char *variable, int otherwise) {
    const char *text = std::getenv(variable);
    return text && *text ? std::atoi(text) : otherwise;
}

// ---- errors

static thread_local cudaError_t last_error;

cudaError_t told(cudaError_t error) {
    if (error != cudaSuccess) {
        last_error = error;
    }
    return error;
}

std::string plain_kernel_name(const char *name) {
    std::string plain = name;
    plain.erase(0, plain.find_first_not_of("( "));
    return plain.substr(0, plain.find_first_of("<) "));
}

}  // namespace shim

using namespace shim;

void ts_shim_die(const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    char line[1400];
    int length;
    if (inside_kernel) {
        length = snprintf(line, sizeof line, "shim: kernel %s, block (%u, %u, %u), thread (%u, %u, %u): %s\n", running,
                          blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, text);
    } else {
        length = snprintf(line, sizeof line, "shim: %s: %s\n", running ? running : "host code", text);
    }
    if (write(STDERR_FILENO, line, (size_t)length) < 0) {
        _exit(6);
    }
    _exit(6);
}

void __trap() {
    ts_shim_die("__trap");
}

cudaError_t cudaGetLastError(void) {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void) {
    return last_error;
}

namespace {
struct error_text {
    cudaError_t code;
    const char *name, *text;
};
#define ERROR(code, text)                                                                                              \
    { code, #code, text }
const error_text error_texts[] = {
    ERROR(cudaSuccess, "no error"),
    ERROR(cudaErrorInvalidValue, "invalid argument"),
    ERROR(cudaErrorMemoryAllocation, "out of memory"),
    ERROR(cudaErrorInitializationError, "initialization error"),
    ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    ERROR(cudaErrorInvalidDevicePointer, "invalid device pointer"),
    ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    ERROR(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR(cudaErrorNotReady, "device not ready"),
    ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    ERROR(cudaErrorHostMemoryAlreadyRegistered, "part or all of the requested memory range is already mapped"),
    ERROR(cudaErrorHostMemoryNotRegistered, "pointer does not correspond to a registered memory region"),
    ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    ERROR(cudaErrorNotSupported, "operation not supported"),
    ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    ERROR(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    ERROR(cudaErrorStreamCaptureImplicit, "operation would make the legacy stream depend on a capturing stream"),
};
#undef ERROR
const error_text unknown_error = {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"};
}  // namespace

static const error_text &text_of(cudaError_t code) {
    for (const error_text &e : error_texts) {
        if (e.code == code) {
            return e;
        }
    }
    return unknown_error;
}

const char *cudaGetErrorName(cudaError_t error) {
    return text_of(error).name;
}

const char *cudaGetErrorString(cudaError_t error) {
    return text_of(error).text;
}

// ---- the device

cudaError_t cudaDriverGetVersion(int *version) {
    *version = number_of("TESSERA_SHIM_DRIVER", CUDART_VERSION);
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    if (number_of("TESSERA_SHIM_DRIVER", CUDART_VERSION) / 1000 < CUDART_VERSION / 1000) {
        return told(cudaErrorInsufficientDriver);
    }
    *count = number_of("TESSERA_SHIM_DEVICES", 1);
    return *count ? cudaSuccess : told(cudaErrorNoDevice);
}

static int chosen_device;

cudaError_t cudaGetDevice(int *device) {
    *device = chosen_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    int count;
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code) {
        return code;
    }
    if (device < 0 || device >= count) {
        return told(cudaErrorInvalidDevice);
    }
    chosen_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    const int capability = number_of("TESSERA_SHIM_CAPABILITY", 80);
    *p = {};
    snprintf(p->name, sizeof p->name, "imitated GPU");
    p->totalGlobalMem = device_memory_bytes();
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = (size_t)(capability >= 90 ? 227 : 163) << 10;
    p->sharedMemPerMultiprocessor = (size_t)(capability >= 90 ? 228 : 164) << 10;
    p->regsPerBlock = 64 << 10;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->multiProcessorCount = 7;  // few, and odd
    p->major = capability / 10;
    p->minor = capability % 10;
    p->l2CacheSize = 4 << 20;
    p->memoryBusWidth = 64;
    p->unifiedAddressing = 1;
    p->pciDeviceID = device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    cudaGetDeviceProperties(&p, device);
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = (int)p.sharedMemPerBlock;
        return cudaSuccess;
    case cudaDevAttrWarpSize:
        *value = p.warpSize;
        return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        return cudaSuccess;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)p.sharedMemPerMultiprocessor;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)p.sharedMemPerBlockOptin;
        return cudaSuccess;
    }
    return told(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int bytes, int device) {
    snprintf(id, (size_t)bytes, "0000:00:%02x.0", (unsigned)device);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

// ---- kernels

static std::map<const void *, size_t> &shared_limits() {
    static std::map<const void *, size_t> limits;
    return limits;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    const std::lock_guard<std::recursive_mutex> hold(lock);
    cudaDeviceProp p;
    cudaGetDeviceProperties(&p, chosen_device);
    if (!kernel) {
        return told(cudaErrorInvalidDeviceFunction);
    }
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value < 0 || (size_t)value > p.sharedMemPerBlockOptin) {
            return told(cudaErrorInvalidValue);
        }
        shared_limits()[kernel] = (size_t)value;
    }
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int threads, size_t shared) {
    (void)kernel;
    cudaDeviceProp p;
    cudaGetDeviceProperties(&p, chosen_device);
    if (threads <= 0 || threads > p.maxThreadsPerBlock) {
        return told(cudaErrorInvalidValue);
    }
    const size_t by_shared = shared ? p.sharedMemPerMultiprocessor / (shared + 1024) : 32;
    const size_t by_threads = (size_t)(p.maxThreadsPerMultiProcessor / ((threads + 31) / 32 * 32));
    *blocks = (int)std::min(by_shared, by_threads);
    return cudaSuccess;
}

namespace shim {

static std::set<std::string> launched;

static void write_launched() {
    const char *file = std::getenv("TESSERA_SHIM_KERNELS");
    const int out = open(file, O_WRONLY | O_CREAT | O_APPEND, 0666);
    std::string all;
    for (const std::string &name : launched) {
        all += name + "\n";
    }
    if (out < 0 || write(out, all.data(), all.size()) != (ssize_t)all.size()) {
        perror(file);
    }
    close(out);
}

void note_kernel(const char *name) {
    static const bool wanted = std::getenv("TESSERA_SHIM_KERNELS") && !std::atexit(write_launched);
    if (wanted) {
        launched.insert(plain_kernel_name(name));
    }
}

}  // namespace shim

bool ts_shim_check_argument(const char *kernel, int index, const void *pointer) {
    const std::lock_guard<std::recursive_mutex> hold(lock);
    place where;
    if (!pointer || (look_up(pointer, 0, &where) && where != place::pageable)) {
        return true;
    }
    fprintf(stderr, "shim: kernel %s: argument %d, %p, is %s\n", kernel, index, pointer,
            where == place::device ? "outside of all memory of the device" : "memory of the host");
    told(cudaErrorIllegalAddress);
    return false;
}

// Whether there is memory of the host at the address.
static bool is_mapped(uintptr_t address) {
    unsigned char resident;
    return mincore((void *)(address & ~(uintptr_t)4095), 1, &resident) == 0;
}

bool ts_shim_check_words(const char *kernel, int index, const void *words, size_t count) {
    const std::lock_guard<std::recursive_mutex> hold(lock);
    for (size_t i = 0; i < count; i++) {
        uintptr_t word;
        std::memcpy(&word, (const char *)words + i * sizeof word, sizeof word);
        place where;
        const bool plausible =
            word >> 45 && word >> 47 == 0;  // below may be a sanitizer's memory, or two small numbers
        if (plausible && look_up((const void *)word, 0, &where) && where == place::pageable && is_mapped(word)) {
            fprintf(stderr, "shim: kernel %s: argument %d holds a pointer to memory of the host at byte %zu: %p\n",
                    kernel, index, i * sizeof word, (void *)word);
            told(cudaErrorIllegalAddress);
            return false;
        }
    }
    return true;
}

cudaError_t ts_shim_launch_closure(const char *name, const void *function, dim3 grid, dim3 block, size_t shared_bytes,
                                   cudaStream_t stream, std::function<void()> thread) {
    const std::lock_guard<std::recursive_mutex> hold(lock);
    cudaDeviceProp p;
    cudaGetDeviceProperties(&p, chosen_device);
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    const bool too_many = threads == 0 || threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64 ||
                          !grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535;
    if (too_many) {
        return told(cudaErrorInvalidConfiguration);
    }
    const auto limit = shared_limits().find(function);
    if (shared_bytes > std::max(p.sharedMemPerBlock, limit == shared_limits().end() ? 0 : limit->second)) {
        return told(cudaErrorInvalidValue);
    }
    note_kernel(name);
    const launch l = {name, grid, block, shared_bytes, std::move(thread)};
    put(stream, name, [l] { run_kernel(l); });
    return cudaSuccess;
}
