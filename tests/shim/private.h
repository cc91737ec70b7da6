// SPDX-License-Identifier: Apache-2.0
// What the sources of the imitation share.
#ifndef TS_SHIM_PRIVATE_H
#define TS_SHIM_PRIVATE_H

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "tests/shim/shim.h"

namespace shim {

// ---- the order in which what is free to go either way goes (TESSERA_SHIM_ORDER)

enum class order { alternate, forward, reverse, warps, random };
order chosen_order();
// The next of a sequence of decisions; the same sequence in every run.
struct dice {
    uint64_t state;
    explicit dice(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15u + 0x853c49e6748fea9bu) {}
    unsigned below(unsigned n);
};

// ---- errors (runtime.cpp)

// Keeps the error for cudaGetLastError, and returns it.
cudaError_t told(cudaError_t error);
std::string plain_kernel_name(const char *name);

// ---- memory.cpp

enum class place { pageable, pinned, device };
// Where [at, at + bytes) is; false when it is partly outside the allocation that it begins in.
bool look_up(const void *at, size_t bytes, place *where);
void open_memory();
void close_memory();
// Dies when bytes behind an allocation's end were written.
void check_ends();
size_t device_memory_bytes();

// ---- executor.cpp

struct launch {
    const char *name;
    dim3 grid, block;
    size_t shared_bytes;
    std::function<void()> thread;
};
void run_kernel(const launch &kernel);
// What this thread of the host runs: a kernel's or a work's name, or NULL.
extern __thread const char *running;
extern __thread bool inside_kernel;

// ---- stream.cpp

// The runtime does one thing at a time; work that waits for other processes holds it, too.
extern std::recursive_mutex lock;
// Runs everything that was put on any stream.
void finish_all();
// Appends work to the stream (or what it is captured for).
void put(cudaStream_t stream, const char *name, std::function<void()> run);
bool capturing(cudaStream_t stream);
bool any_capturing();
void spoil_capture();
void note_kernel(const char *name);

}  // namespace shim

#endif
