// SPDX-License-Identifier: Apache-2.0
// Reading safetensors: every claim of a header is checked against the file before anything is believed or allocated.
//
//   u64 little-endian n | n bytes of JSON, padded with spaces | tensor data up to the end of the file
//   {"__metadata__": {text: text}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
#include "core/store/safetensors.h"

#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status.h"

enum {
    MAX_HEADER_BYTES = 100 * 1000 * 1000,  // the reference's limit
    MAX_INDEX_BYTES = 100 * 1000 * 1000,
    MAX_SHARDS = 10000,
    CONVERT_CHUNK = 16384  // elements converted at a time
};

typedef struct shard {
    char *path;
    const char *name;  // within path
    int fd;
    int64_t bytes;       // of the file
    int64_t data_start;  // 8 + header length
    uint64_t header_sum;
    json_t *header;  // owns the names of the tensors
} shard;

struct ts_safetensors {
    shard *shard;
    int shard_count;
    ts_safetensors_entry *entry;  // sorted by name once opening is done
    int64_t count, capacity;
};

// ---- one file

static bool dtype_parse(const char *name, ts_dtype *out) {
    static const ts_dtype known[] = {TS_F32, TS_BF16, TS_F16, TS_F64, TS_I64, TS_I32, TS_U16, TS_U8, TS_BOOL};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (!strcmp(name, ts_dtype_name(known[i]))) {
            *out = known[i];
            return true;
        }
    }
    return false;
}

static int parse_shape(const json_t *array, const char *path, const char *name, ts_shape *out) {
    if (!json_is_array(array)) {
        return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\": \"shape\" is missing or not a list; write the file again", path,
                       name);
    }
    if (json_array_size(array) > TS_MAX_DIMS) {
        return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\": has %zu dimensions, at most %d are supported; reshape it", path,
                       name, json_array_size(array), TS_MAX_DIMS);
    }
    *out = (ts_shape){.ndim = (int)json_array_size(array)};
    for (int i = 0; i < out->ndim; i++) {
        const json_t *extent = json_array_get(array, (size_t)i);
        if (!json_is_integer(extent) || json_integer_value(extent) < 0) {
            return TS_FAIL(TS_EINPUT,
                           "%s: tensor \"%s\": dimension %d is not a non-negative integer below 2^63; write the file "
                           "again",
                           path, name, i);
        }
        out->dim[i] = json_integer_value(extent);
    }
    return TS_OK;
}

// Bytes of a tensor, or -1 when the product leaves 63 bits. A zero extent does not excuse an overflow elsewhere.
static int64_t checked_bytes(ts_shape shape, ts_dtype dtype) {
    int64_t bytes = (int64_t)ts_dtype_bytes(dtype);
    bool empty = false;
    for (int i = 0; i < shape.ndim; i++) {
        empty = empty || shape.dim[i] == 0;
        if (shape.dim[i] && __builtin_mul_overflow(bytes, shape.dim[i], &bytes)) {
            return -1;
        }
    }
    return empty ? 0 : bytes;
}

static int parse_entry(const shard *s, const char *name, const json_t *value, ts_safetensors_entry *out) {
    const char *dtype = json_string_value(json_object_get(value, "dtype"));
    const json_t *offsets = json_object_get(value, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (!dtype) {
        return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\": \"dtype\" is missing or not text; write the file again", s->path,
                       name);
    }
    if (!dtype_parse(dtype, &out->dtype)) {
        return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\": dtype \"%s\" is not supported; convert it to F32, BF16 or F16",
                       s->path, name, dtype);
    }
    TS_TRY(parse_shape(json_object_get(value, "shape"), s->path, name, &out->shape));
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end)) {
        return TS_FAIL(TS_EINPUT,
                       "%s: tensor \"%s\": \"data_offsets\" is not a pair of integers below 2^63; write the file again",
                       s->path, name);
    }
    const int64_t first = json_integer_value(begin), last = json_integer_value(end);
    if (first < 0 || last < first || last > s->bytes - s->data_start) {
        return TS_FAIL(
            TS_EINPUT,
            "%s: tensor \"%s\": bytes %lld to %lld lie outside the %lld bytes of data; the file is truncated "
            "or damaged: fetch it again",
            s->path, name, (long long)first, (long long)last, (long long)(s->bytes - s->data_start));
    }
    const int64_t bytes = checked_bytes(out->shape, out->dtype);
    if (bytes != last - first) {
        char text[128];
        return TS_FAIL(TS_EINPUT,
                       "%s: tensor \"%s\": shape %s of %s does not fill its %lld bytes; write the file again", s->path,
                       name, ts_shape_text(out->shape, text, sizeof text), dtype, (long long)(last - first));
    }
    out->name = name;
    out->offset = s->data_start + first;
    out->bytes = bytes;
    return TS_OK;
}

