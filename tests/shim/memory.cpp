// SPDX-License-Identifier: Apache-2.0
// The imitated GPU's memory: a reserved range of addresses that the host's code cannot touch but while queued work
// runs. Each allocation ends where its pages do, with pages between that nothing may touch, and no address is given
// out twice; new memory holds bytes of 0xff, which are NaN.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "tests/shim/private.h"

namespace shim {

namespace {
constexpr size_t PAGE = 4096, ALIGNMENT = 256, GAP = 16 * PAGE, RANGE = size_t(1) << 42;
constexpr unsigned char BEHIND = 0xfe;  // between an allocation's end and its pages'

struct allocation {
    size_t bytes;
    char *pages;
    size_t page_bytes;
    bool freed;
};
std::map<uintptr_t, allocation> allocations;  // the freed ones, too: for messages
std::map<uintptr_t, size_t> pinned;
char *range, *range_next;
size_t in_use;
int open_count;
}  // namespace

size_t device_memory_bytes() {
    const char *mebibytes = std::getenv("TESSERA_SHIM_MEMORY");
    return (mebibytes ? (size_t)std::strtoull(mebibytes, nullptr, 10) : size_t(16) << 10) << 20;
}

// ---- access

static void protect_all(int protection) {
    for (auto &[address, a] : allocations) {
        if (!a.freed) {
            mprotect(a.pages, a.page_bytes, protection);
        }
    }
}

void open_memory() {
    if (!open_count++) {
        protect_all(PROT_READ | PROT_WRITE);
    }
}

void close_memory() {
    if (!--open_count) {
        protect_all(PROT_NONE);
    }
}

void check_ends() {
    for (auto &[address, a] : allocations) {
        if (a.freed) {
            continue;
        }
        for (const char *p = (const char *)address + a.bytes; p < a.pages + a.page_bytes; p++) {
            if ((unsigned char)*p != BEHIND) {
                ts_shim_die("byte %zu of device memory of %zu bytes at %p was written: out of bounds",
                            (size_t)(p - (const char *)address), a.bytes, (void *)address);
            }
        }
    }
}

// ---- faults

// What is at or near the address, as the message about a fault says.
static void describe(uintptr_t at, char *text, size_t room) {
    auto next = allocations.upper_bound(at);
    const auto before = next == allocations.begin() ? allocations.end() : std::prev(next);
    if (before != allocations.end()) {
        const allocation &a = before->second;
        if (at - before->first < a.bytes) {
            snprintf(text, room, "byte %zu of %sdevice memory of %zu bytes at %p", at - before->first,
                     a.freed ? "freed " : "", a.bytes, (void *)before->first);
            return;
        }
        if (next == allocations.end() || at - (before->first + a.bytes) <= next->first - at) {
            snprintf(text, room, "%zu bytes behind the end of %sdevice memory of %zu bytes at %p",
                     at - (before->first + a.bytes), a.freed ? "freed " : "", a.bytes, (void *)before->first);
            return;
        }
    }
    if (next != allocations.end()) {
        snprintf(text, room, "%zu bytes before device memory of %zu bytes at %p", next->first - at, next->second.bytes,
                 (void *)next->first);
        return;
    }
    snprintf(text, room, "no memory of the device");
}

static struct sigaction former;

static void on_fault(int signal, siginfo_t *info, void *context) {
    const uintptr_t at = (uintptr_t)info->si_addr;
    const bool ours = range && at >= (uintptr_t)range && at < (uintptr_t)range + RANGE;
    if (ours || inside_kernel) {
        char text[256];
        describe(at, text, sizeof text);
        ts_shim_die("access to address %p: %s", info->si_addr,
                    ours ? text : "not the device's (a pointer of the host, or a stack used up?)");
    }
    sigaction(signal, &former, nullptr);
    (void)context;
}

static void watch_faults() {
    static bool watching;
    if (watching) {
        return;
    }
    watching = true;
    static char other_stack[64 << 10];
    stack_t stack = {};
    stack.ss_sp = other_stack;
    stack.ss_size = sizeof other_stack;
    sigaltstack(&stack, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &former);
    sigaction(SIGBUS, &action, nullptr);
}

// ---- where memory is

bool look_up(const void *at, size_t bytes, place *where) {
    const uintptr_t p = (uintptr_t)at;
    if (range && p >= (uintptr_t)range && p < (uintptr_t)range + RANGE) {
        *where = place::device;
        auto i = allocations.upper_bound(p);
        if (i == allocations.begin()) {
            return false;
        }
        --i;
        return !i->second.freed && p - i->first + bytes <= i->second.bytes;
    }
    auto i = pinned.upper_bound(p);
    if (i != pinned.begin() && p - (--i)->first < i->second) {
        *where = place::pinned;
        return p - i->first + bytes <= i->second;
    }
    *where = place::pageable;
    return true;
}

}  // namespace shim

