// SPDX-License-Identifier: Apache-2.0
#include "infer/sampler/velocity.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"

// Memory that grows when more is asked for; what was in it is lost then.
typedef struct room {
    void *data;
    size_t bytes;
} room;

struct ts_velocity {
    ts_velocity_params p;
    const ts_kernels *kernels;
    ts_part own;                        // branches of the batch that are computed here
    room latent, context;               // device: [own branches, n, T, H, W, C], [own branches, n, contexts, ..]
    room branches, guided;              // device: [2, n, T, H, W, C] of both ranks, [n, T, H, W, C]
    room timestep, guidance;            // host: [own branches, n, levels], [n, T]
    room frame_context;                 // host: [T]
    room row_class, class_c;            // device: of frames with guidance of their own
    room host_row_class, host_class_c;  // the same as they are made
    ts_velocity_batch last;             // shape of the last pass
    room last_guidance, last_context;   // and its guidance, and which context its frames saw
    ts_recording *recording;            // of a pass up to the guided velocity, or NULL
    int recordings;                     // made so far
    const float *recorded;              // where it leaves the velocity
};

ts_part ts_velocity_branches(bool guided, int size, int rank) {
    return ts_split(guided ? TS_BRANCHES : 1, size, rank);
}

// ---- memory

static int make_room(room *r, size_t bytes, const ts_device *device) {
    if (bytes <= r->bytes) {
        return TS_OK;
    }
    device->release(r->data);
    *r = (room){.data = device->allocate(bytes)};
    if (!r->data) {
        return TS_ERESOURCE;
    }
    r->bytes = bytes;
    return TS_OK;
}

static size_t numbers(const ts_velocity *v, const ts_velocity_batch *b) {
    return (size_t)(b->n * b->frames * b->height * b->width * ts_dit_get_config(v->p.dit)->out_channels);
}

static size_t context_numbers(const ts_velocity *v, const ts_velocity_batch *b) {
    const ts_dit_config *c = ts_dit_get_config(v->p.dit);
    return (size_t)(b->n * b->contexts * c->text_rows * c->text_dim);
}

int ts_velocity_open(ts_velocity **out, const ts_velocity_params *params) {
    const int ranks = ts_comm_size(params->cfg);
    if (ranks > (params->guided ? TS_BRANCHES : 1)) {
        return TS_FAIL(TS_EUSAGE, "%d ranks cannot share the %d branches of guidance", ranks,
                       params->guided ? TS_BRANCHES : 1);
    }
    ts_velocity *v = ts_calloc(1, sizeof *v);
    if (!v) {
        return TS_ERESOURCE;
    }
    *v = (ts_velocity){.p = *params, .kernels = ts_tape_kernels(params->tape)};
    *out = v;
    return TS_OK;
}

void ts_velocity_forget(ts_velocity *v) {
    if (v->recording) {
        v->kernels->device->recording_close(&v->recording);
    }
    v->last = (ts_velocity_batch){0};
}

void ts_velocity_close(ts_velocity **velocity) {
    ts_velocity *v = *velocity;
    if (!v) {
        return;
    }
    ts_velocity_forget(v);
    room *const on_device[] = {&v->latent, &v->context, &v->branches, &v->guided, &v->row_class, &v->class_c};
    room *const on_host[] = {&v->timestep,      &v->guidance,      &v->host_row_class, &v->host_class_c,
                             &v->frame_context, &v->last_guidance, &v->last_context};
    for (size_t i = 0; i < sizeof on_device / sizeof *on_device; i++) {
        v->kernels->device->release(on_device[i]->data);
    }
    for (size_t i = 0; i < sizeof on_host / sizeof *on_host; i++) {
        ts_device_host.release(on_host[i]->data);
    }
    free(v);
    *velocity = NULL;
}

static bool same_shape(const ts_velocity_batch *a, const ts_velocity_batch *b) {
    return a->n == b->n && a->frames == b->frames && a->height == b->height && a->width == b->width &&
           a->levels == b->levels && a->contexts == b->contexts && a->unguided == b->unguided;
}

static bool has_both(const ts_velocity *v, const ts_velocity_batch *b) {
    return v->p.guided && (!b->unguided || ts_comm_size(v->p.cfg) > 1);
}

