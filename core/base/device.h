// SPDX-License-Identifier: Apache-2.0
// Where numbers live: in the host's memory, or in that of an accelerator.
//
// A device does what it is told in order: uploads, copies, kernels (core/kernels/kernels.h) and collectives on its
// memory (core/comm/comm.h) each see what the ones called before them wrote, whether or not a call has returned before
// its work is done. The host sees results after a download or finish only, and must not touch a device's memory
// otherwise, unless is_host.
//
// Work that fails after its call returned is told by the next call that waits: download or finish.
#ifndef TS_BASE_DEVICE_H
#define TS_BASE_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct ts_recording ts_recording;  // a sequence of calls on a device, to be run again with one call

// All entries return 0 or a negative status, with the error text set; allocations return NULL instead. `bytes` may be
// 0. One thread at a time, unless said.
typedef struct ts_device {
    const char *name;  // "cpu", "cuda"
    bool is_host;      // its memory is the host's, and work is done when a call returns

    void *(*allocate)(size_t bytes);  // uninitialised, 256-byte aligned (the host: 64); released by release
    void (*release)(void *memory);    // waits for work that uses it; NULL is allowed
    // Host memory that uploads and fetches read and write without a copy in between (page-locked). As above.
    void *(*allocate_host)(size_t bytes);
    void (*release_host)(void *memory);

    // From the host's memory, which may be changed as soon as the call returns.
    int (*upload)(void *to, const void *from, size_t bytes);
    // The same from memory of allocate_host, which must not be changed until the next finish or download.
    int (*upload_held)(void *to, const void *from, size_t bytes);
    // To the host's memory; waits for all work before it and for itself.
    int (*download)(void *to, const void *from, size_t bytes);
    // The same beside the work under way, which must not write there, and for any thread: of a checkpoint's writer,
    // say.
    int (*fetch)(void *to, const void *from, size_t bytes);
    int (*copy)(void *to, const void *from, size_t bytes);  // within the device; no overlap
    int (*zero)(void *to, size_t bytes);
    int (*finish)(void);  // waits for everything
    // Bytes of its memory: what is free now, and all. NULL of the host (core/base/memory.h).
    int (*memory)(size_t *free_bytes, size_t *total);
    // NULL, or marks bytes whose owner gave them up, in order, so that reading them shows: of imitated devices.
    void (*spoil)(void *memory, size_t bytes);

    // Calls between begin and end are recorded instead of done; addresses and numbers passed by value are kept as they
    // were, uploaded bytes too, and calls that wait are refused. Entries NULL: the device does not record.
    int (*record_begin)(void);
    int (*record_end)(ts_recording **out);
    // Upload number `index` (from 0) of the recording reads these bytes from now on; as many as when it was recorded.
    int (*recording_restage)(ts_recording *recording, int index, const void *from, size_t bytes);
    int (*recording_run)(ts_recording *recording);
    void (*recording_close)(ts_recording **recording);
} ts_device;

// The host's own memory. Allocations are 64-byte aligned and use huge pages from 4 MiB on.
extern const ts_device ts_device_host;

// The device that owns the memory at `place`: the one that noted it, else the host. Any thread.
const ts_device *ts_device_of(const void *place);
// The allocation of a device that holds `place`, with its bytes; NULL for memory of the host. Any thread.
const void *ts_device_block(const void *place, size_t *bytes);
// For devices: notes what they allocated, and forgets it. TS_ERESOURCE when memory is exhausted.
int ts_device_note(const ts_device *device, const void *memory, size_t bytes);
void ts_device_forget(const void *memory);

#endif
