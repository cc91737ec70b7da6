// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/calibrate.h"

#include <inttypes.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "core/base/rng.h"
#include "core/base/split.h"
#include "core/base/status.h"
#include "core/comm/threads.h"
#include "train/plan.h"

enum { BLOCKS = 3, MAX_CALLS = 4096 };
static const double SECONDS = 25;  // for all rehearsals together; meshes that come later are left to their neighbours

typedef struct calibration {
    ts_comm *world;
    const ts_bench_params *params;
    ts_arena *arena;
    ts_train_config config;
    ts_plan_run run;
    ts_hardware hardware;
    ts_measured *measured;  // [count]: the mean over the places where a call stands
    double *places;         // [count]
    int64_t count, capacity;
    double begun, beside, calls;  // seconds between calls, and how many these were
    double own, slowest;          // seconds of all calls, of a rank and of the slowest one each time
    int meshes, skipped;
} calibration;

// ---- what was measured

static int find_measured(calibration *c, const ts_cost *cost, int64_t *at) {
    for (*at = 0; *at < c->count; ++*at) {
        const ts_measured *m = &c->measured[*at];
        if (m->dtype == cost->dtype && !memcmp(m->dim, cost->dim, sizeof m->dim) && !strcmp(m->entry, cost->entry) &&
            m->work == ts_hardware_work(cost)) {
            return TS_OK;
        }
    }
    if (c->count == MAX_CALLS) {
        return TS_FAIL(TS_EUSAGE, "%s: more than %d different kernel calls; plan for fewer devices", c->params->plan,
                       MAX_CALLS);
    }
    ts_measured *m = &c->measured[c->count];
    *m = (ts_measured){.dtype = cost->dtype, .work = ts_hardware_work(cost)};
    snprintf(m->entry, sizeof m->entry, "%s", cost->entry);
    memcpy(m->dim, cost->dim, sizeof m->dim);
    c->places[c->count++] = 0;
    return TS_OK;
}

static int add_measured(calibration *c, const ts_cost *cost, double seconds) {
    int64_t i;
    TS_TRY(find_measured(c, cost, &i));
    c->measured[i].seconds = (c->measured[i].seconds * c->places[i] + seconds) / (c->places[i] + 1);
    c->places[i]++;
    return TS_OK;
}

static bool is_measured(const calibration *c, const ts_cost *cost) {
    for (int64_t i = 0; i < c->count; i++) {
        const ts_measured *m = &c->measured[i];
        if (m->dtype == cost->dtype && !memcmp(m->dim, cost->dim, sizeof m->dim) && !strcmp(m->entry, cost->entry)) {
            return true;
        }
    }
    return false;
}

// ---- what stands outside the passes

typedef struct stream {
    const ts_kernels *kernels;
    int64_t elements, at;  // of the arrays; where the next call begins
    float *array[5];
    uint16_t *operand;
    double *sum;
    bool narrow;  // there are operands
} stream;

static int open_stream(stream *s, const ts_kernels *kernels, int64_t elements, bool narrow) {
    const size_t bytes = (size_t)elements * sizeof *s->operand;
    *s = (stream){.kernels = kernels, .elements = elements, .narrow = narrow};
    s->operand = kernels->device->allocate(bytes);
    s->sum = kernels->device->allocate(sizeof *s->sum);
    for (int i = 0; i < 5; i++) {
        // Second moments are not negative.
        s->array[i] = (i == 2 ? ts_bench_squares : ts_bench_numbers)(kernels, elements, (uint64_t)i);
        if (!s->array[i] || !s->operand || !s->sum) {
            return TS_ERESOURCE;
        }
    }
    TS_TRY(kernels->device->zero(s->sum, sizeof *s->sum));
    return kernels->device->zero(s->operand, bytes);
}

static void close_stream(stream *s) {
    for (int i = 0; i < 5; i++) {
        s->kernels->device->release(s->array[i]);
    }
    s->kernels->device->release(s->operand);
    s->kernels->device->release(s->sum);
}

