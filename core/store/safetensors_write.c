// SPDX-License-Identifier: Apache-2.0
// Writing safetensors: the same bytes as the reference writer, streamed from the caller's memory.
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/status.h"
#include "core/store/safetensors.h"

enum { LENGTH_BYTES = 8 };

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

// New array; NULL with the error text set when memory is exhausted.
static const ts_safetensors_item **sort_items(const ts_safetensors_item *items, int64_t count) {
    const ts_safetensors_item **sorted = ts_malloc((size_t)(count + 1) * sizeof *sorted);
    if (sorted) {
        for (int64_t i = 0; i < count; i++) {
            sorted[i] = &items[i];
        }
        qsort(sorted, (size_t)count, sizeof *sorted, by_alignment_then_name);
    }
    return sorted;
}

// ---- the header

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

// Compact JSON in insertion order. NULL when memory is exhausted, a name is not UTF-8 or is given twice.
static char *header_text(const ts_safetensors_item *const *sorted, int64_t count, const char *const *metadata) {
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
        const int64_t end = offset + item_bytes(sorted[i]);
        failed |= pack_entry(root, sorted[i], offset, end);
        offset = end;
    }
    char *text = failed ? NULL : json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}

// Its length as 8 bytes, the text, and spaces up to a multiple of 8.
static int set_header(ts_safetensors_plan *plan, const char *text) {
    const size_t length = strlen(text), padded = (length + 7) / 8 * 8;
    plan->header = ts_malloc(LENGTH_BYTES + padded);
    if (!plan->header) {
        return TS_ERESOURCE;
    }
    for (int i = 0; i < LENGTH_BYTES; i++) {
        plan->header[i] = (char)(padded >> (8 * i));
    }
    memcpy(plan->header + LENGTH_BYTES, text, length);
    memset(plan->header + LENGTH_BYTES + length, ' ', padded - length);
    plan->header_bytes = (int64_t)(LENGTH_BYTES + padded);
    return TS_OK;
}

static int fill_plan(ts_safetensors_plan *plan, const ts_safetensors_item *items,
                     const ts_safetensors_item *const *sorted, int64_t count, const char *const *metadata,
                     const char *path) {
    char *text = header_text(sorted, count, metadata);
    if (!text) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory for its header, or a tensor's name is not UTF-8 or given twice",
                       path);
    }
    const int status = set_header(plan, text);
    free(text);
    TS_TRY(status);
    plan->offset = ts_malloc((size_t)(count + 1) * sizeof *plan->offset);
    if (!plan->offset) {
        return TS_ERESOURCE;
    }
    plan->bytes = plan->header_bytes;
    for (int64_t i = 0; i < count; i++) {
        plan->offset[sorted[i] - items] = plan->bytes;
        plan->bytes += item_bytes(sorted[i]);
    }
    return TS_OK;
}

int ts_safetensors_plan_make(ts_safetensors_plan *out, const ts_safetensors_item *items, int64_t count,
                             const char *const *metadata, const char *path) {
    *out = (ts_safetensors_plan){0};
    const ts_safetensors_item **sorted = sort_items(items, count);
    const int status = sorted ? fill_plan(out, items, sorted, count, metadata, path) : TS_ERESOURCE;
    free(sorted);
    if (status) {
        ts_safetensors_plan_free(out);
    }
    return status;
}

void ts_safetensors_plan_free(ts_safetensors_plan *plan) {
    free(plan->header);
    free(plan->offset);
    *plan = (ts_safetensors_plan){0};
}

// ---- the file

// Takes the room from the disk now; a file system that cannot gives it as it is written.
static int make_room(int fd, int64_t bytes, const char *path) {
    int failed;
    do {
        failed = fallocate(fd, 0, 0, bytes);
    } while (failed && errno == EINTR);  // a polite signal to the run is no reason to lose a checkpoint
    if (!failed) {
        return TS_OK;
    }
    if (errno != EOPNOTSUPP && errno != ENOSYS) {
        return TS_FILE_FAIL(path, "write");
    }
    return ftruncate(fd, bytes) ? TS_FILE_FAIL(path, "write") : TS_OK;
}

int ts_safetensors_create(const char *path, const ts_safetensors_plan *plan) {
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        return TS_FILE_FAIL(path, "create");
    }
    int status = make_room(fd, plan->bytes, path);
    if (!status) {
        status = ts_file_write_all(fd, plan->header, (size_t)plan->header_bytes, path);
    }
    if (close(fd) && !status) {
        status = TS_FILE_FAIL(path, "close");
    }
    return status;
}

// ---- whole tensors from one process

static int write_items(int fd, const ts_safetensors_plan *plan, const ts_safetensors_item *const *sorted, int64_t count,
                       const char *path) {
    TS_TRY(ts_file_write_all(fd, plan->header, (size_t)plan->header_bytes, path));
    for (int64_t i = 0; i < count; i++) {
        TS_TRY(ts_file_write_all(fd, sorted[i]->data, (size_t)item_bytes(sorted[i]), path));
    }
    return fsync(fd) ? TS_FILE_FAIL(path, "sync") : TS_OK;
}

static int write_planned(const char *path, const ts_safetensors_plan *plan, const ts_safetensors_item *const *sorted,
                         int64_t count) {
    char temporary[TS_PATH_BYTES];
    if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= TS_PATH_BYTES) {
        return TS_FAIL(TS_EINPUT, "%.80s...: the path is longer than %d bytes", path, TS_PATH_BYTES);
    }
    const int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int status = fd < 0 ? TS_FILE_FAIL(temporary, "create") : write_items(fd, plan, sorted, count, temporary);
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

int ts_safetensors_write(const char *path, const ts_safetensors_item *items, int64_t count,
                         const char *const *metadata) {
    ts_safetensors_plan plan;
    TS_TRY(ts_safetensors_plan_make(&plan, items, count, metadata, path));
    const ts_safetensors_item **sorted = sort_items(items, count);
    const int status = sorted ? write_planned(path, &plan, sorted, count) : TS_ERESOURCE;
    free(sorted);
    ts_safetensors_plan_free(&plan);
    return status;
}
