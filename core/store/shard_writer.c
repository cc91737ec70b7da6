// SPDX-License-Identifier: Apache-2.0
// Writing a shard. HDF5 wants the size of a contiguous data set in advance and clips come one by one: latents go to an
// unlinked spool file beside the shard and are copied to their place when the count is known.
#include <fcntl.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/file.h"
#include "core/base/status.h"
#include "core/store/shard.h"

enum { COPY_BLOCK = 4 << 20, IMAGE_STEP = 4096 };

// Texts one after the other; `end` has the end of each.
typedef struct heap {
    char *bytes;
    int64_t *offset;  // [count + 1]
    size_t used, room;
} heap;

typedef struct row {
    uint64_t id;
    double start, end, fps;
} row;

struct ts_shard_writer {
    char path[TS_PATH_BYTES], temporary[TS_PATH_BYTES];
    ts_shape shape;
    uint64_t codec_fingerprint;
    int spool;
    uint16_t *clip;  // [T, H, W, C] one clip as bf16
    int64_t elements, count, room;
    row *row;
    heap caption, source;
};

// ---- gathering clips

static int open_spool(ts_shard_writer *w) {
    char spool[TS_PATH_BYTES];
    if (snprintf(spool, sizeof spool, "%s.spool", w->path) >= TS_PATH_BYTES) {
        return TS_FAIL(TS_EINPUT, "%.80s...: the path is longer than %d bytes", w->path, TS_PATH_BYTES);
    }
    snprintf(w->temporary, sizeof w->temporary, "%.*s.tmp", TS_PATH_BYTES - 8, w->path);
    w->spool = open(spool, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (w->spool < 0) {
        return TS_FILE_FAIL(spool, "create");
    }
    unlink(spool);  // whatever happens, it leaves nothing behind
    return TS_OK;
}

int ts_shard_writer_open(ts_shard_writer **out, const char *path, ts_shape latent_shape, uint64_t codec_fingerprint) {
    *out = NULL;
    if (latent_shape.ndim != 4 || ts_shape_count(latent_shape) < 1) {
        return TS_FAIL(TS_EINTERNAL, "%s: a latent has four dimensions", path);
    }
    ts_shard_writer *w = ts_calloc(1, sizeof *w);
    if (!w) {
        return TS_ERESOURCE;
    }
    snprintf(w->path, sizeof w->path, "%s", path);
    w->shape = latent_shape;
    w->codec_fingerprint = codec_fingerprint;
    w->elements = ts_shape_count(latent_shape);
    w->spool = -1;
    w->clip = ts_malloc((size_t)w->elements * sizeof *w->clip);
    const int status = w->clip ? open_spool(w) : TS_ERESOURCE;
    if (status) {
        ts_shard_writer_abandon(&w);
    }
    *out = w;
    return status;
}

static int grow_rows(ts_shard_writer *w) {
    if (w->count < w->room) {
        return TS_OK;
    }
    const int64_t room = w->room ? 2 * w->room : 256;
    row *rows = realloc(w->row, (size_t)room * sizeof *rows);
    w->row = rows ? rows : w->row;
    int64_t *caption = realloc(w->caption.offset, (size_t)(room + 1) * sizeof *caption);
    w->caption.offset = caption ? caption : w->caption.offset;
    int64_t *source = realloc(w->source.offset, (size_t)(room + 1) * sizeof *source);
    w->source.offset = source ? source : w->source.offset;
    if (!rows || !caption || !source) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory for %lld clips", w->path, (long long)room);
    }
    w->room = room;
    return TS_OK;
}

static int heap_reserve(heap *h, size_t bytes, const char *path) {
    if (h->used + bytes <= h->room) {
        return TS_OK;
    }
    const size_t room = 2 * (h->used + bytes) + 4096;
    char *grown = realloc(h->bytes, room);
    if (!grown) {
        return TS_FAIL(TS_ERESOURCE, "%s: no memory for %zu bytes of text", path, room);
    }
    h->bytes = grown;
    h->room = room;
    return TS_OK;
}

static void heap_add(heap *h, int64_t index, const char *text) {
    const size_t bytes = strlen(text);
    memcpy(h->bytes + h->used, text, bytes);
    h->offset[index] = (int64_t)h->used;
    h->used += bytes;
    h->offset[index + 1] = (int64_t)h->used;
}