static int call_stream(stream *s, const char *entry, int64_t n) {
    s->at = s->at + n <= s->elements ? s->at : 0;
    float *const *a = s->array;
    const int64_t at = s->at;
    s->at += n;
    if (!strcmp(entry, "clear")) {
        return s->kernels->device->zero(a[0] + at, (size_t)n * sizeof(float));
    }
    if (!strcmp(entry, "sum_squares")) {
        return s->kernels->sum_squares(a[3] + at, n, s->sum);
    }
    if (!strcmp(entry, "noise")) {
        return s->kernels->noise(a[0] + at, n, 1, TS_RNG_TEST, 1, 0);
    }
    return s->kernels->adamw(&(ts_adamw){.count = n,
                                         .step = 10,
                                         .lr = 1e-9f,
                                         .beta1 = 0.9f,
                                         .beta2 = 0.99f,
                                         .eps = 1e-8f,
                                         .weight_decay = 0.1f,
                                         .grad_scale = 1,
                                         .weight = a[0] + at,
                                         .m = a[1] + at,
                                         .v = a[2] + at,
                                         .grad = a[3] + at,
                                         .operand = s->narrow ? s->operand + at : NULL,
                                         .ema = a[4] + at,
                                         .ema_decay = 0.99f});
}

static bool is_stream(const char *entry) {
    static const char *const names[] = {"clear", "sum_squares", "noise", "adamw"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!strcmp(entry, names[i])) {
            return true;
        }
    }
    return false;
}

// ---- rehearsals

// A call that was heard of, and the time between it and the one before.
typedef struct timed_call {
    ts_cost cost;
    double beside;
} timed_call;

// The calls of passes, which all make the same ones in the same order, one pass after another.
typedef struct trace {
    timed_call *call;  // [count]
    int64_t count, capacity;
    double heard;  // when the call before had been heard of
    int status;
} trace;

static void hear(void *user, const ts_cost *cost) {
    trace *t = user;
    const double beside = ts_clock_seconds() - t->heard - cost->seconds;
    if (t->count == t->capacity) {
        const int64_t capacity = 2 * t->capacity + 4096;
        timed_call *call = realloc(t->call, (size_t)capacity * sizeof *call);
        if (!call) {
            t->status = TS_FAIL(TS_ERESOURCE, "out of memory for a trace of %" PRId64 " calls", capacity);
            return;
        }
        t->call = call;
        t->capacity = capacity;
    }
    t->call[t->count++] = (timed_call){*cost, beside};
    t->heard = ts_clock_seconds();
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *sample, int64_t count) {
    qsort(sample, (size_t)count, sizeof *sample, compare);
    return sample[count / 2];
}

// Medians over the passes: a run is made of ordinary calls, not of the best ones. Of the ranks' own times, whose mean
// is what a call takes, and of the slowest rank's each time, which is what it takes ranks that wait for each other.
static int summarise(calibration *c, const trace *t, const double *slowest) {
    enum { MAX_RUNS = 1000 };
    const int64_t runs = c->params->runs, calls = t->count / runs;
    double sample[3][MAX_RUNS];
    for (int64_t i = 0; i < calls; i++) {
        for (int64_t run = 0; run < runs; run++) {
            const int64_t at = run * calls + i;
            sample[0][run] = t->call[at].cost.seconds;
            sample[1][run] = t->call[at].beside;
            sample[2][run] = slowest[at];
        }
        double own[] = {median(sample[0], runs), median(sample[1], runs)};
        TS_TRY(ts_all_reduce(c->world, own, 2, TS_F64, TS_SUM));
        TS_TRY(add_measured(c, &t->call[i].cost, own[0] / ts_comm_size(c->world)));
        c->own += (own[0] + own[1]) / ts_comm_size(c->world);
        c->slowest += median(sample[2], runs);
        c->beside += own[1] / ts_comm_size(c->world);
        c->calls++;
    }
    return TS_OK;
}

static int share(calibration *c, const trace *t) {
    double *slowest = ts_malloc((size_t)(t->count + 1) * sizeof *slowest);
    if (!slowest) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < t->count; i++) {
        slowest[i] = t->call[i].cost.seconds + t->call[i].beside;
    }
    int status = ts_all_reduce(c->world, slowest, t->count, TS_F64, TS_MAX);
    status = status ? status : summarise(c, t, slowest);
    free(slowest);
    return status;
}

// Passes, all ranks at once, each after an update, which leaves the caches cold; the first two find their memory.
static int trace_passes(calibration *c, ts_plan_rehearsal *rehearsal, stream *update, trace *t) {
    enum { UPDATED = 1 << 22 };
    for (int64_t run = -2; run < c->params->runs; run++) {
        t->count = run <= 0 ? 0 : t->count;
        TS_TRY(call_stream(update, "adamw", UPDATED));
        TS_TRY(update->kernels->device->finish());
        TS_TRY(ts_barrier(c->world));
        t->heard = ts_clock_seconds();
        TS_TRY(ts_plan_rehearse(rehearsal, hear, t));
        TS_TRY(t->status);
    }
    return share(c, t);
}