int ts_velocity_begin(ts_velocity *v, ts_velocity_batch *b) {
    const ts_device *device = v->kernels->device, *host = &ts_device_host;
    v->own = ts_velocity_branches(has_both(v, b), ts_comm_size(v->p.cfg), ts_comm_rank(v->p.cfg));
    const size_t branches = (size_t)v->own.count, all = numbers(v, b) * sizeof(float);
    const size_t context = context_numbers(v, b), frames = (size_t)(b->n * b->frames);
    if (!same_shape(b, &v->last)) {  // memory may move
        ts_velocity_forget(v);
    }
    TS_TRY(make_room(&v->latent, branches * all, device));
    TS_TRY(make_room(&v->context, branches * context * sizeof(float), device));
    TS_TRY(make_room(&v->timestep, branches * (size_t)(b->n * b->levels) * sizeof(float), host));
    TS_TRY(make_room(&v->guidance, frames * sizeof(float), host));
    TS_TRY(make_room(&v->frame_context, (size_t)b->frames * sizeof(int32_t), host));
    TS_TRY(make_room(&v->last_guidance, frames * sizeof(float), host));
    TS_TRY(make_room(&v->last_context, (size_t)b->frames * sizeof(int32_t), host));
    TS_TRY(ts_comm_size(v->p.cfg) > 1 ? make_room(&v->branches, TS_BRANCHES * all, device) : TS_OK);
    TS_TRY(has_both(v, b) ? make_room(&v->guided, all, device) : TS_OK);
    b->latent = v->latent.data;
    b->timestep = v->timestep.data;
    b->guidance = v->guidance.data;
    b->frame_context = v->frame_context.data;
    for (int64_t i = 0; i < TS_BRANCHES; i++) {
        const bool here = i >= v->own.first && i < v->own.first + v->own.count;
        b->context[i] = here ? (float *)v->context.data + (size_t)(i - v->own.first) * context : NULL;
    }
    return TS_OK;
}

// ---- a pass

// The transformer's velocities of the own branches, [own branches, n, T, H, W, C].
static int own_velocities(ts_velocity *v, const ts_velocity_batch *b, const float **out) {
    const ts_dit_config *c = ts_dit_get_config(v->p.dit);
    const int64_t rows = v->own.count * b->n;
    const size_t all = numbers(v, b);
    for (int64_t i = 1; i < v->own.count; i++) {
        TS_TRY(v->kernels->device->copy(b->latent + (size_t)i * all, b->latent, all * sizeof(float)));
    }
    const ts_shape video = TS_SHAPE(rows, b->frames, b->height, b->width, c->in_channels);
    const ts_shape text = b->contexts > 1 ? TS_SHAPE(rows, b->contexts, c->text_rows, c->text_dim)
                                          : TS_SHAPE(rows, c->text_rows, c->text_dim);
    const ts_dit_input input = {
        .latent = ts_tape_input(v->p.tape, (ts_tensor){TS_F32, video, b->latent}, false),
        .context = ts_tape_input(v->p.tape, (ts_tensor){TS_F32, text, v->context.data}, false),
        .timestep = b->timestep,
        .timesteps_per_sample = b->levels,
        .contexts_per_sample = b->contexts,
        .frame_context = b->frame_context,
    };
    const ts_var *velocity = ts_dit_forward(v->p.tape, v->p.dit, &input);
    TS_TRY(ts_tape_status(v->p.tape));
    *out = velocity->value.data;
    return TS_OK;
}

static bool one_guidance(const ts_velocity_batch *b) {
    for (int64_t i = 1; i < b->n * b->frames; i++) {
        if (b->guidance[i] != b->guidance[0]) {
            return false;
        }
    }
    return true;
}

// Frames with guidance of their own: each is a row, and a class, of the sum.
static int set_classes(ts_velocity *v, const ts_velocity_batch *b, ts_combine *sum) {
    const ts_device *device = v->kernels->device;
    const int64_t rows = b->n * b->frames;
    const size_t index_bytes = (size_t)rows * sizeof(int32_t), c_bytes = (size_t)rows * TS_MAX_TERMS * sizeof(double);
    TS_TRY(make_room(&v->host_row_class, index_bytes, &ts_device_host));
    TS_TRY(make_room(&v->host_class_c, c_bytes, &ts_device_host));
    TS_TRY(make_room(&v->row_class, index_bytes, device));
    TS_TRY(make_room(&v->class_c, c_bytes, device));
    int32_t *row_class = v->host_row_class.data;
    double *c = v->host_class_c.data;
    memset(c, 0, c_bytes);
    for (int64_t r = 0; r < rows; r++) {
        row_class[r] = (int32_t)r;
        c[r * TS_MAX_TERMS] = (double)b->guidance[r];
        c[r * TS_MAX_TERMS + 1] = 1.0 - (double)b->guidance[r];
    }
    TS_TRY(device->upload(v->row_class.data, row_class, index_bytes));
    TS_TRY(device->upload(v->class_c.data, c, c_bytes));
    sum->width = sum->n / rows;
    sum->row_class = v->row_class.data;
    sum->class_c = v->class_c.data;
    return TS_OK;
}

