// SPDX-License-Identifier: Apache-2.0
#include "train/config.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "core/base/json.h"
#include "core/base/status.h"
#include "infer/timeline/prompts.h"

static const char *const PRECISIONS[] = {"bf16", "f32", NULL};
static const char *const OPTIMIZERS[] = {"adamw", "muon", NULL};
const char *const ts_recompute_names[] = {"none", "elementwise", "block", "auto", NULL};
static const char *const ROUNDINGS[] = {"nearest", "stochastic", NULL};
static const char *const GRADIENTS[] = {"f32", "bf16", NULL};
static const char *const SCHEDULES[] = {"cosine", "constant", NULL};
static const char *const REPORTS[] = {"none", "comm", NULL};

#define AT(field) .offset = offsetof(ts_train_config, field)
#define INT(key, field, value, low, high, text)                                                                        \
    { .name = key, .type = TS_OPTION_INT, AT(field), .otherwise = value, .help = text, .min = low, .max = high }
#define REAL(key, field, value, low, high, text)                                                                       \
    { .name = key, .type = TS_OPTION_REAL, AT(field), .otherwise = value, .help = text, .min = low, .max = high }
#define BOOL(key, field, value, text)                                                                                  \
    { .name = key, .type = TS_OPTION_BOOL, AT(field), .otherwise = value, .help = text }
#define STRING(key, field, value, needed, text)                                                                        \
    { .name = key, .type = TS_OPTION_STRING, AT(field), .otherwise = value, .help = text, .required = needed }
#define CHOICE(key, field, value, list, text)                                                                          \
    { .name = key, .type = TS_OPTION_CHOICE, AT(field), .otherwise = value, .help = text, .of = list }

