// SPDX-License-Identifier: Apache-2.0
// Opening a shard: the file may be damaged or made to harm, so every claim is checked against the manifest and the
// file's size before memory is asked for. Links, external storage, filters and other layouts are refused.
#include "core/store/shard.h"

#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>

#include "core/base/file.h"
#include "core/base/status.h"

static const int64_t MAX_TEXT_BYTES = (int64_t)1 << 30;  // of all captions, and of all sources, of a shard

hid_t ts_shard_access(void) {
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    H5PLset_loading_state(0);
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access >= 0 && (H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110) < 0 ||
                        H5Pset_file_locking(access, false, true) < 0)) {
        H5Pclose(access);
        return H5I_INVALID_HID;
    }
    return access;
}

bool ts_text_is_utf8(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes;) {
        utf8proc_int32_t point;
        const utf8proc_ssize_t step =
            utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(bytes - i), &point);
        if (step <= 0) {
            return false;
        }
        i += (size_t)step;
    }
    return true;
}

// ---- where a data set lies

// Where we are, for messages.
typedef struct opening {
    const char *path;
    hid_t file;
    int64_t file_bytes;
} opening;

// Every step of the path must be a hard link: a soft or external one could lead out of the file.
static int check_links(const opening *o, const char *name) {
    char step[64];
    for (const char *end = strchr(name + 1, '/');; end = strchr(end + 1, '/')) {
        const int length = end ? (int)(end - name) : (int)strlen(name);
        snprintf(step, sizeof step, "%.*s", length, name);
        H5L_info_t about;
        if (H5Lget_info(o->file, step, &about, H5P_DEFAULT) < 0) {
            return TS_FAIL(TS_EINPUT, "%s: %s is missing; ingest again", o->path, step);
        }
        if (about.type != H5L_TYPE_HARD) {
            return TS_FAIL(TS_EINPUT, "%s: %s is a link, which is refused; ingest again", o->path, step);
        }
        if (!end) {
            return TS_OK;
        }
    }
}

static int check_storage(const opening *o, const char *name, hid_t set) {
    const hid_t create = H5Dget_create_plist(set);
    int status = TS_OK;
    if (create < 0 || H5Pget_layout(create) != H5D_CONTIGUOUS) {
        status = TS_FAIL(TS_EINPUT, "%s: %s is not contiguous; ingest again", o->path, name);
    } else if (H5Pget_external_count(create) != 0) {
        status =
            TS_FAIL(TS_EINPUT, "%s: %s keeps its data in other files, which is refused; ingest again", o->path, name);
    } else if (H5Pget_nfilters(create) != 0) {
        status = TS_FAIL(TS_EINPUT, "%s: %s is filtered, which is refused; ingest again", o->path, name);
    }
    if (create >= 0) {
        H5Pclose(create);
    }
    return status;
}

static int check_type(const opening *o, const char *name, hid_t set, hid_t type) {
    const hid_t found = H5Dget_type(set);
    const bool same = found >= 0 && H5Tequal(found, type) > 0;
    if (found >= 0) {
        H5Tclose(found);
    }
    return same ? TS_OK : TS_FAIL(TS_EINPUT, "%s: %s has the wrong type; ingest again", o->path, name);
}

// wanted[0..rank): extents; -1 accepts any and is replaced by what is found.
static int check_extents(const opening *o, const char *name, hid_t set, int rank, int64_t *wanted) {
    hsize_t dims[H5S_MAX_RANK];
    const hid_t space = H5Dget_space(set);
    bool good = space >= 0 && H5Sis_simple(space) > 0 && H5Sget_simple_extent_ndims(space) == rank &&
                H5Sget_simple_extent_dims(space, dims, NULL) == rank;
    if (space >= 0) {
        H5Sclose(space);
    }
    for (int i = 0; i < rank && good; i++) {
        good = dims[i] <= INT64_MAX && (wanted[i] < 0 || (int64_t)dims[i] == wanted[i]);
        wanted[i] = (int64_t)dims[i];
    }
    return good ? TS_OK
                : TS_FAIL(TS_EINPUT, "%s: %s has another shape than the manifest says; ingest again", o->path, name);
}

static int check_place(const opening *o, const char *name, hid_t set, hid_t type, int rank, const int64_t *extent,
                       int64_t *offset) {
    int64_t bytes = (int64_t)H5Tget_size(type), end;
    bool overflow = false;
    for (int i = 0; i < rank; i++) {
        overflow = overflow || __builtin_mul_overflow(bytes, extent[i], &bytes);
    }
    const haddr_t place = H5Dget_offset(set);
    if (overflow || place == HADDR_UNDEF || place > INT64_MAX || __builtin_add_overflow((int64_t)place, bytes, &end) ||
        end > o->file_bytes) {
        return TS_FAIL(TS_EINPUT, "%s: %s reaches beyond the end of the file; it is damaged: ingest again", o->path,
                       name);
    }
    *offset = (int64_t)place;
    return TS_OK;
}