static int guided_velocity(ts_velocity *v, const ts_velocity_batch *b, const float **out) {
    const int64_t all = (int64_t)numbers(v, b);
    const float *with;
    TS_TRY(own_velocities(v, b, &with));
    if (ts_comm_size(v->p.cfg) > 1) {
        const int64_t counts[TS_BRANCHES] = {all, all};
        TS_TRY(ts_all_gather_v(v->p.cfg, with, v->branches.data, counts, TS_F32));
        with = v->branches.data;
    }
    *out = with;
    if (!has_both(v, b)) {
        return TS_OK;
    }
    const double guidance = (double)b->guidance[0];
    ts_combine sum = {
        .n = all, .terms = 2, .c = {guidance, 1.0 - guidance}, .x = {with, with + all}, .out = v->guided.data};
    if (!one_guidance(b)) {
        TS_TRY(set_classes(v, b, &sum));
    }
    *out = v->guided.data;
    return v->kernels->combine(&sum);
}

// ---- a pass as a recording

enum { MOST_RECORDINGS = 8 };  // batches that never stay alike are not worth one

static bool one_level(const ts_velocity_batch *b) {
    for (int64_t i = 1; i < b->n * b->levels; i++) {
        if (b->timestep[i] != b->timestep[0]) {
            return false;
        }
    }
    return b->levels == 1;
}

static size_t frame_context_bytes(const ts_velocity_batch *b) {
    return b->contexts > 1 ? (size_t)b->frames * sizeof *b->frame_context : 0;
}

// Like the pass before, in all that a recording holds fast.
static bool is_repeated(const ts_velocity *v, const ts_velocity_batch *b) {
    return one_level(b) && same_shape(b, &v->last) &&
           memcmp(b->guidance, v->last_guidance.data, (size_t)(b->n * b->frames) * sizeof *b->guidance) == 0 &&
           memcmp(b->frame_context, v->last_context.data, frame_context_bytes(b)) == 0;
}

static void remember(ts_velocity *v, const ts_velocity_batch *b) {
    v->last = *b;
    memcpy(v->last_guidance.data, b->guidance, (size_t)(b->n * b->frames) * sizeof *b->guidance);
    memcpy(v->last_context.data, b->frame_context, frame_context_bytes(b));
}

static int record(ts_velocity *v, const ts_velocity_batch *b) {
    const ts_device *device = v->kernels->device;
    v->recordings++;
    TS_TRY(device->record_begin());
    const int status = guided_velocity(v, b, &v->recorded);
    const int ended = device->record_end(&v->recording);
    TS_TRY(status);
    TS_TRY(ended);
    return device->recording_run(v->recording);
}

// The first pass of a kind has every kernel choose its way and makes the tape's memory one piece; the second may be
// recorded.
static bool may_record(const ts_velocity *v) {
    return v->p.record && v->kernels->device->record_begin && v->recordings < MOST_RECORDINGS &&
           !ts_tape_is_watched(v->p.tape);
}

int ts_velocity_take(ts_velocity *v, const ts_velocity_batch *b, const float **out) {
    const ts_device *device = v->kernels->device;
    const bool repeated = is_repeated(v, b);
    for (int64_t i = 1; i < v->own.count; i++) {  // both branches stand at the same levels
        memcpy(b->timestep + i * b->n * b->levels, b->timestep, (size_t)(b->n * b->levels) * sizeof *b->timestep);
    }
    if (repeated && v->recording) {  // all windows have this level: a run of one
        TS_TRY(device->recording_restage(v->recording, TS_DIT_UPLOAD_LEVELS, b->timestep, sizeof *b->timestep));
        *out = v->recorded;
        return device->recording_run(v->recording);
    }
    ts_velocity_forget(v);
    remember(v, b);
    ts_tape_reset(v->p.tape);
    if (repeated && may_record(v)) {
        TS_TRY(record(v, b));
        *out = v->recorded;
        return TS_OK;
    }
    return guided_velocity(v, b, out);
}