// clang-format off: one option a line or two, like the page it prints
const ts_option ts_train_options[] = {
    STRING("name", name, "run", false, "name of the run"),
    STRING("out", out, NULL, false, "folder of the run; runs/NAME when unset"),
    STRING("data", data, NULL, true, "data set folder, as written by tessera ingest"),
    STRING("init", init, NULL, false,
           "model folder to start from instead of random weights; its sizes replace model.* and text.*"),
    INT("seed", seed, "1", 0, 9e15, "seed of weights, sample order and noise"),
    CHOICE("precision", precision, "bf16", PRECISIONS,
           "operands of matrix products and attention; sums and weights are f32 in both"),
    CHOICE("device", device, "auto", ts_device_names,
           "where to compute: cuda, a GPU for each rank of a host in turn; cpu; auto: cuda where there is a GPU. plan "
           "counts for GPUs when told cuda"),
    INT("threads", threads, "0", 0, 4096,
        "threads of each rank; 0: the cores of the machine shared out over its ranks"),

    INT("mesh.data", mesh.data, "0", 0, 1 << 20, "ranks that share a batch; 0: those that the other axes leave"),
    INT("mesh.cfg", mesh.cfg, "1", 1, 1 << 20,
        "ranks that share the branches of guidance, for sampling; 1 in training"),
    INT("mesh.sequence", mesh.sequence, "0", 0, 1 << 20,
        "ranks that share the tokens of a video, split into ulysses and ring; 0: what these two say"),
    INT("mesh.ulysses", mesh.ulysses, "0", 0, 1 << 20, "of them, ranks that exchange tokens for heads; 0: unsaid"),
    INT("mesh.ring", mesh.ring, "0", 0, 1 << 20, "of them, ranks that pass keys and values round; 0: unsaid"),
    INT("mesh.tensor", mesh.tensor, "1", 1, 1 << 20, "ranks that share the matrices of a layer"),

    INT("model.heads", model.heads, "4", 1, 512, "attention heads; the width is heads x head_dim"),
    INT("model.head_dim", model.head_dim, "32", 8, 512, "width of a head, even"),
    INT("model.layers", model.layers, "4", 1, 1000, "transformer blocks"),
    INT("model.ffn_dim", model.ffn_dim, "512", 1, 1 << 20, "width of the feed-forward"),
    INT("model.freq_dim", model.freq_dim, "256", 2, 4096, "width of the sinusoid of the noise level, even"),
    STRING("model.patch", model.patch, "1x2x2", false, "latent frames x rows x columns that make a token"),
    INT("model.text_rows", model.text_rows, "16", 1, 4096,
        "rows of the text context; shorter prompts are padded with zeros"),
    BOOL("model.absolute_positions", model.absolute_positions, "false",
         "add a learned projection of the absolute position to each patch"),
    INT("model.rope_max_positions", model.rope_max_positions, "1024", 1, 1 << 20, "largest token count on one axis"),

    INT("text.width", text.width, "64", 8, 16384, "width of the text encoder"),
    INT("text.heads", text.heads, "2", 1, 512, "attention heads of the text encoder"),
    INT("text.head_dim", text.head_dim, "32", 4, 512, "width of a text head"),
    INT("text.ffn_dim", text.ffn_dim, "128", 1, 1 << 17, "width of the text feed-forward"),
    INT("text.layers", text.layers, "1", 1, 100, "blocks of the text encoder"),

    INT("train.steps", train.steps, "1000", 1, 1e12, "optimizer steps"),
    REAL("train.minutes", train.minutes, "0", 0, 1e7,
         "stop after this much training time in minutes, summed over resumed runs; 0: no limit"),
    INT("train.batch", train.batch, "32", 1, 1 << 24, "samples of a step over all ranks"),
    INT("train.micro_batch", train.micro_batch, "0", 0, 1 << 24,
        "samples computed at once on a rank, which bounds the memory; 0: about 384 tokens, on a GPU 16,384"),
    REAL("train.lr", train.lr, "0.001", 0, 10, "peak learning rate"),
    REAL("train.lr_text", train.lr_text, "1", 0, 100, "factor of the learning rate for the text encoder"),
    CHOICE("train.optimizer", train.optimizer, "adamw", OPTIMIZERS,
           "muon: orthogonalised momentum for the matrices inside the blocks, AdamW for the rest"),
    // In f32 the micro-batches of a step add up without rounding, and nothing has to be folded between them: bf16 is
    // for models that fill the memory, or networks that are slow.
    CHOICE("train.gradients", train.gradients, "f32", GRADIENTS,
           "what sums of gradients are kept and sent in; bf16: 2 bytes a parameter less, half the traffic, less exact"),
    CHOICE("train.rounding", train.rounding, "nearest", ROUNDINGS,
           "how AdamW rounds the bf16 copies of weights that kernels read. stochastic: up or down by chance, so that "
           "updates too small for bf16 count on average; the same bits on any mesh without a tensor axis. After "
           "a restart or a look at the average the copies are those to nearest until the next step"),
    REAL("train.muon_lr", train.muon_lr, "10", 0, 1000,
         "muon: learning rate of its matrices as a multiple of train.lr"),
    REAL("train.muon_momentum", train.muon_momentum, "0.95", 0, 0.9999, "muon: decay of the momentum"),
    REAL("train.beta1", train.beta1, "0.9", 0, 0.99999, "AdamW: decay of the first moment"),
    REAL("train.beta2", train.beta2, "0.99", 0, 0.9999999, "AdamW: decay of the second moment"),
    REAL("train.eps", train.eps, "1e-8", 1e-20, 1, "AdamW: added to the root of the second moment"),
    REAL("train.weight_decay", train.weight_decay, "0.01", 0, 10,
         "AdamW: decay of matrices, per unit of learning rate"),
    INT("train.warmup", train.warmup, "100", 0, 1e12, "steps of linear warm-up"),
    CHOICE("train.schedule", train.schedule, "cosine", SCHEDULES, "learning rate after the warm-up"),
    REAL("train.final_lr_share", train.final_lr_share, "0.05", 0, 1, "share of the peak at which the cosine ends"),
    REAL("train.clip", train.clip, "1", 0, 1e9, "largest global gradient norm; 0: no clipping"),
    REAL("train.ema_decay", train.ema_decay, "0.999", 0, 0.9999999,
         "decay of the moving average of the weights, which validation, samples and model take; 0: none is kept"),
    INT("train.ema_warmup", train.ema_warmup, "10", 0, 1e9, "the average's decay at step t is at most t / (t + this)"),
    REAL("train.text_dropout", train.text_dropout, "0.1", 0, 1,
         "probability of training a sample without its caption, for guidance"),
    CHOICE("train.recompute", train.recompute, "auto", ts_recompute_names,
           "what the backward pass computes a second time. elementwise: all of a block that is cheap, a third of the "
           "memory of none; block: everything, least memory, a third more work; auto: the fastest that fits. All give "
           "the same bits"),
    REAL("train.memory_gib", train.memory_gib, "0", 0, 1e6,
         "memory that a rank may use, in GiB; 0: its share of what the machine has free"),

    REAL("noise.mean", noise.mean, "0", -10, 10, "mean of the logit of the noise level"),
    REAL("noise.std", noise.std, "1", 0, 10, "standard deviation of the logit of the noise level"),
    REAL("noise.shift", noise.shift, "2", 0.01, 100, "s in sigma = s u / (1 + (s - 1) u)"),
    REAL("noise.uniform_share", noise.uniform_share, "0", 0, 1,
         "share of the noise levels drawn uniformly before the shift"),

    REAL("patterns.all", patterns.all, "1", 0, 1, "weight of: one noise level for all frames"),
    REAL("patterns.prefix", patterns.prefix, "0", 0, 1, "weight of: the first frames are held clean"),
    REAL("patterns.suffix", patterns.suffix, "0", 0, 1, "weight of: the last frames are held clean"),
    REAL("patterns.both_ends", patterns.both_ends, "0", 0, 1, "weight of: first and last frames are held clean"),
    REAL("patterns.scattered", patterns.scattered, "0", 0, 1, "weight of: frames here and there are held clean"),
    REAL("patterns.independent", patterns.independent, "0", 0, 1, "weight of: every frame has its own noise level"),

    INT("validate.every", validate.every, "500", 0, 1e12, "steps between validations; 0: only at the end"),
    INT("validate.clips", validate.clips, "64", 0, 1 << 20,
        "clips held out of training to validate on; 0: no validation"),
    INT("validate.levels", validate.levels, "10", 1, 1000, "noise levels each is tried at"),
    INT("validate.patterns_every", validate.patterns_every, "0", 0, 1e12,
        "every n-th validation, and the last, also measures the other noise patterns that have a weight, each at the "
        "cost of one validation; 0: only the last"),

    INT("sample.every", sample.every, "0", 0, 1e12, "steps between sample videos; 0: none"),
    {.name = "sample.prompts",
     .type = TS_OPTION_LIST,
     AT(sample.prompts),
     .help = "prompts of the sample videos; captions of the validation clips when empty"},
    INT("sample.steps", sample.steps, "25", 1, 1000, "denoising steps of a sample; kept in the model as its default"),
    REAL("sample.guidance", sample.guidance, "3", 0, 100, "guidance of a sample; kept in the model as its default"),
    REAL("sample.shift", sample.shift, "2", 0.01, 100,
         "shift of the sampling levels; kept in the model as its default"),

    INT("checkpoint.every", checkpoint.every, "1000", 0, 1e12,
        "steps between checkpoints; 0: only at the end and on a signal"),
    INT("checkpoint.keep", checkpoint.keep, "2", 0, 1 << 20, "newest checkpoints that are kept; 0: all"),
    INT("checkpoint.keep_every", checkpoint.keep_every, "0", 0, 1e12,
        "also kept: those whose step is a multiple of this; 0: none"),
    BOOL("checkpoint.export_model", checkpoint.export_model, "false",
         "also write the model folder at each checkpoint, not only at the end"),

    INT("log.every", log.every, "50", 1, 1e12, "steps between logged lines"),
    CHOICE("report", report, "none", REPORTS,
           "what is printed at the end: comm, the calls and bytes of each axis and collective"),

    REAL("watch.timeout", watch.timeout, "300", 0, 1e6,
         "seconds after which a rank that gives no sign, or ranks that wait for each other, end the job; 0: never"),
    STRING("watch.network", watch.network, NULL, false,
           "interface or address of rank 0's host that the ranks' signs of life go to; absent: any that they reach"),
    {0}};
