// SPDX-License-Identifier: Apache-2.0
// The configuration of a training run: one struct, one option table. YAML, --key=value, --help and the config.yaml
// that is saved with the run are all read off the table.
#ifndef TS_TRAIN_CONFIG_H
#define TS_TRAIN_CONFIG_H

#include "core/comm/mesh.h"
#include "core/config/option.h"
#include "core/model/dit.h"
#include "core/model/text.h"
#include "train/optimizer.h"

typedef enum { TS_PRECISION_BF16, TS_PRECISION_F32 } ts_precision;
typedef enum { TS_OPTIMIZER_ADAMW, TS_OPTIMIZER_MUON } ts_optimizer_kind;
typedef enum { TS_GRADIENTS_F32, TS_GRADIENTS_BF16 } ts_gradients;
typedef enum { TS_DECAY_COSINE, TS_DECAY_CONSTANT } ts_lr_decay;
typedef enum { TS_RUN_REPORT_NONE, TS_RUN_REPORT_COMM } ts_run_report;

enum { TS_RECOMPUTE_AUTO = TS_RECOMPUTE_BLOCK + 1 };  // the fastest kind of ts_recompute that fits the memory
extern const char *const ts_recompute_names[];        // as train.recompute spells them; NULL ends them

typedef struct ts_train_config {
    const char *name, *out, *data, *init;
    int64_t seed, threads;
    int device;     // of ts_device_names
    int precision;  // ts_precision
    int report;     // ts_run_report
    struct {
        int64_t data, cfg, sequence, ulysses, ring, tensor;
    } mesh;
    struct {
        int64_t heads, head_dim, layers, ffn_dim, freq_dim, text_rows, rope_max_positions;
        const char *patch;  // "1x2x2"
        int64_t patch_size[3];
        bool absolute_positions;
    } model;
    struct {
        int64_t width, heads, head_dim, ffn_dim, layers;
    } text;
    struct {
        int64_t steps, batch, micro_batch, warmup, ema_warmup;
        double minutes, lr, lr_text, beta1, beta2, eps, weight_decay, final_lr_share, clip, ema_decay, text_dropout;
        double muon_lr, muon_momentum;
        int optimizer;  // ts_optimizer_kind
        int gradients;  // ts_gradients
        int rounding;   // ts_rounding
        int schedule;   // ts_lr_decay
        int recompute;  // ts_recompute, or TS_RECOMPUTE_AUTO
        double memory_gib;
    } train;
    struct {
        double mean, std, shift, uniform_share;
    } noise;
    struct {
        double all, prefix, suffix, both_ends, scattered, independent;
    } patterns;
    struct {
        int64_t every, clips, levels, patterns_every;
    } validate;
    struct {
        int64_t every, steps;
        ts_string_list prompts;
        double guidance, shift;
    } sample;
    struct {
        int64_t every, keep, keep_every;
        bool export_model;
    } checkpoint;
    struct {
        int64_t every;
    } log;
    struct {
        double timeout;
        const char *network;
    } watch;
} ts_train_config;

extern const ts_option ts_train_options[];

// When all options are read: derives what is derived (out, the patch) and checks what one option alone cannot say.
// Strings live in `arena`.
int ts_train_config_finish(ts_train_config *config, ts_arena *arena);

// The degrees that mesh.* asks for of `ranks` ranks: data 0 is what the others leave, sequence is split into ulysses
// and ring (ts_degrees_sequence). TS_EUSAGE when they do not fit.
int ts_train_config_degrees(const ts_train_config *config, int ranks, ts_degrees *out);

// What the optimizer is told, and the types of matrices that kernels read and of gradients as they are kept.
ts_optimizer_params ts_train_config_optimizer(const ts_train_config *config);
ts_dtype ts_train_config_operands(const ts_train_config *config);
ts_dtype ts_train_config_gradients(const ts_train_config *config);

// The sizes of the two networks, given what the data set brings.
ts_dit_config ts_train_config_dit(const ts_train_config *config, int64_t latent_channels);
ts_text_config ts_train_config_text(const ts_train_config *config, int64_t vocabulary);

// Fails with TS_EUSAGE, naming the key and both values, when `now` differs from `before` (texts of ts_options_to_json)
// in an option that changes what is learned. Folders, ranks, threads, limits and reporting may differ.
int ts_train_config_same_run(const char *before, const char *now, const char *place);

#endif
