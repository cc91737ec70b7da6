// SPDX-License-Identifier: Apache-2.0
#include "train/train.h"

#include <stdio.h>

#include "core/base/status.h"
#include "core/comm/threads.h"
#include "train/loop.h"

// CONFIG.yaml first, then the arguments over it, wherever they stand on the line.
static int read_config(ts_train_config *config, ts_arena *arena, int argc, char **argv, bool *help) {
    ts_train_config ignored;
    const char *file[2];
    int files = 2;
    TS_TRY(ts_train_config_default(&ignored, arena));
    TS_TRY(ts_options_read_args(ts_train_options, &ignored, arena, argc, argv, file, &files, help));
    if (*help) {
        return TS_OK;
    }
    if (files != 1) {
        return TS_FAIL(TS_EUSAGE,
                       "train takes one configuration file, %d given: tessera train CONFIG.yaml [--key=value]", files);
    }
    TS_TRY(ts_train_config_default(config, arena));
    TS_TRY(ts_options_read_yaml(ts_train_options, config, arena, file[0]));
    files = 2;
    TS_TRY(ts_options_read_args(ts_train_options, config, arena, argc, argv, file, &files, help));
    return ts_train_config_finish(config, arena);
}

int ts_command_train(ts_comm *world, int argc, char **argv) {
    ts_arena *arena = NULL;
    ts_train_config config;
    bool help = false;
    TS_TRY(ts_agree(world, ts_arena_open(&arena, "configuration", 1 << 16, false)));
    int status = ts_agree(world, read_config(&config, arena, argc, argv, &help));
    if (!status && help) {
        if (ts_comm_rank(world) == 0) {
            puts("tessera train CONFIG.yaml [--key=value ...]\n\nTrains a model on a data set. Stop it with SIGTERM; "
                 "the "
                 "same command goes on.\n");
            ts_options_print_help(ts_train_options, stdout);
        }
    } else if (!status) {
        status = ts_threads_set(world, config.threads);
        status = status ? status : ts_train_run(&config, arena, world);
    }
    ts_arena_close(&arena);
    return status;
}