// clang-format on

static int parse_patch(ts_train_config *config) {
    int64_t *size = config->model.patch_size;
    char rest;
    const int fields =
        sscanf(config->model.patch, "%3" SCNd64 "x%3" SCNd64 "x%3" SCNd64 "%c", &size[0], &size[1], &size[2], &rest);
    if (fields != 3 || size[0] < 1 || size[1] < 1 || size[2] < 1 || size[0] * size[1] * size[2] > 4096) {
        return TS_FAIL(TS_EUSAGE, "model.patch: '%s' is not frames x rows x columns; write for example 1x2x2",
                       config->model.patch);
    }
    return TS_OK;
}

int ts_train_config_finish(ts_train_config *config, ts_arena *arena) {
    TS_TRY(ts_options_check(ts_train_options, config));
    TS_TRY(parse_patch(config));
    if (!config->out) {
        config->out = ts_arena_printf(arena, "runs/%s", config->name);
        if (!config->out) {
            return TS_ERESOURCE;
        }
    }
    if (config->model.head_dim % 2 || config->model.freq_dim % 2) {
        return TS_FAIL(TS_EUSAGE, "model.%s is odd; sines and cosines come in pairs: make it even",
                       config->model.head_dim % 2 ? "head_dim" : "freq_dim");
    }
    for (int64_t i = 0; i < config->sample.prompts.count; i++) {
        TS_TRY(ts_prompt_check(config->sample.prompts.items[i], "sample.prompts"));
    }
    if (config->mesh.cfg != 1) {
        return TS_FAIL(TS_EUSAGE, "mesh.cfg=%" PRId64 ": training has no branches of guidance to share; set it to 1",
                       config->mesh.cfg);
    }
    if (config->train.rounding == TS_ROUND_STOCHASTIC && config->train.optimizer == TS_OPTIMIZER_MUON) {
        return TS_FAIL(TS_EUSAGE, "train.rounding: stochastic is of AdamW's updates; set it to nearest with "
                                  "train.optimizer=muon, whose steps are as large as bf16 can tell");
    }
    const double patterns = config->patterns.all + config->patterns.prefix + config->patterns.suffix +
                            config->patterns.both_ends + config->patterns.scattered + config->patterns.independent;
    if (!(patterns > 0)) {
        return TS_FAIL(TS_EUSAGE, "patterns: every weight is 0; give patterns.all a weight of 1");
    }
    return TS_OK;
}

