// SPDX-License-Identifier: Apache-2.0
#include "train/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/status.h"
#include "core/model/codec.h"
#include "core/model/model.h"
#include "core/model/tokenizer.h"
#include "core/store/dataset.h"

// ---- time

// Ranks of an axis: how many, and how far apart in the world, where the tensor axis is fastest.
static ts_placement placement(const ts_degrees *d, ts_axis axis) {
    const int sequence = d->ring * d->ulysses, model = sequence * d->tensor, video = model * d->cfg;
    switch (axis) {
    case TS_AXIS_DATA:
        return (ts_placement){d->data, video};
    case TS_AXIS_CFG:
        return (ts_placement){d->cfg, model};
    case TS_AXIS_RING:
        return (ts_placement){d->ring, d->tensor * d->ulysses};
    case TS_AXIS_ULYSSES:
        return (ts_placement){d->ulysses, d->tensor};
    case TS_AXIS_TENSOR:
        return (ts_placement){d->tensor, 1};
    case TS_AXIS_SEQUENCE:
        return (ts_placement){sequence, d->tensor};
    case TS_AXIS_MODEL:
        return (ts_placement){model, 1};
    case TS_AXIS_VIDEO:
        return (ts_placement){video, 1};
    case TS_AXIS_REPLICA:
        return (ts_placement){d->data * d->cfg * sequence, d->tensor};
    default:
        return (ts_placement){d->data * video, 1};
    }
}

// Sums of gradients and weights travel in the asynchronous forms; they alone use these axes.
static ts_line_kind line_of(ts_axis axis, ts_collective kind) {
    const bool started = axis == TS_AXIS_REPLICA || axis == TS_AXIS_WORLD;
    switch (kind) {
    case TS_ALL_REDUCE:
        return TS_LINE_ALL_REDUCE;
    case TS_BROADCAST:
        return TS_LINE_BROADCAST;
    case TS_ALL_GATHER:
        return started ? TS_LINE_ALL_GATHER_STARTED : TS_LINE_ALL_GATHER;
    case TS_REDUCE_SCATTER:
        return started ? TS_LINE_REDUCE_SCATTER_STARTED : TS_LINE_REDUCE_SCATTER;
    case TS_ALL_TO_ALL:
        return TS_LINE_ALL_TO_ALL;
    case TS_RING:
        return TS_LINE_RING;
    default:
        return TS_LINE_BARRIER;
    }
}

static bool is_update(const ts_cost *cost) {
    return !strcmp(cost->entry, "adamw") || !strcmp(cost->entry, "sum_squares") || !strcmp(cost->entry, "clear");
}

static int predict_messages(ts_plan_time *out, const ts_hardware *hardware, const ts_plan_step *step) {
    for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
        for (int kind = 0; kind < TS_COLLECTIVE_COUNT; kind++) {
            const ts_plan_message *m = &step->message[axis][kind];
            const ts_line_kind line = line_of((ts_axis)axis, (ts_collective)kind);
            double seconds;
            TS_TRY(ts_hardware_message(hardware, line, placement(&step->degree, (ts_axis)axis), m->calls, m->bytes,
                                       &seconds));
            out->message[axis] += seconds;
            out->total += seconds;
            out->hidden += line == TS_LINE_REDUCE_SCATTER_STARTED ? hardware->hidden_share * seconds : 0;
        }
    }
    out->total -= out->hidden;
    return TS_OK;
}

int ts_plan_predict(ts_plan_time *out, const ts_hardware *hardware, const ts_plan_step *step) {
    *out = (ts_plan_time){0};
    for (int64_t i = 0; i < step->calls; i++) {
        double seconds;
        TS_TRY(ts_hardware_call(hardware, &step->call[i].cost, &seconds));
        *(is_update(&step->call[i].cost) ? &out->optimizer : &out->compute) += step->call[i].times * seconds;
    }
    if (placement(&step->degree, TS_AXIS_WORLD).size > 1) {
        out->waiting = hardware->wait_share * (out->compute + out->optimizer);
    }
    out->total = out->compute + out->waiting + out->optimizer;
    return predict_messages(out, hardware, step);
}

// ---- all meshes

static bool has_work(const ts_plan_run *run, const ts_degrees *d) {
    return d->data <= run->config->train.batch && (int64_t)d->tensor * d->ulysses <= run->dit.heads &&
           (int64_t)d->ring * d->ulysses <= ts_plan_tokens(run);
}

// The next divisor of n after d, or 0.
static int next_divisor(int n, int d) {
    do {
        d++;
    } while (d <= n && n % d);
    return d <= n ? d : 0;
}

// Tensor, then ulysses, then ring, with data the rest: a counter whose places are divisors.
static bool advance(int devices, ts_degrees *d) {
    if (!d->tensor) {
        *d = (ts_degrees){devices, 1, 1, 1, 1};
        return true;
    }
    int *const place[] = {&d->tensor, &d->ulysses, &d->ring};
    int rest = devices / d->ring / d->ulysses;  // that this place may divide
    for (int i = 0; i < 3; i++) {
        *place[i] = next_divisor(rest, *place[i]);
        if (*place[i]) {
            d->data = devices / (d->ring * d->ulysses * d->tensor);
            return true;
        }
        *place[i] = 1;
        rest = i == 0 ? devices / d->ring : devices;
    }
    return false;
}

bool ts_plan_next_mesh(const ts_plan_run *run, int devices, ts_degrees *degree) {
    while (advance(devices, degree)) {
        if (has_work(run, degree)) {
            return true;
        }
    }
    return false;
}

// ---- the plan

