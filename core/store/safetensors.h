// SPDX-License-Identifier: Apache-2.0
// safetensors: reading (one file, or a folder with a sharded index) and writing.
//
// The reader checks everything before it believes anything: header size, JSON, duplicate names, dtype, shape products,
// offsets without holes or overlaps, end of file. Reads are pread(2) into the caller's memory; nothing is mapped.
#ifndef TS_STORE_SAFETENSORS_H
#define TS_STORE_SAFETENSORS_H

#include <stdint.h>

#include "core/tensor/tensor.h"

typedef struct ts_safetensors ts_safetensors;

typedef struct ts_safetensors_entry {
    const char *name;
    ts_dtype dtype;
    ts_shape shape;
    int64_t offset;  // in its file
    int64_t bytes;
    int file;  // index of the shard
} ts_safetensors_entry;

// `path`: a .safetensors file, a .safetensors.index.json, or a folder holding one of either (diffusion_pytorch_model*,
// model*, or the only one).
int ts_safetensors_open(ts_safetensors **out, const char *path);
void ts_safetensors_close(ts_safetensors **file);
int64_t ts_safetensors_count(const ts_safetensors *file);
uint64_t ts_safetensors_header_sum(const ts_safetensors *file);  // XXH3-64 of all that lies before the first tensor
// What reads raw bytes of a single file needs; borrowed.
int ts_safetensors_handle(const ts_safetensors *file);
const char *ts_safetensors_path(const ts_safetensors *file);
const ts_safetensors_entry *ts_safetensors_at(const ts_safetensors *file, int64_t index);       // by name, bytewise
const ts_safetensors_entry *ts_safetensors_find(const ts_safetensors *file, const char *name);  // NULL when absent
const char *ts_safetensors_metadata(const ts_safetensors *file, const char *key);               // NULL when absent
// Reads elements [first, first + n) of a tensor, converted to `dtype`.
int ts_safetensors_read(const ts_safetensors *file, const ts_safetensors_entry *entry, int64_t first, int64_t n,
                        void *out, ts_dtype dtype);
// Whether there is a tensor of that name and shape.
int ts_safetensors_check(const ts_safetensors *file, const char *name, ts_shape shape);
// Whole tensor, shape checked ("file: tensor 'x': shape [..], wanted [..]"), F32, refusing NaN and infinity.
int ts_safetensors_read_f32(const ts_safetensors *file, const char *name, ts_shape shape, float *out);

// Writing: tensors in the order of the reference writer (falling alignment, then name), header padded to 8 bytes.
typedef struct ts_safetensors_item {
    const char *name;
    ts_dtype dtype;
    ts_shape shape;
    const void *data;
} ts_safetensors_item;
// metadata: NULL-terminated key, value, key, value, ... or NULL. Written to path.tmp, synced, renamed.
int ts_safetensors_write(const char *path, const ts_safetensors_item *items, int64_t count,
                         const char *const *metadata);

// What the file of such items looks like: for files that many ranks write, each its own numbers (core/store/slice.h).
typedef struct ts_safetensors_plan {
    char *header;          // [header_bytes] everything before the first tensor
    int64_t header_bytes;  // and where the tensors begin
    int64_t bytes;         // of the whole file
    int64_t *offset;       // [count] where each item begins in the file, in the order given
} ts_safetensors_plan;
// The data of the items is not looked at. Freed by ts_safetensors_plan_free.
int ts_safetensors_plan_make(ts_safetensors_plan *out, const ts_safetensors_item *items, int64_t count,
                             const char *const *metadata, const char *path);
void ts_safetensors_plan_free(ts_safetensors_plan *plan);
// Creates the file with its header and room for the tensors, so that a full disk is found out here if possible.
int ts_safetensors_create(const char *path, const ts_safetensors_plan *plan);

#endif
