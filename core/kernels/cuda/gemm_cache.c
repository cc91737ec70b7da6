// SPDX-License-Identifier: Apache-2.0
// The algorithms found for products, in memory and in a file that all processes share.
//
// The file is JSON: {"gpu": name, "cublaslt": version, "products": {kind: algorithm}}. A kind is readable; an algorithm
// is the library's 64 opaque bytes, in hexadecimal digits, which it promises to accept again in the same version.
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/kernels/cuda/gemm.h"

enum { KIND_BYTES = 256, DIGITS = 2 * sizeof(cublasLtMatmulAlgo_t), MAX_FILE_BYTES = 16 << 20, MAX_IN_FILE = 20000 };
static const double patience = 30;  // seconds that another process may search

typedef struct entry {
    char kind[KIND_BYTES];
    cublasLtMatmulAlgo_t algorithm;
    bool in_file;
} entry;

static struct {
    entry *entry;
    int count, capacity;
    char folder[TS_PATH_BYTES], path[TS_PATH_BYTES];  // empty: there is no file
    int lock;
    bool has_warned;
} cache;

static void write_kind(const ts_gemm_key *k, char out[KIND_BYTES]) {
    snprintf(out, KIND_BYTES,
             "%s%s %s>%s m=%" PRId64 " n=%" PRId64 " k=%" PRId64 " ld=%" PRId64 ",%" PRId64 ",%" PRId64
             " align=%d,%d,%d%s%s",
             k->transpose_a ? "t" : "n", k->transpose_b ? "t" : "n", k->bf16_ab ? "bf16" : "f32",
             k->bf16_c ? "bf16" : "f32", k->m, k->n, k->k, k->lda, k->ldb, k->ldc, k->align_a, k->align_b, k->align_c,
             k->bias ? " bias" : "", k->accumulate ? " accumulate" : "");
}

// ---- in memory: looked through only when a plan is made

static entry *find(const char *kind) {
    for (int i = 0; i < cache.count; i++) {
        if (strcmp(cache.entry[i].kind, kind) == 0) {
            return &cache.entry[i];
        }
    }
    return NULL;
}

static int add(const char *kind, const cublasLtMatmulAlgo_t *algorithm, bool in_file) {
    entry *e = find(kind);
    if (!e && cache.count == cache.capacity) {
        const int capacity = cache.capacity ? 2 * cache.capacity : 64;
        entry *grown = realloc(cache.entry, (size_t)capacity * sizeof *grown);
        if (!grown) {
            return TS_FAIL(TS_ERESOURCE, "out of memory for the algorithms of matrix products");
        }
        cache.entry = grown;
        cache.capacity = capacity;
    }
    e = e ? e : &cache.entry[cache.count++];
    snprintf(e->kind, sizeof e->kind, "%s", kind);
    e->algorithm = *algorithm;
    e->in_file = in_file;
    return TS_OK;
}

const cublasLtMatmulAlgo_t *ts_gemm_cache_find(const ts_gemm_key *key) {
    char kind[KIND_BYTES];
    write_kind(key, kind);
    const entry *e = find(kind);
    return e ? &e->algorithm : NULL;
}

// ---- the file

// One warning, which says which file and why: what follows from one that cannot be used is always the same.
static void warn(const char *what) {
    if (!cache.has_warned) {
        TS_WARN("%.600s; algorithms of matrix products are searched anew", what);
    }
    cache.has_warned = true;
}

static void to_digits(const cublasLtMatmulAlgo_t *algorithm, char out[DIGITS + 1]) {
    for (size_t i = 0; i < sizeof *algorithm; i++) {
        snprintf(out + 2 * i, 3, "%02x", ((const unsigned char *)algorithm)[i]);
    }
}

static bool from_digits(const char *text, cublasLtMatmulAlgo_t *out) {
    if (strlen(text) != DIGITS || strspn(text, "0123456789abcdef") != DIGITS) {
        return false;
    }
    for (size_t i = 0; i < sizeof *out; i++) {
        const char pair[] = {text[2 * i], text[2 * i + 1], 0};
        ((unsigned char *)out)[i] = (unsigned char)strtoul(pair, NULL, 16);
    }
    return true;
}

