// SPDX-License-Identifier: Apache-2.0
// tessera plan: options, the table and the JSON of a plan.
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/status.h"
#include "core/config/command.h"
#include "train/plan.h"

typedef struct plan_options {
    ts_train_config train;  // first: the table of its options is shared
    int64_t devices, vocabulary;
    const char *hardware, *latent;
    bool all, json;
} plan_options;

#define AT(field) .offset = offsetof(plan_options, field)
static const ts_option own_options[] = {
    {.name = "devices",
     .type = TS_OPTION_INT,
     AT(devices),
     .min = 1,
     .max = 1 << 16,
     .help = "devices, each of which runs a rank",
     .required = true},
    {.name = "hardware",
     .type = TS_OPTION_STRING,
     AT(hardware),
     .otherwise = "configs/hardware/h200.yaml",
     .help = "YAML file of the devices' rates and memory and of what lies between them"},
    {.name = "latent",
     .type = TS_OPTION_STRING,
     AT(latent),
     .help = "latent frames x rows x columns x channels of a sample, instead of a data set"},
    {.name = "vocabulary",
     .type = TS_OPTION_INT,
     AT(vocabulary),
     .otherwise = "1000",
     .min = 1,
     .max = 1 << 24,
     .help = "with latent: words that the text encoder knows"},
    {.name = "all", .type = TS_OPTION_BOOL, AT(all), .help = "print every mesh, not only the best"},
    {.name = "json", .type = TS_OPTION_BOOL, AT(json), .help = "print one JSON object, of every mesh"},
};

// The options of tessera train after our own; a data set is no longer required.
static ts_option *make_table(ts_arena *arena) {
    const size_t own = sizeof own_options / sizeof *own_options;
    size_t count = 0;
    while (ts_train_options[count].name) {
        count++;
    }
    ts_option *table = ts_arena_zalloc(arena, (own + count + 1) * sizeof *table);
    if (table) {
        memcpy(table, own_options, own * sizeof *table);
        memcpy(table + own, ts_train_options, count * sizeof *table);
        for (size_t i = own; i < own + count; i++) {
            table[i].required = false;
        }
    }
    return table;
}

// ---- one mesh

static double gib(double bytes) {
    return bytes / (1 << 30);
}

// Bytes that a rank sends along the axes of a group.
static double sent(const ts_plan_step *step, ts_axis first, ts_axis second, ts_axis third) {
    const ts_axis axis[] = {first, second, third};
    double bytes = 0;
    for (int i = 0; i < 3; i++) {
        for (int kind = 0; kind < TS_COLLECTIVE_COUNT && (i == 0 || axis[i] != axis[i - 1]); kind++) {
            bytes += step->message[axis[i]][kind].bytes;
        }
    }
    return bytes;
}

// "{data: 2, tensor: 4}"
static const char *mesh_text(const ts_degrees *d, char *out, size_t bytes) {
    const struct {
        const char *name;
        int degree;
    } axis[] = {{"data", d->data}, {"ring", d->ring}, {"ulysses", d->ulysses}, {"tensor", d->tensor}};
    size_t used = (size_t)snprintf(out, bytes, "{");
    for (int i = 0; i < 4; i++) {
        if (axis[i].degree > 1 && used < bytes) {
            used += (size_t)snprintf(out + used, bytes - used, "%s%s: %d", used > 1 ? ", " : "", axis[i].name,
                                     axis[i].degree);
        }
    }
    if (used < bytes) {
        snprintf(out + used, bytes - used, used > 1 ? "}" : "data: 1}");
    }
    return out;
}

// ---- the table