static int check_metadata(const shard *s) {
    const json_t *metadata = json_object_get(s->header, "__metadata__");
    if (metadata && !json_is_object(metadata)) {
        return TS_FAIL(TS_EINPUT, "%s: \"__metadata__\" is not an object; write the file again", s->path);
    }
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)metadata, key, value) {
        if (!json_is_string(value)) {
            return TS_FAIL(TS_EINPUT, "%s: \"__metadata__\": \"%s\" is not text; write the file again", s->path, key);
        }
    }
    return TS_OK;
}

static int read_header(shard *s) {
    struct stat about;
    s->fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // never hangs on a named pipe
    if (s->fd < 0 || fstat(s->fd, &about)) {
        return TS_FILE_FAIL(s->path, "open");
    }
    if (!S_ISREG(about.st_mode)) {
        return TS_FAIL(TS_EINPUT, "%s: is not a regular file; name a .safetensors file or its folder", s->path);
    }
    s->bytes = about.st_size;
    uint8_t word[8];
    if (s->bytes < 8) {
        return TS_FAIL(TS_EINPUT, "%s: has %lld bytes, a safetensors file has at least 8; fetch it again", s->path,
                       (long long)s->bytes);
    }
    TS_TRY(ts_file_pread_all(s->fd, word, sizeof word, 0, s->path));
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) {
        length = length << 8 | word[i];
    }
    if (length > MAX_HEADER_BYTES || length > (uint64_t)s->bytes - 8) {
        return TS_FAIL(TS_EINPUT,
                       "%s: claims a header of %llu bytes, the file has %lld and the limit is %d; not a safetensors "
                       "file, or truncated: fetch it again",
                       s->path, (unsigned long long)length, (long long)s->bytes, MAX_HEADER_BYTES);
    }
    s->data_start = 8 + (int64_t)length;
    char *const bytes = ts_malloc((size_t)length + sizeof word + 1);
    if (!bytes) {
        return TS_ERESOURCE;
    }
    char *const text = bytes + sizeof word;
    int status = ts_file_pread_all(s->fd, bytes, (size_t)length + sizeof word, 0, s->path);
    text[length] = '\0';
    s->header_sum = XXH3_64bits(bytes, (size_t)length + sizeof word);
    if (!status && text[0] != '{') {
        status = TS_FAIL(TS_EINPUT, "%s: the header does not start with '{'; not a safetensors file", s->path);
    }
    if (!status) {
        status = ts_json_parse(text, (size_t)length, s->path, &s->header);
    }
    free(bytes);
    return status;
}

static int by_offset(const void *a, const void *b) {
    const ts_safetensors_entry *x = a, *y = b;
    if (x->offset != y->offset) {
        return x->offset < y->offset ? -1 : 1;
    }
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);  // empty tensors first: they take no room
}

// Ranges must follow each other without holes and overlaps, from the start of the data to the end of the file.
static int check_contiguous(const shard *s, ts_safetensors_entry *entry, int64_t count) {
    qsort(entry, (size_t)count, sizeof *entry, by_offset);
    int64_t next = s->data_start;
    for (int64_t i = 0; i < count; i++) {
        if (entry[i].offset != next) {
            return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\": starts at byte %lld, %s byte %lld; write the file again",
                           s->path, entry[i].name, (long long)entry[i].offset,
                           entry[i].offset < next ? "overlapping the tensor that ends at"
                                                  : "leaving a hole from the last end at",
                           (long long)next);
        }
        next += entry[i].bytes;
    }
    if (next != s->bytes) {
        return TS_FAIL(TS_EINPUT, "%s: tensors end at byte %lld, the file at %lld; it is damaged: fetch it again",
                       s->path, (long long)next, (long long)s->bytes);
    }
    return TS_OK;
}