static int add_item(ts_plan *plan, const ts_plan_run *run, const ts_hardware *hardware, const ts_degrees *degree,
                    ts_recompute recompute) {
    ts_plan_item *item = realloc(plan->item, (size_t)(plan->items + 1) * sizeof *item);
    if (!item) {
        return TS_FAIL(TS_ERESOURCE, "out of memory for a plan of %" PRId64 " meshes", plan->items + 1);
    }
    plan->item = item;
    item += plan->items;
    *item = (ts_plan_item){0};
    TS_TRY(ts_plan_step_count(&item->step, run, degree, recompute));
    plan->items++;
    item->fits = hardware->memory_gib <= 0 || item->step.memory <= hardware->memory_gib * (double)(1 << 30);
    plan->fitting += item->fits;
    return ts_plan_predict(&item->time, hardware, &item->step);
}

static int compare(const void *a, const void *b) {
    const ts_plan_item *x = a, *y = b;
    if (x->fits != y->fits) {
        return x->fits ? -1 : 1;
    }
    return (x->time.total > y->time.total) - (x->time.total < y->time.total);
}

int ts_plan_make(ts_plan *out, const ts_plan_run *run, const ts_hardware *hardware, int devices) {
    *out = (ts_plan){.devices = devices};
    for (ts_degrees degree = {0}; ts_plan_next_mesh(run, devices, &degree);) {
        for (int recompute = TS_RECOMPUTE_NONE; recompute <= TS_RECOMPUTE_BLOCK; recompute++) {
            const int status = add_item(out, run, hardware, &degree, (ts_recompute)recompute);
            if (status) {
                ts_plan_free(out);
                return status;
            }
        }
    }
    if (out->items) {
        qsort(out->item, (size_t)out->items, sizeof *out->item, compare);
    }
    return TS_OK;
}

void ts_plan_free(ts_plan *plan) {
    for (int64_t i = 0; i < plan->items; i++) {
        ts_plan_step_free(&plan->item[i].step);
    }
    free(plan->item);
    *plan = (ts_plan){0};
}

// ---- what is planned

static int parse_latent(const char *text, ts_shape *out) {
    enum { MOST = 1 << 16 };
    int64_t d[4] = {0};
    char rest;
    const int fields =
        sscanf(text, "%6" SCNd64 "x%6" SCNd64 "x%6" SCNd64 "x%6" SCNd64 "%c", &d[0], &d[1], &d[2], &d[3], &rest);
    if (fields != 4 || d[0] < 1 || d[1] < 1 || d[2] < 1 || d[3] < 1 || d[0] > MOST || d[1] > MOST || d[2] > MOST ||
        d[3] > MOST) {
        return TS_FAIL(TS_EUSAGE,
                       "latent: '%.40s' is not frames x rows x columns x channels; write for example 5x8x8x16", text);
    }
    *out = TS_SHAPE(d[0], d[1], d[2], d[3]);
    return TS_OK;
}

// The shape with the most numbers, and the size of the vocabulary.
static int read_dataset(const char *folder, ts_shape *latent, int64_t *vocabulary) {
    ts_dataset *dataset = NULL;
    ts_tokenizer *tokenizer = NULL;
    char path[4096];
    int status = TS_OK;
    TS_TRY(ts_dataset_open(&dataset, folder, false));
    *latent = ts_dataset_bucket_shape(dataset, 0);
    for (int i = 1; i < ts_dataset_buckets(dataset); i++) {
        const ts_shape shape = ts_dataset_bucket_shape(dataset, i);
        *latent = ts_shape_count(shape) > ts_shape_count(*latent) ? shape : *latent;
    }
    TS_TRY_GOTO(status, ts_path_join(path, sizeof path, folder, "tokenizer"), done);
    TS_TRY_GOTO(status, ts_tokenizer_load(&tokenizer, path), done);
    *vocabulary = ts_tokenizer_vocabulary(tokenizer);
done:
    ts_tokenizer_close(&tokenizer);
    ts_dataset_close(&dataset);
    return status;
}

static int check_latent(const ts_plan_run *run) {
    enum { MOST_TOKENS = 1 << 30 };
    const int64_t *patch = run->dit.patch, *dim = run->latent.dim;
    for (int i = 0; i < 3; i++) {
        if (dim[i] % patch[i] || dim[i] / patch[i] > run->dit.rope_max_positions) {
            char text[80];
            return TS_FAIL(TS_EUSAGE,
                           "latents %s do not fit model.patch %" PRId64 "x%" PRId64 "x%" PRId64
                           " and model.rope_max_positions=%" PRId64 "; change one of them",
                           ts_shape_text(run->latent, text, sizeof text), patch[0], patch[1], patch[2],
                           run->dit.rope_max_positions);
        }
    }
    if (ts_plan_tokens(run) > MOST_TOKENS) {
        return TS_FAIL(TS_EUSAGE, "latents of %" PRId64 " tokens a sample; at most %d are planned for",
                       ts_plan_tokens(run), MOST_TOKENS);
    }
    return TS_OK;
}

int ts_plan_run_open(ts_plan_run *out, const ts_train_config *config, const char *latent, int64_t vocabulary) {
    *out = (ts_plan_run){.config = config, .on_device = !strcmp(ts_device_names[config->device], "cuda")};
    if (latent) {
        TS_TRY(parse_latent(latent, &out->latent));
    } else {
        TS_TRY(read_dataset(config->data, &out->latent, &vocabulary));
    }
    out->dit = ts_train_config_dit(config, out->latent.dim[3]);
    out->text = ts_train_config_text(config, vocabulary);
    if (config->init) {
        ts_model_params model;
        TS_TRY(ts_model_describe(&model, config->init));
        out->dit = model.dit;
        out->text = model.text;
    }
    return check_latent(out);
}