// Finds a data set, with all checks made before anything of it is read.
static int locate(const opening *o, const char *name, hid_t type, int rank, int64_t *extent, int64_t *offset) {
    TS_TRY(check_links(o, name));
    const hid_t set = H5Dopen2(o->file, name, H5P_DEFAULT);
    if (set < 0) {
        return TS_FAIL(TS_EINPUT, "%s: %s cannot be opened; it is damaged: ingest again", o->path, name);
    }
    int status = check_storage(o, name, set);
    if (!status) {
        status = check_type(o, name, set, type);
    }
    if (!status) {
        status = check_extents(o, name, set, rank, extent);
    }
    if (!status) {
        status = check_place(o, name, set, type, rank, extent, offset);
    }
    H5Dclose(set);
    return status;
}

// ---- reading the small parts

static int read_attribute(const opening *o, const char *name, hid_t type, void *value) {
    const hid_t attribute = H5Aopen(o->file, name, H5P_DEFAULT);
    const hid_t found = attribute < 0 ? H5I_INVALID_HID : H5Aget_type(attribute);
    const hid_t space = attribute < 0 ? H5I_INVALID_HID : H5Aget_space(attribute);
    const bool good = found >= 0 && space >= 0 && H5Tequal(found, type) > 0 &&
                      H5Sget_simple_extent_type(space) == H5S_SCALAR && H5Aread(attribute, type, value) >= 0;
    if (space >= 0) {
        H5Sclose(space);
    }
    if (found >= 0) {
        H5Tclose(found);
    }
    if (attribute >= 0) {
        H5Aclose(attribute);
    }
    return good ? TS_OK
                : TS_FAIL(TS_EINPUT,
                          "%s: attribute %s is missing or of the wrong type; not a shard of ours: ingest again",
                          o->path, name);
}

static int check_attributes(const opening *o, uint64_t codec_fingerprint) {
    int64_t version;
    uint64_t codec;
    TS_TRY(read_attribute(o, "version", H5T_STD_I64LE, &version));
    if (version != TS_DATASET_VERSION) {
        return TS_FAIL(TS_EINPUT, "%s: has version %" PRId64 ", this program reads version %d; ingest again", o->path,
                       version, TS_DATASET_VERSION);
    }
    TS_TRY(read_attribute(o, "codec_fingerprint", H5T_STD_U64LE, &codec));
    if (codec != codec_fingerprint) {
        return TS_FAIL(TS_EINPUT,
                       "%s: was made by codec %016" PRIx64 ", the manifest says %016" PRIx64
                       "; it is of another data set: ingest again",
                       o->path, codec, codec_fingerprint);
    }
    return TS_OK;
}

static int check_offsets(const opening *o, const char *group, const int64_t *offset, int64_t count, int64_t bytes) {
    bool good = offset[0] == 0 && offset[count] <= bytes;
    for (int64_t i = 0; i < count && good; i++) {
        good = offset[i] <= offset[i + 1];
    }
    return good ? TS_OK
                : TS_FAIL(TS_EINPUT, "%s: %s/offsets do not rise within %s/bytes; it is damaged: ingest again", o->path,
                          group, group);
}

// Texts from `packed` to `text`, each with a NUL behind; offset[i] then is its start there.
static int unpack(const opening *o, const char *group, const char *packed, int64_t *offset, int64_t count, char *text) {
    for (int64_t i = 0; i < count; i++) {
        const size_t bytes = (size_t)(offset[i + 1] - offset[i]);
        const char *from = packed + offset[i];
        if (!ts_text_is_utf8(from, bytes) || memchr(from, '\0', bytes)) {
            return TS_FAIL(TS_EINPUT, "%s: %s %lld is not UTF-8 text; it is damaged: ingest again", o->path, group,
                           (long long)i);
        }
        offset[i] += i;  // the NULs before it
        memcpy(text + offset[i], from, bytes);
        text[offset[i] + (int64_t)bytes] = '\0';
    }
    return TS_OK;
}

