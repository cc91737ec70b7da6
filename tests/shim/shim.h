// SPDX-License-Identifier: Apache-2.0
// What the parts of the imitation offer one another: work for streams, and meetings of the threads of a block.
//
// A kernel's threads are run one after another on stacks of their own, each until it has to wait; so between two waits
// a thread's actions are never mixed with another's. Which thread goes next is TESSERA_SHIM_ORDER's choice.
#ifndef TS_SHIM_SHIM_H
#define TS_SHIM_SHIM_H

#include <cuda_runtime.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---- streams

// Puts a call of run(argument) at the stream's end. It runs once, or each time the graph does that it is captured for,
// when its turn has come, and may read and write device memory. release(argument), or NULL, is called once it will not
// run again. `name` must last (a string constant).
cudaError_t ts_shim_enqueue(cudaStream_t stream, const char *name, void (*run)(void *), void *argument,
                            void (*release)(void *));

// Between these, the calling host thread may touch device memory; they nest. Of tests and of imitated libraries that
// work at once.
void ts_shim_open_memory(void);
void ts_shim_close_memory(void);

// Prints "shim: <kernel or host code>, block (..), thread (..): <message>" and ends the process with 6.
#ifdef __cplusplus
[[noreturn]]
#else
_Noreturn
#endif
void ts_shim_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

// ---- inside kernels

// Threads per meeting: a warp, a group of four warps (wgmma), or the whole block.
typedef enum { TS_SHIM_WARP = 32, TS_SHIM_WARPGROUP = 128, TS_SHIM_BLOCK = 0 } ts_shim_scope;

// All threads of the caller's warp that `mask` names and that have not ended (of the other scopes: all threads; mask is
// ignored) hand in `operand`; the last to come calls act(operands, count) for all, operands by lane, NULL where there
// is no such thread; then all go on. act may be NULL. Two of a warp at different calls - other act, mask or line - are
// an error told as divergence. `what` is the instruction's name, `line` its place (__LINE__ or __builtin_LINE()).
void ts_shim_meet(ts_shim_scope scope, unsigned mask, const char *what, int line, void *operand,
                  void (*act)(void *const *operand, int count));

// All 32 lanes of the caller's warp hand in `bytes` bytes; each gets those of all lanes, [32][bytes], which stay until
// its next exchange.
const void *ts_shim_warp_exchange(const void *mine, size_t bytes, const char *what, int line);

// Named barriers (PTX bar.sync and bar.arrive): 0 .. 15, of `threads` arrivals. __syncthreads is number 0 of all.
void ts_shim_barrier_sync(int barrier, int threads, int line);
void ts_shim_barrier_arrive(int barrier, int threads, int line);

// Waits until ready(argument) holds, asked whenever no other thread can go on before this one: mbarriers and flags.
void ts_shim_wait(bool (*ready)(void *), void *argument, const char *what);

// Number of the calling thread within its block, and of threads in the block.
int ts_shim_thread(void);
int ts_shim_threads(void);
// Another number for each block that runs, in all launches; of this thread of the host.
uint64_t ts_shim_block_number(void);

void *ts_shim_dynamic_shared(void);
size_t ts_shim_dynamic_shared_bytes(void);

#ifdef __cplusplus
}
#endif
#endif
