// SPDX-License-Identifier: Apache-2.0
// Writing safetensors: the same bytes as the reference writer, streamed from the caller's memory.
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/file.h"
#include "core/base/status.h"
#include "core/store/safetensors.h"

enum { WRITE_BLOCK = 16 << 20 };

static int64_t item_bytes(const ts_safetensors_item *item) {
    return ts_shape_count(item->shape) * (int64_t)ts_dtype_bytes(item->dtype);
}

// The reference's order: widest elements first, so that every tensor is aligned; then by name.
static int by_alignment_then_name(const void *a, const void *b) {
    const ts_safetensors_item *x = *(const ts_safetensors_item *const *)a, *y = *(const ts_safetensors_item *const *)b;
    const size_t wide_x = ts_dtype_bytes(x->dtype), wide_y = ts_dtype_bytes(y->dtype);
    if (wide_x != wide_y) {
        return wide_x > wide_y ? -1 : 1;
    }
    return strcmp(x->name, y->name);
}

static int pack_entry(json_t *root, const ts_safetensors_item *item, int64_t begin, int64_t end) {
    json_t *shape = json_array();
    int failed = 0;
    for (int d = 0; d < item->shape.ndim; d++) {
        failed |= json_array_append_new(shape, json_integer(item->shape.dim[d]));
    }
    json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", ts_dtype_name(item->dtype), "shape", shape,
                              "data_offsets", (json_int_t)begin, (json_int_t)end);
    failed |= json_object_get(root, item->name) != NULL;  // given twice
    return failed | json_object_set_new(root, item->name, entry);
}

// Compact JSON in insertion order, padded with spaces to a multiple of 8. NULL when memory is exhausted, a name is not
// UTF-8 or is given twice.
static char *build_header(const ts_safetensors_item *const *sorted, int64_t count, const char *const *metadata) {
    json_t *root = json_object();
    int failed = !root;
    if (metadata) {
        json_t *pairs = json_object();
        for (int i = 0; metadata[i]; i += 2) {
            failed |= json_object_set_new(pairs, metadata[i], json_string(metadata[i + 1]));
        }
        failed |= json_object_set_new(root, "__metadata__", pairs);
    }
    int64_t offset = 0;
    for (int64_t i = 0; i < count; i++) {
        const ts_safetensors_item *item = sorted[i];
        const int64_t end = offset + item_bytes(item);
        failed |= pack_entry(root, item, offset, end);
        offset = end;
    }
    char *text = failed ? NULL : json_dumps(root, JSON_COMPACT);
    json_decref(root);
    const size_t length = text ? strlen(text) : 0, padded = (length + 7) / 8 * 8;
    char *header = text ? realloc(text, padded + 1) : NULL;
    if (!header) {
        free(text);
        return NULL;
    }
    memset(header + length, ' ', padded - length);
    header[padded] = '\0';
    return header;
}

static int put(int fd, XXH3_state_t *hash, const void *data, size_t bytes, const char *path) {
    const char *from = data;
    while (bytes) {  // in blocks, so that each is hashed while it is in the cache
        const size_t block = bytes < WRITE_BLOCK ? bytes : WRITE_BLOCK;
        XXH3_64bits_update(hash, from, block);
        TS_TRY(ts_file_write_all(fd, from, block, path));
        from += block;
        bytes -= block;
    }
    return TS_OK;
}

static int put_all(int fd, XXH3_state_t *hash, const char *header, const ts_safetensors_item *const *sorted,
                   int64_t count, const char *path) {
    const uint64_t length = strlen(header);
    uint8_t word[8];
    for (int i = 0; i < 8; i++) {
        word[i] = (uint8_t)(length >> (8 * i));
    }
    TS_TRY(put(fd, hash, word, sizeof word, path));
    TS_TRY(put(fd, hash, header, (size_t)length, path));
    for (int64_t i = 0; i < count; i++) {
        TS_TRY(put(fd, hash, sorted[i]->data, (size_t)item_bytes(sorted[i]), path));
    }
    if (fsync(fd)) {
        return TS_FILE_FAIL(path, "sync");
    }
    return TS_OK;
}

static int write_sorted(const char *path, const ts_safetensors_item *const *sorted, int64_t count,
                        const char *const *metadata, XXH3_state_t *hash) {
    char temporary[TS_PATH_BYTES];
    if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= TS_PATH_BYTES) {
        return TS_FAIL(TS_EINPUT, "%.80s...: the path is longer than %d bytes", path, TS_PATH_BYTES);
    }
    char *header = build_header(sorted, count, metadata);
    if (!header) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory for its header, or a tensor's name is not UTF-8 or given twice",
                       path);
    }
    const int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int status = fd < 0 ? TS_FILE_FAIL(temporary, "create") : put_all(fd, hash, header, sorted, count, temporary);
    free(header);
    if (fd >= 0 && close(fd) && !status) {
        status = TS_FILE_FAIL(temporary, "close");
    }
    if (!status) {
        status = ts_file_rename(temporary, path);
    }
    if (status && fd >= 0) {
        unlink(temporary);
    }
    return status;
}

int ts_safetensors_write_sum(const char *path, const ts_safetensors_item *items, int64_t count,
                             const char *const *metadata, uint64_t *sum) {
    const ts_safetensors_item **sorted = ts_malloc((size_t)(count + 1) * sizeof *sorted);
    XXH3_state_t *hash = XXH3_createState();
    int status = TS_ERESOURCE;
    if (sorted && hash) {
        for (int64_t i = 0; i < count; i++) {
            sorted[i] = &items[i];
        }
        qsort(sorted, (size_t)count, sizeof *sorted, by_alignment_then_name);
        XXH3_64bits_reset(hash);
        status = write_sorted(path, sorted, count, metadata, hash);
        *sum = XXH3_64bits_digest(hash);
    }
    XXH3_freeState(hash);
    free(sorted);
    return status;
}

int ts_safetensors_write(const char *path, const ts_safetensors_item *items, int64_t count,
                         const char *const *metadata) {
    uint64_t sum;
    return ts_safetensors_write_sum(path, items, count, metadata, &sum);
}
