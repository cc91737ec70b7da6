// SPDX-License-Identifier: Apache-2.0
// The order of clips, and the thread that reads ahead.
//
// Two slots: the caller holds one, the thread fills the other. The slot of batch k is free again when the caller asks
// for batch k + 1. The thread is started by the first ts_loader_next and ended by seek and close.
#include "data/loader.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/base/rng.h"
#include "core/base/split.h"
#include "core/base/status.h"

enum { SLOTS = 2, TEXT_BYTES = 1024, PLACE_BYTES = 128 };

// The clips of one latent shape that training may see.
typedef struct bucket {
    ts_shape shape;
    int64_t *clip;  // [count] rising
    int64_t count, batches;
} bucket;

typedef struct slot {
    bool full;
    int status;  // of filling it, with the text of the error
    char text[TEXT_BYTES], place[PLACE_BYTES];
    ts_batch batch;
    float *latent;         // [local batch, T, H, W, C] of the largest shape, or NULL ..
    uint16_t *bits;        // .. and this
    int64_t *clip;         // [local batch]
    const char **caption;  // [local batch]
} slot;

struct ts_loader {
    const ts_dataset *dataset;
    ts_loader_params params;
    uint64_t key;          // of the order: data set and seed
    int64_t first, local;  // this rank's items of a global batch
    int64_t batches;       // of an epoch
    int64_t *validation, validation_count;
    bucket *bucket;
    int buckets;
    double wait;

    slot slot[SLOTS];
    ts_cursor next;  // what the next call returns
    bool running;    // the thread
    pthread_t thread;

    // Of the thread alone while it runs.
    ts_cursor ahead;      // what it fills next
    int64_t order_epoch;  // the epoch that `order` and `plan` are of; -1 for none
    int64_t *order;       // [clips] each bucket's clips permuted, one bucket after the other
    int64_t *plan;        // [batches] which batch comes when
    uint16_t *bits;       // one latent as stored, on its way to f32

    pthread_mutex_t lock;  // guards what follows and slot[].full
    pthread_cond_t changed;
    int64_t taken;  // calls of ts_loader_next answered since the thread started
    bool stop;
};

// ---- the order

// Draws of one epoch: stream 0 orders its batches, stream 1 + b the clips of bucket b.
static uint64_t stream(const ts_loader *l, int64_t epoch, int64_t number) {
    return (uint64_t)epoch * (uint64_t)(l->buckets + 1) + (uint64_t)number;
}

static void plan_epoch(ts_loader *l, int64_t epoch) {
    int64_t *order = l->order;
    for (int b = 0; b < l->buckets; b++) {
        const bucket *k = &l->bucket[b];
        ts_rng_permutation(order, k->count, l->key, TS_RNG_SHUFFLE, stream(l, epoch, 1 + b));
        for (int64_t i = 0; i < k->count; i++) {
            order[i] = k->clip[order[i]];
        }
        order += k->count;
    }
    ts_rng_permutation(l->plan, l->batches, l->key, TS_RNG_SHUFFLE, stream(l, epoch, 0));
    l->order_epoch = epoch;
}

// The clips of global batch `number` of the planned epoch, and their bucket.
static const int64_t *find_batch(const ts_loader *l, int64_t number, int *out_bucket) {
    const int64_t *clips = l->order;
    int64_t batch = l->plan[number];
    int b = 0;
    for (; batch >= l->bucket[b].batches; b++) {
        batch -= l->bucket[b].batches;
        clips += l->bucket[b].count;
    }
    *out_bucket = b;
    return clips + batch * l->params.batch;
}

static void advance(const ts_loader *l, ts_cursor *cursor) {
    cursor->samples += l->params.batch;
    if (++cursor->batch == l->batches) {
        cursor->batch = 0;
        cursor->epoch++;
    }
}

// ---- filling a slot

static int read_latent(ts_loader *l, const slot *s, int64_t item, int64_t clip, int64_t elements) {
    uint16_t *bits = s->bits ? s->bits + item * elements : l->bits;
    float *latent = s->latent ? s->latent + item * elements : NULL;
    TS_TRY(ts_dataset_read_latent(l->dataset, clip, bits));
    uint32_t worst = 0;
    for (int64_t i = 0; i < elements; i++) {
        const uint32_t magnitude = bits[i] & 0x7fffu;
        worst = magnitude > worst ? magnitude : worst;
    }
    for (int64_t i = 0; latent && i < elements; i++) {
        latent[i] = ts_bf16_to_f32(bits[i]);
    }
    if (worst >= 0x7f80u) {
        return TS_FAIL(TS_EINPUT, "clip %lld (%s): its latent is not finite; the data set is damaged: ingest again",
                       (long long)clip, ts_dataset_source(l->dataset, clip));
    }
    return TS_OK;
}