ts_dit_config ts_train_config_dit(const ts_train_config *config, int64_t latent_channels) {
    return (ts_dit_config){
        .patch = {config->model.patch_size[0], config->model.patch_size[1], config->model.patch_size[2]},
        .heads = config->model.heads,
        .head_dim = config->model.head_dim,
        .in_channels = latent_channels,
        .out_channels = latent_channels,
        .text_dim = config->text.width,
        .freq_dim = config->model.freq_dim,
        .ffn_dim = config->model.ffn_dim,
        .layers = config->model.layers,
        .rope_max_positions = config->model.rope_max_positions,
        .text_rows = config->model.text_rows,
        .eps = 1e-6,
        .cross_attention_norm = true,
        .absolute_positions = config->model.absolute_positions,
    };
}

ts_text_config ts_train_config_text(const ts_train_config *config, int64_t vocabulary) {
    return (ts_text_config){
        .vocabulary = vocabulary,
        .width = config->text.width,
        .head_dim = config->text.head_dim,
        .heads = config->text.heads,
        .ffn_dim = config->text.ffn_dim,
        .layers = config->text.layers,
        .buckets = 32,
        .max_distance = 128,
        .eps = 1e-6,
    };
}

// ---- mesh

// Ulysses and ring, as they are said or as `sequence` is split.
static int sequence_degrees(const ts_train_config *config, ts_degrees *out) {
    const int64_t sequence = config->mesh.sequence, ulysses = config->mesh.ulysses, ring = config->mesh.ring;
    if (!sequence || ulysses || ring) {
        out->ulysses = ulysses ? (int)ulysses : 1;
        out->ring = ring ? (int)ring : 1;
        if (sequence && sequence != (int64_t)out->ulysses * out->ring) {
            return TS_FAIL(TS_EUSAGE,
                           "mesh.sequence=%" PRId64 " is not mesh.ulysses=%d x mesh.ring=%d; give sequence, or the two",
                           sequence, out->ulysses, out->ring);
        }
        return TS_OK;
    }
    const int64_t heads = config->model.heads / config->mesh.tensor;
    ts_degrees_sequence(out, (int)sequence, heads > 0 ? heads : 1);
    return TS_OK;
}

int ts_train_config_degrees(const ts_train_config *config, int ranks, ts_degrees *out) {
    *out = (ts_degrees){1, 1, 1, 1, (int)config->mesh.tensor};
    TS_TRY(sequence_degrees(config, out));
    const int64_t others = (int64_t)out->ring * out->ulysses * out->tensor;
    const int64_t data = config->mesh.data ? config->mesh.data : ranks / others;
    if (others > ranks || data * others != ranks) {
        return config->mesh.data
                   ? TS_FAIL(TS_EUSAGE,
                             "mesh: data %" PRId64 " x sequence %" PRId64
                             " x tensor %d ranks are asked for, %d run; start as many, or set mesh.data=0",
                             data, others / out->tensor, out->tensor, ranks)
                   : TS_FAIL(TS_EUSAGE,
                             "mesh: sequence %" PRId64
                             " x tensor %d ranks are asked for, or a multiple of that, %d run; start as "
                             "many, or change the mesh",
                             others / out->tensor, out->tensor, ranks);
    }
    out->data = (int)data;
    return TS_OK;
}