static int rehearse(calibration *c, const ts_degrees *degree, ts_recompute recompute, stream *update) {
    ts_plan_rehearsal *rehearsal = NULL;
    trace t = {0};
    int status = ts_plan_rehearsal_open(&rehearsal, &c->run, degree, recompute, BLOCKS, c->params->kernels);
    status = ts_agree(c->world, status);
    status = status ? status : trace_passes(c, rehearsal, update, &t);
    free(t.call);
    ts_plan_rehearsal_close(&rehearsal);
    return status;
}

// ---- measuring those

// One call, cold: walks through arrays that no cache holds.
static int measure_stream(calibration *c, stream *s, const ts_cost *cost) {
    enum { RUNS = 9 };
    double sample[RUNS];
    const int64_t n = cost->dim[1] < s->elements ? cost->dim[1] : s->elements;
    for (int run = 0; run < RUNS; run++) {
        TS_TRY(ts_barrier(c->world));
        const double begin = ts_clock_seconds();
        TS_TRY(call_stream(s, cost->entry, n));
        TS_TRY(s->kernels->device->finish());
        sample[run] = ts_clock_seconds() - begin;
    }
    double seconds = median(sample, RUNS);
    TS_TRY(ts_all_reduce(c->world, &seconds, 1, TS_F64, TS_SUM));
    ts_cost measured = *cost;
    measured.dim[1] = n;
    measured.bytes *= (double)n / (double)cost->dim[1];
    return add_measured(c, &measured, seconds / ts_comm_size(c->world));
}

static int measure_streams(calibration *c, const ts_plan_step *step, stream *s) {
    for (int64_t i = 0; i < step->calls; i++) {
        const ts_cost *cost = &step->call[i].cost;
        if (is_stream(cost->entry) && !is_measured(c, cost)) {
            TS_TRY(measure_stream(c, s, cost));
        }
    }
    return TS_OK;
}

// ---- all meshes of the plan

static bool same_shapes(const calibration *c, const ts_degrees *a, const ts_degrees *b) {
    const int64_t batch = c->config.train.batch;
    return a->ring == b->ring && a->ulysses == b->ulysses && a->tensor == b->tensor &&
           ts_split(batch, a->data, 0).count == ts_split(batch, b->data, 0).count;
}

// What is recomputed elementwise calls kernels that none does not; a whole block calls the same ones.
static int calibrate_mesh(calibration *c, const ts_degrees *degree, stream *s) {
    ts_plan_step step;
    TS_TRY(ts_plan_step_count(&step, &c->run, degree, TS_RECOMPUTE_NONE));
    int status = measure_streams(c, &step, s);
    ts_plan_step_free(&step);
    TS_TRY(status);
    bool late = ts_clock_seconds() - c->begun > SECONDS;
    late = ts_agree_any(c->world, late);
    c->skipped += late;
    if (late) {
        return TS_OK;
    }
    c->meshes++;
    TS_TRY(rehearse(c, degree, TS_RECOMPUTE_NONE, s));
    return rehearse(c, degree, TS_RECOMPUTE_ELEMENTWISE, s);
}

static int calibrate_meshes(calibration *c) {
    enum { ELEMENTS = 1 << 24 };
    const int devices = c->params->devices ? (int)c->params->devices : ts_comm_size(c->world);
    stream s;
    int status = ts_agree(c->world, open_stream(&s, c->params->kernels, ELEMENTS, c->config.precision == 0));
    ts_degrees seen[64];
    int count = 0;
    for (ts_degrees degree = {0}; !status && ts_plan_next_mesh(&c->run, devices, &degree);) {
        bool known = false;
        for (int i = 0; i < count; i++) {
            known = known || same_shapes(c, &degree, &seen[i]);
        }
        if (!known && count < 64) {
            seen[count++] = degree;
            status = calibrate_mesh(c, &degree, &s);
        }
    }
    close_stream(&s);
    return status;
}

// ---- the file

static int read_config(calibration *c) {
    const ts_bench_params *p = c->params;
    TS_TRY(ts_options_default(ts_train_options, &c->config, c->arena));
    TS_TRY(ts_options_read_yaml(ts_train_options, &c->config, c->arena, p->plan));
    c->config.data = p->latent ? "(latent)" : c->config.data;  // not looked at then
    TS_TRY(ts_train_config_finish(&c->config, c->arena));
    return ts_plan_run_open(&c->run, &c->config, p->latent, p->vocabulary);
}

