// SPDX-License-Identifier: Apache-2.0
// Parity: reading reference tensors, bringing ours into their layout, rows.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/model/parity_private.h"

void ts_channels_last(const float *from, float *to, int64_t batch, int64_t channels, int64_t places) {
    for (int64_t b = 0; b < batch; b++) {
        for (int64_t c = 0; c < channels; c++) {
            for (int64_t n = 0; n < places; n++) {
                to[(b * places + n) * channels + c] = from[(b * channels + c) * places + n];
            }
        }
    }
}

void ts_channels_first(const float *from, float *to, int64_t batch, int64_t channels, int64_t places) {
    ts_channels_last(from, to, batch, places, channels);
}

static void mark_seen(ts_parity *p, const char *name) {
    for (int64_t i = 0; i < ts_safetensors_count(p->io); i++) {
        if (strcmp(ts_safetensors_at(p->io, i)->name, name) == 0) {
            p->seen[i] = true;
        }
    }
}

static int read_entry(const ts_safetensors *file, const ts_safetensors_entry *entry, ts_dtype dtype, void **out) {
    const int64_t n = ts_shape_count(entry->shape);
    *out = ts_malloc((size_t)(n > 0 ? n : 1) * ts_dtype_bytes(dtype));
    if (!*out) {
        return TS_ERESOURCE;
    }
    const int status = ts_safetensors_read(file, entry, 0, n, *out, dtype);
    if (status) {
        free(*out);
        *out = NULL;
    }
    return status;
}

int ts_parity_read(ts_parity *p, const char *name, int ndim, ts_dtype dtype, ts_shape *shape, void **out) {
    const ts_safetensors_entry *entry = ts_safetensors_find(p->io, name);
    if (!entry) {
        return TS_FAIL(TS_EINPUT, "%s: tensor '%s' is missing; this model needs it as input", p->io_path, name);
    }
    if (ndim && entry->shape.ndim != ndim) {
        return TS_FAIL(TS_EINPUT, "%s: tensor '%s' has %d dimensions, wanted %d", p->io_path, name, entry->shape.ndim,
                       ndim);
    }
    if (dtype == TS_I64 && entry->dtype != TS_I64) {
        return TS_FAIL(TS_EINPUT, "%s: tensor '%s' is %s, wanted I64", p->io_path, name, ts_dtype_name(entry->dtype));
    }
    mark_seen(p, name);
    *shape = entry->shape;
    return read_entry(p->io, entry, dtype, out);
}

void ts_parity_row(ts_parity *p, const char *name, const float *ours, const float *reference, int64_t count,
                   bool relative) {
    double largest = 0, difference = 0;
    for (int64_t i = 0; i < count; i++) {
        const double d = fabs((double)ours[i] - (double)reference[i]);
        difference = isnan(d) || d > difference ? d : difference;  // NaN stays, and exceeds any tolerance
        largest = fmax(largest, fabs((double)reference[i]));
    }
    const double ratio = largest > 0 ? difference / largest : difference;
    const bool good = (relative ? ratio : difference) <= p->tolerance;
    if (ts_comm_rank(p->world) == 0) {
        printf("%-60s max abs %10.3e   max rel %10.3e   %s\n", name, difference, ratio, good ? "ok" : "EXCEEDS");
    }
    p->compared++;
    p->exceeded += !good;
}

// ---- our layouts -> the reference's

static bool starts_with(const char *name, const char *prefix) {
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

// Rows of distinct noise levels, spread out to one for each own sample, or for each step that the reference has of
// them (its tensor holds `count` numbers for all samples). The result's shape is *shape; the caller frees *out.
static int spread_levels(const ts_parity *p, const float *rows, int64_t count, ts_shape *shape, float **out) {
    const int64_t width = shape->dim[shape->ndim - 1], wanted = width ? count / width / p->batch : 0;
    if (!p->level || wanted < 1 || wanted * width * p->batch != count || (wanted != 1 && wanted % p->per_sample != 0)) {
        return TS_FAIL(TS_EINPUT, "neither a row for each of %lld samples nor for each of their tokens",
                       (long long)p->batch);
    }
    *shape = TS_SHAPE(p->samples.count, wanted, width);
    *out = ts_malloc((size_t)ts_shape_count(*shape) * sizeof **out + 1);
    if (!*out) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < p->samples.count * wanted; i++) {
        const int64_t step = wanted == 1 ? 0 : i % wanted / (wanted / p->per_sample);
        const int32_t level = p->level[i / wanted * p->per_sample + step];
        memcpy(*out + i * width, rows + level * width, (size_t)width * sizeof **out);
    }
    return 0;
}