static int add_shard(ts_safetensors *file, const char *path) {
    shard *s = &file->shard[file->shard_count];
    *s = (shard){.path = strdup(path), .fd = -1};
    file->shard_count++;
    if (!s->path) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory to open it", path);
    }
    s->name = ts_path_base(s->path);
    TS_TRY(read_header(s));
    TS_TRY(check_metadata(s));
    const int64_t first = file->count, most = first + (int64_t)json_object_size(s->header);
    ts_safetensors_entry *grown = realloc(file->entry, (size_t)(most + 1) * sizeof *grown);
    if (!grown) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory for %lld tensors", path, (long long)most);
    }
    file->entry = grown;
    const char *name;
    json_t *value;
    json_object_foreach(s->header, name, value) {
        if (!strcmp(name, "__metadata__")) {
            continue;
        }
        if (!json_is_object(value)) {
            return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\": is not an object; write the file again", path, name);
        }
        TS_TRY(parse_entry(s, name, value, &file->entry[file->count]));
        file->entry[file->count++].file = file->shard_count - 1;
    }
    return check_contiguous(s, file->entry + first, file->count - first);
}

// ---- a sharded index

static int by_name(const void *a, const void *b) {
    return strcmp(((const ts_safetensors_entry *)a)->name, ((const ts_safetensors_entry *)b)->name);
}

static int find_shard(const ts_safetensors *file, const char *name) {
    for (int i = 0; i < file->shard_count; i++) {
        if (!strcmp(file->shard[i].name, name)) {
            return i;
        }
    }
    return -1;
}

static int open_shards(ts_safetensors *file, const char *index_path, const json_t *weight_map) {
    const size_t folder = (size_t)(ts_path_base(index_path) - index_path);
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)weight_map, tensor, value) {
        const char *name = json_string_value(value);
        if (!name || !*name || strchr(name, '/') || strchr(name, '\\')) {
            return TS_FAIL(TS_EINPUT,
                           "%s: tensor \"%s\": its shard must be the plain name of a file beside the index; mend the "
                           "index",
                           index_path, tensor);
        }
        if (find_shard(file, name) >= 0) {
            continue;
        }
        char path[TS_PATH_BYTES];
        if (folder + strlen(name) >= sizeof path || file->shard_count == MAX_SHARDS) {
            return TS_FAIL(TS_EINPUT, "%s: shard names are too long or more than %d; mend the index", index_path,
                           MAX_SHARDS);
        }
        memcpy(path, index_path, folder);
        strcpy(path + folder, name);
        shard *grown = realloc(file->shard, (size_t)(file->shard_count + 1) * sizeof *grown);
        if (!grown) {
            return TS_FAIL(TS_ERESOURCE, "%s: no memory for its shards", index_path);
        }
        file->shard = grown;
        TS_TRY(add_shard(file, path));
    }
    return TS_OK;
}

// The index and the shards must tell the same story: each tensor in the shard it is said to be in, and none besides.
static int check_index(const ts_safetensors *file, const char *index_path, const json_t *weight_map) {
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)weight_map, tensor, value) {
        const ts_safetensors_entry *entry = ts_safetensors_find(file, tensor);
        if (!entry || strcmp(file->shard[entry->file].name, json_string_value(value)) != 0) {
            return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\": is not in its shard %s; fetch index and shards again",
                           index_path, tensor, json_string_value(value));
        }
    }
    for (int64_t i = 0; i < file->count; i++) {
        const ts_safetensors_entry *entry = &file->entry[i];
        if (!json_object_get(weight_map, entry->name)) {
            return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\": is in %s but not in the index; fetch index and shards again",
                           index_path, entry->name, file->shard[entry->file].name);
        }
    }
    return TS_OK;
}