static void print_item(const ts_plan_item *item, double limit_gib) {
    const ts_plan_step *s = &item->step;
    const ts_plan_time *t = &item->time;
    char mesh[96], note[64] = "";
    double messages = t->waiting - t->hidden;
    for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
        messages += t->message[axis];
    }
    if (!item->fits) {
        snprintf(note, sizeof note, "  does not fit %.1f GiB", limit_gib);
    }
    printf("%-40s %-11s %6" PRId64 " %8.2f %10.4g %9.4f %9.4f %9.4f %10.2f %10.2f %10.2f%s\n",
           mesh_text(&s->degree, mesh, sizeof mesh), ts_recompute_names[s->recompute], s->micro_batch, gib(s->memory),
           1e-12 * s->flops, 1e-9 * sent(s, TS_AXIS_TENSOR, TS_AXIS_TENSOR, TS_AXIS_TENSOR),
           1e-9 * sent(s, TS_AXIS_RING, TS_AXIS_ULYSSES, TS_AXIS_MODEL),
           1e-9 * sent(s, TS_AXIS_DATA, TS_AXIS_REPLICA, TS_AXIS_WORLD), 1e3 * (t->compute + t->optimizer),
           1e3 * messages, 1e3 * t->total, note);
}

static void print_plan(const ts_plan *plan, const ts_plan_run *run, const ts_hardware *hardware, bool all) {
    enum { BEST = 10 };
    const int64_t shown = all || plan->items < BEST ? plan->items : BEST;
    char mesh[96], shape[80];
    printf("A training step of %" PRId64 " samples, latents %s, %" PRId64 " tokens each, on %d devices of: %s\n\n",
           run->config->train.batch, ts_shape_text(run->latent, shape, sizeof shape), ts_plan_tokens(run),
           plan->devices, hardware->name);
    printf("%-40s %-11s %6s %8s %10s %9s %9s %9s %10s %10s %10s\n", "", "", "micro", "GiB of", "TFLOP of", "GB sent",
           "GB sent", "GB sent", "ms", "ms", "ms");
    printf("%-40s %-11s %6s %8s %10s %9s %9s %9s %10s %10s %10s\n", "mesh", "recompute", "batch", "memory", "a rank",
           "tensor", "sequence", "data", "computing", "sending", "a step");
    for (int64_t i = 0; i < shown; i++) {
        print_item(&plan->item[i], hardware->memory_gib);
    }
    if (shown < plan->items) {
        printf("and %" PRId64 " more: --all\n", plan->items - shown);
    }
    if (plan->fitting < plan->items) {
        printf("%" PRId64 " of %" PRId64 " do not fit %.1f GiB\n", plan->items - plan->fitting, plan->items,
               hardware->memory_gib);
    }
    const ts_plan_step *best = &plan->item[0].step;
    printf("\nRecommended, for the training configuration:\n  mesh: %s\n  train.recompute: %s\n",
           mesh_text(&best->degree, mesh, sizeof mesh), ts_recompute_names[best->recompute]);
}

// ---- JSON

static json_t *messages_json(const ts_plan_item *item) {
    json_t *axes = json_object();
    for (int axis = 0; axis < TS_AXIS_COUNT; axis++) {
        json_t *kinds = json_object();
        for (int kind = 0; kind < TS_COLLECTIVE_COUNT; kind++) {
            const ts_plan_message *m = &item->step.message[axis][kind];
            if (m->calls > 0) {
                json_object_set_new(kinds, ts_collective_name((ts_collective)kind),
                                    json_pack("{s:f, s:f}", "calls", m->calls, "bytes", m->bytes));
            }
        }
        if (json_object_size(kinds) > 0) {
            json_object_set_new(kinds, "seconds", json_real(item->time.message[axis]));
            json_object_set(axes, ts_axis_name((ts_axis)axis), kinds);
        }
        json_decref(kinds);
    }
    return axes;
}

static json_t *item_json(const ts_plan_item *item) {
    const ts_plan_step *s = &item->step;
    const ts_plan_time *t = &item->time;
    return json_pack("{s:{s:i, s:i, s:i, s:i}, s:s, s:I, s:I, s:b, s:f, s:f, s:f, s:o, s:{s:f, s:f, s:f, s:f, s:f}}",
                     "mesh", "data", s->degree.data, "ring", s->degree.ring, "ulysses", s->degree.ulysses, "tensor",
                     s->degree.tensor, "recompute", ts_recompute_names[s->recompute], "micro_batch",
                     (json_int_t)s->micro_batch, "micro_batches", (json_int_t)s->micro_batches, "fits", item->fits,
                     "memory_bytes", s->memory, "parameters", s->parameters, "flops", s->flops, "messages",
                     messages_json(item), "seconds", "compute", t->compute, "waiting", t->waiting, "optimizer",
                     t->optimizer, "hidden", t->hidden, "total", t->total);
}