// `ours` [count of var] as f32 -> `to` in the layout of a reference tensor of `shape`.
static int arrange(const char *name, const float *ours, ts_shape var, ts_shape shape, float *to) {
    const int64_t n = ts_shape_count(var), count = ts_shape_count(shape);
    const bool weight = strstr(name, ".weight") != NULL;        // in the reference's layout as they are
    const int64_t repeat = starts_with(name, "rope_") ? 2 : 1;  // the reference stores the angle of a pair twice
    if (count != repeat * n) {
        char has[128], wanted[128];
        return TS_FAIL(TS_EINPUT, "has shape %s, the model makes %s", ts_shape_text(shape, has, sizeof has),
                       ts_shape_text(var, wanted, sizeof wanted));
    }
    if (repeat == 2) {
        for (int64_t i = 0; i < count; i++) {
            to[i] = ours[i / 2];
        }
    } else if (shape.ndim == 5 && !weight && var.dim[var.ndim - 1] == shape.dim[1]) {
        ts_channels_first(ours, to, shape.dim[0], shape.dim[1], count / (shape.dim[0] * shape.dim[1]));
    } else {
        memcpy(to, ours, (size_t)n * sizeof *to);
    }
    return 0;
}

static int compare(ts_parity *p, const ts_safetensors *file, const ts_safetensors_entry *entry, const float *ours,
                   ts_shape shape, bool relative) {
    void *reference = NULL;
    TS_TRY(read_entry(file, entry, TS_F32, &reference));
    const int64_t count = ts_shape_count(entry->shape);
    float *arranged = ts_malloc((size_t)(count > 0 ? count : 1) * sizeof *arranged);
    int status = arranged ? arrange(entry->name, ours, shape, entry->shape, arranged) : TS_ERESOURCE;
    if (status) {
        status = ts_fail_context(status, "tensor '%s'", entry->name);
    } else {
        ts_parity_row(p, entry->name, arranged, reference, count, relative);
    }
    free(arranged);
    free(reference);
    return status;
}

static bool is_level_table(const char *name) {
    return strcmp(name, "temb") == 0 || strcmp(name, "timestep_proj") == 0;
}

static ts_parity_layout layout_of(const ts_parity *p, const char *name) {
    if (p->batch == 0 || starts_with(name, "rope_")) {
        return PARITY_ALIKE;  // of all components but the transformer every value is
    }
    return starts_with(name, "block.") || starts_with(name, "patch_embedding.") ? PARITY_ROWS : PARITY_SAMPLES;
}

static int compare_whole(ts_parity *p, const ts_safetensors_entry *entry, const float *ours, ts_shape shape) {
    float *whole = NULL;
    ts_shape all;
    int status = ts_parity_whole(p, layout_of(p, entry->name), ours, shape, &all, &whole);
    if (!status) {
        status = compare(p, p->io, entry, whole, all, false);
    }
    free(whole);
    return status;
}

// A variable's numbers as f32 in new host memory that the caller frees.
static int download(const ts_var *var, float **out) {
    const int64_t n = ts_shape_count(var->value.shape);
    const size_t bytes = ts_tensor_bytes(&var->value);
    void *stored = ts_malloc(bytes + 1);
    *out = ts_malloc((size_t)n * sizeof **out + 1);
    int status =
        stored && *out ? ts_device_of(var->value.data)->download(stored, var->value.data, bytes) : TS_ERESOURCE;
    status = status ? status : ts_convert(*out, TS_F32, stored, var->value.dtype, n);
    free(stored);
    return status;
}

static int compare_var(ts_parity *p, const ts_safetensors_entry *entry, const ts_var *var) {
    ts_shape shape = var->value.shape;
    float *spread = NULL, *ours;
    int status = download(var, &ours);
    if (!status && is_level_table(entry->name)) {
        status = spread_levels(p, ours, ts_shape_count(entry->shape), &shape, &spread);
        status = status ? ts_fail_context(status, "tensor '%s'", entry->name) : 0;
    }
    if (!status) {
        status = compare_whole(p, entry, spread ? spread : ours, shape);
    }
    free(spread);
    free(ours);
    mark_seen(p, entry->name);
    return status;
}

static int keep_levels(ts_parity *p, const ts_var *var) {
    const size_t bytes = ts_tensor_bytes(&var->value);
    free(p->level);
    p->level = ts_malloc(bytes);
    p->per_sample = var->value.shape.dim[1];
    return p->level ? ts_device_of(var->value.data)->download(p->level, var->value.data, bytes) : TS_ERESOURCE;
}

void ts_parity_probe(void *user, const char *name, const ts_var *var) {
    ts_parity *p = user;
    if (strcmp(name, "level") == 0) {
        p->status = p->status ? p->status : keep_levels(p, var);
        return;
    }
    const ts_safetensors_entry *entry = ts_safetensors_find(p->io, name);
    if (entry && !p->status) {
        p->status = compare_var(p, entry, var);
    }
}

int ts_parity_gradient(ts_parity *p, const char *name, const float *ours, ts_shape shape) {
    const ts_safetensors_entry *entry = ts_safetensors_find(p->grads, name);
    return entry ? compare(p, p->grads, entry, ours, shape, true) : 0;
}