static int open_index(ts_safetensors *file, const char *path) {
    json_t *root = NULL;
    const json_t *weight_map = NULL;
    int status = TS_OK;
    TS_TRY_GOTO(status, ts_json_read(path, MAX_INDEX_BYTES, &root), done);
    TS_TRY_GOTO(status, ts_json_object(root, "weight_map", path, &weight_map), done);
    TS_TRY_GOTO(status, open_shards(file, path, weight_map), done);
    qsort(file->entry, (size_t)file->count, sizeof *file->entry, by_name);
    for (int64_t i = 1; i < file->count; i++) {
        if (!strcmp(file->entry[i - 1].name, file->entry[i].name)) {
            status = TS_FAIL(TS_EINPUT, "%s: tensor \"%s\": is in %s and in %s; keep one", path, file->entry[i].name,
                             file->shard[file->entry[i - 1].file].name, file->shard[file->entry[i].file].name);
            goto done;
        }
    }
    status = check_index(file, path, weight_map);
done:
    json_decref(root);
    return status;
}

// ---- finding the file

static bool ends_with(const char *text, const char *ending) {
    const size_t n = strlen(text), m = strlen(ending);
    return n >= m && !strcmp(text + n - m, ending);
}

// The only file of a folder with this ending; NULL when there are none or several.
static const char *only_name(char **names, int64_t count, const char *ending) {
    const char *found = NULL;
    for (int64_t i = 0; i < count; i++) {
        if (ends_with(names[i], ending)) {
            if (found) {
                return NULL;
            }
            found = names[i];
        }
    }
    return found;
}

// Which file of a folder holds the weights: the two usual names, else the only index, else the only file.
static int resolve_folder(const char *folder, char *out, size_t out_bytes) {
    static const char *const usual[] = {"diffusion_pytorch_model.safetensors",
                                        "diffusion_pytorch_model.safetensors.index.json", "model.safetensors",
                                        "model.safetensors.index.json"};
    for (size_t i = 0; i < sizeof usual / sizeof usual[0]; i++) {
        TS_TRY(ts_path_join(out, out_bytes, folder, usual[i]));
        if (ts_path_exists(out)) {
            return TS_OK;
        }
    }
    char **names = NULL;
    int64_t count = 0;
    TS_TRY(ts_folder_list(folder, &names, &count));
    const char *name = only_name(names, count, ".safetensors.index.json");
    if (!name) {
        name = only_name(names, count, ".safetensors");
    }
    const int status =
        name ? ts_path_join(out, out_bytes, folder, name)
             : TS_FAIL(TS_EINPUT, "%s: holds no .safetensors file, or several without an index; name one", folder);
    ts_folder_list_free(names, count);
    return status;
}

int ts_safetensors_open(ts_safetensors **out, const char *path) {
    *out = NULL;
    char resolved[TS_PATH_BYTES];
    if (ts_path_is_folder(path)) {
        TS_TRY(resolve_folder(path, resolved, sizeof resolved));
        path = resolved;
    }
    ts_safetensors *file = ts_calloc(1, sizeof *file);
    if (!file) {
        return TS_ERESOURCE;
    }
    int status;
    if (ends_with(path, ".json")) {
        status = open_index(file, path);
    } else {
        file->shard = ts_calloc(1, sizeof *file->shard);
        status = file->shard ? add_shard(file, path) : TS_ERESOURCE;
        if (!status) {
            qsort(file->entry, (size_t)file->count, sizeof *file->entry, by_name);
        }
    }
    if (status) {
        ts_safetensors_close(&file);
    }
    *out = file;
    return status;
}

void ts_safetensors_close(ts_safetensors **file) {
    if (!*file) {
        return;
    }
    for (int i = 0; i < (*file)->shard_count; i++) {
        shard *s = &(*file)->shard[i];
        if (s->fd >= 0) {
            close(s->fd);
        }
        json_decref(s->header);
        free(s->path);
    }
    free((*file)->shard);
    free((*file)->entry);
    free(*file);
    *file = NULL;
}

// ---- looking and reading

int64_t ts_safetensors_count(const ts_safetensors *file) {
    return file->count;
}

