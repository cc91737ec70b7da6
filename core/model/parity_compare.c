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
    printf("%-60s max abs %10.3e   max rel %10.3e   %s\n", name, difference, ratio, good ? "ok" : "EXCEEDS");
    p->compared++;
    p->exceeded += !good;
}

// ---- our layouts -> the reference's

static bool starts_with(const char *name, const char *prefix) {
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

// Rows of distinct noise levels, spread out to one for each sample or token.
static int spread_levels(const ts_parity *p, const float *rows, int64_t width, float *to, int64_t count) {
    const int64_t wanted = count / width;
    if (!p->level || count % width || (wanted != p->batch && wanted != p->batch * p->tokens)) {
        return TS_FAIL(TS_EINPUT, "neither a row for each of %lld samples nor for each of their tokens",
                       (long long)p->batch);
    }
    const int64_t stride = wanted == p->batch ? p->tokens : 1;
    for (int64_t i = 0; i < wanted; i++) {
        memcpy(to + i * width, rows + p->level[i * stride] * width, (size_t)width * sizeof *to);
    }
    return 0;
}

// `ours` [count of var] as f32 -> `to` in the layout of a reference tensor of `shape`.
static int arrange(const ts_parity *p, const char *name, const float *ours, ts_shape var, ts_shape shape, float *to) {
    const int64_t n = ts_shape_count(var), count = ts_shape_count(shape);
    if (strcmp(name, "temb") == 0 || strcmp(name, "timestep_proj") == 0) {
        return spread_levels(p, ours, var.dim[var.ndim - 1], to, count);
    }
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
    int status = arranged ? arrange(p, entry->name, ours, shape, entry->shape, arranged) : TS_ERESOURCE;
    if (status) {
        status = ts_fail_context(status, "tensor '%s'", entry->name);
    } else {
        ts_parity_row(p, entry->name, arranged, reference, count, relative);
    }
    free(arranged);
    free(reference);
    return status;
}

static int compare_var(ts_parity *p, const ts_safetensors_entry *entry, const ts_var *var) {
    const int64_t n = ts_shape_count(var->value.shape);
    float *ours = ts_malloc((size_t)n * sizeof *ours);
    if (!ours) {
        return TS_ERESOURCE;
    }
    int status = ts_convert(ours, TS_F32, var->value.data, var->value.dtype, n);
    if (!status) {
        status = compare(p, p->io, entry, ours, var->value.shape, false);
    }
    free(ours);
    mark_seen(p, entry->name);
    return status;
}

void ts_parity_probe(void *user, const char *name, const ts_var *var) {
    ts_parity *p = user;
    if (strcmp(name, "level") == 0) {
        p->level = var->value.data;
        p->batch = var->value.shape.dim[0];
        p->tokens = var->value.shape.dim[1];
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