static int read_heap(const opening *o, int fd, const char *group, int64_t count, char **text, int64_t **out_offset) {
    char name[64];
    int64_t bytes = -1, ends = count + 1, bytes_at, offsets_at;
    snprintf(name, sizeof name, "%s/bytes", group);
    TS_TRY(locate(o, name, H5T_STD_U8LE, 1, &bytes, &bytes_at));
    if (bytes > MAX_TEXT_BYTES) {
        return TS_FAIL(TS_EINPUT, "%s: %s claims %lld bytes, the limit is 1 GiB; ingest into more shards", o->path,
                       name, (long long)bytes);
    }
    snprintf(name, sizeof name, "%s/offsets", group);
    TS_TRY(locate(o, name, H5T_STD_I64LE, 1, &ends, &offsets_at));
    char *packed = ts_malloc((size_t)bytes + 1);
    *text = ts_malloc((size_t)(bytes + count) + 1);
    *out_offset = ts_malloc((size_t)ends * sizeof(int64_t));
    int status = packed && *text && *out_offset ? TS_OK : TS_ERESOURCE;
    if (!status) {
        status = ts_file_pread_all(fd, packed, (size_t)bytes, bytes_at, o->path);
    }
    if (!status) {
        status = ts_file_pread_all(fd, *out_offset, (size_t)ends * sizeof(int64_t), offsets_at, o->path);
    }
    if (!status) {
        status = check_offsets(o, group, *out_offset, count, bytes);
    }
    if (!status) {
        status = unpack(o, group, packed, *out_offset, count, *text);
    }
    free(packed);
    return status;
}

static int read_fps(const opening *o, int fd, int64_t count, double **out) {
    int64_t offset;
    TS_TRY(locate(o, "/clip/fps", H5T_IEEE_F64LE, 1, &count, &offset));
    *out = ts_malloc((size_t)count * sizeof **out);
    if (!*out) {
        return TS_ERESOURCE;
    }
    TS_TRY(ts_file_pread_all(fd, *out, (size_t)count * sizeof **out, offset, o->path));
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite((*out)[i]) || (*out)[i] <= 0) {
            return TS_FAIL(TS_EINPUT, "%s: /clip/fps of clip %lld is %g; it is damaged: ingest again", o->path,
                           (long long)i, (*out)[i]);
        }
    }
    return TS_OK;
}

// ---- the whole

static int read_all(ts_shard *s, const opening *o, const ts_shard_info *info, uint64_t codec_fingerprint) {
    int64_t extent[5] = {info->count, info->shape.dim[0], info->shape.dim[1], info->shape.dim[2], info->shape.dim[3]};
    TS_TRY(check_attributes(o, codec_fingerprint));
    TS_TRY(locate(o, "/latents", H5T_STD_U16LE, 5, extent, &s->latent_offset));
    s->count = info->count;
    s->clip_bytes = ts_shape_count(info->shape) * (int64_t)sizeof(uint16_t);
    TS_TRY(read_heap(o, s->fd, "/caption", s->count, &s->caption, &s->caption_offset));
    TS_TRY(read_heap(o, s->fd, "/clip/source", s->count, &s->source, &s->source_offset));
    return read_fps(o, s->fd, s->count, &s->fps);
}

static int open_file(ts_shard *s, opening *o, const ts_shard_info *info) {
    struct stat about;
    s->fd = open(o->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (s->fd < 0 || fstat(s->fd, &about)) {
        return TS_FILE_FAIL(o->path, "open");
    }
    o->file_bytes = about.st_size;
    if (!S_ISREG(about.st_mode) || o->file_bytes != info->bytes) {
        return TS_FAIL(
            TS_EINPUT,
            "%s: has %lld bytes, the manifest says %lld; it is truncated or of another data set: ingest again", o->path,
            (long long)o->file_bytes, (long long)info->bytes);
    }
    return TS_OK;
}

int ts_shard_open(ts_shard *s, const char *path, const ts_shard_info *info, uint64_t codec_fingerprint) {
    *s = (ts_shard){.fd = -1};
    opening o = {.path = path};
    int status = open_file(s, &o, info);
    if (!status) {
        const hid_t access = ts_shard_access();
        o.file = access < 0 ? H5I_INVALID_HID : H5Fopen(path, H5F_ACC_RDONLY, access);
        status = o.file < 0 ? TS_FAIL(TS_EINPUT, "%s: is not a readable HDF5 file; it is damaged: ingest again", path)
                            : read_all(s, &o, info, codec_fingerprint);
        if (o.file >= 0) {
            H5Fclose(o.file);
        }
        if (access >= 0) {
            H5Pclose(access);
        }
    }
    if (status) {
        ts_shard_close(s);
    }
    return status;
}

void ts_shard_close(ts_shard *s) {
    if (s->fd >= 0) {
        close(s->fd);
    }
    free(s->caption);
    free(s->caption_offset);
    free(s->source);
    free(s->source_offset);
    free(s->fps);
    *s = (ts_shard){.fd = -1};
}