uint64_t ts_safetensors_header_sum(const ts_safetensors *file) {
    TS_ASSERT(file->shard_count == 1);
    return file->shard[0].header_sum;
}

int ts_safetensors_handle(const ts_safetensors *file) {
    TS_ASSERT(file->shard_count == 1);
    return file->shard[0].fd;
}

const char *ts_safetensors_path(const ts_safetensors *file) {
    TS_ASSERT(file->shard_count == 1);
    return file->shard[0].path;
}

const ts_safetensors_entry *ts_safetensors_at(const ts_safetensors *file, int64_t index) {
    return &file->entry[index];
}

const ts_safetensors_entry *ts_safetensors_find(const ts_safetensors *file, const char *name) {
    const ts_safetensors_entry key = {.name = name};
    return file->count ? bsearch(&key, file->entry, (size_t)file->count, sizeof key, by_name) : NULL;
}

const char *ts_safetensors_metadata(const ts_safetensors *file, const char *key) {
    for (int i = 0; i < file->shard_count; i++) {
        const json_t *metadata = json_object_get(file->shard[i].header, "__metadata__");
        const char *value = json_string_value(json_object_get(metadata, key));
        if (value) {
            return value;
        }
    }
    return NULL;
}

int ts_safetensors_read(const ts_safetensors *file, const ts_safetensors_entry *entry, int64_t first, int64_t n,
                        void *out, ts_dtype dtype) {
    const shard *s = &file->shard[entry->file];
    const size_t size = ts_dtype_bytes(entry->dtype), out_size = ts_dtype_bytes(dtype);
    const int64_t total = entry->bytes / (int64_t)size;
    if (first < 0 || n < 0 || first > total || n > total - first) {
        return TS_FAIL(TS_EINTERNAL, "%s: tensor \"%s\": elements %lld + %lld of %lld were asked for", s->path,
                       entry->name, (long long)first, (long long)n, (long long)total);
    }
    const int64_t offset = entry->offset + first * (int64_t)size;
    if (dtype == entry->dtype) {
        return ts_file_pread_all(s->fd, out, (size_t)n * size, offset, s->path);
    }
    uint8_t buffer[CONVERT_CHUNK * 8];
    for (int64_t done = 0; done < n; done += CONVERT_CHUNK) {
        const int64_t part = n - done < CONVERT_CHUNK ? n - done : CONVERT_CHUNK;
        TS_TRY(ts_file_pread_all(s->fd, buffer, (size_t)part * size, offset + done * (int64_t)size, s->path));
        const int status = ts_convert((char *)out + (size_t)done * out_size, dtype, buffer, entry->dtype, part);
        if (status) {
            return ts_fail_context(status, "%s: tensor \"%s\"", s->path, entry->name);
        }
    }
    return TS_OK;
}

int ts_safetensors_check(const ts_safetensors *file, const char *name, ts_shape shape) {
    const ts_safetensors_entry *entry = ts_safetensors_find(file, name);
    if (!entry) {
        return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\": is missing; these weights are of another model",
                       file->shard_count ? file->shard[0].path : "index", name);
    }
    if (!ts_shape_equal(entry->shape, shape)) {
        char has[128], wanted[128];
        return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\": shape %s, wanted %s; config.json and weights do not match",
                       file->shard[entry->file].path, name, ts_shape_text(entry->shape, has, sizeof has),
                       ts_shape_text(shape, wanted, sizeof wanted));
    }
    return TS_OK;
}

int ts_safetensors_read_f32(const ts_safetensors *file, const char *name, ts_shape shape, float *out) {
    TS_TRY(ts_safetensors_check(file, name, shape));
    const ts_safetensors_entry *entry = ts_safetensors_find(file, name);
    const int64_t n = ts_shape_count(shape);
    TS_TRY(ts_safetensors_read(file, entry, 0, n, out, TS_F32));
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(out[i])) {
            return TS_FAIL(TS_EINPUT, "%s: tensor \"%s\": element %lld is %s; these weights are damaged",
                           file->shard[entry->file].path, name, (long long)i, isnan(out[i]) ? "NaN" : "infinite");
        }
    }
    return TS_OK;
}