static int fill(ts_loader *l, slot *s, ts_cursor cursor) {
    if (l->order_epoch != cursor.epoch) {
        plan_epoch(l, cursor.epoch);
    }
    int b;
    const int64_t *clips = find_batch(l, cursor.batch, &b) + l->first;
    const int64_t elements = ts_shape_count(l->bucket[b].shape);
    s->batch = (ts_batch){.count = l->local,
                          .global_count = l->params.batch,
                          .first_sample = cursor.samples + l->first,
                          .bucket = b,
                          .shape = l->bucket[b].shape,
                          .latent = s->latent,
                          .bits = s->bits,
                          .clip = s->clip,
                          .caption = s->caption,
                          .cursor = cursor,
                          .next = cursor};
    advance(l, &s->batch.next);
    for (int64_t i = 0; i < l->local; i++) {
        s->clip[i] = clips[i];
        s->caption[i] = ts_dataset_caption(l->dataset, clips[i]);
        TS_TRY(read_latent(l, s, i, clips[i], elements));
    }
    return TS_OK;
}

// ---- the thread

// A slot may be filled when it is empty and the caller does not hold it: the caller holds the one it took last.
static void *read_ahead(void *argument) {
    ts_loader *l = argument;
    for (int64_t number = 0;; number++) {
        slot *s = &l->slot[number % SLOTS];
        pthread_mutex_lock(&l->lock);
        while (!l->stop && number >= l->taken + SLOTS - (l->taken > 0)) {
            pthread_cond_wait(&l->changed, &l->lock);
        }
        const bool stop = l->stop;
        pthread_mutex_unlock(&l->lock);
        if (stop) {
            return NULL;
        }
        s->status = fill(l, s, l->ahead);
        if (s->status) {  // error texts are kept per thread
            snprintf(s->text, sizeof s->text, "%s", ts_error_text());
            snprintf(s->place, sizeof s->place, "%s", ts_error_place());
        }
        advance(l, &l->ahead);
        pthread_mutex_lock(&l->lock);
        s->full = true;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->lock);
    }
}

static int start(ts_loader *l) {
    l->ahead = l->next;
    l->taken = 0;
    l->stop = false;
    for (int i = 0; i < SLOTS; i++) {
        l->slot[i].full = false;
    }
    if (pthread_create(&l->thread, NULL, read_ahead, l)) {
        return TS_FAIL(TS_ERESOURCE, "loader: the system gives no thread; raise the limit of processes (ulimit -u)");
    }
    l->running = true;
    return TS_OK;
}

static void stop(ts_loader *l) {
    if (l->running) {
        pthread_mutex_lock(&l->lock);
        l->stop = true;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->lock);
        pthread_join(l->thread, NULL);
        l->running = false;
    }
}

int ts_loader_next(ts_loader *l, ts_batch *out) {
    if (!l->running) {
        TS_TRY(start(l));
    }
    const double begin = ts_clock_seconds();
    pthread_mutex_lock(&l->lock);
    slot *s = &l->slot[l->taken % SLOTS];
    if (l->taken > 0) {  // the one the caller held
        l->slot[(l->taken - 1) % SLOTS].full = false;
    }
    l->taken++;
    pthread_cond_broadcast(&l->changed);
    while (!s->full) {
        pthread_cond_wait(&l->changed, &l->lock);
    }
    pthread_mutex_unlock(&l->lock);
    l->wait += ts_clock_seconds() - begin;
    if (s->status) {
        ts_error_set(s->status, s->place, s->text);
        return s->status;
    }
    *out = s->batch;
    l->next = s->batch.next;
    return TS_OK;
}

int ts_loader_seek(ts_loader *l, ts_cursor cursor) {
    if (cursor.epoch < 0 || cursor.batch < 0 || cursor.samples < 0 || cursor.batch > l->batches) {
        return TS_FAIL(
            TS_EINPUT,
            "loader: epoch %lld, batch %lld of %lld, sample %lld is no place in this data set; batch size and "
            "data must be those of the run that is continued",
            (long long)cursor.epoch, (long long)cursor.batch, (long long)l->batches, (long long)cursor.samples);
    }
    stop(l);
    if (cursor.batch == l->batches) {  // the end of an epoch is the start of the next
        cursor.batch = 0;
        cursor.epoch++;
    }
    l->next = cursor;
    return TS_OK;
}

double ts_loader_wait_seconds(ts_loader *l) {
    const double wait = l->wait;
    l->wait = 0;
    return wait;
}

int64_t ts_loader_batches_per_epoch(const ts_loader *l) {
    return l->batches;
}

int64_t ts_loader_validation(const ts_loader *l, const int64_t **clips) {
    *clips = l->validation;
    return l->validation_count;
}

// ---- life

