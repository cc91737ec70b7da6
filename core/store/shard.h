// SPDX-License-Identifier: Apache-2.0
// Inside of the data set: one .h5 shard as its writer and its reader see it.
//
//   /latents           u16 LE (bf16 bits) [N, T, H, W, C]      attributes of /: version i64, codec_fingerprint u64
//   /caption/bytes     u8 [bytes], UTF-8 one after the other   /caption/offsets  i64 [N + 1] into bytes
//   /clip/source/bytes, /clip/source/offsets                   likewise
//   /clip/id           u64 [N]                                 /clip/start, /clip/end, /clip/fps   f64 [N]
//
// Every data set is contiguous, so that HDF5 is only asked where it lies; the bytes are read with pread.
#ifndef TS_STORE_SHARD_H
#define TS_STORE_SHARD_H

#include <hdf5.h>
#include <stdbool.h>

#include "core/store/dataset.h"

typedef struct ts_shard {
    int fd;
    int64_t count, latent_offset, clip_bytes;
    char *caption, *source;                   // heaps of NUL-terminated texts
    int64_t *caption_offset, *source_offset;  // [count] into the heaps
    double *fps;                              // [count]
} ts_shard;

// Checks the shard against its line of the manifest and reads all but the latents. Not thread-safe (HDF5 is not).
int ts_shard_open(ts_shard *out, const char *path, const ts_shard_info *info, uint64_t codec_fingerprint);
void ts_shard_close(ts_shard *shard);

// File access as both sides need it: format 1.10, no locks (nothing is written in place), no plugins, no chatter.
// H5I_INVALID_HID when HDF5 cannot make it; the caller closes it.
hid_t ts_shard_access(void);
bool ts_text_is_utf8(const char *text, size_t bytes);

#endif