static int check_clip(const ts_shard_writer *w, const float *latent, const ts_clip_record *clip) {
    if (!ts_text_is_utf8(clip->caption, strlen(clip->caption)) ||
        !ts_text_is_utf8(clip->source, strlen(clip->source))) {
        return TS_FAIL(TS_EINPUT, "%s: its name or its caption is not UTF-8; mend the caption file", clip->source);
    }
    for (int64_t i = 0; i < w->elements; i++) {
        if (!isfinite(latent[i])) {
            return TS_FAIL(TS_EINPUT, "%s: its latent is not finite; the codec is damaged", clip->source);
        }
    }
    return TS_OK;
}

int ts_shard_writer_add(ts_shard_writer *w, const float *latent, const ts_clip_record *clip) {
    TS_TRY(check_clip(w, latent, clip));
    TS_TRY(grow_rows(w));
    TS_TRY(heap_reserve(&w->caption, strlen(clip->caption), w->path));
    TS_TRY(heap_reserve(&w->source, strlen(clip->source), w->path));
    for (int64_t i = 0; i < w->elements; i++) {
        w->clip[i] = ts_f32_to_bf16(latent[i]);
    }
    const int64_t bytes = w->elements * (int64_t)sizeof *w->clip;
    if (lseek(w->spool, w->count * bytes, SEEK_SET) < 0) {  // a failed write may have left half a clip
        return TS_FILE_FAIL(w->path, "seek in its spool");
    }
    TS_TRY(ts_file_write_all(w->spool, w->clip, (size_t)bytes, w->path));
    heap_add(&w->caption, w->count, clip->caption);
    heap_add(&w->source, w->count, clip->source);
    const uint64_t id =
        XXH3_64bits_withSeed(&clip->start, sizeof clip->start, XXH3_64bits(clip->source, strlen(clip->source)));
    w->row[w->count++] = (row){id, clip->start, clip->end, clip->fps};
    return TS_OK;
}

// ---- the HDF5 file

// A creation list without time stamps: equal clips make equal files.
static hid_t untimed(hid_t kind) {
    const hid_t create = H5Pcreate(kind);
    if (create >= 0 && H5Pset_obj_track_times(create, false) < 0) {
        H5Pclose(create);
        return H5I_INVALID_HID;
    }
    return create;
}