// What this process has found or taken already stays as it is: one algorithm for each kind of product.
static int read_products(const json_t *file) {
    const json_t *products;
    const char *gpu, *kind;
    int64_t version;
    TS_TRY(ts_json_string(file, "gpu", cache.path, &gpu));
    TS_TRY(ts_json_int(file, "cublaslt", cache.path, 0, INT64_MAX, &version));
    TS_TRY(ts_json_object(file, "products", cache.path, &products));
    if (strcmp(gpu, ts_cuda_get_properties()->name) != 0 || version != (int64_t)cublasLtGetVersion()) {
        return TS_FAIL(TS_EINPUT, "%s: made for another GPU or library", cache.path);
    }
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)products, kind, value) {
        cublasLtMatmulAlgo_t algorithm;
        const bool fits = json_is_string(value) && strlen(kind) < KIND_BYTES;
        if (!fits || !from_digits(json_string_value(value), &algorithm)) {
            return TS_FAIL(TS_EINPUT, "%s: \"%.80s\" has no algorithm", cache.path, kind);
        }
        if (!find(kind)) {
            TS_TRY(add(kind, &algorithm, true));
        }
    }
    return TS_OK;
}

static void read_file(void) {
    json_t *file = NULL;
    if (!cache.path[0] || !ts_path_exists(cache.path)) {
        return;
    }
    if (ts_json_read(cache.path, MAX_FILE_BYTES, &file) || read_products(file)) {
        warn(ts_error_text());
    }
    json_decref(file);
}

static json_t *products_as_json(void) {
    json_t *products = json_object();
    const int from = cache.count > MAX_IN_FILE ? cache.count - MAX_IN_FILE : 0;
    for (int i = from; products && i < cache.count; i++) {
        char digits[DIGITS + 1];
        to_digits(&cache.entry[i].algorithm, digits);
        if (cache.entry[i].in_file && json_object_set_new(products, cache.entry[i].kind, json_string(digits))) {
            json_decref(products);
            products = NULL;
        }
    }
    return products;
}

static void write_file(void) {
    json_t *products = products_as_json();
    json_t *file = products ? json_pack("{s:s, s:I, s:o}", "gpu", ts_cuda_get_properties()->name, "cublaslt",
                                        (json_int_t)cublasLtGetVersion(), "products", products)
                            : NULL;
    const int status = file ? ts_json_write_atomic(cache.path, file)
                            : TS_FAIL(TS_ERESOURCE, "%s: out of memory for its text", cache.path);
    if (status) {
        warn(ts_error_text());
    }
    json_decref(file);
}

int ts_gemm_cache_add(const ts_gemm_key *key, const cublasLtMatmulAlgo_t *algorithm, bool in_file) {
    char kind[KIND_BYTES];
    write_kind(key, kind);
    TS_TRY(add(kind, algorithm, in_file));
    if (in_file) {
        write_file();
    }
    return TS_OK;
}

void ts_gemm_cache_refuse(const ts_gemm_key *key) {
    char kind[KIND_BYTES];
    write_kind(key, kind);
    entry *e = find(kind);
    if (e) {
        (void)TS_FAIL(TS_EINPUT, "%s: cuBLASLt refuses the algorithm of \"%.200s\"", cache.path, kind);
        warn(ts_error_text());
        *e = cache.entry[--cache.count];
    }
}

// ---- one process at a time

bool ts_gemm_cache_lock(void) {
    if (!cache.path[0]) {
        return false;
    }
    if (ts_folder_lock(cache.folder, patience, &cache.lock)) {
        warn(ts_error_text());
        return false;
    }
    read_file();
    return true;
}

void ts_gemm_cache_unlock(void) {
    close(cache.lock);
}

// ---- opening

// Makes the folder, and the file's name from those of the GPU and the library. Relative paths are no cache folders.
static bool name_file(void) {
    const char *const base = getenv("XDG_CACHE_HOME"), *const home = getenv("HOME");
    const bool has_base = base && base[0] == '/';
    if (!has_base && !(home && home[0] == '/')) {
        return false;
    }
    char gpu[sizeof ts_cuda_get_properties()->name], name[256], parent[TS_PATH_BYTES];
    snprintf(gpu, sizeof gpu, "%s", ts_cuda_get_properties()->name);
    for (char *c = gpu; *c; c++) {
        *c = (char)(isalnum((unsigned char)*c) ? *c : '-');
    }
    snprintf(name, sizeof name, "gemm-%s-%zu.json", gpu, cublasLtGetVersion());
    return snprintf(parent, sizeof parent, "%s", has_base ? base : home) < (int)sizeof parent &&
           !ts_path_join(cache.folder, sizeof cache.folder, parent, has_base ? "tessera" : ".cache/tessera") &&
           !ts_path_join(cache.path, sizeof cache.path, cache.folder, name) && !ts_folder_make(cache.folder);
}

void ts_gemm_cache_open(void) {
    if (!name_file()) {
        TS_DEBUG("no folder for the algorithms of matrix products: set XDG_CACHE_HOME to one that can be written");
        cache.path[0] = 0;
        return;
    }
    read_file();
}