using namespace shim;

void ts_shim_open_memory(void) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    open_memory();
}

void ts_shim_close_memory(void) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    close_memory();
}

// ---- the calls

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    if (!memory) {
        return told(cudaErrorInvalidValue);
    }
    *memory = nullptr;
    if (any_capturing()) {
        spoil_capture();
        return told(cudaErrorStreamCaptureUnsupported);
    }
    if (bytes == 0) {
        return cudaSuccess;
    }
    if (!range) {
        watch_faults();
        range = range_next =
            (char *)mmap(nullptr, RANGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (range == MAP_FAILED) {
            range = nullptr;
            return told(cudaErrorMemoryAllocation);
        }
    }
    const size_t aligned = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const size_t page_bytes = (bytes + PAGE - 1) / PAGE * PAGE;
    if (bytes > RANGE || in_use + page_bytes > device_memory_bytes() ||
        page_bytes + 2 * GAP > (size_t)(range + RANGE - range_next)) {
        return told(cudaErrorMemoryAllocation);
    }
    char *const pages = range_next + GAP;
    range_next = pages + page_bytes;
    in_use += page_bytes;
    char *const data = pages + page_bytes - aligned;
    mprotect(pages, page_bytes, PROT_READ | PROT_WRITE);
    std::memset(pages, 0xff, page_bytes);
    std::memset(data + bytes, BEHIND, aligned - bytes);
    if (!open_count) {
        mprotect(pages, page_bytes, PROT_NONE);
    }
    allocations[(uintptr_t)data] = {bytes, pages, page_bytes, false};
    *memory = data;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    if (!memory) {
        return cudaSuccess;
    }
    if (any_capturing()) {
        spoil_capture();
        return told(cudaErrorStreamCaptureUnsupported);
    }
    auto i = allocations.find((uintptr_t)memory);
    if (i == allocations.end() || i->second.freed) {
        return told(cudaErrorInvalidValue);
    }
    finish_all();
    allocation &a = i->second;
    a.freed = true;
    in_use -= a.page_bytes;
    mprotect(a.pages, a.page_bytes, PROT_NONE);
    madvise(a.pages, a.page_bytes, MADV_DONTNEED);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    if (!memory) {
        return told(cudaErrorInvalidValue);
    }
    if (any_capturing()) {
        spoil_capture();
        return told(cudaErrorStreamCaptureUnsupported);
    }
    *memory = bytes ? std::aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE) : nullptr;
    if (bytes && !*memory) {
        return told(cudaErrorMemoryAllocation);
    }
    if (bytes) {
        pinned[(uintptr_t)*memory] = bytes;
    }
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **memory, size_t bytes) {
    return cudaHostAlloc(memory, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void *memory) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    if (!memory) {
        return cudaSuccess;
    }
    auto i = pinned.find((uintptr_t)memory);
    if (i == pinned.end()) {
        return told(cudaErrorInvalidValue);
    }
    finish_all();
    std::memset(memory, 0xff, i->second);
    pinned.erase(i);
    std::free(memory);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    place where;
    if (!memory || !bytes) {
        return told(cudaErrorInvalidValue);
    }
    look_up(memory, 1, &where);
    if (where != place::pageable) {
        return told(cudaErrorHostMemoryAlreadyRegistered);
    }
    pinned[(uintptr_t)memory] = bytes;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    finish_all();
    return pinned.erase((uintptr_t)memory) ? cudaSuccess : told(cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    *total = device_memory_bytes();
    *available = *total - in_use;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *at) {
    std::lock_guard<std::recursive_mutex> hold(lock);
    place where;
    look_up(at, 1, &where);
    *attributes = {where == place::device   ? cudaMemoryTypeDevice
                   : where == place::pinned ? cudaMemoryTypeHost
                                            : cudaMemoryTypeUnregistered,
                   where == place::pageable ? -2 : 0, where == place::pageable ? nullptr : (void *)(uintptr_t)at,
                   where == place::pinned ? (void *)(uintptr_t)at : nullptr};
    return cudaSuccess;
}