// ---- optimizer

ts_optimizer_params ts_train_config_optimizer(const ts_train_config *config) {
    return (ts_optimizer_params){.beta1 = config->train.beta1,
                                 .beta2 = config->train.beta2,
                                 .eps = config->train.eps,
                                 .weight_decay = config->train.weight_decay,
                                 .average = config->train.ema_decay > 0,
                                 .muon = config->train.optimizer == TS_OPTIMIZER_MUON,
                                 .muon_lr_scale = config->train.muon_lr,
                                 .muon_momentum = config->train.muon_momentum,
                                 .rounding = (ts_rounding)config->train.rounding,
                                 .seed = (uint64_t)config->seed};
}

ts_dtype ts_train_config_operands(const ts_train_config *config) {
    return config->precision == TS_PRECISION_F32 ? TS_F32 : TS_BF16;
}

ts_dtype ts_train_config_gradients(const ts_train_config *config) {
    return config->train.gradients == TS_GRADIENTS_BF16 ? TS_BF16 : TS_F32;
}

// ---- is this the same run?

// Options that change where and how fast a run goes, not what it learns. A name ending in '.' covers its section.
static const char *const FREE_OPTIONS[] = {"name",
                                           "out",
                                           "data",
                                           "device",
                                           "threads",
                                           "mesh.",
                                           "train.minutes",
                                           "train.micro_batch",
                                           "sample.",
                                           "checkpoint.",
                                           "log.",
                                           "report",
                                           "validate.every",
                                           "validate.levels",
                                           "validate.patterns_every",
                                           "train.recompute",
                                           "train.gradients",
                                           "train.rounding",
                                           "watch.",
                                           "train.memory_gib",
                                           NULL};

static bool is_free(const char *key, bool constant_rate) {
    for (int i = 0; FREE_OPTIONS[i]; i++) {
        const size_t n = strlen(FREE_OPTIONS[i]);
        if (FREE_OPTIONS[i][n - 1] == '.' ? !strncmp(key, FREE_OPTIONS[i], n) : !strcmp(key, FREE_OPTIONS[i])) {
            return true;
        }
    }
    // Without a decay the rate does not depend on how long the run will be.
    return constant_rate && !strcmp(key, "train.steps");
}

enum { VALUE_FLAGS = JSON_ENCODE_ANY | JSON_REAL_PRECISION(12) };

// Walks `now`; keys may be nested maps or dotted names.
static int compare(const json_t *before, const json_t *now, const char *prefix, bool constant_rate, const char *place) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)now, key, value) {
        char name[160];
        snprintf(name, sizeof name, "%s%s%s", prefix, *prefix ? "." : "", key);
        const json_t *old = json_object_get(before, key);
        if (json_is_object(value)) {
            TS_TRY(compare(old, value, name, constant_rate, place));
            continue;
        }
        if (is_free(name, constant_rate) || (old && json_equal(old, value))) {
            continue;
        }
        char *a = old ? json_dumps(old, VALUE_FLAGS) : NULL;
        char *b = json_dumps(value, VALUE_FLAGS);
        const int status = TS_FAIL(TS_EUSAGE,
                                   "%s was made with %s: %s, now it is %s; go back to the old value, or choose "
                                   "another name or out folder for a new run",
                                   place, name, a ? a : "unset", b ? b : "unset");
        free(a);
        free(b);
        return status;
    }
    return TS_OK;
}

int ts_train_config_same_run(const char *before, const char *now, const char *place) {
    json_t *a = NULL, *b = NULL;
    int status = TS_OK;
    TS_TRY_GOTO(status, ts_json_parse(before, strlen(before), place, &a), done);
    TS_TRY_GOTO(status, ts_json_parse(now, strlen(now), "configuration", &b), done);
    const json_t *train = json_object_get(b, "train");
    const json_t *schedule = train ? json_object_get(train, "schedule") : json_object_get(b, "train.schedule");
    const bool constant_rate = json_is_string(schedule) && !strcmp(json_string_value(schedule), "constant");
    status = compare(a, b, "", constant_rate, place);
done:
    json_decref(a);
    json_decref(b);
    return status;
}