static int by_number(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

// Takes the validation clips off and deals the others out to their buckets. l->order serves as scratch.
static int deal(ts_loader *l) {
    const int64_t clips = ts_dataset_clips(l->dataset), held = l->params.held_out;
    ts_rng_permutation(l->order, clips, l->key, TS_RNG_SHUFFLE, UINT64_MAX);
    memcpy(l->validation, l->order, (size_t)held * sizeof *l->validation);
    qsort(l->validation, (size_t)held, sizeof *l->validation, by_number);
    qsort(l->order + held, (size_t)(clips - held), sizeof *l->order, by_number);
    l->validation_count = held;
    for (int64_t i = held; i < clips; i++) {
        l->bucket[ts_dataset_bucket_of(l->dataset, l->order[i])].count++;
    }
    for (int b = 0; b < l->buckets; b++) {
        bucket *k = &l->bucket[b];
        k->shape = ts_dataset_bucket_shape(l->dataset, b);
        k->clip = ts_malloc((size_t)(k->count + 1) * sizeof *k->clip);
        if (!k->clip) {
            return TS_ERESOURCE;
        }
        k->batches = k->count / l->params.batch;
        l->batches += k->batches;
        k->count = 0;
    }
    for (int64_t i = held; i < clips; i++) {
        bucket *k = &l->bucket[ts_dataset_bucket_of(l->dataset, l->order[i])];
        k->clip[k->count++] = l->order[i];
    }
    return TS_OK;
}

static int make_room(ts_loader *l) {
    const int64_t clips = ts_dataset_clips(l->dataset);
    int64_t largest = 0;
    l->buckets = ts_dataset_buckets(l->dataset);
    for (int b = 0; b < l->buckets; b++) {
        const int64_t elements = ts_shape_count(ts_dataset_bucket_shape(l->dataset, b));
        largest = elements > largest ? elements : largest;
    }
    const int64_t local = l->params.batch > clips ? 0 : l->local;  // such a batch is never filled
    const size_t items = (size_t)local + 1;
    bool good = true;
    for (int i = 0; i < SLOTS; i++) {
        slot *s = &l->slot[i];
        s->clip = ts_malloc(items * sizeof *s->clip);
        s->caption = ts_malloc(items * sizeof *s->caption);
        const size_t elements = (size_t)(local * largest + 1);
        if (l->params.device->is_host) {
            s->latent = ts_aligned_alloc(elements * sizeof *s->latent);
        } else {
            s->bits = l->params.device->allocate_host(elements * sizeof *s->bits);
        }
        good = good && s->clip && s->caption && (s->latent || s->bits);
    }
    l->bits = ts_malloc((size_t)largest * sizeof *l->bits);
    l->bucket = ts_calloc((size_t)l->buckets, sizeof *l->bucket);
    l->order = ts_malloc((size_t)(clips + 1) * sizeof *l->order);
    l->validation = ts_malloc((size_t)(l->params.held_out + 1) * sizeof *l->validation);
    return good && l->bits && l->bucket && l->order && l->validation ? TS_OK : TS_ERESOURCE;
}

static int open_all(ts_loader *l) {
    const ts_loader_params *p = &l->params;
    const int64_t clips = ts_dataset_clips(l->dataset);
    if (p->batch < 1 || p->batch > INT32_MAX || p->size < 1 || p->rank < 0 || p->rank >= p->size) {
        return TS_FAIL(TS_EUSAGE, "loader: batch %lld on rank %d of %d; a batch has 1 to 2^31 clips",
                       (long long)p->batch, p->rank, p->size);
    }
    if (p->held_out < 0 || p->held_out > clips) {
        return TS_FAIL(TS_EUSAGE, "%lld clips cannot be held out of %lld; hold out fewer", (long long)p->held_out,
                       (long long)clips);
    }
    const ts_part own = ts_split(p->batch, p->size, p->rank);
    l->first = own.first;
    l->local = own.count;
    const uint64_t identity[2] = {ts_dataset_fingerprint(l->dataset), p->seed};
    l->key = XXH3_64bits(identity, sizeof identity);
    l->order_epoch = -1;
    TS_TRY(make_room(l));
    TS_TRY(deal(l));
    if (!l->batches) {
        return TS_FAIL(TS_EINPUT,
                       "no latent shape has the %lld clips that a batch needs, the %lld held out aside; lower the "
                       "batch, hold out fewer or ingest more videos",
                       (long long)p->batch, (long long)l->validation_count);
    }
    l->plan = ts_malloc((size_t)(l->batches + 1) * sizeof *l->plan);
    return l->plan ? TS_OK : TS_ERESOURCE;
}

int ts_loader_open(ts_loader **out, const ts_dataset *dataset, const ts_loader_params *params) {
    *out = NULL;
    ts_loader *l = ts_calloc(1, sizeof *l);
    if (!l) {
        return TS_ERESOURCE;
    }
    l->dataset = dataset;
    l->params = *params;
    l->params.device = params->device ? params->device : &ts_device_host;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    const int status = open_all(l);
    if (status) {
        ts_loader_close(&l);
    }
    *out = l;
    return status;
}

void ts_loader_close(ts_loader **loader) {
    ts_loader *l = *loader;
    if (!l) {
        return;
    }
    stop(l);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    for (int i = 0; i < SLOTS; i++) {
        free(l->slot[i].latent);
        l->params.device->release_host(l->slot[i].bits);
        free(l->slot[i].clip);
        free(l->slot[i].caption);
    }
    for (int b = 0; l->bucket && b < l->buckets; b++) {
        free(l->bucket[b].clip);
    }
    free(l->bucket);
    free(l->validation);
    free(l->order);
    free(l->plan);
    free(l->bits);
    free(l);
    *loader = NULL;
}