// A contiguous data set, allocated at once so that it has an offset; written when data is given.
static bool put_dataset(hid_t file, const char *name, hid_t type, int rank, const hsize_t *dims, const void *data,
                        haddr_t *offset) {
    const hid_t create = untimed(H5P_DATASET_CREATE), space = H5Screate_simple(rank, dims, NULL);
    bool good = H5Pset_layout(create, H5D_CONTIGUOUS) >= 0 && H5Pset_alloc_time(create, H5D_ALLOC_TIME_EARLY) >= 0 &&
                H5Pset_fill_time(create, H5D_FILL_TIME_NEVER) >= 0;
    const hid_t set = good ? H5Dcreate2(file, name, type, space, H5P_DEFAULT, create, H5P_DEFAULT) : H5I_INVALID_HID;
    good = set >= 0 && (!data || H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    if (good && offset) {
        *offset = H5Dget_offset(set);
        good = *offset != HADDR_UNDEF;
    }
    if (set >= 0) {
        good = H5Dclose(set) >= 0 && good;
    }
    H5Sclose(space);
    H5Pclose(create);
    return good;
}

static bool put_attribute(hid_t file, const char *name, hid_t type, const void *value) {
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t attribute = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    bool good = attribute >= 0 && H5Awrite(attribute, type, value) >= 0;
    if (attribute >= 0) {
        good = H5Aclose(attribute) >= 0 && good;
    }
    H5Sclose(space);
    return good;
}

static bool put_group(hid_t file, const char *name) {
    const hid_t create = untimed(H5P_GROUP_CREATE);
    const hid_t group = H5Gcreate2(file, name, H5P_DEFAULT, create, H5P_DEFAULT);
    H5Pclose(create);
    return group >= 0 && H5Gclose(group) >= 0;
}

// An empty heap has one unused byte: an empty data set would have no offset.
static bool put_heap(hid_t file, const char *group, const heap *h, int64_t count) {
    char name[64];
    const hsize_t bytes = h->used ? h->used : 1, ends = (hsize_t)count + 1;
    snprintf(name, sizeof name, "%s/bytes", group);
    if (!put_group(file, group) || !put_dataset(file, name, H5T_STD_U8LE, 1, &bytes, h->bytes ? h->bytes : "", NULL)) {
        return false;
    }
    snprintf(name, sizeof name, "%s/offsets", group);
    return put_dataset(file, name, H5T_STD_I64LE, 1, &ends, h->offset, NULL);
}

// One field of the rows as a column. Every field has 8 bytes.
static bool put_column(hid_t file, const ts_shard_writer *w, const char *name, hid_t type, size_t field) {
    uint64_t *column = ts_malloc((size_t)w->count * sizeof *column);
    if (!column) {
        return false;
    }
    for (int64_t i = 0; i < w->count; i++) {
        memcpy(&column[i], (const char *)&w->row[i] + field, sizeof *column);
    }
    const hsize_t count = (hsize_t)w->count;
    const bool good = put_dataset(file, name, type, 1, &count, column, NULL);
    free(column);
    return good;
}

static bool put_all(hid_t file, const ts_shard_writer *w, haddr_t *latents) {
    const hsize_t dims[5] = {(hsize_t)w->count, (hsize_t)w->shape.dim[0], (hsize_t)w->shape.dim[1],
                             (hsize_t)w->shape.dim[2], (hsize_t)w->shape.dim[3]};
    const int64_t version = TS_DATASET_VERSION;
    return put_attribute(file, "version", H5T_STD_I64LE, &version) &&
           put_attribute(file, "codec_fingerprint", H5T_STD_U64LE, &w->codec_fingerprint) &&
           put_heap(file, "/caption", &w->caption, w->count) && put_group(file, "/clip") &&
           put_heap(file, "/clip/source", &w->source, w->count) &&
           put_column(file, w, "/clip/id", H5T_STD_U64LE, offsetof(row, id)) &&
           put_column(file, w, "/clip/start", H5T_IEEE_F64LE, offsetof(row, start)) &&
           put_column(file, w, "/clip/end", H5T_IEEE_F64LE, offsetof(row, end)) &&
           put_column(file, w, "/clip/fps", H5T_IEEE_F64LE, offsetof(row, fps)) &&
           put_dataset(file, "/latents", H5T_STD_U16LE, 5, dims, NULL, latents);
}

// ---- laying the file out in memory

// HDF5 crashes at exit when a file of its own has met a full disk. So it lays the file out in memory, and writing to
// the disk is ours, with ordinary errors. The image reaches as far as HDF5 has written: latents come last, are never
// written by it, and take no memory.
typedef struct layout {
    char *image;
    uint64_t image_bytes;  // present; zeros behind
    uint64_t bytes;        // of the file
    uint64_t latents;      // where they go
} layout;

static void *image_grow(void *image, size_t bytes, H5FD_file_image_op_t op, void *data) {
    layout *l = data;
    char *grown = realloc(image, bytes);
    (void)op;
    if (grown) {
        if (bytes > l->image_bytes) {
            memset(grown + l->image_bytes, 0, bytes - l->image_bytes);
        }
        l->image = grown;
        l->image_bytes = bytes;
    }
    return grown;
}

static herr_t image_keep(void *image, H5FD_file_image_op_t op, void *data) {
    (void)image, (void)op, (void)data;
    return 0;  // the layout owns it
}

static void *same_data(void *data) {
    return data;
}

static herr_t keep_data(void *data) {
    (void)data;
    return 0;
}

// What this leaves in layout->image must be freed, also on failure.
static int lay_out(const ts_shard_writer *w, layout *l) {
    const H5FD_file_image_callbacks_t callbacks = {.image_realloc = image_grow,
                                                   .image_free = image_keep,
                                                   .udata_copy = same_data,
                                                   .udata_free = keep_data,
                                                   .udata = l};
    const hid_t access = ts_shard_access(), create = untimed(H5P_FILE_CREATE);
    hid_t file = H5I_INVALID_HID;
    hsize_t bytes = 0;
    if (access >= 0 && create >= 0 && H5Pset_fapl_core(access, IMAGE_STEP, false) >= 0 &&
        H5Pset_file_image_callbacks(access, (H5FD_file_image_callbacks_t *)(uintptr_t)&callbacks) >= 0) {
        // Of a file of this name HDF5 would first read all into memory, and lose it: a folder's name is never one.
        char folder[TS_PATH_BYTES];
        snprintf(folder, sizeof folder, "%.*s/", TS_PATH_BYTES - 8, w->path);
        file = H5Fcreate(folder, H5F_ACC_TRUNC, create, access);
    }
    bool good = file >= 0 && put_all(file, w, &l->latents) && H5Fget_filesize(file, &bytes) >= 0;
    if (file >= 0) {
        good = H5Fclose(file) >= 0 && good;
    }
    if (create >= 0) {
        H5Pclose(create);
    }
    if (access >= 0) {
        H5Pclose(access);
    }
    l->bytes = bytes;
    return good ? TS_OK : TS_FAIL(TS_ERESOURCE, "%s: HDF5 cannot lay it out; is memory exhausted?", w->path);
}

// ---- finishing

typedef struct target {
    int fd;
    XXH3_state_t *hash;  // of what is written
    char *block;         // [COPY_BLOCK]
    const char *path;
} target;

static int append(const target *t, const char *data, size_t bytes) {
    XXH3_64bits_update(t->hash, data, bytes);
    return ts_file_write_all(t->fd, data, bytes, t->path);
}

// Bytes [from, to) of the layout; what lies beyond the image is zero.
static int append_layout(const target *t, const layout *l, uint64_t from, uint64_t to) {
    const uint64_t present = to < l->image_bytes ? to : l->image_bytes;
    if (from < present) {
        TS_TRY(append(t, l->image + from, present - from));
        from = present;
    }
    memset(t->block, 0, COPY_BLOCK);
    for (; from < to; from += COPY_BLOCK) {
        TS_TRY(append(t, t->block, to - from < COPY_BLOCK ? to - from : COPY_BLOCK));
    }
    return TS_OK;
}

static int assemble(const ts_shard_writer *w, const target *t, const layout *l) {
    const int64_t bytes = w->count * w->elements * (int64_t)sizeof *w->clip;
    TS_TRY(append_layout(t, l, 0, l->latents));
    for (int64_t done = 0; done < bytes; done += COPY_BLOCK) {
        const size_t part = (size_t)(bytes - done < COPY_BLOCK ? bytes - done : COPY_BLOCK);
        TS_TRY(ts_file_pread_all(w->spool, t->block, part, done, w->path));
        TS_TRY(append(t, t->block, part));
    }
    TS_TRY(append_layout(t, l, l->latents + (uint64_t)bytes, l->bytes));
    return fsync(t->fd) ? TS_FILE_FAIL(t->path, "sync") : TS_OK;
}

static int write_file(const ts_shard_writer *w, const layout *l, uint64_t *sum) {
    target t = {.path = w->temporary, .hash = XXH3_createState(), .block = ts_malloc(COPY_BLOCK)};
    t.fd = open(t.path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int status = TS_OK;
    if (t.fd < 0) {
        status = TS_FILE_FAIL(t.path, "create");
    } else if (!t.hash || !t.block) {
        status = TS_FAIL(TS_ERESOURCE, "%s: no memory to write it", t.path);
    } else {
        XXH3_64bits_reset(t.hash);
        status = assemble(w, &t, l);
        *sum = XXH3_64bits_digest(t.hash);
    }
    if (t.fd >= 0 && close(t.fd) && !status) {
        status = TS_FILE_FAIL(t.path, "close");
    }
    free(t.block);
    XXH3_freeState(t.hash);
    return status;
}

static int commit(const ts_shard_writer *w, uint64_t *sum) {
    layout l = {0};
    int status = lay_out(w, &l);
    if (!status) {
        status = write_file(w, &l, sum);
    }
    if (!status) {
        status = ts_file_rename(w->temporary, w->path);
    }
    free(l.image);
    return status;
}

int ts_shard_writer_commit(ts_shard_writer **writer, int64_t *count, uint64_t *sum) {
    *count = (*writer)->count;
    *sum = 0;
    const int status = *count ? commit(*writer, sum) : TS_OK;
    ts_shard_writer_abandon(writer);
    return status;
}

void ts_shard_writer_abandon(ts_shard_writer **writer) {
    ts_shard_writer *w = *writer;
    if (!w) {
        return;
    }
    if (w->temporary[0]) {
        unlink(w->temporary);  // renamed away already when all went well
    }
    if (w->spool >= 0) {
        close(w->spool);
    }
    free(w->clip);
    free(w->row);
    free(w->caption.bytes);
    free(w->caption.offset);
    free(w->source.bytes);
    free(w->source.offset);
    free(w);
    *writer = NULL;
}