static int read_hardware(calibration *c) {
    const char *path = c->params->write_hardware;
    if (path && ts_path_exists(path)) {
        return ts_hardware_read(&c->hardware, c->arena, path);
    }
    return ts_options_default(ts_hardware_options, &c->hardware, c->arena);
}

static double overhead_us(const calibration *c) {
    return c->calls > 0 ? 1e6 * c->beside / c->calls : 0;
}

static int fill_hardware(calibration *c, const ts_bench_peak *peak) {
    int64_t ranks = 1;
    ts_hardware *h = &c->hardware;
    TS_TRY(ts_ranks_on_host(c->world, &ranks));
    const int64_t free_bytes = ts_memory_available();
    h->devices_per_host = h->devices_per_host ? h->devices_per_host : ranks;
    if (h->memory_gib <= 0 && free_bytes > 0) {
        h->memory_gib = (double)(free_bytes / ranks >> 20) / 1024.0;
    }
    h->bf16_gflops = 1e-9 * peak->bf16;
    h->f32_gflops = 1e-9 * peak->f32;
    h->memory_gb_per_s = 1e-9 * peak->memory;
    h->overhead_us = overhead_us(c);
    h->wait_share = c->own > 0 && ts_comm_size(c->world) > 1 ? c->slowest / c->own - 1 : h->wait_share;
    h->measured = c->measured;
    h->measured_count = c->count;
    return TS_OK;
}

static int write_hardware(const calibration *c) {
    char comment[512];
    snprintf(comment, sizeof comment,
             "# Written by tessera bench kernels --plan %s, with %d ranks of %d threads, %s. Rates are peaks\n"
             "# of a rank; `measured` are its calls while all ranks compute.\n",
             c->params->plan, ts_comm_size(c->world), omp_get_max_threads(), ts_kernels_cpu_instruction_set());
    return ts_hardware_write(&c->hardware, comment, c->params->write_hardware);
}

static void tell(const calibration *c, json_t *report) {
    json_t *calls = json_array();
    for (int64_t i = 0; i < c->count; i++) {
        const ts_measured *m = &c->measured[i];
        json_array_append_new(calls, json_pack("{s:s, s:s, s:[I, I, I, I], s:f, s:f}", "entry", m->entry, "dtype",
                                               ts_dtype_name(m->dtype), "dim", (json_int_t)m->dim[0],
                                               (json_int_t)m->dim[1], (json_int_t)m->dim[2], (json_int_t)m->dim[3],
                                               "work", m->work, "us", 1e6 * m->seconds));
    }
    json_object_set_new(report, "measured", calls);
    json_object_set_new(report, "overhead_us", json_real(overhead_us(c)));
    if (c->params->prints) {
        printf("%" PRId64 " different kernel calls of %d meshes in %.1f s; %.2f us beside a call; the slowest rank "
               "takes %.1f %% longer\n",
               c->count, c->meshes, ts_clock_seconds() - c->begun, overhead_us(c),
               c->own > 0 ? 100 * (c->slowest / c->own - 1) : 0);
        if (c->skipped) {
            printf("%d meshes were left out for time: the plan takes their calls from the nearest measured ones\n",
                   c->skipped);
        }
        if (c->params->write_hardware) {
            printf("written to %s\n", c->params->write_hardware);
        }
    }
}

int ts_bench_calibrate(ts_comm *world, const ts_bench_params *params, const ts_bench_peak *peak, json_t *report) {
    calibration c = {.world = world, .params = params, .begun = ts_clock_seconds()};
    int status = TS_OK;
    TS_TRY(ts_arena_open(&c.arena, "calibration", 1 << 16, false));
    c.measured = ts_arena_zalloc(c.arena, MAX_CALLS * sizeof *c.measured);
    c.places = ts_arena_zalloc(c.arena, MAX_CALLS * sizeof *c.places);
    TS_TRY_GOTO(status, ts_agree(world, c.measured && c.places ? read_config(&c) : TS_ERESOURCE), done);
    TS_TRY_GOTO(status, ts_agree(world, read_hardware(&c)), done);
    TS_TRY_GOTO(status, calibrate_meshes(&c), done);
    TS_TRY_GOTO(status, fill_hardware(&c, peak), done);
    if (params->write_hardware && ts_comm_rank(world) == 0) {
        TS_TRY_GOTO(status, write_hardware(&c), done);
    }
    tell(&c, report);
done:
    ts_arena_close(&c.arena);
    return status;
}
