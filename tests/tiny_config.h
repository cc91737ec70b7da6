// SPDX-License-Identifier: Apache-2.0
// A configuration that trains on the tiny data set within a second or two.
#ifndef TS_TEST_TINY_CONFIG_H
#define TS_TEST_TINY_CONFIG_H

#include "core/base/arena.h"
#include "core/base/status.h"
#include "train/config.h"

static int tiny_config(ts_train_config *config, ts_arena *arena, const char *folder, const char *name) {
    *config = (ts_train_config){0};
    TS_TRY(ts_options_default(ts_train_options, config, arena));
    config->name = name;
    config->data = ts_arena_printf(arena, "%s/data", folder);
    config->out = ts_arena_printf(arena, "%s/%s", folder, name);
    config->precision = TS_PRECISION_F32;
    config->model.heads = 2;
    config->model.head_dim = 32;
    config->model.layers = 2;
    config->model.ffn_dim = 128;
    config->model.freq_dim = 32;
    config->model.text_rows = 8;
    config->text.width = 16;
    config->text.heads = 2;
    config->text.head_dim = 8;
    config->text.ffn_dim = 32;
    config->train.steps = 50;
    config->train.batch = 7;
    config->train.warmup = 5;
    config->train.lr = 0.01;
    config->train.optimizer = TS_OPTIMIZER_MUON;
    config->train.muon_lr = 5;
    config->patterns.all = 0.5;
    config->patterns.prefix = 0.2;
    config->patterns.both_ends = 0.1;
    config->patterns.scattered = 0.1;
    config->patterns.independent = 0.1;
    config->validate.clips = 5;
    config->validate.levels = 4;
    config->validate.every = 0;
    config->checkpoint.every = 0;
    config->log.every = 10;
    return ts_train_config_finish(config, arena);
}

#endif