static int print_json(const ts_plan *plan, const ts_plan_run *run, const ts_hardware *hardware) {
    json_t *items = json_array();
    for (int64_t i = 0; i < plan->items; i++) {
        json_array_append_new(items, item_json(&plan->item[i]));
    }
    json_t *report = json_pack("{s:i, s:s, s:I, s:I, s:o, s:o}", "devices", plan->devices, "hardware", hardware->name,
                               "batch", (json_int_t)run->config->train.batch, "tokens", (json_int_t)ts_plan_tokens(run),
                               "recommended", item_json(&plan->item[0]), "meshes", items);
    const int failed = !report || json_dumpf(report, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(report);
    return failed ? TS_FAIL(TS_ERESOURCE, "cannot write the plan") : TS_OK;
}

// ---- the command

// Nothing fits: the mesh that needs least, and what would help.
static int refuse(const ts_plan *plan, const ts_hardware *hardware) {
    const ts_plan_step *least = NULL;
    char mesh[96];
    for (int64_t i = 0; i < plan->items; i++) {
        const ts_plan_step *s = &plan->item[i].step;
        least = !least || s->memory < least->memory ? s : least;
    }
    if (!least) {
        return TS_FAIL(TS_EUSAGE,
                       "%d devices have no mesh that gives each of them samples, tokens and heads; take another number "
                       "of devices, or raise train.batch",
                       plan->devices);
    }
    return TS_FAIL(TS_ERESOURCE,
                   "no mesh of %d devices fits %.1f GiB: the least, mesh: %s with train.recompute=%s, needs %.1f GiB a "
                   "device; try more devices, train.gradients=bf16, train.micro_batch=1, or a smaller model",
                   plan->devices, hardware->memory_gib, mesh_text(&least->degree, mesh, sizeof mesh),
                   ts_recompute_names[least->recompute], gib(least->memory));
}

static int plan(const plan_options *o, ts_arena *arena) {
    ts_plan_run run;
    ts_hardware hardware;
    ts_plan made;
    TS_TRY(ts_plan_run_open(&run, &o->train, o->latent, o->vocabulary));
    TS_TRY(ts_hardware_read(&hardware, arena, o->hardware));
    TS_TRY(ts_plan_make(&made, &run, &hardware, (int)o->devices));
    int status = TS_OK;
    if (!made.fitting) {
        status = refuse(&made, &hardware);
    } else if (o->json) {
        status = print_json(&made, &run, &hardware);
    } else {
        print_plan(&made, &run, &hardware, o->all);
    }
    ts_plan_free(&made);
    return status;
}

static int read_options(plan_options *o, ts_arena *arena, int argc, char **argv, bool *help) {
    const ts_command command = {
        .usage = "tessera plan CONFIG.yaml --devices N [--hardware FILE.yaml] [--key=value ...]\n"
                 "Foretells a training step on every mesh of N devices, and recommends one.",
        .table = make_table(arena),
        .takes_file = true,
    };
    if (!command.table) {
        return TS_ERESOURCE;
    }
    TS_TRY(ts_command_read(&command, o, arena, argc, argv, help));
    if (*help) {
        return TS_OK;
    }
    if (!o->train.data && !o->latent) {
        return TS_FAIL(TS_EUSAGE, "neither data nor --latent is given: name a data set, or the shape of its latents");
    }
    o->train.data = o->latent ? "(latent)" : o->train.data;  // not looked at then; training requires one
    return ts_train_config_finish(&o->train, arena);
}

int ts_command_plan(ts_comm *world, int argc, char **argv) {
    ts_arena *arena = NULL;
    plan_options options = {0};
    bool help = false;
    TS_TRY(ts_agree(world, ts_arena_open(&arena, "plan", 1 << 16, false)));
    int status = read_options(&options, arena, argc, argv, &help);
    if (!status && !help && ts_comm_rank(world) == 0) {
        status = plan(&options, arena);
    }
    ts_arena_close(&arena);
    return ts_agree(world, status);
}
